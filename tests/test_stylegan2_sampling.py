"Sampling from StyleGAN2 networks: what an image depends on, truncation and mixing by hand, projection, files that a stopped run leaves."

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gan_covid.records import InputError, read_json
from gan_covid.stylegan2 import sampling as S
from gan_covid.stylegan2.networks import Generator

NAMES = ['COVID', 'Viral Pneumonia', 'Normal']
DEVICES = pytest.mark.parametrize(
    'device',
    [
        'cpu',
        pytest.param(
            'cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
        ),
        pytest.param(
            'mps',
            marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason='no MPS device'),
        ),
    ],
)

pytestmark = pytest.mark.usefixtures(
    'one_thread'
)  # tensors are tiny here: threads would only wait for each other


def network(seed=0, **config):
    "A random generator in which styles, labels and noise all show."
    rng = torch.Generator().manual_seed(seed)
    G = Generator(
        **{'size': 16, 'width': (256, 16), 'z_dim': 16, 'generator': rng, **config}
    ).eval()
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


# --- what an image depends on ---------------------------------------------------------------------------------------------------


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
    seeds = rng.integers(0, 2**32, 11).tolist()
    label = rng.integers(0, 3, 11).tolist() if G.c_dim else [None] * 11

    def draw(i):
        return S.sample(
            G,
            [seeds[j] for j in i],
            [label[j] for j in i] if G.c_dim else None,
            0.7,
            3,
            noise,
            batch,
        )

    all = draw(range(11))
    assert (
        all.shape == (11, *G.size, G.channels)
        and all.dtype == np.float32
        and 0 <= all.min()
        and all.max() <= 1
    )
    for i in ([4], [10, 0], rng.permutation(11).tolist(), [2, 2, 2, 7]):
        assert np.array_equal(draw(i), all[i])
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(all, 2)) > 0.01


def test_same_in_another_process(tmp_path):
    code = f"""
import sys, torch, numpy as np
torch.set_num_threads(1)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_stylegan2_sampling import network, S
np.save({str(tmp_path / 'x.npy')!r}, S.sample(network(), [9, 1], noise='random'))
assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"""
    subprocess.run(
        [sys.executable, '-c', code],
        check=True,
        env={**os.environ, 'PYTHONHASHSEED': '1'},
        cwd=tmp_path,
    )
    assert np.array_equal(
        np.load(tmp_path / 'x.npy'), S.sample(network(), [1, 9], noise='random')[::-1]
    )


def test_global_generator_is_left_alone():
    G = network()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    S.sample(G, [1, 2], noise='random'), S.project(G, np.full((16, 16), 0.5), 3), S.mean_w(G)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_not_the_latent_vector():
    z, maps = S.latents(range(200), 16), S.noise_maps(network(), range(200))
    flat = torch.cat([z, *[m.flatten(1) for m in maps]], 1)
    assert abs(flat.mean()) < 0.02 and abs(flat.std() - 1) < 0.02
    corr = torch.corrcoef(flat[:, :32].T)
    assert (
        corr - torch.eye(32)
    ).abs().max() < 0.35  # 496 pairs of 200: a repeated stream would give 1


@DEVICES
def test_devices_agree_but_for_rounding(device):
    G, x = network(c_dim=3), None
    for noise in ('const', 'random'):
        x = S.sample(network(c_dim=3), range(3), [0, 1, 2], 0.6, noise=noise, centre='class')
        assert (
            np.abs(
                S.sample(G.to(device), range(3), [0, 1, 2], 0.6, noise=noise, centre='class') - x
            ).max()
            < 1e-3
        )
    assert (
        S.mix(G, [1], [2], 0, 0)[0].shape == (1, 1, 16, 16, 1)
        and len(S.interpolate(G, [1, 2], 2, label=0)[0]) == 3
    )
    r = S.project(G, x[0], 5, label=0)
    assert (
        np.isfinite(r['losses']).all()
        and np.abs(S.from_w(G, r['w'], r['noise'])[0] - r['image']).max() < 1e-4
    )


