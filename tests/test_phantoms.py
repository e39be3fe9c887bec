"Phantoms: anatomy that can be checked, findings that differ in kind and not in brightness, and files that `datasets` reads as it reads the real sets."

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gan_covid import phantoms
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

KIND_LABEL = [(k, l) for k, labels in CLASSES.items() for l in labels]


@pytest.mark.parametrize('kind,label', KIND_LABEL)
def test_an_image_depends_on_its_number_only(kind, label):
    images, masks = draw(kind, label, 4, 48, seed=5, return_mask=True)
    assert (draw(kind, label, 2, 48, seed=5) == images[:2]).all()
    alone = draw_one(kind, label, 3, 48, seed=5)
    assert (alone.image == images[3]).all() and (alone.mask == masks[3]).all()
    assert (
        len(
            {im.tobytes() for im in images}
            | {im.tobytes() for im in draw(kind, label, 4, 48, seed=6)}
        )
        == 8
    )
    assert np.random.get_state()[1] is not None and images.dtype == np.uint8 and masks.dtype == bool


def test_global_random_numbers_are_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    draw('chest_ct', 'COVID', 2, 32)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize('kind,label', KIND_LABEL)
def test_the_same_picture_at_another_size(kind, label):
    for i in range(3):
        a, b = (draw_one(kind, label, i, s, marks=0) for s in (64, 256))
        assert (
            np.corrcoef(b.image.reshape(64, 4, 64, 4).mean((1, 3)).ravel(), a.image.ravel())[0, 1]
            > 0.9
        )
        assert (b.mask.reshape(64, 4, 64, 4).mean((1, 3)) > 0.5).sum() == pytest.approx(
            a.mask.sum(), rel=0.06
        ) and a.note == b.note


def test_no_two_classes_share_bodies():
    "else a healthy twin in the training set would give the sick one in the test set away"
    mask = [draw('chest_xray', l, 3, 64, return_mask=True)[1] for l in CLASSES['chest_xray']]
    assert len({m.tobytes() for ms in mask for m in ms}) == 12


def test_xray_anatomy():
    "Lungs dark and in two parts, the right one (image left) larger, its dome higher; heart to the image's right; spine brighter than lungs."
    from scipy.ndimage import label as parts

    larger = higher = heart = 0
    n = 30
    for i in range(n):
        d = draw_one('chest_xray', 'Normal', i, 128, marks=0)
        lungs, k = parts(d.mask)
        sizes = np.bincount(lungs.ravel())[1:]
        assert (sizes > 300).sum() == 2
        one, two = sorted(
            np.argsort(sizes)[-2:] + 1, key=lambda v: np.nonzero(lungs == v)[1].mean()
        )
        larger += (lungs == one).sum() > (lungs == two).sum()
        dome = []
        for v, beside_the_heart in ((one, (0.2, 0.4)), (two, (0.6, 0.8))):
            first, last = np.quantile(np.nonzero(lungs == v)[1], beside_the_heart).astype(int)
            dome.append(min(np.nonzero(lungs[:, c] == v)[0].max() for c in range(first, last)))
        higher += dome[0] < dome[1]
        rows = np.nonzero(d.mask)[0]
        low = int(np.quantile(rows, 0.75))
        gap = (np.nonzero(lungs[low] == one)[0].max() + np.nonzero(lungs[low] == two)[0].min()) / 2
        top = int(np.quantile(rows, 0.2))
        heart += (
            gap
            > (np.nonzero(lungs[top] == one)[0].max() + np.nonzero(lungs[top] == two)[0].min()) / 2
        )
        assert d.image[d.mask].mean() < d.image[~d.mask & (d.image > 30)].mean() - 30
    assert larger > 0.9 * n and higher > 0.8 * n and heart > 0.8 * n


def test_findings_differ_in_kind():
    "COVID: both lungs, near the ribs; opacity: one side; viral: both sides, everywhere; normal: nothing."
    both, edge, spread = {}, {}, {}
    for label in CLASSES['chest_xray']:
        left, right, centre, area = [], [], [], []
        for i in range(25):
            d = draw_one('chest_xray', label, i, 64, marks=0)
            w = d.finding & d.mask
            columns = np.nonzero(w)[1]
            left.append((columns < 32).sum())
            right.append((columns >= 32).sum())
            area.append(w.sum() / d.mask.sum())
            if len(columns):
                centre.append(abs(columns - 31.5).mean() - abs(np.nonzero(d.mask)[1] - 31.5).mean())
        both[label] = np.mean([min(a, b) > 3 for a, b in zip(left, right)])
        spread[label] = np.mean(area)
        edge[label] = np.mean(centre) if centre else 0
    assert (
        spread['Normal'] == 0
        and min(spread[l] for l in CLASSES['chest_xray'] if l != 'Normal') > 0.05
    )
    assert both['COVID'] > 0.8 and both['Viral Pneumonia'] > 0.8 and both['Lung_Opacity'] == 0
    assert edge['COVID'] > edge['Viral Pneumonia'] + 1


