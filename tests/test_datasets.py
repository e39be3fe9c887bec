"""Data sets: real copies where GAN_COVID_DATA says so, every trap of the layouts, bad input, downloads from a local server."""

import hashlib
import http.server
import os
import random
import shutil
import subprocess
import sys
import threading
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gan_covid.datasets import leaks, loey
from gan_covid.datasets.download import download, unzip
from gan_covid.datasets.layouts import DATASETS
from gan_covid.datasets.leaks import check_split, patient_leaks
from gan_covid.datasets.loey import load_generated, locate_generated, loey_split
from gan_covid.datasets.own import load_folder
from gan_covid.datasets.public import data_fetch, fetch, load
from gan_covid.datasets.splits import repeated_splits, stratified_split
from gan_covid.datasets.table import COLUMNS, as_table
from gan_covid.datasets.verify import data_verify, verify
from gan_covid.folders import natural
from gan_covid.reading import read_image, read_mask
from gan_covid.records import InputError

gray = np.random.default_rng(0).integers(0, 256, (24, 30), 'uint8')


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('GAN_COVID_CACHE', str(folder))
    return folder


@pytest.fixture(scope='module')
def real():
    if not os.environ.get('GAN_COVID_DATA'):
        pytest.skip('GAN_COVID_DATA does not say where real images are')
    return Path(os.environ['GAN_COVID_DATA'])


def put(path, image=gray, **kw):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **kw)
    return path


def noise(i, size=(24, 30)):
    return np.random.default_rng(i).integers(0, 256, size, 'uint8')


def make_covid_ct(root, listed=True):
    "Six images a class: 4 train, 1 val, 1 test, two images a patient."
    for label, ending in (('COVID', 'png'), ('NonCOVID', 'jpg')):
        names = [f'{label}-p1-12%{i}.{ending}' for i in range(6)]
        for i, n in enumerate(names):
            put(
                root / 'Images-processed' / f'CT_{label}' / n,
                noise(100 * (label == 'COVID') + i),
                format='PNG',
            )
        if listed:
            folder = root / 'Data-split' / label
            folder.mkdir(parents=True)
            for split, part in (('train', names[:4]), ('val', names[4:5]), ('test', names[5:])):
                (folder / f'{split}CT_{label}.txt').write_text('\n'.join(part) + '\n')
        meta = pd.DataFrame(
            {
                'File name': names,
                'Patient ID': [
                    f'Patient {i // 2} ' if i % 2 else f'Patient {i // 2}' for i in range(6)
                ],
                'DOI': '10.1/x',
            }
        )
        if label == 'NonCOVID':
            meta = pd.DataFrame(
                {
                    'Unnamed: 0': range(6),
                    'image name': names,
                    'patient id': [f'crawled_patient_{i // 2}' for i in range(6)],
                }
            )
        meta.to_csv(
            root / ('COVID-CT-MetaInfo.csv' if label == 'COVID' else 'NonCOVID-CT-MetaInfo.csv'),
            index=False,
        )
    return root


def make_head_ct(root, n=8):
    for i in range(n):
        put(root / 'head_ct' / 'head_ct' / f'{i:03d}.png', noise(i))
    (root / 'labels.csv').write_text(
        'id, hemorrhage\n' + ''.join(f'{i},{int(i < n // 2)}\n' for i in range(n))
    )
    return root


def zip_folder(folder, path, prefix=''):
    with zipfile.ZipFile(path, 'w') as z:
        for p in sorted(Path(folder).rglob('*')):
            if p.is_file():
                z.write(p, prefix + str(p.relative_to(folder)))
    return path


# ---------------------------------------------------------------- real images


def test_real_head_ct(real):
    t = load('head_ct', real)
    assert (
        list(t) == COLUMNS
        and t.label.value_counts().to_dict() == {'normal': 100, 'hemorrhage': 100}
        and t.attrs['rejected'] == []
    )
    for seed in range(3):
        s = stratified_split(t, seed=seed)
        assert s.groupby(['label', 'split']).size().to_dict() == {
            (c, p): n
            for c in ('normal', 'hemorrhage')
            for p, n in (('train', 72), ('val', 17), ('test', 11))
        }
        assert s[s.image.str.contains(r'18[89]\.png')].split.nunique() == 1 and check_split(s).empty
    (
        s.loc[s.image.str.endswith('188.png'), 'split'],
        s.loc[s.image.str.endswith('189.png'), 'split'],
    ) = 'train', 'test'
    assert len(check_split(s)) == 1
    r = verify('head_ct', real)
    assert r.ok and [[Path(p).name for p in d['images']] for d in r.duplicates] == [
        ['188.png', '189.png']
    ]


def test_real_head_ct_repeats(real):
    tables = repeated_splits(load('head_ct', real), seed=1, repeats=5)
    train = set(tables[0].image[tables[0].split == 'train'])
    assert all(set(t.image[t.split == 'train']) == train and check_split(t).empty for t in tables)
    assert len({frozenset(t.image[t.split == 'test']) for t in tables}) == 5


def test_real_covid_ct(real):
    t = load('covid_ct', real)
    found = t.groupby(['label', 'split']).size().to_dict()
    assert found == {
        (c, p): n
        for c, k in DATASETS['covid_ct'].splits.items()
        for p, n in zip(('train', 'val', 'test'), k)
    }
    assert (
        t.patient.notna().all() and check_split(t).empty and not t.patient.str.endswith(' ').any()
    )
    assert verify('covid_ct', real / 'COVID-CT').ok
    assert read_image(t[t.image.str.contains('%')].image.iloc[0]).ndim == 2


def test_real_radiography(real):
    with pytest.warns(UserWarning, match='Lung_Opacity'):
        t = load('radiography', real)
    assert (
        t.label.value_counts().to_dict() == {'COVID': 1100, 'Normal': 1100, 'Viral Pneumonia': 1100}
        and t['mask'].notna().sum() == 1100
    )
    row = t[t['mask'].notna()].iloc[0]
    assert (
        (row.height, row.width) == (299, 299)
        and read_mask(row['mask']).shape == (256, 256)
        and read_mask(row['mask'], (299, 299)).shape == (299, 299)
    )
    assert t.image.tolist() == [
        p for c in t.label.unique() for p in sorted(t.image[t.label == c], key=natural)
    ]


# ---------------------------------------------------------------- single pictures


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'])
def test_modes(tmp_path, mode):
    im = Image.fromarray(gray)
    if mode == 'I;16':
        p, tol = put(tmp_path / 'x.png', gray.astype('uint16') * 257), 0
    elif mode == 'CMYK':
        p, tol = (
            put(
                tmp_path / 'x.png',
                im.convert('RGB').convert('CMYK'),
                format='JPEG',
                quality=100,
                subsampling=0,
            ),
            8,
        )
    else:
        p, tol = put(tmp_path / 'x.png', im.convert(mode)), 0
    got, want = read_image(p), np.asarray(im.convert('1').convert('L')) if mode == '1' else gray
    assert (
        got.dtype == np.uint8
        and got.shape == gray.shape
        and abs(got.astype(int) - want).max() <= tol
    )


