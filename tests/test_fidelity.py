"""gan_covid.fidelity: against torch-fidelity, closed forms and brute force; calibration over seeds; the
Inception path without its weights; bad input."""

import http.server
import os
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from gan_covid import fidelity
from gan_covid.fidelity import (
    ClassifierFeatures,
    InceptionFeatures,
    PixelFeatures,
    RandomFeatures,
    copies,
    discard,
    extract,
    frechet,
    frechet_interval,
    inception_weights,
    kid,
    manifold,
    mmd,
    realism,
    reference,
    sanity,
    score,
)
from gan_covid.images import to_float
from gan_covid.records import InputError, read_json, sha256_file, write_json


def cloud(n, seed, d=16, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def blobs(n, seed, size=24, place=(0.25, 0.75)):
    g = np.random.default_rng(seed)
    i = np.mgrid[:size, :size] / size
    c, w = g.uniform(*place, (2, n, 1, 1)), g.uniform(0.01, 0.04, (n, 1, 1))
    bright = 0.8 * np.exp(-((i[0] - c[0]) ** 2 + (i[1] - c[1]) ** 2) / w)
    return np.float32(np.clip(0.1 + bright + g.normal(0, 0.02, (n, size, size)), 0, 1))[..., None]


# --- Fréchet distance


def exactly(mean, sd, n, seed):
    "A sample whose mean and covariance are exactly N(mean, diag(sd²))."
    z = cloud(n, seed, len(sd))
    z -= z.mean(0)
    return z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T * sd + mean


def test_frechet_is_the_closed_form_of_gaussians():
    s1, s2, m1, m2 = np.linspace(0.5, 2, 8), np.linspace(2, 0.1, 8), np.arange(8.0), np.ones(8)
    closed = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet(exactly(m1, s1, 60, 1), exactly(m2, s2, 90, 2)) == pytest.approx(closed)


@pytest.mark.slow  # torch-fidelity takes seconds to load
@pytest.mark.parametrize('n, m, d', [(50, 60, 8), (30, 200, 64), (20, 25, 100), (2, 3, 5)])
def test_frechet_equals_torch_fidelity(n, m, d):
    torch = pytest.importorskip('torch')
    reference = pytest.importorskip('torch_fidelity.metric_fid')
    x, y = cloud(n, 1, d) @ cloud(d, 3, d), cloud(m, 2, d) + 1
    x_stats, y_stats = (reference.fid_features_to_statistics(torch.from_numpy(a)) for a in (x, y))
    expected = reference.fid_statistics_to_metric(x_stats, y_stats, False)
    assert frechet(x, y) == pytest.approx(expected['frechet_inception_distance'], rel=1e-5)


@pytest.mark.parametrize('n', [5, 200])
def test_frechet_of_a_set_with_itself_is_zero(n):
    x = cloud(n, 1, 50)
    assert frechet(x, x) < 1e-9 and frechet(x, x[::-1]) < 1e-9
    assert frechet(np.repeat(x[:1], n, 0), x) > 1  # one image over and over: singular, finite


@pytest.mark.parametrize('shift', [0, 0.5])
def test_infinity_removes_the_bias_and_the_interval_covers(shift):
    truth, runs = 16 * shift**2, []
    for s in range(40):
        x, y = cloud(100, s), cloud(120, 1000 + s, shift=shift)
        runs.append(frechet_interval(x, y, repeats=40, seed=s))
    values, infinities = ([r[k] for r in runs] for k in ('value', 'infinity'))
    expected = np.mean(values)  # of the distance at this n
    hits = [r['low'] <= expected <= r['high'] for r in runs]
    assert expected > truth + 0.8 and abs(np.mean(infinities) - truth) < 0.25
    assert np.mean(hits) >= 0.85


# --- KID


@pytest.mark.slow
def test_mmd_and_kid_equal_torch_fidelity():
    torch = pytest.importorskip('torch')
    reference = pytest.importorskip('torch_fidelity.metric_kid')
    x, y = cloud(40, 1), cloud(40, 2, shift=0.3)
    expected = reference.kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=1,
        kid_subset_size=40,
        kid_kernel='poly',
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=0,
        verbose=False,
    )
    assert mmd(x, y) == pytest.approx(expected['kernel_inception_distance_mean'])
    assert kid(x, y, subsets=2, subset_size=40)['mean'] == pytest.approx(mmd(x, y))
    assert kid(x, y, subsets=2, subset_size=40)['sd'] < 1e-9


