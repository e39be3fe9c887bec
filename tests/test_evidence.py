"""What decides: the tables and figures that all sources share, on simulated classifiers."""

import numpy as np
import pandas as pd
import pytest

from gan_covid import evidence
from gan_covid import published as pub
from gan_covid.evaluation import simulated_result
from gan_covid.frozen import save_scores
from gan_covid.paper import Runs, answer_in_words
from gan_covid.records import InputError

BY = ('images a class',)


def run(arm, skill, r=0, gan=0, network='net, frozen', size=30, n=120, **more):
    "One result as `heads` gives it."
    return simulated_result(
        arm,
        100 * gan + r,
        skill,
        range(n),
        gan=gan,
        run=r,
        network=network,
        length='steps',
        images=2 * size,
        train_prior=[size, size],
        **{'images a class': size},
        **more,
    )


def table_of(gain, gans=3, size=30):
    "An original arm, its control, and images of GANs that are worth `gain`."
    made = [run(a, 1, r, size=size) for a in ('original', 'original+repeated') for r in range(6)]
    arm = 'original+generated'
    made += [run(arm, 1 + gain, r, g + 1, size=size) for g in range(gans) for r in range(6)]
    return made


def test_every_source_names_its_comparison():
    for paper in pub.PAPERS:
        named = pub.primary(paper)
        assert named['control'] == 'original+repeated' and named['score'] == 'accuracy'
        assert 'generated' in named['arm']


def test_a_large_gain_is_seen_and_none_is_not():
    rows = evidence.judged(table_of(2.5), 'mgv2023', BY, 'hemorrhage')
    first = rows[rows.role == 'primary'].iloc[0]
    assert first.verdict == 'better' and first.low > 0 and first.GANs == 3 and first.n == 18
    none = evidence.judged(table_of(0), 'mgv2023', BY, 'hemorrhage')
    assert none[none.role == 'primary'].verdict.iloc[0] not in ('better', 'worse')


def test_p_is_corrected_for_the_primary_comparisons_alone():
    made = table_of(1) + table_of(1, size=60)
    rows = evidence.judged(made, 'mgv2023', BY, 'hemorrhage')
    mine = rows[rows.role == 'primary'].sort_values('p')
    assert len(mine) == 2 and mine.p_adjusted.iloc[0] == pytest.approx(2 * mine.p.iloc[0])
    assert rows[rows.role == 'exploratory'].p_adjusted.isna().all()


def test_one_gan_says_nothing_about_gans():
    rows = evidence.judged(table_of(1.0, gans=1), 'mgv2023', BY, 'hemorrhage')
    first = rows[rows.role == 'primary'].iloc[0]
    assert first.verdict == 'too imprecise to tell'
    said = evidence.sentences(rows)
    assert 'spread is not known' in said and 'no interval' in said and 'nan' not in said
    alike = rows[rows.role == 'primary'].rename(columns={'verdict': 'says'})
    words = answer_in_words(alike.assign(kind='GAN', who='a', added='b', adjusted=True))
    assert 'too imprecise to tell' in words and 'How uncertain' not in words


def test_baselines_are_beside_the_networks_and_not_among_them():
    made = table_of(0) + [run('original', 3, network='SVM on pixels')]
    assert len(evidence.with_network(made)) == len(made) - 1
    table = evidence.all_arms(made, BY, 'hemorrhage')
    weak = table[table.network == 'net, frozen']['below the SVM']
    assert set(weak) == {'yes'} and table[table.network == 'SVM on pixels'].GANs.item() == 0


def test_means_are_those_of_the_runs():
    made = table_of(0.5)
    table = evidence.all_arms(made, BY, 'hemorrhage').set_index('arm')
    right = [
        np.mean(np.argmax(r['test']['y_score'], 1) == r['test']['y_true'])
        for r in made
        if r['arm'] == 'original+generated'
    ]
    assert table.accuracy['original+generated'] == pytest.approx(np.mean(right))
    single = np.array(right).reshape(3, 6).mean(1)
    low, high = table['single GANs']['original+generated'].split(' to ')
    assert (float(low), float(high)) == pytest.approx((single.min(), single.max()), abs=6e-4)
    assert table['95 %']['original+generated'] == '' and table['95 %']['original'] != ''


def test_nothing_run_is_said():
    rows = evidence.judged([], 'mgv2023', BY)
    assert not len(rows) and evidence.sentences(rows) == 'not run'
    assert not len(evidence.all_arms([], BY))
    alone = evidence.judged([run('original', 1)], 'mgv2023', BY)
    assert not len(alone)