def test_every_bleed_and_every_other_finding_comes_up():
    notes = {draw_one('head_ct', 'hemorrhage', i, 32).note for i in range(60)}
    assert notes == {f'{k} bleeding' for k in phantoms.BLEEDS}
    assert {draw_one('chest_ct', 'NonCOVID', i, 32).note for i in range(80)} == set(phantoms.OTHERS)
    assert {draw_one('chest_xray', 'Lung_Opacity', i, 32).note for i in range(60)} == {
        f'consolidation, {l} lobe' for l in phantoms.LOBES
    }


def test_bleeds_can_be_seen_at_32_pixels():
    for i in range(40):
        d = draw_one('head_ct', 'hemorrhage', i, 32, marks=0)
        if d.finding.sum() < 4:
            pytest.fail(f'image {i}: the bleed has {d.finding.sum()} pixels')
        assert d.image[d.finding].mean() > d.image[d.mask & ~d.finding].mean() + 15, i


def test_marks_come_with_their_probability_and_place():
    assert not any(draw_one('chest_xray', 'Normal', i, 64, marks=0).marks.any() for i in range(20))
    share = np.mean(
        [draw_one('head_ct', 'normal', i, 64, marks=0.5).marks.any() for i in range(100)]
    )
    assert 0.3 < share < 0.65
    for kind, label in KIND_LABEL:
        a, b = draw_one(kind, label, 1, 96, marks=0), draw_one(kind, label, 1, 96, marks=1)
        differ = np.abs(a.image.astype(int) - b.image) > 0.15 * 255
        assert b.marks.any() and b.marks[differ].all() and (a.mask == b.mask).all()


def test_brightness_does_not_tell_but_the_picture_does():
    from skimage.feature import hog
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = 120
    for kind, size, least in (
        ('chest_xray', 64, 0.5),
        ('chest_ct', 64, 0.57),
        ('head_ct', 32, 0.6),
    ):
        labels = CLASSES[kind]
        x = np.concatenate([draw(kind, l, n, size, seed=3) for l in labels])
        y, train = (
            np.repeat(np.arange(len(labels)), n),
            np.tile(np.arange(n) < 0.7 * n, len(labels)),
        )
        for k, l in enumerate(labels):
            auc = roc_auc_score(y == k, x.mean((1, 2)))
            assert 0.3 < auc < 0.7, (kind, l, auc)
        pixels = (
            x.reshape(len(x), size // 2, 2, size // 2, 2).mean((2, 4)).reshape(len(x), -1) / 255
        )
        features = np.concatenate(
            [pixels, [hog(im, pixels_per_cell=(8, 8), cells_per_block=(1, 1)) for im in x]], 1
        )
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200)).fit(
            features[train], y[train]
        )
        accuracy = model.score(features[~train], y[~train])
        assert least < accuracy < 0.97, (kind, accuracy)


def test_speed():
    "200 images a second at 64×64 on two cores; processor time of one core, with room for slow machines"
    for kind, labels in CLASSES.items():
        draw(kind, labels[0], 3)
        start = time.process_time()
        [draw(kind, l, 20) for l in labels]
        assert 20 * len(labels) / (time.process_time() - start) > 60, kind


@pytest.mark.parametrize(
    'bad,says',
    [
        (dict(kind='mri'), "kind 'mri'"),
        (dict(label='flu'), "label 'flu'"),
        (dict(n=-1), 'n -1'),
        (dict(n=1.5), 'n 1.5'),
        (dict(size=0), 'size 0'),
        (dict(size=(64,)), 'size (64,)'),
        (dict(size='big'), "size 'big'"),
        (dict(seed=-3), 'seed -3'),
        (dict(seed=0.5), 'seed 0.5'),
        (dict(marks=1.2), 'marks 1.2'),
        (dict(marks='no'), "marks 'no'"),
    ],
)
def test_bad_parameters(bad, says):
    with pytest.raises(InputError) as e:
        draw(**{**dict(kind='chest_xray', label='Normal', n=1), **bad})
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'bad,says',
    [
        (dict(name='mnist'), "name 'mnist'"),
        (dict(n_per_class=0), 'n_per_class 0'),
        (dict(n_per_class={'flu': 3}), 'no class flu'),
        (dict(n_per_class={'normal': -3}), 'n_per_class'),
        (dict(size=3), 'size 3'),
        (dict(seed='a'), "seed 'a'"),
    ],
)
def test_bad_parameters_of_write_leave_nothing_behind(tmp_path, bad, says):
    with pytest.raises(InputError) as e:
        write(**{**dict(name='head_ct', folder=tmp_path, n_per_class=1, size=32), **bad})
    assert says in str(e.value) and not list(tmp_path.iterdir())


