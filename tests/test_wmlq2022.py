"""The run notebooks as the slides of 2022 need them, on phantoms.

A split in the published proportion without marked images, StyleGAN2 for one class and for all, several
arms in one process; then the source's notebook.
"""

import shutil

import numpy as np
import pandas as pd
import pytest
from steps import GAN, Steps, draw
from steps import RADIOGRAPHS as FOUR

from gan_covid import arms, phantoms
from gan_covid.preprocessing import Prepared
from gan_covid.published import ids, value
from gan_covid.records import InputError, find_records, read_json, write_json

pytestmark = pytest.mark.slow
EACH = {'COVID': 12, 'Lung_Opacity': 14, 'Normal': 16, 'Viral Pneumonia': 12}
SIZES = {'size': 32, 'fit': 'stretch', 'crop': 'lungs', 'marks': 'drop', 'val_share': 0.2}
DRAWN = {'phantoms': 26, 'phantom_size': 200}
ONE_EPOCH = {'splits': 'fixed', 'epochs': 1, 'weights': 'random', 'size': 32}


@pytest.fixture(scope='module')
def runs(radiographs):
    "Prepared phantoms, a GAN of the COVID class and one of all classes, and their images."
    steps = Steps(radiographs, 'wmlq2022', 'radiography')
    steps.made = steps.run('prepare', 'radiography', each=EACH, test_each=5, **DRAWN, **SIZES)
    steps.gan = steps.run('train_stylegan2', 'COVID-own', label='COVID', **GAN)
    steps.run('train_stylegan2', 'conditional', conditional=True, labels=FOUR, **GAN)
    gans = {'COVID': 'COVID-own'}
    steps.own = steps.run('generate', 'own', model='stylegan2', gans=gans, per_trained=1.0)
    gans = dict.fromkeys(FOUR, 'conditional')
    more = {'per_trained': 0.5, 'mixing': 3}
    steps.all = steps.run('generate', 'conditional', model='stylegan2', gans=gans, **more)
    return steps


@pytest.fixture(scope='module')
def two_classes(runs):
    "COVID against Normal, five arms in one process, with images of the COVID class's GAN."
    return runs.run(
        'classify',
        'efficientnetb0-original',
        arm='original',
        also=[
            'original+classical',
            'original+generated',
            'original+balanced',
            'original+generated+classical',
        ],
        labels=['COVID', 'Normal'],
        own='own',
        protocol='wmlq2022-efficientnetb0',
        repeats=2,
        family=1,
        **ONE_EPOCH,
    )


FOUR_CLASSES = {'labels': FOUR, 'protocol': 'ct_report-ct_cnn', 'repeats': 1} | ONE_EPOCH


@pytest.fixture(scope='module')
def four_classes(runs):
    "Four classes, four arms in one process, with images of the conditional GAN."
    also = ['original+generated', 'original+balanced', 'original+classical']
    gan = {'own': 'conditional'}
    return runs.run('classify', 'four-original', arm='original', also=also, **gan, **FOUR_CLASSES)


def test_split_in_proportion_and_without_marks(runs):
    r = runs.made['results']
    have = {c: r['found'][c]['images'] - len(r['marked'].get(c, ())) for c in FOUR}
    assert r['factor'] == min(1, *((have[c] - 5) / EACH[c] for c in FOUR))
    crop = {'asked': 'lungs', 'done': 'lungs', 'classes without masks': [], 'whole': 0}
    assert r['missing'] == [] and r['crop'] == crop
    for c in FOUR:
        n = r['counts'][c]
        rest = n['train'] + n['val']
        assert n['test'] == 5 and rest == int(EACH[c] * r['factor'] + 1e-9)
        assert n['val'] == max(1, round(0.2 * rest))


def test_marked_images_are_gone_and_examples_are_kept(runs):
    table, marked = runs.prepared().table, runs.made['results']['marked']
    names = set(table.image.map(lambda f: f.rsplit('/', 1)[-1]))
    assert table.split.notna().all() and marked
    assert not names & {f for files in marked.values() for f in files}
    examples = set(np.load(runs.base / 'prepare' / 'radiography' / 'examples.npz'))
    assert 'examples.npz' in runs.made['files']
    assert {f'{k}/{c}' for k in ('file', 'mask', 'crop', 'prepared') for c in FOUR} <= examples


def test_published_numbers_shrink_together(radiographs):
    each = {c: value('T2', f'train/{c}') for c in ('COVID', 'Normal')}
    steps = Steps(radiographs, 'published', 'radiography')
    made = steps.run('prepare', 'radiography', each=each, test_each=5, **DRAWN, **SIZES)
    r = made['results']
    n = {c: r['counts'][c]['train'] + r['counts'][c]['val'] for c in each}
    assert set(r['counts']) == set(each) and r['factor'] < 0.01
    ratio = each['COVID'] / each['Normal']
    assert n['COVID'] / n['Normal'] == pytest.approx(ratio, abs=0.08)