def test_16_bit_is_not_clipped(tmp_path):
    a = np.array([[0, 256, 4096, 65535]] * 20, 'uint16')
    assert read_image(put(tmp_path / 'x.png', a))[0].tolist() == [0, 1, 16, 255]


def test_transparency_over_black(tmp_path):
    im = Image.fromarray(gray).convert('RGBA')
    im.putalpha(0)
    assert not read_image(put(tmp_path / 'a.png', im)).any()
    p = Image.fromarray(np.where(gray > 127, 1, 0).astype('uint8'), 'L').convert('P')
    p.putpalette([200] * 3 + [100] * 3)
    put(tmp_path / 'p.png', p, transparency=0)
    assert set(np.unique(read_image(tmp_path / 'p.png'))) == {0, 100}


BROKEN = {
    'cut.png': lambda b: b[: len(b) // 2],
    'nearly.png': lambda b: b[:-20],
    'flipped.png': lambda b: b[:80] + bytes([b[80] ^ 255]) + b[81:],
    'empty.png': lambda b: b'',
    'text.png': lambda b: b'this is text',
    'page.jpg': lambda b: b'<html>not found</html>',
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_picture(tmp_path, name):
    whole = put(tmp_path / 'good.png').read_bytes()
    (tmp_path / name).write_bytes(BROKEN[name](whole))
    with pytest.raises(InputError, match=name.replace('.', r'\.')):
        read_image(tmp_path / name)


def test_picture_that_is_no_file(tmp_path):
    with pytest.raises(InputError, match='absent.png: not found'):
        read_image(tmp_path / 'absent.png')
    with pytest.raises(InputError, match='cannot be read'):
        read_image(tmp_path)
    put(tmp_path / 'f.tiff', gray.astype('float32'))
    with pytest.raises(InputError, match='floating'):
        read_image(tmp_path / 'f.tiff')


def test_masks(tmp_path):
    m = np.zeros((256, 256), 'uint8')
    m[64:192, 32:128] = 255
    p = put(tmp_path / 'm.png', Image.fromarray(m).convert('RGB'))
    big = read_mask(p, (299, 299))
    assert big.shape == (299, 299) and big.dtype == bool and abs(big.mean() - (m > 0).mean()) < 0.01
    with pytest.raises(InputError, match='m.png.*another shape'):
        read_mask(p, (299, 400))
    with pytest.raises(InputError, match='none.png.*empty'):
        read_mask(put(tmp_path / 'none.png', m * 0))


# ---------------------------------------------------------------- a bad file never costs the good ones


def test_load_leaves_out_what_is_broken(tmp_path):
    root = make_head_ct(tmp_path / 'head')
    folder = root / 'head_ct' / 'head_ct'
    good = (folder / '000.png').read_bytes()
    for i, (name, spoil) in enumerate(list(BROKEN.items())[:5]):
        (folder / f'{i:03d}.png').write_bytes(spoil(good))
    put(folder / '005.png', np.zeros((1, 1), 'uint8'))
    with pytest.warns(UserWarning, match='6 not used') as caught:
        t = load('head_ct', root)
    assert len(caught) == 1 and [Path(p).name for p in t.image] == ['006.png', '007.png']
    assert sorted(Path(r['file']).name for r in t.attrs['rejected']) == [
        f'{i:03d}.png' for i in range(6)
    ] and all(r['why'] for r in t.attrs['rejected'])
    r = verify('head_ct', root)
    assert not r.ok and len(r.broken) == 6


def test_nothing_usable(tmp_path):
    root = make_head_ct(tmp_path / 'head', 2)
    for p in root.rglob('*.png'):
        p.write_bytes(b'')
    with pytest.raises(InputError, match='no image of Head CT'):
        load('head_ct', root)


def test_unreadable_folder(tmp_path, monkeypatch):
    root, scandir = make_head_ct(tmp_path / 'head'), os.scandir

    def closed(p):
        if Path(p).name == 'head_ct':
            raise PermissionError(13, 'Permission denied')
        return scandir(p)

    monkeypatch.setattr(os, 'scandir', closed)
    with pytest.raises(InputError, match='head.*ermission'):
        load('head_ct', root)
    with pytest.raises(InputError, match='head.*could not be read|Could not be read.*head'):
        load('head_ct', tmp_path)
    with pytest.raises(InputError, match='head_ct.*Permission denied'):
        load_folder(root / 'head_ct')


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    root, scandir = make_head_ct(tmp_path / 'head', 20), os.scandir
    first = load('head_ct', root)
    monkeypatch.setattr(
        os, 'scandir', lambda p: random.Random(1).sample(l := list(scandir(p)), len(l))
    )
    assert load('head_ct', root).equals(first)


# ---------------------------------------------------------------- head CT


def test_labels_missing_column(tmp_path):
    root = make_head_ct(tmp_path)
    (root / 'labels.csv').write_text('id,bleeding\n0,1\n')
    with pytest.raises(InputError, match="labels.csv: no column 'hemorrhage'"):
        load('head_ct', root)


def test_labels_unknown_and_absent_ids(tmp_path):
    root = make_head_ct(tmp_path)
    (root / 'labels.csv').write_text(
        'id, hemorrhage\n0,1\n1.png,1\n002,0\n3,0\n4,0\n4,1\nx,1\n6,7\n99,1\n'
    )
    with pytest.warns(UserWarning):
        t = load('head_ct', root)
    assert [Path(p).name for p in t.image] == ['002.png', '003.png', '000.png', '001.png']
    why = [r['why'] for r in t.attrs['rejected']]
    assert (
        any('id 99 has no image' in w for w in why)
        and any("'x'" in w for w in why)
        and any('both labels' in w for w in why)
    )
    assert sum('no label' in w for w in why) == 3  # 005, 006, 007
    r = verify('head_ct', root)
    assert '099.png' in r.missing


@pytest.mark.parametrize('nesting', ['head_ct/head_ct', 'head_ct', '.'])
def test_head_ct_nesting(tmp_path, nesting):
    root = tmp_path / 'archive'
    for i in range(4):
        put(root / nesting / f'{i:03d}.png', noise(i))
    (root / 'labels.csv').write_text('id, hemorrhage\n0,1\n1,1\n2,0\n3,0\n')
    assert len(load('head_ct', tmp_path)) == 4


# ---------------------------------------------------------------- COVID-CT


def test_covid_ct(tmp_path):
    t = load('covid_ct', make_covid_ct(tmp_path / 'COVID-CT').parent)
    assert (
        t.split.value_counts().to_dict() == {'train': 8, 'val': 2, 'test': 2}
        and t.attrs['notes'] == []
    )
    assert t.patient.nunique() == 6 and set(t.source) == {'10.1/x', 'crawled'}
    assert (
        set(check_split(t).kind) == {'patient'} and len(check_split(t)) == 2
    )  # patient 2 of each class is in val and test here


def test_covid_ct_name_listed_twice(tmp_path):
    root = make_covid_ct(tmp_path)
    (root / 'Data-split/COVID/trainCT_COVID.txt').write_text(
        'COVID-p1-12%0.png\nCOVID-p1-12%0.png\nCOVID-p1-12%1.png\nCOVID-p1-12%2.png\r\n'
    )
    with pytest.warns(UserWarning, match=r'twice.*COVID-p1-12%3\.png'):
        t = load('covid_ct', root)
    assert t[t.image.str.endswith('12%3.png')].split.item() == 'train' and t.split.notna().all()


def test_covid_ct_name_in_two_lists_goes_to_test(tmp_path):
    root = make_covid_ct(tmp_path)
    with open(root / 'Data-split/COVID/testCT_COVID.txt', 'a') as f:
        f.write('COVID-p1-12%0.png\nnowhere.png\n')
    with pytest.warns(UserWarning, match='also in the train list'):
        t = load('covid_ct', root)
    assert (
        t[t.image.str.endswith('/COVID-p1-12%0.png')].split.item() == 'test'
        and 'nowhere.png' in verify('covid_ct', root).missing
    )


def test_covid_ct_underscores_for_percent(tmp_path):
    root = make_covid_ct(tmp_path)
    for p in list((root / 'Images-processed').rglob('*%*')):
        p.rename(p.with_name(p.name.replace('%', '_')))
    t = load('covid_ct', root)
    assert t.split.notna().all() and t.patient.notna().all()


def test_covid_ct_zips(tmp_path, cache):
    plain = load('covid_ct', make_covid_ct(tmp_path / 'a'))
    root = make_covid_ct(tmp_path / 'b')
    for c in ('COVID', 'NonCOVID'):
        folder = root / 'Images-processed' / f'CT_{c}'
        zip_folder(folder, root / 'Images-processed' / f'CT_{c}.zip', f'CT_{c}/')
        with zipfile.ZipFile(root / 'Images-processed' / f'CT_{c}.zip', 'a') as z:
            z.writestr('__MACOSX/._x.png', b'mac')
        for p in folder.iterdir():
            p.unlink()
        folder.rmdir()
    t = load('covid_ct', root)
    assert [Path(p).name for p in t.image] == [Path(p).name for p in plain.image]
    assert t.drop(columns='image').equals(plain.drop(columns='image')) and Path(
        t.image[0]
    ).is_relative_to(cache)
    assert verify('covid_ct', root).unexpected == []


def test_covid_ct_evil_zip(tmp_path):
    root = make_covid_ct(tmp_path / 'COVID-CT')
    folder = root / 'Images-processed' / 'CT_COVID'
    for p in folder.iterdir():
        p.unlink()
    folder.rmdir()
    with zipfile.ZipFile(root / 'Images-processed' / 'CT_COVID.zip', 'w') as z:
        z.writestr('CT_COVID/a.png', put(tmp_path / 'a.png').read_bytes())
        z.writestr('../../evil.png', b'x')
    with pytest.raises(InputError, match=r"CT_COVID\.zip: the member '\.\./\.\./evil\.png'"):
        load('covid_ct', root)
    assert not list(tmp_path.rglob('evil.png'))


def test_zip_with_a_link_and_broken_zip(tmp_path):
    link = zipfile.ZipInfo('link')
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / 'link.zip', 'w') as z:
        z.writestr(link, '/etc/passwd')
    with pytest.raises(InputError, match="link.zip: the member 'link'"):
        unzip(tmp_path / 'link.zip')
    (tmp_path / 'cut.zip').write_bytes((tmp_path / 'link.zip').read_bytes()[:40])
    with pytest.raises(InputError, match='cut.zip.*cannot be unpacked'):
        unzip(tmp_path / 'cut.zip')


def test_zip_and_a_full_disk(tmp_path, monkeypatch):
    zip_folder(make_head_ct(tmp_path / 'h'), tmp_path / 'h.zip')
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: types.SimpleNamespace(free=10))
    with pytest.raises(InputError, match='h.zip.*no space left'):
        load('head_ct', tmp_path / 'h.zip')
    with pytest.raises(InputError, match='needs about'):
        fetch('radiography', tmp_path / 'r')


