"gan_covid.comparisons: by hand and by simulation; p and interval never contradict each other; bad input."

import os
import subprocess
import sys

import numpy as np
import pytest
from test_intervals import PATIENTS, QUICK, by_patient, on_the_same_images, redrawn

from gan_covid.comparisons import compare_arms, corrected_t_test, delong, mcnemar, paired_bootstrap
from gan_covid.evaluation import outcome, table
from gan_covid.evaluation import simulated_result as result
from gan_covid.intervals import shared
from gan_covid.records import InputError
from gan_covid.summaries import summarise

SKILLS = {'original': 1.0, 'generated': 0.5, 'original+generated': 1.2}


def some(skills=SKILLS, repeats=4, **more):
    return [result(a, r, s, **more) for a, s in skills.items() for r in range(repeats)]


def test_several_networks():
    rs = [r for n in ('CNN', 'VGG-16') for r in some(repeats=2, network=n)]
    kw = {'metrics': ['accuracy'], 'by': ('network', 'arm'), 'uncertainty': QUICK}
    c = compare_arms(rs, ('CNN', 'original'), **kw)
    assert len(c) == 5 and set(c.baseline) == {'CNN/original'}


def test_arms_are_paired_by_image_not_by_position():
    a, b = result('original', 0, 1.0), result('generated', 0, 0.5)
    order = np.random.default_rng(0).permutation(60)
    shuffled = {**b, 'test': {k: [v[i] for i in order] for k, v in b['test'].items()}}
    same, mixed = (compare_arms([a, x], uncertainty=QUICK) for x in (b, shuffled))
    assert same.equals(mixed)
    with pytest.raises(InputError, match='different images'):
        compare_arms([a, result('generated', 0, 0.5, range(1, 61))])


def test_a_repeat_without_a_partner_is_left_out():
    rs = some({'original': 1.0, 'generated': 0.5})
    kw = {'metrics': ['accuracy'], 'uncertainty': QUICK}
    assert compare_arms(rs[1:], **kw).equals(compare_arms(rs[1:4] + rs[5:], **kw))
    assert compare_arms(rs[1:], **kw).n.item() == 3


def test_p_is_corrected_by_hand():
    rs, kw = some(), {'metrics': ['accuracy', 'auc'], 'uncertainty': QUICK}
    c = compare_arms(rs, **kw)
    p = c.p.to_numpy()
    order = p.argsort()
    holm = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    assert c.p_adjusted.to_numpy()[order] == pytest.approx(holm)
    plain = compare_arms(rs, correction=None, **kw)
    assert plain.p_adjusted.tolist() == plain.p.tolist()
    other = compare_arms(rs, correction='bonferroni', **kw)
    assert other.p_adjusted.to_numpy() == pytest.approx(np.minimum(1, len(p) * p))


def test_a_real_difference_is_found():
    skills = {'original': 0.3, 'generated': 2.0}
    c = compare_arms(some(skills, ids=range(300)), uncertainty=QUICK)
    assert (c.p_adjusted < 0.01).all() and (c.low > 0).all()


def test_no_difference_is_not_found():
    equal = {'original': 1.0, 'generated': 1.0}
    kw = {'metrics': ['accuracy'], 'uncertainty': QUICK}
    alarms = [compare_arms(some(equal, seed=s), **kw).p.item() < 0.05 for s in range(40)]
    assert sum(alarms) <= 4


def test_mcnemar_on_one_test_set_and_pooled():
    rs = some(repeats=1)
    c = compare_arms(rs, metrics=['accuracy', 'mcc']).set_index(['arm', 'metric'])
    a, b = outcome(rs[0]), outcome(rs[1])
    ra, rb = (o['y_score'].argmax(1) == o['y_true'] for o in (a, b))
    p = mcnemar((ra & ~rb).sum(), (rb & ~ra).sum())
    assert c.loc[('generated', 'accuracy'), 'p'] == pytest.approx(p)
    assert c.loc[('generated', 'accuracy'), 'test'] == 'exact McNemar'
    assert c.loc[('generated', 'mcc'), 'test'] == 'bootstrap'
    pooled = compare_arms(some(), test='mcnemar', uncertainty=QUICK)
    assert (pooled.test == 'exact McNemar').all() and (pooled.metric == 'accuracy').all()


def test_splits_use_the_corrected_t_test():
    parts = [np.random.default_rng(r).choice(200, 22, replace=False) for r in range(5)]
    rs = []
    for arm, skill, real in (('original', 1.0, 144), ('generated', 0.8, 0)):
        n_train = {'real': real, 'generated': 144}
        rs += [result(arm, r, skill, part, n_train=n_train) for r, part in enumerate(parts)]
    c = compare_arms(rs, metrics=['auc']).iloc[0]
    t = table(rs).pivot(index='repeat', columns='arm', values='auc')
    ratio = max(22 / 144, shared([outcome(r) for r in rs[:5]]))
    by_hand = corrected_t_test(t['generated'] - t['original'], ratio)
    assert c.test == 'corrected t'
    assert (c.p, c.low) == (pytest.approx(by_hand['p']), pytest.approx(by_hand['low']))


