"Classifiers on both engines: counts, protocols, exact resume, weights from files, bad input."

import functools
import hashlib
import http.server
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gan_covid import classifiers as C
from gan_covid import published
from gan_covid.arms import ImageSet, TrainingSet
from gan_covid.augmentation import CT_REPORT, Pipeline, augment
from gan_covid.classifiers import (
    NETWORKS,
    Protocol,
    build_model,
    count_parameters,
    features,
    predict,
    protocol,
    train,
)
from gan_covid.engines import load_keras
from gan_covid.records import InputError, sha256_file

keras = load_keras()
OTHER = {'tensorflow': 'torch', 'torch': 'tensorflow'}[keras.backend.backend()]
TINY = Protocol(
    'ct_cnn', 32, 'adam', 2e-3, batch=16, epochs=3, patience=None, dropout=0.25, weights='random'
)


def halves(n, seed, size=32):
    "Noise whose left (class 0) or right (class 1) half is brighter."
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(0.4, 0.1, (n, size, size, 1))
    for k in range(n):
        x[k, :, size // 2 * y[k] : size // 2 * (y[k] + 1)] += 0.2
    return (x.clip(0, 1) * 255).astype(np.uint8), y


TRAIN, VAL = halves(40, 0), halves(16, 1)
quiet = dict(progress=None)


def script(code, backend=None, **kw):
    "Run Python in a process of its own, with `halves` and the module at hand."
    head = textwrap.dedent("""
        import json, os, signal, sys
        import numpy as np
        from dataclasses import replace
        from types import SimpleNamespace
        from gan_covid.augmentation import Pipeline
        from gan_covid.classifiers import Protocol, build_model, features, predict, train
    """) + inspect.getsource(halves)
    env = {
        **os.environ,
        'KERAS_BACKEND': backend or keras.backend.backend(),
        'OMP_NUM_THREADS': '1',
    }
    return subprocess.run(
        [sys.executable, '-c', head + textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        **kw,
    )


# ---- counts and structure


@pytest.mark.parametrize('network', [n for n in NETWORKS if n != 'ct_cnn'])
def test_parameters_of_the_bases(network):
    "SOURCES §3; with a frozen base and two classes only the head's weights are left: 4,098 for ResNet50 (X5)."
    model = build_model(
        Protocol(network, max(32, NETWORKS[network].smallest), weights='random', freeze=True), 2
    )
    width = {'resnet50': 2048, 'vgg16': 512, 'inceptionv3': 2048, 'efficientnetb0': 1280}[network]
    assert count_parameters(model) == {
        'trainable': 2 * width + 2,
        'non_trainable': NETWORKS[network].base_parameters,
    }
    assert network != 'resnet50' or 2 * width + 2 == 4098
    assert {
        'vgg16': 14_714_688,
        'resnet50': 23_587_712,
        'inceptionv3': 21_802_784,
        'efficientnetb0': 4_049_571,
    }[network] == NETWORKS[network].base_parameters


@pytest.mark.parametrize('size, trainable', [(128, 697_186), (256, 2_270_050)])
def test_parameters_of_the_reports_cnn(size, trainable):
    assert count_parameters(build_model(Protocol('ct_cnn', size), 2)) == {
        'trainable': trainable,
        'non_trainable': 640,
    }


@pytest.mark.parametrize('name, pooled', [('ct_report-vgg16', 512), ('ct_report-resnet50', 2048)])
def test_the_reports_fully_connected_layers(name, pooled):
    "Dropout stands *between* fully connected layers (T17); without sizes in the report, they are those of its CNN. Everybody else's network ends in one layer."
    model = build_model(protocol(name, size=32, weights='random', freeze=True), 2)
    head = (pooled + 1) * 256 + 257 * 128 + 129 * 2
    assert count_parameters(model) == {
        'trainable': head,
        'non_trainable': NETWORKS[model.name].base_parameters,
    }
    assert [
        (type(l).__name__, getattr(l, 'units', getattr(l, 'rate', None))) for l in model.layers[-4:]
    ] == [('Dense', 256), ('Dropout', 0.25), ('Dense', 128), ('Dense', 2)]
    assert head == int(published.network(f'T17 head of {model.name}').trainable.sum())
    assert (
        protocol('head_ct').dense == protocol('wmlq2022-inceptionv3').dense == 'auto'
        and not NETWORKS['resnet50'].dense
        and not NETWORKS['inceptionv3'].dense
    )


@pytest.mark.parametrize(
    'network, scaling, white',
    [
        ('vgg16', 'auto', (255 - 103.939, 255 - 116.779, 255 - 123.68)),
        ('vgg16', '0..255', (255,) * 3),
        ('efficientnetb0', 'auto', (255,) * 3),
        ('inceptionv3', 'auto', (1,) * 3),
        ('ct_cnn', 'auto', (1,)),
        ('ct_cnn', '-1..1', (1,)),
    ],
)
def test_input_scaling(network, scaling, white):
    model = build_model(
        Protocol(network, NETWORKS[network].smallest, weights='random', input_scaling=scaling), 2
    )
    scaled = keras.Model(model.input, model.get_layer('input_scaling').output)
    x = np.ones((1, *model.input_shape[1:]), np.float32)
    assert np.allclose(keras.ops.convert_to_numpy(scaled(x))[0, 0, 0], white, atol=1e-3)
    if scaling != 'imagenet-caffe' and network in ('inceptionv3', 'ct_cnn'):
        assert np.allclose(
            keras.ops.convert_to_numpy(scaled(0 * x)),
            -1 if '-1' in scaling or network == 'inceptionv3' else 0,
        )


def test_weights_are_fetched_from_where_keras_fetches_them():
    import importlib

    for network, module in {
        'resnet50': 'resnet',
        'vgg16': 'vgg16',
        'inceptionv3': 'inception_v3',
        'efficientnetb0': 'efficientnet',
    }.items():
        source = (
            inspect.getsource(importlib.import_module(f'keras.src.applications.{module}'))
            .replace('"\n    "', '')
            .replace('"\n        "', '')
        )
        n = NETWORKS[network]
        folder, name = n.file.rsplit('/', 1)
        assert n.md5 in source and folder + '/' in source and name.removeprefix(network) in source


# ---- both engines


def test_both_engines_agree_and_both_train(tmp_path):
    model = build_model(replace(TINY, size=48), 3, seed=4)
    model.save_weights(tmp_path / 'w.weights.h5')
    x = halves(6, 3, 48)[0]
    np.save(tmp_path / 'x.npy', x)
    out = script(
        """
        p = Protocol('ct_cnn', 48, 'adam', 2e-3, batch=16, epochs=3, patience=None, dropout=.25, weights='random')
        m = build_model(p, 3, seed=9)
        m.load_weights('w.weights.h5')
        x = np.load('x.npy')
        np.savez('out.npz', p=predict(m, x), f=features(m, x))
        r = train(replace(p, size=32), halves(40, 0), halves(16, 1), seed=1, progress=None)
        print(json.dumps(r.as_record()))
    """,
        OTHER,
        cwd=tmp_path,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    other = np.load(tmp_path / 'out.npz')
    assert np.allclose(other['p'], predict(model, x), rtol=1e-4, atol=1e-7) and np.allclose(
        other['f'], features(model, x), rtol=1e-4, atol=1e-5
    )
    theirs, ours = json.loads(out.stdout), train(TINY, TRAIN, VAL, seed=1, **quiet).as_record()
    for r in (theirs, ours):
        assert (
            r['history']['loss'][-1] < r['history']['loss'][0]
            and max(r['history']['val_accuracy']) == 1
            and r['weights'] == 'random'
            and r['epochs'] == 3
        )


# ---- training


def test_a_seed_decides_everything():
    a, b, c = (train(replace(TINY, epochs=2), TRAIN, VAL, seed=s, **quiet) for s in (1, 1, 2))
    assert a.history == b.history != c.history and np.array_equal(
        predict(a.model, VAL[0]), predict(b.model, VAL[0])
    )


def test_repeats_share_what_is_compiled_and_nothing_else():
    "A second training in a process takes over the first one's compiled step; neither its weights nor the first result change by that."
    first = train(TINY, TRAIN, VAL, seed=1, **quiet)
    before = predict(first.model, VAL[0])
    second = train(TINY, TRAIN, VAL, seed=2, **quiet)
    assert np.array_equal(predict(first.model, VAL[0]), before) and not np.array_equal(
        predict(second.model, VAL[0]), before
    )
    C._programs.clear()
    alone = train(TINY, TRAIN, VAL, seed=2, **quiet)
    assert alone.history == second.history and np.array_equal(
        predict(alone.model, VAL[0]), predict(second.model, VAL[0])
    )
    assert (
        train(replace(TINY, learning_rate=1e-4), TRAIN, VAL, seed=2, **quiet).history
        != alone.history
        and len(C._programs) == 1
    )


def test_killed_and_resumed_is_bit_identical(tmp_path):
    "A process killed by SIGKILL after its third epoch; this one goes on and ends where an uninterrupted training ends."
    p, training = (
        replace(TINY, epochs=5),
        SimpleNamespace(
            x=TRAIN[0], y=TRAIN[1], classes=['a', 'b'], pipeline=Pipeline(rotation_range=10)
        ),
    )
    killed = script(
        """
        def line(s):
            if s.startswith('epoch 4/'): os.kill(os.getpid(), signal.SIGKILL)
        x, y = halves(40, 0)
        p = Protocol('ct_cnn', 32, 'adam', 2e-3, batch=16, epochs=5, patience=None, dropout=.25, weights='random')
        train(p, SimpleNamespace(x=x, y=y, classes=['a', 'b'], pipeline=Pipeline(rotation_range=10)), halves(16, 1), seed=1, workdir='.', progress=line, checkpoint_seconds=0)
    """,
        cwd=tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    lines = []
    rest, whole = (
        train(p, training, VAL, seed=1, workdir=w, progress=lines.append) for w in (tmp_path, None)
    )
    assert (
        'going on after epoch 3' in lines[1]
        and rest.history == whole.history
        and rest.best_epoch == whole.best_epoch
    )
    assert np.array_equal(
        features(rest.model, VAL[0]), features(whole.model, VAL[0])
    ) and np.array_equal(predict(rest.model, VAL[0]), predict(whole.model, VAL[0]))


def test_a_checkpoint_of_something_else_is_not_used(tmp_path):
    lines = []
    train(
        replace(TINY, epochs=1), TRAIN, VAL, seed=1, workdir=tmp_path, checkpoint_seconds=0, **quiet
    )
    assert (
        train(
            replace(TINY, epochs=1), TRAIN, VAL, seed=2, workdir=tmp_path, progress=lines.append
        ).epochs
        == 1
        and 'other parameters' in lines[1]
    )
    (tmp_path / 'classifier.npz').write_bytes(b'PK\x03\x04 torn')
    lines.clear()
    assert (
        train(
            replace(TINY, epochs=1), TRAIN, VAL, seed=2, workdir=tmp_path, progress=lines.append
        ).epochs
        == 1
        and 'not readable' in lines[1]
    )
    assert [p.name for p in tmp_path.iterdir()] == ['classifier.npz']


def test_no_space_for_a_checkpoint(tmp_path, monkeypatch):
    import errno

    def full(*a, **k):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(C.np, 'savez', full)
    with pytest.raises(InputError, match='no space left'):
        train(replace(TINY, epochs=1), TRAIN, VAL, workdir=tmp_path, checkpoint_seconds=0, **quiet)
    assert not list(tmp_path.iterdir())


def test_early_stopping_restores_the_best_epoch():
    wrong = VAL[0], 1 - VAL[1]  # the better it learns, the worse it gets here
    r = train(replace(TINY, epochs=30, patience=2), TRAIN, wrong, seed=1, **quiet)
    assert r.epochs == r.best_epoch + 2 < 30 and r.history['val_loss'][r.best_epoch - 1] == min(
        r.history['val_loss']
    )
    q = predict(r.model, wrong[0])
    assert np.isclose(
        -np.log(q[np.arange(16), wrong[1]].clip(1e-7)).mean(), min(r.history['val_loss']), rtol=1e-4
    )
    last = train(
        replace(TINY, epochs=30, patience=2, restore_best=False), TRAIN, wrong, seed=1, **quiet
    )
    q = predict(last.model, wrong[0])
    assert last.history == r.history and np.isclose(
        -np.log(q[np.arange(16), wrong[1]].clip(1e-7)).mean(), r.history['val_loss'][-1], rtol=1e-4
    )


def test_training_stops_at_an_accuracy():
    r = train(replace(TINY, epochs=30, stop_accuracy=0.95), TRAIN, VAL, seed=1, **quiet)
    assert (
        r.epochs < 30
        and r.history['accuracy'][-1] > 0.95
        and max(r.history['accuracy'][:-1]) <= 0.95
    )


def test_label_smoothing_is_keras_own():
    r = train(replace(TINY, epochs=1, label_smoothing=0.2), TRAIN, VAL, seed=1, **quiet)
    keras_loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)(
        np.eye(2, dtype=np.float32)[VAL[1]], predict(r.model, VAL[0])
    )
    assert np.isclose(float(keras_loss), r.history['val_loss'][0], rtol=1e-5)


def test_batches_are_the_augmented_epoch_in_shuffled_order():
    x, y = halves(21, 0)
    batches = list(C._batches(x, y, replace(TINY, batch=8), 3, 5, CT_REPORT))
    order = np.random.default_rng([3, 5]).permutation(21)
    assert [len(b) for b, _ in batches] == [8, 8, 5]
    assert np.array_equal(
        np.concatenate([b for b, _ in batches]),
        augment(x / np.float32(255), CT_REPORT, 3, 5)[order],
    ) and np.array_equal(np.concatenate([l for _, l in batches]), y[order])
    plain = np.concatenate([b for b, _ in C._batches(x, y, TINY, 3, 6, None)])
    assert (
        np.array_equal(np.sort(plain.ravel()), np.sort((x / np.float32(255)).ravel()))
        and plain.dtype == np.float32
    )


def test_sets_of_arms_and_other_sizes():
    (x, y), n = halves(40, 0, 16), 40
    rest = dict(
        origin=np.full(n, 'real'), id=np.arange(n).astype(str), sha256=np.arange(n).astype(str)
    )
    training = TrainingSet(
        x, y, ['left', 'right'], **rest, arm='original+classical', pipeline='protocol'
    )
    val = ImageSet(*halves(40, 1, 24), ['left', 'right'], **rest)
    r = train(replace(TINY, pipeline={'rotation_range': 5}), training, val, seed=1, **quiet)
    assert (
        r.classes == ['left', 'right']
        and predict(r.model, x).shape == (40, 2)
        and max(r.history['val_accuracy']) > 0.8
    )
    with pytest.raises(InputError, match='protocol has none'):
        train(TINY, training, val, **quiet)
    with pytest.raises(InputError, match='use one order'):
        train(
            TINY, replace(training, pipeline=None), replace(val, classes=['right', 'left']), **quiet
        )


def test_bfloat16():
    r = train(replace(TINY, precision='mixed_bfloat16'), TRAIN, VAL, seed=1, **quiet)
    assert (
        predict(r.model, VAL[0]).dtype == np.float32
        and r.history['loss'][-1] < r.history['loss'][0]
        and keras.mixed_precision.dtype_policy().name == 'float32'
    )
    assert {w.dtype for w in r.model.trainable_weights} == {'float32'}


def test_frozen_head_only_equals_the_long_way():
    short = replace(TINY, freeze=True, epochs=2)
    still = SimpleNamespace(
        x=TRAIN[0],
        y=TRAIN[1],
        classes=[0, 1],
        pipeline=Pipeline(brightness_range=(0.999999, 1.000001)),
    )
    a, b = train(short, TRAIN, VAL, seed=2, **quiet), train(short, still, VAL, seed=2, **quiet)
    assert a.frozen and b.frozen
    for k in a.history:
        assert np.allclose(a.history[k], b.history[k], rtol=1e-3)
    assert np.allclose(predict(a.model, VAL[0]), predict(b.model, VAL[0]), atol=1e-3)


def test_recomputed_statistics_do_what_training_mode_does():
    "After a recomputation over one batch, using the network on this batch is what training mode computes."
    model = build_model(TINY, 2, seed=1)
    x = halves(16, 0)[0] / np.float32(255)
    C.recompute_statistics(model, [x])
    body = keras.Model(model.input, model.get_layer('pooled').output)
    use, training = (keras.ops.convert_to_numpy(body(x, training=t)) for t in (False, True))
    assert np.abs(use - training).max() < 0.02 * np.abs(training).max()


# ---- weights

MEAN, DEVIATION = (
    np.array([0.485, 0.456, 0.406], 'float32'),
    np.array([0.229, 0.224, 0.225], 'float32'),
)  # ImageNet's


def own_file(network, folder):
    "A file as Keras publishes it, from random weights: EfficientNet's has ImageNet's mean, and its standard deviation in the place of the variance."
    path = folder / f'{network}.h5'
    if path.exists():
        return path
    base = next(
        l
        for l in build_model(
            Protocol(network, NETWORKS[network].smallest, weights='random'), 2, seed=3
        ).layers
        if hasattr(l, 'layers')
    )
    for l in base.layers:
        if type(l).__name__ == 'Normalization':
            l.adapt_mean.assign(MEAN)
            l.adapt_variance.assign(DEVIATION)
    base.save(path)
    return path


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    return lambda network: own_file(network, folder)


def answer(model, x, **kw):
    return keras.ops.convert_to_numpy(model(x, **kw))


@pytest.mark.parametrize(
    'network, weights, freeze',
    [
        *((n, 'imagenet', True) for n in NETWORKS if n != 'ct_cnn'),
        *((n, 'file', False) for n in NETWORKS),
        ('ct_cnn', 'random', False),
        ('efficientnetb0', 'random', False),
    ],
)
def test_the_network_that_is_trained_is_the_network_that_was_built(
    network, weights, freeze, files, tmp_path, monkeypatch
):
    "Training goes on in a clone. It sees what the built network sees, in use and in training, whatever the weights; so does the saved network."
    path = None if weights == 'random' else files(network)
    monkeypatch.setattr(C, 'imagenet_file', lambda network: path)
    monkeypatch.setattr(
        'keras.src.utils.file_utils.get_file', lambda *a, **k: str(path)
    )  # keras.applications fetches by itself
    p = Protocol(
        network,
        NETWORKS[network].smallest,
        weights='imagenet' if weights == 'imagenet' else 'random',
        weights_file=str(path) if weights == 'file' else None,
        freeze=freeze,
    )
    model = build_model(p, 2, seed=1)
    assert model.source.startswith(weights)
    trained = C._program(p, model)[0]
    x = np.random.default_rng(0).random((3, *model.input_shape[1:]), 'float32')
    last = (
        keras.Model(model.input, model.layers[-1].input),
        keras.Model(trained.input, trained.layers[-1].input),
    )
    assert np.ptp(answer(last[0], x), 0).max() > 0 and np.array_equal(
        answer(last[0], x), answer(last[1], x)
    )
    assert np.array_equal(answer(model, x, training=True), answer(trained, x, training=True))
    if network != 'efficientnetb0':
        return
    bases = [next(l for l in m.layers if hasattr(l, 'layers')) for m in (model, trained)]
    first = {l: i for i, l in enumerate(bases[0].layers)}[
        next(l for l in bases[0].layers if l.name == 'stem_conv_pad')
    ]
    for base in bases:  # gray .5 as the first convolution sees it
        seen = answer(
            keras.Model(base.input, base.layers[first].input),
            np.full((1, *base.input_shape[1:]), 127.5, 'float32'),
        )[0, 5, 5]
        assert np.allclose(
            seen, 0.5 if weights == 'random' else (0.5 - MEAN) / DEVIATION, atol=1e-4
        )
    model.save(tmp_path / 'm.keras')
    assert np.array_equal(
        answer(keras.models.load_model(tmp_path / 'm.keras'), x), answer(model, x)
    )


def test_other_statistics_are_not_compiled_away(files):
    "What `Normalization` derives from its variables is a constant in the compiled step: another file gets a step of its own."
    p = Protocol('efficientnetb0', 32, weights='random', weights_file=str(files('efficientnetb0')))
    model = build_model(p, 2)
    first = C._program(p, model)[0]
    assert C._program(p, model)[0] is first
    C._derived(model)[0].adapt_mean.assign(2 * MEAN)
    C._derived(model)[0].finalize_state()
    other = C._program(p, model)[0]
    assert other is not first and np.allclose(
        np.ravel(keras.ops.convert_to_numpy(C._derived(other)[0].mean)), 2 * MEAN
    )


def test_the_clone_on_the_other_engine():
    "A small network with what EfficientNet has inside: a base whose `Normalization` keeps mean and variance beside its variables (on torch as views of them)."
    out = script(
        """
        from gan_covid import classifiers as C
        keras = C.load_keras()
        base = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Normalization(), keras.layers.Conv2D(4, 3)])
        base.layers[0].adapt_mean.assign([.485, .456, .406]); base.layers[0].adapt_variance.assign([.05, .06, .07]); base.layers[0].finalize_state()
        i = keras.Input((6, 6, 3))
        m = keras.Model(i, keras.layers.Dense(2, 'softmax')(keras.layers.GlobalAveragePooling2D()(base(i))))
        m.source = 'file:x'
        x = np.random.default_rng(0).random((4, 6, 6, 3), 'float32')
        a, b = (keras.ops.convert_to_numpy(n(x)) for n in (m, C._program(Protocol('ct_cnn', 32), m)[0]))
        print(json.dumps([bool(np.array_equal(a, b)), float(np.ptp(a, 0).max())]))
    """,
        OTHER,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    same, spread = json.loads(out.stdout.splitlines()[-1])
    assert same and spread > 0


def test_weights_from_a_file(tmp_path):
    base = build_model(TINY, 2, seed=7).layers[2]
    for name in ('base.weights.h5', 'base.keras', 'base.h5'):
        path = tmp_path / name
        base.save_weights(path) if name == 'base.weights.h5' else base.save(path)
        lines, p = [], replace(TINY, weights='auto', weights_file=str(path))
        model = build_model(p, 2, seed=1, progress=lines.append)
        assert model.source == f'file:{sha256_file(path)[:8]}' and model.frozen and not lines
        for a, b in zip(model.layers[2].weights, base.weights, strict=True):
            assert np.array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    assert not build_model(replace(p, freeze=False), 2).frozen
    assert train(replace(p, epochs=1), TRAIN, VAL, **quiet).as_record()['weights'] == model.source


def test_weights_files_that_do_not_fit(tmp_path):
    base = build_model(TINY, 2).layers[2]
    base.save_weights(tmp_path / 'good.weights.h5')
    (tmp_path / 'torn.weights.h5').write_bytes((tmp_path / 'good.weights.h5').read_bytes()[:4000])
    (tmp_path / 'text.h5').write_text('these are not weights')
    (tmp_path / 'empty.keras').write_bytes(b'')
    (tmp_path / 'weights.pth').write_bytes(b'x')
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(
        tmp_path / 'other.weights.h5'
    )
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(tmp_path / 'other.h5')
    w = base.weights[0]
    w.assign(keras.ops.convert_to_numpy(w) * np.nan)
    base.save_weights(tmp_path / 'nan.weights.h5')
    for name in (
        'missing.h5',
        'torn.weights.h5',
        'text.h5',
        'empty.keras',
        'weights.pth',
        'other.weights.h5',
        'other.h5',
        'nan.weights.h5',
    ):
        with pytest.raises(InputError, match=name):
            build_model(replace(TINY, weights_file=str(tmp_path / name)), 2)
    with pytest.raises(InputError, match='good.weights.h5'):
        build_model(Protocol('vgg16', 32, weights_file=str(tmp_path / 'good.weights.h5')), 2)


def test_efficientnet_file_with_the_deviation_in_place_of_the_variance(tmp_path):
    "Keras corrects its own file only when it loads it itself; from a file we do it."
    base = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    )
    norm, mean, sd = (
        base.layers[2],
        np.array([0.485, 0.456, 0.406]),
        np.array([0.229, 0.224, 0.225]),
    )
    norm.adapt_mean.assign(mean.reshape(norm.adapt_mean.shape))
    norm.adapt_variance.assign(sd.reshape(norm.adapt_variance.shape))
    base.save_weights(tmp_path / 'e.weights.h5')
    assert C._load_file(base, 'efficientnetb0', tmp_path / 'e.weights.h5').startswith('file:')
    out = keras.Model(base.input, base.layers[2].output)(np.full((1, 32, 32, 3), 100, np.float32))
    assert np.allclose(keras.ops.convert_to_numpy(out)[0, 5, 5], (100 / 255 - mean) / sd, atol=1e-3)


def test_offline(monkeypatch):
    "No network: 'auto' says so and goes on, 'imagenet' stops with one clear message, both at once."
    import pooch
    import requests

    def unreachable(*a, **k):
        raise requests.ConnectionError('no route')

    monkeypatch.setattr(pooch, 'retrieve', unreachable)
    lines, p = [], Protocol('efficientnetb0', 32, weights='auto')
    start = time.monotonic()
    model = build_model(p, 2, progress=lines.append)
    assert (
        model.source == 'random'
        and not model.frozen
        and len(lines) == 1
        and 'random weights' in lines[0]
    )
    with pytest.raises(InputError, match='weights_file'):
        build_model(replace(p, weights='imagenet'), 2)
    with pytest.raises(InputError, match='there are none for ct_cnn'):
        build_model(replace(TINY, weights='imagenet'), 2)


def test_online(monkeypatch, tmp_path):
    "A server that has the file: downloaded once into Keras' cache, checked, and Keras is told to use it; a wrong file is refused."
    site = tmp_path / 'site'
    site.mkdir()
    content = b'weights' * 1000
    (site / 'w.h5').write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        asked = []

        def log_message(self, *a):
            self.asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('KERAS_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    entry = replace(
        NETWORKS['vgg16'],
        file=f'http://127.0.0.1:{server.server_port}/w.h5',
        md5=hashlib.md5(content).hexdigest(),
    )
    monkeypatch.setitem(NETWORKS, 'vgg16', entry)
    original, told = keras.applications.VGG16, []
    monkeypatch.setattr(
        keras.applications,
        'VGG16',
        lambda weights, **k: (told.append(weights), original(weights=None, **k))[1],
    )
    try:
        for _ in range(2):
            model = build_model(Protocol('vgg16', 32), 2)
            assert (
                model.source == 'imagenet'
                and model.frozen
                and count_parameters(model)['trainable'] == 1026
            )
        assert (
            told == ['imagenet'] * 2
            and len(Quiet.asked) == 1
            and (tmp_path / 'home/models/w.h5').read_bytes() == content
        )
        monkeypatch.setitem(NETWORKS, 'vgg16', replace(entry, md5='0' * 32))
        with pytest.raises(InputError, match='cannot be had'):
            build_model(Protocol('vgg16', 32, weights='imagenet'), 2)
    finally:
        server.shutdown()


# ---- bad input

X, Y = TRAIN


@pytest.mark.parametrize(
    'training, val, message',
    [
        ((X, 0 * Y), VAL, 'one class only'),
        ((X[:0], Y[:0]), VAL, 'training images: no images'),
        (TRAIN, (X[:0], Y[:0]), 'validation images: no images'),
        ((np.where(X > 250, np.nan, X / 255.0), Y), VAL, 'without NaN'),
        ((X / 1.0, Y), VAL, r'values from .* to'),
        ((X / 255.0 - 0.5, Y), VAL, 'values from -0'),
        (TRAIN, (VAL[0] * np.nan, VAL[1]), 'validation images: values from nan'),
        ((X[..., 0], Y), VAL, 'shape'),
        ((X.repeat(3, -1), Y), VAL, 'shape'),
        ((X, Y[:-1]), VAL, 'labels of shape'),
        ((X, Y * 1.0), VAL, 'type float64'),
        (TRAIN, (VAL[0], VAL[1] + 1), 'class numbers'),
        ((X, Y - 1), VAL, 'class numbers'),
    ],
)
def test_bad_images(training, val, message):
    with pytest.raises(InputError, match=message):
        train(TINY, training, val, **quiet)


@pytest.mark.parametrize(
    'name, changes, message',
    [
        ('head_cd', {}, "protocol 'head_cd' is unknown"),
        ('head_ct', {'netwrok': 'vgg16'}, "'netwrok' is unknown"),
        ('head_ct', {'network': 'resnet'}, 'network='),
        ('head_ct', {'size': 31}, 'size=31'),
        ('head_ct', {'optimizer': 'lion'}, 'optimizer='),
        ('head_ct', {'learning_rate': 0}, 'learning_rate=0'),
        ('head_ct', {'monitor': 'auc'}, 'monitor='),
        ('head_ct', {'freeze': 'half'}, 'freeze='),
        ('head_ct', {'pipeline': {'rotate': 3}}, 'rotate'),
        ('head_ct', {'precision': 'float16'}, 'precision='),
        ('head_ct', {'dense': [256, 0]}, 'dense='),
        ('head_ct', {'dense': '256'}, 'dense='),
        ('head_ct', {'epochs': 2.5}, 'epochs='),
        ('head_ct', {'learning_rate': float('nan')}, 'learning_rate=nan'),
        ('ct_report-ct_cnn', {'bn_statistics': 'old'}, 'bn_statistics='),
    ],
)
def test_bad_protocols(name, changes, message):
    with pytest.raises(InputError, match=message):
        protocol(name, **changes)


def test_caffe_scaling_needs_three_channels():
    with pytest.raises(InputError, match='one input channel'):
        build_model(replace(TINY, input_scaling='imagenet-caffe'), 2)


def test_a_loss_that_explodes_is_named():
    with pytest.raises(InputError, match='learning_rate.*not finite'):
        train(replace(TINY, optimizer='sgd', learning_rate=3e38), TRAIN, VAL, **quiet)


def test_the_module_loads_no_engine():
    code = "import sys, gan_covid.classifiers, gan_covid.arms; print([m for m in ('keras', 'tensorflow', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.stdout.strip() == '[]', out.stderr
