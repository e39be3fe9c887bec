"""Baselines and shortcut probes: each sees what it should, and nothing else."""

import numpy as np
import pytest

from gan_covid.baselines import BASELINES, baseline_scores, frame, in_frame, pixels, spectrum
from gan_covid.records import InputError


def _noise(n, seed=0, size=64):
    rng = np.random.default_rng(seed)
    return rng.integers(60, 200, (n, size, size, 1), dtype=np.uint8)


def _right(name, change, n=80):
    "Accuracy where `change` marks the images of class 1."
    x, test, y = _noise(n), _noise(n, 1), np.arange(n) % 2
    for images in (x, test):
        images[1::2] = change(images[1::2])
    return (baseline_scores(name, x, y, test, 2).argmax(1) == y).mean()


def _brighter(where):
    def change(images):
        out = images.copy()
        out[:, where(images.shape[1:3])] += 40
        return out

    return change


def test_the_frame_probe_sees_the_frame_alone():
    assert _right('frame alone', _brighter(in_frame)) == 1
    inside = _right('frame alone', _brighter(lambda size: ~in_frame(size)))
    assert inside < 0.7


def test_the_spectrum_probe_sees_enlarging_and_not_brightness():
    def blurred(images):
        return np.repeat(np.repeat(images[:, ::2, ::2], 2, 1), 2, 2)

    assert _right('spectrum alone', blurred) == 1
    assert _right('spectrum alone', lambda images: images + 40) < 0.7


def test_the_machine_sees_pixels():
    assert _right('SVM on pixels', _brighter(lambda size: ~in_frame(size))) > 0.9


@pytest.mark.parametrize('see', [pixels, frame, spectrum])
def test_integers_and_floats_are_the_same_image(see):
    x = _noise(3)
    a, b = see(x), see(x.astype(np.float32) / 255)
    if see is spectrum:
        b = b + 2 * np.log(255)
    assert np.allclose(a[:, 1:], b[:, 1:], atol=5e-3)


@pytest.mark.parametrize('name', list(BASELINES))
def test_same_images_same_answer_and_rows_sum_to_1(name):
    x, y = _noise(30), np.arange(30) % 3
    first, again = (baseline_scores(name, x, y, _noise(9, 2), 3) for _ in range(2))
    assert np.array_equal(first, again) and np.allclose(first.sum(1), 1)


def test_unknown_name_and_missing_class_are_said():
    with pytest.raises(InputError, match='baseline'):
        baseline_scores('svm', _noise(4), np.arange(4) % 2, _noise(2), 2)
    with pytest.raises(InputError, match='class number 2'):
        baseline_scores('frame alone', _noise(4), np.arange(4) % 2, _noise(2), 3)


@pytest.mark.parametrize('size', [16, 32, 33, 50])
def test_small_images_have_no_empty_ring(size):
    found = spectrum(_noise(2, size=size))
    assert np.isfinite(found).all() and found.shape[1] == min(32, size // 2)
