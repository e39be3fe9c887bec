"Every trap of the three public layouts."

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataset_files import make_covid_ct, make_head_ct, noise, put, zip_folder

from gan_covid.datasets.layouts import DATASETS
from gan_covid.datasets.leaks import check_split
from gan_covid.datasets.public import load
from gan_covid.datasets.verify import verify
from gan_covid.folders import natural
from gan_covid.reading import read_image, read_mask
from gan_covid.records import InputError

pytestmark = pytest.mark.usefixtures('download_cache')


# --- head CT


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
    assert any('id 99 has no image' in w for w in why)
    assert any("'x'" in w for w in why)
    assert any('both labels' in w for w in why)
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


# --- COVID-CT


def test_covid_ct(tmp_path):
    t = load('covid_ct', make_covid_ct(tmp_path / 'COVID-CT').parent)
    assert t.split.value_counts().to_dict() == {'train': 8, 'val': 2, 'test': 2}
    assert t.attrs['notes'] == []
    assert t.patient.nunique() == 6
    assert set(t.source) == {'10.1/x', 'crawled'}
    # patient 2 of each class is in val and test here
    assert set(check_split(t).kind) == {'patient'}
    assert len(check_split(t)) == 2


def test_covid_ct_name_listed_twice(tmp_path):
    root = make_covid_ct(tmp_path)
    (root / 'Data-split/COVID/trainCT_COVID.txt').write_text(
        'COVID-p1-12%0.png\nCOVID-p1-12%0.png\nCOVID-p1-12%1.png\nCOVID-p1-12%2.png\r\n'
    )
    with pytest.warns(UserWarning, match=r'twice.*COVID-p1-12%3\.png'):
        t = load('covid_ct', root)
    assert t[t.image.str.endswith('12%3.png')].split.item() == 'train'
    assert t.split.notna().all()


def test_covid_ct_name_in_two_lists_goes_to_test(tmp_path):
    root = make_covid_ct(tmp_path)
    with open(root / 'Data-split/COVID/testCT_COVID.txt', 'a') as f:
        f.write('COVID-p1-12%0.png\nnowhere.png\n')
    with pytest.warns(UserWarning, match='also in the train list'):
        t = load('covid_ct', root)
    assert t[t.image.str.endswith('/COVID-p1-12%0.png')].split.item() == 'test'
    assert 'nowhere.png' in verify('covid_ct', root).missing


def test_covid_ct_underscores_for_percent(tmp_path):
    root = make_covid_ct(tmp_path)
    for p in list((root / 'Images-processed').rglob('*%*')):
        p.rename(p.with_name(p.name.replace('%', '_')))
    t = load('covid_ct', root)
    assert t.split.notna().all()
    assert t.patient.notna().all()


def test_covid_ct_zips(tmp_path, download_cache):
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
    assert t.drop(columns='image').equals(plain.drop(columns='image'))
    assert Path(t.image[0]).is_relative_to(download_cache)
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


def test_without_lists_and_meta(tmp_path):
    root = make_covid_ct(tmp_path, listed=False)
    (root / 'COVID-CT-MetaInfo.csv').unlink()
    with pytest.warns(UserWarning, match='official split.*patients of COVID are not known'):
        t = load('covid_ct', root)
    assert t.split.isna().all()
    assert t.patient.isna().sum() == 6
    (root / 'NonCOVID-CT-MetaInfo.csv').write_text('a,b\n1,2\n')
    with pytest.warns(UserWarning, match='NonCOVID-CT-MetaInfo.csv: no columns'):
        load('covid_ct', root)


def test_real_covid_ct(real_data):
    t = load('covid_ct', real_data)
    found = t.groupby(['label', 'split']).size().to_dict()
    assert found == {
        (c, p): n
        for c, k in DATASETS['covid_ct'].splits.items()
        for p, n in zip(('train', 'val', 'test'), k)
    }
    assert t.patient.notna().all()
    assert check_split(t).empty
    assert not t.patient.str.endswith(' ').any()
    assert verify('covid_ct', real_data / 'COVID-CT').ok
    assert read_image(t[t.image.str.contains('%')].image.iloc[0]).ndim == 2


# --- Radiography


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
    assert t.label.unique().tolist() == DATASETS['radiography'].classes
    assert t['mask'].notna().all()
    assert t.attrs['notes'] == []
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
    assert r.missing[0] == 'COVID/masks/COVID-2.png'
    assert 'COVID/images/COVID-3.png' in r.missing
    assert r.unexpected == ['Normal/images/notes.doc']
    assert [(Path(b['file']).name, b['why'].split(' has')[0].split('.')[0]) for b in r.broken] == [
        ('COVID-1.png', 'the mask'),
        ('COVID-10.png', 'the mask is empty'),
    ]
    assert r.counts.published.tolist() == [3616, 6012, 10192, 1345]
    assert set(r.counts.found) == {3}


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
    assert t.label.value_counts().to_dict() == {'COVID': 2, 'Normal': 2, 'Viral Pneumonia': 2}
    assert t['mask'].isna().all()
    assert t.source[t.label == 'COVID'].tolist() == ['u1', 'u2']


def test_real_radiography(real_data):
    with pytest.warns(UserWarning, match='Lung_Opacity'):
        t = load('radiography', real_data)
    assert t.label.value_counts().to_dict() == {
        'COVID': 1100,
        'Normal': 1100,
        'Viral Pneumonia': 1100,
    }
    assert t['mask'].notna().sum() == 1100
    row = t[t['mask'].notna()].iloc[0]
    assert (row.height, row.width) == (299, 299)
    assert read_mask(row['mask']).shape == (256, 256)
    assert read_mask(row['mask'], (299, 299)).shape == (299, 299)
    assert t.image.tolist() == [
        p for c in t.label.unique() for p in sorted(t.image[t.label == c], key=natural)
    ]
