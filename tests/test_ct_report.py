"""The run notebooks as the CT report needs them: a conditional GAN, a GAN that saw the test images, other people's images, a fixed split; each of them small, on phantoms."""

import shutil

import numpy as np
import pytest
from PIL import Image

from gan_covid import phantoms
from gan_covid.arms import named
from gan_covid.notebooks import ROOT, run_notebook
from gan_covid.preprocessing import Prepared
from gan_covid.records import InputError, read_json

LABELS = ['COVID', 'NonCOVID']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A function that runs a step and gives its record; prepared images, one conditional GAN on the training part and one on all images."
    work = tmp_path_factory.mktemp('ct')

    def step(notebook, name, folder=None, **values):
        takes = dict(
            profile='t', paper='ct_report', work=str(work), dataset='covid_ct', name=name, **values
        )
        if notebook == 'prepare':
            takes.pop('name')
        run_notebook(
            ROOT / 'nbs' / 'runs' / f'{notebook}.ipynb',
            work / 'notebooks' / f'{notebook}-{name}.ipynb',
            takes,
        )
        return read_json(work / 't' / 'ct_report' / (folder or notebook) / name / 'record.json')

    step.base = work / 't' / 'ct_report'
    step.data = phantoms.write('covid_ct', work / 'data', 24, size=96, seed=0)
    step.prepared = step('prepare', 'covid_ct', data=str(work / 'data'), size=32, split='published')
    for name, images in (('both', 'train'), ('leaky', 'all')):
        step(
            'train_dcgan',
            name,
            conditional=True,
            labels=LABELS,
            images=images,
            networks='cgan_32',
            epochs=2,
            batch=8,
            gradient_penalty=0.0,
            real_noise=0.0,
            invert_labels=False,
            sheets=1,
            sheet_images=16,
        )
    return step


def generated(runs, name, gan, **more):
    done = runs.base / 'generate' / name / 'record.json'
    return (
        read_json(done)
        if done.exists()
        else runs(
            'generate',
            name,
            gans={l: gan for l in LABELS},
            **{'per_class': 12, 'select': 'both', 'keep': 0.5, **more},
        )
    )


def test_official_split_is_kept(runs):
    r = runs.prepared['results']
    assert (
        runs.prepared['parameters']['split'] == 'published'
        and set(r['counts']) == set(LABELS)
        and all(set(c) == {'train', 'val', 'test'} for c in r['counts'].values())
    )
    assert r['left_out'] == [] and r['crossing'] == []
    assert set(r['patients_by_part']) == set(LABELS) and r['patients'] >= max(
        sum(c.values()) for c in r['patients_by_part'].values()
    )


def test_gans_and_what_they_saw(runs):
    split = Prepared.open(runs.base / 'prepare' / 'covid_ct' / 'images').table.split.value_counts()
    for name, parts in (('both', ['train']), ('leaky', ['train', 'val', 'test'])):
        r = read_json(runs.base / 'train_dcgan' / name / 'record.json')
        assert (
            r['parameters']['labels'] == LABELS
            and r['parameters']['classes'] == 2
            and r['results']['seen'] == {s: int(split[s]) for s in parts}
        )


def test_picked_images(runs):
    r = generated(runs, 'dcgan', 'both')['results']
    f = np.load(runs.base / 'generate' / 'dcgan' / 'images.npz')
    assert (
        r['kept'] == {l: 6 for l in LABELS}
        and r['test_images_seen'] == 0
        and f['images'].shape == (24, 32, 32, 1)
    )
    for l in LABELS:  # the best sums of two ranks
        mine = f['label'] == l

        def rank(v):
            return np.argsort(np.argsort(v[mine]))

        worst_kept, best_left = (
            f_((rank(f['realism']) + rank(f['logit']))[k])
            for f_, k in ((min, f['kept'][mine]), (max, ~f['kept'][mine]))
        )
        assert (
            worst_kept >= best_left and np.flatnonzero(f['kept'][mine]).tolist() == r['picked'][l]
        )
    by_d = generated(runs, 'by_d', 'both', select='discriminator')['results']
    assert all(
        min(np.array(by_d['logit'][l])[by_d['picked'][l]]) >= np.median(by_d['logit'][l])
        for l in LABELS
    )
    with pytest.raises(InputError, match="select='eye'"):
        generated(runs, 'x', 'both', select='eye')


def classify(runs, arm, name=None, **more):
    return runs(
        'classify',
        name or f'ct_cnn-{arm}',
        arm=arm,
        protocol='ct_report-ct_cnn',
        size=32,
        epochs=1,
        repeats=2,
        splits='fixed',
        copies='keep',
        weights='random',
        **more,
    )['results']['repeats']


