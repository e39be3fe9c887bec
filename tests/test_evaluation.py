"Evaluation against scikit-learn, statsmodels and simulations; results as records hold them; bad input."

import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as skm
from scipy import stats

from gan_covid import evaluation as ev
from gan_covid.records import InputError


def result(arm, repeat, skill, ids=range(60), classes=('normal', 'hemorrhage'), seed=0, **more):
    "A classify result; an image is equally hard for every arm."
    ids, own = list(ids), np.random.default_rng([seed, repeat, sum(map(ord, arm))])
    k = len(classes)
    y = [i % k for i in ids]
    hard = np.stack([np.random.default_rng([seed, i]).normal(size=k) for i in ids])
    logits = skill * np.eye(k)[y] + hard + 0.5 * own.normal(size=(len(ids), k))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return {
        'arm': arm,
        'repeat': repeat,
        'seed': repeat,
        'n_train': {'real': 144, 'generated': 0},
        'classes': list(classes),
        'test': {'id': [f'{i:03}' for i in ids], 'y_true': y, 'y_score': p.tolist()},
        **more,
    }


def some(skills={'original': 1.0, 'generated': 0.5, 'original+generated': 1.2}, repeats=4, **more):
    return [result(a, r, s, **more) for a, s in skills.items() for r in range(repeats)]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('n', [1, 2, 7, 200])
