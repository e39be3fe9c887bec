"Protocols and classifiers: counts, protocols, input scaling, weights from files and from the web."

import functools
import hashlib
import http.server
import importlib
import inspect
import threading
from dataclasses import replace

import numpy as np
import pytest

from gan_covid import classifiers as C
from gan_covid import published
from gan_covid.classifiers import build_model, count_parameters
from gan_covid.engines import load_keras
from gan_covid.protocols import NETWORKS, Protocol, protocol
from gan_covid.records import InputError, sha256_file

keras = load_keras()
TINY = Protocol('ct_cnn', 32, batch=16, dropout=0.25, weights='random')
KERAS_MODULES = {
    'resnet50': 'resnet',
    'vgg16': 'vgg16',
    'inceptionv3': 'inception_v3',
    'efficientnetb0': 'efficientnet',
}
POOLED = {'resnet50': 2048, 'vgg16': 512, 'inceptionv3': 2048, 'efficientnetb0': 1280}


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


# ---- counts and structure


@pytest.mark.parametrize(
    'network, parameters',
    [
        ('vgg16', 14_714_688),
        ('resnet50', 23_587_712),
        pytest.param('inceptionv3', 21_802_784, marks=pytest.mark.slow),
        pytest.param('efficientnetb0', 4_049_571, marks=pytest.mark.slow),
    ],
)
def test_parameters_of_the_bases(network, parameters):
    "SOURCES §3; with a frozen base and two classes only the head is left: 4,098 for ResNet50 (X5)."
    size = max(32, NETWORKS[network].smallest)
    model = build_model(Protocol(network, size, weights='random', freeze=True), 2)
    assert parameters == NETWORKS[network].base_parameters
    head = 2 * POOLED[network] + 2
    assert count_parameters(model) == {'trainable': head, 'non_trainable': parameters}
    assert head == 4098 or network not in ('resnet50', 'inceptionv3')


def test_the_reports_fully_connected_layers():
    """Dropout stands *between* fully connected layers (T17); without sizes in the report, they are
    those of its CNN. Everybody else's network ends in one layer."""
    p = protocol('ct_report-resnet50', size=32, weights='random', freeze=True)
    model = build_model(p, 2)
    last = [
        (type(layer).__name__, getattr(layer, 'units', getattr(layer, 'rate', None)))
        for layer in model.layers[-4:]
    ]
    assert last == [('Dense', 256), ('Dropout', 0.25), ('Dense', 128), ('Dense', 2)]
    for network in ('vgg16', 'resnet50'):
        head = (POOLED[network] + 1) * 256 + 257 * 128 + 129 * 2
        assert head == int(published.network(f'T17 head of {network}').trainable.sum())
    assert count_parameters(model)['trainable'] == head
    for name in ('head_ct', 'wmlq2022-inceptionv3'):
        p = protocol(name)
        assert p.dense == 'auto' and not NETWORKS[p.network].dense


@pytest.mark.parametrize(
    'network, scaling, black, white',
    [
        ('vgg16', 'auto', (-103.939, -116.779, -123.68), (151.061, 138.221, 131.32)),
        ('vgg16', '0..255', (0,) * 3, (255,) * 3),
        ('efficientnetb0', 'auto', (0,) * 3, (255,) * 3),
        ('inceptionv3', 'auto', (-1,) * 3, (1,) * 3),
        ('ct_cnn', 'auto', (0,), (1,)),
        ('ct_cnn', '-1..1', (-1,), (1,)),
    ],
)
def test_input_scaling(network, scaling, black, white):
    p = Protocol(network, 96, weights='random', input_scaling=scaling)
    image = keras.Input((96, 96, 1))
    scaled = keras.Model(image, C._scaled(p, image))
    for value, expected in ((0, black), (1, white)):
        seen = to_numpy(scaled(np.full((1, 96, 96, 1), value, np.float32)))
        assert np.allclose(seen[0, 5, 5], expected, atol=1e-3)


def test_caffe_scaling_needs_three_channels():
    with pytest.raises(InputError, match='one input channel'):
        build_model(replace(TINY, input_scaling='imagenet-caffe'), 2)


def test_weights_are_fetched_from_where_keras_fetches_them():
    for network, module in KERAS_MODULES.items():
        source = inspect.getsource(importlib.import_module(f'keras.src.applications.{module}'))
        source = source.replace('"\n    "', '').replace('"\n        "', '')
        n = NETWORKS[network]
        folder, name = n.file.rsplit('/', 1)
        assert n.md5 in source and f'{folder}/' in source
        assert name.removeprefix(network) in source