# --- truncation, labels, mixing by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('cutoff', [None, 0, 1, 4, 6])
def test_truncation_as_in_the_mapping(cutoff):
    G, psis = network(c_dim=3), (1, 0.5, 0, -1, 1.5)
    row = S.truncation_row(G, [3, 8], psis, [0, 2], cutoff)
    for j, psi in enumerate(psis):
        with torch.no_grad():
            x = G(
                S.latents([3, 8], 16), torch.tensor([0, 2]), psi, cutoff, noise='const', track=False
            )
        assert np.abs(row[:, j] - shown(x)).max() < 1e-5
    if cutoff == 0:
        assert np.ptp(row, 1).max() == 0
    else:
        assert np.ptp(row, 1).max() > 0.01


def test_centre_of_the_class_is_where_psi_0_leads():
    G = network(c_dim=3)
    x = S.sample(G, range(6), ['COVID', 'Normal'] * 3, psi=0, centre='class', classes=NAMES)
    for i, name in enumerate(['COVID', 'Normal']):
        assert np.abs(x[i::2] - S.mean_image(G, name, classes=NAMES)).max() < 1e-5
    assert (
        np.abs(x[0] - x[1]).max() > 0.01
        and np.ptp(S.sample(G, range(6), [0, 2] * 3, psi=0), 0).max() == 0
    )
    c = torch.tensor([[0.5, 0.5, 0]])
    mixed = S.sample(G, 1, {'COVID': 1, 'Viral Pneumonia': 1}, 0.5, centre='class', classes=NAMES)
    with torch.no_grad():
        w = S.mean_w(G, [0.5, 0.5, 0.0])[0].lerp(
            G.mapping(S.latents(1, 16), c, track=False)[0, 0], 0.5
        )
    assert np.abs(mixed - S.from_w(G, w[None])).max() < 1e-5


def test_mean_w_of_float64_is_float64():
    mean, spread = S.mean_w(network().double())
    other, s = S.mean_w(network())
    assert (
        mean.dtype == torch.float64
        and other.dtype == torch.float32
        and (mean - other).abs().max() < 1e-5
        and abs(spread - s) < 1e-5
    )


@pytest.mark.parametrize('size, sizes', [(16, 3), ((24, 40), 3), (32, 4), (128, 6), (256, 7)])
def test_layer_groups_cover_every_layer_once(size, sizes):
    G = Generator(size=size, width=(16, 2), z_dim=2)
    assert len(G.synthesis.sizes) == sizes
    groups = S.layer_groups(G)
    assert (
        list(groups) == ['coarse', 'middle', 'fine']
        and sum(groups.values(), []) == list(range(G.num_ws))
        and all(groups.values())
    )


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
    assert (
        np.abs(S.mix(G, [1, 2], [3, 4], 5)[0] - rows[:, None]).max() > 0.01
    )  # shared with the image layer of the level before
    assert np.abs(S.mix(G, [1, 2], [3, 4], 'coarse')[0] - rows[:, None]).max() > 0.01


def test_mixing_between_classes():
    G = network(c_dim=3)
    table, rows, columns = S.mix(
        G,
        [1, 2],
        [3, 4, 5],
        ['middle', 'fine'],
        'COVID',
        ['Normal', 'COVID', 'Normal'],
        psi=0.8,
        classes=NAMES,
    )

    def w(s, c):
        return G.mapping(S.latents([s], 16), torch.tensor([c]), 0.8, track=False)

    with torch.no_grad():
        for (i, a), (j, (b, c)) in itertools.product(
            enumerate([1, 2]), enumerate([(3, 2), (4, 0), (5, 2)])
        ):
            v = w(b, c).clone()
            v[:, 0] = w(a, 0)[:, 0]
            assert np.abs(table[i, j] - S.from_w(G, v)[0]).max() < 1e-5
    assert np.array_equal(rows, S.sample(G, [1, 2], 0, 0.8)) and np.array_equal(
        columns, S.sample(G, [3, 4, 5], [2, 0, 2], 0.8)
    )
    swapped = S.mix(G, [3, 4, 5], [1, 2], 'coarse', [2, 0, 2], 0, psi=0.8)[0]
    assert (
        np.abs(swapped - table.swapaxes(0, 1)).max() < 1e-5
    )  # the coarse layers of A in B are the others of B in A