def everything(root):
    return {
        p.relative_to(root).as_posix(): sha256_file(p)
        for p in sorted(root.rglob('*'))
        if p.is_file() and p.suffix != '.xlsx'
    }


@pytest.mark.parametrize('name', FOLDERS)
def test_written_files_do_not_depend_on_workers(tmp_path, name):
    a, b = (
        write(name, tmp_path / 'a', 22, size=32, workers=1),
        write(name, tmp_path / 'b', 22, size=32, workers=2),
    )
    assert (
        everything(a) == everything(b)
        and (a / NOTICE).read_text().startswith('These images are DRAWINGS')
        and is_phantom(a)
        and not is_phantom(tmp_path)
    )
    assert (
        not (a / BEGUN).exists()
        and json.loads((a / MARKER).read_text())['n_per_class'][CLASSES[phantoms.KINDS[name]][0]]
        == 22
    )


def test_layout_of_radiography(tmp_path):
    root = write('radiography', tmp_path, {'Normal': 2, 'Viral Pneumonia': 1})
    assert {p.relative_to(root).as_posix() for p in root.rglob('*.png')} == {
        f'{c}/{f}/{c}-{i}.png'
        for c, i in (('Normal', 1), ('Normal', 2), ('Viral Pneumonia', 1))
        for f in ('images', 'masks')
    }
    assert Image.open(root / 'Normal/images/Normal-1.png').size == (299, 299)
    mask = Image.open(root / 'Normal/masks/Normal-1.png')
    assert mask.size == (256, 256) and mask.mode == 'RGB' and set(np.unique(mask)) == {0, 255}
    sheet = pd.read_excel(root / 'Normal.metadata.xlsx')
    assert (
        list(sheet) == ['FILE NAME', 'FORMAT', 'SIZE', 'URL']
        and sheet['FILE NAME'].tolist() == ['NORMAL-1', 'NORMAL-2']
        and sheet['SIZE'][0] == '256*256'
    )


def test_layout_of_covid_ct(tmp_path):
    root = write('covid_ct', tmp_path, 30, size=32)
    covid, other = (
        sorted((root / 'Images-processed').glob(f'CT_{l}/*')) for l in ('COVID', 'NonCOVID')
    )
    assert (
        len(covid) == len(other) == 30
        and any('%' in p.name for p in covid)
        and max(len(p.name) for p in covid) > 100
    )
    seen = [(p.suffix, Image.open(p).format, Image.open(p).mode) for p in covid + other]
    assert (
        ('.png', 'JPEG', 'RGB') in seen
        and ('.png', 'PNG', 'RGBA') in seen
        and ('.png', 'PNG', 'L') in seen
        and ('.jpg', 'JPEG', 'RGB') in seen
    )
    meta = pd.read_csv(root / 'COVID-CT-MetaInfo.csv')
    others = pd.read_csv(root / 'NonCOVID-CT-MetaInfo.csv')
    assert set(meta['File name']) == {p.name for p in covid} and set(others['image name']) == {
        p.name for p in other
    }
    patient = dict(zip(meta['File name'], meta['Patient ID']))
    assert len(set(patient.values())) < 30
    lists = {
        k: (root / f'Data-split/COVID/{k}CT_COVID.txt').read_text().split()
        for k in ('train', 'val', 'test')
    }
    assert (
        sorted(sum(lists.values(), [])) == sorted(p.name for p in covid)
        and all(lists.values())
        and len(lists['train']) == max(map(len, lists.values()))
    )
    owners = [{patient[f] for f in files} for files in lists.values()]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]


@pytest.mark.parametrize('n', [6, 9])
def test_small_sets_have_all_splits(tmp_path, n):
    root = write('covid_ct', tmp_path, n, size=32)
    for label in CLASSES['chest_ct']:
        assert all(
            (root / f'Data-split/{label}/{k}CT_{label}.txt').read_text()
            for k in ('train', 'val', 'test')
        )