def test_figures_show_every_arm_and_size():
    made = table_of(0.3) + table_of(0.1, size=60)
    made += [run('original', 1, network='SVM on pixels', size=s) for s in (30, 60)]
    rows = evidence.judged(made, 'mgv2023', BY, 'hemorrhage')
    gain = evidence.gain_curve(rows, note='n').axes[0]
    assert any(len(line.get_xdata()) == 2 for line in gain.lines)
    level = evidence.level_curve(evidence.all_arms(made, BY, 'hemorrhage'), note='n')
    words = {t.get_text() for legend in level.legends for t in legend.get_texts()}
    assert {'real images alone', 'with GAN images', 'SVM on pixels'} <= words
    trust = evidence.reliability_figure(made, positive='hemorrhage', note='n').axes[0]
    assert {t.get_text() for t in trust.get_legend().get_texts()} >= {'with GAN images'}


def test_a_source_is_compared_with_the_errors_of_both_sides():
    made = table_of(0)
    rows = evidence.against(made, 'wmlq2022', by=BY, positive='hemorrhage')
    assert set(rows.arm) == {'original+generated'} and set(rows.baseline) == {'original'}
    found = evidence.beside_published(made, rows, 'wmlq2022', 'hemorrhage').set_index('what')
    level = found.loc['accuracy on real images alone, InceptionV3']
    assert level.published == pub.value('T5', 'mean_accuracy') and '400 images' in level.note
    gain = found.loc['gain by images of a GAN, EfficientNet-B0']
    before, after = (pub.value(t, 'mean_accuracy') for t in ('T6', 'T10'))
    means = evidence.all_arms(made, BY, 'hemorrhage').set_index('arm').accuracy
    assert gain.reproduced == pytest.approx(means['original+generated'] - means['original'])
    assert (
        gain.published == pytest.approx(after - before) and gain.low < gain.difference < gain.high
    )
    assert evidence.beside_published([], rows.iloc[:0], 'wmlq2022').empty
    sizes = made + table_of(0, size=60)  # a source with sizes prints no such number
    assert evidence.beside_published(sizes, rows, 'mgv2023', 'hemorrhage').empty


def test_all_sources_in_short(tmp_path):
    for paper, gain in (('ct_report', 2.5), ('head_ct', 0)):
        rows = evidence.judged(
            table_of(gain), paper.replace('ct_report', 'mgv2023'), (), 'hemorrhage'
        )
        (tmp_path / paper).mkdir()
        first = rows[rows.role == 'primary']
        first.to_csv(tmp_path / paper / 'T14_primary.csv', index=False)
    rows = evidence.shipped_primary(tmp_path)
    said = evidence.in_short(rows)
    assert (
        '2 times' in said
        and 'better in 1' in said
        and '2 of 4 sources' in said
        and 'a gain is seen' in said
    )
    assert 'yet' in evidence.in_short(evidence.shipped_primary(tmp_path / 'none'))


def test_the_confirming_experiment_is_a_comparison_of_its_own(tmp_path):
    first = evidence.judged(table_of(2.5), 'mgv2023', BY, 'hemorrhage')
    again = evidence.judged(table_of(0, size=60), 'mgv2023', BY, 'hemorrhage')
    again = again.assign(experiment='confirming')
    folder = tmp_path / 'mgv2023'
    folder.mkdir()
    first.to_csv(folder / 'T23_primary.csv', index=False)
    again.to_csv(folder / 'T23_confirm.csv', index=False)
    again.to_csv(folder / 'T23_confirm_heads.csv', index=False)  # no table of comparisons
    rows = evidence.shipped_primary(tmp_path)
    assert rows['images a class'].tolist() == [30, 60] and set(rows.role) == {'primary'}
    said = evidence.sentences(rows)
    assert said.count('confirming experiment') == 1 and '120 test images' in said
    wheres = [evidence.where(r) for r in rows.to_dict('records')]
    assert wheres == [
        '`mgv2023`, 30 images a class',
        '`mgv2023`, 60 images a class, confirming experiment',
    ]
    unlike = again.drop(columns='images a class').assign(**{'real images': 297})
    smaller = '297 real images, confirming experiment'
    assert evidence.sentences(unlike).startswith(f'- {smaller}: ')
    both = pd.concat([evidence.judged(table_of(0), 'wmlq2022', (), 'hemorrhage'), unlike])
    wheres = [evidence.which_in_words(r) for r in both[both.role == 'primary'].to_dict('records')]
    assert wheres == ['', smaller]
    figure = evidence.gain_curve(pd.concat([first, again]), note='n')
    lines = {t.get_text() for legend in figure.legends for t in legend.get_texts()}
    assert lines == {'with GAN images', 'with GAN images, confirming experiment'}


