"Networks of StyleGAN2 against published numbers, where they lie beside the data, and against the plain reference in any shape."

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import stylegan2_reference as R
import torch
import torch.nn.functional as F
import torch.utils._python_dispatch
from test_stylegan2_ops import F32, F64, LIMITS, TYPES, distance, oracle

from gan_covid.records import InputError
from gan_covid.stylegan2 import networks as N
from gan_covid.stylegan2.networks import Discriminator, Generator
from gan_covid.stylegan2.ops import no_weight_gradients

pytestmark = pytest.mark.usefixtures('one_thread')

FILES = pytest.mark.parametrize('file', ['uncond', 'cond3'])


def ours(name):
    "A published parameter's name (without G. or D.) -> ours: levels are called by height and width."
    return '.'.join(
        f'{p}x{p[1:]}' if p[:1] == 'b' and p[1:].isdigit() else p for p in name.split('.')
    )


def fill(network, arrays):
    "Load published arrays {name: array} into a network; every parameter has to be among them."
    state = {
        ours(k): torch.as_tensor(v) for k, v in arrays.items() if not k.endswith('resample_filter')
    }
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and not set(missing) & {k for k, _ in network.named_parameters()}
    return network


def part(z, prefix):
    return {k[len(prefix) :]: v for k, v in z.items() if k.startswith(prefix)}


def published(file, dtype):
    z = oracle(f'f_networks_{file}_gray.npz')
    k = z['c'].shape[1]
    G = fill(Generator(16, k, 16, 16, 1, (128, 16)), {**part(z, 'G.'), **part(z, 'Gbuf.')}).to(
        dtype
    )
    D = fill(Discriminator(k, 16, 1, 'resnet', (128, 16)), part(z, 'D.')).to(dtype)
    return {n: torch.as_tensor(v).to(dtype) for n, v in z.items() if v.dtype.kind == 'f'}, G, D


def path_lengths(G, ws, noise):
    "Length of the derivative of each image by its styles, [n], and the derivative."
    with no_weight_gradients():
        (g,) = torch.autograd.grad(
            (G.synthesis(ws, 'const', fp32=True) * noise).sum(), ws, create_graph=True
        )
    return g.square().sum(2).mean(1).sqrt(), g


