"The sources' claims against their own arithmetic."

import numpy as np
import pytest

from gan_covid import claims
from gan_covid import published as pub


def brute_force(acc, sens, spec, largest=12):
    "Sizes of all test sets of up to 12 + 12 images that are printed like this."
    near = 0.50001e-4
    sides = [
        [(n, k) for n in range(1, largest + 1) for k in range(n + 1) if abs(k / n - rate) <= near]
        for rate in (sens, spec)
    ]
    return [p + q for p, a in sides[0] for q, b in sides[1] if abs((a + b) / (p + q) - acc) <= near]


def test_smallest_test_set_against_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(5):
        p, q = rng.integers(2, 12, 2)
        tp, tn = rng.integers(0, p + 1), rng.integers(0, q + 1)
        rates = [round(v, 4) for v in ((tp + tn) / (p + q), tp / p, tn / q)]
        assert claims.smallest_test_set(*rates, largest=12)['n'] == min(brute_force(*rates))


def test_x1_rows():
    metrics = 'accuracy', 'sensitivity', 'specificity'
    original, alone, both = (
        [pub.value('X1', f'{row}/{m}') for m in metrics]
        for row in ('original', 'DCGAN only', 'both')
    )
    assert not claims.accuracy_possible(*alone) and claims.smallest_test_set(*alone) is None
    assert claims.smallest_test_set(*original)['n'] == 745
    assert claims.smallest_test_set(*both)['n'] == 1185
    # nor does cutting digits off instead of rounding make it fit the 200 images there are
    for row in original, both:
        assert claims.smallest_test_set(*(v + 0.5e-4 for v in row), largest=200) is None


def test_fractions():
    report = {0.6583: 131, 0.7186: 143, 0.7538: 150, 0.7839: 156, 0.7638: 152, 0.7688: 153}
    report |= {0.6985: 139, 0.7035: 140, 0.8090: 161, 0.8040: 160, 0.7337: 146, 0.8291: 165}
    assert {v: claims.as_fraction_of(v, 199) for v in report} == report
    assert claims.as_fraction_of(0.7038, 199) is None and claims.as_fraction_of(0.7657, 199) is None
    means = 0.8875, 0.9475, 0.949375, 0.904375, 0.885, 0.905625
    assert all(claims.as_fraction_of(v, 1600, 6) for v in means)
    epochs = [pub.value('X5', f'val accuracy/{i}') for i in range(1, 6)]
    assert {claims.as_fraction_of(v, 120) for v in epochs} == {None}


@pytest.mark.parametrize('paper', pub.PAPERS)
def test_table_is_complete_text(paper):
    t = claims.does_not_add_up(paper)
    assert list(t.columns) == ['id', 'claim', 'computed', 'verdict', 'explanation']
    assert set(t.verdict) <= set(claims.VERDICTS)
    for text in t.to_numpy().ravel():
        assert isinstance(text, str) and text.strip() and 'nan' not in text.lower().split()
    named = {i for ids in t.id for i in ids.replace('–', ', ').split(', ')}
    assert named <= set(pub.INVENTORY)
    worst = t.verdict.map(claims.VERDICTS.index)
    assert worst.is_monotonic_increasing
    assert len(claims.does_not_add_up(paper, everything=False)) == (t.verdict != 'holds').sum()


def test_verdicts_follow_the_numbers(monkeypatch):
    "Mend a published number and the verdict turns."

    def mend(id, name, value):
        values = {**pub.PUBLISHED[id], name: pub.Value(value)}
        monkeypatch.setitem(pub.PUBLISHED, id, values)

    assert claims.accuracy_from_rates('T5').verdict == 'does not hold'
    mend('T5', 'accuracy', 0.87)
    assert claims.accuracy_from_rates('T5').verdict == 'holds'
    assert claims.row_of_results('DCGAN only').verdict == 'impossible'
    mend('X1', 'DCGAN only/accuracy', 0.75)
    assert 'impossible' not in set(claims.does_not_add_up('head_ct').verdict)