@pytest.fixture(scope='module')
def part(tmp_path_factory):
    "A copy without a class, and another class without masks, as real images."
    folder = tmp_path_factory.mktemp('part')
    root = phantoms.write('radiography', folder / 'data', 12, size=200, seed=1)
    shutil.rmtree(root / 'Lung_Opacity')
    shutil.rmtree(root / 'Normal' / 'masks')
    (root / 'PHANTOM.txt').unlink(missing_ok=True)
    steps = Steps(folder / 'work', 'part', 'radiography')
    steps.settings = SIZES | {'data': str(folder / 'data'), 'test_each': 2}
    each = dict.fromkeys(FOUR, 8)
    steps.made = steps.run('prepare', 'radiography', each=each, **steps.settings)
    return steps


def test_a_copy_without_masks_is_not_cropped(part):
    "One class cropped and another not would give the class away."
    r = part.made['results']
    assert r['missing'] == ['Lung_Opacity'] and part.made['data']['kind'] == 'real'
    assert r['crop']['done'] == '' and r['crop']['classes without masks'] == ['Normal']
    # a letter at the side is on almost every whole radiograph
    assert r['marks'] == {'asked': 'drop', 'done': 'keep'}
    assert sum(sum(n.values()) for n in r['counts'].values()) == 3 * (8 + 2)
    # real pixels stay out of the record
    assert part.made['files'] == {}
    assert (part.base / 'prepare' / 'radiography' / 'examples.npz').exists()
    with pytest.raises(InputError, match="'Covid' is no class of radiography"):
        part.run('prepare', 'radiography', each={'Covid': 5}, **part.settings)


def test_a_copy_without_a_class_goes_through(part):
    gan = {'conditional': True, 'labels': FOUR} | GAN | {'kimg': 0.016}
    g = part.run('train_stylegan2', 'conditional', **gan)
    assert g['parameters']['labels'] == [c for c in FOUR if c != 'Lung_Opacity']
    gans = dict.fromkeys(FOUR, 'conditional')
    made = part.run('generate', 'conditional', model='stylegan2', gans=gans, per_trained=1.0)
    assert set(made['results']['counts']) == set(g['parameters']['labels'])


def test_snapshots_and_numbers_of_generated_images(runs):
    log = [r['kimg'] for r in runs.gan['results']['log'] if 'distance' in r]
    assert log == [0.016, 0.032, 0.048]
    assert len([f for f in runs.gan['files'] if f.startswith('sheet_')]) == 3
    train = {c: n['train'] for c, n in runs.made['results']['counts'].items()}
    assert runs.own['results']['counts'] == {'COVID': train['COVID']}  # per_trained = 1
    half = {c: max(1, round(0.5 * train[c])) for c in FOUR}
    assert runs.all['results']['counts'] == half
    layers = runs.own['results']['layers']
    assert layers['generator'][-1]['shape'] == [1, 32, 32]
    counted = sum(layer['parameters'] for layer in layers['discriminator'])
    assert counted == runs.gan['results']['parameters']['discriminator']


def test_mixing_truncation_and_interpolation(runs):
    m = np.load(runs.base / 'generate' / 'conditional' / 'styles.npz')
    assert m['labels'].tolist() == FOUR[:3]
    assert m['table'].shape == (3, 3, 32, 32, 1)
    assert not np.array_equal(m['table'][0, 0], m['rows'][0])
    # truncation goes towards the average of each class, not of all
    assert m['psi'][0] == 1 and np.array_equal(m['truncation'][:, 0], m['rows'])
    assert not np.array_equal(m['truncation'][0, -1], m['truncation'][1, -1])
    assert np.array_equal(m['interpolation'][:, 0], m['rows'])
    assert np.array_equal(m['interpolation'][:, -1], m['columns'])


def held_out(runs):
    table = runs.prepared().table
    return set(table.sha256[table.split != 'train'])


def test_no_test_image_reaches_a_gan(runs):
    "The hashes of the test part, looked for in the GANs' records and in the generated sets' notes."
    held = held_out(runs)
    for g in find_records(runs.work, 't', 'wmlq2022', 'train_stylegan2'):
        seen = g['results']['trained_on']
        assert g['results']['seen'] == {'train': len(seen)} and not held & set(seen)
    for g in find_records(runs.work, 't', 'wmlq2022', 'generate'):
        note = read_json(g['folder'] / 'images' / 'prepare.json')['trained_on']
        assert g['results']['test_images_seen'] == 0 and note and not held & set(note)