@pytest.mark.parametrize(
    'name, changes, message',
    [
        ('head_ct', {'network': 'resnet'}, 'network='),
        ('head_ct', {'size': 31}, 'size=31'),
        ('head_ct', {'optimizer': 'lion'}, 'optimizer='),
        ('head_ct', {'learning_rate': 0}, 'learning_rate=0'),
        ('head_ct', {'monitor': 'auc'}, 'monitor='),
        ('head_ct', {'freeze': 'half'}, 'freeze='),
        ('head_ct', {'pipeline': {'rotate': 3}}, 'rotate'),
        ('head_ct', {'precision': 'float16'}, 'precision='),
        ('head_ct', {'dense': '256'}, 'dense='),
        ('head_ct', {'epochs': 2.5}, 'epochs='),
        ('head_ct', {'learning_rate': float('nan')}, 'learning_rate=nan'),
        ('ct_report-ct_cnn', {'bn_statistics': 'old'}, 'bn_statistics='),
        ('ct_report-ct_cnn', {'bn_momentum': 1}, 'bn_momentum='),
        ('ct_report-ct_cnn', {'stop_accuracy': 95}, 'stop_accuracy='),
    ],
)
def test_bad_protocols(name, changes, message):
    with pytest.raises(InputError, match=message):
        protocol(name, **changes)


# ---- weights


def test_weights_from_a_file(tmp_path):
    base = build_model(TINY, 2, seed=7).layers[2]
    for name in ('base.weights.h5', 'base.keras', 'base.h5'):
        path = tmp_path / name
        base.save_weights(path) if name == 'base.weights.h5' else base.save(path)
        lines, p = [], replace(TINY, weights='auto', weights_file=str(path))
        model = build_model(p, 2, seed=1, progress=lines.append)
        assert model.source == f'file:{sha256_file(path)[:8]}' and model.frozen and not lines
        for a, b in zip(model.layers[2].weights, base.weights, strict=True):
            assert np.array_equal(to_numpy(a), to_numpy(b))
    assert not build_model(replace(p, freeze=False), 2).frozen


def test_weights_files_that_do_not_fit(tmp_path):
    base = build_model(TINY, 2).layers[2]
    base.save_weights(tmp_path / 'good.weights.h5')
    (tmp_path / 'torn.weights.h5').write_bytes((tmp_path / 'good.weights.h5').read_bytes()[:4000])
    (tmp_path / 'text.h5').write_text('these are not weights')
    (tmp_path / 'empty.keras').write_bytes(b'')
    (tmp_path / 'weights.pth').write_bytes(b'x')
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.save_weights(tmp_path / 'other.weights.h5')
    other.save(tmp_path / 'other.h5')
    w = base.weights[0]
    w.assign(to_numpy(w) * np.nan)
    base.save_weights(tmp_path / 'nan.weights.h5')
    names = (
        'torn.weights.h5 text.h5 empty.keras weights.pth other.weights.h5 other.h5 nan.weights.h5'
    )
    for name in ['missing.h5', *names.split()]:
        with pytest.raises(InputError, match=name):
            build_model(replace(TINY, weights_file=str(tmp_path / name)), 2)
    with pytest.raises(InputError, match='good.weights.h5'):
        build_model(Protocol('vgg16', 32, weights_file=str(tmp_path / 'good.weights.h5')), 2)


def test_offline(monkeypatch):
    "No network: 'auto' says so and builds, 'imagenet' stops with one clear message, both at once."
    import pooch
    import requests

    def unreachable(*a, **k):
        raise requests.ConnectionError('no route')

    monkeypatch.setattr(pooch, 'retrieve', unreachable)
    monkeypatch.setattr(C, '_without', set())
    lines, p = [], Protocol('vgg16', 32, weights='auto')
    model = build_model(p, 2, progress=lines.append)
    assert model.source == 'random' and not model.frozen
    assert len(lines) == 1 and 'Random weights' in lines[0]
    with pytest.raises(InputError, match='weights_file'):
        build_model(replace(p, weights='imagenet'), 2)
    with pytest.raises(InputError, match='there are none for ct_cnn'):
        build_model(replace(TINY, weights='imagenet'), 2)


@pytest.fixture
def site(tmp_path):
    "A server with one file, w.h5: (its address, its content, the paths that were asked for)."
    content, asked = b'weights' * 1000, []
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'w.h5').write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Quiet, directory=tmp_path / 'site')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/w.h5', content, asked
    server.shutdown()


def test_online(monkeypatch, tmp_path, site):
    """A server that has the file: downloaded once into Keras' cache, checked, and Keras is told to
    use it; a wrong file is refused."""
    address, content, asked = site
    monkeypatch.setenv('KERAS_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    entry = replace(NETWORKS['vgg16'], file=address, md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(NETWORKS, 'vgg16', entry)
    original, told = keras.applications.VGG16, []

    def vgg16(weights, **kw):
        told.append(weights)
        return original(weights=None, **kw)

    monkeypatch.setattr(keras.applications, 'VGG16', vgg16)
    for _ in range(2):
        model = build_model(Protocol('vgg16', 32), 2)
        assert model.source == 'imagenet' and model.frozen
        assert count_parameters(model)['trainable'] == 1026
    assert told == ['imagenet'] * 2 and len(asked) == 1
    assert (tmp_path / 'home/models/w.h5').read_bytes() == content
    monkeypatch.setitem(NETWORKS, 'vgg16', replace(entry, md5='0' * 32))
    with pytest.raises(InputError, match='cannot be had'):
        build_model(Protocol('vgg16', 32, weights='imagenet'), 2)
