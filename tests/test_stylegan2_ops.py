"""Operations of StyleGAN2 against the published numbers, where they lie beside the data, and against the
plain reference on cases of any shape."""

import contextlib
import functools
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import stylegan2_reference as R
import torch
import torch.nn.functional as F

from gan_covid.records import InputError
from gan_covid.stylegan2 import ops

F64, F32 = torch.float64, torch.float32
# largest difference over largest value: result, first and second derivatives
LIMITS = {F64: (1e-6, 1e-6, 1e-6), F32: (1e-5, 1e-4, 1e-3)}
TYPES = pytest.mark.parametrize('dtype', [F64, F32], ids=['float64', 'float32'])
NCHW, NHWC = torch.contiguous_format, torch.channels_last
# both types and both layouts, each once; the cases of any shape take all four pairs in turn
KINDS = pytest.mark.parametrize(
    'dtype, layout', [(F64, NCHW), (F32, NHWC)], ids=['float64-nchw', 'float32-nhwc']
)
PAIRS = list(itertools.product((F64, F32), (NCHW, NHWC)))

# tensors are tiny here: threads would only wait for each other
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(params=['convolutions', 'matrices'])
def filters(request, monkeypatch):
    "Filters as a processor and as a GPU computes them, both on the processor."
    matrices = request.param == 'matrices'
    monkeypatch.setattr(ops, '_by_matrices', lambda x: matrices)
    monkeypatch.setattr(ops, '_spare', lambda n, x: -n % 8 if matrices else 0)


@functools.cache
def _numbers(path):
    with np.load(path) as z:
        return {k: z[k] for k in z.files}


def oracle(name):
    "A file of published numbers as {name: array}; they lie in `oracles` beside the folder of data sets."
    if not os.environ.get('GAN_COVID_DATA'):
        pytest.skip(
            'published numbers are needed: GAN_COVID_DATA names the data folder, beside which '
            '`oracles` lies'
        )
    path = Path(os.environ['GAN_COVID_DATA']).resolve().parent / 'oracles' / name
    if not path.exists():
        pytest.skip(f'{path.name} is not beside the data')
    return dict(_numbers(path))


def cases(z):
    for i in range(int(z['num_cases'])):
        yield i, json.loads(str(z[f'case_{i}_params'])), lambda k, i=i: z.get(f'case_{i}_{k}')


def tensor(a):
    return (a if torch.is_tensor(a) else torch.as_tensor(np.asarray(a))).detach()


def distance(got, want):
    "Largest difference over the largest value that is wanted."
    got, want = tensor(got).double(), tensor(want).double()
    assert got.shape == want.shape
    if not want.numel():
        return 0.0
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


def leaf(a, dtype, layout=NCHW):
    t = tensor(a).to(dtype).clone()
    return (t.contiguous(memory_format=layout) if t.ndim == 4 else t).requires_grad_()


def compare(dtype, out, cot, inputs, want, grads, where=''):
    "A result and the derivatives of sum(out*cot) against the numbers wanted."
    first, second, _ = LIMITS[dtype]
    assert distance(out, want) <= first, where
    got = torch.autograd.grad((out * torch.as_tensor(cot).to(dtype)).sum(), inputs)
    for g, w in zip(got, grads):
        assert distance(g, w) <= second, where


# --- published numbers ---


@KINDS
def test_oracle_upfirdn2d(dtype, layout, filters):
    z = oracle('a_upfirdn2d.npz')
    for i, p, get in cases(z):
        where, f, op = f'case {i}: {p}', torch.as_tensor(z[p.pop('f')]), getattr(ops, p.pop('op'))
        x = leaf(z['x'], dtype, layout)
        compare(dtype, op(x, f, **p), get('cot'), [x], get('out'), [get('vjp')], where)


def test_oracle_filters():
    z = oracle('a_upfirdn2d.npz')
    for taps, name in (
        ((1, 3, 3, 1), 'f1331_sep'),
        ([1, 2, 3, 4], 'f1234_sep'),
        (np.outer([1, 3, 3, 1], [1, 3, 3, 1]), 'f1331_2d'),
    ):
        assert distance(ops.fir_filter(taps), z[name]) < 1e-7


