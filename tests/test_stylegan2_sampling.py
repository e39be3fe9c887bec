"What an image depends on; truncation, labels and mixing by hand; copies and diversity."

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gan_covid.records import InputError
from gan_covid.stylegan2 import sampling as S
from gan_covid.stylegan2.networks import Generator
from gan_covid.stylegan2.projection import project

NAMES = ['COVID', 'Viral Pneumonia', 'Normal']


def needs(there, name):
    return pytest.mark.skipif(not there, reason=f'no {name} device')


DEVICES = [
    'cpu',
    pytest.param('cuda', marks=needs(torch.cuda.is_available(), 'CUDA')),
    pytest.param('mps', marks=needs(torch.backends.mps.is_available(), 'MPS')),
]
# tensors are tiny here: threads would only wait for each other
pytestmark = pytest.mark.usefixtures('one_thread')


def network(seed=0, **config):
    "A random generator in which styles, labels and noise all show."
    rng = torch.Generator().manual_seed(seed)
    given = {'size': 16, 'width': (256, 16), 'z_dim': 16, 'generator': rng}
    G = Generator(**given | config).eval()
    with torch.no_grad():
        for name, p in G.named_parameters():
            if name.endswith('noise_strength'):
                p.fill_(0.2)
            if name.endswith('affine.weight'):
                p.mul_(2)
            if 'torgb.weight' in name:
                p.mul_(0.3)
        G.mapping.w_avg.copy_(torch.randn(G.w_dim, generator=rng) * 0.3)
    return G


