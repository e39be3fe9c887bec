"gan_covid.augmentation against Keras' own (legacy) functions, and its bad input."

import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest

from gan_covid import augmentation as aug
from gan_covid.records import InputError

PIPELINES = [
    aug.WMLQ2022,
    aug.CT_REPORT,
    aug.HEAD_CT_X5,
    aug.Pipeline(
        rotation_range=90,
        shear_range=30,
        zoom_range=(0.5, 1.5),
        height_shift_range=0.3,
        vertical_flip=True,
        fill_mode='reflect',
    ),
    aug.Pipeline(rotation_range=20, width_shift_range=0.4, fill_mode='constant', cval=0.3),
]


@pytest.fixture(scope='module')
def keras_image():
    pytest.importorskip('keras', reason='Keras is not installed: nothing to compare with')
    from gan_covid.engines import load_keras

    load_keras()
    try:
        from keras.src.legacy.preprocessing import image
    except ImportError:
        pytest.skip('this Keras has no legacy ImageDataGenerator any more')
    if not hasattr(image.scipy.ndimage, 'interpolation'):
        pytest.skip('this SciPy has no scipy.ndimage.interpolation, which the legacy code calls')
    warnings.filterwarnings('ignore', message='Please import', category=DeprecationWarning)
    return image


def images(n=12, size=33, seed=0):
    return np.random.default_rng(seed).random((n, size, size, 1), dtype=np.float32)


def one(params, i):
    return {k: v[i].item() for k, v in params.items()}


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('pipeline', PIPELINES)
@pytest.mark.parametrize('size', [32, 33])
def test_images_equal_keras_apply_transform(keras_image, pipeline, size):
    """Same parameters, same picture: turn, shift, shear, zoom and flips of every pipeline, up to
    float32 rounding."""
    x = images(size=size)
    p = aug.sample_parameters(pipeline, len(x), 7, x.shape[1:3])
    p['brightness'][:] = 1
    generator = keras_image.ImageDataGenerator(
        fill_mode=pipeline.fill_mode, cval=pipeline.cval, data_format='channels_last'
    )
    want = []
    for i, im in enumerate(x):
        q = one(p, i)
        del q['brightness']
        want.append(generator.apply_transform(im, q))
    got = aug.apply(x, p, pipeline.fill_mode, pipeline.cval)
    assert np.abs(got - np.array(want)).max() < 5e-5
    assert np.abs(got - x).mean() > 0.01  # and something did happen


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_matrices_equal_keras(keras_image, monkeypatch):
    "The matrix and offset that Keras hands to scipy are ours."
    seen = []

    def spy(x, matrix, offset, **kw):
        seen.append(np.c_[matrix, offset])
        return x

    monkeypatch.setattr(keras_image.scipy.ndimage.interpolation, 'affine_transform', spy)
    pipeline = aug.Pipeline(
        rotation_range=180,
        shear_range=40,
        zoom_range=0.5,
        width_shift_range=0.3,
        height_shift_range=0.2,
    )
    p = aug.sample_parameters(pipeline, 20, 1, (24, 24))
    for i in range(20):
        q = one(p, i)
        numbers = [q[k] for k in ('theta', 'tx', 'ty', 'shear', 'zx', 'zy')]
        keras_image.apply_affine_transform(np.zeros((24, 24, 1)), *numbers, 0, 1, 2)
    assert np.allclose(aug.affine_matrices(p, (24, 24)), seen, atol=1e-10)


def test_brightness_equals_keras_to_one_gray_level(keras_image):
    "Keras multiplies and clips too, but on an 8-bit picture (0-255), cutting off fractions."
    x = images(6)
    p = aug.sample_parameters(aug.WMLQ2022, 6, 2, x.shape[1:3])
    factors = p['brightness']
    p = {k: np.full_like(v, k in ('zx', 'zy')) for k, v in p.items()} | {'brightness': factors}
    want = [
        keras_image.apply_brightness_shift(im * 255, b, scale=False) / 255
        for im, b in zip(x, factors)
    ]
    # cut off once before and once after, times 1.4 at most
    assert np.abs(aug.apply(x, p) - np.array(want)).max() < 2.5 / 255
    assert np.ptp(factors) > 0.2


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_parameters_have_keras_distribution(keras_image):
    "Means and standard deviations of 3000 draws of each, within four standard errors or so."
    pipeline = replace(aug.HEAD_CT_X5, brightness_range=(0.6, 1.4))
    settings = {k: v for k, v in asdict(pipeline).items() if k != 'zoom_range'}
    g = keras_image.ImageDataGenerator(zoom_range=list(pipeline.zoom_range), **settings)
    state = np.random.get_state()
    np.random.seed(0)
    theirs = [g.get_random_transform((50, 50, 1)) for _ in range(3000)]
    np.random.set_state(state)
    ours = aug.sample_parameters(pipeline, 3000, 0, (50, 50))
    for k, v in ours.items():
        t = np.array([float(q[k]) for q in theirs])
        spread = max(t.std(), 1e-9)
        assert abs(v.mean() - t.mean()) < 0.11 * spread + 1e-9, k
        assert abs(v.std() - t.std()) < 0.06 * spread + 1e-9, k


