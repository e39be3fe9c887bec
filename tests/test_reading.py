"""One reader for every picture file: a GAN, a classifier and the search for duplicates see the same."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan_covid import preprocessing, reading
from gan_covid.datasets import dicom
from gan_covid.datasets.arrays import load_images
from gan_covid.datasets.own import load_folder
from gan_covid.reading import read_image, read_mask, read_pixels
from gan_covid.records import InputError

RNG = np.random.default_rng(0)


def put(path, image, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **kw)
    return path


def said(f, *words):
    "What `f` returns; its warnings must contain the words."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        out = f()
    text = ' '.join(str(w.message) for w in caught)
    assert all(w in text for w in words), text
    return out, text


# --- 12 bits in 16 ---


def twelve(root, n=3, top=4095):
    "Two classes of smooth pictures whose values use 12 bits of 16."
    for c in 'ab':
        for i in range(n):
            ramp = np.add.outer(np.arange(64), np.arange(64)) * 32 + 10 * i + 3 * (c == 'b')
            put(root / c / f'{i}.png', np.minimum(ramp, top).astype(np.uint16))
    return root


@pytest.mark.filterwarnings('ignore')
def test_twelve_bits_keep_their_grays_on_both_ways(tmp_path):
    table = load_folder(twelve(tmp_path / 'in'))
    ready, text = said(
        lambda: preprocessing.prepare(table, tmp_path / 'out', 64), '12 bits', '0…4095', 'window='
    )
    first = ready.images[0]
    assert len(np.unique(first)) > 100 and first.max() > 240  # without a window: 14 grays below 17
    assert ready.info['window'] == [0, 4095]
    (images, _, _, window), _ = said(lambda: load_images(tmp_path / 'in'), '12 bits', 'window=')
    assert window == (0, 4095)
    expected = np.rint(images[..., 0] / 4095 * 255).astype(np.uint8)
    assert np.array_equal(ready.images[..., 0], expected)


@pytest.mark.filterwarnings('ignore')
def test_a_given_window_is_used_and_kept(tmp_path):
    table = load_folder(twelve(tmp_path / 'in'))

    def prepare():
        return preprocessing.prepare(
            table, tmp_path / 'out', preprocessing.Steps(64, window=(1000, 2000))
        )

    ready, text = said(prepare)
    assert 'bits' not in text and ready.info['parameters']['window'] == [1000, 2000]
    raw = np.stack([read_pixels(p) for p in table.image]).astype(float)
    expected = np.rint(np.clip((raw - 1000) / 1000, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(ready.images[..., 0], expected)
    for f in Path(tmp_path / 'in').rglob('*.png'):
        f.unlink()
    assert len(prepare()) == 6  # finished: no file is opened
    for bad in ((2, 1), (0, np.nan), 'ab', 3):
        with pytest.raises(InputError, match='window='):
            preprocessing.prepare(table, tmp_path / 'new', preprocessing.Steps(64, window=bad))


@pytest.mark.filterwarnings('ignore')
def test_a_dark_image_among_others_is_not_brightened(tmp_path):
    put(twelve(tmp_path / 'in') / 'a' / 'dark.png', (RNG.random((64, 64)) * 200).astype(np.uint16))
    table = load_folder(tmp_path / 'in')
    ready = preprocessing.prepare(table, tmp_path / 'out', 64)
    assert ready.images[table.image.str.endswith('dark.png')].max() == 12


def test_windows_do_not_touch_eight_bits(tmp_path):
    a = RNG.integers(0, 256, (20, 20), np.uint8)
    p = put(tmp_path / 'x.png', a)
    assert np.array_equal(read_image(p, (0, 4095)), a) and reading.window_of([p]) is None
    f = put(tmp_path / 'f.tif', a.astype(np.float32) - 100)
    with pytest.raises(InputError, match='window='):
        read_image(f)
    assert np.array_equal(read_image(f, (-100, 155)), a)


# --- pictures that lie on their side ---

TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.T, 2),
    8: np.rot90,
}


def turned(path, a, orientation):
    "Save an array with an EXIF orientation."
    if path.suffix == '.tif':
        return put(path, a, tiffinfo={274: orientation})
    exif = Image.Exif()
    exif[274] = orientation
    quality = {'.webp': {'lossless': True}, '.jpg': {'quality': 100}}.get(path.suffix, {})
    return put(path, a, exif=exif.tobytes(), **quality)


@pytest.mark.parametrize('orientation', TURNS)
@pytest.mark.parametrize('ending', ['png', 'tif', 'jpg', 'webp'])
@pytest.mark.filterwarnings('ignore')
def test_orientation_holds_for_every_reader(tmp_path, orientation, ending):
    a = np.kron(RNG.integers(0, 256, (5, 3), np.uint8), np.ones((8, 8), np.uint8))
    turned(tmp_path / 'in' / 'a' / f'x.{ending}', a, orientation)
    want, tol = TURNS[orientation](a).astype(int), 6 if ending == 'jpg' else 0
    table = load_folder(tmp_path / 'in')
    assert (table.height[0], table.width[0]) == want.shape
    assert abs(read_image(table.image[0]) - want).max() <= tol
    assert abs(load_images(tmp_path / 'in')[0][0, ..., 0] - want).max() <= tol
    ready = preprocessing.prepare(table, tmp_path / 'out', want.shape, progress=False)
    assert abs(ready.images[0, ..., 0] - want).max() <= tol


def test_a_large_jpeg_on_its_side_is_not_read_too_small(tmp_path):
    "JPEGs are decoded smaller where that is enough; height and width change places then."
    path = turned(tmp_path / 'x.jpg', RNG.integers(0, 256, (512, 256), np.uint8), 6)
    assert read_image(path, enough=(64, 500)).shape == (256, 512)
    assert read_image(path, enough=(64, 128)).shape == (64, 128)


# --- what is read alike, and what is refused alike ---


@pytest.mark.parametrize(
    'mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'transparency']
)
@pytest.mark.filterwarnings('ignore')
def test_readers_agree(tmp_path, mode):
    a, alpha = RNG.integers(0, 256, (24, 30), np.uint8), RNG.integers(0, 256, (24, 30), np.uint8)
    im, name, kw = Image.fromarray(a), 'x.png', {}
    if mode == 'I;16':
        im = Image.fromarray(a.astype(np.uint16) * 257)
    elif mode == 'CMYK':
        im, name, kw = im.convert('RGB').convert('CMYK'), 'x.png', dict(format='JPEG')
    elif mode == 'transparency':
        im, kw = im.convert('P'), dict(transparency=7)
    elif mode in ('LA', 'RGBA'):
        im = im.convert(mode)
        im.putalpha(Image.fromarray(alpha))
    else:
        im = im.convert(mode)
    p = put(tmp_path / 'a' / name, im, **kw)
    own, _, _, window = load_images(tmp_path)
    assert np.array_equal(reading.to_gray8(own[0, ..., 0], p, window), read_image(p))


@pytest.mark.parametrize('ending', ['tif', 'gif', 'png', 'webp'])
@pytest.mark.filterwarnings('ignore')
def test_a_file_of_several_pages_is_refused_by_name(tmp_path, ending):
    pages = [Image.fromarray(RNG.integers(0, 256, (24, 24), np.uint8)) for _ in range(3)]
    p = put(tmp_path / 'a' / f'series.{ending}', pages[0], save_all=True, append_images=pages[1:])
    for f in lambda: read_image(p), lambda: load_images(tmp_path):
        with pytest.raises(InputError, match=f'series.{ending}: holds 3 pages .*file of its own'):
            f()
    put(tmp_path / 'a' / 'one.png', pages[0])
    table, _ = said(
        lambda: load_folder(tmp_path),
        f'series.{ending}',
        '3 pages',
        "class 'a' has lost 1 of its 2 images",
    )
    assert [Path(q).name for q in table.image] == ['one.png']


def sixteen_bit_colour(path):
    def chunk(kind, data):
        length, check = struct.pack('>I', len(data)), struct.pack('>I', zlib.crc32(kind + data))
        return length + kind + data + check

    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 4, 4, 16, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress((b'\0' + bytes(range(24))) * 4))
        + chunk(b'IEND', b'')
    )
    return path


def test_what_pillow_misreads_is_refused(tmp_path):
    p = sixteen_bit_colour(tmp_path / 'deep.png')
    for f in lambda: read_image(p), lambda: load_images(p):
        with pytest.raises(InputError, match='deep.png: 16-bit colour'):
            f()
    negative = put(
        tmp_path / 'n.tif', RNG.integers(0, 4096, (9, 9)).astype(np.uint16), tiffinfo={262: 0}
    )
    with pytest.raises(InputError, match='n.tif.*zero is white'):
        read_image(negative)


@pytest.mark.parametrize('name', ['scan.png', 'scan'])
@pytest.mark.filterwarnings('ignore')
def test_dicom_is_known_whatever_its_name_says(tmp_path, name, monkeypatch):
    monkeypatch.setattr(dicom, 'has_pydicom', lambda: False)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / name).write_bytes(bytes(128) + b'DICM' + bytes(400))
    for f in lambda: load_folder(tmp_path), lambda: load_images(tmp_path):
        with pytest.raises(
            InputError, match=f'{name}: DICOM.*rescale slope and intercept.*window.*MONOCHROME1'
        ) as e:
            f()
        assert 'pixel_array' not in str(e.value)


def test_prepare_sees_a_png_whose_end_is_missing(tmp_path):
    "The quick reader of prepare did not look at checksums."
    for i in range(2):
        put(tmp_path / 'a' / f'{i}.png', RNG.integers(0, 256, (40, 40), np.uint8))
    table = load_folder(tmp_path, patients=False)
    p = Path(table.image[0])
    p.write_bytes(p.read_bytes()[:-20])
    ready = preprocessing.prepare(table, tmp_path / 'out', 16)
    assert len(ready) == 1 and 'broken' in ready.rejected.why[0]


def test_a_mask_of_labels_keeps_all_its_parts(tmp_path):
    parts = np.zeros((20, 20), np.uint8)
    parts[2:8, 2:8], parts[2:8, 12:18] = 1, 2
    assert np.array_equal(read_mask(put(tmp_path / 'm.png', parts)), parts > 0)
    blurred = np.where(parts > 0, 254, 0).astype(np.uint8)
    blurred[2:8, 8] = 40  # the gray margin that JPEG leaves is outside
    assert np.array_equal(read_mask(put(tmp_path / 's.png', blurred)), parts > 0)