def test_binary_rates_are_scikit_learns(seed, n):
    rng = np.random.default_rng([seed, n])
    y, s = rng.integers(0, 2, n), rng.random(n).round(1)
    p = (s > 0.5).astype(int)
    got, nan = ev.rates(ev.confusion(y, p)), dict(zero_division=np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert got['accuracy'] == pytest.approx(skm.accuracy_score(y, p))
        assert got['sensitivity'] == pytest.approx(skm.recall_score(y, p, **nan), nan_ok=True)
        assert got['specificity'] == pytest.approx(
            skm.recall_score(y, p, pos_label=0, **nan), nan_ok=True
        )
        assert got['precision'] == pytest.approx(skm.precision_score(y, p, **nan), nan_ok=True)
        assert got['f1'] == pytest.approx(skm.f1_score(y, p, **nan), nan_ok=True)
        if len(set(y)) == 2:
            assert got['mcc'] == pytest.approx(skm.matthews_corrcoef(y, p))
            assert ev.auc(y, s) == pytest.approx(skm.roc_auc_score(y, s))
        else:
            assert np.isnan(got['mcc']) and np.isnan(ev.auc(y, s))


def test_four_classes_are_scikit_learns():
    o = ev.outcome(
        result(
            'original', 0, 1.0, range(200), ('COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia')
        )
    )
    got, y, p = ev.measure(o['y_true'], o['y_score']), o['y_true'], o['y_score'].argmax(1)
    assert got['macro_f1'] == pytest.approx(skm.f1_score(y, p, average='macro'))
    assert got['macro_precision'] == pytest.approx(skm.precision_score(y, p, average='macro'))
    assert got['macro_recall'] == pytest.approx(skm.balanced_accuracy_score(y, p))
    assert got['mcc'] == pytest.approx(skm.matthews_corrcoef(y, p))
    assert got['macro_auc'] == pytest.approx(skm.roc_auc_score(y, o['y_score'], multi_class='ovr'))


def test_a_stack_of_matrices_is_each_of_them():
    cms = np.random.default_rng(0).integers(0, 4, (50, 2, 2))
    cms[0] = [[3, 0], [4, 0]]
    stack = ev.rates(cms)
    for i, cm in enumerate(cms):
        for k, v in ev.rates(cm).items():
            assert stack[k][i] == pytest.approx(v, nan_ok=True), (k, cm)


def test_the_positive_class_is_found_by_name():
    ct = result('original', 0, 1.0, classes=('COVID', 'NonCOVID'))
    swapped = {
        **ct,
        'classes': ['NonCOVID', 'COVID'],
        'test': {
            **ct['test'],
            'y_true': [1 - y for y in ct['test']['y_true']],
            'y_score': [s[::-1] for s in ct['test']['y_score']],
        },
    }
    a, b = (ev.table([r]).iloc[0] for r in (ct, swapped))
    for k in ev.METRICS:
        assert a[k] == pytest.approx(b[k]), k
    named = {
        **ct,
        'test': {
            **ct['test'],
            'y_true': ['COVID' if y == 0 else 'NonCOVID' for y in ct['test']['y_true']],
        },
    }
    assert ev.table([named]).equals(ev.table([ct]))
    with pytest.raises(InputError, match='positive class'):
        ev.table([result('a', 0, 1.0, classes=('cat', 'dog'))])
    assert len(ev.table([result('a', 0, 1.0, classes=('cat', 'dog'))], positive='dog')) == 1


def test_weights_are_repeated_images():
    o = ev.outcome(result('original', 0, 0.7))
    w = np.random.default_rng(0).integers(0, 3, 60)
    again = ev.measure(np.repeat(o['y_true'], w), np.repeat(o['y_score'], w, axis=0))
    for k, v in ev.measure(o['y_true'], o['y_score'], 1, w).items():
        assert v == pytest.approx(again[k]), k


def test_bootstrap_keeps_classes_and_patients_together():
    y, patient = np.array([0] * 6 + [1] * 4), np.array(list('aabbbccddd'))
    y[7] = 0  # patient c has both classes
    w = ev.resample(y, patient, 300)
    for p in 'abcd':
        assert (np.ptp(w[:, patient == p], axis=1) == 0).all()
    plain = ev.resample(y, None, 300)
    assert (plain[:, y == 0].sum(1) == (y == 0).sum()).all() and (
        plain[:, y == 1].sum(1) == (y == 1).sum()
    ).all()


def test_runs_and_images_interval_covers_the_truth():
    "Runs on one test set: the plain t interval forgets the choice of images, the combined one does not."
    rng, n, runs, inside = np.random.default_rng(2), 100, 4, {'t': 0, 'runs+images': 0}
    worlds = 150
    for _ in range(worlds):
        y = np.arange(n) % 2
        hard = rng.normal(size=n)
        margin = 0.8 + hard + 0.5 * rng.normal(size=(runs, n))  # > 0: right
        p = 1 / (1 + np.exp(-np.where(y == 1, margin, -margin)))
        rs = [
            {
                'arm': 'a',
                'repeat': r,
                'test': {
                    'id': list(range(n)),
                    'y_true': y.tolist(),
                    'y_score': np.stack([1 - p[r], p[r]], 1).tolist(),
                },
            }
            for r in range(runs)
        ]
        for how in inside:
            s = ev.summarise(rs, ['accuracy'], interval=how, n_boot=200).iloc[0]
            inside[how] += s.low <= stats.norm.cdf(0.8 / np.sqrt(1.25)) <= s.high
    assert inside['runs+images'] / worlds > 0.91 and inside['t'] / worlds < 0.85


def test_summary_says_which_interval_and_counts_undefined():
    never = result('generated', 0, 1.0)
    never['test']['y_score'] = [[0.9, 0.1]] * 60
    rs = [never, result('generated', 1, 1.0), result('generated', 2, 1.0)]
    s = ev.summarise(rs, ev.METRICS + ('fpr', 'fnr')).set_index('metric')
    assert (
        (s.loc['precision', ['n', 'undefined']] == [2, 1]).all()
        and s.loc['mcc', 'undefined'] == 0
        and s.loc['auc', 'n'] == 3
    )
    assert set(s.interval) == {'runs+images'}
    alone = ev.summarise([never]).set_index('metric')
    assert (
        np.isnan(alone.loc['precision', 'mean'])
        and alone.loc['precision', 'undefined'] == 1
        and alone.loc['sensitivity', 'low'] == 0
    )
    assert alone.loc['accuracy', ['low', 'high']].tolist() == pytest.approx(ev.wilson(30, 60))
    exact = ev.summarise([never], ['accuracy'], interval='clopper-pearson').iloc[0]
    assert (exact.low, exact.high) == pytest.approx(ev.clopper_pearson(30, 60))


def test_perfect_and_hopeless_classifiers_do_not_crash():
    for scores in ([[1.0, 0.0], [0.0, 1.0]] * 30, [[0.0, 1.0], [1.0, 0.0]] * 30, [[0.5, 0.5]] * 60):
        rs = [
            {**result(a, r, 1.0), 'test': {**result(a, r, 1.0)['test'], 'y_score': scores}}
            for a in ('original', 'generated')
            for r in range(3)
        ]
        s, c = ev.summarise(rs), ev.compare_arms(rs)
        assert (
            s['mean'].dropna().between(-1, 1).all()
            and (s.low.dropna() >= -1).all()
            and (s.high.dropna() <= 1).all()
        )
        assert (c.difference.fillna(0) == 0).all() and (c.p.dropna() == 1).all()


def test_several_networks():
    rs = [{**r, 'network': n} for n in ('CNN', 'VGG-16') for r in some(repeats=2)]
    s = ev.summarise(rs, ['accuracy'], by=('network', 'arm'))
    assert len(s) == 6 and list(s.columns[:2]) == ['network', 'arm']
    c = ev.compare_arms(rs, ('CNN', 'original'), metrics=['accuracy'], by=('network', 'arm'))
    assert len(c) == 5 and set(c.baseline) == {'CNN/original'}
    with pytest.raises(InputError, match='twice'):
        ev.summarise(rs)
    with pytest.raises(InputError, match="no 'kind'"):
        ev.summarise(rs, by=('kind',))


def test_records_are_read_as_results():
    r = result('original', 0, 1.0)
    record = {
        'profile': 'smoke',
        'step': 'classify',
        'parameters': {'network': 'ResNet50'},
        'results': json.loads(json.dumps(r)),
    }
    assert (
        ev.table([record]).equals(ev.table([r]))
        and ev.summarise([record], ['auc'], by=('network',)).network.item() == 'ResNet50'
    )


def test_arms_are_paired_by_image_not_by_position():
    a, b = result('original', 0, 1.0), result('generated', 0, 0.5)
    order = np.random.default_rng(0).permutation(60)
    shuffled = {**b, 'test': {k: [v[i] for i in order] for k, v in b['test'].items()}}
    assert ev.compare_arms([a, b]).equals(ev.compare_arms([a, shuffled]))
    other = result('generated', 0, 0.5, range(1, 61))
    with pytest.raises(InputError, match='different images'):
        ev.compare_arms([a, other])


def test_holm_by_hand_and_none():
    c = ev.compare_arms(some(), metrics=['accuracy', 'auc'])
    p = c.p.to_numpy()
    order = p.argsort()
    holm = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    assert c.p_adjusted.to_numpy()[order] == pytest.approx(holm)
    plain = ev.compare_arms(some(), metrics=['accuracy', 'auc'], correction=None)
    assert plain.p_adjusted.tolist() == plain.p.tolist()


def test_a_real_difference_is_found_and_no_difference_is_not():
    c = ev.compare_arms(
        [result('original', r, 0.3, range(300)) for r in range(4)]
        + [result('generated', r, 2.0, range(300)) for r in range(4)]
    ).set_index('metric')
    assert (c.p_adjusted < 0.01).all() and (c.low > 0).all()
    alarms = [
        ev.compare_arms(
            some({'original': 1.0, 'generated': 1.0}, seed=s), metrics=['accuracy'], n_boot=100
        ).p.item()
        < 0.05
        for s in range(60)
    ]
    assert sum(alarms) <= 6


def test_mcnemar_on_one_test_set_and_pooled():
    rs = some(repeats=1)
    c = ev.compare_arms(rs, metrics=['accuracy', 'mcc']).set_index(['arm', 'metric'])
    a, b = ev.outcome(rs[0]), ev.outcome(rs[1])
    ra, rb = (o['y_score'].argmax(1) == o['y_true'] for o in (a, b))
    assert c.loc[('generated', 'accuracy'), 'p'] == pytest.approx(
        ev.mcnemar((ra & ~rb).sum(), (rb & ~ra).sum())
    )
    assert (
        c.loc[('generated', 'accuracy'), 'test'] == 'exact McNemar'
        and c.loc[('generated', 'mcc'), 'test'] == 'bootstrap'
    )
    pooled = ev.compare_arms(some(), test='mcnemar')
    assert (pooled.test == 'exact McNemar').all() and (pooled.metric == 'accuracy').all()


def test_splits_use_the_corrected_t_test():
    rs = [
        result(a, r, s, np.random.default_rng(r).choice(200, 22, replace=False))
        for a, s in (('original', 1.0), ('generated', 0.8))
        for r in range(5)
    ]
    rs = [
        {**r, 'n_train': {'real': 0 if r['arm'] == 'generated' else 144, 'generated': 144}}
        for r in rs
    ]
    c = ev.compare_arms(rs, metrics=['auc']).iloc[0]
    t = ev.table(rs).pivot(index='repeat', columns='arm', values='auc')
    by_hand = ev.corrected_t_test(
        t['generated'] - t['original'],
        max(22 / 144, ev.shared([ev.outcome(r) for r in rs if r['arm'] == 'original'])),
    )
    assert (
        c.test == 'corrected t'
        and c.p == pytest.approx(by_hand['p'])
        and c.low == pytest.approx(by_hand['low'])
    )
    apart = [result('original', r, 1.0, range(22 * r, 22 * r + 22)) for r in range(5)]
    with pytest.raises(InputError, match='n_train.real'):
        ev.summarise([{k: v for k, v in r.items() if k != 'n_train'} for r in apart])
    with pytest.raises(InputError, match='several splits'):
        ev.summarise(rs, interval='runs+images')


def test_delong_against_the_bootstrap():
    a, b = ev.outcome(result('a', 0, 0.6, range(300))), ev.outcome(result('b', 0, 1.0, range(300)))
    d, boot = (
        ev.delong(a['y_true'], a['y_score'][:, 1], b['y_score'][:, 1]),
        ev.paired_bootstrap(a['y_true'], a['y_score'], b['y_score']).loc['auc'],
    )
    assert d['difference'] == pytest.approx(boot.difference, abs=0.02) and d['high'] - d[
        'low'
    ] == pytest.approx(boot.high - boot.low, rel=0.25)
    assert ev.delong(a['y_true'], a['y_score'][:, 1], a['y_score'][:, 1])['p'] == 1


@pytest.mark.parametrize(
    'change, says',
    [
        ({'y_true': [0] * 59}, '59'),
        ({'id': ['0'] * 60}, 'twice'),
        ({'y_true': [2] * 60}, 'whole numbers from 0 to 1'),
        ({'y_true': ['bleeding'] * 60}, "unknown class 'bleeding'"),
        ({'y_score': [[np.nan, 1.0]] * 60}, 'not finite'),
        ({'y_score': [[0.2, 0.3, 0.5]] * 60}, '2 classes but 3 scores'),
        ({'y_score': None}, 'y_score'),
        ({'id': [], 'y_true': [], 'y_score': np.zeros((0, 2))}, 'at least one image'),
    ],
)
def test_broken_results_are_named(change, says):
    r = result('original', 3, 1.0)
    with pytest.raises(InputError, match='original/3') as e:
        ev.summarise([{**r, 'test': {**r['test'], **change}}])
    assert says in str(e.value)


def test_other_bad_input():
    r = result('original', 0, 1.0)
    with pytest.raises(InputError, match='test.id'):
        ev.outcome({'arm': 'original', 'repeat': 0, 'test': {}})
    with pytest.raises(InputError, match='none given'):
        ev.summarise([])
    with pytest.raises(InputError, match="'recall' is unknown"):
        ev.summarise([r], ['recall'])
    with pytest.raises(InputError, match="interval: 'normal'"):
        ev.summarise([r], interval='normal')
    with pytest.raises(InputError, match='baseline'):
        ev.compare_arms([r], 'none')
    with pytest.raises(InputError, match="test: 'z'"):
        ev.compare_arms([r], test='z')
    with pytest.raises(InputError, match='no proportion'):
        ev.wilson(5, 4)
    with pytest.raises(InputError, match='square'):
        ev.rates([[1, 2, 3]])
    with pytest.raises(InputError, match='one length'):
        ev.confusion([0, 1], [1])
    with pytest.raises(InputError, match='both classes'):
        ev.roc([1, 1], [0.1, 0.2])


def test_one_seed_one_table_in_any_process():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_evaluation import *; "
        'print(ev.summarise(some()).to_csv(), ev.compare_arms(some()).to_csv())'
    )
    out = [
        subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            check=True,
            env={**__import__('os').environ, 'PYTHONHASHSEED': h},
        ).stdout
        for h in '12'
    ]
    assert out[0] == out[1] and 'runs+images' in out[0]