def test_without_lists_and_meta(tmp_path):
    root = make_covid_ct(tmp_path, listed=False)
    (root / 'COVID-CT-MetaInfo.csv').unlink()
    with pytest.warns(UserWarning, match='official split.*patients of COVID are not known'):
        t = load('covid_ct', root)
    assert t.split.isna().all() and t.patient.isna().sum() == 6
    (root / 'NonCOVID-CT-MetaInfo.csv').write_text('a,b\n1,2\n')
    with pytest.warns(UserWarning, match='NonCOVID-CT-MetaInfo.csv: no columns'):
        load('covid_ct', root)


def test_kaggle_zip_in_the_folder(tmp_path):
    zip_folder(make_head_ct(tmp_path / 'made'), tmp_path / 'archive.zip')
    for p in sorted((tmp_path / 'made').rglob('*'), reverse=True):
        p.unlink() if p.is_file() else p.rmdir()
    (tmp_path / 'other.zip').write_bytes(b'broken')
    assert len(load('head_ct', tmp_path)) == len(load('head_ct', tmp_path / 'archive.zip')) == 8


# ---------------------------------------------------------------- Radiography


def test_radiography(tmp_path):
    root = tmp_path / 'COVID-19_Radiography_Dataset'
    for c in DATASETS['radiography'].classes:
        for i in (1, 2, 10):
            put(root / c / 'images' / f'{c}-{i}.png', noise(i, (30, 30)))
            put(
                root / c / 'masks' / f'{c}-{i}.png', (noise(i, (26, 26)) > 99).astype('uint8') * 255
            )
        shown = 'NORMAL' if c == 'Normal' else c
        pd.DataFrame(
            {
                'FILE NAME': [f'{shown}-{i}' for i in (1, 2, 10)],
                'FORMAT': 'PNG',
                'SIZE': '256*256',
                'URL': [f'https://x/{i}' for i in (1, 2, 10)],
            }
        ).to_excel(root / f'{c}.metadata.xlsx', index=False)
    (root / 'README.md.txt').write_text('read me')
    t = load('radiography', tmp_path)
    assert (
        t.label.unique().tolist() == DATASETS['radiography'].classes
        and t['mask'].notna().all()
        and t.attrs['notes'] == []
    )
    assert [Path(p).name for p in t.image[t.label == 'Normal']] == [
        'Normal-1.png',
        'Normal-2.png',
        'Normal-10.png',
    ]
    assert t.source[t.label == 'Normal'].tolist() == ['https://x/1', 'https://x/2', 'https://x/10']
    (root / 'COVID/masks/COVID-2.png').unlink()
    put(root / 'COVID/masks/COVID-10.png', np.zeros((26, 26), 'uint8'))
    put(root / 'COVID/masks/COVID-1.png', np.ones((26, 40), 'uint8'))
    (root / 'Normal/images/notes.doc').touch()
    assert load('radiography', root)['mask'].isna().sum() == 1
    r = verify('radiography', root)
    assert (
        r.missing[0] == 'COVID/masks/COVID-2.png'
        and 'COVID/images/COVID-3.png' in r.missing
        and r.unexpected == ['Normal/images/notes.doc']
    )
    assert [(Path(b['file']).name, b['why'].split(' has')[0].split('.')[0]) for b in r.broken] == [
        ('COVID-1.png', 'the mask'),
        ('COVID-10.png', 'the mask is empty'),
    ]
    assert r.counts.published.tolist() == [3616, 6012, 10192, 1345] and set(r.counts.found) == {3}