def r1(D, image, c):
    image = image.detach().requires_grad_()
    logits = D(image, c, fp32=True)
    with no_weight_gradients():
        (g,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return g.square().sum((1, 2, 3)), g


# --- published numbers ----------------------------------------------------------------------------------------------------------


@TYPES
@FILES
def test_oracle_forward(file, dtype):
    z, G, D = published(file, dtype)
    ws = G.mapping(z['z'], z['c'], track=False)
    limit = LIMITS[dtype][0]
    assert G.num_ws == 6 and distance(ws, z['ws']) <= limit
    image = G.synthesis(ws, 'const')
    assert (
        distance(image, z['img_const']) <= limit
        and distance(G.synthesis(ws, 'none'), z['img_none']) <= limit
    )
    assert (
        distance(D(z['real'], z['c']), z['logits_real']) <= limit
        and distance(D(image, z['c']), z['logits_fake']) <= limit
    )
    assert distance(G(z['z'], z['c'], noise='const', track=False), z['img_const']) <= limit


@TYPES
@FILES
def test_oracle_average_and_truncation(file, dtype):
    z, G, _ = published(file, dtype)
    G.mapping.w_avg.zero_()
    G.train().mapping(z['z'], z['c'])
    assert distance(G.mapping.w_avg, z['w_avg_after1']) <= LIMITS[dtype][0]
    G.mapping.w_avg.copy_(z['w_avg_trunc'])
    G.eval()
    assert distance(G.mapping(z['z'], z['c'], psi=0.5), z['ws_psi05']) <= LIMITS[dtype][0]
    assert distance(G.mapping(z['z'], z['c'], 0.7, 4), z['ws_psi07_cut4']) <= LIMITS[dtype][0]
    assert torch.equal(G.mapping.w_avg, z['w_avg_trunc'])


@TYPES
@FILES
def test_oracle_losses_and_their_derivatives(file, dtype):
    z, G, D = published(file, dtype)
    a, b, _ = LIMITS[dtype]
    fake = G(z['z'], z['c'], noise='const', track=False)
    loss = F.softplus(-D(fake, z['c'])).mean()
    assert distance(loss, z['loss_G']) <= a
    for (k, p), g in zip(G.named_parameters(), torch.autograd.grad(loss, list(G.parameters()))):
        assert distance(g, by(z, 'dG.')[k]) <= b, k
    loss = F.softplus(D(fake.detach(), z['c'])).mean() + F.softplus(-D(z['real'], z['c'])).mean()
    assert distance(loss, z['loss_D']) <= a
    for (k, p), g in zip(D.named_parameters(), torch.autograd.grad(loss, list(D.parameters()))):
        assert distance(g, by(z, 'dD.')[k]) <= b, k


def by(z, prefix):
    return {
        ours(k[len(prefix) + 2 :] if k[len(prefix) :][:2] in ('G.', 'D.') else k[len(prefix) :]): v
        for k, v in z.items()
        if k.startswith(prefix)
    }


@TYPES
@FILES
def test_oracle_gradient_penalty(file, dtype):
    z, _, D = published(file, dtype)
    a, b, c = LIMITS[dtype]
    penalty, g = r1(D, z['real'], z['c'])
    assert distance(g, z['r1_grad']) <= b and distance(penalty, z['r1_penalty']) <= b
    grads = torch.autograd.grad(penalty.mean(), list(D.parameters()), allow_unused=True)
    want = by(z, 'r1_dD.')
    for (k, p), g in zip(D.named_parameters(), grads):
        check_second(g, want[k], p, c, k)


@TYPES
@FILES
def test_oracle_path_length(file, dtype):
    z, G, _ = published(file, dtype)
    a, b, c = LIMITS[dtype]
    noise = z['pl_noise']
    ws = G.mapping(z['z'][: len(noise)], z['c'][: len(noise)], track=False)
    lengths, g = path_lengths(G, ws, noise)
    mean = lengths.mean() * 0.01  # the running mean stays in the graph
    assert (
        distance(g, z['pl_grads']) <= b
        and distance(lengths, z['pl_lengths']) <= b
        and distance(mean, z['pl_mean_after']) <= b
    )
    penalty = (lengths - mean).square()
    assert distance(penalty, z['pl_penalty']) <= b
    grads = torch.autograd.grad((2 * penalty).mean(), list(G.parameters()), allow_unused=True)
    want = by(z, 'pl_dG.')
    for (k, p), g in zip(G.named_parameters(), grads):
        check_second(g, want[k], p, c, k)


def check_second(g, want, p, limit, name):
    "A second-order derivative; where the published one is zero, ours may be left out."
    if float(want.abs().max()) < 1e-12:
        assert g is None or float(g.abs().max()) < 1e-6, name
    else:
        assert distance(torch.zeros_like(p) if g is None else g, want) <= limit, name


@FILES
def test_oracle_is_met_by_the_plain_reference(file):
    z, G, D = published(file, F64)
    p, q = G.state_dict(), D.state_dict()
    ws = R.mapping(p, z['z'], z['c'], 2)[:, None].repeat(1, 6, 1)
    assert (
        distance(ws, z['ws']) < 1e-6
        and distance(R.synthesis(p, ws, (16, 16), noise='const'), z['img_const']) < 1e-6
    )
    assert distance(R.discriminator(q, z['real'], z['c']), z['logits_real']) < 1e-6


# --- plain reference, any shape -------------------------------------------------------------------------------------------------


def shaken(network, seed=0):
    "Every parameter away from where it begins: biases and noise strengths too."
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(
                0.3
                * torch.randn(p.shape, generator=rng)
                * (p.abs().mean() if p.abs().max() > 3 else 1)
            )
    return network


SHAPES = [
    dict(size=(16, 24), channels=3, width=(96, 12)),
    dict(size=(20, 14), first=(10, 7), channels=2, width=(32, 5)),
    dict(size=32, channels=1, width=(64, 8)),
    dict(size=(6, 6), first=(3, 3), channels=4, width=(16, 4)),
]


def same(got, want, limit=1e-8):
    "Tensor by tensor; one that is tiny beside the others, or zero, may be left out or hold rounding of their size."
    floor = 1e-3 * np.median([float(b.detach().abs().max()) for b in want if b is not None])
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        a, b = (
            (0 * (b if a is None else a) if t is None else t for t in (a, b))
            if a is not None or b is not None
            else (torch.zeros(1),) * 2
        )
        assert float((a - b).detach().abs().max()) <= limit * max(
            float(b.detach().abs().max()), floor
        ), i


@pytest.mark.parametrize('case', range(len(SHAPES)))
@pytest.mark.parametrize('c_dim', [0, 3])
def test_generator_equals_the_reference(case, c_dim):
    "Images, first derivatives and path length in float64, and images in float32."
    shape = SHAPES[case]
    G = shaken(
        Generator(
            7,
            c_dim,
            9,
            **shape,
            mapping_layers=1 + case,
            generator=torch.Generator().manual_seed(case),
        )
    ).double()
    p, rng = dict(G.named_parameters()), torch.Generator().manual_seed(1)
    z, c = (
        torch.randn(3, 7, generator=rng, dtype=F64),
        F.one_hot(torch.tensor([0, 2, 1]), 3).double() if c_dim else None,
    )
    ws = G.mapping(z, c, track=False)
    assert distance(ws[:, 0], R.mapping(p, z, c, 1 + case)) < 1e-10
    maps = [
        torch.randn(3, 1, *hw, generator=rng, dtype=F64)
        for hw in [G.synthesis.sizes[0]] + [s for s in G.synthesis.sizes[1:] for _ in 'ab']
    ]
    cot = torch.randn(3, G.channels, *G.size, generator=rng, dtype=F64)
    results = []
    ws = ws.detach().requires_grad_()
    first = G.synthesis.first
    buffers = {k: v for k, v in G.state_dict().items() if 'noise_const' in k}
    for f in (
        lambda: G.synthesis(ws, maps),
        lambda: R.synthesis(p, ws, G.size, first, maps),
        lambda: R.synthesis(p, ws, G.size, first, maps, per_sample=False, literal=False),
    ):
        image = f()
        g = torch.autograd.grad(
            (image * cot).sum(), [ws, *G.synthesis.parameters()], retain_graph=True
        )
        lengths, _ = R.path_lengths(image, cot, ws)
        results.append(
            (
                image,
                *g,
                lengths,
                *torch.autograd.grad(
                    lengths.square().sum(), list(G.synthesis.parameters()), allow_unused=True
                ),
            )
        )
    for other in results[1:]:
        same(results[0], other)
    assert (
        distance(
            G.synthesis(ws, 'const'), R.synthesis({**p, **buffers}, ws, G.size, first, 'const')
        )
        < 1e-8
    )
    assert (
        distance(G.float().synthesis(ws.float(), [m.float() for m in maps]), results[0][0]) < 1e-5
    )


@pytest.mark.parametrize('kind', ['resnet', 'skip', 'orig'])
@pytest.mark.parametrize('case', range(len(SHAPES)))
def test_discriminator_equals_the_reference(case, kind):
    "Logits, first derivatives and gradient penalty in float64, and logits in float32."
    shape, c_dim, group, channels = (
        SHAPES[case],
        (0, 3)[case % 2],
        (4, 2, None, 3)[case],
        (1, 1, 2, 1)[case],
    )
    D = shaken(
        Discriminator(
            c_dim,
            kind=kind,
            **shape,
            mbstd_group=group,
            mbstd_channels=channels,
            generator=torch.Generator().manual_seed(case),
        ),
        2,
    ).double()
    p, rng, n = dict(D.named_parameters()), torch.Generator().manual_seed(3), 6 if group != 4 else 8
    image = torch.randn(n, D.channels, *D.size, generator=rng, dtype=F64, requires_grad=True)
    c = F.one_hot(torch.arange(n) % 3, 3).double() if c_dim else None
    cot, results = torch.randn(n, 1, generator=rng, dtype=F64), []
    for f in (
        lambda: D(image, c),
        lambda: R.discriminator(p, image, c, kind, D.first, group, channels),
        lambda: R.discriminator(p, image, c, kind, D.first, group, channels, literal=False),
    ):
        logits = f()
        g = torch.autograd.grad((logits * cot).sum(), [image, *D.parameters()], retain_graph=True)
        penalty, _ = R.r1(logits, image)
        results.append(
            (
                logits,
                *g,
                penalty,
                *torch.autograd.grad(penalty.sum(), list(D.parameters()), allow_unused=True),
            )
        )
    for other in results[1:]:
        same(results[0], other)
    assert distance(D.float()(image.float(), c), results[0][0]) < 3e-5


def test_switch_and_full_derivative_agree():
    "R1 and path length with and without the switch: the same derivatives by every parameter."
    G, D = (
        shaken(Generator(8, 0, 8, 16, 1, (64, 8))).double(),
        shaken(Discriminator(0, 16, 1, 'resnet', (64, 8))).double(),
    )
    z = torch.randn(4, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    ws, noise = (
        G.mapping(z, track=False),
        torch.randn(4, 1, 16, 16, dtype=F64, generator=torch.Generator().manual_seed(1)) / 16,
    )
    with_ = torch.autograd.grad(
        path_lengths(G, ws, noise)[0].sum(),
        list(G.parameters()),
        allow_unused=True,
        retain_graph=True,
    )
    (g,) = torch.autograd.grad((G.synthesis(ws, 'const') * noise).sum(), ws, create_graph=True)
    without = torch.autograd.grad(
        g.square().sum(2).mean(1).sqrt().sum(), list(G.parameters()), allow_unused=True
    )
    image = G(z, noise='const', track=False).detach()
    with_ += torch.autograd.grad(
        r1(D, image, None)[0].sum(), list(D.parameters()), allow_unused=True
    )
    image.requires_grad_()
    without += torch.autograd.grad(
        R.r1(D(image), image)[0].sum(), list(D.parameters()), allow_unused=True
    )
    used = 0
    for a, b in zip(with_, without):
        if b is not None and float(b.abs().max()) > 1e-9:
            assert distance(a, b) < 1e-9
            used += 1
    assert used > 30


# --- interface ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'settings',
    [
        dict(size=64, width='tiny'),
        dict(size=(48, 80), c_dim=4, channels=3, width='small', mapping_layers=4),
        dict(size=(50, 30), first=(25, 15), width=(64, 8), z_dim=5, w_dim=6, bf16=True),
    ],
)
def test_config_is_plain_and_builds_the_same_network(settings):
    G = Generator(**settings)
    shared = {
        k: v
        for k, v in settings.items()
        if k in ('size', 'c_dim', 'channels', 'width', 'first', 'bf16')
    }
    for network in (
        G,
        Discriminator(**shared),
        Discriminator(**shared, kind='skip', mbstd_group=None, mbstd_channels=2),
        Discriminator(**shared, kind='orig', mbstd_channels=0),
    ):
        config = json.loads(json.dumps(network.config))
        again = type(network)(**config)
        assert config == network.config == again.config
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in network.state_dict().items()
        }


