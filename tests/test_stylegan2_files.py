"A folder of one's own images as a training set."

import itertools
import re
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from gan_covid.records import InputError
from gan_covid.stylegan2 import files as S
from gan_covid.stylegan2.files import load_images


def refused(f, *words):
    with pytest.raises(InputError) as e:
        f()
    assert all(w in str(e.value) for w in words), str(e.value)
    return str(e.value)


class Call:
    "Pickled as a call."

    def __init__(self, f, *args):
        self.made = f, args

    def __reduce__(self):
        return self.made


RNG = np.random.default_rng(0)


def noise(h, w, c=None, dtype=np.uint8, top=None):
    return RNG.integers(
        0, (top or np.iinfo(dtype).max) + 1, (h, w) if c is None else (h, w, c)
    ).astype(dtype)


def put(folder, name, a, **kw):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npy':
        np.save(path, a)
    else:
        Image.fromarray(a).save(path, **kw)
    return path


@pytest.mark.parametrize('ending', ['png', 'tif', 'npy'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_gray_of_8_and_16_bits(tmp_path, ending, dtype):
    arrays = [noise(10, 12, dtype=dtype) for _ in range(12)]
    for i, a in enumerate(arrays):
        put(tmp_path, f'{i}.{ending}', a)
    images, table, classes, window = load_images(tmp_path)
    assert (
        images.dtype == dtype
        and np.array_equal(images[..., 0], arrays)
        and classes == []
        and window == (0, np.iinfo(dtype).max)
    )  # 2 before 10
    assert (
        list(table.columns) == S.as_table([dict(width=1, height=1)]).columns.tolist()
        and table.label.isna().all()
        and (table.width == 12).all()
        and table.sha256.nunique() == 12
    )
    three, *_ = load_images(tmp_path, channels=3)
    assert three.shape == (12, 10, 12, 3) and np.array_equal(three[..., 2], images[..., 0])


def test_colour_alpha_palette_and_jpeg(tmp_path):
    "Transparency lies over black, as for every other reader."
    rgb, alpha = noise(9, 9, 3), noise(9, 9)

    def over(a, alpha):
        return np.rint(a * (alpha / 255.0)).astype(int)

    put(tmp_path / 'rgb', '0.png', rgb)
    put(tmp_path / 'rgb', '1.png', np.dstack([rgb, np.full((9, 9), 255, np.uint8)]))
    put(tmp_path / 'rgb', '2.tif', rgb)
    put(tmp_path / 'rgb', '3.npy', rgb)
    Image.fromarray(rgb).quantize(256).save(tmp_path / 'rgb' / '4.png')
    put(tmp_path / 'rgb', '5.png', np.dstack([rgb, alpha]))
    images, *_ = load_images(tmp_path / 'rgb', channels=3)
    assert (
        all(np.array_equal(i, rgb) for i in images[:4])
        and abs(images[4].astype(int) - rgb).mean() < 20
        and abs(images[5] - over(rgb, alpha[..., None])).max() <= 1
    )
    gray, *_ = load_images(tmp_path / 'rgb')
    assert all(
        np.array_equal(g[..., 0], np.array(Image.fromarray(rgb).convert('L'))) for g in gray[:4]
    )
    la = np.dstack([noise(9, 9), noise(9, 9)])
    put(tmp_path / 'la', '0.png', la)
    Image.fromarray(la[..., 0] > 127).save(tmp_path / 'la' / '1.png')
    first, second = load_images(tmp_path / 'la')[0][..., 0]
    assert abs(first - over(la[..., 0], la[..., 1])).max() <= 1 and np.array_equal(
        second, 255 * (la[..., 0] > 127)
    )
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    put(tmp_path / 'jpg', '0.jpg', smooth, quality=95)
    assert abs(load_images(tmp_path / 'jpg')[0][0, ..., 0].astype(int) - smooth).max() < 8


def test_gray_from_16_bit_and_float_colour(tmp_path):
    deep = noise(6, 6, 3, np.uint16)
    put(tmp_path / 'a', '0.npy', deep)
    put(tmp_path / 'b', '0.npy', deep.astype(np.float64))
    put(tmp_path / 'c', '0.npy', deep.astype('>u2'))
    want = deep @ np.array([0.299, 0.587, 0.114])
    a, b, c = (load_images(tmp_path / k, window=(0, 65535))[0] for k in 'abc')
    assert (
        a.dtype == c.dtype == np.uint16
        and abs(a[0, ..., 0] - want).max() < 1.5
        and b.dtype == np.float32
        and abs(b[0, ..., 0] - want).max() < 0.1
        and np.array_equal(a, c)
    )


def test_16_bit_colour_is_refused_rather_than_halved(tmp_path):
    import zlib

    def png(depth, colour, channels):
        def chunk(kind, data):
            return (
                struct.pack('>I', len(data))
                + kind
                + data
                + struct.pack('>I', zlib.crc32(kind + data))
            )

        return (
            b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', 4, 4, depth, colour, 0, 0, 0))
            + chunk(
                b'IDAT',
                zlib.compress((b'\0' + bytes(range(255 - 4 * channels * depth // 8, 255))) * 4),
            )
            + chunk(b'IEND', b'')
        )

    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        (tmp_path / 'x.png').write_bytes(png(16, colour, channels))
        Image.open(tmp_path / 'x.png').load()
        refused(lambda: load_images(tmp_path), 'x.png', '16-bit colour', '.npy')
        (tmp_path / 'x.png').write_bytes(png(8, colour, channels))
        assert load_images(tmp_path)[0].shape == (1, 4, 4, 1)


def test_folders_are_classes_and_may_lie_below_splits(tmp_path):
    for s, c in itertools.product(('train', 'test'), ('c10', 'c2')):
        put(tmp_path / s / c / 'images', '0.png', noise(8, 8))
        put(tmp_path / s / c / 'masks', '0.png', noise(8, 8))
    images, table, classes, _ = load_images(tmp_path)
    assert (
        len(images) == 4
        and classes == ['c2', 'c10']
        and table.label.tolist() == ['c2', 'c2', 'c10', 'c10']
        and table.split.tolist() == ['test', 'train'] * 2
    )
    _, table, classes, _ = load_images(tmp_path / 'train')
    assert classes == ['c2', 'c10'] and table.split.isna().all()
    assert load_images(tmp_path, labels=None)[2] == []
    put(tmp_path / 'train', 'x.png', noise(8, 8))
    refused(lambda: load_images(tmp_path), 'x.png', 'labels=None')
    refused(lambda: load_images(tmp_path / 'train'), 'x.png')
    (tmp_path / 'more').mkdir()
    refused(lambda: load_images(tmp_path), 'partly splits')


def test_splits_and_patients_come_with_the_table(tmp_path):
    for s, c, i, j in itertools.product(('train', 'validation'), 'ab', range(2), range(2)):
        put(tmp_path / s / c / f'{s}{c}{i}', f'P{i}_{j}.png', noise(8, 8))
    _, table, *_ = load_images(tmp_path)
    assert (
        table.split.value_counts().to_dict() == {'train': 8, 'val': 8}
        and table.groupby('patient').size().eq(2).all()
        and table.patient.nunique() == 8
    )
    assert load_images(tmp_path, patients=r'(P\d)_')[1].patient.value_counts().to_dict() == {
        'P0': 8,
        'P1': 8,
    }
    refused(lambda: load_images(tmp_path, patients='(x)'), 'patients', 'P0_0.png')


def test_labels_from_a_table(tmp_path):
    a = {n: noise(8, 8) for n in ('0.png', 'sub/1.png', '2.png')}
    for n, x in a.items():
        put(tmp_path / 'i', n, x)
    csv = tmp_path / 'labels.csv'

    def write(*lines):
        return csv.write_text('\n'.join(lines) + '\n')

    write('Label,image,age', 'sick,0.png,3', ' healthy,sub/1.png,4')
    images, table, classes, _ = load_images(tmp_path / 'i', labels=csv)
    assert (
        classes == ['healthy', 'sick']
        and np.array_equal(images[..., 0], [a['sub/1.png'], a['0.png']])
        and table.label.tolist() == classes
    )
    for lines, words in (
        (['image,label', '9.png,a'], ['line 2', "'9.png'"]),
        (['image,label', '0.png,a', '0.png,b'], ['0.png', 'more than once']),
        (['image,label', '0.png,'], ['line 2', 'no label']),
        (['name,kind,age', '0.png,a,3'], ['image and label']),
        (['image,label', '../labels.csv,a'], ['format']),
    ):
        write(*lines)
        refused(lambda: load_images(tmp_path / 'i', labels=csv), 'labels.csv', *words)
    refused(lambda: load_images(tmp_path / 'i', labels='none.csv'), 'none.csv')


def test_floating_point_needs_a_window_and_the_message_has_one(tmp_path):
    for i in range(3):
        put(
            tmp_path,
            f'{i}.npy',
            RNG.normal(0, 100, (8, 8)).astype((np.float16, np.float32, np.float64)[i]),
        )
    put(tmp_path, '3.npy', RNG.integers(-1000, 1000, (8, 8)))
    Image.fromarray(np.full((8, 8), -2000, np.float32)).save(tmp_path / '4.tif')
    message = refused(lambda: load_images(tmp_path), 'window', '-2000')
    suggested = eval(re.search(r'window=(\(.*?\))', message)[1])
    images, _, _, window = load_images(tmp_path, window=suggested)
    assert (
        images.dtype == np.float32
        and images.min() == -2000
        and window == suggested
        and load_images(tmp_path, window=(-160.0, 240.5))[3] == (-160, 240.5)
    )
    for bad in ((1,), (2, 1), (0, np.nan), 'ab', 3, (0, np.inf)):
        refused(lambda: load_images(tmp_path, window=bad), 'window')
    refused(lambda: load_images(tmp_path, window=(5000, 6000)), 'outside')


def test_another_size(tmp_path):
    put(tmp_path, '0.png', np.full((20, 10), 200, np.uint8))
    put(tmp_path, '1.png', noise(8, 8))
    refused(lambda: load_images(tmp_path), '1.png', '8×8', '20×10', 'size=')
    images, table, *_ = load_images(tmp_path, (16, 16), fit='pad')
    assert (
        images.shape == (2, 16, 16, 1)
        and (images[0, :, 4:12] == 200).all()
        and (images[0, :, :4] == 0).all()
        and table.height.tolist() == [20, 8]
    )
    assert (load_images(tmp_path, 16)[0][0] == 200).all() and np.array_equal(
        load_images(tmp_path, 8)[0][1], load_images(tmp_path, 8)[0][1]
    )
    for kw in (dict(fit='crop'), dict(method='nearest'), dict(size=0), dict(channels=0)):
        refused(lambda: load_images(tmp_path, **{'size': 8, **kw}), next(iter(kw)))


@pytest.mark.parametrize('fit', ['stretch', 'pad'])
def test_resizing_keeps_the_scale_of_every_type(tmp_path, fit):
    "The same picture in 8 bits, 16 bits and Hounsfield-like numbers: the same after scaling back."
    x = np.kron(RNG.integers(0, 256, (6, 4)), np.ones((4, 4))).astype(np.uint8)
    put(tmp_path / 'a', '0.png', x)
    put(tmp_path / 'b', '0.png', x.astype(np.uint16) * 257)
    put(tmp_path / 'c', '0.npy', x * 8.0 - 1024)
    a, b, c = (
        load_images(tmp_path / k, 12, fit=fit, window=w)[0].astype(float)
        for k, w in (('a', None), ('b', None), ('c', (-1024, 1016)))
    )
    assert abs(b / 257 - a).max() < 1.5 and abs((c + 1024) / 8 - a).max() < 1.5 and a.std() > 20


def test_unusable_files_are_named(tmp_path):
    put(tmp_path, '0.png', noise(8, 8))
    for name, data, words in (
        ('1.png', b'\x89PNG\r\n\x1a\nxx', ['1.png']),
        ('1.png', b'', ['empty']),
        ('1.png', b'text', ['known format']),
        ('1.npy', b'text', ['1.npy', 'numpy.save']),
        ('1.dcm', b'x', ['1.dcm', 'Export']),
        ('IM1', b'\0' * 128 + b'DICM', ['IM1', 'DICOM']),
    ):
        (tmp_path / name).write_bytes(data)
        refused(lambda: load_images(tmp_path), *words)
        (tmp_path / name).unlink()
    for a, words in (
        (np.array([{}]), ['numpy.save']),
        (np.ones((8, 8), bool), ['bool']),
        (np.ones((2, 3, 8, 8)), ['(2, 3, 8, 8)']),
        (np.full((8, 8), np.nan), ['finite']),
        (np.full((8, 8), 1e300), ['finite']),
        (noise(8, 8, 5), ['5 channels']),
        (noise(8, 8, dtype=np.uint16), ['uint16', '0.png uint8']),
    ):
        np.save(tmp_path / '1.npy', a, allow_pickle=True)
        refused(lambda: load_images(tmp_path), '1.npy', *words)
    (tmp_path / '1.npy').unlink()
    (tmp_path / 'notes.txt').write_text('not an image')
    assert len(load_images(tmp_path)[0]) == 1
    (tmp_path / '0.png').unlink()
    refused(lambda: load_images(tmp_path), 'no images')
    refused(lambda: load_images(tmp_path / 'none'), 'no such folder')


def test_pickled_arrays_are_not_run(tmp_path):
    import os

    np.save(
        tmp_path / 'x.npy',
        np.array([Call(os.system, f'touch {tmp_path / "marker"}')], object),
        allow_pickle=True,
    )
    refused(lambda: load_images(tmp_path), 'x.npy')
    assert not (tmp_path / 'marker').exists()


def test_twelve_bits_in_sixteen_are_noticed(tmp_path):
    put(tmp_path, '0.png', noise(8, 8, dtype=np.uint16, top=4095))
    with pytest.warns(UserWarning, match='window'):
        load_images(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_images(tmp_path, window=(0, 4095))[3] == (0, 4095)
