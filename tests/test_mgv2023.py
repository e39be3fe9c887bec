"""Data sets of several sizes, on phantoms.

Each is a part of the larger ones, its GAN trained on its own training part, the same images for GAN and
classifier; then the source's notebook.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from steps import GAN, RADIOGRAPHS, Steps, draw

from gan_covid import arms, evidence
from gan_covid.baselines import BASELINES
from gan_covid.datasets import splits
from gan_covid.frozen import results_of
from gan_covid.preprocessing import Prepared
from gan_covid.published import ids, value
from gan_covid.records import InputError
from gan_covid.steps import Place

pytestmark = pytest.mark.slow
# the smallest takes the images of the GAN of the smaller set, and the records say so
SHARES = {'larger': [1.0], 'smaller': [0.5, 0.25]}
ARMS = 'original+classical', 'original+generated', 'original+generated+classical'


@pytest.fixture(scope='module')
def runs(radiographs):
    steps = Steps(radiographs, 'mgv2023', 'radiography')
    steps.run(
        'prepare',
        'radiography',
        phantoms=26,
        phantom_size=200,
        size=32,
        fit='stretch',
        crop='lungs',
        marks='drop',
        each=dict.fromkeys(RADIOGRAPHS, 14),
        test_each=5,
        val_share=0.25,
    )
    steps.gans, steps.classified = {}, {}
    for n, shares in SHARES.items():
        gan = {'conditional': True, 'labels': RADIOGRAPHS, 'share': shares[0]} | GAN
        steps.gans[n] = steps.run('train_stylegan2', n, **gan)
        gans = dict.fromkeys(RADIOGRAPHS, n)
        steps.run('generate', n, model='stylegan2', gans=gans, per_trained=1.0)
        steps.classified[n] = steps.run(
            'classify',
            f'{n}-original',
            arm='original',
            also=list(ARMS),
            labels=RADIOGRAPHS,
            own=n,
            real_share=shares,
            n_generated=-1,
            protocol='ct_report-ct_cnn',
            splits='fixed',
            size=32,
            epochs=1,
            weights='random',
            repeats=2,
        )['results']['repeats']
    return steps


def training_part(runs, share):
    table = runs.prepared().table
    table = arms.subset(table, share, 0) if share < 1 else table
    return table[table.split == 'train']


def test_gan_and_classifier_of_a_size_see_the_same_images(runs):
    for n, shares in SHARES.items():
        part = training_part(runs, shares[0])
        assert set(runs.gans[n]['results']['trained_on']) == set(part.sha256)
        seen = [r['n_train']['real'] for r in runs.classified[n] if r['share'] == shares[0]]
        assert set(seen) == {len(part)}
    quarter, half, whole = (set(training_part(runs, s).sha256) for s in (0.25, 0.5, 1.0))
    assert quarter < half < whole


def test_what_the_gan_alone_has_seen_is_counted(runs):
    more = len(training_part(runs, 0.5)) - len(training_part(runs, 0.25))
    for r in [r for results in runs.classified.values() for r in results]:
        generated = 'generated' in r['arm']
        assert r['gan_only'] == (more if generated and r['share'] == 0.25 else 0)
        assert r['leaked'] == []
        # as many generated images as real ones
        assert r['n_train']['generated'] == (r['n_train']['real'] if generated else 0)


def test_all_sizes_are_tested_on_the_same_images_that_no_gan_saw(runs):
    table = runs.prepared().table
    held = set(table.sha256[table.split == 'test'])
    assert not any(held & set(g['results']['trained_on']) for g in runs.gans.values())
    tested = {tuple(r['test']['id']) for results in runs.classified.values() for r in results}
    assert len(tested) == 1
    with pytest.raises(InputError, match='share=2'):
        arms.subset(table, 2.0)


FROZEN_ARMS = ['original', 'original+repeated', 'original+mixup', 'original+generated', 'generated']


@pytest.fixture(scope='module')
def frozen(runs):
    "Heads on features of a pretrained network, with the images of two GANs, at half of the real images."
    return runs.run(
        'classify_frozen',
        'smaller',
        arms=FROZEN_ARMS,
        gans=['smaller', 'larger'],
        labels=RADIOGRAPHS,
        real_share=0.5,
        n_generated=-1,
        size=32,
        repeats=2,
        epochs=True,
    )


def test_heads_know_gans_runs_and_steps(runs, frozen):
    rows = pd.DataFrame(frozen['results']['repeats']).query('network not in @BASELINES')
    found = rows.groupby(['arm', 'length']).agg(gans=('gan', 'nunique'), runs=('seed', 'size'))
    for arm in FROZEN_ARMS:
        with_gan = arm.endswith('generated')
        expected = [2, 4] if with_gan else [1, 2]
        assert found.loc[(arm, 'steps')].tolist() == expected, arm
    steps = rows.query('length == "steps"').steps
    assert steps.nunique() == 1  # the same for all arms
    more = rows.query('length == "epochs" and arm == "original+repeated"').steps
    assert (more > steps.iloc[0]).all()
    assert frozen['weights'] == 'imagenet'


def test_scores_of_heads_are_those_of_the_record(runs, frozen):
    folder = runs.base / 'classify_frozen' / 'smaller'
    found = results_of({**frozen, 'folder': folder})
    assert len(found) == len(frozen['results']['repeats'])
    table = runs.prepared().table
    test = table.sha256[table.split == 'test']
    for r in found:
        assert len(r['test']['y_true']) == len(r['test']['y_score']) == len(test)
    assert {r['network'] for r in found} >= set(BASELINES)


def heads_on_the_rest(runs, name, gan, **how):
    "Heads with the images of one GAN, tested on what a smaller data set leaves out."
    how = {
        'labels': RADIOGRAPHS,
        'n_generated': -1,
        'size': 32,
        'repeats': 2,
        'tested': 'rest',
    } | how
    arms = ['original', 'original+repeated', 'original+generated']
    return runs.run('classify_frozen', name, arms=arms, gans=[gan], **how)


@pytest.fixture(scope='module')
def rest(runs):
    return heads_on_the_rest(runs, 'rest', 'smaller', real_share=0.5)


def test_what_a_smaller_set_leaves_out_can_be_tested(runs, frozen, rest):
    "By neither the heads nor the GAN seen, and none of the test part; they train as they do elsewhere."
    found, table = rest['results'], runs.prepared().table
    assert rest['parameters']['tested'] == 'rest'
    tested, called = set(found['tests'][0]['id']), table.image.map(lambda f: Path(f).name)
    names = {n: set(called[table.split == n]) for n in ('train', 'val', 'test')}
    assert not tested & names['test'] and tested < names['train'] | names['val']
    seen = set(runs.record('train_stylegan2', 'smaller')['results']['trained_on'])
    assert not seen & set(table.sha256[called.isin(tested)])
    trained = [
        {r['arm']: (r['n_train'], r['images'], r['train_prior']) for r in record['repeats']}
        for record in (frozen['results'], found)
    ]
    assert trained[1].items() <= trained[0].items()
    assert all(r['leaked'] == [] for r in found['repeats'])


def test_images_without_room_can_be_tested_too(runs, rest):
    "They stand in no part of the split, so no head and no GAN has seen them."
    more = heads_on_the_rest(runs, 'spare', 'smaller', real_share=0.5, tested='rest+spare')
    shutil.rmtree(runs.base / 'classify_frozen' / 'spare')  # one such run of a size for the tables
    found, left_out = (set(r['results']['tests'][0]['id']) for r in (more, rest))
    table = Prepared.open(runs.base / 'prepare' / 'radiography' / 'spare').table
    spare = {Path(f).name for f in table.image}
    assert table.split.isna().all() and not spare & {
        Path(f).name for f in runs.prepared().table.image
    }
    made = runs.record('prepare', 'radiography')['results']
    assert made['spare'] == table.label.value_counts().to_dict()
    own = {Path(f).name for f in table.image[table.label.isin(RADIOGRAPHS)]}
    assert own and found == left_out | own
    seen = set(runs.record('train_stylegan2', 'smaller')['results']['trained_on'])
    assert seen and not seen & set(table.sha256)


def test_no_spare_images_is_said(runs):
    place = Place(str(runs.work), 't', 'mgv2023')
    (runs.base / 'prepare' / 'full').mkdir(parents=True)
    with pytest.raises(InputError, match='no spare images'):
        place.with_spare(runs.prepared(), 'full')


@pytest.mark.parametrize(
    'how, says',
    [
        ({'gan': 'larger', 'real_share': 0.5}, 'trained on'),
        ({'gan': 'larger'}, 'real_share'),
        ({'gan': 'smaller', 'real_share': 0.5, 'splits': 'redrawn'}, 'splits'),
    ],
)
def test_images_that_were_seen_are_no_rest(runs, how, says):
    "A GAN of the larger set has seen them; the whole set leaves none out."
    with pytest.raises(InputError, match=says):
        heads_on_the_rest(runs, 'no', **how)


TUNED_ARMS = ['original+repeated', 'original+generated']


@pytest.fixture(scope='module')
def tuned(runs):
    "The whole pretrained network trained, with the images of two GANs."
    return runs.run(
        'classify_frozen',
        'tuned',
        arms=TUNED_ARMS,
        gans=['smaller', 'larger'],
        labels=RADIOGRAPHS,
        real_share=0.5,
        n_generated=-1,
        protocol='tuned-lite0',
        size=32,
        repeats=1,
        baselines=False,
    )


def test_whole_networks_stand_beside_heads(runs, frozen, tuned):
    rows = pd.DataFrame(tuned['results']['repeats'])
    assert rows.groupby('arm').gan.agg(list).to_dict() == dict(zip(TUNED_ARMS, ([0], [1, 2])))
    assert rows.steps.nunique() == 1 and set(rows.weights) == {'imagenet'}
    records = {'smaller': frozen, 'tuned': tuned}
    for name, record in records.items():
        record['folder'] = runs.base / 'classify_frozen' / name
    paper = {'classify_frozen': records}
    whole = evidence.fine_tuned(paper)
    assert {r['network'] for r in whole} == {'efficientnetlite0, fine-tuned'} and len(whole) == 3
    assert all('fine-tuned' not in r['network'] for r in evidence.heads(paper, 'epochs'))
    scores = np.stack([r['test']['y_score'] for r in whole])
    assert np.allclose(scores.sum(-1), 1, atol=1e-3)
    assert not np.array_equal(scores[1], scores[2])  # another GAN, other images


def test_fine_tuning_takes_equal_epochs_anyway(runs):
    with pytest.raises(InputError, match='epochs=True'):
        runs.run('classify_frozen', 'no', protocol='tuned-lite0', epochs=True)


FOLD_ARMS = ['original', 'original+repeated', 'original+generated']


@pytest.fixture(scope='module')
def folds(runs):
    "Cross-validation in two parts, each with a GAN of its own."
    for k in (1, 2):
        name, fold = f'fold_{k}', {'fold': f'{k}/2'}
        runs.run('train_stylegan2', name, conditional=True, labels=RADIOGRAPHS, **fold, **GAN)
        gans = dict.fromkeys(RADIOGRAPHS, name)
        runs.run('generate', name, model='stylegan2', gans=gans, per_trained=1.0, **fold)
        heads_of_fold(runs, name, name, **fold)
    return runs


def heads_of_fold(runs, name, gan, **fold):
    how = {'labels': RADIOGRAPHS, 'n_generated': -1, 'size': 32, 'repeats': 2, 'baselines': False}
    return runs.run('classify_frozen', name, arms=FOLD_ARMS, gans=[gan], **how, **fold)


def test_each_image_is_tested_once_and_by_no_gan_that_saw_it(folds):
    table, tested = folds.prepared().table, []
    for k in (1, 2):
        part = splits.fold_split(table, f'{k}/2')
        gan = folds.record('train_stylegan2', f'fold_{k}')['results']
        assert set(gan['trained_on']) == set(part.sha256[part.split == 'train'])
        assert folds.record('generate', f'fold_{k}')['results']['test_images_seen'] == 0
        heads = folds.record('classify_frozen', f'fold_{k}')
        assert heads['parameters']['fold'] == f'{k}/2'
        assert all(r['leaked'] == [] for r in heads['results']['repeats'])
        tested += heads['results']['tests'][0]['id']
    assert len(tested) == len(set(tested)) == len(table)


def test_a_gan_of_another_fold_is_refused(folds):
    with pytest.raises(InputError, match='held out|held-out|test'):
        heads_of_fold(folds, 'crossed', 'fold_2', fold='1/2')
    with pytest.raises(InputError, match='splits'):
        heads_of_fold(folds, 'redrawn', 'fold_1', fold='1/2', splits='redrawn')


def test_folds_are_one_result_for_each_run(folds):
    records = {n: folds.record('classify_frozen', n) for n in ('fold_1', 'fold_2')}
    for name, record in records.items():
        record['folder'] = folds.base / 'classify_frozen' / name
    found = evidence.heads({'classify_frozen': records})
    assert {len(r['test']['id']) for r in found} == {len(folds.prepared().table)}
    runs_of = pd.DataFrame(found).groupby('arm').size()
    assert runs_of.to_dict() == dict.fromkeys(FOLD_ARMS, 2)
    parts = [r for record in records.values() for r in results_of(record)]
    for r in found:
        same = [p for p in parts if p['arm'] == r['arm']]
        same = np.concatenate([p['test']['y_score'] for p in same if p['run'] == r['run']])
        assert np.array_equal(r['test']['y_score'], same)


def test_repeats_need_to_know_how_many(runs):
    "As many as a GAN drew, or a number; without a GAN there is no such number."
    with pytest.raises(InputError, match='give -1'):
        runs.run(
            'classify_frozen',
            'none',
            arms=['original', 'original+repeated'],
            gans=[],
            labels=RADIOGRAPHS,
            size=32,
            repeats=1,
            baselines=False,
        )


def test_distances_on_features_of_a_pretrained_network(runs):
    "They need no classifier, and are not called FID."
    asked = {'features': 'lite0', 'classifier': '', 'repeats': 2, 'k': 2}
    r = runs.run('score', 'smaller', **asked)['results']
    whole = r['fidelity']['all']
    assert whole['n']['real'] == len(training_part(runs, 0.5))
    assert 'fid' not in {k.lower() for k in whole}


@pytest.fixture(scope='module')
def scores(runs):
    judge = {'classifier': 'larger-original', 'features': 'pixels', 'repeats': 2, 'k': 2}
    return {n: runs.run('score', n, **judge)['results'] for n in SHARES}


def test_each_gan_is_compared_with_what_it_was_trained_on(runs, scores):
    "The rest of the larger set is unseen by the smaller one's."
    n_images = len(runs.prepared().table)
    for n, shares in SHARES.items():
        r, own = scores[n], len(training_part(runs, shares[0]))
        assert r['reference'] == {'train': own, 'heldout': n_images - own, 'known': True}
        assert r['copies']['n']['train'] == r['fidelity']['all']['n']['real'] == own


def test_every_table_and_figure(runs, scores, frozen, rest, tmp_path):
    items = draw('mgv2023', tmp_path, runs.work)
    assert set(ids('mgv2023')) <= set(items) and not any(i['local'] for i in items.values())
    folder = tmp_path / 'mgv2023'

    def read(name):
        return pd.read_csv(folder / f'{name}.csv')

    results = read('T23_results')
    sizes = {round(r['images'] / 4) for c in runs.classified.values() for r in c}
    assert set(results['images a class']) == sizes and len(results) == 3 * 4
    assert set(read('T23_classes')['class']) == set(RADIOGRAPHS)
    assert len(read('O17_claim')) == 3
    first, again = (read(f'T23_{name}') for name in ('primary', 'confirm'))
    left_out = len(rest['results']['tests'][0]['id'])
    assert set(again.n_test) == {left_out} and left_out not in set(first.n_test)
    assert set(again.experiment) == {'confirming'}
    assert {'accuracy, none', 'gain of accuracy by GAN'} <= set(read('O17_correlation').what)
    quoted = read('T23_literature').set_index('work')['value']
    best = pytest.approx(value('X2', 'best accuracy'))
    assert quoted['Loey et al. 2020, best (X2)'] == best
    assert quoted.index.str.contains('X4').sum() == 2
    distance, own = read('O17_distance'), [len(training_part(runs, s[0])) for s in SHARES.values()]
    assert list(distance['real images']) == list(distance["of these this GAN's"]) == own
    names = {p.name for p in folder.iterdir()}
    assert {'T23_samples_larger.png', 'T23_samples_smaller.png', 'quality_larger.csv'} <= names
    assert 'O17_accuracy_ct_cnn.png' in names


def test_notebook_without_records_names_the_command(tmp_path, capsys):
    items = draw('mgv2023', tmp_path, tmp_path / 'records')
    assert set(ids('mgv2023')) <= set(items)
    assert 'make reproduce PAPER=mgv2023' in capsys.readouterr().out