def test_width_shift_moves_along_the_width():
    "Keras exchanges the two (x, y) here; ours does what the name says."
    x = np.zeros((50, 21, 41, 1), np.float32)
    x[:, 10, 20] = 1
    y = aug.augment(x, aug.Pipeline(width_shift_range=0.4), seed=1)
    assert np.allclose(y[:, 10].sum((1, 2)), 1, atol=1e-5)  # stays in its row
    assert len(np.unique(y[:, 10, :, 0].argmax(1))) > 10  # moves among columns


def test_flips_are_exact_and_about_half():
    x = images(400, 8)
    y = aug.augment(x, aug.Pipeline(horizontal_flip=True, vertical_flip=True), seed=0)
    kinds = [x, x[:, :, ::-1], x[:, ::-1], x[:, ::-1, ::-1]]
    which = np.array([[np.array_equal(y[i], k[i]) for k in kinds] for i in range(len(x))])
    assert (which.sum(1) == 1).all() and (which.sum(0) > 70).all()


def test_non_square_images_turn_about_their_centre():
    x = np.zeros((1, 11, 31, 1), np.float32)
    x[0, 5, 15] = 1
    p = aug.sample_parameters(aug.Pipeline(rotation_range=45), 1, 3, (11, 31))
    assert np.isclose(aug.apply(x, p)[0, 5, 15, 0], 1, atol=1e-5)


@pytest.mark.parametrize('shape', [(3, 1, 1, 1), (3, 1, 9, 1), (3, 9, 1, 2), (0, 8, 8, 1)])
@pytest.mark.parametrize('mode', aug.FILL_MODES)
def test_odd_shapes(shape, mode):
    x = np.full(shape, 0.5, np.float32)
    y = aug.augment(x, aug.Pipeline(rotation_range=45, zoom_range=0.2, fill_mode=mode, cval=0.5))
    assert y.shape == shape and np.allclose(y, 0.5)


def test_input_is_left_alone_and_range_is_kept():
    x = images()
    kept = x.copy()
    for p in PIPELINES:
        y = aug.augment(x, p, seed=3)
        assert np.array_equal(x, kept) and y.dtype == np.float32
        assert y.min() >= 0 and y.max() <= 1 + 1e-6


def test_same_seed_same_images_whatever_the_threads_and_neighbours():
    x = images(70, 64)
    a = aug.augment(x, aug.WMLQ2022, seed=4, epoch=2, workers=1)
    assert np.array_equal(a, aug.augment(x, aug.WMLQ2022, seed=4, epoch=2, workers=4))
    assert not np.array_equal(a, aug.augment(x, aug.WMLQ2022, seed=5, epoch=2))
    p = aug.sample_parameters(aug.WMLQ2022, 70, [4, 2], (64, 64))
    assert np.array_equal(a[33:34], aug.apply(x[33:34], {k: v[33:34] for k, v in p.items()}))


def test_global_generator_is_not_touched():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    aug.augment(images(), aug.HEAD_CT_X5)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize(
    'wrong',
    [
        dict(rotation_range=-5),
        dict(rotation_range=270),
        dict(height_shift_range=1),
        dict(shear_range=-1),
        dict(zoom_range=1),
        dict(zoom_range=(1, 2, 3)),
        dict(zoom_range=(1.1, 0.9)),
        dict(brightness_range=0.4),
        dict(brightness_range=(1.4, 0.6)),
        dict(brightness_range=(-1, 1)),
        dict(fill_mode='wrap'),
        dict(cval=3),
    ],
)
def test_bad_pipeline_names_the_parameter(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        aug.Pipeline(**wrong)


def test_bad_arrays():
    p = aug.sample_parameters(aug.WMLQ2022, 4, 0, (8, 8))
    with pytest.raises(InputError, match='images'):
        aug.apply(np.zeros((4, 8, 8)), p)
    with pytest.raises(InputError, match='params'):
        aug.apply(np.zeros((5, 8, 8, 1)), p)
    with pytest.raises(InputError, match='fill_mode'):
        aug.apply(np.zeros((4, 8, 8, 1)), p, fill_mode='mirror')