def test_kid_has_no_bias_and_adapts_to_small_sets():
    values = [mmd(cloud(20, s), cloud(30, 1000 + s)) for s in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200) and min(values) < 0
    assert kid(cloud(30, 1), cloud(50, 2))['subset_size'] == 15
    assert kid(cloud(2100, 1, 2), cloud(2200, 2, 2), subsets=2)['subset_size'] == 1000


def test_kid_of_large_sets_needs_no_full_table(monkeypatch):
    # beyond 4096 images each subset computes its own kernel
    x, y = cloud(4200, 1, 2), cloud(30, 2, 2)
    rng, sizes, whole = np.random.default_rng(3), [], fidelity._kernels
    monkeypatch.setattr(fidelity, '_kernels', lambda a, b: sizes.append(len(a)) or whole(a, b))
    found = kid(x, y, subsets=3, subset_size=20, seed=3)
    expected = [mmd(x[rng.permutation(4200)[:20]], y[rng.permutation(30)[:20]]) for _ in range(3)]
    assert set(sizes) == {20}
    assert found['mean'] == pytest.approx(np.mean(expected))
    assert found['sd'] == pytest.approx(np.std(expected))
    small = kid(x[:50], y, subsets=3, subset_size=20, seed=3)
    rng = np.random.default_rng(3)
    expected = [mmd(x[rng.permutation(50)[:20]], y[rng.permutation(30)[:20]]) for _ in range(3)]
    assert small['mean'] == pytest.approx(np.mean(expected))


# --- precision, recall, density, coverage


