"gan_covid.similarity: against scikit-image, on real images, at the edges, and with bad input."

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from gan_covid.images import to_float
from gan_covid.records import InputError
from gan_covid.similarity import METRICS, check_images, compare, nearest, paired, ssim, summary

WANG = {  # the settings of Wang et al. 2004
    'data_range': 1,
    'channel_axis': -1,
    'gaussian_weights': True,
    'sigma': 1.5,
    'use_sample_covariance': False,
}


def images(n, size=24, channels=1, seed=0, dtype='float32'):
    return np.random.default_rng(seed).random((n, size, size, channels)).astype(dtype)


# 300² is more than one block holds
@pytest.mark.parametrize('size, channels', [(11, 1), (24, 1), (33, 3), (300, 1)])
def test_agrees_with_scikit_image(size, channels):
    x, y = images(3, size, channels, 1), images(3, size, channels, 2)
    table = paired(x, y)
    for a, b, row in zip(np.float64(x), np.float64(y), table.itertuples()):
        assert row.rmse == pytest.approx(np.sqrt(mean_squared_error(a, b)))
        assert row.psnr == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1))
        assert row.ssim == pytest.approx(structural_similarity(a, b, **WANG), abs=1e-9)


def test_sre_and_sam_follow_their_definitions():
    x, y = images(4, seed=1, dtype='float64'), images(4, seed=2, dtype='float64')
    table = paired(x, y)
    for a, b, row in zip(x, y, table.itertuples()):
        a, b = a.ravel(), b.ravel()
        assert row.sre == pytest.approx(10 * np.log10(np.mean(a) ** 2 / np.mean((a - b) ** 2)))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert row.sam == pytest.approx(np.degrees(np.arccos(cosine)))
    brighter = paired(x, x / 2)
    assert brighter.sam.max() < 1e-5  # brightness is no angle
    assert (brighter.rmse > 0.2).all()
    assert (paired(x, y).sre != paired(y, x).sre).all()  # the first one is the reference


def test_blocks_do_not_change_results():
    x, y = images(40, 64, seed=1), images(40, 64, seed=2)
    whole = paired(x, y)
    single = pd.concat([paired(x[i : i + 1], y[i : i + 1]) for i in range(40)], ignore_index=True)
    pd.testing.assert_frame_equal(whole, single, rtol=1e-12)


def test_equal_and_black_images():
    x = images(2)
    same = paired(x, x)
    assert (same[['rmse', 'sam']] == 0).all(axis=None)
    assert np.isinf(same[['psnr', 'sre']]).all(axis=None)
    np.testing.assert_allclose(same.ssim, 1)
    black = np.zeros_like(x)
    dark = paired(black, x)
    assert dark.sam.isna().all() and (dark.sre == -np.inf).all()
    assert paired(x, black).sre.notna().all()
    psnr = summary(same).loc['psnr']
    assert psnr.infinite == 2 and psnr.n == 0 and np.isnan(psnr['mean'])
    assert summary(dark).loc['sam', 'undefined'] == 2


@pytest.mark.parametrize('k, chunk', [(1, 256), (4, 7), (20, 3)])
def test_nearest_equals_brute_force(k, chunk):
    x, y = images(15, 6, seed=1), images(20, 6, seed=2)
    a, b = np.float64(x).reshape(15, 1, -1), np.float64(y).reshape(1, 20, -1)
    d = np.linalg.norm(a - b, axis=-1)
    index, distance = nearest(x, y, k=k, chunk=chunk)
    assert (index == np.argsort(d, axis=1, kind='stable')[:, :k]).all()
    np.testing.assert_allclose(distance, np.sort(d, axis=1)[:, :k])


def test_nearest_is_exact_for_copies_far_from_the_origin():
    # |a|² - 2ab + |b|² alone would lose every digit here
    y = 1e3 + 1e-6 * images(50, 6, seed=3, dtype='float64')
    x = y[::-1] + 1e-9
    assert (nearest(x, y)[0][:, 0] == np.arange(50)[::-1]).all()
    assert (nearest(y, y)[1] == 0).all()