def test_what_decides_stands_beside_the_answer(tmp_path, monkeypatch):
    from gan_covid.paper import Paper, answer

    rows = evidence.judged(table_of(2.5), 'mgv2023', BY, 'hemorrhage')
    folder = tmp_path / 'figures/medium/mgv2023'
    folder.mkdir(parents=True)
    rows[rows.role == 'primary'].to_csv(folder / 'T23_primary.csv', index=False)
    beside = rows[rows.role == 'primary'].assign(experiment='confirming', difference=0.3)
    beside.to_csv(folder / 'T23_classical.csv', index=False)
    of = {k: Paper('mgv2023', k, tmp_path / 'records') for k in ('small', 'medium', 'smoke')}
    said = {k: evidence.decisive(paper) for k, paper in of.items()}
    assert said['medium'] == said['smoke'] == ''
    assert 'profile `small`' in said['small'] and '**better**' in said['small']
    assert (
        'in place of classical' in said['small']
        and 'confirming experiment: +0.300' in said['small']
    )
    spoken = []
    monkeypatch.setattr('gan_covid.paper.say', spoken.append)
    alike = rows[rows.role == 'primary']
    answer(of['small'], 'GANs help.', said['small'], T23_primary=alike)
    places = [spoken[0].index(w) for w in ('GANs help', 'What decides', 'which decides nothing')]
    assert places == sorted(places)


def test_sure_and_wrong_is_within_the_figure():
    "Answers below chance are seen, and the arm that a source names is drawn."
    arm = pub.primary('ct_report')['arm']
    made = [run(a, skill, r) for a, skill in (('original', 1), (arm, -3)) for r in range(3)]
    ax = evidence.reliability_figure(made, ('original', arm), 'hemorrhage', note='n').axes[0]
    low, high = ax.get_ylim()
    drawn = np.concatenate([line.get_ydata() for line in ax.lines[1:]])
    assert low < drawn.min() and drawn.max() < high and drawn.min() < 0.5
    assert evidence.WORDS[arm] in {t.get_text() for t in ax.get_legend().get_texts()}


def test_heads_reads_what_the_step_writes(tmp_path):
    results = [run('original', 1, r) for r in range(2)]
    test = {k: results[0]['test'][k] for k in ('id', 'y_true')}
    save_scores(tmp_path / 'scores.npz', [r['test']['y_score'] for r in results])
    kept = [{k: v for k, v in r.items() if k != 'images a class'} | {'test': 0} for r in results]
    kept[1]['length'] = 'epochs'
    record = {'folder': tmp_path, 'results': {'tests': [test], 'repeats': kept}}
    paper = {'classify_frozen': {'a': record}}
    steps, epochs = evidence.heads(paper), evidence.heads(paper, 'epochs')
    assert [r['run'] for r in steps] == [0] and [r['run'] for r in epochs] == [1]
    assert steps[0]['images a class'] == 30 and evidence.fine_tuned(paper) == []
    confirming = record | {'parameters': {'tested': 'rest'}}
    both = {'classify_frozen': {'a': record, 'b': confirming}}
    assert len(evidence.heads(both)) == len(evidence.heads(both, experiment='confirming')) == 1
    found = pd.DataFrame(steps[0]['test']['y_score']), pd.DataFrame(results[0]['test']['y_score'])
    assert np.abs(found[0] - found[1]).to_numpy().max() < 1e-4


