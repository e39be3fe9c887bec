"""Networks of StyleGAN2 against published numbers, where they lie beside the data, and against the plain
reference in any shape."""

import itertools
import json
import math
import re
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
    parts = name.split('.')
    return '.'.join(f'{p}x{p[1:]}' if p[:1] == 'b' and p[1:].isdigit() else p for p in parts)


def fill(network, arrays):
    "Load published arrays {name: array} into a network; every parameter has to be among them."
    arrays = {k: v for k, v in arrays.items() if not k.endswith('resample_filter')}
    state = {ours(k): torch.as_tensor(v) for k, v in arrays.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and not set(missing) & {k for k, _ in network.named_parameters()}
    return network


def part(z, prefix):
    return {k[len(prefix) :]: v for k, v in z.items() if k.startswith(prefix)}


def published(file, dtype):
    z = oracle(f'f_networks_{file}_gray.npz')
    k = z['c'].shape[1]
    G = Generator(16, k, 16, 16, 1, (128, 16))
    D = Discriminator(k, 16, 1, 'resnet', (128, 16))
    fill(G, {**part(z, 'G.'), **part(z, 'Gbuf.')})
    fill(D, part(z, 'D.'))
    numbers = {n: torch.as_tensor(v).to(dtype) for n, v in z.items() if v.dtype.kind == 'f'}
    return numbers, G.to(dtype), D.to(dtype)


def path_lengths(G, ws, noise):
    "Length of the derivative of each image by its styles, [n], and the derivative."
    with no_weight_gradients():
        total = (G.synthesis(ws, 'const', fp32=True) * noise).sum()
        (g,) = torch.autograd.grad(total, ws, create_graph=True)
    return g.square().sum(2).mean(1).sqrt(), g


def r1(D, image, c):
    image = image.detach().requires_grad_()
    logits = D(image, c, fp32=True)
    with no_weight_gradients():
        (g,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return g.square().sum((1, 2, 3)), g


# --- published numbers ---


@TYPES
@FILES
def test_oracle_forward(file, dtype):
    z, G, D = published(file, dtype)
    ws = G.mapping(z['z'], z['c'], track=False)
    image = G.synthesis(ws, 'const')
    assert G.num_ws == 6
    for got, want in (
        (ws, 'ws'),
        (image, 'img_const'),
        (G.synthesis(ws, 'none'), 'img_none'),
        (G(z['z'], z['c'], noise='const', track=False), 'img_const'),
        (D(z['real'], z['c']), 'logits_real'),
        (D(image, z['c']), 'logits_fake'),
    ):
        assert distance(got, z[want]) <= LIMITS[dtype][0], want


@TYPES
@FILES
def test_oracle_average_and_truncation(file, dtype):
    (z, G, _), limit = published(file, dtype), LIMITS[dtype][0]
    G.mapping.w_avg.zero_()
    G.train().mapping(z['z'], z['c'])
    assert distance(G.mapping.w_avg, z['w_avg_after1']) <= limit
    G.mapping.w_avg.copy_(z['w_avg_trunc'])
    G.eval()
    assert distance(G.mapping(z['z'], z['c'], psi=0.5), z['ws_psi05']) <= limit
    assert distance(G.mapping(z['z'], z['c'], 0.7, 4), z['ws_psi07_cut4']) <= limit
    assert torch.equal(G.mapping.w_avg, z['w_avg_trunc'])


@TYPES
@FILES
def test_oracle_losses_and_their_derivatives(file, dtype):
    z, G, D = published(file, dtype)
    a, b, _ = LIMITS[dtype]
    fake = G(z['z'], z['c'], noise='const', track=False)
    of_G = F.softplus(-D(fake, z['c'])).mean()
    of_D = F.softplus(D(fake.detach(), z['c'])).mean() + F.softplus(-D(z['real'], z['c'])).mean()
    for network, loss, name in ((G, of_G, 'G'), (D, of_D, 'D')):
        assert distance(loss, z[f'loss_{name}']) <= a
        grads = torch.autograd.grad(loss, list(network.parameters()))
        want = by(z, f'd{name}.')
        for (k, _), g in zip(network.named_parameters(), grads):
            assert distance(g, want[k]) <= b, k


def by(z, prefix):
    "Published derivatives by our names; some carry the network's letter once more."
    names = {k: k[len(prefix) :] for k in z if k.startswith(prefix)}
    return {ours(n[2:] if n[:2] in ('G.', 'D.') else n): z[k] for k, n in names.items()}


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
    penalty = (lengths - mean).square()
    for got, want in (
        (g, 'pl_grads'),
        (lengths, 'pl_lengths'),
        (mean, 'pl_mean_after'),
        (penalty, 'pl_penalty'),
    ):
        assert distance(got, z[want]) <= b, want
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
    assert distance(ws, z['ws']) < 1e-6
    assert distance(R.synthesis(p, ws, (16, 16), noise='const'), z['img_const']) < 1e-6
    assert distance(R.discriminator(q, z['real'], z['c']), z['logits_real']) < 1e-6


# --- plain reference, any shape ---


def shaken(network, seed=0):
    "Every parameter away from where it begins: biases and noise strengths too."
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            size = p.abs().mean() if p.abs().max() > 3 else 1
            p.add_(0.3 * torch.randn(p.shape, generator=rng) * size)
    return network


SHAPES = [
    dict(size=(16, 24), channels=3, width=(96, 12)),
    dict(size=(20, 14), first=(10, 7), channels=2, width=(32, 5)),
    dict(size=16, channels=1, width=(64, 8)),
    dict(size=(6, 6), first=(3, 3), channels=4, width=(16, 4)),
]


def same(got, want, limit=1e-8):
    """Tensor by tensor; one that is tiny beside the others, or zero, may be left out or hold rounding of
    their size."""
    sizes = [float(b.detach().abs().max()) for b in want if b is not None]
    floor = 1e-3 * np.median(sizes)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a is None and b is None:
            continue
        a, b = 0 * b if a is None else a, 0 * a if b is None else b
        size = float(b.detach().abs().max())
        assert float((a - b).detach().abs().max()) <= limit * max(size, floor), i


@pytest.mark.parametrize('case', range(len(SHAPES)))
def test_generator_equals_the_reference(case):
    "Mapping with labels; images, first derivatives and path length in float64, and images in float32."
    shape, start = SHAPES[case], torch.Generator().manual_seed(case)
    how = dict(**shape, mapping_layers=1 + case, generator=start)
    G = shaken(Generator(7, 3 * (case % 2), 9, **how)).double()
    p, rng = dict(G.named_parameters()), torch.Generator().manual_seed(1)
    z = torch.randn(3, 7, generator=rng, dtype=F64)
    c = F.one_hot(torch.tensor([0, 2, 1]), 3).double() if G.c_dim else None
    ws = G.mapping(z, c, track=False)
    assert distance(ws[:, 0], R.mapping(p, z, c, 1 + case)) < 1e-10
    sizes = G.synthesis.sizes[:1] + [s for s in G.synthesis.sizes[1:] for _ in 'ab']
    maps = [torch.randn(3, 1, *hw, generator=rng, dtype=F64) for hw in sizes]
    cot = torch.randn(3, G.channels, *G.size, generator=rng, dtype=F64)
    ws, first, weights = (
        ws.detach().requires_grad_(),
        G.synthesis.first,
        [*G.synthesis.parameters()],
    )

    def derivatives(image):
        g = torch.autograd.grad((image * cot).sum(), [ws, *weights], retain_graph=True)
        lengths, _ = R.path_lengths(image, cot, ws)
        again = torch.autograd.grad(lengths.square().sum(), weights, allow_unused=True)
        return image, *g, lengths, *again

    got = derivatives(G.synthesis(ws, maps))
    same(got, derivatives(R.synthesis(p, ws, G.size, first, maps)))
    quick = R.synthesis(p, ws, G.size, first, maps, per_sample=False, literal=False)
    assert distance(quick, got[0]) < 1e-8  # the reference's quicker way
    with_buffers = {**p, **{k: v for k, v in G.state_dict().items() if 'noise_const' in k}}
    plain = R.synthesis(with_buffers, ws, G.size, first, 'const')
    assert distance(G.synthesis(ws, 'const'), plain) < 1e-8
    single = G.float().synthesis(ws.float(), [m.float() for m in maps])
    assert distance(single, got[0]) < 1e-5


# case of SHAPES, kind, images, (group, channels) of the minibatch deviation
DISCRIMINATORS = [
    (0, 'resnet', 8, (4, 1)),
    (0, 'skip', 8, (4, 1)),
    (1, 'orig', 6, (2, 1)),
    (2, 'resnet', 6, (None, 2)),
    (3, 'resnet', 6, (3, 1)),
    (3, 'skip', 6, (3, 1)),
    (3, 'orig', 6, (3, 1)),
]


@pytest.mark.parametrize('case, kind, n, mbstd', DISCRIMINATORS, ids=str)
def test_discriminator_equals_the_reference(case, kind, n, mbstd):
    "Logits, first derivatives and gradient penalty in float64, and logits in float32."
    c_dim, start = (0, 3)[case % 2], torch.Generator().manual_seed(case)
    how = dict(**SHAPES[case], mbstd_group=mbstd[0], mbstd_channels=mbstd[1], generator=start)
    D = shaken(Discriminator(c_dim, kind=kind, **how), 2).double()
    p, rng, weights = (
        dict(D.named_parameters()),
        torch.Generator().manual_seed(3),
        [*D.parameters()],
    )
    image = torch.randn(n, D.channels, *D.size, generator=rng, dtype=F64, requires_grad=True)
    c = F.one_hot(torch.arange(n) % 3, 3).double() if c_dim else None
    cot = torch.randn(n, 1, generator=rng, dtype=F64)

    def derivatives(logits):
        g = torch.autograd.grad((logits * cot).sum(), [image, *weights], retain_graph=True)
        penalty, _ = R.r1(logits, image)
        again = torch.autograd.grad(penalty.sum(), weights, allow_unused=True)
        return logits, *g, penalty, *again

    got = derivatives(D(image, c))
    same(got, derivatives(R.discriminator(p, image, c, kind, D.first, mbstd)))
    quick = R.discriminator(p, image, c, kind, D.first, mbstd, literal=False)
    assert distance(quick, got[0]) < 1e-8  # the reference's quicker way
    assert distance(D.float()(image.float(), c), got[0]) < 3e-5


def test_switch_and_full_derivative_agree():
    "R1 and path length with and without the switch: the same derivatives by every parameter."
    G = shaken(Generator(8, 0, 8, 16, 1, (64, 8))).double()
    D = shaken(Discriminator(0, 16, 1, 'resnet', (64, 8))).double()
    of_G, of_D = list(G.parameters()), list(D.parameters())
    z = torch.randn(4, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4, 1, 16, 16, dtype=F64, generator=torch.Generator().manual_seed(1)) / 16

    def grads(value, weights):
        return torch.autograd.grad(value.sum(), weights, allow_unused=True, retain_graph=True)

    ws = G.mapping(z, track=False)
    with_ = grads(path_lengths(G, ws, noise)[0], of_G)
    without = grads(R.path_lengths(G.synthesis(ws, 'const'), noise, ws)[0], of_G)
    image = G(z, noise='const', track=False).detach().requires_grad_()
    with_ += grads(r1(D, image, None)[0], of_D)
    without += grads(R.r1(D(image), image)[0], of_D)
    used = 0
    for a, b in zip(with_, without):
        if b is not None and float(b.abs().max()) > 1e-9:
            assert distance(a, b) < 1e-9
            used += 1
    assert used > 30


# --- interface ---


@pytest.mark.parametrize(
    'settings',
    [
        dict(size=64, width='tiny'),
        dict(size=(24, 40), c_dim=4, channels=3, width='small', mapping_layers=4),
        dict(size=(50, 30), first=(25, 15), width=(64, 8), z_dim=5, w_dim=6, bf16=True),
    ],
)
def test_config_is_plain_and_builds_the_same_network(settings):
    def shapes(network):
        return {k: v.shape for k, v in network.state_dict().items()}

    common = 'size', 'c_dim', 'channels', 'width', 'first', 'bf16'
    shared = {k: v for k, v in settings.items() if k in common}
    for network in (
        Generator(**settings),
        Discriminator(**shared),
        Discriminator(**shared, kind='skip', mbstd_group=None, mbstd_channels=2),
        Discriminator(**shared, kind='orig', mbstd_channels=0),
    ):
        config = json.loads(json.dumps(network.config))
        again = type(network)(**config)
        assert config == network.config == again.config
        assert shapes(again) == shapes(network)


def test_weights_go_through_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    path, c = tmp_path / 'w.safetensors', [0, 1, 1, 0]
    G = Generator(c_dim=2, size=(24, 16), channels=3, width='tiny')
    D = Discriminator(2, (24, 16), 3, width='tiny')
    for network, x, how in (
        (G, torch.randn(4, 64), dict(noise='const')),
        (D, torch.randn(4, 3, 24, 16), {}),
    ):
        shaken(network).eval()
        want = network(x, c, **how)
        save_file(network.state_dict(), path)
        again = type(network)(**network.config).eval()
        again.load_state_dict(load_file(path))
        assert torch.equal(again(x, c, **how), want)
        # constants of the method are not stored
        assert not [k for k in network.state_dict() if 'taps' in k]


def test_initial_weights_follow_the_seed_or_the_generator():
    def state(seed=None, generator=None):
        if seed is not None:
            torch.manual_seed(seed)
        how = dict(size=16, width=(64, 8), c_dim=2, generator=generator)
        networks = [kind(**how) for kind in (Generator, Discriminator)]
        return torch.cat([v.flatten() for n in networks for v in n.state_dict().values()])

    def rng(s):
        return torch.Generator().manual_seed(s)

    assert torch.equal(state(1), state(1)) and not torch.equal(state(1), state(2))
    assert torch.equal(state(5, rng(3)), state(6, rng(3)))
    assert not torch.equal(state(5, rng(3)), state(5, rng(4)))
    before = torch.get_rng_state()
    state(generator=rng(0))
    # a generator of its own leaves the global state alone
    assert torch.equal(before, torch.get_rng_state())


def test_initial_images_and_logits_have_a_sane_spread():
    "Equalised weights, demodulation and gains keep the variance: nothing explodes or vanishes."
    torch.manual_seed(0)
    for size, width in ((16, 'tiny'), ((40, 24), 'small'), (64, (2048, 64))):
        with torch.no_grad():
            image = Generator(size=size, width=width)(torch.randn(8, N._width(width)[2]))
            assert 0.2 < image.std() < 5
            for kind in ('resnet', 'skip', 'orig'):
                assert 0.01 < Discriminator(size=size, kind=kind, width=width)(image).std() < 20


def test_noise_is_reproducible_and_named():
    G = shaken(Generator(size=16, width='tiny')).eval()
    z = torch.randn(3, 64)

    def draw(s):
        return G(z, generator=torch.Generator().manual_seed(s))

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(G(z, noise='const'), G(z, noise='const'))
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
    G = shaken(Generator(size=16, width='tiny', c_dim=2)).eval()
    D = shaken(Discriminator(2, 16, width='tiny', mbstd_channels=0))
    z, c = torch.randn(4, 64), torch.tensor([0, 1, 1, 0])
    images = G(z, c, noise='const')
    assert torch.allclose(images[2:3], G(z[2:3], c[2:3], noise='const'), atol=1e-4)
    assert torch.allclose(D(images, c)[1:3], D(images[1:3], c[1:3]), atol=1e-4)


def test_memory_is_channels_last_inside():
    "What enters a 3×3 convolution lies channels_last, in both networks, whatever the images' layout."
    seen = []
    G, D = Generator(size=16, width='tiny'), Discriminator(size=16, width='tiny')

    def hook(m, inputs):
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for m in [m for n in (G, D) for m in n.modules() if isinstance(m, (N.StyledConv, N.Conv))]:
        m.register_forward_pre_hook(hook)
    D(G(torch.randn(4, 64)))
    D(torch.randn(4, 1, 16, 16).contiguous(memory_format=torch.channels_last))
    assert len(seen) == 5 + 2 * 8 and all(seen)


# --- half precision ---


def test_bfloat16_is_close_and_can_be_left_out():
    how = dict(size=16, width='tiny', bf16=True, channels=3)
    G, D = (shaken(kind(**how)) for kind in (Generator, Discriminator))
    z = torch.randn(4, 64)

    def draw(network, fp32):
        return network(z, noise='const', fp32=fp32, track=False)

    def agree(value, network):
        "Whether the derivatives of value(fp32) by all weights point the same way."
        a, b = (
            torch.autograd.grad(value(fp32), list(network.parameters())) for fp32 in (True, False)
        )
        a, b = (torch.cat([g.flatten() for g in grads]) for grads in (a, b))
        return F.cosine_similarity(a, b, 0) > 0.999

    exact, half = draw(G, True), draw(G, False)
    want = Generator(**{**G.config, 'bf16': False})
    want.load_state_dict(G.state_dict())
    assert torch.equal(exact, draw(want, False))
    assert half.dtype == F32 and 0 < distance(half, exact) < 0.05
    logits, rounded = D(exact, fp32=True), D(exact)
    assert rounded.dtype == F32 and 0 < distance(rounded, logits) < 0.1
    assert agree(lambda fp32: D(exact.detach(), fp32=fp32).sum(), D)
    assert agree(lambda fp32: draw(G, fp32).square().mean(), G)


def test_bfloat16_goes_where_it_should():
    "Not in the smallest block, nor in what leaves a network; a network in float64 stays in float64."
    G, D = (kind(size=16, width='tiny', bf16=True) for kind in (Generator, Discriminator))
    types = {}

    def noted(name):
        def hook(module, given, out):
            types[name] = (out[0] if isinstance(out, tuple) else out).dtype

        return hook

    for network in (G, D):
        for k, m in network.named_modules():
            if isinstance(m, (N.StyledConv, N.Conv)):
                m.register_forward_hook(noted(k))
    assert D(G(torch.randn(4, 64))).dtype == F32
    assert types.pop('synthesis.b4x4.conv1') == types.pop('b4x4.conv') == F32
    assert set(types.values()) == {torch.bfloat16} and len(types) == 4 + 7
    assert D.double()(G.double()(torch.randn(4, 64))).dtype == F64 and set(types.values()) == {F64}


# --- accelerators ---


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
    compare_devices('cpu', 'cpu', dtype=F64, limit=1e-12, size=(24, 16))


def test_networks_with_the_filters_of_a_gpu(monkeypatch):
    "The same with filters as matrices on one side, as convolutions on the other."
    from gan_covid.stylegan2 import ops

    turns, turn, real = iter([False, True]), [False], torch.nn.Module.to
    monkeypatch.setattr(ops, '_by_matrices', lambda x: turn[0])
    monkeypatch.setattr(ops, '_spare', lambda n, x: -n % 8 if turn[0] else 0)

    def to(self, *a, **k):
        if isinstance(self, Generator) and a == ('cpu',):
            turn[0] = next(turns, True)
        return real(self, *a, **k)

    monkeypatch.setattr(torch.nn.Module, 'to', to)
    compare_devices('cpu', 'cpu', size=(24, 16))
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
    """As in a torch whose F.linear of more than two axes gives a view: on a GPU the second derivative then
    fails."""
    real = F.linear

    def linear(x, w, b=None):
        y = real(x, w, b)
        return y if x.ndim == 2 else y.view(y.shape)

    monkeypatch.setattr(F, 'linear', linear)
    G, D = Generator(size=16, width='tiny', c_dim=2), Discriminator(2, 16, width='tiny', kind=kind)
    c, noise = torch.tensor([0, 1, 1, 0]), torch.randn(4, 1, 16, 16)
    image = G(torch.randn(4, 64), c, track=False)
    penalty, _ = r1(D, image, c)
    ws = G.mapping(torch.randn(4, 64), c, track=False)
    lengths, _ = path_lengths(G, ws, noise)
    assert 'CopySlices' not in graph(penalty.sum(), lengths.sum(), D(image, c).sum())


def compare_devices(*devices, dtype=F32, limit=5e-3, size=(48, 32)):
    "Images, logits, derivatives, path length and gradient penalty on two devices, and bfloat16 beside them."
    how = dict(size=size, width='tiny', c_dim=2, bf16=True)
    G, D = (shaken(kind(**how)).to(dtype) for kind in (Generator, Discriminator))
    z, labels = torch.randn(4, 64, dtype=dtype), torch.tensor([0, 1, 1, 0])
    noise = torch.randn(4, 1, *size, dtype=dtype) / math.sqrt(math.prod(size))
    results = []
    for d in devices:
        G, D, x, c, m = G.to(d), D.to(d), z.to(d), labels.to(d), noise.to(d)
        of_G, of_D = [*G.synthesis.parameters()], [*D.parameters()]
        image = G(x, c, noise='const', fp32=True, track=False)
        ws, fixed = G.mapping(x, c, track=False), image.detach()
        out = [image, D(fixed, c, fp32=True)]
        for value, weights in (
            (D(image, c, fp32=True), [*of_G, *of_D]),
            (path_lengths(G, ws, m)[0], of_G),
            (r1(D, fixed, c)[0], of_D),
        ):
            out += torch.autograd.grad(value.sum(), weights, allow_unused=True)
        results.append([None if t is None else t.detach().cpu() for t in out])
        half = G(x, c, noise='const', track=False)
        assert distance(half.cpu(), fixed.cpu()) < 0.05 and D(fixed, c).dtype == dtype
    same(*results[::-1], limit)


class NoDoubles(torch.utils._python_dispatch.TorchDispatchMode):
    "Stands for a device that knows no float64 (MPS): what is made of it on 'meta' fails."

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        on_meta = isinstance(out, torch.Tensor) and out.device.type == 'meta'
        assert not (on_meta and out.dtype == F64), f.name()
        return out


def test_labels_become_single_before_they_move():
    like = torch.empty(1, device='meta')
    with NoDoubles():
        with pytest.raises(AssertionError):
            torch.zeros(2, dtype=F64).to('meta')
        for c in np.eye(3)[[0, 1]], torch.eye(3, dtype=F64)[[0, 1]]:
            found = N.labels(c, 2, 3, like)
            assert found.device.type == 'meta' and found.dtype == F32


# --- bad input ---


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


def test_first_blocks_multiply_to_the_size():
    "Where there is a first block it gives the size; where not, both sizes that the message names do."
    for size in itertools.product([8, 12, 20, 28, 56, 96, 640], [8, 14, 28, 40, 256]):
        try:
            (h, w), k = N.first_block(size)
        except InputError as e:
            near = str(e).split('fit are')[1].split(', or')[0]
            named = [tuple(map(int, m)) for m in re.findall(r'(\d+)×(\d+)', near)]
            assert named and all(N.first_block(s) for s in named), size
        else:
            assert (h << k, w << k) == size and 4 <= min(h, w) <= 15 and k >= 1
            assert h % 2 or w % 2 or min(h, w) < 8, size


def test_package_is_light():
    "gan_covid.stylegan2 itself loads no torch."
    code = 'import sys, gan_covid.stylegan2; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
