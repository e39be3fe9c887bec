"""Phantoms: anatomy that can be checked, findings that differ in kind and not in brightness, and files that
`datasets` reads as it reads the real sets."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import label as connected

from gan_covid import phantoms
from gan_covid.anatomy.chest_ct import OTHERS
from gan_covid.anatomy.chest_xray import LOBES
from gan_covid.anatomy.head_ct import BLEEDS
from gan_covid.datasets.public import load
from gan_covid.datasets.table import COLUMNS
from gan_covid.phantoms import (
    BEGUN,
    CLASSES,
    FOLDERS,
    MARKER,
    NOTICE,
    draw,
    draw_one,
    is_phantom,
    write,
)
from gan_covid.reading import read_image, read_mask
from gan_covid.records import InputError, sha256_file

KIND_LABEL = [(kind, label) for kind, labels in CLASSES.items() for label in labels]

# --- random numbers ---


@pytest.mark.parametrize('kind,label', KIND_LABEL)
def test_an_image_depends_on_its_number_only(kind, label):
    images, masks = draw(kind, label, 4, 48, seed=5, return_mask=True)
    assert images.dtype == np.uint8 and masks.dtype == bool
    assert (draw(kind, label, 2, 48, seed=5) == images[:2]).all()
    alone = draw_one(kind, label, 3, 48, seed=5)
    assert (alone.image == images[3]).all() and (alone.mask == masks[3]).all()
    others = draw(kind, label, 4, 48, seed=6)
    assert len({im.tobytes() for im in (*images, *others)}) == 8


def test_global_random_numbers_are_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    draw('chest_ct', 'COVID', 2, 32)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize('kind,label', KIND_LABEL)
def test_the_same_picture_at_another_size(kind, label):
    for i in range(3):
        small, large = (draw_one(kind, label, i, size, marks=0) for size in (64, 256))
        image, mask = (a.reshape(64, 4, 64, 4).mean((1, 3)) for a in (large.image, large.mask))
        assert np.corrcoef(image.ravel(), small.image.ravel())[0, 1] > 0.9
        assert (mask > 0.5).sum() == pytest.approx(small.mask.sum(), rel=0.06)
        assert large.note == small.note


def test_no_two_classes_share_bodies():
    "else a healthy twin in the training set would give the sick one in the test set away"
    masks = [
        draw('chest_xray', label, 3, 64, return_mask=True)[1] for label in CLASSES['chest_xray']
    ]
    assert len({m.tobytes() for ms in masks for m in ms}) == 12


# --- anatomy and findings ---


def test_xray_anatomy():
    """Lungs are dark and in two parts, the right one (on the left of the image) larger, its dome higher; the
    heart is to the image's right."""
    larger = higher = heart = 0
    n = 30
    for i in range(n):
        d = draw_one('chest_xray', 'Normal', i, 128, marks=0)
        lungs, _ = connected(d.mask)
        sizes = np.bincount(lungs.ravel())[1:]
        assert (sizes > 300).sum() == 2
        both = np.argsort(sizes)[-2:] + 1
        one, two = sorted(both, key=lambda v: np.nonzero(lungs == v)[1].mean())
        larger += (lungs == one).sum() > (lungs == two).sum()

        dome = []
        for v, beside_the_heart in ((one, (0.2, 0.4)), (two, (0.6, 0.8))):
            first, last = np.quantile(np.nonzero(lungs == v)[1], beside_the_heart).astype(int)
            dome.append(min(np.nonzero(lungs[:, c] == v)[0].max() for c in range(first, last)))
        higher += dome[0] < dome[1]

        def gap(share):
            "Where the lungs are apart, in the row below so much of them."
            row = lungs[int(np.quantile(np.nonzero(d.mask)[0], share))]
            return (np.nonzero(row == one)[0].max() + np.nonzero(row == two)[0].min()) / 2

        heart += gap(0.75) > gap(0.2)
        assert d.image[d.mask].mean() < d.image[~d.mask & (d.image > 30)].mean() - 30
    assert larger > 0.9 * n and higher > 0.8 * n and heart > 0.8 * n