def test_radiography_older_layout(tmp_path):
    root = tmp_path / 'COVID-19 Radiography Database'
    for c in ('COVID-19', 'NORMAL', 'Viral Pneumonia'):
        for i in (1, 2):
            put(root / c / f'{c} ({i}).png', noise(i))
    pd.DataFrame({'FILE NAME': ['COVID-19(1)', 'COVID-19(2)'], 'URL': ['u1', 'u2']}).to_excel(
        root / 'COVID-19.metadata.xlsx', index=False
    )
    with pytest.warns(UserWarning, match='no images of Lung_Opacity'):
        t = load('radiography', tmp_path)
    assert (
        t.label.value_counts().to_dict() == {'COVID': 2, 'Normal': 2, 'Viral Pneumonia': 2}
        and t['mask'].isna().all()
    )
    assert t.source[t.label == 'COVID'].tolist() == ['u1', 'u2']


def test_not_there_and_twice_there(tmp_path):
    with pytest.raises(InputError, match='data fetch head_ct'):
        load('head_ct', tmp_path)
    with pytest.raises(InputError, match='no such folder'):
        load('head_ct', tmp_path / 'nowhere')
    with pytest.raises(InputError, match="'headct' is unknown. There are: radiography"):
        load('headct', tmp_path)
    make_covid_ct(tmp_path / 'COVID-CT')
    with pytest.raises(InputError, match='Radiography Database is not there'):
        load('radiography', tmp_path)  # Data-split/COVID holds no images
    make_head_ct(tmp_path / 'a')
    make_head_ct(tmp_path / 'b')
    with pytest.raises(InputError, match='more than once'):
        load('head_ct', tmp_path)


# ---------------------------------------------------------------- own folders and splits


def test_own_folder(tmp_path):
    for c in 'xy':
        for i in range(3):
            put(tmp_path / 'f' / c / 'images' / f'{i}.tif', noise(i + 10 * (c == 'y')))
            put(tmp_path / 'f' / c / 'masks' / f'{i}.png', noise(i))
    t = load_folder(tmp_path / 'f')
    assert len(t) == 6 and t['mask'].notna().all() and t.split.isna().all()
    put(tmp_path / 'f' / 'train' / 'x' / '0.png')
    with pytest.raises(InputError, match='partly splits'):
        load_folder(tmp_path / 'f')
    (tmp_path / 'g').mkdir()
    with pytest.raises(InputError, match='no images in sub-folders'):
        load_folder(tmp_path / 'g')


def people(root, each=3):
    "Ten patients a class, below train and test, with a few images each."
    for c in 'xy':
        for i in range(10):
            for j in range(each):
                put(
                    root / ('test' if i > 7 else 'training') / c / f'{c}{i}' / f'{j}.png',
                    noise(100 * i + 10 * j + (c == 'y')),
                )
    return root


def test_patients_are_sub_folders_with_few_images(tmp_path):
    t = load_folder(people(tmp_path))
    assert (
        t.patient.nunique() == 20
        and t.groupby('patient').size().eq(3).all()
        and (t.patient.str[0] == t.label).all()
    )
    assert t.groupby('patient').split.nunique().eq(
        1
    ).all() and t.split.value_counts().to_dict() == {'train': 48, 'test': 12}
    again = stratified_split(t, {'train': 0.5, 'val': 0.25, 'test': 0.25})
    assert check_split(again).empty and again.groupby('patient').split.nunique().eq(1).all()
    assert load_folder(tmp_path, patients=False).patient.isna().all()


def test_patients_by_a_pattern(tmp_path):
    for c in 'xy':
        for i in range(6):
            put(tmp_path / c / f'P{i // 2}_{i}.png', noise(i + 10 * (c == 'y')))
    assert (
        load_folder(tmp_path, patients=r'(P\d+)_').patient.tolist()
        == ['P0', 'P0', 'P1', 'P1', 'P2', 'P2'] * 2
    )
    for bad, word in (
        (r'(Q\d+)_', 'P0_0.png'),
        ('P', '0 groups'),
        ('(', 'no regular expression'),
        ('(P)(_)', '2 groups'),
        (3, 'no regular'),
    ):
        with pytest.raises(InputError, match=f'patients=.*{word}'):
            load_folder(tmp_path, patients=bad)


def test_class_with_one_image(tmp_path):
    for i in range(30):
        put(tmp_path / 'x' / f'{i}.png', noise(i))
    put(tmp_path / 'y' / '0.png', noise(99))
    with pytest.raises(InputError, match=r"class 'y' has 1 image\(s\)"):
        stratified_split(load_folder(tmp_path), {'train': 0.7, 'val': 0.1, 'test': 0.2})


def table(n, labels=('a', 'b'), **columns):
    return as_table(
        [
            dict(
                image=f'/nowhere/{i}.png',
                label=labels[i % len(labels)],
                width=32,
                height=32,
                sha256=str(i),
                **{k: f(i) for k, f in columns.items()},
            )
            for i in range(n)
        ]
    )


@pytest.mark.parametrize(
    'sizes, says',
    [
        ({'train': 500}, 'train cannot have'),
        ({'learn': 10}, "'learn' is no split"),
        ({'train': 10, 'test': 1}, 'test cannot have'),
        ({'test': {'a': 51, 'b': 1}}, 'test cannot have'),
    ],
)
def test_impossible_sizes(sizes, says):
    with pytest.raises(InputError, match=says):
        stratified_split(table(100), sizes)


def test_sizes():
    t = stratified_split(table(100), {'train': None, 'test': {'a': 20, 'b': 10}})
    assert t.groupby(['label', 'split']).size().to_dict() == {
        ('a', 'test'): 20,
        ('a', 'train'): 30,
        ('b', 'test'): 10,
        ('b', 'train'): 40,
    }
    t = stratified_split(table(100), {'train': 60, 'test': 20})
    assert t.split.isna().sum() == 20 and t.split.value_counts().to_dict() == {
        'train': 60,
        'test': 20,
    }
    assert stratified_split(
        table(50), {'train': 0.8, 'val': 0.1, 'test': 0.1}
    ).split.value_counts().to_dict() == {'train': 40, 'val': 5, 'test': 5}


