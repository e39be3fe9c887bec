"Resizing with every filter, and bad arguments by name."

import numpy as np
import pytest

from gan_covid.images import FILTERS, resize
from gan_covid.records import InputError


@pytest.mark.parametrize('method', FILTERS)
def test_resize_averages_and_keeps_the_range(method):
    stripes = np.tile(np.array([0, 1], np.float32), (64, 64))  # finer than the new pixels
    assert abs(resize(stripes, 16, method=method) - 0.5).max() < 0.1  # gray, not moiré
    edge = np.zeros((50, 50), np.float32)
    edge[:, 25:] = 1
    assert resize(edge, 33, method=method).min() >= 0
    assert resize(edge, 133, method=method).max() <= 1
    flat = np.full((61, 47), 77, np.uint8)
    assert (resize(flat, (20, 90), method=method) == 77).all()


@pytest.mark.parametrize(
    'shape, arguments, name',
    [
        ((2, 9, 9, 9, 1), {'size': 4}, 'image'),
        ((9, 9), {'size': 0}, 'size'),
        ((9, 9), {'size': (4, 4, 1)}, 'size'),
        ((9, 9), {'size': 4, 'fit': 'crop'}, 'fit'),
    ],
)
def test_bad_arguments_name_themselves(shape, arguments, name):
    with pytest.raises(InputError, match=f'^{name}'):
        resize(np.zeros(shape), **arguments)
