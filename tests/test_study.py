"""A study of your own images: what is refused, the plan, answers that are known, resuming, the page."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gan_covid import cli, phantoms
from gan_covid.notebooks import run_notebook
from gan_covid.records import InputError, read_json
from gan_covid.study import plan as planning
from gan_covid.study.answer import HEADS, decides, needed, worth
from gan_covid.study.measure import KINDS, Kind
from gan_covid.study.plan import Pace, Plan, Study, choose, open_images, partitions
from gan_covid.study.run import study

SIDE = 64
QUICK = {
    'size': SIDE,
    'folds': 2,
    'repeats': 2,
    'runs': 2,
    'seeds': 2,
    'patients': 'none',
    'steps': 60,
}


def disc(label: int, scanner: int, rng, size=SIDE) -> np.ndarray:  # uint8 (size, size)
    """A body with a small bright finding (label 1), or without. Scanner 0 has smooth images; scanner 1 shows
    them as a negative with stripes."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    turn = rng.normal(0, 0.03, 2)
    image = 0.45 * (np.hypot(x - turn[0], 1.3 * (y - turn[1])) < 0.38) + 0.1
    if label:
        at = rng.uniform(-0.2, 0.2, 2)
        image = image + 0.45 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.008)
    image = image + rng.normal(0, 0.04, image.shape)
    if scanner:
        image = 1 - image + 0.12 * np.sign(np.sin(60 * x))
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def write(root, n: dict, scanner=0, seed=0, prefix=''):
    "n images of each class as files; scanner: that of all."
    rng = np.random.default_rng(seed)
    for name, count in n.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = disc(int(name in ('yes', '1')), scanner, rng)
            Image.fromarray(picture).save(root / name / f'{prefix}{i}.png')
    return root


def oracle(scanners=(0, 1), swapped=False):
    "A kind of GAN that draws new images from these scanners; swapped: with the wrong label."

    def draw(job):
        rng = np.random.default_rng(job.seed + 500)
        label = {0: 0, 1: 1}  # classes are ['no', 'yes']
        return [
            np.stack(
                [disc(label[k] ^ swapped, scanners[i % len(scanners)], rng) for i in range(n)]
            )[..., None]
            / np.float32(255)
            for k, n in enumerate(job.wanted)
        ]

    return Kind(draw, lambda plan, n, classes: (0.01, 1e-5))


def copier(job):
    "A GAN that has learned its training images by heart."
    rng = np.random.default_rng(job.seed)
    rows = [np.flatnonzero(job.y == k) for k in range(job.classes)]
    return [job.x[rng.choice(r, n)] / np.float32(255) for r, n in zip(rows, job.wanted)]


def run(root, out, kind=None, **settings):
    "The finished page's text, and answer.json."
    kinds = {'dcgan': kind} if kind else KINDS
    gan = 'dcgan' if kind else ''
    quiet = {'say': lambda line: None, 'kinds': kinds, 'gan': gan}
    page = study(str(root), out=str(out), **{**QUICK, **quiet, **settings})
    return page.read_text(encoding='utf-8'), read_json(out / 'answer.json')


# --- settings