def test_weights_go_through_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    for network, inputs in (
        (
            Generator(c_dim=2, size=(24, 16), channels=3, width='tiny'),
            (torch.randn(4, 64), [0, 1, 1, 0]),
        ),
        (Discriminator(2, (24, 16), 3, width='tiny'), (torch.randn(4, 3, 24, 16), [0, 1, 1, 0])),
    ):
        shaken(network).eval()
        kw = dict(noise='const') if isinstance(network, Generator) else {}
        want = network(*inputs, **kw)
        save_file(network.state_dict(), tmp_path / 'w.safetensors')
        again = type(network)(**network.config).eval()
        again.load_state_dict(load_file(tmp_path / 'w.safetensors'))
        assert torch.equal(again(*inputs, **kw), want)
        assert not [
            k for k in network.state_dict() if 'taps' in k
        ]  # constants of the method are not stored


def test_initial_weights_follow_the_seed_or_the_generator():
    def state(seed=None, generator=None):
        if seed is not None:
            torch.manual_seed(seed)
        return torch.cat(
            [
                v.flatten()
                for f in (Generator, Discriminator)
                for v in f(size=16, width='tiny', c_dim=2, generator=generator)
                .state_dict()
                .values()
            ]
        )

    def rng(s):
        return torch.Generator().manual_seed(s)

    assert (
        torch.equal(state(1), state(1))
        and not torch.equal(state(1), state(2))
        and torch.equal(state(5, rng(3)), state(6, rng(3)))
        and not torch.equal(state(5, rng(3)), state(5, rng(4)))
    )
    before = torch.get_rng_state()
    state(generator=rng(0))
    assert torch.equal(
        before, torch.get_rng_state()
    )  # a generator of its own leaves the global state alone