def test_arms_leak_only_where_the_name_says_so(runs):
    generated(runs, 'dcgan', 'both')
    generated(runs, 'published', 'leaky')
    held = int(
        (Prepared.open(runs.base / 'prepare' / 'covid_ct' / 'images').table.split != 'train').sum()
    )
    clean, leaky = (
        classify(runs, 'original+generated+kept', n_generated=4),
        classify(runs, 'original+generated+kept@published'),
    )
    assert [len(r['leaked']) for r in (*clean, *leaky)] == [0, 0, held, held]
    assert [r['n_train']['generated'] for r in (clean[0], leaky[0])] == [8, 12] and clean[0][
        'network'
    ] == 'ct_cnn'
    assert (
        clean[0]['test']['id'] == clean[1]['test']['id']
        and clean[0]['test']['y_score'] != clean[1]['test']['y_score']
    )  # one test set, two seeds
    with pytest.raises(InputError, match='the GAN was trained on'):
        classify(runs, 'original+generated+kept', own='published')
    assert named('original+generated+kept@published')[0].leak == 'allow'
    together = classify(
        runs, 'original+generated+kept', 'two-sets', also=['original+generated+kept@published']
    )  # in one process, each with its own set of images
    assert [len(r['leaked']) for r in together] == [0, 0, held, held] and [
        r['test'] for r in together[2:]
    ] == [r['test'] for r in leaky]


def test_images_of_others(runs, tmp_path):
    "A folder in the layout of Loey et al., drawn here; what their GAN saw is not known, and the arm says so."
    shutil.copytree(
        runs.data.parent if runs.data.name == 'COVID-CT' else runs.data, tmp_path / 'data'
    )
    for c in LABELS:
        folder = tmp_path / 'data' / 'COVID-19CGAN' / c
        folder.mkdir(parents=True)
        for i in range(9):
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64), 'uint8')).save(
                folder / f'{i}.png'
            )
    r = runs('collect', 'loey', 'generate', data=str(tmp_path / 'data'))['results']
    assert r['counts'] == {l: 9 for l in LABELS} and r['trained_on'] is None
    first = classify(runs, 'original+generated@loey')[0]
    assert first['leaked'] is None and first['n_train']['generated'] == 18
    classify(runs, 'original')
    r = runs('score', 'loey', classifier='ct_cnn-original', features='pixels', repeats=4)['results']
    assert (
        r['reference']
        == {'train': int((prepared(runs).split == 'train').sum()), 'heldout': 0, 'known': False}
        and r['copies']['distance'] is None
    )


def prepared(runs):
    return Prepared.open(runs.base / 'prepare' / 'covid_ct' / 'images').table


def test_what_a_gan_has_seen_is_not_called_unseen(runs):
    "A GAN of all images, test images among them, is compared with all of them, and there is no threshold for copies; one of the training part leaves the rest unseen."
    generated(runs, 'dcgan', 'both')
    generated(runs, 'published', 'leaky')
    classify(runs, 'original')
    split = prepared(runs).split
    leaky, clean = (
        runs('score', n, classifier='ct_cnn-original', features='pixels', repeats=4)['results']
        for n in ('published', 'dcgan')
    )
    assert leaky['reference'] == {'train': len(split), 'heldout': 0, 'known': True}
    assert (
        leaky['copies']['n']['train'] == leaky['fidelity']['all']['n']['real'] == len(split)
        and leaky['copies']['distance'] is leaky['copies']['ratio'] is None
    )
    assert 'real nearest' not in leaky['similarity'] and all(
        'heldout' not in s['sanity'] for s in leaky['fidelity'].values()
    )
    train, held = int((split == 'train').sum()), int((split != 'train').sum())
    assert clean['reference'] == {'train': train, 'heldout': held, 'known': True} and clean[
        'copies'
    ]['n'] == {'generated': 24, 'train': train, 'heldout': held}
    for s in (clean, leaky):
        assert {l: s['fidelity'][l]['n']['real'] for l in LABELS} == prepared(runs)[
            (split == 'train') | (s is leaky)
        ].label.value_counts().to_dict()
    assert (
        clean['nearest']['sha256']
        == prepared(runs)[split == 'train'].sha256.iloc[clean['nearest']['train']].tolist()
    )


def test_scores_ask_the_classifier_for_the_class(runs):
    generated(runs, 'dcgan', 'both')
    first = classify(runs, 'original')[0]
    assert first['layers'][0]['type'] == 'InputLayer' and any(
        l['detail'] == '128 filters 3×3, stride 1' for l in first['layers']
    )
    r = runs('score', 'dcgan', classifier='ct_cnn-original', repeats=4)['results']
    assert {l: sum(row.values()) for l, row in r['classes']['generated'].items()} == {
        l: 12 for l in LABELS
    }
    real = Prepared.open(runs.base / 'prepare' / 'covid_ct' / 'images').table
    assert sum(sum(row.values()) for row in r['classes']['real test images'].values()) == int(
        (real.split == 'test').sum()
    )
