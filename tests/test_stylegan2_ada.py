"""ADA beyond its notebook: the published pipeline's numbers, a plain reference, derivatives, statistics, bad
input; and the schedules of the training."""

import functools
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import stylegan2_ada_reference as plain
import torch

from gan_covid.records import InputError
from gan_covid.stylegan2 import ada, settings

f32, f64 = torch.float32, torch.float64


def seeded(s):
    return torch.Generator().manual_seed(s)


def worst(a, b):
    return float((a.detach() - b.detach()).abs().max())


def images(*shape, seed=0, dtype=f64):
    return (torch.rand(*shape, generator=seeded(seed), dtype=f64) * 2 - 1).to(dtype)


@pytest.fixture(scope='module')
def oracle():
    "Numbers of the published implementation; they lie beside the data sets."
    folder = Path(os.environ.get('GAN_COVID_DATA') or '.').resolve().parent / 'oracles'
    if not os.environ.get('GAN_COVID_DATA') or not (folder / 'g_augment.npz').is_file():
        pytest.skip('the published numbers are needed: oracles/ beside the folder GAN_COVID_DATA')
    return functools.cache(lambda name: dict(np.load(folder / name)))


# --- parameters by hand ---

ZERO = 'xflip', 'rotate90', 'rotate_pre', 'rotate_post', 'brightness', 'lumaflip', 'hue'
ONE = 'scale', 'aniso', 'contrast', 'saturation'


def neutral(n, dtype=f64):
    found = {k: torch.zeros(n, dtype=dtype) for k in ZERO}
    found |= {k: torch.ones(n, dtype=dtype) for k in ONE}
    return found | {k: torch.zeros(n, 2, dtype=dtype) for k in ('xint', 'xfrac')}


def percentile(op, q, n=2, dtype=f64):
    """All draws of a transform at one percentile of their distributions, for n images; op 'bgc' is all
    transforms. The normal ones take erfinv(2q - 1), the turn after the stretch is off."""
    u, e = 2 * q - 1, float(torch.erfinv(torch.tensor(2 * q - 1, dtype=f64)))
    values = {
        'xflip': math.floor(2 * q),
        'rotate90': math.floor(4 * q),
        'xint': [0.125 * u] * 2,
        'scale': 2 ** (0.2 * e),
        'rotate': math.pi * u,
        'aniso': 2 ** (0.2 * e),
        'xfrac': [0.125 * e] * 2,
        'brightness': 0.2 * e,
        'contrast': 2 ** (0.5 * e),
        'lumaflip': math.floor(2 * q),
        'hue': math.pi * u,
        'saturation': 2**e,
    }
    chosen = values if op == 'bgc' else {op: values[op]}
    params = neutral(n, dtype)
    for k, v in chosen.items():
        params['rotate_pre' if k == 'rotate' else k] = torch.tensor([v] * n, dtype=dtype)
    return params


def full(x, params, **kw):
    x = ada.apply_geometry(x, ada.geometric_matrices(params, x.shape[2:]), **kw)
    return ada.apply_colour(x, ada.colour_matrices(params, x.shape[1]))


# --- the published numbers ---


def close(got, want, limit, rtol=0):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=limit)


def test_filter_is_the_published_one(oracle):
    close(ada.SYM6, oracle('g_augment.npz')['Hz_geom'], 1e-7)


CASES = [(op, q) for op in (*ada.TRANSFORMS, 'bgc') for q in (0.35, 0.8)]
# a published image, its result, and which of the two published geometric matrices it was made with
IMAGES = ('img3', 'out3', 'G'), ('img1', 'out1', 'G'), ('imgns', 'outns', 'G_ns')


@pytest.mark.parametrize('op, q', CASES, ids=str)
def test_published_pipeline(oracle, op, q):
    """From the percentile of every draw to matrices and images. The published ones were computed in float32,
    angles and logarithms too."""
    o, key = oracle('g_augment.npz'), f'{op}/p{q}'
    for dtype, splits in ((f64, (True, False)), (f32, (True,))):
        params = percentile(op, q, dtype=dtype)
        for image, out, G in IMAGES:
            if f'{key}/{out}' not in o:
                continue
            x = torch.tensor(o[image]).to(dtype)
            if f'{key}/{G}' in o:
                found = ada.geometric_matrices(params, x.shape[2:])[0]
                close(found, o[f'{key}/{G}'], 1e-5)
            if f'{key}/C' in o:
                close(ada.colour_matrices(params, 3)[0], o[f'{key}/C'], 1e-5)
            for split in splits:
                assert worst(full(x, params, split=split), torch.tensor(o[f'{key}/{out}'])) < 2e-5