# 1500 is more than one block
@pytest.mark.parametrize('n, m, k, shift', [(30, 40, 3, 0.5), (40, 30, 5, 0), (20, 1500, 1, 1)])
def test_manifold_equals_brute_force(n, m, k, shift):
    real, fake = cloud(n, 1, 4), cloud(m, 2, 4, shift=shift)

    def d(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    rr, rf, rf_d = np.sort(d(real, real), 1)[:, k], np.sort(d(fake, fake), 1)[:, k], d(real, fake)
    expected = dict(
        precision=np.mean([any(rf_d[i, j] <= rr[i] for i in range(n)) for j in range(m)]),
        recall=np.mean([any(rf_d[i, j] <= rf[j] for j in range(m)) for i in range(n)]),
        density=sum(rf_d[i, j] <= rr[i] for i in range(n) for j in range(m)) / (k * m),
        coverage=np.mean([rf_d[i].min() <= rr[i] for i in range(n)]),
    )
    assert manifold(real, fake, k) == pytest.approx(expected)


@pytest.mark.slow
def test_precision_and_recall_equal_torch_fidelity():
    torch = pytest.importorskip('torch')
    reference = pytest.importorskip('torch_fidelity.metric_prc')
    real, fake = cloud(80, 1, 6), cloud(60, 2, 6, scale=0.7)
    precision, recall = reference.calculate_precision_recall_full(
        torch.from_numpy(fake), torch.from_numpy(real), 3
    )
    found = manifold(real, fake, 3)
    assert found['precision'] == pytest.approx(precision)
    assert found['recall'] == pytest.approx(recall) and recall < precision


def test_copies_of_the_real_set_are_perfect():
    x = cloud(50, 1)
    density = pytest.approx(1.2, abs=0.5)
    assert manifold(x, x) == dict(precision=1, recall=1, density=density, coverage=1)


@pytest.mark.parametrize('d, far, repeats', [(64, 0, 6), (64, 1e4, 6), (2048, 30, 7), (3, 1e4, 12)])
def test_repeated_images_and_their_copies_are_perfect(d, far, repeats):
    """With k + 1 copies of every image all radii are 0: a ball is a point, and a copy is in it. Rounding
    must not decide (it gave .70 to .95)."""
    few = np.float32(far + cloud(20, 1, d))  # as networks give them, and far from the origin
    real, generated = np.repeat(few, repeats, 0), np.repeat(few[::-1], 2, 0)
    found = manifold(real, generated, 5)
    assert (found['precision'], found['coverage']) == (1, 1) and found['density'] == repeats / 5
    perfect = dict(precision=1, recall=1, density=repeats / 5, coverage=1)
    assert manifold(real, np.repeat(generated, 3, 0), 5) == perfect
    near = generated + np.float32(far * 2e-7 + 1e-6)  # no copies, if hardly another image
    assert manifold(real, near, 5)['precision'] == manifold(real, near, 5)['coverage'] == 0


@pytest.mark.parametrize('far', [0, 1e3])
def test_manifold_with_ties_equals_brute_force(far):
    """On a grid many distances are equal, and images are repeated: the definition with exact differences
    decides, an image on the edge is inside."""
    rng = np.random.default_rng(0)
    real, fake = (np.float32(far + 0.1 * rng.integers(0, 4, (n, 3))) for n in (60, 45))

    def d(a, b):
        return np.linalg.norm(np.float64(a)[:, None] - np.float64(b)[None], axis=-1)

    rr, rf = (np.sort(d(a, a), 1)[:, 3] for a in (real, fake))
    between = d(real, fake)
    expected = dict(
        precision=(between <= rr[:, None]).any(0).mean(),
        recall=(between <= rf).any(1).mean(),
        density=(between <= rr[:, None]).sum() / (3 * 45),
        coverage=(between <= rr[:, None]).any(1).mean(),
    )
    assert manifold(real, fake, 3) == expected
    small = rr <= np.median(rr)
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = np.nan_to_num(rr[small, None] / between[small], nan=np.inf, posinf=np.inf)
    found = realism(fake, real, 3)
    assert np.array_equal(found >= 1, ratio.max(0) >= 1)
    assert np.array_equal(np.isinf(found), np.isinf(ratio.max(0)))


class OnDevice:
    "What a tensor on an accelerator is to NumPy: nothing, until it is detached and brought to the CPU."

    def __init__(self, a, at='cuda', dtype='torch.float32'):
        self.a, self.at, self.dtype, self.ndim = a, at, dtype, a.ndim

    def __len__(self):
        return len(self.a)

    def __array__(self, dtype=None, copy=None):
        if self.at != 'cpu' or self.dtype == 'torch.bfloat16':
            raise TypeError("can't convert device type tensor to numpy")
        return self.a

    def detach(self):
        return self

    def cpu(self):
        return OnDevice(self.a, 'cpu', self.dtype)

    def float(self):
        return OnDevice(self.a, self.at)


@pytest.mark.filterwarnings('ignore:.*singular')
@pytest.mark.parametrize('dtype', ['torch.float32', 'torch.bfloat16'])
def test_features_on_a_device(dtype):
    few = np.float32(100 + cloud(12, 1))
    real, generated = np.repeat(few, 6, 0), few[::-1].copy()

    def on(a):
        return OnDevice(a, dtype=dtype)

    found = manifold(real, generated, 5)
    assert manifold(on(real), on(generated), 5) == found and found['precision'] == 1
    found = realism(generated, real)
    assert np.array_equal(realism(on(generated), on(real)), found) and np.isinf(found).all()
    assert np.array_equal(extract(on(few), PixelFeatures()), few)
    whole = score(on(real), on(generated), PixelFeatures(), k=3, repeats=4, subsets=2)
    assert whole['coverage'] == 1
    for distance in (frechet, mmd):
        assert distance(on(real), on(generated)) == distance(real, generated)


def test_equal_images_have_equal_features_whatever_their_batch():
    """A network's last bits depend on the batch; a copy must not be off by them, neither within a set
    nor from one set to another."""

    def network(b):
        return b.mean(2)[..., 0] + 1e-7 * np.arange(len(b))[:, None]

    real = np.repeat(blobs(15, 1), 6, 0)
    features = ClassifierFeatures(network, 'place in the batch', 7)
    result = score(real, np.repeat(real[::6], 2, 0)[::-1], features, repeats=4, subsets=2)
    assert result['precision'] == result['coverage'] == 1
    assert copies(real[::6], real, blobs(20, 2), features)[0]['identical'] == 15


# --- features


def test_features_are_named_and_deterministic():
    x = blobs(5, 1)
    for f in (PixelFeatures(8), RandomFeatures(0)):
        found = extract(x, f)
        assert found.shape == (5, 64) and (found == extract(x, f)).all() and not f.fid
        assert np.allclose(extract(x[:2], f), found[:2])  # no image knows of the others
    assert extract(np.repeat(x, 3, -1), PixelFeatures(4)).shape == (5, 48)
    assert PixelFeatures(8).name == 'pixels 8x8'
    assert RandomFeatures(7).name == 'random convolutions 7'
    for size in (64, 9):
        assert RandomFeatures(0)(blobs(2, 1, size=size)).shape == (2, 64)


@pytest.mark.parametrize('features', [PixelFeatures(8), RandomFeatures(0)])
def test_features_tell_bad_generators_from_good_ones(features):
    real, f = blobs(100, 1), lambda x: extract(x, features)
    bad = {
        'noise': np.random.default_rng(3).random(real.shape, 'float32'),
        'one place': blobs(100, 4, place=(0.45, 0.55)),
        'average': real[:1] * 0 + real.mean(0),
    }
    good = frechet(f(real), f(blobs(100, 2)))
    for name, g in bad.items():
        assert frechet(f(real), f(np.broadcast_to(g, real.shape))) > 3 * good, name


def test_classifier_features_of_torch():
    x = blobs(5, 1)
    torch = pytest.importorskip('torch')

    def net(b):
        # carries a gradient, as a network's output does
        return torch.nn.Parameter(torch.from_numpy(b)).mean((1, 2))

    f = ClassifierFeatures(net, 'means (no weights)', batch=2)
    assert np.allclose(extract(x, f), x.mean((1, 2)), atol=1e-6)
    result = score(x, x[::-1], f, repeats=5, subsets=3, k=2)
    assert result['features'] == 'means (no weights)' and 'fid' not in result
    assert result['names']['fd'] == 'FD[means (no weights)]'


@pytest.mark.slow
def test_classifier_features_of_keras():
    pytest.importorskip('keras')
    from gan_covid.engines import load_keras

    keras = load_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers.Conv2D(6, 3), keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input((24, 24, 1)), *layers])
    x = blobs(5, 1)
    found = extract(x, ClassifierFeatures(model, 'domain (random weights)', 2))
    assert np.allclose(found, model.predict(x, verbose=0), atol=1e-5)


