"""Folders of one's own: masks, patients, tables, series and foreign formats go nowhere without a word."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gan_covid.datasets import dicom
from gan_covid.datasets.arrays import load_images
from gan_covid.datasets.leaks import check_split
from gan_covid.datasets.own import load_folder
from gan_covid.datasets.splits import stratified_split
from gan_covid.records import InputError


def noise(name, size=(24, 24)):
    return np.random.default_rng(list(str(name).encode())).integers(0, 256, size, np.uint8)


def put(root, *names, image=None):
    "Pictures, each different from the others (by its name), or files with text."
    for n in names:
        path = root / n
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in ('.png', '.jpg', '.tif'):
            Image.fromarray(noise(n) if image is None else image).save(path)
        else:
            path.write_text('text')
    return root


def mask(root, *names):
    a = np.zeros((24, 24), np.uint8)
    a[4:20, 4:20] = 255
    return put(root, *names, image=a)


def said(f, *words):
    "What `f` returns and the text of its one warning, which must contain the words."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        out = f()
    assert len(caught) <= 1
    text = str(caught[0].message) if caught else ''
    assert all(w in text for w in words), text
    return out, text


# --- masks ---

MASKS = {
    'beside': '{c}/x{i}_mask.png',
    'beside, seg': '{c}/x{i}-seg.png',
    'folder': '{c}/masks/x{i}.png',
    'folder and name': '{c}/Segmentation/x{i}_mask.png',
    'other top': 'masks/{c}/x{i}.png',
    'sibling': '{c}_masks/x{i}.png',
    'prefix': '{c}/mask_x{i}.png',
    'words': '{c}/x{i} ground truth.png',
}


@pytest.mark.parametrize('where', MASKS)
def test_masks_become_the_mask_column_and_no_images(tmp_path, where):
    top = 'images/' if where == 'other top' else ''
    for c in 'ab':
        for i in range(3):
            put(tmp_path, f'{top}{c}/x{i}.png')
            mask(tmp_path, MASKS[where].format(c=c, i=i))
    table, _ = said(lambda: load_folder(tmp_path, patients=False), '6 of 6 images have a mask')
    assert len(table) == 6 and set(table.label) == {'a', 'b'}
    assert table['mask'].notna().all() and not table.image.isin(table['mask']).any()
    for image, its_mask in zip(table.image, table['mask']):
        assert re.findall(r'x\d', image)[-1] == re.findall(r'x\d', its_mask)[-1]
    (images, own, classes, _), _ = said(lambda: load_images(tmp_path), 'have a mask')
    assert len(images) == 6 and classes == ['a', 'b'] and own.image.tolist() == table.image.tolist()


def test_a_mask_without_an_image_is_named(tmp_path):
    put(tmp_path, 'a/x.png', 'b/y.png')
    mask(tmp_path, 'a/x_mask.png', 'a/x_mask_1.png', 'a/z_mask.png', 'b/masks/w.png')
    words = '3 not used', 'z_mask.png', 'by its name or folder a mask', 'x_mask_1.png'
    table, text = said(lambda: load_folder(tmp_path, patients=False), *words)
    assert [Path(p).name for p in table.image] == ['x.png', 'y.png']
    assert Path(table['mask'][0]).name == 'x_mask.png'
    rejected = {Path(r['file']).name for r in table.attrs['rejected']}
    assert rejected == {'x_mask_1.png', 'z_mask.png', 'w.png'}
    (images, *_), _ = said(lambda: load_images(tmp_path), '3 files not used')
    assert len(images) == 2


def test_folders_of_images_and_masks_are_no_classes(tmp_path):
    mask(put(tmp_path, 'images/x.png'), 'masks/x.png')
    with pytest.raises(InputError, match='no images in sub-folders'):
        load_folder(tmp_path)
    images, _, classes, _ = said(lambda: load_images(tmp_path), '1 of 1 images have a mask')[0]
    assert len(images) == 1 and classes == []


def test_names_that_only_contain_the_word_are_images(tmp_path):
    put(tmp_path, 'with_mask/unmasked.png', 'with_mask/2.png')
    put(tmp_path, 'without_mask/maskless.png', 'without_mask/x_label.png')
    table, text = said(lambda: load_folder(tmp_path, patients=False))
    assert len(table) == 4 and set(table.label) == {'with_mask', 'without_mask'} and text == ''


# --- one picture, two classes ---


@pytest.mark.parametrize('how', ['file', 'pixels'])
def test_one_picture_in_two_classes_is_refused(tmp_path, how):
    put(tmp_path, 'a/1.png', 'a/2.png', 'b/3.png')
    same = Image.open(tmp_path / 'a' / '2.png')
    if how == 'file':
        (tmp_path / 'b' / 'again.png').write_bytes((tmp_path / 'a' / '2.png').read_bytes())
    else:
        same.convert('RGB').save(tmp_path / 'b' / 'again.png')
    words = r'a/2.png \(a\) and .*b/again.png \(b\).*remove the other'
    for f in load_folder, load_images:
        with pytest.raises(InputError, match=words):
            f(tmp_path)
    (tmp_path / 'b' / 'again.png').rename(
        tmp_path / 'a' / 'again.png'
    )  # twice in one class is allowed
    assert len(load_folder(tmp_path)) == len(load_images(tmp_path)[0]) == 4


# --- labels in a table ---


def flat(root, n=6):
    return put(root, *(f'{i:03d}.png' for i in range(n)))


def test_a_table_beside_a_flat_folder_is_asked_about(tmp_path):
    lines = ''.join(f'{i},{i % 2}\n' for i in range(6))
    (flat(tmp_path) / 'labels.csv').write_text('id, hemorrhage\n' + lines)
    words = 'labels.csv names them, with the columns id, hemorrhage: give labels='
    for f in load_folder, load_images:
        with pytest.raises(InputError, match=words):
            f(tmp_path)
    table = load_folder(tmp_path, labels=tmp_path / 'labels.csv', patients=False)
    assert table.label.tolist() == ['0', '1'] * 3
    images, own, classes, _ = load_images(tmp_path, labels=tmp_path / 'labels.csv')
    assert classes == ['0', '1'] and own.label.tolist() == ['0'] * 3 + ['1'] * 3
    assert load_images(tmp_path, labels=None)[2] == []
    (tmp_path / 'labels.csv').unlink()
    assert load_images(tmp_path)[2] == []


def test_a_table_tells_split_and_patient_too(tmp_path):
    flat(tmp_path)
    pd.DataFrame(
        {
            'File name': [f'{i:03d}.png' for i in range(5)],
            'Diagnosis': list('xxyyy'),
            'Set': ['Training'] * 3 + ['test'] * 2,
            'Patient ID': list('11234'),
        }
    ).to_csv(tmp_path / 't.csv', index=False)
    table, text = said(
        lambda: load_folder(tmp_path, labels=tmp_path / 't.csv'), '005.png: no line in t.csv'
    )
    assert table[['label', 'split', 'patient']].values.tolist() == [
        ['x', 'train', '1'],
        ['x', 'train', '1'],
        ['y', 'train', '2'],
        ['y', 'test', '3'],
        ['y', 'test', '4'],
    ]
    assert 'patients are not known' not in text
    own = load_images(tmp_path, labels=tmp_path / 't.csv')[1]
    assert own[['label', 'split', 'patient']].equals(table[['label', 'split', 'patient']])


@pytest.mark.parametrize(
    'text, words',
    [
        ('a,b,c\n000.png,1,2\n', 'image and label'),
        ('image,label\n9.png,a\n', "line 2: '9.png' is not in"),
        ('image,label\n0,\n', "line 2: '0' has no label"),
        ('image,label\n0,a\n000.png,b\n', 'more than once'),
        ('image,label\nx,a\n', "'x' may be .*Write its folder"),
        ('', 'not readable as a table'),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_line(tmp_path, text, words):
    put(flat(tmp_path / 'i'), 'a/x.png', 'b/x.png')
    (tmp_path / 't.csv').write_text(text)
    for f in load_folder, load_images:
        with pytest.raises(InputError, match=f't.csv.*{words}'):
            f(tmp_path / 'i', labels=tmp_path / 't.csv')


# --- patients ---


@pytest.mark.parametrize(
    'name, pattern',
    [
        ('P{p:03d}_{k}.png', r'(P\d+)'),
        ('patient{p}-{k}.png', r'(patient\d+)'),
        ('sub-{p:02d}_ses-{k}.png', r'(sub-\d+)'),
        ('{p}_{k}.png', r'(\d+)[ _.-]+\d+\.'),
        ('IM-{p:04d}-{k:04d}.png', r'(IM-\d+)[ _.-]+\d+\.'),
    ],
)
def test_names_that_tell_the_patient_are_said(tmp_path, name, pattern):
    for p in range(10):
        for k in range(3):
            put(tmp_path, f'{"ab"[p % 2]}/' + name.format(p=p, k=k))
    words = 'LOOK', 'training and test', f"patients=r'{pattern}'"
    table, text = said(lambda: load_folder(tmp_path), *words)
    assert table.patient.isna().all()
    table, text = said(lambda: load_folder(tmp_path, patients=pattern))
    assert table.patient.nunique() == 10 and table.groupby('patient').size().eq(3).all()
    assert text == ''
    split = stratified_split(table, {'train': 0.6, 'val': 0.2, 'test': 0.2})
    assert split.groupby('patient').split.nunique().eq(1).all()
    assert said(lambda: load_folder(tmp_path, patients=False))[1] == ''


def test_unknown_patients_are_said(tmp_path):
    put(tmp_path, *(f'{c}/{c}-{i}.png' for c in 'ab' for i in range(6)))
    table, _ = said(lambda: load_folder(tmp_path), 'the patients are not known', 'patients=')
    assert any('patients' in n for n in table.attrs['notes'])


@pytest.mark.parametrize('each, taken', [(3, True), (130, False)])
def test_sub_folders_with_many_images_are_asked_about(tmp_path, each, taken):
    put(tmp_path, *(f'{c}/{c}{p}/{k}.png' for c in 'ab' for p in range(3) for k in range(each)))
    words = '6 sub-folders', f'{each} images each', 'patients=False'
    table, text = said(lambda: load_folder(tmp_path), *words)
    assert table.patient.notna().all() == taken and ('series' in text) != taken
    assert said(lambda: load_folder(tmp_path, patients='folders'))[0].patient.nunique() == 6


def test_a_patient_on_two_sides_of_a_given_split_is_said(tmp_path):
    for s in 'train', 'test':
        put(tmp_path, *(f'{s}/a/{s}{p}/{k}.png' for p in range(3) for k in range(2)))
    put(tmp_path, 'train/a/both/1.png', 'test/a/both/2.png')
    words = 'LEAK: 1 patients stand in more than one', 'train/a/both/1.png'
    table, _ = said(lambda: load_folder(tmp_path), *words)
    assert len(check_split(table)) == 1
    picture = (tmp_path / 'train' / 'a' / 'train0' / '0.png').read_bytes()
    (tmp_path / 'test' / 'a' / 'test0' / 'again.png').write_bytes(picture)
    said(lambda: load_folder(tmp_path), 'LEAK: 1 pictures stand in more than one', 'again.png')


# --- splits ---


@pytest.mark.parametrize(
    'layout',
    [
        '{s}/{c}/{i}.png',
        '{c}/{s}/{i}.png',
        '{s}/images/{c}/{i}.png',
        'images/{s}/{c}/{i}.png',
        '{s}_set/{c}/images/{i}.png',
        '{c}/images/{s}/{i}.png',
    ],
)
def test_a_given_split_is_found_above_and_below_the_classes(tmp_path, layout):
    for s, n in {'Training': 4, 'validation': 1, 'Test': 2}.items():
        put(tmp_path, *(layout.format(s=s, c=c, i=i) for c in 'ab' for i in range(n)))
    prepared, trained = (
        said(lambda: load_folder(tmp_path))[0],
        said(lambda: load_images(tmp_path))[0][1],
    )
    for table in prepared, trained:
        assert table.split.value_counts().to_dict() == {'train': 8, 'val': 2, 'test': 4}
        assert set(table.label) == {'a', 'b'} and table.patient.isna().all()


def test_half_a_split_is_refused(tmp_path):
    put(tmp_path, 'a/train/1.png', 'a/test/2.png', 'b/3.png')
    for f in load_folder, load_images:
        with pytest.raises(InputError, match='images lie in b too'):
            f(tmp_path)


# --- what is not read ---

FOREIGN = {
    '1.dcm': b'x',
    'IM0001': bytes(128) + b'DICM' + bytes(300),
    'ct.nii.gz': b'\x1f\x8b',
    'ct.nii': bytes(344) + b'n+1\0' + bytes(9),
    'a.npz': b'PK\x03\x04',
    'volume.mha': b'x',
    'a.mat': b'x',
    'slide.svs': b'x',
}


@pytest.mark.parametrize('name', FOREIGN)
def test_foreign_formats_are_called_by_their_names(tmp_path, name):
    for c in 'ab':
        (tmp_path / c).mkdir()
        (tmp_path / c / name).write_bytes(FOREIGN[name])
    kind = {
        '1.dcm': 'DICOM',
        'IM0001': 'DICOM',
        'a.npz': 'NumPy archive',
        'volume.mha': 'MetaImage',
        'a.mat': 'MATLAB',
        'slide.svs': 'whole-slide',
    }.get(name, 'NIfTI')
    said_by = {
        load_folder: 'DICOM.*[Ee]xport'
        if kind == 'DICOM'
        else f'{kind}.*not read here. .*[Ee]xport'
    }
    said_by[load_images] = f'{kind}.*not read here. .*[Ee]xport'
    for f, words in said_by.items():
        with pytest.raises(InputError, match=f'{name}: {words}'):
            f(tmp_path)
    put(tmp_path, 'a/1.png', 'b/2.png')
    table, _ = said(lambda: load_folder(tmp_path), '2 not used', name, kind)
    assert [r['why'].startswith(kind) for r in table.attrs['rejected']] == [True, True]
    with pytest.raises(InputError, match=name):
        load_images(tmp_path)


def test_arrays_are_for_training_only(tmp_path):
    for c in 'ab':
        (tmp_path / c).mkdir()
        np.save(tmp_path / c / 'x.npy', noise(c))
    words = r'x.npy: NumPy array \(.npy\), which is not read here. Export it as PNG'
    with pytest.raises(InputError, match=words):
        load_folder(tmp_path)
    assert len(load_images(tmp_path)[0]) == 2


def test_what_dicom_needs_is_said(tmp_path, monkeypatch):
    put(tmp_path, 'a/1.dcm')
    monkeypatch.setattr(dicom, 'has_pydicom', lambda: False)
    with pytest.raises(InputError, match=r"1.dcm: DICOM, which needs .*'gan_covid\[dicom\]'"):
        load_folder(tmp_path)
    for f in load_folder, load_images:
        words = 'rescale slope and intercept.*one window.*MONOCHROME1'
        with pytest.raises(InputError, match=words) as e:
            f(tmp_path)
        assert 'pixel_array' not in str(e.value)


@pytest.mark.parametrize('bad', ['broken', 'DICOM', 'masks', 'pages'])
def test_a_class_does_not_vanish(tmp_path, bad):
    put(tmp_path, *(f'a/{i}.png' for i in range(4)))
    (tmp_path / 'b').mkdir()
    for i in range(3):
        if bad == 'broken':
            (tmp_path / 'b' / f'{i}.png').write_bytes(b'no picture')
        elif bad == 'DICOM':
            (tmp_path / 'b' / f'{i}').write_bytes(bytes(128) + b'DICM')
        elif bad == 'masks':
            mask(tmp_path, f'b/{i}_mask.png')
        else:
            more = [Image.fromarray(noise(9))]
            path = tmp_path / 'b' / f'{i}.tif'
            Image.fromarray(noise(i)).save(path, save_all=True, append_images=more)
    with pytest.raises(InputError, match="no image of class 'b' can be used. The first: .*b/0"):
        load_folder(tmp_path)


def test_a_class_does_not_vanish_from_a_split(tmp_path):
    for s in 'train', 'test':
        put(tmp_path, *(f'{s}/{c}/{s}{i}.png' for c in 'ab' for i in range(3)))
    for f in (tmp_path / 'test' / 'b').iterdir():
        f.write_bytes(b'')
    with pytest.raises(InputError, match="no image of class 'b' in test can be used.*empty"):
        load_folder(tmp_path)


def test_every_file_that_is_not_used_is_named_with_its_reason(tmp_path):
    put(tmp_path, 'a/1.png', 'b/2.png', 'b/sub/5.png', 'loose.png')
    put(tmp_path, 'a/notes.txt', 'ages.csv', 'a/4.dcm', 'b/.hidden', 'b/Thumbs.db')
    (tmp_path / 'a' / '3.png').write_bytes(b'')
    (tmp_path / 'a' / 'noending').write_bytes((tmp_path / 'a' / '1.png').read_bytes())
    words = '6 not used', "table.attrs['rejected']", "class 'a' has lost 1 of its 2 images"
    table, text = said(lambda: load_folder(tmp_path, patients=False), *words)
    why = {Path(r['file']).name: r['why'] for r in table.attrs['rejected']}
    assert set(why) == {'loose.png', 'notes.txt', 'ages.csv', '4.dcm', '3.png', 'noending'}
    assert all(why.values())
    assert 'in no folder of a class' in why['loose.png']
    assert 'labels=' in why['ages.csv'] and 'without an ending' in why['noending']
    assert sorted(Path(p).name for p in table.image) == ['1.png', '2.png', '5.png']


def test_many_unused_files_come_as_a_list(tmp_path):
    put(tmp_path, 'a/1.png', 'b/2.png', *(f'a/n{i}.txt' for i in range(20)), 'a/x.dcm')
    words = '21 not used, e.g. ', 'DICOM', '20 more (no image)', "to_csv('rejected.csv')"
    table, text = said(lambda: load_folder(tmp_path, patients=False), *words)
    assert len(text) < 1200 and len(pd.DataFrame(table.attrs['rejected'])) == 21


def test_a_link_that_leads_back_is_no_trap(tmp_path):
    put(tmp_path, 'a/1.png', 'b/2.png')
    (tmp_path / 'a' / 'back').symlink_to(tmp_path, target_is_directory=True)
    assert len(load_folder(tmp_path, patients=False)) == len(load_images(tmp_path)[0]) == 2