def shown(x):
    return ((x + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()


# --- what an image depends on -------------------------------------------------------------------


@pytest.mark.parametrize(
    'config',
    [
        dict(),
        dict(size=(32, 24), width='tiny', z_dim=None, channels=3),
        dict(size=(24, 40), c_dim=3, bf16=True),
        dict(size=64, width='tiny', z_dim=None, bf16=True),
    ],
    ids=['gray', 'tiny colour', 'classes bf16', 'tiny-64 bf16'],
)
@pytest.mark.parametrize('noise', ['const', 'none', 'random'])
@pytest.mark.parametrize('batch', [1, 3, 8])
def test_alone_in_company_in_any_order(config, noise, batch):
    G, rng = network(**config), np.random.default_rng(0)
    seeds, label = rng.integers(0, 2**32, 11), rng.integers(0, 3, 11)
    look = dict(psi=0.7, cutoff=3, noise=noise, batch=batch)

    def draw(i):
        return S.sample(G, seeds[i].tolist(), label[i].tolist() if G.c_dim else None, **look)

    every = draw(np.arange(11))
    assert every.shape == (11, *G.size, G.channels) and every.dtype == np.float32
    assert 0 <= every.min() and every.max() <= 1
    for i in ([4], [10, 0], rng.permutation(11), [2, 2, 2, 7]):
        assert np.array_equal(draw(i), every[i])
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(every, 2)) > 0.01


@pytest.mark.slow
def test_same_in_another_process(tmp_path):
    code = f"""
import sys, torch, numpy as np
torch.set_num_threads(1)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_stylegan2_sampling import network, S
np.save({str(tmp_path / 'x.npy')!r}, S.sample(network(), [9, 1], noise='random'))
assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"""
    env = {**os.environ, 'PYTHONHASHSEED': '1'}
    subprocess.run([sys.executable, '-c', code], check=True, env=env, cwd=tmp_path)
    here = S.sample(network(), [1, 9], noise='random')
    assert np.array_equal(np.load(tmp_path / 'x.npy'), here[::-1])


def test_global_generator_is_left_alone():
    G = network()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    S.sample(G, [1, 2], noise='random')
    project(G, np.full((16, 16), 0.5), steps=3)
    S.mean_w(G)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_not_the_latent_vector():
    z, maps = S.latents(range(200), 16), S.noise_maps(network(), range(200))
    flat = torch.cat([z, *[m.flatten(1) for m in maps]], 1)
    assert abs(flat.mean()) < 0.02 and abs(flat.std() - 1) < 0.02
    corr = torch.corrcoef(flat[:, :32].T) - torch.eye(32)
    assert corr.abs().max() < 0.35  # 496 pairs of 200: a repeated stream would give 1


@pytest.mark.parametrize('device', DEVICES)
def test_devices_agree_but_for_rounding(device):
    G, x = network(c_dim=3), None
    for noise in ('const', 'random'):
        look = dict(psi=0.6, noise=noise, centre='class')
        x = S.sample(network(c_dim=3), range(3), [0, 1, 2], **look)
        there = S.sample(G.to(device), range(3), [0, 1, 2], **look)
        assert np.abs(there - x).max() < 1e-3
    table = S.mix(G, [1], [2], row_label=0, column_label=0)[0]
    assert table.shape == (1, 1, 16, 16, 1)
    assert len(S.interpolate(G, [1, 2], 2, label=0)[0]) == 3
    r = project(G, x[0], 0, steps=5)
    assert np.isfinite(r['losses']).all()
    assert np.abs(S.from_w(G, r['w'], r['noise'])[0] - r['image']).max() < 1e-4


# --- truncation, labels, mixing by hand ---------------------------------------------------------


@pytest.mark.parametrize('cutoff', [None, 0, 1, 4, 6])
def test_truncation_as_in_the_mapping(cutoff):
    G, psis = network(c_dim=3), (1, 0.5, 0, -1, 1.5)
    row = S.truncation_row(G, [3, 8], psis, [0, 2], cutoff=cutoff)
    z, c = S.latents([3, 8], 16), torch.tensor([0, 2])
    for j, psi in enumerate(psis):
        with torch.no_grad():
            x = G(z, c, psi, cutoff, noise='const', track=False)
        assert np.abs(row[:, j] - shown(x)).max() < 1e-5
    apart = np.ptp(row, 1).max()
    assert apart == 0 if cutoff == 0 else apart > 0.01


def test_centre_of_the_class_is_where_psi_0_leads():
    G = network(c_dim=3)
    x = S.sample(G, range(6), ['COVID', 'Normal'] * 3, psi=0, centre='class', classes=NAMES)
    for i, name in enumerate(['COVID', 'Normal']):
        assert np.abs(x[i::2] - S.mean_image(G, name, classes=NAMES)).max() < 1e-5
    assert np.abs(x[0] - x[1]).max() > 0.01
    assert np.ptp(S.sample(G, range(6), [0, 2] * 3, psi=0), 0).max() == 0
    label = {'COVID': 1, 'Viral Pneumonia': 1}
    mixed = S.sample(G, 1, label, psi=0.5, centre='class', classes=NAMES)
    with torch.no_grad():
        w = G.mapping(S.latents(1, 16), torch.tensor([[0.5, 0.5, 0]]), track=False)[0, 0]
    w = S.mean_w(G, [0.5, 0.5, 0.0])[0].lerp(w, 0.5)
    assert np.abs(mixed - S.from_w(G, w[None])).max() < 1e-5


def test_mean_w_of_float64_is_float64():
    mean, spread = S.mean_w(network().double())
    other, s = S.mean_w(network())
    assert mean.dtype == torch.float64 and other.dtype == torch.float32
    assert (mean - other).abs().max() < 1e-5 and abs(spread - s) < 1e-5


@pytest.mark.parametrize('size, sizes', [(16, 3), ((24, 40), 3), (32, 4), (128, 6), (256, 7)])
def test_layer_groups_cover_every_layer_once(size, sizes):
    G = Generator(size=size, width=(16, 2), z_dim=2)
    groups = S.layer_groups(G)
    assert len(G.synthesis.sizes) == sizes and list(groups) == ['coarse', 'middle', 'fine']
    assert sum(groups.values(), []) == list(range(G.num_ws)) and all(groups.values())


def test_layers_of_a_level_leave_coarser_ones_alone():
    "Without what a layer adds to the image, changing the fine layers cannot move the coarse picture."
    G = network(size=32)
    with torch.no_grad():
        for name, p in G.named_parameters():
            if 'b32x32.torgb' in name:
                p.zero_()
    assert S.layer_groups(G)['fine'] == [3, 4, 5, 6, 7]
    table, rows, _ = S.mix(G, [1, 2], [3, 4], [6, 7])
    assert np.abs(table - rows[:, None]).max() < 1e-6
    # 5 is shared with the image layer of the level before
    for layers in (5, 'coarse'):
        assert np.abs(S.mix(G, [1, 2], [3, 4], layers)[0] - rows[:, None]).max() > 0.01


def test_mixing_between_classes():
    G, look = network(c_dim=3), dict(psi=0.8, classes=NAMES)
    labels = 'COVID', ['Normal', 'COVID', 'Normal']
    table, rows, columns = S.mix(G, [1, 2], [3, 4, 5], ['middle', 'fine'], *labels, **look)

    def w(s, c):
        return G.mapping(S.latents([s], 16), torch.tensor([c]), 0.8, track=False)

    with torch.no_grad():
        for (i, a), (j, (b, c)) in itertools.product(
            enumerate([1, 2]), enumerate([(3, 2), (4, 0), (5, 2)])
        ):
            v = w(b, c).clone()
            v[:, 0] = w(a, 0)[:, 0]
            assert np.abs(table[i, j] - S.from_w(G, v)[0]).max() < 1e-5
    assert np.array_equal(rows, S.sample(G, [1, 2], 0, psi=0.8))
    assert np.array_equal(columns, S.sample(G, [3, 4, 5], [2, 0, 2], psi=0.8))
    # the coarse layers of A in B are the others of B in A
    swapped = S.mix(G, [3, 4, 5], [1, 2], 'coarse', [2, 0, 2], 0, psi=0.8)[0]
    assert np.abs(swapped - table.swapaxes(0, 1)).max() < 1e-5


def test_slerp():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 16, generator=rng, dtype=torch.float64).unbind()

    def angle(u, v):
        return torch.cosine_similarity(u, v).clamp(-1, 1).acos()

    for t in (0.0, 0.3, 1.0):
        p = S.slerp(a, b, torch.full((50, 1), t, dtype=torch.float64))
        length = (1 - t) * a.norm(dim=1) + t * b.norm(dim=1)
        assert (angle(a, p) - t * angle(a, b)).abs().max() < 1e-6
        assert (p.norm(dim=1) - length).abs().max() < 1e-9
    half = torch.full((50, 1), 0.5, dtype=torch.float64)
    assert torch.isfinite(S.slerp(a, -a, half)).all()