def test_the_parts_exchanged_and_both_halves_together(tmp_path):
    "Of both experiments each image is tested once; an arm that one of them lacks is left out."

    def record(name, ids, arms, parameters=()):
        "One run an arm, all tested on these images."
        test = {'id': list(ids), 'y_true': [k % 2 for k in ids]}
        repeats = [run(a, 1, size=len(ids) // 2) | {'test': 0} for a in arms]
        (tmp_path / name).mkdir()
        save_scores(tmp_path / name / 'scores.npz', [np.full((len(ids), 2), 0.5) for _ in arms])
        results = {'tests': [test], 'repeats': repeats}
        return {'folder': tmp_path / name, 'results': results, 'parameters': dict(parameters)}

    first = record('a', range(10), ('original', 'generated'))
    again = record('b', range(10, 40), ('original',), {'fold': 'exchanged'})
    alone, paper = ({'classify_frozen': dict(enumerate(r))} for r in ([first], [first, again]))
    assert evidence.heads(alone, experiment='both') == []
    assert len(evidence.heads(paper)) == 2
    (confirming,) = evidence.heads(paper, experiment='confirming')
    (both,) = evidence.heads(paper, experiment='both')
    assert len(confirming['test']['id']) == 30
    assert sorted(both['test']['id']) == list(range(40)) and both['images'] == 20
    rest = {
        **first,
        'parameters': {'tested': 'rest'},
    }  # an experiment of its own, which joins nothing
    beside = {'classify_frozen': dict(enumerate([first, again, rest]))}
    assert len(evidence.heads(beside, experiment='both')) == 1
    with pytest.raises(InputError, match='experiment'):
        evidence.heads(paper, experiment='second')


def test_images_that_are_tested_twice_count_once():
    rows = pd.DataFrame({'paper': ['a', 'a', 'a', 'b'], 'n': range(4)})
    assert evidence.counted_once(rows) is rows
    rows['experiment'] = [np.nan, 'confirming', 'both', np.nan]
    assert evidence.counted_once(rows).n.tolist() == [2, 3]


def test_a_confirming_experiment_says_how_large_its_set_is(monkeypatch):
    def found(paper, experiment):
        sizes = {'first': 90, 'confirming': 60}
        return table_of(0, size=sizes[experiment]) if experiment in sizes else []

    monkeypatch.setattr(evidence, 'heads', found)
    paper = Runs('mgv2023', 'none', 'none')
    rows = evidence.compared(paper, positive='hemorrhage', experiment='confirming')
    assert set(rows['real images']) == {120} and set(rows.experiment) == {'confirming'}
    by_size = evidence.compared(paper, BY, 'hemorrhage', 'confirming')
    assert 'real images' not in by_size and set(by_size['images a class']) == {60}
    assert 'experiment' not in evidence.compared(paper, BY, 'hemorrhage')
    named = evidence.named_beforehand(paper, 'T23', BY, 'hemorrhage')
    assert {set(rows.arm) == {'original+generated'} for rows in named.values()} == {True}
    confirming = {name: 'experiment' in rows for name, rows in named.items()}
    assert confirming == {'T23_primary': False, 'T23_confirm': True}
    evidence._compared.cache_clear()
    monkeypatch.setattr(evidence, 'heads', lambda paper, experiment: table_of(0, size=60))
    alike = evidence.compared(paper, positive='hemorrhage', experiment='confirming')
    assert 'real images' not in alike  # of the first experiment's size


def test_more_gans_of_the_same_folds_join_the_first(tmp_path):
    "They are numbered after the first ones; arms without a GAN are counted once."
    ids = {'1/2': range(10), '2/2': range(10, 20)}

    def record(name, fold, gans, **more):
        arms = [('original', 0), *(('original+generated', g + 1) for g in range(gans))]
        test = {'id': list(ids[fold]), 'y_true': [k % 2 for k in ids[fold]]}
        (tmp_path / name).mkdir()
        save_scores(tmp_path / name / 'scores.npz', [np.full((10, 2), 0.5) for _ in arms])
        repeats = [run(a, 1, gan=g, size=9) | {'test': 0} for a, g in arms]
        given = {'fold': fold, 'gans': list(range(gans)), **more}
        results = {'tests': [test], 'repeats': repeats}
        return {'folder': tmp_path / name, 'results': results, 'parameters': given}

    first = {f'fold_{f[0]}': record(f'fold_{f[0]}', f, 2) for f in ids}
    more = {f'more_{f[0]}': record(f'more_{f[0]}', f, 3, adds_to=f'fold_{f[0]}') for f in ids}
    paper = {'classify_frozen': first | more}
    assert evidence.heads({'classify_frozen': first}, experiment='both') == []
    gans = {
        e: [r['gan'] for r in evidence.heads(paper, experiment=e)] for e in evidence.EXPERIMENTS
    }
    assert gans == {'first': [0, 1, 2], 'confirming': [0, 1, 2, 3], 'both': [0, 1, 2, 3, 4, 5]}
    both = evidence.heads(paper, experiment='both')
    assert all(sorted(r['test']['id']) == list(range(20)) for r in both)
    told = [evidence._tested(evidence._records(paper, e), e) for e in evidence.EXPERIMENTS]
    assert told[0] == 'each image tested once, in 2 folds with GANs of their own'
    assert 'the same test images' in told[1] and 'all GANs together' in told[2]


def test_folds_are_said_where_gans_are_counted():
    row = {'GANs': 3, 'n': 30, 'n_test': 194}
    assert evidence.behind_in_words(row) == '3 GANs, 30 runs, 194 test images'
    folds = evidence.behind_in_words({**row, 'folds': 4.0})
    assert folds == '3 GANs and 30 runs in each of 4 folds, 194 test images'
    assert evidence._numbers({**row, 'folds': np.nan}) == '3, 30, 194'
    assert evidence._numbers({**row, 'folds': 4.0}) == '4 × 3, 4 × 30, 194'
