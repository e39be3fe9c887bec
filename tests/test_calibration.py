"gan_covid.calibration: prior correction, Brier, calibration error by hand and by simulation; bad input."

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from gan_covid.calibration import brier, corrected, ece, ece_by_chance, reliability, scores
from gan_covid.evaluation import outcome, simulated_result
from gan_covid.intervals import wilson
from gan_covid.records import InputError


def calibrated(n, k=3, seed=0):
    "Labels drawn from the probabilities themselves."
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(k), n)
    return (rng.random((n, 1)) > p.cumsum(1)[:, :-1]).sum(1), p


def test_prior_by_hand_and_back():
    assert corrected([[0.6, 0.4]], (3, 1)) == pytest.approx(np.array([[1 / 3, 2 / 3]]))
    # not the other way round, and target shares count
    assert corrected([[0.5, 0.5]], (0.8, 0.2), (0.2, 0.8))[0, 1] == pytest.approx(16 / 17)
    _, p = calibrated(50)
    there = corrected(p, (1, 2, 3), (5, 1, 1))
    assert corrected(there, (5, 1, 1), (1, 2, 3)) == pytest.approx(p)
    assert corrected(p, (10, 20, 30), (1, 2, 3)) == pytest.approx(p)


def test_correction_gives_back_what_the_training_shares_took():
    rng, n = np.random.default_rng(0), 4000
    y = rng.integers(0, 2, n)
    odds = np.exp(2 * (rng.normal(size=n) + 2 * y - 1))
    p = odds / (odds + 9)  # nine of the first class to one of the second
    said = np.stack([1 - p, p], 1)
    best = ((odds > 1) == y).mean()
    assert (
        (corrected(said, (9, 1)).argmax(1) == y).mean()
        == best
        > (said.argmax(1) == y).mean() + 0.05
    )


def test_brier_by_hand_and_against_scikit_learn():
    assert brier([2], [[0.2, 0.3, 0.5]]) == pytest.approx(0.04 + 0.09 + 0.25)
    y, p = calibrated(300, 2)
    assert brier(y, p) == pytest.approx(2 * brier_score_loss(y, p[:, 1]))
    assert brier(y, p[:, 1]) == pytest.approx(brier(y, p))


def test_bins_hold_equally_many_and_ece_by_hand():
    y, p = calibrated(100, 2)
    r = reliability(y, p, 7)
    assert r.n.sum() == 100 and r.n.max() - r.n.min() <= 1 and len(r) == 7
    order = np.argsort(p.max(1))
    first = order[: r.n[0]]
    right = p.argmax(1)[first] == y[first]
    assert (r.confidence[0], r.accuracy[0]) == pytest.approx((p.max(1)[first].mean(), right.mean()))
    assert (r.low[0], r.high[0]) == pytest.approx(wilson(right.sum(), r.n[0]))
    assert ece(y, p, 7) == pytest.approx(((r.confidence - r.accuracy).abs() * r.n).sum() / 100)
    assert ece(y, p, 1) == pytest.approx(abs(p.max(1).mean() - (p.argmax(1) == y).mean()))


def test_the_order_of_equally_sure_images_does_not_matter():
    p = np.repeat([[0.9, 0.1], [0.6, 0.4]], 10, axis=0)
    y = np.random.default_rng(0).integers(0, 2, 20)
    order = np.random.default_rng(1).permutation(20)
    assert ece(y, p, 5) == pytest.approx(ece(y[order], p[order], 5))
    assert reliability(y, p, 5).n.tolist() == [10, 10]


def test_chance_explains_the_error_of_a_calibrated_classifier_only():
    found = [ece(*calibrated(300, seed=s)) for s in range(20)]
    by_chance = ece_by_chance(calibrated(300)[1])
    assert np.mean(found) == pytest.approx(by_chance, rel=0.2)
    y, p = calibrated(300)
    sharp = p**3 / (p**3).sum(1, keepdims=True)
    assert ece(y, sharp) > 3 * ece_by_chance(sharp)


def test_scores_of_a_result():
    made = simulated_result('original', 0, 1.0, range(90))
    o = outcome(made)
    s = scores(made, train_prior=(3, 1), bins=5)
    assert s == pytest.approx(scores(o, train_prior=(30, 10), bins=5))
    assert (
        s['accuracy_corrected'] == (corrected(o['y_score'], (3, 1)).argmax(1) == o['y_true']).mean()
    )
    assert (s['brier'], s['ece']) == (
        brier(o['y_true'], o['y_score']),
        ece(o['y_true'], o['y_score'], 5),
    )
    assert np.isnan(scores(made)['accuracy_corrected']) and s['bins'] == 5
    assert scores({**made, 'train_prior': [3, 1]}, bins=5) == s


def test_bad_input_is_named():
    for bad in ([[0.5, 0.6]], [[-0.1, 1.1]], [[np.nan, 1]], []):
        with pytest.raises(InputError, match='y_score'):
            corrected(bad, (1, 1))
    for prior in ((1, 0), (1, 2, 3), (1, np.nan)):
        with pytest.raises(InputError, match='train_prior'):
            corrected([[0.5, 0.5]], prior)
    with pytest.raises(InputError, match='target_prior'):
        corrected([[0.5, 0.5]], (1, 1), (1, 0))
    for y in ([2], [0, 1], ['a']):
        with pytest.raises(InputError, match='y_true'):
            brier(y, [[0.5, 0.5]])
    with pytest.raises(InputError, match='bins'):
        ece([0], [[0.5, 0.5]], 0)