def test_initial_images_and_logits_have_a_sane_spread():
    "Equalised weights, demodulation and gains keep the variance: for any width and size nothing explodes or vanishes."
    torch.manual_seed(0)
    for size, width in ((16, 'tiny'), ((40, 24), 'small'), (64, (2048, 64))):
        image = Generator(size=size, width=width)(torch.randn(16, N._width(width)[2])).detach()
        assert 0.2 < image.std() < 5
        for kind in ('resnet', 'skip', 'orig'):
            assert 0.01 < Discriminator(size=size, kind=kind, width=width)(image).std() < 20


def test_noise_is_reproducible_and_named():
    G = shaken(Generator(size=16, width='tiny')).eval()
    z = torch.randn(3, 64)

    def draw(s):
        return G(z, generator=torch.Generator().manual_seed(s))

    assert (
        torch.equal(draw(0), draw(0))
        and not torch.equal(draw(0), draw(1))
        and torch.equal(G(z, noise='const'), G(z, noise='const'))
    )
    torch.manual_seed(0)
    a = G(z)
    torch.manual_seed(0)
    b = G(z)
    assert torch.equal(a, b) and not torch.equal(a, G(z, noise='none'))
    with pytest.raises(InputError, match="'random', 'const' or 'none'"):
        G(z, noise='fixed')