def test_findings_differ_in_kind():
    "COVID: both lungs, near the ribs; opacity: one side; viral: both sides, everywhere; normal: nothing."
    both, edge, spread = {}, {}, {}
    for label in CLASSES['chest_xray']:
        sides, centre, area = [], [], []
        for i in range(25):
            d = draw_one('chest_xray', label, i, 64, marks=0)
            sick = d.finding & d.mask
            columns = np.nonzero(sick)[1]
            sides.append(min((columns < 32).sum(), (columns >= 32).sum()))
            area.append(sick.sum() / d.mask.sum())
            if len(columns):
                centre.append(abs(columns - 31.5).mean() - abs(np.nonzero(d.mask)[1] - 31.5).mean())
        both[label] = np.mean(np.array(sides) > 3)
        spread[label] = np.mean(area)
        edge[label] = np.mean(centre) if centre else 0
    assert spread.pop('Normal') == 0 and min(spread.values()) > 0.05
    assert both['COVID'] > 0.8 and both['Viral Pneumonia'] > 0.8 and both['Lung_Opacity'] == 0
    assert edge['COVID'] > edge['Viral Pneumonia'] + 1


@pytest.mark.parametrize(
    'kind, label, n, expected',
    [
        ('head_ct', 'hemorrhage', 60, {f'{kind} bleeding' for kind in BLEEDS}),
        ('chest_ct', 'NonCOVID', 80, set(OTHERS)),
        ('chest_xray', 'Lung_Opacity', 60, {f'consolidation, {lobe} lobe' for lobe in LOBES}),
    ],
)
def test_every_finding_comes_up(kind, label, n, expected):
    assert {draw_one(kind, label, i, 32).note for i in range(n)} == expected


def test_bleeds_can_be_seen_at_32_pixels():
    for i in range(40):
        d = draw_one('head_ct', 'hemorrhage', i, 32, marks=0)
        assert d.finding.sum() >= 4, i
        assert d.image[d.finding].mean() > d.image[d.mask & ~d.finding].mean() + 15, i