# --- the FID Inception: its weights cannot be downloaded everywhere; random ones go the same way


@pytest.fixture(scope='session')
def random_inception(tmp_path_factory):
    torch = pytest.importorskip('torch')
    module = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'load_state_dict_from_url', lambda *a, **k: {})
        network = module.FeatureExtractorInceptionV3
        patch.setattr(network, 'load_state_dict', lambda self, state: None)
        net = module.FeatureExtractorInceptionV3('inception-v3-compat', ['2048'])
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*singular')
def test_only_the_right_weights_make_a_fid(random_inception, monkeypatch):
    x = blobs(4, 1)
    other = InceptionFeatures(random_inception, device='cpu', batch=3)
    assert not other.fid and sha256_file(random_inception)[:8] in other.name
    fx = extract(x, other)
    colour = extract(np.repeat(x[:1], 3, -1), other)  # gray is RGB with equal channels
    assert fx.shape == (4, 2048) and np.allclose(fx[:1], colour, atol=1e-5)
    fy = fx + cloud(4, 1, 2048, scale=fx.std())  # of the score only the names depend on the network
    result = score(fx, fy, other, repeats=5, subsets=2, k=2)
    assert 'fid' not in result
    assert result['names']['fd'].startswith('FD[Inception with other weights')
    monkeypatch.setattr(fidelity, 'INCEPTION_SHA256', sha256_file(random_inception))
    published = InceptionFeatures(random_inception, device='cpu')
    right = score(fx, fy, published, heldout=fy[:3], repeats=5, subsets=2, k=2)
    assert right['names'] == {'fid': 'FID', 'kid': 'KID'}
    assert 'fd' not in right and right['fid'] == result['fd']
    for rows in right['sanity'].values():
        for row in (rows['real'], rows['generated']):
            assert 'fid' in row and 'fd' not in row
    assert any('singular' in note for note in right['notes'])


