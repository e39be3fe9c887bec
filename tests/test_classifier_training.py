"Training of classifiers on both engines: exact resume, shared compilation, early stopping, bad input."

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gan_covid import classifier_training as T
from gan_covid import classifiers as C
from gan_covid.arms import ImageSet, TrainingSet
from gan_covid.augmentation import CT_REPORT, Pipeline, augment
from gan_covid.classifier_training import train
from gan_covid.classifiers import build_model, features, predict
from gan_covid.engines import load_keras
from gan_covid.protocols import NETWORKS, Protocol
from gan_covid.records import InputError

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


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def script(code, backend=None, **kw):
    "Run Python in a process of its own, with `halves`, TINY and the modules at hand."
    head = """
        import json, os, signal, sys
        import numpy as np
        from dataclasses import replace
        from types import SimpleNamespace
        from gan_covid import classifier_training as T
        from gan_covid.augmentation import Pipeline
        from gan_covid.classifier_training import train
        from gan_covid.classifiers import build_model, features, predict
        from gan_covid.engines import load_keras
        from gan_covid.protocols import Protocol
    """
    head = (
        textwrap.dedent(head)
        + inspect.getsource(halves)
        + f'\nTINY = Protocol(**{TINY.as_dict()})\n'
    )
    backend = backend or keras.backend.backend()
    env = {**os.environ, 'KERAS_BACKEND': backend, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', head + textwrap.dedent(code)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **kw)


# ---- the same bits


def test_a_seed_decides_everything_and_repeats_share_only_what_is_compiled():
    """A second training in a process takes over the first one's compiled step; neither its weights
    nor the first result change by that."""
    first = train(TINY, TRAIN, VAL, seed=1, **quiet)
    before = predict(first.model, VAL[0])
    second = train(TINY, TRAIN, VAL, seed=2, **quiet)
    answers = predict(second.model, VAL[0])
    assert np.array_equal(predict(first.model, VAL[0]), before)
    assert first.history != second.history and not np.array_equal(answers, before)
    T._programs.clear()
    alone = train(TINY, TRAIN, VAL, seed=2, **quiet)
    assert alone.history == second.history
    assert np.array_equal(predict(alone.model, VAL[0]), answers)
    slower = train(replace(TINY, learning_rate=1e-4), TRAIN, VAL, seed=2, **quiet)
    assert slower.history != alone.history and len(T._programs) == 1


def test_trainings_of_one_seed_begin_with_one_network_and_end_with_their_own(monkeypatch):
    "Random weights are built once for all arms; each result has a network of its own all the same."
    built, build = [], T.build_model
    monkeypatch.setattr(T, 'build_model', lambda *a: built.append(a) or build(*a))
    monkeypatch.setattr(T, '_untrained', {})
    fewer = TRAIN[0][:20], TRAIN[1][:20]
    arms = [train(TINY, images, VAL, seed=3, **quiet) for images in (TRAIN, fewer, TRAIN)]
    assert len(built) == 1
    answers = [predict(r.model, VAL[0]) for r in arms]
    assert len({id(r.model) for r in arms}) == 3 and arms[0].model is arms[0].model
    again = [predict(r.model, VAL[0]) for r in arms]
    assert np.array_equal(answers, again)
    assert np.array_equal(answers[0], answers[2]) and not np.array_equal(answers[0], answers[1])
    for seed in range(6):
        train(TINY, fewer, VAL, seed=seed, **quiet)
    assert len(T._untrained) == 4  # no more are kept


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path):
    """A process killed by SIGKILL after its third epoch; this one resumes and ends where an
    uninterrupted training ends."""
    killed = script(
        """
        def line(s):
            if s.startswith('epoch 4/'): os.kill(os.getpid(), signal.SIGKILL)
        x, y = halves(40, 0)
        images = SimpleNamespace(x=x, y=y, classes=['a', 'b'], pipeline=Pipeline(rotation_range=10))
        p = replace(TINY, epochs=5)
        train(p, images, halves(16, 1), seed=1, workdir='.', progress=line, checkpoint_seconds=0)
        """,
        cwd=tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    pipeline = Pipeline(rotation_range=10)
    images = SimpleNamespace(x=TRAIN[0], y=TRAIN[1], classes=['a', 'b'], pipeline=pipeline)
    p, lines = replace(TINY, epochs=5), []
    rest = train(p, images, VAL, seed=1, workdir=tmp_path, progress=lines.append)
    whole = train(p, images, VAL, seed=1, **quiet)
    assert 'resumes after epoch 3' in lines[1]
    assert rest.history == whole.history and rest.best_epoch == whole.best_epoch
    for use in (features, predict):
        assert np.array_equal(use(rest.model, VAL[0]), use(whole.model, VAL[0]))


def test_a_checkpoint_of_something_else_is_not_used(tmp_path):
    lines, p = [], replace(TINY, epochs=1)
    train(p, TRAIN, VAL, seed=1, workdir=tmp_path, checkpoint_seconds=0, **quiet)
    other = train(p, TRAIN, VAL, seed=2, workdir=tmp_path, progress=lines.append)
    assert other.epochs == 1 and 'other parameters' in lines[1]
    (tmp_path / 'classifier.npz').write_bytes(b'PK\x03\x04 torn')
    lines.clear()
    other = train(p, TRAIN, VAL, seed=2, workdir=tmp_path, progress=lines.append)
    assert other.epochs == 1 and 'not readable' in lines[1]
    assert [f.name for f in tmp_path.iterdir()] == ['classifier.npz']


def test_no_space_for_a_checkpoint(tmp_path, monkeypatch):
    def full(*a, **k):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(T.np, 'savez', full)
    with pytest.raises(InputError, match='no space left'):
        train(replace(TINY, epochs=1), TRAIN, VAL, workdir=tmp_path, checkpoint_seconds=0, **quiet)
    assert not list(tmp_path.iterdir())


# ---- when to stop, what is counted


def val_loss(model, x, y):
    q = predict(model, x)
    return -np.log(q[np.arange(len(y)), y].clip(1e-7)).mean()


@pytest.mark.slow
def test_early_stopping_restores_the_best_epoch():
    wrong = VAL[0], 1 - VAL[1]  # the better it learns, the worse it gets here
    p = replace(TINY, epochs=30, patience=2)
    r = train(p, TRAIN, wrong, seed=1, **quiet)
    losses = r.history['val_loss']
    assert r.epochs == r.best_epoch + 2 < 30 and losses[r.best_epoch - 1] == min(losses)
    assert np.isclose(val_loss(r.model, *wrong), min(losses), rtol=1e-4)
    last = train(replace(p, restore_best=False), TRAIN, wrong, seed=1, **quiet)
    assert last.history == r.history
    assert np.isclose(val_loss(last.model, *wrong), losses[-1], rtol=1e-4)


def test_training_stops_at_an_accuracy():
    r = train(replace(TINY, epochs=30, stop_accuracy=0.95), TRAIN, VAL, seed=1, **quiet)
    *before, last = r.history['accuracy']
    assert r.epochs < 30 and last > 0.95 and max(before) <= 0.95


@pytest.mark.slow
def test_label_smoothing_is_keras_own():
    r = train(replace(TINY, epochs=1, label_smoothing=0.2), TRAIN, VAL, seed=1, **quiet)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    theirs = loss(np.eye(2, dtype=np.float32)[VAL[1]], predict(r.model, VAL[0]))
    assert np.isclose(float(theirs), r.history['val_loss'][0], rtol=1e-5)


def test_batches_are_the_augmented_epoch_in_shuffled_order():
    x, y = halves(21, 0)
    data = T._Data(x, y, x, y, [0, 1], CT_REPORT)
    batches = list(T.epoch_batches(data, 8, 3, 5))
    order = np.random.default_rng([3, 5]).permutation(21)
    assert [len(b) for b, _ in batches] == [8, 8, 5]
    unit = x / np.float32(255)
    images, labels = (np.concatenate(part) for part in zip(*batches))
    assert np.array_equal(images, augment(unit, CT_REPORT, 3, 5)[order])
    assert np.array_equal(labels.argmax(1), y[order])
    plain = np.concatenate([b for b, _ in T.epoch_batches(replace(data, pipeline=None), 16, 3, 6)])
    assert plain.dtype == np.float32
    assert np.array_equal(np.sort(plain.ravel()), np.sort(unit.ravel()))


def test_sets_of_arms_and_other_sizes():
    (x, y), n = halves(40, 0, 16), 40
    ids = np.arange(n).astype(str)
    rest = dict(origin=np.full(n, 'real'), id=ids, sha256=ids)
    classes = ['left', 'right']
    training = TrainingSet(x, y, classes, **rest, arm='original+classical', pipeline='protocol')
    val = ImageSet(*halves(40, 1, 24), classes, **rest)
    r = train(replace(TINY, pipeline={'rotation_range': 5}), training, val, seed=1, **quiet)
    assert r.classes == classes and predict(r.model, x).shape == (40, 2)
    assert max(r.history['val_accuracy']) > 0.8
    with pytest.raises(InputError, match='protocol has none'):
        train(TINY, training, val, **quiet)
    turned = replace(val, classes=classes[::-1])
    with pytest.raises(InputError, match='use one order'):
        train(TINY, replace(training, pipeline=None), turned, **quiet)


@pytest.mark.slow
def test_bfloat16():
    r = train(replace(TINY, precision='mixed_bfloat16'), TRAIN, VAL, seed=1, **quiet)
    assert predict(r.model, VAL[0]).dtype == np.float32
    assert r.history['loss'][-1] < r.history['loss'][0]
    assert keras.mixed_precision.dtype_policy().name == 'float32'
    assert {w.dtype for w in r.model.trainable_weights} == {'float32'}


def test_recomputed_statistics_do_what_training_mode_does():
    "After a recomputation over one batch, using the network on this batch is what training mode computes."
    model = build_model(TINY, 2, seed=1)
    x = halves(16, 0)[0] / np.float32(255)
    T.recompute_statistics(model, [x])
    body = keras.Model(model.input, model.get_layer('pooled').output)
    use, training = (to_numpy(body(x, training=t)) for t in (False, True))
    assert np.abs(use - training).max() < 0.02 * np.abs(training).max()


# ---- the clone that is trained

MEAN = np.array([0.485, 0.456, 0.406], 'float32')  # ImageNet's
DEVIATION = np.array([0.229, 0.224, 0.225], 'float32')


def base_of(model):
    return next(layer for layer in model.layers if hasattr(layer, 'layers'))


def own_file(network, folder):
    """A file as Keras publishes it, from random weights: EfficientNet's has ImageNet's mean, and its
    standard deviation in the place of the variance."""
    path = folder / f'{network}.h5'
    if not path.exists():
        p = Protocol(network, NETWORKS[network].smallest, weights='random')
        base = base_of(build_model(p, 2, seed=3))
        for layer in base.layers:
            if type(layer).__name__ == 'Normalization':
                layer.adapt_mean.assign(MEAN)
                layer.adapt_variance.assign(DEVIATION)
        base.save(path)
    return path


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    return lambda network: own_file(network, folder)


def seen_by_the_first_convolution(model):
    "EfficientNet: gray .5 behind its own normalisation."
    base = base_of(model)
    pad = next(layer for layer in base.layers if layer.name == 'stem_conv_pad')
    gray = np.full((1, *base.input_shape[1:]), 127.5, 'float32')
    return to_numpy(keras.Model(base.input, pad.input)(gray))[0, 5, 5]


@pytest.mark.parametrize(
    'network, weights, freeze',
    [
        ('vgg16', 'imagenet', True),
        ('ct_cnn', 'file', False),
        ('ct_cnn', 'random', False),
        pytest.param('resnet50', 'random', False, marks=pytest.mark.slow),
        pytest.param('inceptionv3', 'random', False, marks=pytest.mark.slow),
        pytest.param('efficientnetb0', 'imagenet', True, marks=pytest.mark.slow),
        pytest.param('efficientnetb0', 'file', False, marks=pytest.mark.slow),
        pytest.param('efficientnetb0', 'random', False, marks=pytest.mark.slow),
    ],
)
def test_the_network_that_is_trained_is_the_network_that_was_built(
    network, weights, freeze, files, tmp_path, monkeypatch
):
    """A clone is trained. It sees what the built network sees, in use and in training, whatever the
    weights; so does the saved network."""
    path = None if weights == 'random' else files(network)
    monkeypatch.setattr(C, 'imagenet_file', lambda network: path)
    # keras.applications fetches by itself
    monkeypatch.setattr('keras.src.utils.file_utils.get_file', lambda *a, **k: str(path))
    p = Protocol(
        network,
        NETWORKS[network].smallest,
        weights='imagenet' if weights == 'imagenet' else 'random',
        weights_file=str(path) if weights == 'file' else None,
        freeze=freeze,
    )
    model = build_model(p, 2, seed=1)
    assert model.source.startswith(weights)
    trained = T._program(p, model)[0]
    x = np.random.default_rng(0).random((3, *model.input_shape[1:]), 'float32')
    own, cloned = (to_numpy(keras.Model(m.input, m.layers[-1].input)(x)) for m in (model, trained))
    assert np.ptp(own, 0).max() > 0 and np.array_equal(own, cloned)
    own, cloned = (to_numpy(m(x, training=True)) for m in (model, trained))
    assert np.array_equal(own, cloned)
    if network != 'efficientnetb0':
        return
    expected = 0.5 if weights == 'random' else (0.5 - MEAN) / DEVIATION
    for m in (model, trained):
        assert np.allclose(seen_by_the_first_convolution(m), expected, atol=1e-4)
    if weights != 'file':
        return
    model.save(tmp_path / 'm.keras')
    saved = keras.models.load_model(tmp_path / 'm.keras')
    assert np.array_equal(to_numpy(saved(x)), to_numpy(model(x)))


def small_normalised(keras):
    """A small network with what EfficientNet has inside: a base whose `Normalization` keeps mean and
    variance beside its variables (on torch as views of them)."""
    layers, image = keras.layers, keras.Input((6, 6, 3))
    base = keras.Sequential([image, layers.Normalization(), layers.Conv2D(4, 3)])
    base.layers[0].adapt_mean.assign([0.485, 0.456, 0.406])
    base.layers[0].adapt_variance.assign([0.05, 0.06, 0.07])
    base.layers[0].finalize_state()
    image = keras.Input((6, 6, 3))
    pooled = layers.GlobalAveragePooling2D()(base(image))
    model = keras.Model(image, layers.Dense(2, 'softmax')(pooled))
    model.source = 'file:x'
    return model


def test_other_statistics_are_not_compiled_away():
    """What `Normalization` derives from its variables is a constant in the compiled step: another
    file gets a step of its own."""
    model = small_normalised(keras)
    first = T._program(TINY, model)[0]
    assert T._program(TINY, model)[0] is first
    T._derived(model)[0].adapt_mean.assign(2 * MEAN)
    T._derived(model)[0].finalize_state()
    other = T._program(TINY, model)[0]
    assert other is not first
    assert np.allclose(np.ravel(to_numpy(T._derived(other)[0].mean)), 2 * MEAN)


# ---- both engines


@pytest.mark.slow
def test_both_engines_agree_and_both_train(tmp_path):
    "One process on the other engine: the same answers, a training that learns, and an exact clone."
    model = build_model(replace(TINY, size=48), 3, seed=4)
    model.save_weights(tmp_path / 'w.weights.h5')
    x = halves(6, 3, 48)[0]
    np.save(tmp_path / 'x.npy', x)
    code = """
        m = build_model(replace(TINY, size=48), 3, seed=9)
        m.load_weights('w.weights.h5')
        x = np.load('x.npy')
        np.savez('out.npz', p=predict(m, x), f=features(m, x))
        r = train(TINY, halves(40, 0), halves(16, 1), seed=1, progress=None)
        m = small_normalised(load_keras())
        x = np.random.default_rng(0).random((4, 6, 6, 3), 'float32')
        a, b = (load_keras().ops.convert_to_numpy(n(x)) for n in (m, T._program(TINY, m)[0]))
        print(json.dumps([r.as_record(), bool(np.array_equal(a, b)), float(np.ptp(a, 0).max())]))
    """
    out = script(inspect.getsource(small_normalised) + textwrap.dedent(code), OTHER, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    other = np.load(tmp_path / 'out.npz')
    assert np.allclose(other['p'], predict(model, x), rtol=1e-4, atol=1e-7)
    assert np.allclose(other['f'], features(model, x), rtol=1e-4, atol=1e-5)
    theirs, same_clone, spread = json.loads(out.stdout.splitlines()[-1])
    assert same_clone and spread > 0
    ours = train(TINY, TRAIN, VAL, seed=1, **quiet).as_record()
    for r in (theirs, ours):
        assert r['history']['loss'][-1] < r['history']['loss'][0]
        assert max(r['history']['val_accuracy']) == 1
        assert r['weights'] == 'random' and r['epochs'] == 3


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


def test_a_loss_that_explodes_is_named():
    with pytest.raises(InputError, match='learning_rate.*not finite'):
        train(replace(TINY, optimizer='sgd', learning_rate=3e38), TRAIN, VAL, **quiet)
