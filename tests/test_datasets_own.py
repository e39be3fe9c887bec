"A folder of your own as a table: masks, splits, patients."

import pytest
from dataset_files import noise, put

from gan_covid.datasets.leaks import check_split
from gan_covid.datasets.own import load_folder
from gan_covid.datasets.splits import stratified_split
from gan_covid.records import InputError


def test_own_folder(tmp_path):
    for c in 'xy':
        for i in range(3):
            put(tmp_path / 'f' / c / 'images' / f'{i}.tif', noise(i + 10 * (c == 'y')))
            put(tmp_path / 'f' / c / 'masks' / f'{i}.png', noise(i))
    t = load_folder(tmp_path / 'f')
    assert len(t) == 6
    assert t['mask'].notna().all()
    assert t.split.isna().all()
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
    assert t.patient.nunique() == 20
    assert t.groupby('patient').size().eq(3).all()
    assert (t.patient.str[0] == t.label).all()
    assert t.groupby('patient').split.nunique().eq(1).all()
    assert t.split.value_counts().to_dict() == {'train': 48, 'test': 12}
    again = stratified_split(t, {'train': 0.5, 'val': 0.25, 'test': 0.25})
    assert check_split(again).empty
    assert again.groupby('patient').split.nunique().eq(1).all()
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