@pytest.mark.parametrize(
    'settings, words',
    [
        ({'gan': 'vae'}, "gan='vae': choose one of"),
        ({'seeds': 1}, 'seeds=1: give 2 or more. One GAN cannot tell'),
        ({'folds': 1}, 'folds=1: give 2 or more'),
        ({'minutes': -1}, 'minutes=-1.0: give 0 or more'),
        ({'minutes': 'soon'}, "minutes='soon': give a number"),
        ({'size': 8}, 'size=8: give 32 or more'),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(InputError, match=re.escape(words)):
        Study('x', **settings)


def test_command_makes_the_same_study():
    asked = Study('my images', gan='cgan', minutes=12.5, no_pixels=True, patients='(P[0-9]+)_')
    words = asked.command
    import shlex

    a = cli._parser().parse_args(shlex.split(words)[1:])
    given = {k: getattr(a, k) for k in cli._STUDY if getattr(a, k) is not None}
    assert Study(a.folder, no_pixels=a.no_pixels, **given) == asked


# --- images


def test_given_split_keeps_patients_and_copies_apart(tmp_path):
    root = tmp_path / 'set'
    write(root / 'train', {'yes': 14, 'no': 14}, prefix='a')
    write(root / 'test', {'yes': 6, 'no': 6}, seed=1, prefix='b')
    shutil.copy(root / 'test/yes/b0.png', root / 'train/yes/copy.png')
    for i in (1, 2):  # the same patient on both sides
        (root / 'train/no' / f'a{i}.png').rename(root / 'train/no' / f'b1-a{i}.png')
    asked = Study(str(root), size=SIDE, patients='(.+?)[.-]', out=str(tmp_path / 'out'))
    found = open_images(asked)
    split = found.prepared.table.split
    assert found.given and split.value_counts().to_dict() == {'train': 26, 'test': 12}
    groups = [set(found.groups[(split == s).to_numpy(bool)]) for s in ('train', 'test')]
    assert not groups[0] & groups[1]
    (left_out,) = [f for f in found.findings if 'left out' in f['what']]
    assert left_out['grave'] and left_out['what'].startswith('3 training images')
    names = pd.read_csv(tmp_path / 'out/names.csv')
    assert set(found.prepared.table.image) <= set(names.id)


def test_validation_is_the_test_part_where_there_is_none(tmp_path):
    for part, n in (('train', 12), ('val', 6)):
        write(tmp_path / 'set' / part, {'yes': n, 'no': n}, seed=n)
    found = open_images(Study(str(tmp_path / 'set'), size=SIDE, out=str(tmp_path / 'out')))
    assert found.prepared.table.split.value_counts().to_dict() == {'train': 24, 'test': 12}
    assert any('validation part is the test part' in f['what'] for f in found.findings)


def test_folds_hold_whole_patients_and_every_image_is_tested_once(tmp_path):
    root = tmp_path / 'set'
    rng = np.random.default_rng(0)
    for name in ('yes', 'no', 'other'):
        (root / name).mkdir(parents=True)
        for i in range(24):
            path = root / name / f'{name[0]}{i // 3}_{i}.png'
            Image.fromarray(disc(int(name == 'yes'), 0, rng)).save(path)
    asked = Study(str(root), size=SIDE, patients='(.+)_', out=str(tmp_path / 'out'))
    found = open_images(asked)
    assert len(np.unique(found.groups)) == 24 and found.classes == ['no', 'other', 'yes']
    plan = Plan('folds', 'accuracy', folds=4, repeats=3)
    for splits in partitions(found, plan):
        assert sum((s == 'test').astype(int) for s in splits).tolist() == [1] * 72
        for s in splits:
            assert not set(found.groups[s == 'train']) & set(found.groups[s == 'test'])
    one = partitions(found, Plan('one', 'accuracy'))
    assert len(one) == len(one[0]) == 1 and (one[0][0] == 'test').sum() == 18


def test_a_class_of_one_patient_cannot_be_parted(tmp_path):
    root = write(tmp_path / 'set', {'yes': 12, 'no': 12})
    for i in range(12):
        (root / 'yes' / f'{i}.png').rename(root / 'yes' / f'p_{i}.png')
        (root / 'no' / f'{i}.png').rename(root / 'no' / f'q{i}_{i}.png')
    found = open_images(Study(str(root), size=SIDE, patients='(.+)_', out=str(tmp_path / 'out')))
    with pytest.raises(InputError, match='belong together.*Add images of other patients'):
        planning.designs(Study(str(root)), found)


@pytest.mark.parametrize(
    'n, words',
    [({'yes': 12}, 'one class only'), ({'yes': 12, 'no': 4}, "class 'no' has 4 images. Add some")],
)
def test_folders_that_cannot_be_studied(tmp_path, n, words, capsys):
    root = write(tmp_path / 'set', n)
    assert cli.main(['study', str(root), '--out', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1


# --- the plan


@pytest.fixture(scope='module')
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plan')
    root = write(folder / 'set', {'yes': 40, 'no': 80})
    return open_images(Study(str(root), size=SIDE, patients='none', out=str(folder / 'out')))


@pytest.mark.parametrize('minutes', [5, 20, 60, 200, 0])
def test_plan_fits_the_minutes(material, minutes):
    pace = Pace(0.01, 0.5, 0.6, 8.0, 0.08)
    asked = Study('x', gan='dcgan', minutes=minutes)
    plan = choose(asked, material, pace)
    least, enough = planning.LENGTHS['dcgan']
    whole = sum(planning.expected(plan, material, pace).values())
    assert plan.metric == 'macro_recall'  # twice as many of one class
    if minutes:
        assert whole <= 60 * minutes or plan.length < least
    else:
        assert plan.length == enough and plan.folds == 5 and plan.side == 64


def test_more_minutes_never_see_less(material):
    pace = Pace(0.01, 0.5, 0.6, 8.0, 0.08)
    seen = [
        planning.foreseen(material, choose(Study('x', gan='dcgan', minutes=m), material, pace))
        for m in (5, 20, 60, 200)
    ]
    assert seen == sorted(seen, reverse=True) and seen[0] > 1.3 * seen[-1]


# --- words


def test_classes_a_floor_deeper_are_named(tmp_path):
    "What an archive unpacks to: set/set/images/yes, no."
    inner = tmp_path / 'set' / 'set' / 'images'
    write(inner, {'yes': 12, 'no': 12})
    with pytest.raises(InputError, match=re.escape(f'Give {inner}')):
        open_images(Study(str(tmp_path / 'set'), out=str(tmp_path / 'out')))


def test_a_shortcut_is_warned_of_once():
    "The data report finds it in the files, the study in its own images: the answer has the second."
    said = {'severity': 'serious', 'said': '', 'do': '', 'names': []}
    assert not planning._spoils(said | {'kind': 'frame alone'})
    assert planning._spoils(said | {'kind': 'one patient in two parts'})
    note = said | {'severity': 'note', 'kind': 'form alone'}
    assert not planning._spoils(note) and planning._spoils(note | {'severity': 'look'})


def test_what_decides_is_enough():
    row = {'difference': 0.03, 'images': 6e-4, 'runs': 2e-5, 'gans': 3e-5}
    found = needed(row, 0.03, 100, 3)
    allowed = (0.03 / 2.8) ** 2
    assert row['images'] / (1 + found['images'] / 100) + 5e-5 == pytest.approx(allowed)
    images, units = found['both']
    assert row['images'] / (1 + images / 100) + 5e-5 / (1 + units / 3) <= allowed * 1.0001
    assert 'more test images' in decides(row, 100, 3, 'GANs')
    loud = row | {'gans': 5e-3}
    assert re.search(r'\d+ more test images and \d+ more GANs', decides(loud, 100, 3, 'GANs'))


def test_a_study_that_is_large_enough_asks_for_nothing_in_vain():
    "Ten in a thousand could be seen, and nothing was: no more images of the same number are asked for."
    said = decides(
        {'difference': 0.001, 'images': 1e-5, 'runs': 1e-6, 'gans': 1e-6}, 900, 3, 'GANs'
    )
    assert 'as they are' in said and ' 0 ' not in said


def test_worth_is_read_from_the_curve():
    curve = pd.DataFrame(
        {'images': [25, 50, 75, 100], 'mean': 0.5 + 0.05 * np.log2([25, 50, 75, 100])}
    )
    assert 'about 100 more' in worth(0.05 - 1e-9, curve)
    assert 'if it is a true one' in worth(0.02, curve, sure=False)


# --- answers that are known


@pytest.fixture(scope='module')
def two_scanners(tmp_path_factory):
    "Training images of one scanner, test images of two: only what draws the other one can help."
    root = tmp_path_factory.mktemp('scanners') / 'set'
    write(root / 'train', {'yes': 30, 'no': 30}, 0, 1)
    write(root / 'test', {'yes': 40, 'no': 40}, 0, 2)
    write(root / 'test', {'yes': 60, 'no': 60}, 1, 3, 'other')
    return root


@pytest.mark.slow
def test_images_that_cover_what_the_test_has_help(two_scanners, tmp_path):
    page, found = run(two_scanners, tmp_path / 'out', oracle())
    first = found['rows'][0]
    assert found['head'] == 'Helps' and first['arm'] == 'original+generated'
    assert first['low'] > 0 and first['role'] == 'primary'
    assert '<strong>Helps.</strong>' in page and found['decide'].endswith('decided.')


@pytest.mark.slow
def test_images_with_wrong_labels_harm(two_scanners, tmp_path):
    page, found = run(two_scanners, tmp_path / 'out', oracle((0,), swapped=True))
    assert found['head'] == 'Harms' and found['rows'][0]['high'] < 0


@pytest.mark.slow
def test_images_known_by_heart_cannot_help_and_are_found(tmp_path):
    root = write(tmp_path / 'set', {'yes': 40, 'no': 40})
    kind = Kind(copier, lambda plan, n, classes: (0.01, 1e-5))
    page, found = run(root, tmp_path / 'out', kind, seeds=3)
    assert found['head'] in ('Cannot be told', 'Makes no difference that matters')
    low, high = (found['rows'][0][k] for k in ('low', 'high'))
    assert low <= 0 <= high
    assert any('are equal to one' in c and 'do not pass them on' in c for c in found['cautions'])


@pytest.mark.slow
def test_a_frame_that_tells_the_class_is_named(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / 'set'
    for name in ('yes', 'no'):
        (root / name).mkdir(parents=True)
        for i in range(24):
            picture = disc(0, 0, rng)
            if name == 'yes':
                picture[:3] = 250
            Image.fromarray(picture).save(root / name / f'{i}.png')
    page, found = run(root, tmp_path / 'out')
    assert any('The frame (the outermost pixels)' in c for c in found['cautions'])


@pytest.mark.slow
def test_without_a_gan_the_answer_is_exploratory(tmp_path):
    root = write(tmp_path / 'set', {'yes': 20, 'no': 20})
    page, found = run(root, tmp_path / 'out')
    assert found['head'] in HEADS.values() and 'exploratory' in found['sure']
    assert {r['arm'] for r in found['rows']} == {'original', 'original+mixup', 'original+classical'}
    assert found['rows'][0]['arm'] == 'original+classical'


# --- resuming


@pytest.mark.slow
def test_killed_study_goes_on_where_it_was(tmp_path):
    root, drawn = write(tmp_path / 'set', {'yes': 16, 'no': 16}), []
    good = oracle()

    def dies(job):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(job.seed)
        return good.draw(job)

    def counts(job):
        drawn.append(job.seed)
        return good.draw(job)

    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / 'out', Kind(dies, good.pace))
    _, found = run(root, tmp_path / 'out', Kind(counts, good.pace))
    assert len(drawn) == 4  # two partitions of two folds, each trained once
    _, whole = run(root, tmp_path / 'whole', good)
    assert found['rows'] == whole['rows'] and found['levels'] == whole['levels']
    _, again = run(root, tmp_path / 'out', Kind(None, None))
    assert again == found


@pytest.mark.slow
def test_other_images_are_measured_anew(tmp_path):
    root = write(tmp_path / 'set', {'yes': 16, 'no': 16})
    _, first = run(root, tmp_path / 'out')
    write(root, {'yes': 4, 'no': 4}, seed=9, prefix='more')
    _, second = run(root, tmp_path / 'out')
    assert first['rows'] != second['rows']


# --- the page


@pytest.mark.slow
def test_page_holds_no_names_and_asks_nothing_of_the_network(tmp_path):
    root = write(tmp_path / 'set', {'yes': 16, 'no': 16}, prefix='Schmidt_19520301_')
    page, found = run(root, tmp_path / 'out', oracle(), no_pixels=True)
    shown = ''.join(
        p.read_text() for p in (tmp_path / 'out').glob('*.[ch]*') if p.name != 'names.csv'
    )
    assert 'Schmidt' not in page + shown + (tmp_path / 'out/answer.json').read_text()
    assert 'Schmidt' in (tmp_path / 'out/names.csv').read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert 'No image of the set is on this page' in page and 'nearest' not in re.sub(
        'base64[^"]*', '', page
    )
    embedded = re.search(r'href="data:application/json;base64,([^"]+)"', page)[1]
    import base64

    assert json.loads(base64.b64decode(embedded))['head'] == found['head']


@pytest.mark.slow
def test_phantoms_are_called_so(tmp_path):
    root = phantoms.write('head_ct', tmp_path / 'drawn', 12, size=64)
    labels = next(root.rglob('labels.csv'))
    page, found = run(root, tmp_path / 'out', labels=str(labels))
    assert 'drawn phantoms, not patients' in found['cautions'][0]


# --- from a shell and a notebook


@pytest.mark.slow
def test_dry_run_stops_after_the_plan(tmp_path, capsys):
    root = write(tmp_path / 'set', {'yes': 16, 'no': 16})
    command = [
        'study',
        str(root),
        '--size',
        '64',
        '--folds',
        '2',
        '--repeats',
        '2',
        '--patients',
        'none',
    ]
    assert cli.main([*command, '--out', str(tmp_path / 'out'), '--dry-run']) == 0
    said = capsys.readouterr().out
    assert 'smallest difference' in said and 'together about' in said
    assert (tmp_path / 'out/plan.json').exists() and not (tmp_path / 'out/index.html').exists()


@pytest.mark.slow
def test_notebook_does_the_same(tmp_path):
    root = write(tmp_path / 'set', {'yes': 16, 'no': 16})
    values = {**QUICK, 'folder': str(root), 'out': str(tmp_path / 'out')}
    run_notebook('nbs/runs/study.ipynb', tmp_path / 'run.ipynb', values, cwd='.')
    _, found = run(root, tmp_path / 'again')
    assert read_json(tmp_path / 'out/answer.json')['rows'] == found['rows']


@pytest.mark.slow
@pytest.mark.parametrize('gan', ['dcgan', 'cgan', 'stylegan2'])
def test_real_gans_end_to_end(tmp_path, gan, monkeypatch):
    "Trained for moments: what is tested is the way, not the pictures."
    monkeypatch.setitem(planning.LENGTHS, gan, (0.1, 0.1) if gan == 'stylegan2' else (1, 6))
    root, said = write(tmp_path / 'set', {'yes': 18, 'no': 18}), []
    # with less time than `planning.LONG` GANs draw 32 × 32 pixels
    settings = {**QUICK, 'gan': gan, 'minutes': 200, 'out': str(tmp_path / 'out')}
    page = study(str(root), say=said.append, **settings)
    found = read_json(tmp_path / 'out/answer.json')
    assert found['rows'][0]['arm'] == 'original+generated' and len(found['gans']) == 4
    assert all(np.isfinite(g['quality']['generated']['kid']) for g in found['gans'])
    assert any(line.startswith('GAN 2 of 2, fold 2 of 2') for line in said)
    assert page.stat().st_size < 2_000_000


@pytest.mark.slow
def test_head_ct_rearranged(real_data, tmp_path):
    "Forty and sixty slices of head CT in folders of other names."
    folder = real_data / 'head_ct_hemorrhage'
    table = pd.read_csv(folder / 'labels.csv').rename(columns=str.strip)
    for label, name, n in ((1, 'bleeding', 40), (0, 'healthy', 60)):
        (tmp_path / 'set' / name).mkdir(parents=True)
        for i in table.id[table.hemorrhage == label].tolist()[:n]:
            shutil.copy(
                folder / 'head_ct' / f'{i:03}.png', tmp_path / 'set' / name / f'slice_{i:03}.png'
            )
    page, found = run(tmp_path / 'set', tmp_path / 'out', size=128)
    network = [r for r in found['levels'] if r['arm'] == 'original' and r['share'] == 1]
    assert 0.7 < next(r['mean'] for r in network if 'Lite0' in r['network']) < 0.95
    assert any('By size, format' in c for c in found['cautions'])