def test_noise_maps_can_be_learned():
    "Projection of an image optimises noise: a map that asks for a derivative gets one."
    G = shaken(Generator(size=8, width='tiny'))
    maps = [torch.randn(1, 1, *s, requires_grad=True) for s in ((4, 4), (8, 8), (8, 8))]
    g = torch.autograd.grad(G.synthesis(G.mapping(torch.randn(2, 64)), maps).square().sum(), maps)
    assert all(float(x.abs().max()) > 0 for x in g)


def test_average_moves_in_training_only():
    G = Generator(size=8, width='tiny')
    z = torch.randn(4, 64)
    for train, track, moves in (
        (True, None, True),
        (False, None, False),
        (True, False, False),
        (False, True, True),
    ):
        before = G.train(train).mapping.w_avg.clone()
        G(z, track=track)
        assert (not torch.equal(before, G.mapping.w_avg)) == moves
    assert G.eval()(z, psi=0, noise='none').std(0).max() < 1e-5  # all images are the average's


def test_batches_are_independent_but_for_the_minibatch_deviation():
    G, D = (
        shaken(Generator(size=16, width='tiny', c_dim=2)).eval(),
        shaken(Discriminator(2, 16, width='tiny', mbstd_channels=0)),
    )
    z, c = torch.randn(4, 64), torch.tensor([0, 1, 1, 0])
    images = G(z, c, noise='const')
    assert torch.allclose(
        images[2:3], G(z[2:3], c[2:3], noise='const'), atol=1e-4
    ) and torch.allclose(D(images, c)[1:3], D(images[1:3], c[1:3]), atol=1e-4)


