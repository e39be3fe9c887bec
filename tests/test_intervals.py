"gan_covid.intervals and gan_covid.summaries: coverage by simulation, the edges, patients, one pool."

import json

import numpy as np
import pytest
from scipy import stats

from gan_covid.evaluation import METRICS, outcome, table
from gan_covid.evaluation import simulated_result as result
from gan_covid.intervals import (
    Uncertainty,
    clopper_pearson,
    mean_interval,
    resample,
    shared,
    wilson,
)
from gan_covid.records import InputError
from gan_covid.summaries import mean_roc, summarise

QUICK = Uncertainty(n_boot=100)


def on_the_same_images(arm, runs, n=22, wrong=0, group=None):
    "Runs that all get the first `wrong` images wrong, and nothing else."
    y = np.arange(n) % 2
    said = np.where(np.arange(n) < wrong, 1 - y, y)
    test = {
        'id': [f'{i:03}' for i in range(n)],
        'y_true': y.tolist(),
        'y_score': np.eye(2)[said].tolist(),
        'group': group,
    }
    classes = ['normal', 'hemorrhage']
    return [{'arm': arm, 'repeat': r, 'classes': classes, 'test': test} for r in range(runs)]


def redrawn(arm, repeats=5, skill=1.0, pool=56):
    "As head_ct: 22 test images anew from the same pool, the training part of 144 stays."
    rng = np.random.default_rng(0)

    def part():
        return np.r_[2 * rng.permutation(pool // 2)[:11], 2 * rng.permutation(pool // 2)[:11] + 1]

    return [result(arm, r, skill, np.sort(part())) for r in range(repeats)]


def by_patient(arm, repeats, group, skill=0.8):
    "Sixty images, six of each patient, all of a patient's images of one class alike; as records."
    rs = [result(arm, r, skill) for r in range(repeats)]
    for r in rs:
        score = np.array(r['test']['y_score'])
        for i in range(60):
            score[i] = score[6 * (i // 6) + i % 2]
        r['test'] |= {'y_score': score.tolist(), 'group': group}
    return [{'step': 'classify', 'results': json.loads(json.dumps(r))} for r in rs]


PATIENTS = [f'P{i // 6}' for i in range(60)]


def test_bootstrap_keeps_classes_and_patients_together():
    y, patient = np.array([0] * 6 + [1] * 4), np.array(list('aabbbccddd'))
    y[7] = 0  # patient c has both classes
    w = resample(y, patient, 300)
    for p in 'abcd':
        assert (np.ptp(w[:, patient == p], axis=1) == 0).all()
    plain = resample(y, None, 300)
    for c in (0, 1):
        assert (plain[:, y == c].sum(1) == (y == c).sum()).all()


def runs_of_a_world(rng, n=100, runs=4):
    "The accuracy is Φ(0.8/√1.25); images are easier or harder for all runs, and each run adds its noise."
    y = np.arange(n) % 2
    margin = 0.8 + rng.normal(size=n) + 0.5 * rng.normal(size=(runs, n))  # > 0: right
    p = 1 / (1 + np.exp(-np.where(y == 1, margin, -margin)))
    test = {'id': list(range(n)), 'y_true': y.tolist()}
    return [
        {'arm': 'a', 'repeat': r, 'test': {**test, 'y_score': np.stack([1 - q, q], 1).tolist()}}
        for r, q in enumerate(p)
    ]


def test_runs_and_images_interval_covers_the_truth():
    "Runs on one test set: the plain t interval forgets the choice of images, the combined one does not."
    rng, truth, worlds = np.random.default_rng(2), stats.norm.cdf(0.8 / np.sqrt(1.25)), 100
    inside = {'t': 0, 'runs+images': 0}
    for _ in range(worlds):
        rs = runs_of_a_world(rng)
        for how in inside:
            s = summarise(rs, ['accuracy'], interval=how, uncertainty=QUICK).iloc[0]
            inside[how] += s.low <= truth <= s.high
    assert inside['runs+images'] / worlds > 0.91 and inside['t'] / worlds < 0.85


def test_summary_says_which_interval_and_counts_undefined():
    never = result('generated', 0, 1.0)
    never['test']['y_score'] = [[0.9, 0.1]] * 60
    rs = [never, result('generated', 1, 1.0), result('generated', 2, 1.0)]
    s = summarise(rs, METRICS + ('fpr', 'fnr'), uncertainty=QUICK).set_index('metric')
    assert (s.loc['precision', ['n', 'undefined']] == [2, 1]).all()
    assert s.loc['mcc', 'undefined'] == 0 and s.loc['auc', 'n'] == 3
    assert set(s.interval) == {'runs+images'}
    alone = summarise([never], uncertainty=QUICK).set_index('metric')
    assert np.isnan(alone.loc['precision', 'mean']) and alone.loc['precision', 'undefined'] == 1
    assert alone.loc['sensitivity', 'low'] == 0
    assert alone.loc['accuracy', ['low', 'high']].tolist() == pytest.approx(wilson(30, 60))
    exact = summarise([never], ['accuracy'], interval='clopper-pearson').iloc[0]
    assert (exact.low, exact.high) == pytest.approx(clopper_pearson(30, 60))


def test_a_metric_that_one_run_lacks_keeps_its_images():
    "Precision without an answer in one run: the images' variance of the others is not zero."
    never = result('a', 0, 1.0)
    never['test']['y_score'] = [[0.9, 0.1]] * 60
    one = [result('a', r, 1.0) for r in (1, 2)]
    with_, without = (summarise(rs, ['precision']).iloc[0] for rs in ([never, *one], one))
    assert with_.low == pytest.approx(without.low) and with_.high == pytest.approx(without.high)
    assert with_.undefined == 1


def test_several_networks():
    rs = [result('a', r, 1.0, network=n) for n in ('CNN', 'VGG-16') for r in range(2)]
    s = summarise(rs, ['accuracy'], by=('network', 'arm'), uncertainty=QUICK)
    assert len(s) == 2 and list(s.columns[:2]) == ['network', 'arm']
    with pytest.raises(InputError, match='twice'):
        summarise(rs)


def test_mean_roc_keeps_the_corners():
    m = mean_roc([result('original', r, 1.0) for r in range(4)])
    assert m.tpr.iloc[-1] == 1 and m.tpr.is_monotonic_increasing
    assert (m.low <= m.tpr).all() and (m.tpr <= m.high).all()
    perfect = on_the_same_images('original', 2, n=60)
    for runs in (1, 2):
        m = mean_roc(perfect[:runs])
        assert (m.tpr == 1).all() and (m.low[:100] < 0.9).all()


NAMES = (*METRICS, 'fpr', 'fnr', 'macro_precision', 'macro_recall', 'macro_f1', 'macro_auc')


@pytest.mark.parametrize('runs', [1, 2, 5])
def test_more_runs_on_the_same_images_give_no_certainty(runs):
    for wrong in (0, 22):
        rs = on_the_same_images('a', runs, wrong=wrong)
        s = summarise(rs, NAMES, uncertainty=QUICK).set_index('metric')
        right = 22 - wrong
        assert s.loc['accuracy', ['low', 'high']].tolist() == pytest.approx(wilson(right, 22))
        found = s.loc['sensitivity', ['low', 'high']].tolist()
        assert found == pytest.approx(wilson(right // 2, 11))
        assert (s.high - s.low > 0.1).all(), s
        assert (s.low.drop('mcc') >= 0).all() and s.low['mcc'] >= -1 and (s.high <= 1).all()


def test_test_parts_of_one_pool_share_images_not_a_training_part():
    rs = redrawn('original', 40)
    outcomes = [outcome(r) for r in rs]
    assert shared(outcomes) == pytest.approx(22 / 34, rel=0.1)
    a = summarise(rs[:5], ['accuracy']).iloc[0]
    accuracy, ratio = table(rs[:5]).accuracy, shared(outcomes[:5])
    by_hand = mean_interval(accuracy, ratio=ratio)
    assert a.interval == 'corrected t' and a.low <= by_hand['low'] + 1e-12
    assert a.high >= min(1, by_hand['high']) - 1e-12
    assert by_hand['low'] < mean_interval(accuracy, ratio=22 / 144)['low'] - 0.01
    # the images' names say enough
    without = [{k: v for k, v in r.items() if k != 'n_train'} for r in rs[:5]]
    assert summarise(without, ['accuracy']).low.item() == a.low


@pytest.mark.parametrize('repeats', [1, 4])
def test_images_of_one_patient_are_one_witness(repeats):
    "From the record's test.group to the interval, for one run and for several."
    with_, without, nobody = (
        summarise(by_patient('original', repeats, g), ['accuracy', 'auc'])
        for g in (PATIENTS, None, [None] * 60)
    )
    assert ((with_.high - with_.low) > 1.3 * (without.high - without.low)).all()
    # unknown patients: each image for itself
    assert nobody.drop(columns='interval').equals(without.drop(columns='interval'))


def test_patients_allow_no_wilson_and_no_contradiction():
    with pytest.raises(InputError, match='of one patient'):
        summarise(by_patient('original', 1, PATIENTS), ['accuracy'], interval='wilson')
    two = by_patient('original', 2, PATIENTS)
    two[1]['results']['test']['group'] = PATIENTS[::-1]
    with pytest.raises(InputError, match='two patients'):
        summarise(two)


def test_one_patient_a_class_says_nothing_of_others():
    group = ['A', 'B'] * 11  # nothing varies from patient to patient
    rs = on_the_same_images('a', 5, group=group)
    s = summarise(rs, ['accuracy', 'sensitivity', 'auc'], uncertainty=QUICK)
    assert (s.low < 0.35).all() and (s.high == 1).all()


def test_few_patients_are_said_to_be_few():
    "Twelve patients with five images each: does the interval hold the truth?"
    rng, inside, worlds, how = np.random.default_rng(6), 0, 60, Uncertainty(n_boot=200)
    y = np.arange(60) // 5 % 2
    for _ in range(worlds):
        margin = np.repeat(1.0 + rng.normal(size=12), 5) + rng.normal(size=60)
        p = 1 / (1 + np.exp(-margin * np.where(y, 1, -1)))
        test = {
            'id': list(range(60)),
            'y_true': y.tolist(),
            'y_score': np.stack([1 - p, p], 1).tolist(),
            'group': np.repeat(np.arange(12), 5).tolist(),
        }
        rs = [{'arm': 'a', 'repeat': 0, 'test': test}]
        s = summarise(rs, ['accuracy'], uncertainty=how).iloc[0]
        inside += s.low <= stats.norm.cdf(1 / np.sqrt(2)) <= s.high
    assert inside / worlds > 0.88


def test_bad_input():
    r = result('original', 0, 1.0)
    with pytest.raises(InputError, match='none given'):
        summarise([])
    with pytest.raises(InputError, match="'recall' is unknown"):
        summarise([r], ['recall'])
    with pytest.raises(InputError, match="interval='normal'"):
        summarise([r], interval='normal')
    with pytest.raises(InputError, match='no proportion'):
        wilson(5, 4)
    apart = [result('original', k, 1.0, range(22 * k, 22 * k + 22)) for k in range(2)]
    with pytest.raises(InputError, match='several splits'):
        summarise(apart, interval='runs+images')
    with pytest.raises(InputError, match='n_train.real'):
        summarise([{k: v for k, v in r.items() if k != 'n_train'} for r in apart])
