"""Data sets of several sizes: each a part of the larger ones, its GAN trained on its own training part, the same images for GAN and classifier; then the paper's notebook without engines."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from gan_covid import arms
from gan_covid.notebooks import ROOT, run_notebook
from gan_covid.preprocessing import Prepared
from gan_covid.published import ids, value
from gan_covid.records import InputError, read_json

sys.path.insert(0, str(Path(__file__).parent))
from test_wmlq2022 import FOUR, GAN, draw

SHARES = {
    'larger': [1.0],
    'smaller': [0.5, 0.25],
}  # the smallest takes the images of the GAN of the smaller set, and the records say so


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    work = tmp_path_factory.mktemp('mgv')

    def step(notebook, name, **values):
        takes = dict(
            profile='t', paper='mgv2023', work=str(work), dataset='radiography', name=name, **values
        )
        if notebook == 'prepare':
            takes.pop('name')
        run_notebook(
            ROOT / 'nbs' / 'runs' / f'{notebook}.ipynb',
            work / 'notebooks' / f'{notebook}-{name}.ipynb',
            takes,
        )
        return read_json(work / 't' / 'mgv2023' / notebook / name / 'record.json')

    step.work, step.base = work, work / 't' / 'mgv2023'
    step(
        'prepare',
        'radiography',
        phantoms=26,
        phantom_size=200,
        size=32,
        fit='stretch',
        crop='lungs',
        marks='drop',
        each=dict.fromkeys(FOUR, 14),
        test_each=5,
        val_share=0.25,
    )
    step.gans = {
        n: step('train_stylegan2', n, conditional=True, labels=FOUR, share=s[0], **GAN)
        for n, s in SHARES.items()
    }
    for n in SHARES:
        step('generate', n, model='stylegan2', gans=dict.fromkeys(FOUR, n), per_trained=1.0)
    step.classified = {
        n: step(
            'classify',
            f'{n}-original',
            arm='original',
            also=['original+classical', 'original+generated', 'original+generated+classical'],
            labels=FOUR,
            own=n,
            real_share=s,
            n_generated=-1,
            protocol='ct_report-ct_cnn',
            splits='fixed',
            size=32,
            epochs=1,
            weights='random',
            repeats=2,
        )['results']['repeats']
        for n, s in SHARES.items()
    }
    return step


def training_part(runs, share):
    table = Prepared.open(runs.base / 'prepare' / 'radiography' / 'images').table
    table = arms.subset(table, share, 0) if share < 1 else table
    return table[table.split == 'train']


def test_gan_and_classifier_of_a_size_see_the_same_images(runs):
    for n, shares in SHARES.items():
        part = training_part(runs, shares[0])
        assert set(runs.gans[n]['results']['trained_on']) == set(part.sha256) and {
            r['n_train']['real'] for r in runs.classified[n] if r['share'] == shares[0]
        } == {len(part)}
    assert (
        set(training_part(runs, 0.25).sha256)
        < set(training_part(runs, 0.5).sha256)
        < set(training_part(runs, 1.0).sha256)
    )


def test_what_the_gan_alone_has_seen_is_counted(runs):
    for r in [r for results in runs.classified.values() for r in results]:
        beyond = (
            len(training_part(runs, 0.5)) - len(training_part(runs, 0.25))
            if r['share'] == 0.25 and 'generated' in r['arm']
            else 0
        )
        assert r['gan_only'] == beyond and r['leaked'] == []
        assert r['n_train']['generated'] == (
            r['n_train']['real'] if 'generated' in r['arm'] else 0
        )  # as many as real ones


def test_all_sizes_are_tested_on_the_same_images_that_no_gan_saw(runs):
    table = Prepared.open(runs.base / 'prepare' / 'radiography' / 'images').table
    held = set(table.sha256[table.split == 'test'])
    assert not any(held & set(g['results']['trained_on']) for g in runs.gans.values())
    assert {tuple(r['test']['id']) for results in runs.classified.values() for r in results} == {
        tuple(runs.classified['larger'][0]['test']['id'])
    }
    with pytest.raises(InputError, match='share=2'):
        arms.subset(table, 2.0)


def test_every_table_and_figure(runs, tmp_path):
    made = Prepared.open(runs.base / 'prepare' / 'radiography' / 'images').table
    for (
        n,
        shares,
    ) in SHARES.items():  # each GAN against what it was trained on itself; the rest of the larger set is unseen by the smaller one's
        r, own = (
            runs('score', n, classifier='larger-original', repeats=2, k=2)['results'],
            len(training_part(runs, shares[0])),
        )
        assert (
            r['reference'] == {'train': own, 'heldout': len(made) - own, 'known': True}
            and r['copies']['n']['train'] == r['fidelity']['all']['n']['real'] == own
        )
    items = draw('mgv2023', tmp_path / 'figures', runs.work, tmp_path)
    assert set(ids('mgv2023')) <= set(items) and not any(i['local'] for i in items.values())
    folder = tmp_path / 'figures' / 'mgv2023'

    def read(name):
        return pd.read_csv(folder / f'{name}.csv')

    assert (
        sorted(set(read('T23_results')['images a class']), reverse=True)
        == sorted(
            {round(r['images'] / 4) for c in runs.classified.values() for r in c}, reverse=True
        )
        and len(read('T23_results')) == 3 * 4
    )
    assert (
        set(read('T23_classes')['class']) == set(FOUR)
        and len(read('O17_claim')) == 3
        and {'accuracy, none', 'gain of accuracy by GAN'} <= set(read('O17_correlation').what)
    )
    quoted = read('T23_literature').set_index('work')['value']
    assert (
        quoted['Loey et al. 2020, best (X2)'] == pytest.approx(value('X2', 'best accuracy'))
        and quoted.index.str.contains('X4').sum() == 2
    )
    assert (
        list(read('O17_distance')['real images'])
        == list(read('O17_distance')["of these this GAN's"])
        == [len(training_part(runs, s[0])) for s in SHARES.values()]
    )
    assert {
        'T23_samples_larger.png',
        'T23_samples_smaller.png',
        'O17_accuracy_ct_cnn.png',
        'quality_larger.csv',
    } <= {p.name for p in folder.iterdir()}


def test_notebook_without_records_names_the_command(tmp_path):
    items = draw('mgv2023', tmp_path / 'figures', tmp_path / 'records', tmp_path)
    assert (
        set(ids('mgv2023')) <= set(items)
        and 'make reproduce PAPER=mgv2023' in (tmp_path / 'mgv2023.ipynb').read_text()
    )