def test_memory_is_channels_last_inside():
    "What enters a 3×3 convolution lies channels_last, in both networks, whatever the images' layout."
    seen, plain = [], N.conv2d_resample
    G, D = Generator(size=16, width='tiny'), Discriminator(size=16, width='tiny')

    def hook(m, inputs):
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for m in [m for n in (G, D) for m in n.modules() if isinstance(m, (N.StyledConv, N.Conv))]:
        m.register_forward_pre_hook(hook)
    D(G(torch.randn(4, 64)))
    D(torch.randn(4, 1, 16, 16).contiguous(memory_format=torch.channels_last))
    assert len(seen) == 5 + 2 * 8 and all(seen)


# --- half precision -------------------------------------------------------------------------------------------------------------


def test_bfloat16_is_close_and_can_be_left_out():
    G, D = (
        shaken(f(size=32, width='tiny', bf16=True, channels=3)) for f in (Generator, Discriminator)
    )
    z = torch.randn(4, 64)
    exact, half = G(z, noise='const', fp32=True, track=False), G(z, noise='const', track=False)
    want = Generator(**{**G.config, 'bf16': False})
    want.load_state_dict(G.state_dict())
    assert (
        torch.equal(exact, want(z, noise='const', track=False))
        and half.dtype == F32
        and 0 < distance(half, exact) < 0.05
    )
    logits = D(exact, fp32=True), D(exact)
    assert logits[1].dtype == F32 and 0 < distance(*logits[::-1]) < 0.1
    for f in (lambda fp: D(exact.detach(), fp32=fp).sum(),):
        a, b = (
            torch.cat([g.flatten() for g in torch.autograd.grad(f(fp), list(D.parameters()))])
            for fp in (True, False)
        )
        assert F.cosine_similarity(a, b, 0) > 0.999
    a, b = (
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    G(z, noise='const', fp32=fp, track=False).square().mean(), list(G.parameters())
                )
            ]
        )
        for fp in (True, False)
    )
    assert F.cosine_similarity(a, b, 0) > 0.999


def test_bfloat16_goes_where_it_should():
    "Not in the smallest block, nor in what leaves a network; a network in float64 stays in float64."
    G, D, types = (
        Generator(size=16, width='tiny', bf16=True),
        Discriminator(size=16, width='tiny', bf16=True),
        {},
    )
    for network in (G, D):
        for k, m in network.named_modules():
            if isinstance(m, (N.StyledConv, N.Conv)):
                m.register_forward_hook(
                    lambda m, i, o, k=k: types.__setitem__(
                        k, (o[0] if isinstance(o, tuple) else o).dtype
                    )
                )
    assert D(G(torch.randn(4, 64))).dtype == F32
    assert (
        types.pop('synthesis.b4x4.conv1') == types.pop('b4x4.conv') == F32
        and set(types.values()) == {torch.bfloat16}
        and len(types) == 4 + 7
    )
    assert D.double()(G.double()(torch.randn(4, 64))).dtype == F64 and set(types.values()) == {F64}


