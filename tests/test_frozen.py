"""Frozen features are computed once, and heads learn the same whatever stands beside them."""

import numpy as np
import pytest

from gan_covid import frozen
from gan_covid.frozen import Features, Store, train_heads
from gan_covid.protocols import Frozen
from gan_covid.records import InputError

P = Frozen(size=64, steps=60, layers=('block4_project', 'block10_project'), draws=8)


@pytest.fixture(scope='module')
def features(tmp_path_factory):
    return Features(P, tmp_path_factory.mktemp('features'))


def _images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 48, 48, 1), dtype=np.uint8)


def _clouds(n, seed=0, d=20):
    "Features of two classes that overlap a little."
    rng, y = np.random.default_rng(seed), np.arange(n) % 2
    return (rng.normal(size=(n, d)) + y[:, None] * 0.6).astype(np.float32), y


def test_nothing_is_computed_twice(features, monkeypatch):
    x = _images(5)
    first = features(x), features.drawn(x)
    again = Features(P, features.folder)
    monkeypatch.setattr(again, '_of', lambda images: pytest.fail('computed again'))
    assert np.array_equal(again(x[::-1]), first[0][::-1])
    assert np.array_equal(again.drawn(x[2:4]), first[1][2:4])


def test_equal_images_are_computed_once_and_others_are_not_mixed_up(tmp_path):
    counted = []

    def compute(rows):
        counted.extend(rows)
        return np.array([[float(ord(keys[i]))] for i in rows])

    keys = list('abca')
    assert Store(tmp_path).get(keys, compute).ravel().tolist() == [97, 98, 99, 97]
    assert counted == [0, 1, 2]
    keys = list('dcb')
    assert Store(tmp_path).get(keys, compute).ravel().tolist() == [100, 99, 98]
    assert counted == [0, 1, 2, 0]


def test_a_killed_run_finds_its_blocks(tmp_path):
    def dies(rows):
        if 4 in rows:
            raise KeyboardInterrupt
        return np.array(rows, float)[:, None]

    keys = list('abcdef')
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).get(keys, dies, block=2)
    store = Store(tmp_path)
    store.refresh()
    assert sorted(store.rows) == list('abcd')


def test_other_settings_are_other_features(features, tmp_path):
    other = Features(Frozen(size=96, layers=P.layers), tmp_path)
    assert other.key != features.key
    again = Features(Frozen(size=64, layers=P.layers, draws=9), tmp_path)
    assert again.key == features.key and again.drawn_key != features.drawn_key


def test_augmentations_hang_on_the_image_alone(features):
    x = _images(3, 7)
    one = features.drawn(x[1:2])[0]
    assert np.array_equal(features.drawn(x)[1], one)
    assert one.shape[0] == 8 and np.ptp(one, axis=0).max() > 0


def test_runs_are_independent_of_their_neighbours_and_of_each_other():
    x, y = _clouds(80)
    all_runs = train_heads(P, x, y, 2, [3, 4, 5]).predict(x)
    alone = train_heads(P, x, y, 2, [4]).predict(x)
    assert np.allclose(all_runs[1], alone[0], atol=1e-5)
    assert np.abs(all_runs[0] - all_runs[1]).max() > 1e-3
    assert np.array_equal(train_heads(P, x, y, 2, [3, 4, 5]).predict(x), all_runs)


def test_a_head_learns_what_logistic_regression_learns():
    from sklearn.linear_model import LogisticRegression

    (x, y), (test, truth) = _clouds(400), _clouds(400, 1)
    p = Frozen(steps=600)
    ours = (train_heads(p, x, y, 2, range(3)).predict(test).argmax(2) == truth).mean()
    theirs = LogisticRegression().fit(x, y).score(test, truth)
    assert abs(ours - theirs) < 0.02 and theirs > 0.8


def test_drawn_features_are_trained_on_in_the_place_of_the_images():
    x, y = _clouds(60)
    drawn = np.stack([x, x, x], 1)
    same = train_heads(P, x, y, 2, [0], drawn).predict(x)
    shifted = train_heads(P, x, 1 - y, 2, [0], drawn).predict(x)
    assert (same.argmax(2) == y).mean() > 0.8 and (shifted.argmax(2) == y).mean() < 0.2


def test_mixup_is_less_sure():
    x, y = _clouds(100)
    sure, mixed = (train_heads(P, x, y, 2, range(3), mixup=m).predict(x) for m in (False, True))
    assert mixed.max(2).mean() < sure.max(2).mean()


@pytest.mark.parametrize(
    'x, y, said',
    [
        (np.ones((4, 2), np.float32), np.zeros(4, int), 'one class only'),
        (np.ones((4, 2), np.float32), np.arange(3), '3 labels for 4 images'),
        (np.full((4, 2), np.nan, np.float32), np.arange(4) % 2, 'not finite'),
        (np.ones((4, 2), np.float32), np.arange(4), 'there are 2 classes'),
    ],
)
def test_bad_training_sets_are_said(x, y, said):
    with pytest.raises(InputError, match=said):
        train_heads(P, x, y, 2, [0])


def test_random_features_are_refused(tmp_path, monkeypatch):
    class Nothing:
        source = 'random'

    monkeypatch.setattr(frozen, 'feature_model', lambda *a: Nothing())
    with pytest.raises(InputError, match='ImageNet weights cannot be had'):
        Features(P, tmp_path)