def test_marks_come_with_their_probability_and_place():
    assert not any(draw_one('chest_xray', 'Normal', i, 64, marks=0).marks.any() for i in range(20))
    marked = [draw_one('head_ct', 'normal', i, 64, marks=0.5).marks.any() for i in range(100)]
    assert 0.3 < np.mean(marked) < 0.65
    for kind, label in KIND_LABEL:
        a, b = (draw_one(kind, label, 1, 96, marks=marks) for marks in (0, 1))
        differ = np.abs(a.image.astype(int) - b.image) > 0.15 * 255
        assert b.marks.any() and b.marks[differ].all() and (a.mask == b.mask).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind, size, least', [('chest_xray', 64, 0.5), ('chest_ct', 64, 0.57), ('head_ct', 32, 0.6)]
)
def test_the_picture_tells_the_class(kind, size, least):
    "A logistic regression on pixels and gradients is right more often than chance; brightness is not."
    from skimage.feature import hog
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n, labels = 120, CLASSES[kind]
    x = np.concatenate([draw(kind, label, n, size, seed=3) for label in labels])
    y, train = np.repeat(np.arange(len(labels)), n), np.tile(np.arange(n) < 0.7 * n, len(labels))
    pixels = x.reshape(len(x), size // 2, 2, size // 2, 2).mean((2, 4)).reshape(len(x), -1) / 255
    gradients = [hog(im, pixels_per_cell=(8, 8), cells_per_block=(1, 1)) for im in x]
    features = np.concatenate([pixels, gradients], 1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    accuracy = model.fit(features[train], y[train]).score(features[~train], y[~train])
    assert least < accuracy < 0.97


def test_speed():
    "200 images a second at 64×64 on two cores; processor time of one core, with room for slow machines"
    for kind, labels in CLASSES.items():
        draw(kind, labels[0], 3)
        start = time.process_time()
        for label in labels:
            draw(kind, label, 20)
        assert 20 * len(labels) / (time.process_time() - start) > 60, kind


# --- bad parameters ---


@pytest.mark.parametrize(
    'bad,says',
    [
        (dict(kind='mri'), "kind='mri'"),
        (dict(label='flu'), "label='flu'"),
        (dict(n=-1), 'n=-1'),
        (dict(n=1.5), 'n=1.5'),
        (dict(size=0), 'size=0'),
        (dict(size=(64,)), 'size=(64,)'),
        (dict(size='big'), "size='big'"),
        (dict(seed=-3), 'seed=-3'),
        (dict(seed=0.5), 'seed=0.5'),
        (dict(marks=1.2), 'marks=1.2'),
        (dict(marks='no'), "marks='no'"),
    ],
)
def test_bad_parameters(bad, says):
    with pytest.raises(InputError) as e:
        draw(**{**dict(kind='chest_xray', label='Normal', n=1), **bad})
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'bad,says',
    [
        (dict(name='mnist'), "name='mnist'"),
        (dict(n_per_class=0), 'n_per_class=0'),
        (dict(n_per_class={'flu': 3}), 'no class flu'),
        (dict(n_per_class={'normal': -3}), 'n_per_class'),
        (dict(size=3), 'size=3'),
        (dict(seed='a'), "seed='a'"),
    ],
)
def test_bad_parameters_of_write_leave_nothing_behind(tmp_path, bad, says):
    with pytest.raises(InputError) as e:
        write(**{**dict(name='head_ct', folder=tmp_path, n_per_class=1, size=32), **bad})
    assert says in str(e.value) and not list(tmp_path.iterdir())


# --- files in the layouts of the real sets ---


def everything(root):
    "{file: hash}, without Excel sheets, which hold the time."
    files = [p for p in sorted(root.rglob('*')) if p.is_file() and p.suffix != '.xlsx']
    return {p.relative_to(root).as_posix(): sha256_file(p) for p in files}


@pytest.mark.parametrize('name, n', [('radiography', 11), ('covid_ct', 21), ('head_ct', 21)])
def test_written_files_do_not_depend_on_workers(tmp_path, name, n):
    "One process or two: the same files."
    one, two = (write(name, tmp_path / f'{w}', n, size=32, workers=w) for w in (1, 2))
    assert everything(one) == everything(two)
    assert (one / NOTICE).read_text().startswith('These images are DRAWINGS')
    assert is_phantom(one) and not is_phantom(tmp_path) and not (one / BEGUN).exists()
    parameters = json.loads((one / MARKER).read_text())
    assert parameters['n_per_class'] == {label: n for label in CLASSES[phantoms.KINDS[name]]}


def test_layout_of_radiography(tmp_path):
    root = write('radiography', tmp_path, {'Normal': 2, 'Viral Pneumonia': 1})
    drawn = ('Normal', 1), ('Normal', 2), ('Viral Pneumonia', 1)
    expected = {f'{c}/{part}/{c}-{i}.png' for c, i in drawn for part in ('images', 'masks')}
    assert {p.relative_to(root).as_posix() for p in root.rglob('*.png')} == expected
    assert Image.open(root / 'Normal/images/Normal-1.png').size == (299, 299)
    mask = Image.open(root / 'Normal/masks/Normal-1.png')
    assert mask.size == (256, 256) and mask.mode == 'RGB' and set(np.unique(mask)) == {0, 255}
    sheet = pd.read_excel(root / 'Normal.metadata.xlsx')
    assert list(sheet) == ['FILE NAME', 'FORMAT', 'SIZE', 'URL']
    assert sheet['FILE NAME'].tolist() == ['NORMAL-1', 'NORMAL-2'] and sheet['SIZE'][0] == '256*256'


def test_layout_of_covid_ct(tmp_path):
    root = write('covid_ct', tmp_path, 30, size=32)
    covid, other = (
        sorted((root / 'Images-processed').glob(f'CT_{label}/*')) for label in ('COVID', 'NonCOVID')
    )
    names = [p.name for p in covid]
    assert len(covid) == len(other) == 30
    assert any('%' in name for name in names) and max(map(len, names)) > 100
    seen = {(p.suffix, Image.open(p).format, Image.open(p).mode) for p in covid + other}
    odd = {
        ('.png', 'JPEG', 'RGB'),
        ('.png', 'PNG', 'RGBA'),
        ('.png', 'PNG', 'L'),
        ('.jpg', 'JPEG', 'RGB'),
    }
    assert odd <= seen
    meta = pd.read_csv(root / 'COVID-CT-MetaInfo.csv')
    others = pd.read_csv(root / 'NonCOVID-CT-MetaInfo.csv')
    assert set(meta['File name']) == set(names)
    assert set(others['image name']) == {p.name for p in other}

    patient = dict(zip(meta['File name'], meta['Patient ID']))
    assert len(set(patient.values())) < 30
    splits = root / 'Data-split' / 'COVID'
    train, val, test = (
        (splits / f'{k}CT_COVID.txt').read_text().split() for k in ('train', 'val', 'test')
    )
    assert sorted(train + val + test) == sorted(names)
    assert val and test and len(train) > max(len(val), len(test))
    owners = [{patient[f] for f in files} for files in (train, val, test)]
    assert sum(map(len, owners)) == len(set.union(*owners))  # no patient is in two


@pytest.mark.parametrize('n', [6, 9])
def test_small_sets_have_all_splits(tmp_path, n):
    root = write('covid_ct', tmp_path, n, size=32)
    lists = list((root / 'Data-split').rglob('*.txt'))
    assert len(lists) == 6 and all(p.read_text() for p in lists)


def test_layout_of_head_ct(tmp_path):
    root = write('head_ct', tmp_path, {'hemorrhage': 3, 'normal': 2})
    assert (root / 'labels.csv').read_text() == 'id, hemorrhage\n0,1\n1,1\n2,1\n3,0\n4,0\n'
    files = sorted((root / 'head_ct' / 'head_ct').iterdir())
    assert [p.name for p in files] == [f'{i:03d}.png' for i in range(5)]
    sizes = [Image.open(p).size for p in files]
    assert len(set(sizes)) > 1 and all(h > w for w, h in sizes)


@pytest.mark.parametrize(
    'name,inside', [('radiography', None), ('covid_ct', None), ('head_ct', None), ('head_ct', '..')]
)
def test_datasets_reads_what_is_written(tmp_path, name, inside):
    root = write(name, tmp_path, 6, size=40)
    table = load(name, root if inside is None else root.parent)
    kind = phantoms.KINDS[name]
    assert list(table) == COLUMNS
    assert table.label.value_counts().to_dict() == {c: 6 for c in CLASSES[kind]}
    assert table['mask'].notna().all() == (name == 'radiography')
    assert table['split'].notna().all() == (name == 'covid_ct')
    if name == 'covid_ct':
        assert table['patient'].notna().all() and table.patient.nunique() < 12
    assert (table.width == 40).all() and table.sha256.is_unique
    for label in CLASSES[kind]:
        drawn = draw(kind, label, 6, 40).astype(int)
        read = [read_image(p) for p in table[table.label == label].image]
        closest = [np.abs(drawn - r).mean((1, 2)).min() for r in read]
        assert max(closest) < 4  # a JPEG is close, a PNG the same
    if name == 'radiography':
        row = table[table.image.str.endswith('COVID-1.png')].iloc[0]
        mask = read_mask(row['mask'], (40, 40))
        assert (mask == draw_one(kind, 'COVID', 0, 40).mask).mean() > 0.97


def test_second_call_does_nothing_and_other_parameters_are_refused(tmp_path):
    root = write('head_ct', tmp_path, 2, size=32, seed=4)

    def times():
        return {p: p.stat().st_mtime_ns for p in root.rglob('*')}

    before = times()
    assert write('head_ct', tmp_path, {'normal': 2, 'hemorrhage': 2}, size=(32, 32), seed=4) == root
    assert before == times()
    with pytest.raises(InputError, match='seed 4 instead of 5.*Choose another folder'):
        write('head_ct', tmp_path, 2, size=32, seed=5)
    with pytest.raises(InputError, match='other parameters'):
        write('head_ct', tmp_path, 3, size=32, seed=4)
    assert before == times()


def test_other_peoples_files_are_never_touched(tmp_path):
    real = tmp_path / FOLDERS['covid_ct'] / 'Images-processed' / 'CT_COVID'
    real.mkdir(parents=True)
    (real / 'a.png').write_bytes(b'scan')
    with pytest.raises(InputError, match='not phantoms'):
        write('covid_ct', tmp_path, 1, size=32)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [real / 'a.png']
    assert not is_phantom(real)


def test_resumes_after_being_killed(tmp_path):
    whole = write('radiography', tmp_path / 'whole', 8, size=64, workers=1)
    code = (
        'from gan_covid.phantoms import write; '
        f"write('radiography', {str(tmp_path / 'cut')!r}, 8, size=64, workers=1)"
    )
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen([sys.executable, '-c', code], env=env)
    root = tmp_path / 'cut' / FOLDERS['radiography']
    while len(list(root.rglob('*.png'))) < 9 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (root / NOTICE).exists() and (root / BEGUN).exists() and not (root / MARKER).exists()
    assert is_phantom(root)
    kept = {p: p.stat().st_mtime_ns for p in root.rglob('images/*.png') if p.name[0] != '.'}
    with pytest.raises(InputError, match='seed 0 instead of 1'):
        write('radiography', tmp_path / 'cut', 8, size=64, seed=1)
    assert write('radiography', tmp_path / 'cut', 8, size=64, workers=1) == root
    assert everything(root) == everything(whole)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())


def test_importing_loads_no_engine():
    code = (
        'import sys, gan_covid.phantoms\n'
        "assert not {'torch', 'tensorflow', 'keras', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='processes are read from /proc')
def test_helpers_end_with_the_drawing(tmp_path):
    "Those that waited for more work held on to the terminal of whoever had asked."

    def helpers():
        found = Path('/proc/self/task').glob('*/children')
        running = {n for f in found for n in f.read_text().split()}
        lines = [Path('/proc', n, 'cmdline').read_bytes() for n in running]
        return sum(b'popen_loky' in line for line in lines)

    before = helpers()
    phantoms.write('head_ct', tmp_path, 40, size=32, workers=2)
    assert helpers() == before == 0
