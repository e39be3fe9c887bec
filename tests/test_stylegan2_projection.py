"The place of an image in w: what is found again, and how the way there goes."

import numpy as np
import pytest
import torch
from test_stylegan2_sampling import NAMES, network

from gan_covid.stylegan2.projection import noise_correlation, project, schedule
from gan_covid.stylegan2.sampling import latents, mean_w, sample

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.mark.parametrize('seed', [0, 1])
def test_own_images_are_found_again(seed):
    G = network(seed, c_dim=3, channels=3, size=(16, 24))
    image, search = sample(G, 40 + seed, 2)[0], dict(steps=150, seed=seed, fit_noise=False)
    r = project(G, image, 'Normal', NAMES, **search)
    with torch.no_grad():
        w = G.mapping(latents(40 + seed, 16), torch.tensor([2]), track=False)[0, 0]
    away = np.linalg.norm(r['w'][0] - w.numpy()) / (mean_w(G, 2)[0] - w).norm()
    assert r['distance'] < r['start'] / 50 and away < 0.5
    far = project(G, 1 - image, 2, **search)
    assert far['distance'] > 10 * r['distance']  # what the network cannot draw is not found


def test_projection_with_bf16_runs_in_float32():
    image = sample(network(), 3)[0]
    a, b = (project(network(bf16=k), image, steps=20) for k in (True, False))
    assert np.array_equal(a['w'], b['w']) and np.array_equal(a['losses'], b['losses'])


def test_projection_starts_at_the_average_and_shakes_by_the_schedule(monkeypatch):
    G, seen = network(), []
    forward = G.synthesis.forward

    def noted(ws, *a, **k):
        seen.append(ws.detach().clone())
        return forward(ws, *a, **k)

    monkeypatch.setattr(G.synthesis, 'forward', noted)
    # w hardly moves: what is left is the noise on it
    r = project(G, np.full((16, 16), 0.5), steps=40, lr=1e-9, fit_noise=False)
    mean, spread = mean_w(G)
    assert (seen[0] - mean).abs().max() < 1e-6 and np.abs(r['w'] - mean.numpy()).max() < 1e-6
    shaken = torch.stack(seen[1:-1])[:, 0, 0] - mean
    for t in (range(0, 10), range(10, 20)):
        expected = np.sqrt(np.mean([(0.05 * spread * schedule(i, 40)[1]) ** 2 for i in t]))
        assert abs(shaken[list(t)].square().mean().sqrt() / expected - 1) < 0.25
    assert shaken[30:].abs().max() < 1e-6


def test_noise_maps_do_not_hold_the_image():
    G, image = network(size=32), np.zeros((32, 32), 'float32')
    image[8:24, 8:24] = 1
    free, held = (project(G, image, steps=60, noise_weight=w)['noise'] for w in (0, 1e5))
    free_, held_ = (noise_correlation([torch.tensor(m) for m in maps]) for maps in (free, held))
    assert held_ < 0.5 * free_ and held[-1].shape == (1, 1, 32, 32)


def test_only_black_beyond_black_is_no_difference():
    G = network()
    with torch.no_grad():
        G.synthesis.b16x16.torgb.bias.fill_(-50)  # all far below -1
    starts = [
        project(G, np.full((16, 16), v), steps=2, fit_noise=False)['start'] for v in (0.0, 0.01)
    ]
    assert starts[0] == 0 and starts[1] > 100
