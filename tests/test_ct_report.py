"""The run notebooks as the CT report needs them, each of them small, on phantoms.

A conditional GAN, a GAN that saw the test images, other people's images, a fixed split.
"""

import shutil

import numpy as np
import pytest
from PIL import Image
from steps import Steps

from gan_covid import phantoms
from gan_covid.arms import named
from gan_covid.records import InputError

pytestmark = pytest.mark.slow
LABELS = ['COVID', 'NonCOVID']
CLEAN, LEAKY = 'original+generated+kept', 'original+generated+kept@published'


class Report(Steps):
    "The steps of the report, small."

    def train(self, name, images):
        return self.run(
            'train_dcgan',
            name,
            conditional=True,
            labels=LABELS,
            images=images,
            networks='cgan_32',
            epochs=1,
            batch=8,
            gradient_penalty=0.0,
            real_noise=0.0,
            invert_labels=False,
            sheets=1,
            sheet_images=16,
        )

    def draw(self, name, gan, **more):
        settings = {'per_class': 12, 'select': 'both', 'keep': 0.5} | more
        return self.once('generate', name, gans=dict.fromkeys(LABELS, gan), **settings)['results']

    def classify(self, name, arm, **more):
        "The repeats of a classifier, of one epoch each."
        settings = {'protocol': 'ct_report-ct_cnn', 'size': 32, 'epochs': 1, 'weights': 'random'}
        settings |= {'splits': 'fixed', 'copies': 'keep', 'repeats': 2} | more
        return self.once('classify', name, arm=arm, **settings)['results']['repeats']

    def score(self, name, features='pixels'):
        judge = {'classifier': 'original', 'features': features, 'repeats': 4}
        return self.once('score', name, **judge)['results']

    def split(self):
        return self.prepared().table.split


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Prepared images, one conditional GAN of the training part and one of all images, their images,
    and the classifier of the real ones that scores ask."""
    work = tmp_path_factory.mktemp('ct')
    report = Report(work, 'ct_report', 'covid_ct')
    report.data = phantoms.write('covid_ct', work / 'data', 24, size=96, seed=0)
    report.made = report.run(
        'prepare', 'covid_ct', data=str(work / 'data'), size=32, split='published'
    )
    report.gans = {n: report.train(n, part) for n, part in (('both', 'train'), ('leaky', 'all'))}
    report.sets = {n: report.draw(n, g) for n, g in (('dcgan', 'both'), ('published', 'leaky'))}
    report.original = report.classify('original', 'original')
    return report


def test_official_split_is_kept(runs):
    r = runs.made['results']
    assert runs.made['parameters']['split'] == 'published'
    assert set(r['counts']) == set(LABELS)
    assert all(set(c) == {'train', 'val', 'test'} for c in r['counts'].values())
    assert r['left_out'] == [] and r['crossing'] == []
    assert set(r['patients_by_part']) == set(LABELS)
    assert r['patients'] >= max(sum(c.values()) for c in r['patients_by_part'].values())


def test_gans_and_what_they_saw(runs):
    split = runs.split().value_counts()
    for name, parts in (('both', ['train']), ('leaky', ['train', 'val', 'test'])):
        r = runs.gans[name]
        assert (r['parameters']['labels'], r['parameters']['classes']) == (LABELS, 2)
        assert r['results']['seen'] == {s: int(split[s]) for s in parts}


def test_picked_images(runs):
    r = runs.sets['dcgan']
    f = np.load(runs.base / 'generate' / 'dcgan' / 'images.npz')
    assert r['kept'] == dict.fromkeys(LABELS, 6) and r['test_images_seen'] == 0
    assert f['images'].shape == (24, 32, 32, 1)
    for label in LABELS:  # the best sums of two ranks
        mine = f['label'] == label
        realism, logit = (np.argsort(np.argsort(f[k][mine])) for k in ('realism', 'logit'))
        best, kept = realism + logit, f['kept'][mine]
        assert min(best[kept]) >= max(best[~kept])
        assert np.flatnonzero(kept).tolist() == r['picked'][label]


def test_images_picked_by_the_discriminator(runs):
    r = runs.draw('by_d', 'both', select='discriminator')
    for label in LABELS:
        logit = np.array(r['logit'][label])
        assert min(logit[r['picked'][label]]) >= np.median(logit)
    with pytest.raises(InputError, match="select='eye'"):
        runs.draw('x', 'both', select='eye')


def test_arms_leak_only_where_the_name_says_so(runs):
    held = int((runs.split() != 'train').sum())
    leaky = runs.classify('leaky', LEAKY)
    both = runs.classify('clean-and-leaky', CLEAN, also=[LEAKY])
    # in one process, each with its own set of images
    assert [len(r['leaked']) for r in both] == [0, 0, held, held]
    assert [r['test'] for r in both[2:]] == [r['test'] for r in leaky]
    assert [r['n_train']['generated'] for r in both] == [12] * 4
    assert both[0]['network'] == 'ct_cnn'
    # one test set, two seeds
    assert both[0]['test']['id'] == both[1]['test']['id']
    assert both[0]['test']['y_score'] != both[1]['test']['y_score']
    assert named(LEAKY)[0].leak == 'allow'
    with pytest.raises(InputError, match='the GAN was trained on'):
        runs.classify('refused', CLEAN, own='published')


def test_number_of_generated_images(runs):
    (r,) = runs.classify('few', CLEAN, n_generated=4, repeats=1)
    assert r['n_train']['generated'] == 8 and r['leaked'] == []


def test_images_of_others(runs, tmp_path):
    "A folder in the layout of Loey et al., drawn here; what their GAN saw is not known, and the arm says so."
    shutil.copytree(runs.work / 'data', tmp_path / 'data')
    for c in LABELS:
        folder = tmp_path / 'data' / 'COVID-19CGAN' / c
        folder.mkdir(parents=True)
        for i in range(9):
            noise = np.random.default_rng(i).integers(0, 256, (64, 64), 'uint8')
            Image.fromarray(noise).save(folder / f'{i}.png')
    r = runs.run('collect', 'loey', 'generate', data=str(tmp_path / 'data'))['results']
    assert r['counts'] == dict.fromkeys(LABELS, 9) and r['trained_on'] is None
    (first,) = runs.classify('loey', 'original+generated@loey', repeats=1)
    assert first['leaked'] is None and first['n_train']['generated'] == 18
    r, train = runs.score('loey'), int((runs.split() == 'train').sum())
    assert r['reference'] == {'train': train, 'heldout': 0, 'known': False}
    assert r['copies']['distance'] is None


def test_a_gan_of_all_images_leaves_none_unseen(runs):
    "It is compared with all of them, and there is no threshold for copies."
    r, n = runs.score('published'), len(runs.split())
    assert r['reference'] == {'train': n, 'heldout': 0, 'known': True}
    assert r['copies']['n']['train'] == r['fidelity']['all']['n']['real'] == n
    assert r['copies']['distance'] is r['copies']['ratio'] is None
    assert 'real nearest' not in r['similarity']
    assert all('heldout' not in s['sanity'] for s in r['fidelity'].values())
    counts = runs.prepared().table.label.value_counts().to_dict()
    assert {label: r['fidelity'][label]['n']['real'] for label in LABELS} == counts


def test_a_gan_of_the_training_part_leaves_the_rest_unseen(runs):
    r, table = runs.score('dcgan', 'classifier'), runs.prepared().table
    part = table[table.split == 'train']
    train, held = len(part), len(table) - len(part)
    assert r['reference'] == {'train': train, 'heldout': held, 'known': True}
    assert r['copies']['n'] == {'generated': 24, 'train': train, 'heldout': held}
    counts = part.label.value_counts().to_dict()
    assert {label: r['fidelity'][label]['n']['real'] for label in LABELS} == counts
    nearest = part.sha256.iloc[r['nearest']['train']].tolist()
    assert r['nearest']['sha256'] == nearest


def test_scores_ask_the_classifier_for_the_class(runs):
    layers = runs.original[0]['layers']
    assert layers[0]['type'] == 'InputLayer'
    assert any(layer['detail'] == '128 filters 3×3, stride 1' for layer in layers)
    seen = runs.score('dcgan', 'classifier')['classes']
    asked = {label: sum(row.values()) for label, row in seen['generated'].items()}
    assert asked == dict.fromkeys(LABELS, 12)
    tested = sum(sum(row.values()) for row in seen['real test images'].values())
    assert tested == int((runs.split() == 'test').sum())