def test_ties_go_by_index_however_many_there_are():
    "More copies than neighbours asked for and a margin beside them: rounding chose among them."
    y = np.repeat(images(3, 6, seed=4), 203, axis=0)[np.random.default_rng(0).permutation(609)]
    for i in range(0, 609, 40):
        first = np.flatnonzero((y == y[i]).all((1, 2, 3)))[:5]
        assert (nearest(y[i : i + 1], y, k=5)[0][0] == first).all()
    assert (nearest(y, y, k=203)[1] == 0).all()


def test_nearest_needs_no_n_m_pixels_memory():
    x, y = images(150, 64, seed=1), images(150, 64, seed=2)
    tracemalloc.start()
    nearest(x, y, chunk=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 150 * 64 * 64 * 4 / 20


def test_compare_pairings():
    real, generated = images(6, seed=1), images(9, seed=2)
    generated[4] = real[3]
    table = compare(generated, real)
    assert list(table) == ['real', *METRICS] and list(table.index) == list(range(9))
    assert table.real[4] == 3 and table.psnr[4] == np.inf
    for i, j in table.real.items():
        assert table.rmse[i] == pytest.approx(paired(real[j : j + 1], generated[i : i + 1]).rmse[0])
    r1, r2, r3 = (compare(generated, real, 'random', seed=s) for s in (1, 1, 2))
    assert r1.equals(r2) and not r1.equals(r3)
    assert list(compare(generated[:6], real, 'paired').real) == list(range(6))
    assert compare(generated, real, chunk=2).equals(table)


@pytest.mark.parametrize(
    'bad, says',
    [
        (lambda x: compare(x, x[:0]), 'real: no images'),
        (lambda x: compare(x[:0], x), 'generated: no images'),
        (lambda x: compare(x[:, :20], x), 'real: images of'),
        (lambda x: compare(x * 2, x), 'generated: values'),
        (lambda x: compare(x, x - 1), 'real: values'),
        (lambda x: compare(x, np.uint8(255 * x)), '8-bit'),
        (lambda x: compare(x, np.where(x > 0.5, np.nan, x)), 'NaN'),
        (lambda x: compare(x, x[..., 0]), 'real: shape'),
        (lambda x: compare(x, x[:3], 'paired'), 'pairing'),
        (lambda x: compare(x, x, 'best'), "pairing='best'"),
        (lambda x: paired(x, x[:3]), 'y: 3 images'),
        (lambda x: ssim(x[:, :8, :8], x[:, :8, :8]), '11'),
        (lambda x: nearest(x, x, k=6), 'k: 6'),
        (lambda x: nearest(x, x, k=0), 'k: 0'),
        (lambda x: nearest(x, x[:, :4]), 'y: vectors'),
        (lambda x: summary(paired(x, x).iloc[:0]), 'table'),
    ],
)
def test_bad_input_has_one_clear_message(bad, says):
    with pytest.raises(InputError, match='^[^\n]*$') as e:
        bad(images(5))
    assert says in str(e.value)


def test_real_images(real_data):
    """Every real head CT held against the others: 188.png is 189.png, so these two, and only pairs like them,
    have infinite PSNR."""
    files = sorted((real_data / 'head_ct_hemorrhage').rglob('1[5-9]?.png'))
    x = np.stack([box(f) for f in files])[..., None]
    names = [f.stem for f in files]
    assert len(x) == 50 and check_images(x) is x
    index, distance = nearest(x, x, k=2)
    zero = {
        frozenset((names[i], names[j]))
        for i, j in zip(np.arange(50).repeat(2), index.ravel())
        if i != j and 0 in distance[i][index[i] == j]
    }
    assert frozenset(('188', '189')) in zero
    others = compare(x[:25], x[25:])
    assert others.sam.between(0, 90).all() and others.ssim.between(-1, 1).all()


def box(file):
    "A picture shrunk to 32 × 32, in [0, 1]."
    return to_float(np.asarray(Image.open(file).convert('L').resize((32, 32), Image.BOX)))