def test_slerp():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 16, generator=rng, dtype=torch.float64).unbind()
    for t in (0.0, 0.3, 1.0):
        p = S.slerp(a, b, torch.full((50, 1), t, dtype=torch.float64))

        def cos(u, v):
            return torch.cosine_similarity(u, v).clamp(-1, 1).acos()

        assert (cos(a, p) - t * cos(a, b)).abs().max() < 1e-6 and (
            p.norm(dim=1) - ((1 - t) * a.norm(dim=1) + t * b.norm(dim=1))
        ).abs().max() < 1e-9
    assert torch.isfinite(S.slerp(a, -a, torch.full((50, 1), 0.5, dtype=torch.float64))).all()


# --- projection -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_own_images_are_found_again(seed):
    G = network(seed, c_dim=3, channels=3, size=(16, 24))
    image = S.sample(G, 40 + seed, 'Normal', classes=NAMES)[0]
    r = S.project(G, image, 150, seed, 'Normal', fit_noise=False, classes=NAMES)
    with torch.no_grad():
        w = G.mapping(S.latents(40 + seed, 16), torch.tensor([2]), track=False)[0, 0]
    mean = S.mean_w(G, 2)[0]
    assert (
        r['distance'] < r['start'] / 50
        and np.linalg.norm(r['w'][0] - w.numpy()) < 0.5 * (mean - w).norm()
    )
    far = S.project(G, 1 - image, 150, seed, 2, fit_noise=False)
    assert far['distance'] > 10 * r['distance']  # what the network cannot draw is not found


def test_projection_with_bf16_runs_in_float32():
    image = S.sample(network(), 3)[0]
    a, b = S.project(network(bf16=True), image, 20), S.project(network(), image, 20)
    assert np.array_equal(a['w'], b['w']) and np.array_equal(a['losses'], b['losses'])


def test_projection_starts_at_the_average_and_shakes_by_the_schedule(monkeypatch):
    G, seen = network(), []
    forward = G.synthesis.forward
    monkeypatch.setattr(
        G.synthesis,
        'forward',
        lambda ws, *a, **k: (seen.append(ws.detach().clone()), forward(ws, *a, **k))[1],
    )
    r = S.project(
        G, np.full((16, 16), 0.5), 40, lr=1e-9, fit_noise=False
    )  # w hardly moves: what is left is the noise on it
    mean, spread = S.mean_w(G)
    assert (seen[0] - mean).abs().max() < 1e-6 and np.abs(r['w'] - mean.numpy()).max() < 1e-6
    shaken = torch.stack(seen[1:-1])[:, 0, 0] - mean
    for t in (range(0, 10), range(10, 20)):
        expected = np.sqrt(np.mean([(0.05 * spread * S.schedule(i, 40)[1]) ** 2 for i in t]))
        assert abs(shaken[list(t)].square().mean().sqrt() / expected - 1) < 0.25
    assert shaken[30:].abs().max() < 1e-6


def test_noise_maps_do_not_hold_the_image():
    G, image = network(size=32), np.zeros((32, 32), 'float32')
    image[8:24, 8:24] = 1
    free, held = (S.project(G, image, 60, noise_weight=w)['noise'] for w in (0, 1e5))

    def corr(maps):
        return float(S.noise_correlation([torch.tensor(m) for m in maps]))

    assert corr(held) < 0.5 * corr(free) and held[-1].shape == (1, 1, 32, 32)


def test_only_black_beyond_black_is_no_difference():
    G = network()
    with torch.no_grad():
        G.synthesis.b16x16.torgb.bias.fill_(-50)  # all far below -1
    assert S.project(G, np.zeros((16, 16)), 2, fit_noise=False)['start'] == 0
    assert S.project(G, np.full((16, 16), 0.01), 2, fit_noise=False)['start'] > 100