@KINDS
def test_oracle_conv2d_resample(dtype, layout, filters):
    z = oracle('b_conv2d_resample.npz')
    for i, p, get in cases(z):
        where, x = f'case {i}: {p}', leaf(z[p.pop('x')], dtype, layout)
        w = leaf(z[p.pop('w')], dtype)
        out = ops.conv2d_resample(x, w, torch.as_tensor(z['f']), **p)
        grads = [get('grad_x'), get('grad_w')]
        compare(dtype, out, get('cot'), [x, w], get('out'), grads, where)


@KINDS
def test_oracle_modulated_conv2d(dtype, layout, filters):
    z = oracle('c_modulated_conv2d.npz')
    for i, p, get in cases(z):
        where, k, noise = f'case {i}: {p}', p.pop('k'), p.pop('noise')
        inputs = [leaf(z[f'{n}_k{k}'], dtype, layout) for n in 'xws']
        noise = torch.as_tensor(get('noise')).to(dtype) if noise else None
        out = ops.modulated_conv2d(*inputs, noise=noise, f=ops.fir_filter(), **p)
        grads = [get(f'grad_{n}') for n in 'xws']
        compare(dtype, out, get('cot'), inputs, get('out'), grads, where)


@TYPES
def test_oracle_bias_act(dtype):
    z = oracle('d_bias_act.npz')
    for i, p, get in cases(z):
        where, x = f'case {i}: {p}', leaf(z[p.pop('x')], dtype)
        b = leaf(z['b'], dtype) if p.pop('bias') else None
        inputs, grads = [x], [get('grad_x')]
        if b is not None:
            inputs, grads = [x, b], [get('grad_x'), get('grad_b')]
        compare(dtype, ops.bias_act(x, b, **p), get('cot'), inputs, get('out'), grads, where)
    out = ops.bias_act(leaf(z['x'], dtype), leaf(z['b'], dtype), act='lrelu', alpha=0.1)
    assert distance(out, z['alpha01_out']) <= LIMITS[dtype][0]


@KINDS
def test_oracle_minibatch_stddev(dtype, layout):
    z = oracle('e_minibatch_stddev.npz')
    for i, p, get in cases(z):
        x = leaf(get('x'), dtype, layout)
        out = ops.minibatch_stddev(x, p['group_size'], p['num_channels'])
        compare(dtype, out, get('cot'), [x], get('out'), [get('grad_x')], f'case {i}: {p}')


# --- plain reference, any shape ---


def both(kind, ours, plain, arrays, second=True):
    "Result, first and second derivatives of two functions of the same arrays; kind: type and layout of ours."
    rng, results, (dtype, layout) = torch.Generator().manual_seed(0), [], kind
    cot, cots = None, None
    for f, to, order in ((plain, F64, NCHW), (ours, dtype, layout)):
        inputs = [leaf(a, to, order) for a in arrays]
        out = f(*inputs)
        if cot is None:
            cot = torch.randn(out.shape, generator=rng, dtype=F64)
        first = torch.autograd.grad((out * cot.to(to)).sum(), inputs, create_graph=second)
        if cots is None:
            cots = [torch.randn(g.shape, generator=rng, dtype=F64) for g in first]
        again = ()
        if second and any(g.requires_grad for g in first):
            total = sum((g * v.to(to)).sum() for g, v in zip(first, cots))
            again = torch.autograd.grad(total, inputs, allow_unused=True)
            again = [torch.zeros_like(a) if g is None else g for g, a in zip(again, inputs)]
        results.append((out, first, again))
    (out0, first0, second0), (out1, first1, second1) = results
    a, b, c = LIMITS[dtype]
    assert distance(out1, out0) <= a
    for p, q in zip(first1, first0):
        assert distance(p, q) <= b
    assert len(second1) == len(second0) or not any(bool(s.abs().max() > 0) for s in second0)
    # where the true one is zero, what counts is that it is small beside the others
    floor = max([float(q.abs().max()) for q in second0], default=0.0) * 1e-3
    for p, q in zip(second1, second0):
        assert float((p.double() - q).abs().max()) <= c * max(float(q.abs().max()), floor)


def rnd(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=F32)


FILTERS = {
    'box': [1.0],
    'two': [1.0, 1.0],
    'three': [1.0, 2.0, 1.0],
    'four': [1.0, 3.0, 3.0, 1.0],
    'skewed': [1.0, 2.0, 3.0, 5.0],
    'long': list(np.hanning(11)[1:-1] + 0.1),
    'longer': list(np.arange(12.0) + 1),
    'matrix': [[1.0, 2.0, 0.0], [0.0, 1.0, 4.0]],
    'row': [[1.0, 2.0, 3.0, 4.0, 5.0]],
    'column': [[3.0], [1.0], [1.0]],
}