# --- accelerators ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize('device', ['cuda', 'mps'])
def test_accelerator_gives_the_same(device, monkeypatch):
    if not getattr(torch, 'cuda' if device == 'cuda' else 'mps').is_available():
        pytest.skip(f'no {device} here')
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    if device == 'cuda':
        compare_devices('cpu', device, dtype=F64, limit=1e-6)
    compare_devices('cpu', device)


def test_the_comparison_of_devices_itself():
    compare_devices('cpu', 'cpu')
    compare_devices('cpu', 'cpu', dtype=F64, limit=1e-12)


def test_networks_with_the_filters_of_a_gpu(monkeypatch):
    "The same with filters as matrices on one side, as convolutions on the other."
    from gan_covid.stylegan2 import ops

    turns = iter([False, True])
    real = torch.nn.Module.to
    monkeypatch.setattr(ops, '_by_matrices', lambda x: turn[0])
    monkeypatch.setattr(ops, '_spare', lambda n, x: -n % 8 if turn[0] else 0)
    turn = [False]

    def to(self, *a, **k):
        if isinstance(self, Generator) and a == ('cpu',):
            turn[0] = next(turns, True)
        return real(self, *a, **k)

    monkeypatch.setattr(torch.nn.Module, 'to', to)
    compare_devices('cpu', 'cpu')
    assert turn[0] and next(turns, None) is None