def test_layout_of_head_ct(tmp_path):
    root = write('head_ct', tmp_path, {'hemorrhage': 3, 'normal': 2})
    assert (root / 'labels.csv').read_text() == 'id, hemorrhage\n0,1\n1,1\n2,1\n3,0\n4,0\n'
    assert {p.name for p in (root / 'head_ct' / 'head_ct').iterdir()} == {
        f'{i:03d}.png' for i in range(5)
    }
    sizes = [Image.open(p).size for p in (root / 'head_ct/head_ct').iterdir()]
    assert len(set(sizes)) > 1 and all(h > w for w, h in sizes)


@pytest.mark.parametrize(
    'name,inside', [('radiography', None), ('covid_ct', None), ('head_ct', None), ('head_ct', '..')]
)
def test_datasets_reads_what_is_written(tmp_path, name, inside):
    root = write(name, tmp_path, 6, size=40)
    table = load(name, root if inside is None else root.parent)
    kind = phantoms.KINDS[name]
    assert list(table) == COLUMNS and table.label.value_counts().to_dict() == {
        c: 6 for c in CLASSES[kind]
    }
    assert table['mask'].notna().all() == (name == 'radiography') and table[
        'split'
    ].notna().all() == (name == 'covid_ct')
    if name == 'covid_ct':
        assert table['patient'].notna().all() and table.patient.nunique() < 12
    assert (table.width == 40).all() and table.sha256.is_unique
    for label in CLASSES[kind]:
        rows, drawn = table[table.label == label], draw(kind, label, 6, 40)
        read = [read_image(p) for p in rows.image]
        closest = [min(np.abs(r.astype(int) - d).mean() for d in drawn) for r in read]
        assert max(closest) < 4  # a JPEG is close, a PNG the same
    if name == 'radiography':
        d = draw_one(kind, 'COVID', 0, 40)
        row = table[table.image.str.endswith('COVID-1.png')].iloc[0]
        assert (read_mask(row['mask'], (40, 40)) == d.mask).mean() > 0.97


def test_second_call_does_nothing_and_other_parameters_are_refused(tmp_path):
    root = write('head_ct', tmp_path, 2, size=32, seed=4)
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    assert write('head_ct', tmp_path, {'normal': 2, 'hemorrhage': 2}, size=(32, 32), seed=4) == root
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    with pytest.raises(InputError, match='seed 4 instead of 5.*Choose another folder'):
        write('head_ct', tmp_path, 2, size=32, seed=5)
    with pytest.raises(InputError, match='other parameters'):
        write('head_ct', tmp_path, 3, size=32, seed=4)
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob('*')}


def test_other_peoples_files_are_never_touched(tmp_path):
    real = tmp_path / FOLDERS['covid_ct'] / 'Images-processed' / 'CT_COVID'
    real.mkdir(parents=True)
    (real / 'a.png').write_bytes(b'scan')
    with pytest.raises(InputError, match='not phantoms'):
        write('covid_ct', tmp_path, 1, size=32)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [real / 'a.png'] and not is_phantom(
        real
    )


def test_goes_on_after_being_killed(tmp_path):
    whole = write('radiography', tmp_path / 'whole', 12, size=96, workers=1)
    code = f"from gan_covid.phantoms import write; write('radiography', {str(tmp_path / 'cut')!r}, 12, size=96, workers=1)"
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen([sys.executable, '-c', code], env=env)
    root = tmp_path / 'cut' / FOLDERS['radiography']
    while len(list(root.rglob('*.png'))) < 9 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (
        (root / NOTICE).exists()
        and (root / BEGUN).exists()
        and not (root / MARKER).exists()
        and is_phantom(root)
    )
    kept = {
        p: p.stat().st_mtime_ns for p in root.rglob('images/*.png') if not p.name.startswith('.')
    }
    with pytest.raises(InputError, match='seed 0 instead of 1'):
        write('radiography', tmp_path / 'cut', 12, size=96, seed=1)
    assert write('radiography', tmp_path / 'cut', 12, size=96, workers=1) == root
    finished = everything(root)
    assert {k: v for k, v in finished.items() if '/.' not in k} == everything(whole) and all(
        p.stat().st_mtime_ns == t for p, t in kept.items()
    )
    assert not [k for k in finished if '/.' in k]


def test_importing_loads_no_engine():
    code = "import sys, gan_covid.phantoms; assert not {'torch', 'tensorflow', 'keras', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)
