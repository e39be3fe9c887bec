"DICOM files as pictures: grays, windows, frames, patients; and what is said where they cannot be read."

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_files import noise, put

from gan_covid.check import as_text, check_folder
from gan_covid.datasets import dicom
from gan_covid.datasets.own import load_folder
from gan_covid.datasets.splits import stratified_split
from gan_covid.reading import read_image
from gan_covid.records import InputError

pydicom = pytest.importorskip('pydicom', reason="pydicom is needed: pip install 'gan_covid[dicom]'")
pytestmark = [
    pytest.mark.usefixtures('download_cache'),
    pytest.mark.filterwarnings('ignore::UserWarning'),
]
CT = dict(RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)


def write(path, a, patient='P1', syntax=None, **tags):
    "A DICOM file of gray (h, w), frames (n, h, w) or colour (h, w, 3)."
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    colour = a.ndim == 3 and a.shape[2] == 3
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.PatientID = 'CT', patient
    ds.Rows, ds.Columns = a.shape[:2] if colour else a.shape[-2:]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = 'RGB' if colour else 'MONOCHROME2'
    if colour:
        ds.PlanarConfiguration = 0
    elif a.ndim == 3:
        ds.NumberOfFrames = len(a)
    bits = a.dtype.itemsize * 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(a.dtype.kind == 'i')
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = a.tobytes() + b'\0' * (a.nbytes % 2)
    if syntax:
        ds.compress(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def slice_of(i, size=(24, 30)):
    "Values from 0 to 2000, as a scanner stores them."
    return (noise(i, size).astype(int) * 2000 // 255).astype(np.uint16)


def shown(a, low, high):
    "The gray that DICOM wants for rescaled values, with both ends of the window."
    return np.rint(np.clip((a.astype(float) - low) / (high - low), 0, 1) * 255)


def only(path, **how):
    "The one picture of a class, beside one of another."
    put(path / 'other' / 'x.png', noise(77))
    table = load_folder(path, **how)
    return read_image(table.image[table.label == 'mine'].iloc[0])


# --- grays


def test_the_files_own_window_in_hounsfield_units(tmp_path):
    a = slice_of(1)
    write(tmp_path / 'mine' / '1.dcm', a, **CT)
    # PS3.3 C.11.2.1.2: centre − ½ ∓ (width − 1) / 2
    assert (only(tmp_path) == shown(a - 1024.0, 40 - 0.5 - 199.5, 40 - 0.5 + 199.5)).all()


def test_the_users_window_before_the_files_own(tmp_path):
    a = slice_of(1)
    write(tmp_path / 'mine' / '1.dcm', a, **CT)
    assert (only(tmp_path, window=(-1000, 400)) == shown(a - 1024.0, -1000, 400)).all()
    assert (only(tmp_path) != only(tmp_path, window=(-1000, 400))).any()
    for wrong in (5, 5), (1,), 'full':
        with pytest.raises(InputError, match='window='):
            load_folder(tmp_path, window=wrong)


def test_one_range_for_all_files_without_a_window(tmp_path):
    bright, dark = slice_of(1), slice_of(2) // 8
    write(tmp_path / 'mine' / '1.dcm', dark, BitsStored=12, HighBit=11)
    write(tmp_path / 'other' / '1.dcm', bright, BitsStored=12, HighBit=11)
    assert bright.max() == 2000 and (only(tmp_path) == shown(dark, 0, 4095)).all()
    assert 'by the range 0…4095 of all' in ' '.join(load_folder(tmp_path).attrs['notes'])


def test_values_below_zero_have_their_whole_range(tmp_path):
    a = slice_of(1).astype(np.int16)
    a[0] = -2000  # outside the circle of the scanner
    write(
        tmp_path / 'mine' / '1.dcm',
        a,
        RescaleIntercept=-1024,
        RescaleSlope=1,
        PixelPaddingValue=-2000,
    )
    low, high = a[1:].min(), a[1:].max()
    got = only(tmp_path, window='range')
    assert (got[1:] == shown(a[1:], low, high)).all() and not got[0].any()


def test_monochrome1_is_no_negative(tmp_path):
    a = noise(1)
    write(tmp_path / 'mine' / '1.dcm', 255 - a, PhotometricInterpretation='MONOCHROME1')
    write(tmp_path / 'third' / '1.dcm', noise(2))
    assert (only(tmp_path) == a).all()
    assert '1 of MONOCHROME1 were inverted' in ' '.join(load_folder(tmp_path).attrs['notes'])


def test_eight_bits_stay_as_they_are(tmp_path):
    a = noise(1) // 2
    write(tmp_path / 'mine' / '1.dcm', a)
    assert (only(tmp_path) == a).all()


def test_sigmoid_and_a_table_of_grays(tmp_path):
    a = slice_of(1)
    write(tmp_path / 'mine' / '1.dcm', a, **CT | {'VOILUTFunction': 'SIGMOID'})
    wanted = 255 / (1 + np.exp(-4 * (a - 1024.0 - 40) / 400))
    assert np.abs(only(tmp_path) - wanted).max() <= 0.51
    lut = pydicom.Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 8], np.arange(255, -1, -1, '<u2').tobytes()
    write(tmp_path / 'lut' / 'mine' / '1.dcm', noise(1), VOILUTSequence=[lut])
    assert (only(tmp_path / 'lut') == 255 - noise(1)).all()


def test_colour_and_compressed_files(tmp_path):
    from pydicom.uid import RLELossless

    rgb = np.stack([noise(i) for i in range(3)], 2)
    write(tmp_path / 'mine' / '1.dcm', rgb)
    gray = put(tmp_path / 'rgb.png', rgb)
    assert (only(tmp_path) == read_image(gray)).all()
    write(tmp_path / 'rle' / 'mine' / '1.dcm', noise(1), syntax=RLELossless)
    assert (only(tmp_path / 'rle') == noise(1)).all()


# --- frames and patients


def test_every_frame_is_an_image_of_one_patient(tmp_path):
    frames = np.stack([noise(i) for i in range(5)])
    write(tmp_path / 'mine' / 'film.dcm', frames, patient='A')
    write(tmp_path / 'other' / '1.dcm', noise(9), patient='B')
    table = load_folder(tmp_path)
    assert table.patient.tolist() == ['A'] * 5 + ['B']
    assert all((read_image(p) == a).all() for p, a in zip(table.image, frames))
    names = [Path(v).name for v in table.attrs['origin'].values()]
    assert names[:2] == ['film_frame001.dcm', 'film_frame002.dcm'] and names[5] == '1.dcm'


def test_frames_of_an_enhanced_file_have_their_own_windows(tmp_path):
    def holding(**values):
        ds = pydicom.Dataset()
        for k, v in values.items():
            setattr(ds, k, v)
        return ds

    a = np.stack([slice_of(1), slice_of(2)])
    rescale = holding(RescaleSlope=1, RescaleIntercept=-1024)
    windows = [holding(WindowCenter=c, WindowWidth=w) for c, w in ((0, 501), (300, 101))]
    tags = dict(
        SharedFunctionalGroupsSequence=[holding(PixelValueTransformationSequence=[rescale])],
        PerFrameFunctionalGroupsSequence=[holding(FrameVOILUTSequence=[w]) for w in windows],
    )
    write(tmp_path / 'mine' / '1.dcm', a, **tags)
    put(tmp_path / 'other' / 'x.png', noise(77))
    table = load_folder(tmp_path)
    pictures = [read_image(p) for p in table.image[table.label == 'mine']]
    assert (pictures[0] == shown(a[0] - 1024.0, -250.5, 249.5)).all()
    assert (pictures[1] == shown(a[1] - 1024.0, 249.5, 349.5)).all()


def people(root, n=8, each=3):
    "Files of some patients; no name tells whose they are."
    for k, c in enumerate(('no', 'yes')):
        for i in range(n * each):
            write(root / c / f'IM{i:04}', slice_of(500 * k + i), patient=f'{c}{i // each}', **CT)
    return root


def test_one_patient_is_never_on_both_sides(tmp_path):
    table = load_folder(people(tmp_path))
    assert table.patient.nunique() == 16
    split = stratified_split(table, {'train': 0.5, 'val': 0.25, 'test': 0.25}, 3)
    assert split.groupby('patient').split.nunique().max() == 1
    by_name = load_folder(tmp_path, patients=r'IM\d*(\d)$')
    assert by_name.patient.nunique() == 10  # who gives a pattern means it


def test_one_id_for_all_is_nobodys(tmp_path):
    for k, c in enumerate(('no', 'yes')):
        for i in range(4):
            write(tmp_path / c / f'{i}.dcm', noise(10 * k + i), patient='ANON')
    table = load_folder(tmp_path)
    assert table.patient.isna().all()
    assert 'all 8 DICOM files have one PatientID' in ' '.join(table.attrs['notes'])


def test_labels_and_masks_of_dicom_files(tmp_path):
    for i in range(6):
        write(tmp_path / f'IM{i}.dcm', noise(i), patient=f'p{i // 2}')
        put(tmp_path / f'IM{i}_mask.png', (noise(i) > 99) * np.uint8(255))
    rows = [f'IM{i}.dcm,{"ab"[i % 2]}' for i in range(6)]
    (tmp_path / 'labels.csv').write_text('\n'.join(['image,label', *rows]))
    table = load_folder(tmp_path / 'labels.csv')
    assert table.label.tolist() == list('ababab') and table['mask'].notna().all()
    assert table.patient.tolist() == ['p0', 'p0', 'p1', 'p1', 'p2', 'p2']


# --- the cache


def test_pictures_are_made_once_for_each_state_and_window(tmp_path, download_cache):
    people(tmp_path / 'own', 2)
    table = load_folder(tmp_path / 'own')
    assert all(Path(p).is_relative_to(download_cache) for p in table.image)
    assert (download_cache / 'unpacked').stat().st_mode & 0o077 == 0
    times = {p: os.stat(p).st_mtime_ns for p in table.image}
    assert load_folder(tmp_path / 'own').equals(table)
    assert {p: os.stat(p).st_mtime_ns for p in table.image} == times
    write(tmp_path / 'own' / 'no' / 'IM0000', slice_of(99), patient='no0', **CT)
    again = load_folder(tmp_path / 'own')
    assert (again.sha256 != table.sha256).sum() == 1
    other = load_folder(tmp_path / 'own', window=(0, 100))
    assert (other.sha256 != again.sha256).all()
    shutil.rmtree(download_cache / 'unpacked')
    assert load_folder(tmp_path / 'own').equals(again)


# --- what cannot be read


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path):
    people(tmp_path, 2)
    whole = write(tmp_path / 'no' / 'cut.dcm', slice_of(1), **CT)
    whole.write_bytes(whole.read_bytes()[:1200])
    (tmp_path / 'no' / 'text.dcm').write_text('this is text')
    foreign = write(tmp_path / 'no' / 'jpegls.dcm', noise(1))
    ds = pydicom.dcmread(foreign)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    ds.PixelData = pydicom.encaps.encapsulate([bytes(100)])
    ds['PixelData'].VR = 'OB'
    ds.save_as(foreign)
    report = pydicom.dcmread(write(tmp_path / 'no' / 'report.dcm', noise(1)))
    for name in 'PixelData', 'Rows', 'Columns':
        delattr(report, name)
    report.Modality = 'SR'
    report.save_as(tmp_path / 'no' / 'report.dcm')
    deep = np.zeros((8, 8, 3), np.uint16)
    write(tmp_path / 'no' / 'deep.dcm', deep)
    table = load_folder(tmp_path)
    why = {Path(r['file']).name: r['why'] for r in table.attrs['rejected']}
    assert len(table) == 12 and set(why) == {
        'cut.dcm', 'text.dcm', 'jpegls.dcm', 'report.dcm', 'deep.dcm',
    }  # fmt: skip
    assert 'pixels cannot be decoded' in why['cut.dcm']
    assert 'broken' in why['text.dcm']
    assert "pip install 'pylibjpeg[all]'" in why['jpegls.dcm']
    assert why['report.dcm'].startswith('no image in it (DICOM of modality SR)')
    assert '16-bit colour' in why['deep.dcm']