# --- training images ------------------------------------------------------------------------------------------------------------


def test_nearest_training_with_heldout():
    G = network()
    train, unseen, fresh = (S.sample(G, range(a, a + 60)) for a in (0, 100, 200))
    copied = np.clip(train[:30] + np.float32(0.002), 0, 1)
    stolen, honest = (
        S.nearest_training(copied, train, heldout=unseen),
        S.nearest_training(fresh, train, heldout=unseen),
    )
    assert (stolen['index'][:, 0] == np.arange(30)).all() and stolen['copies']['distance'][
        'p_value'
    ] < 1e-6 < 0.01 < honest['copies']['distance']['p_value']
    assert (
        stolen['beside'].shape == (30, 2, 16, 16, 1)
        and np.array_equal(stolen['beside'][:, 1], train[:30])
        and stolen['features'] == 'pixels 32x32'
    )
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
    exact = S.diversity(x, 2 * x, 10**6)
    assert abs(exact['ratio'] - 0.5) < 1e-12
    drawn = S.diversity(x, 2 * x, 2000)
    assert (
        abs(drawn['ratio'] - 0.5) < 0.03
        and drawn['ratio'] != exact['ratio']
        and drawn == S.diversity(x, 2 * x, 2000) != S.diversity(x, 2 * x, 2000, seed=1)
    )


# --- files ----------------------------------------------------------------------------------------------------------------------

ABOUT = dict(classes=NAMES, window=[0, 255], dtype='uint8', kimg=1.0)


def test_stopped_run_goes_on(tmp_path, monkeypatch):
    G, write, done = network(c_dim=3), S._write_image, []
    files = [f'Viral Pneumonia/Viral_Pneumonia-{i:06d}.png' for i in range(12)]

    def stops(path, a):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(write(path, a))

    monkeypatch.setattr(S, '_write_image', stops)
    with pytest.raises(KeyboardInterrupt):
        S.generate_images(
            G, ABOUT, tmp_path / 'a', range(12), 'Viral Pneumonia', 0.6, noise='random', batch=4
        )
    assert (
        sorted(pd.read_csv(tmp_path / 'a' / 'images.csv')['file'])
        == sorted(p.relative_to(tmp_path / 'a').as_posix() for p in (tmp_path / 'a').rglob('*.png'))
        == files[:5]
    )
    monkeypatch.setattr(S, '_write_image', write)
    for folder in 'ab':
        S.generate_images(
            G, ABOUT, tmp_path / folder, range(12), 'Viral Pneumonia', 0.6, noise='random', batch=4
        )
    for name in ['images.csv', *files]:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    assert (pd.read_csv(tmp_path / 'a' / 'images.csv')['label'] == 'Viral Pneumonia').all()


def test_nothing_is_computed_for_what_is_there(tmp_path, monkeypatch):
    G = network()
    S.generate_images(G, {}, tmp_path, range(3))
    monkeypatch.setattr(S, 'sample', None)
    assert S.generate_images(G, {}, tmp_path, range(3))['file'].tolist() == [
        f'generated/00000{i}.png' for i in range(3)
    ]


def test_classes_share_a_folder_settings_do_not(tmp_path):
    G = network(c_dim=3)
    for c in NAMES:
        S.generate_images(G, ABOUT, tmp_path, range(2), c)
    table = pd.read_csv(tmp_path / 'images.csv')
    assert (
        table['label'].tolist() == [c for c in NAMES for _ in range(2)]
        and len(set(table['file'])) == 6
    )
    for bad in (
        dict(psi=0.5),
        dict(noise='none'),
        dict(cutoff=2),
        dict(centre='class'),
        dict(about={**ABOUT, 'window': [0, 100]}),
        dict(about={**ABOUT, 'dtype': 'uint16'}),
        dict(network=network(1, c_dim=3)),
    ):
        with pytest.raises(InputError, match='other settings'):
            S.generate_images(
                **{
                    'network': G,
                    'about': ABOUT,
                    'folder': tmp_path,
                    'seeds': [1],
                    'label': 0,
                    **bad,
                }
            )
    S.generate_images(
        G, {**ABOUT, 'kimg': 2.0, 'seed': 3}, tmp_path, [1], 0
    )  # what is only written down does not count
    assert read_json(tmp_path / 'generate.json')['about']['kimg'] == 1