# --- training images ----------------------------------------------------------------------------


def test_nearest_training_with_heldout():
    G = network()
    train, unseen, fresh = (S.sample(G, range(a, a + 60)) for a in (0, 100, 200))
    copied = np.clip(train[:30] + np.float32(0.002), 0, 1)
    stolen, honest = (S.nearest_training(x, train, heldout=unseen) for x in (copied, fresh))
    p_values = [r['copies']['distance']['p_value'] for r in (stolen, honest)]
    assert (stolen['index'][:, 0] == np.arange(30)).all() and p_values[0] < 1e-6 < 0.01 < p_values[
        1
    ]
    assert stolen['beside'].shape == (30, 2, 16, 16, 1) and stolen['features'] == 'pixels 32x32'
    assert np.array_equal(stolen['beside'][:, 1], train[:30])
    with pytest.raises(InputError, match='samples'):
        S.nearest_training(np.uint8(255 * train), train)


@pytest.mark.parametrize(
    'bad, text',
    [
        (dict(pairs=0), 'pairs'),
        (dict(real=np.zeros((3, 7))), 'features'),
        (dict(samples=np.zeros((1, 4))), '2 or more'),
    ],
)
def test_diversity_errors(bad, text):
    with pytest.raises(InputError, match=text):
        S.diversity(**{'samples': np.eye(4), 'real': np.eye(4), **bad})


def test_diversity_counts_every_pair_or_draws_them():
    x = np.random.default_rng(0).normal(size=(400, 5))
    exact, drawn = (S.diversity(x, 2 * x, n) for n in (10**6, 2000))
    assert abs(exact['ratio'] - 0.5) < 1e-12
    assert abs(drawn['ratio'] - 0.5) < 0.03 and drawn['ratio'] != exact['ratio']
    assert drawn == S.diversity(x, 2 * x, 2000) != S.diversity(x, 2 * x, 2000, seed=1)