def test_test_parts_of_one_pool():
    arms = {a: redrawn(a, 5, s) for a, s in (('original', 1.0), ('generated', 0.5))}
    both = compare_arms(sum(arms.values(), []), metrics=['accuracy'], uncertainty=QUICK).iloc[0]
    d = table(arms['generated']).accuracy - table(arms['original']).accuracy
    by_hand = corrected_t_test(d, shared([outcome(r) for r in arms['original']]))
    assert both.p >= by_hand['p'] - 1e-12 and both.low <= by_hand['low'] + 1e-9


def test_delong_against_the_bootstrap():
    a, b = (outcome(result(arm, 0, s, range(300))) for arm, s in (('a', 0.6), ('b', 1.0)))
    d = delong(a['y_true'], a['y_score'][:, 1], b['y_score'][:, 1])
    boot = paired_bootstrap(a['y_true'], a['y_score'], b['y_score']).loc['auc']
    assert d['difference'] == pytest.approx(boot.difference, abs=0.02)
    assert d['high'] - d['low'] == pytest.approx(boot.high - boot.low, rel=0.25)
    assert delong(a['y_true'], a['y_score'][:, 1], a['y_score'][:, 1])['p'] == 1


@pytest.mark.parametrize('runs', [1, 5])
def test_arms_that_never_differ_are_not_certain_to_be_equal(runs):
    rs = [r for arm in ('original', 'generated') for r in on_the_same_images(arm, runs, wrong=3)]
    c = compare_arms(rs, uncertainty=QUICK).set_index('metric')
    tango = 3.8415 / 25.8415
    assert c.loc['accuracy', ['low', 'high']].tolist() == pytest.approx([-tango, tango], abs=1e-5)
    assert (c.low < -0.1).all() and (c.high > 0.1).all() and (c.p == 1).all()
    y = np.arange(22) % 2
    equal = delong(y, y, y)
    assert equal['low'] == pytest.approx(-tango, abs=1e-5) == -equal['high'] and equal['p'] == 1


def test_perfect_and_hopeless_classifiers_do_not_crash():
    for scores in ([[1.0, 0.0], [0.0, 1.0]] * 30, [[0.0, 1.0], [1.0, 0.0]] * 30, [[0.5, 0.5]] * 60):
        rs = some({'original': 1.0, 'generated': 1.0}, repeats=3)
        for r in rs:
            r['test']['y_score'] = scores
        s, c = summarise(rs, uncertainty=QUICK), compare_arms(rs, uncertainty=QUICK)
        assert s['mean'].dropna().between(-1, 1).all()
        assert (s.low.dropna() >= -1).all() and (s.high.dropna() <= 1).all()
        assert (c.difference.fillna(0) == 0).all() and (c.p.dropna() == 1).all()


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('where', ['one test set', 'one pool'])
def test_nothing_leaves_its_range_and_p_agrees_with_the_interval(seed, where):
    rng = np.random.default_rng(seed)
    runs, skill, rs = int(rng.integers(1, 4)), rng.uniform(0, 3), []
    for arm, s in (('original', 1.0), ('generated', skill)):
        if where == 'one pool':
            rs += redrawn(arm, runs, s, 24)
        else:
            rs += [result(arm, r, s, range(14)) for r in range(runs)]
    s, c = (
        f(rs, uncertainty=QUICK).dropna(subset=['low', 'high']) for f in (summarise, compare_arms)
    )
    assert s.low.ge(-1).all() and s.high.le(1).all() and s.low[s.metric != 'mcc'].ge(0).all()
    assert c.low.ge(-2).all() and c.high.le(2).all()
    rate = c[c.metric != 'mcc']
    assert rate.low.ge(-1).all() and rate.high.le(1).all()
    told = c.dropna(subset=['p'])
    assert ((told.p < 0.05) == ((told.low > 0) | (told.high < 0))).all(), told
    assert ((told.low <= told.difference) & (told.difference <= told.high)).all()


@pytest.mark.parametrize('repeats', [1, 4])
def test_images_of_one_patient_are_one_witness(repeats):
    known, unknown = (
        compare_arms(
            by_patient('original', repeats, g) + by_patient('generated', repeats, g, 1.2),
            metrics=['accuracy'],
        ).iloc[0]
        for g in (PATIENTS, None)
    )
    assert known.high - known.low > 1.3 * (unknown.high - unknown.low)
    assert 'McNemar' not in known.test


def test_bad_input():
    r = result('original', 0, 1.0)
    with pytest.raises(InputError, match='baseline'):
        compare_arms([r], 'none')
    with pytest.raises(InputError, match="test='z'"):
        compare_arms([r], test='z')
    with pytest.raises(InputError, match="'recall' is unknown"):
        compare_arms([r, result('generated', 0, 1.0)], metrics=['recall'])


TABLES = """
import sys; sys.path.insert(0, 'tests')
from test_comparisons import QUICK, compare_arms, some, summarise
print(summarise(some(), uncertainty=QUICK).to_csv(), compare_arms(some(), uncertainty=QUICK).to_csv())
"""


@pytest.mark.slow
def test_one_seed_one_table_in_any_process():
    env = {**os.environ, 'PYTHONHASHSEED': '1'}
    run = subprocess.run([sys.executable, '-c', TABLES], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    here = [f(some(), uncertainty=QUICK).to_csv() for f in (summarise, compare_arms)]
    assert run.stdout == ' '.join(here) + '\n' and 'runs+images' in run.stdout