def graph(*outputs):
    "Names of all nodes behind some outputs in autograd's graph."
    seen, waiting = set(), [t.grad_fn for t in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [n for n, _ in node.next_functions]
    return {type(n).__name__ for n in seen}


@pytest.mark.parametrize('kind', ['resnet', 'skip', 'orig'])
def test_nothing_is_overwritten_through_a_view(kind, monkeypatch):
    "As in a torch whose F.linear of more than two axes gives a view: on a GPU the second derivative then fails."
    real = F.linear

    def linear(x, w, b=None):
        y = real(x, w, b)
        return y if x.ndim == 2 else y.view(y.shape)

    monkeypatch.setattr(F, 'linear', linear)
    G, D = Generator(size=16, width='tiny', c_dim=2), Discriminator(2, 16, width='tiny', kind=kind)
    c = torch.tensor([0, 1, 1, 0])
    image = G(torch.randn(4, 64), c, track=False)
    penalty, _ = r1(D, image, c)
    lengths, _ = path_lengths(
        G, G.mapping(torch.randn(4, 64), c, track=False), torch.randn(4, 1, 16, 16)
    )
    assert 'CopySlices' not in graph(penalty.sum(), lengths.sum(), D(image, c).sum())


def compare_devices(*devices, dtype=F32, limit=5e-3):
    "Images, logits, derivatives, path length and gradient penalty on two devices, and bfloat16 beside them."
    G, D = (
        shaken(f(size=(48, 32), width='tiny', c_dim=2, bf16=True)).to(dtype)
        for f in (Generator, Discriminator)
    )
    z, c, results = torch.randn(4, 64, dtype=dtype), torch.tensor([0, 1, 1, 0]), []
    noise = torch.randn(4, 1, 48, 32, dtype=dtype) / math.sqrt(48 * 32)
    for d in devices:
        G, D = G.to(d), D.to(d)
        image = G(z.to(d), c.to(d), noise='const', fp32=True, track=False)
        ws = G.mapping(z.to(d), c.to(d), track=False)
        fixed = image.detach()
        out = [
            image,
            D(fixed, c.to(d), fp32=True),
            *torch.autograd.grad(
                D(image, c.to(d), fp32=True).sum(),
                [*G.synthesis.parameters(), *D.parameters()],
                allow_unused=True,
            ),
        ]
        out += torch.autograd.grad(
            path_lengths(G, ws, noise.to(d))[0].sum(),
            list(G.synthesis.parameters()),
            allow_unused=True,
        )
        out += torch.autograd.grad(
            r1(D, fixed, c.to(d))[0].sum(), list(D.parameters()), allow_unused=True
        )
        results.append([None if t is None else t.detach().cpu() for t in out])
        assert (
            distance(G(z.to(d), c.to(d), noise='const', track=False).cpu(), image.detach().cpu())
            < 0.05
            and D(fixed, c.to(d)).dtype == dtype
        )
    same(*results[::-1], limit)


class NoDoubles(torch.utils._python_dispatch.TorchDispatchMode):
    "Stands for a device that knows no float64 (MPS): what is made of it on 'meta' fails."

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        assert not (
            isinstance(out, torch.Tensor) and out.device.type == 'meta' and out.dtype == F64
        ), f.name()
        return out


def test_labels_become_single_before_they_move():
    like = torch.empty(1, device='meta')
    with NoDoubles():
        with pytest.raises(AssertionError):
            torch.zeros(2, dtype=F64).to('meta')
        for c in np.eye(3)[[0, 1]], torch.eye(3, dtype=F64)[[0, 1]]:
            found = N.labels(c, 2, 3, like)
            assert found.device.type == 'meta' and found.dtype == F32


# --- bad input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: Generator(size=100), ['100×100', '96×96', '104×104', 'first=(25, 25)']),
        (lambda: Generator(size=(64, 90)), ['64×90', '64×88', '64×96']),
        (lambda: Discriminator(size=2), ['2×2', '8×8']),
        (lambda: Generator(size=64, first=(5, 5)), ['64×64', '5×5', '80×80']),
        (lambda: Discriminator(size=(64, 0)), ['size']),
        (lambda: Generator(size=(1, 2, 3)), ['size']),
        (lambda: Generator(size='64'), ['size']),
        (lambda: Generator(size=16, width='huge'), ['huge', 'tiny']),
        (lambda: Generator(size=16, width=(3,)), ['width']),
        (lambda: Discriminator(size=16, kind='res'), ["'res'", 'resnet']),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(InputError) as e:
        make()
    assert all(w in str(e.value) for w in words), str(e.value)


def test_bad_batches_are_named():
    G, D = Generator(size=16, width='tiny', c_dim=3), Discriminator(3, 16, width='tiny')
    z, image, c = torch.randn(4, 64), torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    for f, word in (
        (lambda: G(z), 'conditional on 3 classes'),
        (lambda: G(z, torch.tensor([0, 1, 2, 3])), '0 to 2'),
        (lambda: G(z, c[:2]), r'\(2, 3\)'),
        (lambda: G(z[:, :5], c), 'latent vectors'),
        (lambda: D(image[:, :, :8], c), r'\[n, 1, 16, 16\]'),
        (lambda: D(image), 'conditional'),
        (lambda: D(torch.randn(6, 1, 16, 16), c[[0, 1, 2, 0, 1, 2]]), 'batch of 6'),
        (lambda: G.synthesis(torch.randn(4, 3, 64)), 'num_ws|6'),
    ):
        with pytest.raises(InputError, match=word):
            f()


@pytest.mark.parametrize(
    'size', list(itertools.product([8, 12, 20, 28, 56, 96, 640], [8, 14, 28, 40, 256]))
)
def test_first_blocks_multiply_to_the_size(size):
    "Where there is a first block it gives the size; where not, both sizes that the message names do."
    import re

    try:
        (h, w), k = N.first_block(size)
    except InputError as e:
        named = [
            tuple(map(int, m))
            for m in re.findall(r'(\d+)×(\d+)', str(e).split('fit are')[1].split(', or')[0])
        ]
        assert len(named) >= 1 and all(N.first_block(s) for s in named)
    else:
        assert (
            (h << k, w << k) == size
            and 4 <= min(h, w) <= 15
            and k >= 1
            and (h % 2 or w % 2 or min(h, w) < 8)
        )


def test_package_is_light():
    "gan_covid.stylegan2 itself loads no torch."
    code = 'import sys, gan_covid.stylegan2; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