def published_colours(C, channels):
    "The published 4 × 4 matrix for images of 3 channels or of one."
    if channels == 3:
        return C
    row = C[:3].mean(0)
    return torch.tensor([[row[:3].sum(), row[3]], [0, 1]], dtype=C.dtype)


@pytest.mark.parametrize('op, q', CASES, ids=str)
def test_published_images_from_the_published_matrices(oracle, op, q):
    "Without the rounding of the matrices the images agree better by an order of magnitude."
    o, key = oracle('g_augment.npz'), f'{op}/p{q}'
    for image, out, G in IMAGES:
        if f'{key}/{out}' not in o:
            continue
        x = torch.tensor(o[image]).double()
        if f'{key}/{G}' in o:
            x = ada.apply_geometry(x, torch.tensor(o[f'{key}/{G}']).expand(2, 3, 3))
        if f'{key}/C' in o:
            C = published_colours(torch.tensor(o[f'{key}/C']).double(), x.shape[1])
            x = ada.apply_colour(x, C.expand(2, *C.shape))
        assert worst(x, torch.tensor(o[f'{key}/{out}'])) < 5e-6


def test_published_gradient(oracle):
    o = oracle('g_augment.npz')
    for dtype, limit in ((f64, 1e-5), (f32, 2e-5)):
        x = torch.tensor(o['img1']).to(dtype).requires_grad_()
        out = full(x, percentile('bgc', 0.65, dtype=dtype))
        (g,) = torch.autograd.grad(out, x, torch.tensor(o['vjp_cot']).to(dtype))
        assert worst(g, torch.tensor(o['vjp_grad'])) < limit * np.abs(o['vjp_grad']).max()


def test_published_p0_is_our_identity(oracle):
    o = oracle('g_augment.npz')
    x = torch.tensor(o['img1'])
    assert ada.augment(x, 'bgc', 0.0) is x and worst(x, torch.tensor(o['p0_out1'])) < 1e-5