@pytest.mark.slow
def test_inception_equals_torch_fidelity(random_inception):
    torch = pytest.importorskip('torch')
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = FeatureExtractorInceptionV3(
        'inception-v3-compat', ['2048'], feature_extractor_weights_path=str(random_inception)
    )
    x = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3))
    with torch.no_grad():
        expected = net(torch.from_numpy(np.uint8(x.transpose(0, 3, 1, 2))))[0].numpy()
    found = InceptionFeatures(random_inception, device='cpu')(np.float32(x / 255))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_files_that_are_no_weights(tmp_path):
    torch = pytest.importorskip('torch')
    pytest.importorskip('torch_fidelity')
    (tmp_path / 'text.pth').write_text('not weights')
    torch.save({'a': torch.zeros(2)}, tmp_path / 'other.pth')

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'executed'),)

    torch.save({'a': Evil()}, tmp_path / 'evil.pth')
    for name in ('missing.pth', 'text.pth', 'other.pth', 'evil.pth'):
        with pytest.raises(InputError, match='^[^\n]*$') as e:
            InceptionFeatures(tmp_path / name)
        assert name in str(e.value) and '--inception-weights' in str(e.value)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.slow
def test_download_offline_wrong_and_right(random_inception, tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    with pytest.raises(InputError, match='--inception-weights') as e:
        inception_weights('http://127.0.0.1:9/weights.pth')
    assert "url='http://127.0.0.1:9" in str(e.value)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a):
            super().__init__(*a, directory=str(random_inception.parent))

        def log_message(self, *a):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/random.pth'
        with pytest.raises(InputError, match='SHA-256'):
            inception_weights(url)
        assert not list((tmp_path / 'hub').rglob('*.pth'))
        with pytest.raises(InputError, match='HTTPError'):
            inception_weights(url + '.gone')
        monkeypatch.setattr(fidelity, 'INCEPTION_SHA256', sha256_file(random_inception))
        path = inception_weights(url)
        server.shutdown()
    assert sha256_file(path) == sha256_file(random_inception)
    assert inception_weights(url) == path  # the second time without a server
    assert InceptionFeatures(url=url, device='cpu').fid


# --- score and sanity


def test_score_is_deterministic_and_fits_a_record(tmp_path):
    args = blobs(40, 1), blobs(50, 2), RandomFeatures(), blobs(20, 3)

    def scored(seed):
        with pytest.warns(UserWarning, match='singular'):
            return score(*args, repeats=10, subsets=5, seed=seed)

    a, b, c = (scored(seed) for seed in (4, 4, 5))
    assert a == b and a['kid'] != c['kid'] and a['fd'] == c['fd']
    assert read_json(write_json(tmp_path / 's.json', a))['sanity'] == a['sanity']
    assert a['n'] == dict(real=40, generated=50, heldout=20) and a['d'] == 64
    assert a['sanity']['halves']['n'] == 20 == a['sanity']['heldout']['n']['heldout']
    whole = manifold(*(extract(x, RandomFeatures()) for x in args[:2]))
    assert {k: a[k] for k in whole} == whole


def test_images_and_their_features_score_the_same():
    x, y, f = blobs(80, 1), blobs(80, 2), PixelFeatures(6)
    fx, fy = extract(x, f), extract(y, f)
    a, b, c = (score(*sets, f, repeats=5, subsets=5) for sets in ((x, y), (fx, fy), (fx, y)))
    assert a == b == c


def test_real_against_real_has_the_bias_of_as_many_generated():
    real, perfect, poor = cloud(80, 1), cloud(300, 2), cloud(300, 3, shift=0.4)
    rows = sanity(real, perfect, cloud(30, 4), repeats=30)
    halves, heldout = rows['halves'], rows['heldout']
    assert halves['n'] == 40 and heldout['n'] == dict(real=80, heldout=30)
    for row, rel in ((halves, 0.25), (heldout, 0.35)):
        real_fd, perfect_fd = (row[k]['fd']['mean'] for k in ('real', 'generated'))
        assert perfect_fd == pytest.approx(real_fd, rel=rel)
    worse = sanity(real, poor, repeats=30)['halves']
    limit = worse['real']['fd']['mean'] + 3 * worse['real']['fd']['sd']
    assert worse['generated']['fd']['mean'] > limit
    # tiny sets: fewer neighbours, and it says so
    assert sanity(cloud(9, 1), cloud(3, 2))['halves']['k'] == 2


# --- copies