def test_class_names_that_make_equal_files(tmp_path):
    with pytest.raises(InputError, match='same file'):
        S.generate_images(
            network(c_dim=3),
            {'classes': ['a/b', 'a b', 'c']},
            tmp_path / 'x',
            [1, 1],
            ['a/b', 'a b'],
        )
    assert not (tmp_path / 'x').exists()


@pytest.mark.filterwarnings('ignore:The image decoding')
def test_16_bit_colours_are_read_by_others(tmp_path):
    decode = pytest.importorskip('torchvision.io')
    x = np.random.default_rng(0).integers(0, 2**16, (2, 5, 7, 3)).astype('uint16')
    S.write_images(tmp_path, x, ['a', 'b'], dtype='uint16')
    for name, y in zip('ab', x):
        with open(tmp_path / f'{name}.png', 'rb') as f:
            data = torch.frombuffer(bytearray(f.read()), dtype=torch.uint8)
        got = decode.decode_png(data, decode.ImageReadMode.UNCHANGED)
        assert got.dtype == torch.uint16 and np.array_equal(got.permute(1, 2, 0).numpy(), y)
        with Image.open(tmp_path / f'{name}.png') as im:
            im.verify()


@pytest.mark.parametrize(
    'channels, dtype, ending',
    [(2, 'uint8', 'npy'), (4, 'uint16', 'npy'), (1, 'float32', 'npy'), (3, 'uint8', 'png')],
)
def test_types_of_files(tmp_path, channels, dtype, ending):
    x = np.random.default_rng(0).random((1, 4, 6, channels))
    row = S.write_images(tmp_path, x, ['a'], [10, 90], dtype, 3, 'A', 0.5).iloc[0].tolist()
    assert row == [f'a.{ending}', 3, 'A', 0.5]
    back = (
        np.load(tmp_path / 'a.npy') if ending == 'npy' else np.array(Image.open(tmp_path / 'a.png'))
    )
    assert (
        back.dtype == dtype
        and np.array_equal(back, S.to_dtype(x[0], [10, 90], dtype))
        and 10 <= back.min()
        and back.max() <= 90
    )


def test_broken_table_is_named(tmp_path):
    (tmp_path / 'images.csv').write_bytes(b'')
    with pytest.raises(InputError, match='images.csv'):
        S.write_images(tmp_path, np.zeros((1, 4, 4, 1)), ['a'])


def test_projection_on_disk(tmp_path):
    G = network(channels=3)
    found = S.project_image(
        G,
        {'dtype': 'float32', 'window': [-1000, 400]},
        S.to_dtype(S.sample(G, 1)[0], [-1000, 400], 'float32'),
        tmp_path,
        steps=10,
        space='w+',
        fit_noise=False,
    )
    with np.load(tmp_path / 'w.npz') as f:
        assert (
            list(f.files) == ['w']
            and np.array_equal(f['w'], found['w'])
            and f['w'].shape == (6, 16)
        )
    record = read_json(tmp_path / 'project.json')
    assert (
        np.abs(
            np.load(tmp_path / 'target.npy')
            - S.to_dtype(S.sample(G, 1)[0], [-1000, 400], 'float32')
        ).max()
        < 0.01
        and record['space'] == 'w+'
        and record['rmse'] > 0
    )
    with pytest.raises(InputError, match='resize'):
        S.project_image(G, {}, np.zeros((8, 8, 3), 'uint8'), tmp_path)
    with pytest.raises(InputError, match='trained on uint8'):
        S.project_image(G, {}, np.zeros((16, 16, 3), 'uint16'), tmp_path)