def test_no_test_image_reaches_a_classifier(runs, two_classes, four_classes):
    "Every training set is built again, and the hashes of the test part are looked for in it."
    held, real = held_out(runs), runs.prepared()
    files = set(real.table.image[real.table.split == 'test'].map(lambda f: f.rsplit('/', 1)[-1]))
    for record, own in ((two_classes, 'own'), (four_classes, 'conditional')):
        sets = {'own': runs.generated(own)}
        for r in record['results']['repeats']:
            assert r['leaked'] == [] and r['gan_only'] == 0 and set(r['test']['id']) <= files
            mine = real.table.label.isin(r['classes']).to_numpy(bool)
            table = real.table[mine].reset_index(drop=True)
            part = Prepared(real.folder, real.images[mine], table, real.info, real.rejected)
            built = arms.build(r['arm'], part, sets, seed=r['seed'])
            assert built.counts() == r['counts'] and not held & set(built.sha256)


def test_balancing_and_generated_images_fill_one_class_only(runs, two_classes):
    first = [r for r in two_classes['results']['repeats'] if r['repeat'] == 0]
    by = {r['arm']: r['counts'] for r in first}
    real = {c: runs.made['results']['counts'][c]['train'] for c in ('COVID', 'Normal')}
    assert {c: n['real'] for c, n in by['original'].items()} == real
    balanced = {c: n['real'] for c, n in by['original+balanced'].items()}
    assert balanced == dict.fromkeys(real, max(real.values()))
    added = {c: n['generated'] for c, n in by['original+generated'].items()}
    assert added == {'COVID': real['COVID'], 'Normal': 0}


def test_arms_in_one_process_are_the_arms_alone(runs, four_classes):
    "What is compiled is shared, nothing else."
    together = {(r['arm'], r['repeat']): r['test'] for r in four_classes['results']['repeats']}
    alone = runs.run('classify', 'alone', arm='original', **FOUR_CLASSES)['results']['repeats']
    assert alone[0]['test'] == together['original', 0] and len(together) == 4


@pytest.fixture(scope='module')
def drawn(runs, two_classes, four_classes, tmp_path_factory):
    """The source's notebook: the folder of its figures, and the entries of its manifest.

    InceptionV3 takes a minute to compile. Here only its diagrams are its own, from a model that is
    built and not trained; its results are those of the other network.
    """
    from gan_covid.classifiers import build_model, graph
    from gan_covid.protocols import protocol

    judge = {'classifier': 'four-original', 'features': 'pixels', 'repeats': 2, 'k': 2}
    for name in ('own', 'conditional'):
        runs.run('score', name, **judge)
    folder = tmp_path_factory.mktemp('wmlq2022')
    mine = folder / 'records' / 't' / 'wmlq2022'
    skipped = shutil.ignore_patterns('alone', '*.keras', '*.safetensors')
    shutil.copytree(runs.base, mine, ignore=skipped)
    layers = graph(build_model(protocol('wmlq2022-inceptionv3', size=75, weights='random'), 2))
    copy = read_json(mine / 'classify' / 'efficientnetb0-original' / 'record.json')
    for r in copy['results']['repeats']:
        r |= {'network': 'inceptionv3', **({'graph': layers} if 'graph' in r else {})}
    name = 'inceptionv3-original'
    write_json(mine / 'classify' / name / 'record.json', {**copy, 'name': name})
    return folder / 'figures', draw('wmlq2022', folder / 'figures', folder / 'records')


def test_every_table_and_figure(drawn):
    items = drawn[1]
    assert set(ids('wmlq2022')) <= set(items) and not any(i['local'] for i in items.values())
    assert all(len(items[i]['files']) > 2 for i in ('T2', 'T5', 'T11', 'O1', 'O3', 'F9'))
    assert all(items[i]['records'] for i in ('F3', 'F8', 'F12', 'F14', 'F20'))


def test_rates_are_named_by_what_they_are(drawn):
    t5 = {v['name']: v for v in drawn[1]['T5']['values']}
    assert t5['TPR']['published'] == 0.74
    assert t5['FNR, printed as "FPR"']['published'] == 0.26
    assert t5['true FPR, from the printed TNR']['published'] == 0
    assert t5['TPR']['verdict'] == 'not comparable'
    mean = t5['mean accuracy']
    assert 0 <= mean['low'] <= mean['reproduced'] <= mean['high'] <= 1


def test_marks_and_contradictions_of_the_source(drawn):
    marks = pd.read_csv(drawn[0] / 'wmlq2022' / 'T2_marks.csv').set_index('class')
    removed = marks['removed in the source'].dropna().to_dict()
    assert removed == {'COVID': 467, 'Normal': 0}
    odd = pd.read_csv(drawn[0] / 'wmlq2022' / 'does_not_add_up.csv')
    assert {'T5', 'T5–T10', 'T2', 'T8, T10'} <= set(odd[odd.verdict != 'holds'].id)


def test_notebook_without_records_names_the_command(tmp_path, capsys):
    items = draw('wmlq2022', tmp_path, tmp_path / 'records')
    assert set(ids('wmlq2022')) <= set(items)
    assert 'make reproduce PAPER=wmlq2022' in capsys.readouterr().out
    assert all(v['reproduced'] is None for v in items['T11']['values'])