def test_exact_copies_are_found():
    train, heldout, generated = blobs(100, 1), blobs(40, 2), blobs(80, 3)
    generated[[5, 17, 60]] = train[[50, 3, 99]]
    report, pairs = copies(generated, train, heldout)
    assert report['identical'] == 3 and len(pairs) == 80
    three = pairs.head(3)
    assert list(three.generated) == [5, 17, 60] and list(three.train) == [50, 3, 99]
    assert (three.distance == 0).all() and three.nearer.all()
    assert pairs.distance.is_monotonic_increasing
    report, _ = copies(train[:40], train, heldout)
    assert report['identical'] == 40 and report['distance']['c_t'] < -5
    assert max(report[m]['p_value'] for m in ('distance', 'ratio')) < 1e-6


def test_without_unseen_images_there_is_no_threshold():
    train, generated = blobs(40, 1), blobs(30, 2)
    generated[3] = train[5]
    report, pairs = copies(generated, train, None)
    assert report['identical'] == 1 and report['distance'] is report['ratio'] is None
    assert report['n'] == dict(generated=30, train=40, heldout=0)
    assert pairs.nearer.isna().all()
    assert pairs.loc[0, ['generated', 'train', 'distance']].tolist() == [3, 5, 0]


def test_independent_draws_give_no_alarm():
    """Without copying, p-values below α come at most at the rate α (they are exact), and C_T is a
    standard normal."""
    p, z = [], []
    for s in range(60):
        generated, train, heldout = (cloud(n, 3 * s + i, 8) for i, n in enumerate((50, 60, 30)))
        report, _ = copies(generated, train, heldout, PixelFeatures(), q=0.1)
        p += [report[m]['p_value'] for m in ('distance', 'ratio')]
        z += [report[m]['c_t'] for m in ('distance', 'ratio')]
        assert report['identical'] == 0
    for alpha in (0.05, 0.2):
        assert np.mean(np.array(p) <= alpha) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 60)
    assert min(p) > 1e-4 and abs(np.mean(z)) < 0.5 and 0.7 < np.std(z) < 1.3


def test_copy_statistics_follow_their_definitions():
    rng = np.random.default_rng(0)
    g, h = rng.gamma(3, 1, 25), rng.gamma(4, 1, 19)
    found = fidelity._nearer(g, h, 0.25)
    limit = np.sort(h)[4]
    assert found['limit'] == limit and found['expected'] == 5 / 20
    assert found['nearer'] == (g < limit).sum()
    plain = {'use_continuity': False, 'method': 'asymptotic'}
    c_t = stats.mannwhitneyu(g, h, alternative='less', **plain)
    assert found['c_t_p_value'] == pytest.approx(c_t.pvalue)
    draws = rng.random((20000, 25 + 19))  # the exact p-value against simulation
    counts = (draws[:, :25] < np.sort(draws[:, 25:], 1)[:, 4:5]).sum(1)
    assert found['p_value'] == pytest.approx(np.mean(counts >= found['nearer']), abs=0.02)


# --- discarding


def test_realism_equals_brute_force_and_copies_are_most_real():
    real, fake = cloud(31, 1, 3), cloud(20, 2, 3)
    fake[4] = real[7]
    d = np.sqrt(((real[:, None] - real[None]) ** 2).sum(-1))
    radius = np.sort(d, 1)[:, 3]
    small = radius <= np.median(radius)
    found = realism(fake, real, 3)
    for i in set(range(20)) - {4}:
        away = np.sqrt(((real[small] - fake[i]) ** 2).sum(-1))
        assert found[i] == pytest.approx(np.max(radius[small] / away))
    if small[7]:
        assert found[4] == np.inf


def test_discard_removes_what_is_unrealistic():
    real, fake = blobs(80, 1), blobs(40, 2)
    mixed = np.concatenate([np.random.default_rng(3).random(fake[:10].shape, 'float32'), fake])
    for features in (PixelFeatures(), RandomFeatures()):
        kept, scores = discard(mixed, real, features, keep=0.8)
        assert list(kept) == list(range(10, 50)) and scores.shape == (50,)
    assert list(discard(mixed, real, PixelFeatures(), keep=1)[0]) == list(range(50))
    kept, scores = discard(mixed, real, PixelFeatures())
    assert len(kept) == 45
    inside, _ = discard(mixed, real, PixelFeatures(), threshold=1)
    assert (inside == np.flatnonzero(scores >= 1)).all()


# --- bad input