@pytest.mark.parametrize('dreg', [0, 1])
@pytest.mark.parametrize('j', range(5))
def test_published_controller(oracle, j, dreg):
    o = oracle('h_ada.npz')
    s = json.loads(str(o[f'seq{j}_params']))
    settings = {k: s[k] for k in ('target', 'ada_kimg', 'interval')}
    c = ada.Controller(p=s['p0'], ceiling=None, warn=None, **settings)
    ps, means = [], []
    for i, logits in enumerate(o[f'seq{j}_logits']):
        c.report(torch.tensor(logits))
        if dreg and i % 16 == 0:
            c.report(torch.tensor(o[f'seq{j}_logits_dreg'][i // 16]))
        ps.append(c.step(s['batch']))
        if (i + 1) % s['interval'] == 0:
            means.append(c.r_t)
    close(ps, o[f'seq{j}_dreg{dreg}_p'], 1e-6)
    close(means, o[f'seq{j}_dreg{dreg}_mean'], 1e-7)


def test_published_sequences_tell_r1_from_none(oracle):
    "Else the test above could not notice a forgotten R1 phase."
    o = oracle('h_ada.npz')
    assert any((o[f'seq{j}_dreg0_mean'] != o[f'seq{j}_dreg1_mean']).any() for j in range(5))


def test_published_schedules(oracle):
    o = oracle('i_schedules.npz')
    for resolution, devices, batch, group, fmaps, lr, gamma, ema in o['auto_table']:
        s = settings.auto_settings(int(resolution), int(devices))
        assert (s['batch'], s['mbstd_group']) == (batch, group)
        assert (s['channel_base'], s['channel_max']) == (fmaps * 32768, 512)
        assert (s['mapping_layers'], s['ema_rampup']) == (2, 0.05)
        close([s['lr'], s['gamma'], s['ema_kimg']], [lr, gamma, ema], 0, 1e-12)
    for batch, kimg, rampup, seen, beta in o['ema_table']:
        got = settings.ema_beta(batch, kimg, seen, None if rampup < 0 else rampup)
        close(got, beta, 1e-12, 1e-9)
    for interval, lr, b1, b2 in o['lazy_adam']:
        s = settings.lazy_adam(int(interval), lr=0.0025, betas=(0.0, 0.99))
        close([s['lr'], *s['betas'], s['eps']], [lr, b1, b2, 1e-8], 0, 1e-12)


# --- the plain reference ---

SIZES = (5, 1, 16, 16), (4, 3, 12, 20), (4, 1, 25, 9), (3, 3, 7, 7)
# every transform alone at one size, all together at each
PLAIN = [(t, SIZES[i % 4]) for i, t in enumerate((*ada.TRANSFORMS, 'chest_xray', 'head_ct'))]
PLAIN += [('bgc', size) for size in SIZES]


@pytest.mark.parametrize('pipe, shape', PLAIN, ids=str)
def test_plain_reference(pipe, shape):
    "p = 1: matrices, images and gradients, by both ways, in float64 and float32."
    n, c, h, w = shape
    params = ada.sample_parameters(pipe, n, 1.0, seeded(h), dtype=f64)
    ps = plain.each(params)
    G = torch.stack([plain.geometric_matrix(p, h, w) for p in ps])
    C = torch.stack([plain.colour_matrix(p) for p in ps])
    assert worst(ada.geometric_matrices(params, (h, w)), G) < 1e-10
    assert worst(ada.colour_matrices(params, 3), C) < 1e-10
    x, cot = images(*shape).requires_grad_(), images(*shape, seed=1)
    expected = plain.augment(x, params, margin='full')
    (g,) = torch.autograd.grad(expected, x, cot)
    single, largest = {k: v.float() for k, v in params.items()}, max(1.0, float(g.abs().max()))
    for split in (True, False):
        out = full(x, params, split=split)
        assert worst(out, expected) < 1e-10
        assert worst(torch.autograd.grad(out, x, cot)[0], g) < 1e-10
        y = x.detach().float().requires_grad_()
        out = full(y, single, split=split)
        assert out.dtype == f32 and worst(out, expected) < 1e-4
        assert worst(torch.autograd.grad(out, y, cot.float())[0], g) < 1e-4 * largest


def test_margin_of_the_batch_is_as_good():
    """Reflecting as far as possible, as here, against as far as the batch or the image needs, as published:
    the same within the oracles' tolerance, in a batch mostly the same to rounding."""
    params = ada.sample_parameters('bgc', 24, 1.0, seeded(0), dtype=f64)
    x, G = images(24, 1, 24, 24), ada.geometric_matrices(params, (24, 24))
    ours = ada.apply_geometry(x, G)
    alone = torch.cat([plain.apply_geometry(x[i : i + 1], G[i : i + 1]) for i in range(24)])
    assert 0 < worst(alone, ours) < 2e-4
    together = (plain.apply_geometry(x, G) - ours).abs().amax((1, 2, 3))
    assert together.max() < 2e-4 and together.median() < 1e-10


def test_mixed_batch_equals_its_images_one_by_one():
    "Identity, straight, crossed and turned images in one batch, on both ways."
    params = ada.sample_parameters('bgc', 40, 0.3, seeded(3), dtype=f64)
    x, G = images(40, 2, 10, 14), ada.geometric_matrices(params, (10, 14))
    L = G[:, :2, :2]
    still = (G == torch.eye(3, dtype=f64)).flatten(1).all(1)
    crossed, turned = (L[:, 0, 0] == 0) & (L[:, 1, 1] == 0), (L != 0).flatten(1).all(1)
    for kind in (still, crossed, turned, ~(still | crossed | turned)):
        assert kind.any()
    out, static = ada.apply_geometry(x, G), ada.apply_geometry(x, G, split=False)
    alone = [ada.apply_geometry(x[i : i + 1], G[i : i + 1], split=False) for i in range(40)]
    assert out[still].equal(x[still]) and static[still].equal(x[still])
    assert worst(out, torch.cat(alone)) < 1e-10 and worst(out, static) < 1e-10


@pytest.mark.parametrize('way', ['plain', 'whole'])
def test_other_ways_replace_the_native_look_up(way, monkeypatch):
    "The way of MPS and that of deterministic CUDA."
    params = ada.sample_parameters('geom', 6, 1.0, seeded(0), dtype=f64)
    x, cot = images(6, 3, 9, 12).requires_grad_(), images(6, 3, 9, 12, seed=1)

    def both():
        out = full(x, params)
        return out, torch.autograd.grad(out, x, cot)[0]

    native = both()
    monkeypatch.setattr(ada, '_way', lambda device: way)
    assert all(worst(a, b) < 1e-10 for a, b in zip(native, both()))


def test_more_channels():
    "One of N channels is moved like one; gray of N equal channels stays gray, and comes out as one does."
    params = ada.sample_parameters('bgc', 8, 1.0, seeded(5), dtype=f64)
    x = images(8, 1, 12, 12)
    alone = full(x, params)
    for c in (2, 3, 5):
        out = full(x.expand(8, c, 12, 12), params)
        assert worst(out, alone.expand_as(out)) < 1e-10
    C = ada.colour_matrices(params, 5)
    assert C.shape == (8, 6, 6)
    assert not torch.allclose(C[:, :5, :5], C[:, :1, :1] * torch.eye(5, dtype=f64))
    noisy, G = images(8, 4, 12, 12, seed=3), ada.geometric_matrices(params, (12, 12))
    third = ada.apply_geometry(noisy, G)[:, 2:3]
    assert worst(third, ada.apply_geometry(noisy[:, 2:3], G)) < 1e-10


@pytest.mark.parametrize('h, w', [(1, 1), (1, 8), (2, 3)])
def test_tiny_images(h, w):
    params = ada.sample_parameters('bgc', 6, 1.0, seeded(0), dtype=f64)
    x = images(6, 1, h, w)
    assert worst(full(x, params), plain.augment(x, params, margin='full')) < 1e-10


def test_far_away_is_zero():
    G = torch.eye(3, dtype=f64).repeat(2, 1, 1)
    G[:, 0, 2] = 1e4
    G[1, :2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    x = images(2, 1, 8, 8)
    for split in (True, False):
        assert (ada.apply_geometry(x, G, split=split) == 0).all()


def test_anything_goes_in():
    "Strides, half precision, no gradient, autocast."
    x = images(6, 3, 16, 16, dtype=f32)
    G = ada.geometric_matrices(ada.sample_parameters('bg', 6, 1.0, seeded(1)), (16, 16))
    C = ada.colour_matrices(ada.sample_parameters('color', 6, 1.0, seeded(2)), 3)

    def both(x):
        return ada.apply_colour(ada.apply_geometry(x, G), C)

    expected, kept = both(x), x.clone()
    assert worst(both(x.to(memory_format=torch.channels_last)), expected) < 1e-5
    half = both(x.bfloat16())
    assert half.dtype == torch.bfloat16 and worst(half.float(), expected) < 0.05
    with torch.autocast('cpu', torch.bfloat16):
        y = x.clone().requires_grad_()
        out = both(y)
        assert out.dtype == f32 and worst(out, expected) < 1e-6
        (inside,) = torch.autograd.grad(out.sum(), y)
    y = x.clone().requires_grad_()
    (outside,) = torch.autograd.grad(both(y).sum(), y)
    assert inside.dtype == f32 and worst(inside, outside) < 1e-6
    for cached in (ada._up, ada._down, ada._constants):
        cached.cache_clear()
    with torch.inference_mode():  # constants that are made here serve training too
        assert both(x).equal(expected)
        ada.augment(x, 'bgc', 0.5, seeded(1))
    y = x.clone().requires_grad_()
    ada.augment(both(y), 'bgc', 0.5, seeded(1)).sum().backward()
    assert y.grad.isfinite().all() and y.grad.any()
    assert x.equal(kept)


# --- derivatives ---


@pytest.mark.parametrize('channels, fast', [(1, False), (3, True)])
def test_two_derivatives(channels, fast):
    "fast: along one random direction instead of entry by entry."
    params = ada.sample_parameters('bgc', 3, 0.6, seeded(7), dtype=f64)
    x = images(3, channels, 3, 2).requires_grad_()
    for split in (True, False):

        def f(x):
            return full(x, params, split=split)

        assert torch.autograd.gradcheck(f, x, fast_mode=fast)
        assert torch.autograd.gradgradcheck(f, x, fast_mode=fast)


def test_r1_looks_through_the_augmentation():
    """The gradient penalty on augmented images, against the same with the whole augmentation written out as
    one matrix."""
    params = ada.sample_parameters('bg', 1, 1.0, seeded(3), dtype=f64)
    pixels = torch.eye(16, dtype=f64).view(16, 1, 1, 4, 4)
    M = torch.stack([full(e, params).flatten() for e in pixels], 1)
    weight = torch.randn(6, 16, generator=seeded(1), dtype=f64).requires_grad_()
    x = images(1, 1, 4, 4).requires_grad_()

    def penalty(augmented):
        logit = torch.tanh(augmented.flatten() @ weight.T).sum()
        (g,) = torch.autograd.grad(logit, x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (weight, x))

    for ours, theirs in zip(penalty(full(x, params)), penalty((M @ x.flatten()).view(1, 1, 4, 4))):
        assert worst(ours, theirs) < 1e-10 and ours.abs().max() > 1e-3


# --- random numbers ---


def test_seed_decides():
    x = images(8, 1, 16, 16, dtype=f32)
    a, b, c = (ada.augment(x, 'bgc', 0.5, seeded(s)) for s in (1, 1, 2))
    assert a.equal(b) and not a.equal(c)
    torch.manual_seed(4)
    a = ada.augment(x, 'bgc', 0.5)
    torch.manual_seed(4)
    assert ada.augment(x, 'bgc', 0.5).equal(a)
    g, same = seeded(3), seeded(3)
    ada.augment(x, 'bgc', 0.0, g)
    ada.augment(x, 'xflip', 1.0, same)
    assert g.get_state().equal(same.get_state()), 'the stream depends on p or on the pipeline'


N = 40_000


def draws(pipe, p=1.0, seed=0):
    return ada.sample_parameters(pipe, N, p, seeded(seed), dtype=f64)


def near(share, expected, n=N):
    limit = 4.5 * math.sqrt(expected * (1 - expected) / n) + 1e-9
    assert abs(float(share) - expected) < limit, (float(share), expected)


def kolmogorov(values, cdf):
    "Largest distance of the empirical distribution from the stated one; below 2/√n but in 1 of 1500 cases."
    v, n = np.sort(values.numpy()), len(values)
    F = cdf(v)
    above, below = np.arange(1, n + 1) / n - F, F - np.arange(n) / n
    assert max(above.max(), below.max()) < 2 / math.sqrt(n)


def test_distributions_are_the_stated_ones():
    from scipy.stats import norm, uniform

    d, normal = draws('bgc'), lambda std: norm(0, std).cdf
    for k, std in (('scale', 0.2), ('aniso', 0.2), ('contrast', 0.5), ('saturation', 1.0)):
        kolmogorov(d[k].log2(), normal(std))
    kolmogorov(d['brightness'], normal(0.2))
    for i in (0, 1):
        kolmogorov(d['xfrac'][:, i], normal(0.125))
        kolmogorov(d['xint'][:, i], uniform(-0.125, 0.25).cdf)
    for k in ('rotate_pre', 'rotate_post', 'hue'):
        kolmogorov(d[k], uniform(-math.pi, 2 * math.pi).cdf)
    for k, sides in (('xflip', 2), ('lumaflip', 2), ('rotate90', 4)):
        assert set(d[k].tolist()) == set(range(sides))
        for i in range(sides):
            near((d[k] == i).double().mean(), 1 / sides)


def test_probabilities_are_the_stated_ones():
    d = draws('bgc', 0.3)
    rotated = (d['rotate_pre'] != 0), (d['rotate_post'] != 0)
    near((rotated[0] | rotated[1]).double().mean(), 0.3)
    for r in rotated:
        near(r.double().mean(), 1 - math.sqrt(0.7))
    for k in ('scale', 'aniso', 'contrast', 'saturation', 'brightness', 'hue'):
        near((d[k] != (k in ONE)).double().mean(), 0.3)
    for k in ('xint', 'xfrac'):
        near((d[k] != 0).all(1).double().mean(), 0.3)
        near((d[k] != 0).any(1).double().mean(), 0.3)
    near(d['xflip'].mean(), 0.15)
    near(d['lumaflip'].mean(), 0.15)
    near((d['rotate90'] != 0).double().mean(), 0.225)
    half = draws(ada.pipeline('bgc', scale=0.5), 0.6)
    near((half['scale'] != 1).double().mean(), 0.3)
    near((half['aniso'] != 1).double().mean(), 0.6)


def gate(d, k):
    "Which images a transform is on for, as 0 and 1."
    if k in ('xflip', 'lumaflip'):
        return d[k]
    on = d[k] != (k in ONE)
    return (on.any(1) if on.ndim == 2 else on).double()


def test_transforms_are_drawn_independently():
    "Gates and values of all transforms are uncorrelated, but for a gate and its own values."
    d = draws('bgc', 0.5)
    gates = [k for k in d]
    values = ['scale', 'aniso', 'xfrac', 'xint', 'rotate_pre', 'rotate_post', 'hue', 'brightness']
    rows, names = [gate(d, k) for k in gates], [*gates]
    for k in values:
        for v in d[k].T if d[k].ndim == 2 else [d[k]]:
            rows.append(v)
            names.append(k)
    off = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows), dtype=f64)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            if a == b and (i < len(gates)) != (j < len(gates)):
                off[i, j] = 0
    assert off.abs().max() < 5 / math.sqrt(N)
    neighbours = torch.corrcoef(torch.stack([d['scale'][:-1], d['scale'][1:]]))[0, 1]
    assert abs(float(neighbours)) < 5 / math.sqrt(N)


def test_a_larger_p_only_adds():
    few, many = draws('bgc', 0.2), draws('bgc', 0.7)
    for k, v in neutral(1).items():
        on = few[k] != v
        assert on.any() and few[k][on].equal(many[k][on]) and (many[k] != v).sum() > on.sum()


def test_presets_leave_anatomy_alone():
    for name in ('chest_xray', 'chest_ct', 'head_ct'):
        params = draws(name)
        L, C = ada.geometric_matrices(params, (64, 64))[:, :2, :2], ada.colour_matrices(params, 1)
        upright = params['xflip'] == 0
        angle = torch.atan2(L[:, 1, 0], L[:, 0, 0])[upright]
        # 15° of turns, and what the stretch adds to them
        assert (L[upright].det() > 0).all() and angle.abs().max() < math.radians(25)
        assert (C[:, 0, 0] > 0).all()  # never reversed
        assert bool(upright.all()) == (name != 'head_ct')
        for k in ('rotate90', 'lumaflip', 'hue'):
            assert not params[k].any()
        assert (params['saturation'] == 1).all() and params['scale'].std() > 0.05


def test_p_may_be_a_tensor():
    x = images(4, 1, 8, 8)
    a, b = (ada.augment(x, 'bgc', p, seeded(1)) for p in (torch.tensor(0.5), 0.5))
    assert a.equal(b)


# --- the controller ---


def ones(sign, n=16):
    return torch.full((n, 1), float(sign))


def test_floor_ceiling_and_warning():
    c = ada.Controller(ada_kimg=1, interval=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        for _ in range(60):
            c.report(ones(1))
            c.step(16)
    assert c.p == 0.8 and len(seen) == 1
    assert all(words in str(seen[0].message) for words in ('p has reached 0.7', 'stops at 0.8'))
    for _ in range(100):
        c.report(ones(-1))
        c.step(16)
    assert c.p == 0
    free = ada.Controller(ada_kimg=1, interval=1, ceiling=None, warn=None)
    for _ in range(100):
        free.report(ones(1))
        free.step(16)
    assert free.p == pytest.approx(1.6) and free.probability == 1
    ada.augment(images(2, 1, 8, 8), 'bgc', free.probability)


def test_the_target_itself_moves_nothing():
    c = ada.Controller(p=0.2, interval=1)
    c.report(torch.tensor([1.0] * 8 + [-1.0] * 2))
    c.step(10)
    assert c.p == 0.2 and c.r_t == 0.6


def test_modes():
    for mode, p in (('none', 0.0), ('fixed', 0.3)):
        c = ada.Controller(mode, p, interval=2)
        # nothing reported, nothing wrong
        assert c.step(8) == c.step(8) == p and c.log() == {'p': p, 'r_t': None}
        for _ in range(2):
            c.report(ones(1))
            c.step(8)
        assert c.log() == {'p': p, 'r_t': 1.0}


def test_state_resumes_exactly():
    g = seeded(0)
    logits = [torch.randn(16, 1, generator=g) + 0.9 for _ in range(60)]

    def run(c, part):
        out = []
        for outputs in part:
            c.report(outputs)
            out.append(c.step(16))
        return out

    whole = ada.Controller(ada_kimg=0.5, warn=None)
    expected = run(whole, logits)
    for cut in (1, 22, 37):  # in the middle of an interval
        first, second = (ada.Controller(ada_kimg=0.5, warn=None) for _ in range(2))
        begun = run(first, logits[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert begun + run(second, logits[cut:]) == expected
        assert second.state_dict() == whole.state_dict()
    assert len(set(expected)) > 4
    with pytest.raises(InputError, match='count'):
        second.load_state_dict({'p': 0.1})


WORKER = """
import sys, torch
from gan_covid.stylegan2.ada import Controller
rank, meet = int(sys.argv[1]), 'file://' + sys.argv[2]
torch.distributed.init_process_group('gloo', init_method=meet, rank=rank, world_size=2)
c = Controller(ada_kimg=1, interval=1)
c.report(torch.tensor([1., 1, 1, 1] if rank else [1., -1]))
c.step(6)
assert abs(c.r_t - 4/6) < 1e-6 and abs(c.p - .006) < 1e-9, c.log()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_count_together(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    command = [sys.executable, '-c', WORKER]
    ps = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / 'meet')], stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    for p in ps:
        error = p.communicate(timeout=300)[1]
        assert p.returncode == 0, error


# --- bad input ---


@pytest.mark.parametrize(
    'call, names',
    [
        (lambda: ada.augment(images(2, 1, 8, 8), 'xray', 0.5), 'xray.*chest_xray'),
        (lambda: ada.pipeline('xflip+twirl'), 'twirl.*rotate90'),
        (lambda: ada.pipeline('bgc', twirl=1.0), 'twirl'),
        (lambda: ada.Pipeline(scale=-1.0), 'scale=-1'),
        (lambda: ada.Pipeline(scale_std=float('nan')), 'scale_std'),
        (lambda: ada.Pipeline(rotate_max=2.0), 'rotate_max'),
        (lambda: ada.Pipeline(hue='x'), 'hue'),
        (lambda: ada.augment(images(2, 1, 8, 8), 'bgc', 1.5), 'p=1.5'),
        (lambda: ada.augment(images(2, 1, 8, 8), 'bgc', -0.1), r'p=-0.1'),
        (lambda: ada.augment(images(2, 1, 8, 8), 'bgc', float('nan')), 'p=nan'),
        (lambda: ada.augment(images(1, 8, 8), 'bgc'), r'\(1, 8, 8\)'),
        (lambda: ada.augment(np.zeros((2, 1, 8, 8)), 'bgc'), 'ndarray'),
        (lambda: ada.augment(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 'bgc'), 'uint8'),
        (lambda: ada.apply_geometry(images(2, 1, 8, 8), torch.eye(3)[None]), r'\(2, 3, 3\)'),
        (
            lambda: ada.apply_colour(images(2, 1, 8, 8), torch.eye(4).repeat(2, 1, 1)),
            r'\(2, 2, 2\)',
        ),
        (lambda: ada.Controller('auto'), 'mode'),
        (lambda: ada.Controller(p=2.0), 'p=2'),
        (lambda: ada.Controller(p=0.9), 'ceiling'),
        (lambda: ada.Controller('none', 0.1), 'p=0.1'),
        (lambda: ada.Controller(ada_kimg=0), 'ada_kimg'),
        (lambda: ada.Controller(interval=0), 'interval'),
        (lambda: ada.Controller(target=2.0), 'target'),
        (lambda: ada.Controller(interval=1).step(8), 'report'),
        (lambda: settings.auto_settings(0), 'resolution'),
        (lambda: settings.auto_settings(64, devices=0), 'devices'),
        (lambda: settings.auto_settings(64, devices=2, batch=3), 'batch'),
        (lambda: settings.lazy_adam(0), 'interval'),
        (lambda: settings.ema_beta(0, 10, 0), 'batch'),
        (lambda: settings.ema_beta(8, -1, 0), 'ema_kimg'),
    ],
)
def test_bad_input(call, names):
    with pytest.raises(InputError, match=names):
        call()


@pytest.mark.parametrize('value', ['nan', 'inf'])
def test_diverged_training_is_said(value):
    c = ada.Controller(interval=1)
    c.report(torch.tensor([1.0, float(value)]))
    with pytest.raises(InputError, match='not a number'):
        c.step(2)