def test_groups_stay_together():
    rng = np.random.default_rng(0)
    who = rng.integers(0, 60, 300)
    t = stratified_split(
        table(300, patient=lambda i: f'p{who[i]}-{i % 2}'),
        {'train': 200, 'val': 50, 'test': 50},
        seed=4,
    )
    assert (
        t.groupby('patient').split.nunique().max() == 1
        and check_split(t).empty
        and abs((t.split == 'test').sum() - 50) <= 6
    )
    both = table(40)
    both['where'] = ['k' if i in (3, 8, 20) else None for i in range(40)]
    for seed in range(20):
        assert (
            stratified_split(both, {'train': 20, 'val': 10, 'test': 10}, seed, groups='where')
            .split[[3, 8, 20]]
            .nunique()
            == 1
        )


def test_one_giant_group_is_reported():
    with pytest.warns(UserWarning, match='do not fit the sizes'):
        stratified_split(
            table(40, labels=('a',), patient=lambda i: 'p' if i < 30 else None),
            {'train': 20, 'test': 20},
        )


def test_split_is_uniform():
    "Every image gets into the test set about equally often, alone or in a group."
    t = table(60, patient=lambda i: str(i // 4) if i < 24 else None)
    share = np.mean(
        [
            stratified_split(t, {'train': 40, 'test': 20}, seed=s).split.eq('test')
            for s in range(300)
        ],
        axis=0,
    )
    assert abs(share - 1 / 3).max() < 0.12 and abs(share[:24].mean() - share[24:].mean()) < 0.05


def test_repeated_splits_keep_a_given_split():
    t = stratified_split(table(100), {'train': 60, 'val': 20, 'test': 20}, seed=9)
    out = repeated_splits(t, {'train': 60, 'val': 20, 'test': 20}, seed=1, repeats=4)
    assert out[0].equals(t) and all(
        ((o.split == 'train') == (t.split == 'train')).all() for o in out
    )
    assert [o.split.tolist() for o in out] == [
        o.split.tolist()
        for o in repeated_splits(t, {'train': 60, 'val': 20, 'test': 20}, seed=1, repeats=4)
    ]


# ---------------------------------------------------------------- the split of the CT report, and leaks by patient

FUNGUS = [
    f'Talaromyces-marneffei-infection-relapse-presenting-as-ost_2020_International-p1-12%{i}.png'
    for i in range(4)
]
LONG = [
    f'impact_of_covid19_infection_on_pregnancy_outcomes_and_the_risk_of_maternaltoneonatal_intrapartum_transmission_of_covid19_during_natural_birth-p8-41%{i}.png'
    for i in (1, 3, 5)
]


def file_names(t):
    return [Path(p).name for p in t.image]


@pytest.fixture(scope='module')
def covid_ct(real_data):
    return load('covid_ct', real_data)


@pytest.mark.parametrize('reading, gone', [('fungus', FUNGUS), ('names', LONG + FUNGUS[3:])])
def test_real_loey_split(covid_ct, reading, gone):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = loey_split(covid_ct, reading)
    assert t.split.value_counts().to_dict() == {'train': 425, 'val': 118, 'test': 199}
    assert t[t.split == 'test'].label.value_counts().to_dict() == {'COVID': 94, 'NonCOVID': 105}
    assert (
        set(file_names(covid_ct)) - set(file_names(t)) == set(gone)
        and list(t) == COLUMNS
        and list(t.index) == list(range(742))
        and len(covid_ct) == 746
    )
    assert {k: v for k, v in t.attrs.items() if k != 'notes'} == {
        k: v for k, v in covid_ct.attrs.items() if k != 'notes'
    }
    assert t.attrs['notes'][:-1] == covid_ct.attrs['notes'] and all(
        w in t.attrs['notes'][-1]
        for w in (f"'{reading}'", '4 of 4', 'our inference, I', '425/118/199')
    )
    assert {c: int(n) for c, n in t.label.value_counts().items()} == DATASETS['covid_ct'].used[
        'T18'
    ]


def test_real_patients_and_pixels_of_the_official_split(covid_ct):
    assert (
        covid_ct.patient.nunique() == 384 == covid_ct.patient.map(leaks._person).nunique()
        and patient_leaks(covid_ct).empty
        and patient_leaks(loey_split(covid_ct)).empty
    )
    assert pd.Series([leaks._pixel_hash(p) for p in covid_ct.image]).is_unique
    t, most = covid_ct.copy(), covid_ct.patient.value_counts().idxmax()
    t.loc[t.index[t.patient == most][0], 'split'] = (
        'val' if t.split[t.patient == most].iloc[0] != 'val' else 'test'
    )
    assert patient_leaks(t).patient.tolist() == [most] and check_split(t)[
        ['kind', 'key']
    ].values.tolist() == [['patient', most]]


def test_real_leaks_that_ids_do_not_show(covid_ct):
    "The same slices under both labels, and the same persons under two ids, on both sides of the official split."
    t = covid_ct.assign(name=file_names(covid_ct)).set_index('name')
    for test, train in (('kjr-21-e24-p5-29.png', '71%0.jpg'), ('kjr-21-e24-p5-31.png', '71%1.jpg')):
        assert (t.split[test], t.label[test], t.split[train], t.label[train]) == (
            'test',
            'COVID',
            'train',
            'NonCOVID',
        ) and loey._alike((t.image[test], t.image[train]))
    t.loc[['2020.03.12.20034686-p17-91-3.png', '2020.03.12.20034686-p17-91-4.png'], 'patient'] = [
        'Patient 168',
        'Patient 169',
    ]  # as the pictures say: Pt 1, Pt 2
    assert patient_leaks(t).values.tolist() == [
        ['Patient 168', 'COVID', 1, 0, 1],
        ['Patient 169', 'COVID', 1, 0, 1],
    ]


@pytest.mark.parametrize(
    'change, gone',
    [
        (lambda n: n, 4),
        (lambda n: n.replace('%', '_'), 4),
        (lambda n: n.upper(), 4),
        (lambda n: n.replace('Talaromyces', 'x'), 0),
    ],
)
def test_loey_split_of_other_copies(change, gone):
    names = [change(n) for n in FUNGUS + LONG] + ['2020.03.01-p1-1.png']
    t = as_table(
        [
            dict(image=f'/nowhere/{n}', label='COVID', split='test', width=32, height=32, sha256=n)
            for n in names
        ]
    )
    t.attrs = dict(notes=['first'])
    with pytest.warns(UserWarning, match=f'{gone} of 4 .*not the whole set'):
        out = loey_split(t)
    assert (
        len(out) == 8 - gone
        and len(out.attrs['notes']) == 2
        and out.attrs['notes'][0] == 'first'
        and f'{gone} of 4' in out.attrs['notes'][1]
        and t.attrs == dict(notes=['first'])
    )
    with pytest.warns(UserWarning, match='0 of 4'):
        assert len(loey_split(t.assign(label='NonCOVID'))) == 8


def test_loey_split_of_other_data(tmp_path):
    t = load('covid_ct', make_covid_ct(tmp_path / 'COVID-CT'))
    with pytest.warns(UserWarning, match='0 of 4 COVID images left out; 8/2/2 images'):
        out = loey_split(t, 'names')
    assert out.equals(t) and t.attrs['notes'] == [] and len(out.attrs['notes']) == 1
    with pytest.raises(InputError, match="reading 'Fungus' is unknown. There are: fungus, names"):
        loey_split(t, 'Fungus')


def test_patient_leaks():
    ids = ['Patient 7', 'patient_07', ' Patient  7', 'Patient 70', 'Patient 70', 'P-1', None, None]
    t = table(
        8,
        patient=lambda i: ids[i],
        split=lambda i: ['train', 'test', 'train', 'val', 'val', 'test', 'train', 'test'][i],
    )
    assert patient_leaks(t).values.tolist() == [
        ['Patient 7 = patient_07', 'a, b', 2, 0, 1]
    ] and list(patient_leaks(t)) == ['patient', 'label', 'train', 'val', 'test']
    t.loc[1, 'split'] = None
    assert (
        patient_leaks(t).empty
        and list(patient_leaks(t)) == ['patient', 'label', 'train', 'val', 'test']
        and patient_leaks(table(4)).empty
    )


# ---------------------------------------------------------------- generated images of Loey et al.


def real_table(root):
    return load('covid_ct', make_covid_ct(root / 'COVID-CT'))


def make_alone(root, classes=('COVID', 'NonCOVID'), n=3):
    for k, c in enumerate(classes):
        for i in range(n):
            put(root / c / f'{i}.png', noise(1000 + 10 * k + i, (32, 32)))
    return root


def make_mixed(root, real, parts=('train+CGAN', 'val', 'test'), classes=('COVID', 'NonCOVID'), n=3):
    "Every real image in its part, and `n` generated ones a class where the part says CGAN (or says train)."
    for k, (label, folder) in enumerate(zip(('COVID', 'NonCOVID'), classes)):
        for part in parts:
            for p in real.image[(real.label == label) & (real.split == part.split('+')[0])]:
                put(root / part / folder / Path(p).name, read_image(p), format='PNG')
            if 'CGAN' in part or part == 'train':
                for i in range(n):
                    put(
                        root / part / folder / f'{i}.png',
                        noise(2000 + 100 * parts.index(part) + 10 * k + i, (32, 32)),
                    )
    return root


@pytest.mark.parametrize(
    'name, classes',
    [
        ('COVID-19CGAN', ('COVID', 'NonCOVID')),
        ('COVID-19CGAN', ('CT_COVID', 'CT_NonCOVID')),
        ('covid19cgan', ('covid', 'NonCovid')),
        ('CGAN', ('COVID-19', 'non-COVID')),
        ('COVID-19CGAN', ('train/COVID', 'train/NonCOVID')),
    ],
)
def test_generated_alone(tmp_path, name, classes):
    root = make_alone(tmp_path / 'set' / 'COVID-19' / name, classes)
    for path in (root, root.parent, tmp_path / 'set', tmp_path):
        assert locate_generated(path) == root
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = load_generated(tmp_path)
    assert (
        list(t) == COLUMNS
        and t.label.tolist() == ['COVID'] * 3 + ['NonCOVID'] * 3
        and set(t.split) == {'train'}
        and set(t.source) == {'Loey et al.'}
    )
    assert (
        t.patient.isna().all()
        and set(t.width) == {32}
        and t.attrs['rejected'] == t.attrs['notes'] == t.attrs['left_out'] == []
        and t.attrs['root'] == str(root)
    )
    assert t.attrs['folders'] == {c: 3 for c in classes}


@pytest.mark.parametrize(
    'name, parts, n',
    [
        ('COVID-19+CGAN', ('train+CGAN', 'val', 'test'), 6),
        ('COVID-19+CGAN', ('train+CGAN', 'val+CGAN', 'test'), 12),
        ('COVID-19 & CGAN', ('train & CGAN', 'val', 'test'), 6),
        ('COVID-19_CGAN', ('train', 'val', 'test'), 6),
        ('COVID-19CGAN', ('train', 'test'), 6),
    ],
)
def test_generated_among_real(tmp_path, name, parts, n):
    real = real_table(tmp_path / 'real')
    parts_real = real.assign(
        split=real.split.map({p.split('+')[0].split(' ')[0]: p.split('+')[0] for p in parts})
    )
    root = make_mixed(tmp_path / 'loey' / name, parts_real, parts)
    put(tmp_path / 'loey' / 'COVID-19+Aug+CGAN' / 'train+Aug+CGAN' / 'COVID' / '7.png', noise(7))
    with pytest.warns(UserWarning, match='real images left out') as caught:
        t = load_generated(tmp_path / 'loey', real)
    assert (
        len(caught) == 1
        and locate_generated(tmp_path / 'loey') == root
        and t.groupby('label').size().to_dict() == {'COVID': n // 2, 'NonCOVID': n // 2}
    )
    assert (
        all(Path(p).stem.isdecimal() for p in t.image)
        and all('test' not in Path(p).parts for p in t.image)
        and list(t.index) == list(range(n))
    )
    read = set(
        real.image[
            real.split.isin(
                [
                    s
                    for s in ('train', 'val')
                    if any(
                        p.startswith(s)
                        for p in (
                            parts if parts[0] == 'train' else [p for p in parts if 'CGAN' in p]
                        )
                    )
                ]
            )
        ]
    )
    assert len(t.attrs['left_out']) == len(read) and all(
        'has the name' in w['why'] for w in t.attrs['left_out']
    )
    assert any(
        f'of the {len(read)} real images' in x and x.endswith(f'{len(read)} were met')
        for x in t.attrs['notes']
    )
    with pytest.raises(InputError, match='real and generated images together. Give real='):
        load_generated(tmp_path / 'loey')


@pytest.mark.parametrize(
    'name', ['COVID-19CGAN', 'CGAN']
)  # after and before COVID-19+CGAN in the alphabet
def test_generated_prefers_the_folder_without_real_images(tmp_path, name):
    real = real_table(tmp_path / 'real')
    make_mixed(tmp_path / 'loey' / 'COVID-19+CGAN', real)
    make_alone(tmp_path / 'loey' / name)
    assert (
        locate_generated(tmp_path / 'loey').name == name
        and len(load_generated(tmp_path / 'loey')) == 6
    )
    put(tmp_path / 'loey' / name / 'COVID' / 'real.png', read_image(real.image[0]))
    (tmp_path / 'loey' / name / 'COVID' / '0.png').rename(
        tmp_path / 'loey' / name / 'COVID' / Path(real.image[0]).name
    )  # where no real image should be, a name alone proves nothing
    assert len(load_generated(tmp_path / 'loey')) == 7
    with pytest.warns(
        UserWarning, match='1 real images left out, 0 known by their name, 1 by their pixels'
    ):
        t = load_generated(tmp_path / 'loey', real)
    assert (
        len(t) == 6
        and [Path(w['file']).name for w in t.attrs['left_out']] == ['real.png']
        and real.image[0] in t.attrs['left_out'][0]['why']
    )


def test_generated_among_real_under_other_names(tmp_path):
    made = make_covid_ct(tmp_path / 'real' / 'COVID-CT')
    put(
        made / 'Images-processed' / 'CT_NonCOVID' / 'NonCOVID-p1-12%0.jpg',
        Image.fromarray(noise(50)).resize((150, 120)),
        format='PNG',
    )  # white noise does not survive resizing
    real = load('covid_ct', made)
    root = make_mixed(tmp_path / 'loey' / 'COVID-19+CGAN', real)
    folder, images = (
        root / 'train+CGAN' / 'NonCOVID',
        real.image[(real.label == 'NonCOVID') & (real.split == 'train')].tolist(),
    )
    for p in images:
        (folder / Path(p).name).unlink()
    put(
        folder / (Path(images[0]).stem + '.png'),
        Image.fromarray(read_image(images[0])).resize((64, 64)),
    )  # converted and resized
    put(
        folder / (Path(images[1]).stem + '.png'), noise(77, (64, 64))
    )  # generated, called so by chance
    put(
        folder / 'renamed.png', Image.fromarray(read_image(images[2])).convert('RGB')
    )  # same pixels
    put(
        folder / 'lost.png', Image.fromarray(read_image(images[3])).resize((64, 64))
    )  # nothing tells
    with pytest.warns(
        UserWarning,
        match='6 real images left out, 5 known by their name, 1 by their pixels.*of the 8 real images of train 6 were met; the others may be among',
    ):
        t = load_generated(root, real)
    kept = {Path(p).name for p in t.image[t.label == 'NonCOVID']}
    assert kept == {'0.png', '1.png', '2.png', Path(images[1]).stem + '.png', 'lost.png'}
    assert {Path(w['file']).name for w in t.attrs['left_out']} >= {
        'renamed.png',
        Path(images[0]).stem + '.png',
    }
    with pytest.raises(InputError, match='real: no image of COVID or NonCOVID'):
        load_generated(root, real.assign(label='x'))


def test_generated_broken_and_unexpected_files(tmp_path):
    root = make_alone(tmp_path / 'COVID-19CGAN')
    good = (root / 'COVID' / '0.png').read_bytes()
    for i, spoil in enumerate(BROKEN.values()):
        (root / 'COVID' / f'bad{i}.png').write_bytes(spoil(good))
    put(root / 'NonCOVID' / 'tiny.png', noise(1, (3, 3)))
    put(root / 'samples.png', noise(2))
    (root / 'NonCOVID' / 'Thumbs.db').touch()
    (root / 'readme.txt').write_text('x')
    with pytest.warns(UserWarning, match=f'{len(BROKEN) + 2} not used') as caught:
        t = load_generated(tmp_path)
    assert len(caught) == 1 and len(t) == 6
    why = {Path(r['file']).name: r['why'] for r in t.attrs['rejected']}
    assert (
        len(why) == len(BROKEN) + 2
        and 'no folder of a class' in why['samples.png']
        and '3×3' in why['tiny.png']
    )
    for p in (root / 'NonCOVID').iterdir():
        p.unlink()
    with pytest.warns(UserWarning, match='no images of NonCOVID'):
        assert set(load_generated(tmp_path).label) == {'COVID'}


@pytest.mark.parametrize('inside', [True, False])
def test_generated_in_a_zip(tmp_path, cache, inside):
    make_alone(tmp_path / 'made' / 'COVID-19CGAN')
    (tmp_path / 'here').mkdir()
    (tmp_path / 'here' / 'broken.zip').write_bytes(b'no zip')
    z = zip_folder(tmp_path / 'made', tmp_path / 'here' / 'archive.zip', 'COVID-19/')
    assert locate_generated(z if inside else z.parent) == z and not list(
        cache.iterdir()
    )  # asked, not unpacked
    assert len(load_generated(z if inside else z.parent)) == 6 and len(list(cache.iterdir())) == 1
    with pytest.raises(InputError, match='broken.zip: the zip cannot be read'):
        locate_generated(tmp_path / 'here' / 'broken.zip')


def test_generated_not_there(tmp_path):
    make_covid_ct(tmp_path / 'COVID-CT')
    for c in ('COVID', 'NonCOVID'):
        put(tmp_path / 'loey' / 'COVID-19+Aug+CGAN' / 'train+Aug+CGAN' / c / '1.png')
        put(tmp_path / 'loey' / 'COVID-19+Aug' / 'train+Aug' / c / '1.png')
    assert (
        locate_generated(tmp_path) is None
        and locate_generated(tmp_path / 'loey' / 'COVID-19+Aug+CGAN') is None
    )
    with pytest.raises(
        InputError,
        match=r'are not there. Expected: COVID-19CGAN/<class>/.*mloey1/.*Aug.*classical augmentations',
    ):
        load_generated(tmp_path)
    with pytest.raises(InputError, match='no such folder'):
        locate_generated(tmp_path / 'nowhere')
    zip_folder(tmp_path / 'loey', tmp_path / 'z.zip')
    assert locate_generated(tmp_path / 'z.zip') is None
    with pytest.raises(InputError, match='are not there'):
        load_generated(tmp_path / 'z.zip')
    (tmp_path / 'loey' / 'COVID-19CGAN' / 'COVID').mkdir(parents=True)
    assert locate_generated(tmp_path) is None  # empty
    make_alone(tmp_path / 'a' / 'COVID-19CGAN')
    make_alone(tmp_path / 'b' / 'COVID-19CGAN')
    for f in (locate_generated, load_generated):
        with pytest.raises(InputError, match='more than once'):
            f(tmp_path)


def test_generated_only_real_images(tmp_path):
    real = real_table(tmp_path / 'real')
    with pytest.raises(InputError, match=r'no generated image is there, only real ones \(8\)'):
        load_generated(make_mixed(tmp_path / 'COVID-19+CGAN', real, n=0), real)


def test_real_images_known_again_after_resizing(covid_ct, tmp_path):
    "Some of COVID-CT at another size, as JPEG called .png, with the endings changed: all are known, and noise with a name of theirs is not."
    train = covid_ct[covid_ct.split == 'train']
    some = pd.concat([train[train.label == c].iloc[::12] for c in ('COVID', 'NonCOVID')])
    for r in some.itertuples():
        put(
            tmp_path / 'COVID-19+CGAN' / 'train+CGAN' / r.label / f'{Path(r.image).stem}.png',
            Image.fromarray(read_image(r.image)).resize((256, 256)),
            format='JPEG',
        )
    for i in range(4):
        put(tmp_path / 'COVID-19+CGAN' / 'train+CGAN' / 'COVID' / f'{i}.png', noise(i, (256, 256)))
    name = next(
        Path(p).stem
        for p in train.image[train.label == 'NonCOVID']
        if p.endswith('.jpg') and p not in set(some.image)
    )
    put(
        tmp_path / 'COVID-19+CGAN' / 'train+CGAN' / 'NonCOVID' / f'{name}.png', noise(9, (256, 256))
    )
    with pytest.warns(UserWarning, match=f'of the 425 real images of train {len(some)} were met'):
        t = load_generated(tmp_path, covid_ct)
    assert sorted(file_names(t)) == sorted(
        [f'{i}.png' for i in range(4)] + [f'{name}.png']
    ) and len(t.attrs['left_out']) == len(some)


# ---------------------------------------------------------------- downloads


class Breaking(http.server.BaseHTTPRequestHandler):
    "Serves files with ETag and Range; breaks the connection after `server.cut` bytes the first time."

    def log_message(self, *a):
        pass

    def do_GET(self):
        s, name = self.server, self.path.lstrip('/')
        if name not in s.files:
            return self.send_error(404)
        data, begin = s.files[name], 0
        etag = f'"{hash(data)}"'
        asked = self.headers.get('Range')
        if asked and self.headers.get('If-Range') == etag and not s.deaf:
            begin = int(asked.split('=')[1].rstrip('-'))
        s.log.append((name, begin))
        self.send_response(206 if begin else 200)
        self.send_header('ETag', etag)
        self.send_header('Content-Length', str(len(data) - begin))
        self.end_headers()
        cut, s.cut = s.cut, None
        self.wfile.write(data[begin : begin + cut] if cut else data[begin:])
        self.close_connection = True


@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Breaking)
    s.files, s.cut, s.deaf, s.log = {'a.bin': os.urandom(300_000)}, None, False, []
    s.url = f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


def test_download_goes_on_after_a_break(tmp_path, server):
    server.cut = 100_000
    with pytest.raises(InputError, match='100,000 bytes are kept, and the same command goes on'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin', attempts=1)
    assert not (tmp_path / 'a.bin').exists() and (tmp_path / 'a.bin.part').stat().st_size == 100_000
    got = download(f'{server.url}/a.bin', tmp_path / 'a.bin')
    assert got.read_bytes() == server.files['a.bin'] and server.log == [
        ('a.bin', 0),
        ('a.bin', 100_000),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.bin', 'a.bin.sha256']
    download(f'{server.url}/a.bin', tmp_path / 'a.bin')
    assert len(server.log) == 2  # it is there


def test_download_tries_again_by_itself(tmp_path, server):
    server.cut = 5
    assert download(f'{server.url}/a.bin', tmp_path / 'a.bin').stat().st_size == 300_000


@pytest.mark.parametrize('what', ['changed', 'deaf'])
def test_download_begins_anew_if_it_must(tmp_path, server, what):
    server.cut = 100_000
    with pytest.raises(InputError):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin', attempts=1)
    if what == 'changed':
        server.files['a.bin'] = os.urandom(200_000)
    else:
        server.deaf = True
    assert download(f'{server.url}/a.bin', tmp_path / 'a.bin').read_bytes() == server.files['a.bin']


def test_download_checksums(tmp_path, server):
    with pytest.raises(InputError, match='a.bin: checksum .* expected 0000.*thrown away'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin', sha256='0' * 64)
    assert list(tmp_path.iterdir()) == []
    download(
        f'{server.url}/a.bin',
        tmp_path / 'a.bin',
        sha256=hashlib.sha256(server.files['a.bin']).hexdigest(),
    )
    (tmp_path / 'a.bin').write_bytes(b'damaged')
    with pytest.raises(InputError, match='changed since it was downloaded'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin')
    (tmp_path / 'a.bin').unlink()
    server.files['a.bin'] = b'another file'
    with pytest.raises(InputError, match='a.bin.sha256'):
        download(f'{server.url}/a.bin', tmp_path / 'a.bin')


def test_fetch_covid_ct(tmp_path, server):
    made = make_covid_ct(tmp_path / 'made')
    for c in ('COVID', 'NonCOVID'):
        server.files[f'Images-processed/CT_{c}.zip'] = zip_folder(
            made / 'Images-processed' / f'CT_{c}', tmp_path / 'z.zip', f'CT_{c}/'
        ).read_bytes()
    for p in [*made.rglob('*.txt'), *made.glob('*.csv')]:
        server.files[str(p.relative_to(made))] = p.read_bytes()
    server.cut = 3000  # in the middle of the first zip
    with pytest.raises(InputError, match=r'CT_COVID\.zip'):
        fetch('covid_ct', tmp_path / 'data', mirror=server.url, attempts=1)
    root = fetch('covid_ct', tmp_path / 'data', mirror=server.url)
    t = load('covid_ct', tmp_path / 'data')
    assert (
        root == tmp_path / 'data' / 'COVID-CT'
        and len(t) == 12
        and t.split.notna().all()
        and t.patient.notna().all()
    )
    requests = len(server.log)
    fetch('covid_ct', tmp_path / 'data', mirror=server.url)
    assert len(server.log) == requests
    server.files['Images-processed/CT_COVID.zip'] = b'<html>log in</html>'
    with pytest.raises(InputError, match='no zip'):
        fetch('covid_ct', tmp_path / 'second', mirror=server.url)


def test_fetch_offline(tmp_path, capsys):
    with pytest.raises(InputError, match='no connection.*Look at the network'):
        fetch('covid_ct', tmp_path, mirror='http://127.0.0.1:9', attempts=1, timeout=2)


def test_fetch_kaggle_errors(tmp_path, monkeypatch, capsys):
    import kagglehub

    def refuse(handle):
        raise type(
            'KaggleApiHTTPError', (OSError,), {'response': types.SimpleNamespace(status_code=403)}
        )('403 Client Error')

    monkeypatch.setattr(kagglehub, 'dataset_download', refuse)
    assert data_fetch('head_ct', tmp_path) == 2
    err = capsys.readouterr().err
    assert (
        'credentials' in err
        and 'kaggle.json' in err
        and 'felipekitamura' in err
        and 'Traceback' not in err
    )
    (tmp_path / 'head-ct-hemorrhage').mkdir()
    with pytest.raises(InputError, match='not complete'):
        fetch('head_ct', tmp_path)


def test_fetch_kaggle_leaves_a_complete_set_alone(tmp_path, monkeypatch):
    import kagglehub

    make_head_ct(tmp_path / 'h', 200)
    monkeypatch.setattr(kagglehub, 'dataset_download', lambda h: pytest.fail('downloaded again'))
    assert fetch('head_ct', tmp_path) == tmp_path / 'h'


def test_exit_codes(tmp_path, capsys):
    make_head_ct(tmp_path / 'h', 200)
    assert data_verify('head_ct', tmp_path) == 0 and ': complete' in capsys.readouterr().out
    next((tmp_path / 'h').rglob('007.png')).unlink()
    assert data_verify('head_ct', tmp_path) == 1 and '- 007.png' in capsys.readouterr().out


def test_import_loads_no_engine():
    code = "import sys, gan_covid.datasets.verify, gan_covid.datasets.loey; print([m for m in ('torch', 'tensorflow', 'keras', 'kagglehub', 'pooch') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )
