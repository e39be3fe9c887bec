"gan_covid.components: variances by hand, intervals by simulation, verdicts that never come from no spread."

import numpy as np
import pytest
from scipy import stats

from gan_covid.comparisons import compare_arms, holm
from gan_covid.components import (
    NO_NUMBER,
    UNKNOWN,
    Components,
    Design,
    components,
    contrast,
    contrasts,
    detectable,
    equivalence,
    parts_of,
    planned,
    power,
    promises,
    simulate,
    versus_gain,
    versus_published,
)
from gan_covid.intervals import Uncertainty
from gan_covid.records import InputError

QUICK = Uncertainty(n_boot=200)


def results(arm, right, gan=0, group=None, **more):
    "(runs, n) right or wrong as classify results."
    y = np.arange(np.shape(right)[1]) % 2
    score = 0.1 + 0.8 * np.eye(2)[np.where(right, y, 1 - y)]
    test = {'id': [f'{i:04}' for i in range(len(y))], 'y_true': y.tolist(), 'group': group}
    return [
        {
            'arm': arm,
            'gan': gan,
            'repeat': r,
            'classes': [0, 1],
            'test': {**test, 'y_score': s},
            **more,
        }
        for r, s in enumerate(score)
    ]


def arm_of(name, shares, runs=4, n=200, seed=0, **more):
    "An arm whose GANs are right in these shares of the images; one share only and gan 0: a control."
    rng, out = np.random.default_rng(seed), []
    for g, share in enumerate(np.atleast_1d(shares)):
        gan = g + 1 if np.ndim(shares) else 0
        out += results(name, rng.random((runs, n)) < share, gan, **more)
    return out


def accuracies(arm, gan):
    return np.array(
        [
            np.mean(np.argmax(r['test']['y_score'], 1) == r['test']['y_true'])
            for r in arm
            if r['gan'] == gan
        ]
    )


def test_components_by_hand():
    arm = arm_of('gan', (0.95, 0.8, 0.7), 5)
    each = [accuracies(arm, g) for g in (1, 2, 3)]
    runs = np.mean([a.var(ddof=1) for a in each])
    between = np.var([a.mean() for a in each], ddof=1)
    c = components([arm], uncertainty=QUICK)
    assert (c.runs, c.gans) == pytest.approx((runs, between - runs / 5))
    assert (c.runs_df, c.gans_df) == (12, 2)
    other = arm_of('gan', (0.9, 0.9, 0.9, 0.9), 3, seed=1)
    d, both = components([other], uncertainty=QUICK), components([arm, other], uncertainty=QUICK)
    assert (both.runs_df, both.gans_df) == (20, 5)
    assert both.runs == pytest.approx((12 * c.runs + 8 * d.runs) / 20)


def test_pooling_takes_runs_off_before_the_cut_at_zero():
    # every GAN has the same four accuracies, so that the GANs' means are equal
    rng, right = np.random.default_rng(0), np.arange(20) > np.arange(4)[:, None]
    low = [r for g in (1, 2, 3) for r in results('gan', rng.permuted(right, axis=1), g)]
    alone = components([low], uncertainty=QUICK)
    assert alone.gans == 0 and alone.runs > 0
    high = arm_of('gan', (0.95, 0.8, 0.6), 4, 20)
    two = components([low, high], uncertainty=QUICK).gans
    assert two < components([high], uncertainty=QUICK).gans / 2


def test_the_variance_of_a_contrast_by_hand():
    arm, control = arm_of('gan', (0.9, 0.85, 0.8), 5), arm_of('repeated', 0.85, 6, seed=3)
    c = contrast(arm, control, uncertainty=QUICK)
    means = [accuracies(arm, g).mean() for g in (1, 2, 3)]
    own = accuracies(control, 0)
    assert c['difference'] == pytest.approx(np.mean(means) - own.mean())
    assert c['runs'] + c['gans'] == pytest.approx(np.var(means, ddof=1) / 3 + own.var(ddof=1) / 6)
    assert c['se'] ** 2 == pytest.approx(c['runs'] + c['gans'] + c['images'])
    assert 2 < c['df'] < 40
    half = stats.t.ppf(0.975, c['df']) * c['se']
    assert (c['low'], c['high']) == pytest.approx((c['difference'] - half, c['difference'] + half))
    assert c['p'] == pytest.approx(2 * stats.t.sf(abs(c['difference']) / c['se'], c['df']))


def test_images_count_what_runs_share_and_not_their_own_errors():
    rng, n = np.random.default_rng(0), 1000
    own = [results('gan', rng.random((8, n)) < 0.8, g) for g in (1, 2, 3)]
    control = results('repeated', rng.random((8, n)) < 0.8)
    errors = contrast(sum(own, []), control, uncertainty=QUICK)
    assert errors['images'] < 0.3 * (0.16 / 24 + 0.16 / 8) / n
    image = rng.random(n) < 0.8  # here all runs of the arm err on the same images
    alike = [r for g in (1, 2, 3) for r in results('gan', np.tile(image, (4, 1)), g)]
    shared = contrast(alike, results('repeated', np.ones((4, n), bool)), uncertainty=QUICK)
    assert shared['images'] == pytest.approx(0.16 / n, rel=0.3)


def test_patients_are_kept_together():
    right = np.repeat(np.random.default_rng(0).random(30) < 0.7, 10)
    patients = [f'P{i // 10}' for i in range(300)]
    said = [right, np.ones(300, bool)]
    images = []
    for group in (None, patients):
        arm, control = (results(a, np.tile(s, (3, 1)), group=group) for a, s in zip('ab', said))
        images.append(contrast(arm, control, uncertainty=QUICK)['images'])
    assert images[1] > 5 * images[0]


def test_one_gan_says_nothing_about_others_unless_other_arms_do():
    arm, control = arm_of('gan', [0.6], 10), arm_of('repeated', 0.95, 10, seed=5)
    c = contrast(arm, control, uncertainty=QUICK)
    assert np.isnan([c['p'], c['low'], c['se'], c['detectable'], c['equivalent_p']]).all()
    assert c['verdict'] == UNKNOWN
    pooled = Components(1e-4, 1e-4, 0.0, 20, 12)
    known = contrast(arm, control, pooled=pooled, uncertainty=QUICK)
    assert known['verdict'] == 'worse' and known['gans'] == pytest.approx(1e-4)


def test_arms_without_spread_are_not_certain_to_be_equal():
    right = np.arange(60) > 3
    arm = [r for g in (1, 2, 3) for r in results('gan', np.tile(right, (4, 1)), g)]
    c = contrast(arm, results('repeated', np.tile(right, (5, 1))), uncertainty=QUICK)
    reach = 3.8415 / 63.8415
    assert c['difference'] == pytest.approx(0, abs=1e-12) and c['p'] == 1
    assert (c['low'], c['high']) == pytest.approx((-reach, reach), abs=1e-5)
    assert c['equivalent_p'] > 0.05 and c['verdict'] == UNKNOWN and c['detectable'] > reach


def test_equal_and_different_arms_get_their_verdicts():
    rng, n = np.random.default_rng(2), 1500
    image = rng.random(n) < 0.9

    def runs(k, loss=0.0):
        return image & (rng.random((k, n)) > 0.001 + loss)

    def gans(loss):
        return [r for g in (1, 2, 3) for r in results('gan', runs(5, loss), g)]

    control = results('repeated', runs(8))
    assert contrast(gans(0.0), control, uncertainty=QUICK)['verdict'] == 'equal within .02'
    assert contrast(gans(0.1), control, uncertainty=QUICK)['verdict'] == 'worse'
    fnr = contrast(gans(0.1), control, 'fnr', uncertainty=QUICK)
    assert fnr['difference'] > 0 and fnr['verdict'] == 'worse'


def test_power_and_detectable_difference():
    assert detectable(0.01) == pytest.approx(0.02802, abs=1e-5)
    t = stats.t.ppf(0.975, 5)
    exact = stats.nct.sf(t, 5, 2.5) + stats.nct.cdf(-t, 5, 2.5)
    assert power(2.5, 1.0, 5) == pytest.approx(exact, abs=2e-3)
    d = detectable(0.01, 4, contrasts=6)
    assert power(d, 0.01, 4, 1 - 0.05 / 6) == pytest.approx(0.8, abs=1e-6)
    assert d > detectable(0.01, 4) > detectable(0.01, 40)
    assert np.isnan(detectable(np.nan)) and np.isnan(equivalence(0.0, 0.0))
    assert equivalence(0.01, 0.005) == equivalence(-0.01, 0.005) == pytest.approx(stats.norm.sf(2))


def test_a_table_adjusts_its_primary_score_only():
    rs = []
    for size in (28, 112):
        rs += arm_of('gan', (0.9, 0.88, 0.86), 4, seed=size, size=size)
        rs += arm_of('repeated', 0.8, 5, seed=size + 1, size=size)
        rs += arm_of('mixup', 0.82, 5, seed=size + 2, size=size)
    kw = {
        'primary': ('gan', 'repeated'),
        'by': ('size',),
        'metrics': ('accuracy', 'mcc'),
        'uncertainty': QUICK,
    }
    t = contrasts(rs, **kw)
    main = t[t.metric == 'accuracy']
    assert main.role.tolist() == ['primary', 'secondary'] * 2
    assert main.p_adjusted.to_numpy() == pytest.approx(holm(main.p))
    rest = t[t.metric == 'mcc']
    assert (rest.role == 'exploratory').all() and rest.p_adjusted.isna().all()
    assert rest.verdict.str.startswith('exploratory: ').all()
    assert {'low_unadjusted', 'high_unadjusted'} <= set(t) and 'low' not in t
    assert 'not adjusted' in t.attrs['interval'] and '4' in t.attrs['p_adjusted']
    first = contrasts(rs, **kw, family='primary')
    mine = first[first.role == 'primary']
    assert mine.p_adjusted.to_numpy() == pytest.approx(holm(mine.p)) and len(mine) == 2
    assert (first[first.arm == 'mixup'].role == 'exploratory').all()
    assert (mine.detectable.to_numpy() < main[main.role == 'primary'].detectable.to_numpy()).all()


def test_what_was_named_beforehand_is_not_moved_by_arms_looked_at_later():
    rs = arm_of('repeated', 0.8, 5, seed=1) + arm_of('gan', (0.84, 0.83, 0.82), 4)
    later = arm_of('longer', (0.5, 0.9, 0.7), 4, seed=2)  # GANs that differ far more
    kw = {'primary': ('gan', 'repeated'), 'uncertainty': QUICK}
    alone, beside = (contrasts(some, **kw, family='primary') for some in (rs, rs + later))
    assert alone.equals(beside[beside.arm == 'gan'])
    together = contrasts(rs + later, **kw)
    spread = [t.detectable.iloc[0] for t in (alone, together)]
    assert spread[1] > spread[0]  # of one family, they do change each other


def test_records_hold_their_gan_anywhere():
    rs = arm_of('gan', (0.9, 0.8, 0.7), 3) + arm_of('repeated', 0.8, 3, seed=1)
    for r in rs[-3:]:
        del r['gan']
    records = [
        {
            'step': 'classify',
            'parameters': {'gan': r.get('gan')},
            'results': {k: v for k, v in r.items() if k != 'gan'},
        }
        for r in rs
    ]
    kw = {'primary': ('gan', 'repeated'), 'uncertainty': QUICK}
    a, b = contrasts(rs, **kw), contrasts(records, **kw)
    assert a.equals(b) and a.n_gans.item() == 3


def test_bad_tables_are_named():
    rs = arm_of('gan', (0.9, 0.8), 3) + arm_of('repeated', 0.8, 3, seed=1)
    with pytest.raises(InputError, match='control'):
        contrasts(rs, ('gan', 'original'))
    with pytest.raises(InputError, match='no results of the arm'):
        contrasts(rs, ('diffusion', 'repeated'))
    with pytest.raises(InputError, match='twice'):
        contrasts(rs + rs[:1], ('gan', 'repeated'))
    with pytest.raises(InputError, match='family'):
        contrasts(rs, ('gan', 'repeated'), family='all')
    with pytest.raises(InputError, match='unknown'):
        contrast(rs[:6], rs[6:], 'luck', uncertainty=QUICK)
    with pytest.raises(InputError, match='different images'):
        contrast(rs[:6], arm_of('repeated', 0.8, 3, 100), uncertainty=QUICK)
    with pytest.raises(InputError, match='name their GAN'):
        contrast([*rs[:6], *results('gan', np.ones((1, 200), bool))], rs[6:], uncertainty=QUICK)