def test_without_pydicom_what_to_install_is_said(tmp_path, monkeypatch):
    people(tmp_path, 2)
    monkeypatch.setattr(dicom, 'has_pydicom', lambda: False)
    with pytest.raises(
        InputError, match=r"needs the package pydicom.*pip install 'gan_covid\[dicom\]'"
    ):
        load_folder(tmp_path)


def test_a_class_of_reports_does_not_vanish_in_silence(tmp_path):
    people(tmp_path, 2)
    (tmp_path / 'third').mkdir()
    (tmp_path / 'third' / 'a.dcm').write_text('text')
    with pytest.raises(InputError, match="no image of class 'third' can be used"):
        load_folder(tmp_path)


# --- looking at it


def test_check_says_what_was_read_and_how(tmp_path):
    people(tmp_path, 10)
    scout = write(tmp_path / 'no' / 'scout.dcm', slice_of(900), patient='no0', **CT)
    ds = pydicom.dcmread(scout)
    ds.ImageType = ['ORIGINAL', 'PRIMARY', 'LOCALIZER']
    ds.save_as(scout)
    report = check_folder(tmp_path)
    assert report['classes']['no']['images'] == 31 and report['patients'] == 20
    text = as_text(report)
    assert '61 DICOM files with 61 images' in text and 'own window (centre 40, width 400)' in text
    assert '1 DICOM files are localizers' in text
    write(tmp_path / 'yes' / 'copy.dcm', slice_of(3), patient='other', **CT)
    copied = next(
        f for f in check_folder(tmp_path)['findings'] if f['kind'] == 'copies across classes'
    )
    assert copied['names'] == ['no/IM0003 (no) = yes/copy.dcm (yes)']