SETTINGS = [
    dict(),
    dict(up=2),
    dict(down=2),
    dict(up=[3, 1], down=[1, 2]),
    dict(up=[2, 3], down=[3, 2], gain=1.7),
    dict(up=2, down=2),
    dict(down=[1, 3]),
    dict(up=[1, 2]),
]
PADDINGS = [3, [7, 5], [6, 4, 3, 6], [9, 0, 5, 8], [0, 8, 7, -1]]


@pytest.mark.parametrize('name', FILTERS)
def test_upfirdn2d_of_any_shape(name, filters):
    "Each setting with two paddings, types and layouts, other ones for each filter."
    f, shift = ops.fir_filter(FILTERS[name]), list(FILTERS).index(name)
    shapes = itertools.cycle([(1, 1, 9, 12), (2, 3, 14, 11), (3, 5, 10, 10), (2, 2, 15, 9)])
    flips = itertools.cycle([False, True, True])
    for n, (how, flip, shape) in enumerate(zip(SETTINGS * 2, flips, shapes)):
        padding = PADDINGS[n % 5]
        if name in ('long', 'longer') and n % 2:
            padding = [6, 6, 6, 6]
        p = dict(padding=padding, flip_filter=flip, **how)
        kind = PAIRS[(n + n // 8 + shift) % 4]
        both(
            kind,
            lambda x: ops.upfirdn2d(x, f, **p),
            lambda x: R.upfirdn2d(x, f, **p),
            [rnd(*shape)],
            second=False,
        )


@pytest.mark.parametrize('name', FILTERS)
def test_the_three_everyday_forms(name):
    f, x = ops.fir_filter(FILTERS[name]), rnd(2, 3, 13, 12)
    paddings = dict(), dict(padding=1), dict(padding=[2, 0, 1, 3], flip_filter=True, gain=0.3)
    forms = [('filter2d', (p,), ()) for p in paddings]
    for k, p in zip((1, 2, 3, [2, 1], [1, 3]), itertools.cycle(paddings)):
        forms += [('upsample2d', (p,), (k,)), ('downsample2d', (p,), (k,))]
    for n, (form, (p,), k) in enumerate(forms):
        ours, plain = getattr(ops, form), getattr(R, form)
        both(
            (PAIRS[n % 4][0], NCHW),
            lambda x: ours(x, f, *k, **p),
            lambda x: plain(x, f, *k, **p),
            [x],
            second=False,
        )


def test_upfirdn2d_without_a_filter_and_second_derivative(filters):
    x, how = rnd(1, 2, 5, 6), dict(up=[2, 3], padding=[1, 0, 0, 2])
    assert torch.equal(ops.upfirdn2d(x, None, **how), R.upfirdn2d(x, None, **how))
    for form, power in (('upsample2d', 2), ('downsample2d', 3)):
        both(
            (F64, NCHW),
            lambda x: getattr(ops, form)(x, ops.fir_filter()).pow(power),
            lambda x: getattr(R, form)(x, R.kernel()).pow(power),
            [x],
        )


@pytest.mark.parametrize('kind', PAIRS, ids=lambda k: f'{k[0]} {k[1]}')
def test_many_channels_as_matrices(kind, monkeypatch):
    """With eight channels or more that lie beside each other the products go over them, and the result is a
    tensor of its own."""
    monkeypatch.setattr(ops, '_by_matrices', lambda x: True)
    f, x = ops.fir_filter([1.0, 2.0, 3.0, 5.0]), rnd(2, 9, 8, 6)
    for name in 'filter2d', 'upsample2d', 'downsample2d':
        ours, plain = (getattr(m, name) for m in (ops, R))
        both(kind, lambda x: ours(x, f).square(), lambda x: plain(x, f).square(), [x])
        y = ours(leaf(x, *kind), f)
        assert y.is_contiguous(memory_format=kind[1]) and not y._is_view()


def test_bad_filters_and_paddings(filters):
    x = rnd(1, 1, 4, 4)
    for bad, word in (
        (lambda: ops.fir_filter(np.ones((1, 2, 3))), 'axes'),
        (lambda: ops.upfirdn2d(x, ops.fir_filter(), up=0), 'up='),
        (lambda: ops.upfirdn2d(x, ops.fir_filter(), padding=[1, 2, 3]), 'padding'),
        (lambda: ops.upfirdn2d(x, ops.fir_filter(np.ones(7))), 'does not fit'),
        (lambda: ops.bias_act(x, act='gelu'), 'swish'),
        (lambda: ops.minibatch_stddev(rnd(6, 4, 2, 2), 4), 'batch of 6'),
        (lambda: ops.minibatch_stddev(rnd(4, 4, 2, 2), 4, 3), 'channels=3'),
    ):
        with pytest.raises(InputError, match=word):
            bad()


@pytest.mark.parametrize('size', [(8, 6), (7, 9), (5, 5), (1, 4)], ids=str)
def test_convolution_of_any_shape(size):
    for n, ((o, i, groups), k, stride, padding) in enumerate(
        zip(
            itertools.cycle([(6, 4, 1), (6, 4, 2), (3, 3, 3), (5, 1, 1)]),
            [(3, 3), (1, 1), (3, 2), (1, 3), (5, 3), (2, 2)] * 2,
            itertools.cycle([1, 2, (1, 2), (3, 1)]),
            itertools.cycle([2, [1, 3], [1, 2, 4, 3]]),
        )
    ):
        kind, four = PAIRS[(n + n // 4) % 4], R.four(padding)
        x, w, b = rnd(2, i, *size), rnd(o, i // groups, *k), rnd(o)

        def plain(x, w, b):
            return F.conv2d(F.pad(x, four), w, b, stride=stride, groups=groups)

        if all(a <= s + p for a, s, p in zip(k, size, (sum(four[2:]), sum(four[:2])))):
            both(
                kind,
                lambda x, w, b: ops.conv2d(x, w, b, stride, padding, groups).square(),
                lambda x, w, b: plain(x, w, b).square(),
                [x, w, b],
            )
        w = rnd(i, o // groups, *k)
        p, extra = tuple(min(a // 2, 1) for a in k), tuple(int(s > 1) for s in R.two(stride))
        how = stride, p, extra, groups
        both(
            kind,
            lambda x, w, b: ops.conv_transpose2d(x, w, b, *how).square(),
            lambda x, w, b: F.conv_transpose2d(x, w, b, *how).square(),
            [x, w, b],
        )


RESAMPLE = [
    dict(),
    dict(up=2),
    dict(down=2),
    dict(up=3),
    dict(down=3),
    dict(up=2, down=2),
    dict(up=4),
]


@pytest.mark.parametrize('k', [1, 2, 3, 4, (1, 3), 5], ids=str)
def test_conv2d_resample_of_any_shape(k):
    kh, kw = R.two(k)
    names = itertools.cycle(['four', 'skewed', 'matrix', 'three', 'longer'])
    channels = itertools.cycle([(4, 3, 1), (6, 4, 2), (2, 1, 1)])
    flips = itertools.cycle([True, False, False])
    sizes = itertools.cycle([(8, 6), (7, 9), (5, 8), (9, 5)])
    for n, (how, (o, i, groups), flip, size) in enumerate(
        zip(RESAMPLE * 2, channels, flips, sizes)
    ):
        f = ops.fir_filter(FILTERS[next(names)])
        padding = [kw // 2, kw // 2, kh // 2, kh // 2] if n % 3 else [3, 1, 2, 4]
        p = dict(padding=padding, groups=groups, flip_weight=flip, **how)
        x, w = rnd(2, i, *size), rnd(o, i // groups, kh, kw)
        both(
            PAIRS[(n + kh) % 4],
            lambda x, w: ops.conv2d_resample(x, w, f, **p).square(),
            lambda x, w: R.conv2d_resample(x, w, f, **p).square(),
            [x, w],
        )
        # the reference's quicker way
        x, w = x.double(), w.double()
        quick = R.conv2d_resample(x, w, f, literal=False, **p)
        assert distance(quick, R.conv2d_resample(x, w, f, **p)) < 1e-12


@pytest.mark.parametrize('k', [1, 3])
def test_modulated_conv2d_of_any_shape(k, filters):
    f = ops.fir_filter()
    shapes = [(3, 4, 6, (8, 8)), (1, 1, 1, (5, 9)), (2, 5, 3, (7, 4)), (4, 2, 1, (6, 6))]
    for j, ((n, i, o, size), how, demodulate, with_noise, flip) in enumerate(
        zip(
            shapes * 3,
            itertools.cycle([dict(), dict(up=2), dict(down=2)]),
            itertools.cycle([True, False]),
            itertools.cycle([True, True, False]),
            itertools.cycle([True, False, False]),
        )
    ):
        x, w, s = rnd(n, i, *size), rnd(o, i, k, k), rnd(n, i) + 0.5
        p = dict(padding=k // 2, f=f, demodulate=demodulate, flip_weight=flip, **how)
        shape = R.modulated_conv2d(x, w, s, **p).shape
        noise = rnd(shape[0], 1, *shape[2:]) if with_noise else None

        def run(module, x, w, s, **more):
            m = None if noise is None else noise.to(x)
            return module.modulated_conv2d(x, w, s, m, **p, **more).square()

        both(
            PAIRS[(j + j // 4) % 4],
            lambda *inputs: run(ops, *inputs),
            lambda *inputs: run(R, *inputs, per_sample=j % 2 == 0),
            [x, w, s],
        )


@KINDS
def test_layer_with_postponed_demodulation(layout, dtype, filters):
    """noise_bias_lrelu_ with the factor that waits, against demodulation, noise, bias and activation one
    after the other; by noise, too."""
    for (n, c, h, w), own in (
        ((3, 4, 5, 6), True),
        ((2, 1, 4, 4), False),
        ((1, 7, 1, 3), True),
        ((2, 8, 3, 1), None),
    ):
        z, b, d, strength = rnd(n, c, h, w), rnd(c), rnd(n, c).exp(), rnd(1)
        noise = [] if own is None else [rnd(n if own else 1, 1, h, w)]

        def ours(z, b, d, strength, *m):
            m = dict(noise=m[0], strength=strength / d) if m else {}
            return d[:, :, None, None] * ops.noise_bias_lrelu_(z * 1, b / d, **m) + strength

        def plain(z, b, d, strength, *m):
            z = z * d[:, :, None, None] + (m[0] * strength if m else 0)
            return R.bias_act(z, b, act='lrelu', gain=1) + strength

        both((dtype, layout), ours, plain, [z, b, d, strength, *noise])


@pytest.mark.parametrize('act', ['linear', 'relu', 'lrelu', 'tanh', 'sigmoid', 'swish'])
def test_bias_act_of_any_shape(act):
    shapes = ((3, 4), 1), ((2, 3, 4), 2), ((2, 5, 3, 2), 1), ((4, 2, 2, 3), 0), ((2, 3, 4), -1)
    limits = dict(), dict(gain=0.4), dict(gain=-2.0, clamp=0.6), dict(clamp=0.5)
    for n, ((shape, dim), how) in enumerate(itertools.product(shapes, limits)):
        positive, kind = dim % len(shape), (PAIRS[(n + n // 4) % 4][0], NCHW)
        both(
            kind,
            lambda x, b: ops.bias_act(x, b, dim, act, **how).pow(2),
            lambda x, b: R.bias_act(x, b, positive, act, **how).pow(2),
            [rnd(*shape), rnd(shape[dim])],
        )
        if shape == (3, 4):
            both(
                kind,
                lambda x: ops.bias_act(x, None, dim, act, **how).pow(2),
                lambda x: R.bias_act(x, None, positive, act, **how).pow(2),
                [rnd(*shape)],
            )


def test_bias_act_leaves_its_input_alone():
    x, b = rnd(2, 3, 4, 4), rnd(3)
    for act in ops.ACTIVATIONS:
        y = x.clone()
        ops.bias_act(y, b, act=act)
        ops.bias_act(y, act=act)
        ops.bias_act(y, torch.zeros(3), act=act, gain=1.0)
        assert torch.equal(x, y), act


@KINDS
def test_minibatch_stddev_of_any_shape(layout, dtype):
    for shape, group, channels in (
        ((8, 6, 4, 4), 4, 1),
        ((6, 4, 3, 5), 3, 2),
        ((5, 3, 2, 2), None, 3),
        ((3, 2, 4, 1), 8, 1),
        ((1, 4, 4, 4), 4, 1),
        ((8, 4, 2, 3), 2, 4),
    ):
        # with one image the deviation is constant: there is nothing to differentiate twice but the square
        both(
            (dtype, layout),
            lambda x: ops.minibatch_stddev(x, group, channels).square(),
            lambda x: R.minibatch_stddev(x, group, channels).square(),
            [rnd(*shape)],
        )


# --- second derivatives and the switch ---


def test_gradgradcheck_of_a_whole_layer(filters):
    f, rng = ops.fir_filter(), torch.Generator().manual_seed(1)

    def t(*s):
        return torch.randn(s, generator=rng, dtype=F64, requires_grad=True)

    def layer(x, w, s, b, m):
        d, x = ops.demodulation(w, s), x * s[:, :, None, None]
        z = ops.conv2d_resample(x, w, f, up=2, padding=1, flip_weight=False)
        return ops.noise_bias_lrelu_(z, b / d, m, 0.3 / d) * d[:, :, None, None]

    def halve(x, w, b):
        return ops.bias_act(ops.conv2d_resample(x, w, f, down=2, padding=1), b, act='lrelu')

    # fast mode: one random direction each instead of every entry, which takes minutes
    args = t(2, 2, 2, 2), t(2, 2, 3, 3), t(2, 2), t(2), t(2, 1, 4, 4)
    assert torch.autograd.gradcheck(layer, args)
    assert torch.autograd.gradgradcheck(layer, args, fast_mode=True)
    args = t(2, 2, 4, 5), t(3, 2, 3, 3), t(3)
    assert torch.autograd.gradgradcheck(halve, args, fast_mode=True)


def test_third_derivative():
    "Nothing in the circle of maps ends: a third derivative is right as well."
    x, w = (rnd(*s).double().requires_grad_() for s in ((1, 2, 4, 4), (2, 2, 3, 3)))

    def third(conv):
        y = conv(x, w).pow(4).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), w, create_graph=True)
        return torch.autograd.grad(h.square().sum(), [x, w])

    for a, b in zip(third(ops.conv2d), third(F.conv2d)):
        assert distance(a, b) < 1e-12


@TYPES
def test_switch_leaves_out_weight_gradients_only(dtype, monkeypatch):
    "With the switch the penalty has the same derivative, and the inner pass computes no weight gradient."
    calls, compute = [], ops._ConvWeight.forward

    def counted(*a):
        calls.append(1)
        return compute(*a)

    monkeypatch.setattr(ops._ConvWeight, 'forward', staticmethod(counted))
    shapes = (2, 3, 9, 8), (4, 3, 3, 3), (2, 4, 3, 3), (4,)
    x, w, v, b = (leaf(rnd(*s), dtype) for s in shapes)

    def penalty(context):
        del calls[:]
        y = ops.lrelu_(ops.conv2d(x, w, b))
        y = ops.conv2d_resample(y, v, ops.fir_filter(), down=2, padding=1)
        with context:
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        inner = len(calls)
        return inner, torch.autograd.grad(g.square().sum(), [w, v, b])

    with_, got = penalty(ops.no_weight_gradients())
    without, want = penalty(contextlib.nullcontext())
    assert with_ == 0 and without == 2
    for p, q in zip(got, want):
        assert distance(p, q) <= LIMITS[dtype][2]
    assert ops._without_weights is False


def test_switch_is_off_again_after_an_error():
    with pytest.raises(ZeroDivisionError):
        with ops.no_weight_gradients():
            1 / 0
    x, w = leaf(rnd(1, 1, 4, 4), F32), leaf(rnd(1, 1, 3, 3), F32)
    assert torch.autograd.grad(ops.conv2d(x, w).sum(), w)[0].shape == w.shape


# --- bfloat16 ---


def test_bfloat16_stays_close_and_keeps_its_type(filters):
    f, x, w, s = ops.fir_filter(), rnd(2, 8, 8, 6), rnd(4, 8, 3, 3), rnd(2, 8)
    operations = {
        'up': lambda t, w: ops.upsample2d(t, f),
        'down': lambda t, w: ops.downsample2d(t, f),
        'smooth': lambda t, w: ops.filter2d(t, f),
        'conv': lambda t, w: ops.conv2d(t, w, padding=1),
        'doubled': lambda t, w: ops.conv2d_resample(t, w, f, up=2, padding=1),
        'styled': lambda t, w: ops.modulated_conv2d(t, w, s, padding=1),
        'point': lambda t, w: ops.modulated_conv2d(t, w[..., :1, :1], s),
    }
    for name, g in operations.items():
        a, b = leaf(x, torch.bfloat16, NHWC), leaf(w, torch.bfloat16)
        y = g(a, b)
        assert y.dtype == torch.bfloat16 and distance(y, g(x, w)) < 0.03, name
        y.float().square().sum().backward()
        assert a.grad.dtype == torch.bfloat16