def test_published_numbers_have_errors_too():
    assert versus_published(0.85, 0.94, 0.02, 22)['verdict'] == UNKNOWN
    assert versus_published(0.75, 0.94, 0.02, 400)['verdict'] == 'differs'
    close = versus_published(0.93, 0.94, 0.008, 1000)
    assert close['verdict'] == 'agrees' and close['low'] < -0.01 < close['high']
    se = np.hypot(0.008, np.sqrt(0.94 * 0.06 / 1000))
    assert close['high'] - close['low'] == pytest.approx(2 * 1.96 * se, rel=0.02)
    unknown = versus_published(0.9, 0.94, 0.015)
    # without the number of their images their error is not known, and nothing can be told
    assert unknown['verdict'] == NO_NUMBER and 'taken as 0' in unknown['note']
    far = versus_published(0.9, 0.935, 0.022, 10**6)  # no difference seen, but up to .07 possible
    assert far['high'] - far['low'] < 0.1 and far['verdict'] == UNKNOWN
    for se in (0.0, np.nan):
        assert versus_published(0.9, 0.94, se, 400)['verdict'] == UNKNOWN
    assert versus_published(0.99, 1.0, 0.001, 30)['verdict'] == UNKNOWN  # 30 of 30 is not certain
    with pytest.raises(InputError, match='published'):
        versus_published(0.9, 94, 0.02)


def test_published_gains_have_two_errors():
    found = versus_gain(0.0, 0.75, 0.79, 0.01, 199)
    one = np.sqrt(0.75 * 0.25 / 199), np.sqrt(0.79 * 0.21 / 199)
    assert found['high'] - found['low'] == pytest.approx(
        2 * 1.96 * np.hypot(0.01, np.hypot(*one)), rel=0.03
    )
    assert found['difference'] == pytest.approx(-0.04) and found['verdict'] == UNKNOWN
    assert versus_gain(-0.02, 0.6, 0.9, 0.01, 199)['verdict'] == 'differs'
    unknown = versus_gain(0.0, 0.75, 0.79, 0.01)
    assert 'taken as 0' in unknown['note'] and unknown['verdict'] == NO_NUMBER
    with pytest.raises(InputError, match='published'):
        versus_gain(0.0, 75, 79, 0.01, 199)


@pytest.mark.parametrize('runs', [0.004, 0.015])
@pytest.mark.parametrize('gans', [0.0, 0.005, 0.01])
@pytest.mark.parametrize('shared', [False, True])
def test_intervals_keep_their_promise(runs, gans, shared):
    d = Design(contrasts=5 if shared else 6, shared=shared)
    s = simulate(d, Components(runs**2, gans**2, 0.02 / d.images), 0.01, 3000)
    found = promises(s, parts_of(s, d), 0.01)
    assert 0.93 <= found['coverage'] <= 0.97 and found['family_error'] <= 0.06
    assert promises(s, parts_of(s, d), 0.03)['coverage'] < 0.75


def test_one_arm_with_more_spread_than_the_others():
    d = Design()
    s = simulate(d, Components(0.004**2, np.square([0, 0, 0, 0, 0, 0.02]), 0.02 / 555), n=4000)
    found = promises(s, parts_of(s, d))
    assert found['worst'] > 0.92 and found['family_error'] <= 0.06


def test_a_plan_agrees_with_what_is_simulated():
    d, truth = Design(), Components(0.004**2, 0.01**2, 0.02 / 555)
    plan = planned(d, truth)
    s = simulate(d, truth, n=3000)
    assert plan['se'] == pytest.approx((s['means'].mean(-1) - s['control']).std(), rel=0.03)
    assert plan['in the family'] > plan['alone'] > planned(Design(gans=10), truth)['alone']
    assert np.isnan(planned(Design(gans=1), truth)['alone'])


def test_without_gans_it_agrees_with_the_older_comparison():
    rng = np.random.default_rng(0)
    image = rng.random(400) < 0.85
    a, b = (
        results(name, image & (rng.random((6, 400)) > x)) for name, x in (('a', 0.02), ('b', 0.06))
    )
    old = compare_arms(a + b, 'a', metrics=['accuracy'], uncertainty=QUICK).iloc[0]
    new = contrast(b, a, uncertainty=QUICK)
    assert new['difference'] == pytest.approx(old.difference)
    assert new['high'] - new['low'] == pytest.approx(old.high - old.low, rel=0.35)