@pytest.mark.filterwarnings('ignore:.*singular')
def test_more_neighbours_than_a_small_set_has():
    "A set too small for k costs neighbours, not all scores after all training; the record says how many."
    x = blobs(12, 1)
    found = score(x, x, PixelFeatures(8), k=12, repeats=5)
    assert found['k'] == 11
    assert '11 neighbours instead of 12: the smaller set has 12 images' in found['notes']


ONE = pd.DataFrame({'sha256': ['a'], 'label': ['x'], 'split': ['train']})
NOT_FLAT = ClassifierFeatures(lambda b: b, 'not flat')


@pytest.mark.parametrize(
    'bad, says',
    [
        (lambda x, f: score(x, x[:0], f), 'generated: no images'),
        (lambda x, f: score(x * 3, x, f), 'real: values'),
        (lambda x, f: score(x, np.uint8(255 * x), f), '8-bit'),
        (lambda x, f: score(x, x[:, :20], f), 'generated: images of'),
        (lambda x, f: score(x, x, f, heldout=np.repeat(x, 3, -1)), 'heldout: images of'),
        (lambda x, f: score(x, cloud(9, 1, 5), f), 'generated: 5 features'),
        (lambda x, f: score(x, cloud(9, 1, 64) * np.nan, f), 'generated: pixels 8x8 gave NaN'),
        (lambda x, f: score(x[:3], x, f), 'halves need at least 4'),
        (lambda x, f: kid(cloud(12, 1), cloud(12, 2), subset_size=99), 'subset_size: 99'),
        (lambda x, f: score(x, x, f, k=0), 'k=0'),
        (lambda x, f: manifold(cloud(5, 1), cloud(5, 2), 0), 'k: 0'),
        (lambda x, f: frechet(cloud(1, 1), cloud(5, 2)), 'at least 2'),
        (lambda x, f: mmd(cloud(1, 1), cloud(5, 2)), 'at least 2'),
        (lambda x, f: sanity(cloud(3, 1), cloud(5, 2)), 'at least 4'),
        (lambda x, f: sanity(cloud(8, 1), cloud(5, 2), cloud(1, 3)), 'heldout: 1'),
        (lambda x, f: copies(x, x, x[:0]), 'heldout: no images'),
        (lambda x, f: copies(x, x[:1], x), 'train: 1 image'),
        (lambda x, f: reference(ONE, ['a', 'b']), '1 of 2 images that the GAN was trained on'),
        (lambda x, f: copies(x, x, x, q=2), 'q: 2'),
        (lambda x, f: discard(x, x, f, keep=0), 'keep: 0'),
        (lambda x, f: discard(x, x[:3], f), 'k: 5'),
        (lambda x, f: ClassifierFeatures(lambda b: b, ''), 'name'),
        (lambda x, f: extract(x, NOT_FLAT), 'not flat gave shape'),
    ],
)
@pytest.mark.filterwarnings('ignore')
def test_bad_input_has_one_clear_message(bad, says):
    with pytest.raises(InputError, match='^[^\n]*$') as e:
        bad(blobs(12, 1), PixelFeatures(8))
    assert says in str(e.value)


@pytest.mark.filterwarnings('ignore:.*singular')
def test_real_head_ct(real_data):
    "Real against real: the halves agree, the held-out images raise no copy alarm, noise is seen."
    files = sorted((real_data / 'head_ct_hemorrhage').rglob('0??.png'))
    small = [Image.open(f).convert('L').resize((32, 32), Image.BOX) for f in files]
    x = to_float(np.stack(small))[..., None]
    x = x[np.random.default_rng(0).permutation(len(x))]
    assert len(x) == 100
    train, generated, heldout = x[:40], x[40:70], x[70:]  # "generated" by a perfect generator
    noise = np.random.default_rng(1).random(generated.shape, 'float32')
    good, bad = (
        score(train, g, RandomFeatures(), repeats=40, subsets=20)['sanity']['halves']
        for g in (generated, noise)
    )
    real = good['real']['fd']
    assert abs(good['generated']['fd']['mean'] - real['mean']) < 4 * real['sd']
    assert bad['generated']['fd']['mean'] > real['mean'] + 10 * real['sd']
    report, _ = copies(generated, train, heldout)
    assert min(report[m]['p_value'] for m in ('distance', 'ratio')) > 0.01
