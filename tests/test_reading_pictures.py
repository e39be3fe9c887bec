"One picture, whatever its mode, broken or whole, and masks."

import numpy as np
import pytest
from dataset_files import BROKEN, gray, put
from PIL import Image

from gan_covid.reading import read_image, read_mask
from gan_covid.records import InputError


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'])
def test_modes(tmp_path, mode):
    im, path, tolerance = Image.fromarray(gray), tmp_path / 'x.png', 0
    want = np.asarray(im.convert('1').convert('L')) if mode == '1' else gray
    if mode == 'I;16':
        put(path, gray.astype('uint16') * 257)
    elif mode == 'CMYK':
        cmyk = im.convert('RGB').convert('CMYK')
        put(path, cmyk, format='JPEG', quality=100, subsampling=0)
        tolerance = 8
    else:
        put(path, im.convert(mode))
    got = read_image(path)
    assert got.dtype == np.uint8
    assert got.shape == gray.shape
    assert abs(got.astype(int) - want).max() <= tolerance


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
    assert big.shape == (299, 299)
    assert big.dtype == bool
    assert abs(big.mean() - (m > 0).mean()) < 0.01
    with pytest.raises(InputError, match='m.png.*another shape'):
        read_mask(p, (299, 400))
    with pytest.raises(InputError, match='none.png.*empty'):
        read_mask(put(tmp_path / 'none.png', m * 0))