def test_mean_roc_keeps_the_corners():
    m = ev.mean_roc([r for r in some() if r['arm'] == 'original'])
    assert (
        isinstance(m, pd.DataFrame)
        and m.tpr.iloc[-1] == 1
        and (m.low <= m.tpr).all()
        and (m.tpr <= m.high).all()
        and m.tpr.is_monotonic_increasing
    )
    perfect = result('original', 0, 1.0)
    perfect['test']['y_score'] = [[1 - y, y] for y in perfect['test']['y_true']]
    assert (
        (ev.mean_roc([perfect]).tpr == 1).all()
        and ev.mean_roc([perfect]).low[50] < 0.9
        and (ev.mean_roc([perfect, {**perfect, 'repeat': 1}]).low[:100] < 0.9).all()
    )


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
    return [
        {'arm': arm, 'repeat': r, 'classes': ['normal', 'hemorrhage'], 'test': test}
        for r in range(runs)
    ]


@pytest.mark.parametrize('runs', [1, 2, 5])
def test_more_runs_on_the_same_images_give_no_certainty(runs):
    names = (*ev.METRICS, 'fpr', 'fnr', 'macro_precision', 'macro_recall', 'macro_f1', 'macro_auc')
    s = ev.summarise(on_the_same_images('a', runs), names, n_boot=100).set_index('metric')
    none = ev.summarise(on_the_same_images('a', runs, wrong=22), names, n_boot=100).set_index(
        'metric'
    )
    for one, right in ((s, 22), (none, 0)):
        assert one.loc['accuracy', ['low', 'high']].tolist() == pytest.approx(ev.wilson(right, 22))
        assert one.loc['sensitivity', ['low', 'high']].tolist() == pytest.approx(
            ev.wilson(right // 2, 11)
        )
        assert (one.high - one.low > 0.1).all(), one
    assert (s.low.drop('mcc') >= 0).all() and (none.low >= -1).all() and (s.high <= 1).all()


@pytest.mark.parametrize('runs', [1, 5])
def test_arms_that_never_differ_are_not_certain_to_be_equal(runs):
    c = ev.compare_arms(
        on_the_same_images('original', runs, wrong=3)
        + on_the_same_images('generated', runs, wrong=3),
        n_boot=100,
    ).set_index('metric')
    assert c.loc['accuracy', ['low', 'high']].tolist() == pytest.approx(
        [-3.8415 / 25.8415, 3.8415 / 25.8415], abs=1e-5
    )  # Tango's interval
    assert (c.low < -0.1).all() and (c.high > 0.1).all() and (c.p == 1).all()
    equal = ev.delong(np.arange(22) % 2, np.arange(22) % 2, np.arange(22) % 2)
    assert (
        equal['low'] == pytest.approx(-3.8415 / 25.8415, abs=1e-5) == -equal['high']
        and equal['p'] == 1
    )


def redrawn(arm, repeats=5, skill=1.0, pool=56, seed=0):
    "As head_ct: 22 test images anew from the same pool, the training part of 144 stays."
    rng = np.random.default_rng(seed)

    def part():
        return np.r_[2 * rng.permutation(pool // 2)[:11], 2 * rng.permutation(pool // 2)[:11] + 1]

    return [result(arm, r, skill, np.sort(part())) for r in range(repeats)]


def test_test_parts_of_one_pool_share_images_not_a_training_part():
    rs = redrawn('original', 40)
    outcomes = [ev.outcome(r) for r in rs]
    assert ev.shared(outcomes) == pytest.approx(22 / 34, rel=0.1)
    a = ev.summarise(rs[:5], ['accuracy']).iloc[0]
    accuracy, ratio = ev.table(rs[:5]).accuracy, ev.shared(outcomes[:5])
    by_hand = ev.mean_interval(accuracy, ratio=ratio)
    assert (
        a.interval == 'corrected t'
        and a.low <= by_hand['low'] + 1e-12
        and a.high >= min(1, by_hand['high']) - 1e-12
    )
    assert by_hand['low'] < ev.mean_interval(accuracy, ratio=22 / 144)['low'] - 0.01
    b = ev.compare_arms(
        rs[:5] + redrawn('generated', 5, 0.5), metrics=['accuracy'], n_boot=100
    ).iloc[0]
    d = ev.table(redrawn('generated', 5, 0.5)).accuracy - accuracy
    assert (
        b.p >= ev.corrected_t_test(d, ratio)['p'] - 1e-12
        and b.low <= ev.corrected_t_test(d, ratio)['low'] + 1e-9
    )
    without = [
        {k: v for k, v in r.items() if k != 'n_train'} for r in rs[:5]
    ]  # the images' names say enough
    assert ev.summarise(without, ['accuracy']).low.item() == a.low


@pytest.mark.parametrize('seed', range(6))
def test_nothing_leaves_its_range_and_p_agrees_with_the_interval(seed):
    rng = np.random.default_rng(seed)
    runs, skill = int(rng.integers(1, 4)), rng.uniform(0, 3)
    for make in (
        lambda a, s: [result(a, r, s, range(14)) for r in range(runs)],
        lambda a, s: redrawn(a, runs, s, 24),
    ):
        rs = make('original', 1.0) + make('generated', skill)
        s, c = ev.summarise(rs, n_boot=100), ev.compare_arms(rs, n_boot=100)
        rate, gap = s[s.metric != 'mcc'], c[c.metric != 'mcc']
        assert (
            rate.low.dropna().ge(0).all()
            and s.low.dropna().ge(-1).all()
            and s.high.dropna().le(1).all()
        )
        assert (
            gap.low.dropna().ge(-1).all()
            and gap.high.dropna().le(1).all()
            and c.low.dropna().ge(-2).all()
            and c.high.dropna().le(2).all()
        )
        told = c.dropna(subset=['low', 'p'])
        assert ((told.p < 0.05) == ((told.low > 0) | (told.high < 0))).all(), told
        assert ((told.low <= told.difference) & (told.difference <= told.high)).all()


def test_images_of_one_patient_are_one_witness():
    "From the record's test.group to the interval, for one run, several runs and a difference."
    three = [f'P{i // 6}' for i in range(60)]  # six images a patient, all alike

    def grouped(arm, repeats, group):
        rs = [result(arm, r, 0.8 if arm == 'original' else 1.2) for r in range(repeats)]
        for r in rs:
            score = np.array(r['test']['y_score'])
            for c in (0, 1):
                for p in range(10):
                    score[[i for i in range(60) if i // 6 == p and i % 2 == c]] = score[6 * p + c]
            r['test'] |= {'y_score': score.tolist(), 'group': group}
        return [{'step': 'classify', 'results': json.loads(json.dumps(r))} for r in rs]

    for repeats in (1, 4):
        with_, without, nobody = (
            ev.summarise(grouped('original', repeats, g), ['accuracy', 'auc'], n_boot=500)
            for g in (three, None, [None] * 60)
        )
        assert ((with_.high - with_.low) > 1.3 * (without.high - without.low)).all()
        assert nobody.drop(columns='interval').equals(
            without.drop(columns='interval')
        )  # unknown patients: each image for itself
        a, b = (
            ev.compare_arms(
                grouped('original', repeats, g) + grouped('generated', repeats, g),
                metrics=['accuracy'],
                n_boot=500,
            ).iloc[0]
            for g in (three, None)
        )
        assert a.high - a.low > 1.3 * (b.high - b.low) and 'McNemar' not in a.test
    with pytest.raises(InputError, match='of one patient'):
        ev.summarise(grouped('original', 1, three), ['accuracy'], interval='wilson')
    with pytest.raises(InputError, match='2 entries for 60 images'):
        ev.summarise(grouped('original', 1, ['P1', 'P2']))
    two = grouped('original', 2, three)
    two[1]['results']['test']['group'] = three[::-1]
    with pytest.raises(InputError, match='two patients'):
        ev.summarise(two)


def test_few_patients_are_said_to_be_few():
    "One patient a class: nothing varies from patient to patient, and nothing is known of other patients."
    s = ev.summarise(
        on_the_same_images('a', 5, group=['A', 'B'] * 11),
        ['accuracy', 'sensitivity', 'auc'],
        n_boot=100,
    )
    assert (s.low < 0.35).all() and (s.high == 1).all()
    rng, inside, worlds = np.random.default_rng(6), 0, 60
    for _ in range(worlds):
        mean = 1.0 + rng.normal(size=12)  # twelve patients with five images each
        p = 1 / (
            1
            + np.exp(
                -(np.repeat(mean, 5) + rng.normal(size=60))
                * np.where(np.arange(60) // 5 % 2, 1, -1)
            )
        )
        test = {
            'id': list(range(60)),
            'y_true': (np.arange(60) // 5 % 2).tolist(),
            'y_score': np.stack([1 - p, p], 1).tolist(),
            'group': np.repeat(np.arange(12), 5).tolist(),
        }
        s = ev.summarise([{'arm': 'a', 'repeat': 0, 'test': test}], ['accuracy'], n_boot=200).iloc[
            0
        ]
        inside += s.low <= stats.norm.cdf(1 / np.sqrt(2)) <= s.high
    assert inside / worlds > 0.88


def test_a_metric_that_one_run_lacks_keeps_its_images():
    "Precision without an answer in one run: the images' variance of the others is not zero."
    never = result('a', 0, 1.0)
    never['test']['y_score'] = [[0.9, 0.1]] * 60
    one = [result('a', r, 1.0) for r in (1, 2)]
    s = [ev.summarise(rs, ['precision']).iloc[0] for rs in ([never, *one], one)]
    assert (
        s[0].low == pytest.approx(s[1].low)
        and s[0].high == pytest.approx(s[1].high)
        and s[0].undefined == 1
    )
