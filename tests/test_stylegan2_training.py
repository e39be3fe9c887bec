"""What the notebook on training cannot show in one process: kills, several processes, unusual images, transfer, and everything that can go wrong."""

import dataclasses
import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gan_covid.records import InputError, read_json
from gan_covid.stylegan2 import training as T
from gan_covid.stylegan2.files import load_networks

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype='uint8')
TINY = T.Config(
    kimg=0.064, batch=8, width=(64, 8), z_dim=8, p=0.4, ada='ada', ada_kimg=1, seed=3, bf16=False
)  # the same sums on every machine
QUIET = dict(
    device='cpu',
    tick_kimg=0.016,
    snapshot_ticks=2,
    sheet_images=4,
    distance_images=40,
    checkpoint_seconds=0,
    progress=None,
)

RUN = """
import json, sys
from pathlib import Path
import numpy as np, torch
from gan_covid.stylegan2.training import Config, train
torch.set_num_threads(1)
x = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype="uint8")
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
r = train(x, Config(**{**dict(kimg=.2, batch=8, width=(64, 8), z_dim=8, p=.3, ada_kimg=1, augment="bgc", seed=5, bf16=False), **settings}), folder, np.arange(40) % 2, ("a", "b"), device="cpu", tick_kimg=.024, snapshot_ticks=3,
          sheet_images=4, distance_images=40, checkpoint_seconds=0, progress=print)
if r: (folder/"result.json").write_text(json.dumps({k: r[k] for k in ("sha256", "log", "best", "last")}))
"""


def run(folder, wait=True, launcher=(), **settings):
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    script = folder.parent / 'run.py'
    script.write_text(RUN)
    p = subprocess.Popen(
        [sys.executable, *launcher, str(script), str(folder), json.dumps(settings)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        err = p.communicate()[1]
        assert p.returncode == 0, err
    return p


def test_killed_training_ends_in_the_same_weights_and_log(tmp_path):
    run(tmp_path / 'whole')
    whole, rng, kills = read_json(tmp_path / 'whole' / 'result.json'), np.random.default_rng(), 0
    for _ in range(3):  # at random moments: in an iteration, a snapshot, a checkpoint
        p, checkpoint = run(tmp_path / 'killed', wait=False), tmp_path / 'killed' / 'checkpoint.pt'
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while p.poll() is None and not (
            checkpoint.exists() and checkpoint.stat().st_mtime_ns > before
        ):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        if p.poll() is None:
            p.send_signal(signal.SIGKILL)
            kills += 1
        p.wait()
        p.stderr.close()
    (tmp_path / 'killed' / '.checkpoint.1.part.pt').write_bytes(
        b'half'
    )  # as a kill within a write leaves it
    run(tmp_path / 'killed')
    assert kills, 'the training was over before it could be killed'
    assert read_json(tmp_path / 'killed' / 'result.json') == whole
    assert (tmp_path / 'killed' / 'log.jsonl').read_bytes() == (
        tmp_path / 'whole' / 'log.jsonl'
    ).read_bytes()
    assert sorted(p.name for p in (tmp_path / 'killed').glob('*')) == sorted(
        p.name for p in (tmp_path / 'whole').glob('*')
    )


def test_a_kill_before_the_first_tick_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    "A tick can take many minutes: the folder, and what was done before the kill, are on disk all the same."
    slow = {**QUIET, 'tick_kimg': 0.128}  # one tick is sixteen iterations, the whole training
    config, real = dataclasses.replace(TINY, kimg=0.128), T.Trainer.iterate
    whole = T.train(NOISE, config, tmp_path / 'whole', **slow)

    def killed(at):
        def iterate(self):
            if self.iteration == at:
                raise KeyboardInterrupt
            real(self)

        with monkeypatch.context() as m:
            m.setattr(T.Trainer, 'iterate', iterate)
            with pytest.raises(KeyboardInterrupt):
                T.train(NOISE, config, tmp_path / 'killed', **slow)
        return json.loads(
            torch.load(tmp_path / 'killed' / 'checkpoint.pt', weights_only=True)['about']
        )['iteration']

    assert [killed(at) for at in (0, 6, 7, 13)] == [0, 4, 4, 12]
    again = T.train(NOISE, config, tmp_path / 'killed', **slow)
    assert again['sha256'] == whole['sha256'] and again['log'] == whole['log']


def weights(folder):
    networks, _ = load_networks(next(iter(sorted(folder.glob('network_*.safetensors'))[-1:])))
    return torch.cat([p.flatten() for n in networks.values() for p in n.state_dict().values()])


def test_two_processes_are_one_with_two_chunks(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    # the batch of 8 a process is 16 on two; one process makes it of two chunks
    run(
        tmp_path / 'two',
        launcher=(
            '-m',
            'torch.distributed.run',
            '--nproc_per_node',
            '2',
            '--master_addr',
            '127.0.0.1',
            '--master_port',
            str(port),
        ),
        batch=16,
        kimg=0.096,
    )
    run(tmp_path / 'one', batch=16, chunk=8, kimg=0.096)
    two, one = (read_json(tmp_path / k / 'result.json') for k in ('two', 'one'))
    a, b = weights(tmp_path / 'two'), weights(tmp_path / 'one')
    run(tmp_path / 'other', batch=16, chunk=8, kimg=0.096, seed=6)
    far = float((weights(tmp_path / 'other') - b).abs().mean())
    assert float((a - b).abs().mean()) < 1e-3 * far  # sums in another order, and nothing else
    for x, y in zip(two['log'], one['log']):
        assert (
            x['kimg'] == y['kimg']
            and x['p'] == pytest.approx(y['p'], abs=1e-9)
            and x['d_real'] == pytest.approx(y['d_real'], rel=0.2)
        )  # losses in the log are those of process 0


@pytest.mark.parametrize(
    'shape, dtype, window',
    [
        ((20, 16, 32, 1), 'uint8', None),
        ((20, 16, 16, 3), 'uint8', None),
        ((20, 24, 24, 1), 'uint16', (1000, 3000)),
        ((20, 16, 16, 2), 'float32', (-1000.0, 400.0)),
    ],
)
def test_other_images_are_trained_and_sampled(tmp_path, shape, dtype, window):
    rng = np.random.default_rng(0)
    low, high = window or (0, 255)
    x = rng.uniform(low, high, shape).astype(dtype)
    r = T.train(
        x,
        dataclasses.replace(TINY, kimg=0.032),
        tmp_path,
        np.arange(20) % 3,
        ('a', 'b', 'c'),
        window=window,
        validation=x[:5],
        validation_labels=np.arange(5) % 3,
        **QUIET,
    )
    networks, about = load_networks(tmp_path / r['last']['file'])
    assert (
        about['window'] == [low, high]
        and about['dtype'] == dtype
        and about['classes'] == ['a', 'b', 'c']
        and about['kimg'] == 0.032
    )
    fake = T.draw(networks['G_ema'], 6, 0, np.arange(6) % 3)
    assert (
        fake.shape == (6, *shape[1:])
        and fake.dtype == np.float32
        and 0 <= fake.min() < fake.max() <= 1
        and np.isfinite(fake).all()
    )
    assert not np.array_equal(
        T.draw(networks['G_ema'], 1, 0, [0]), T.draw(networks['G_ema'], 1, 0, [1])
    )  # the label reaches the image
    assert {'d_train', 'd_val', 'd_gen', 'distance'} <= set(r['log'][-1]) and (
        tmp_path / 'sheet_000000.032.png'
    ).stat().st_size > 100


def test_rare_class_and_a_held_out_part_without_it(tmp_path):
    # sorted by class, as prepared tables are, and the rare class beyond the 256 images that D's outputs are taken on
    x, y = (
        np.random.default_rng(0).integers(0, 256, (304, 16, 16, 1), dtype='uint8'),
        np.repeat([0, 1], [300, 4]),
    )
    r = T.train(
        x,
        dataclasses.replace(TINY, kimg=0.008),
        tmp_path,
        y,
        ('many', 'few'),
        validation=x[:9],
        validation_labels=y[:9],
        **QUIET,
    )
    assert all(math.isfinite(r['log'][-1][k]) for k in ('d_train', 'd_val', 'd_gen', 'distance'))
    chosen = T.Monitor(T.Images(x, y, ('many', 'few')), T.Images(x, y, ('many', 'few')), n=304).few
    assert (
        len(set(chosen)) == 256 and chosen.max() > 256 and not (np.diff(chosen) > 0).all()
    )  # from all images, mixed


def test_few_images_are_compared_with_many_generated_ones(monkeypatch):
    x, y = (
        np.random.default_rng(0).integers(0, 256, (30, 16, 16, 1), dtype='uint8'),
        np.repeat([0, 1], [24, 6]),
    )
    m = T.Monitor(T.Images(x, y, ('many', 'few')), n=100)
    assert (
        len(m.real) == 30
        and m.n == len(m.labels) == 100
        and 16 <= m.labels.sum() <= 26
        and set(m.labels[90:]) == {0, 1}
    )  # in the classes' shares to the end
    asked, draw = [], T.draw
    monkeypatch.setattr(T, 'draw', lambda G, n, *a: asked.append(n) or draw(G, n, *a))
    assert m.measure(T.Trainer(T.Images(x, y, ('many', 'few')), TINY))[
        'distance'
    ] > 0 and asked == [100]
    assert len(T.Monitor(T.Images(x), n=20).real) == 20  # and no more real ones than that


def test_window_decides_what_the_networks_see():
    x = np.array([1000, 2000, 3000], 'uint16').reshape(3, 1, 1, 1).repeat(4, 1).repeat(4, 2)
    taken = T.Images(x, window=(1000, 3000)).take([0, 1, 2])[0]
    assert taken[:, 0, 0, 0].tolist() == [-1, 0, 1]


def test_labels_of_generated_images_follow_the_data():
    labels = np.repeat([0, 1], [22, 2])
    t = T.Trainer(T.Images(NOISE, labels, ('many', 'few')), TINY)
    drawn = np.concatenate([t.latents(100, T.draws('cpu', k))[1] for k in range(20)])
    assert 0.04 < drawn.mean() < 0.14  # 2 of 24 is .083


def test_d_learns_from_the_label():
    "With the classes told apart by brightness alone, D's outputs differ between right and wrong labels after a short training."
    y = np.arange(32) % 2
    x = (
        (np.random.default_rng(0).normal(60, 10, (32, 16, 16, 1)) + 130 * y[:, None, None, None])
        .clip(0, 255)
        .astype('uint8')
    )
    t = T.Trainer(
        T.Images(x, y, ('dark', 'bright')),
        T.Config(
            batch=16,
            width=(128, 16),
            z_dim=8,
            gamma=0.01,
            ada='none',
            pl_weight=0.0,
            seed=0,
            bf16=False,
        ),
    )
    for _ in range(40):
        t.iterate()
    with torch.no_grad():
        real, c = t.data.take(np.arange(32))
        right, wrong = t.D(real, c).mean(), t.D(real, 1 - c).mean()
    assert right > wrong + 0.3


def test_transfer_keeps_what_fits(tmp_path):
    r = T.train(NOISE, TINY, tmp_path / 'a', **QUIET)
    said = []
    changed = dict(labels=np.arange(24) % 2, classes=('a', 'b'))
    three = NOISE.repeat(3, 3)
    t = T.train(
        three,
        dataclasses.replace(TINY, kimg=0.016, ada_kimg=None),
        tmp_path / 'b',
        init=tmp_path / 'a' / r['last']['file'],
        **changed,
        **{**QUIET, 'progress': said.append},
    )
    assert t['settings']['ada_kimg'] == 100 and any('a/network' in s for s in said)
    first, _ = load_networks(tmp_path / 'a' / r['last']['file'])
    fresh = T.Trainer(T.Images(three, **changed), TINY)
    second, _ = load_networks(tmp_path / 'b' / t['last']['file'])

    def near(a, b, name):
        return float(
            (dict(a.named_parameters())[name] - dict(b.named_parameters())[name]).abs().mean()
        )

    name = 'synthesis.b8x8.conv1.weight'
    assert near(first['G'], second['G'], name) < 0.1 * near(fresh.G, second['G'], name)


def test_gradients_gather_over_chunks():
    "The gradient of a batch is the mean over its chunks; D has no minibatch statistics here beyond a chunk."
    t = T.Trainer(
        T.Images(NOISE), dataclasses.replace(TINY, chunk=4, mbstd_group=4, ada='none', p=0.0)
    )
    parts, shown = [], []
    for x, seed in t.chunks('d'):
        t.rng.manual_seed(seed)
        parts.append(
            torch.autograd.grad(
                2 * t.loss_d(x) / t.passes, list(t.D.parameters()), allow_unused=True
            )
        )
        shown.append(x['real'])
    assert len(shown) == 2 and torch.equal(
        torch.cat(shown), t.data.take(t.data.order(0, 8, TINY.seed))[0]
    )

    class Keep(torch.optim.SGD):
        def step(self):
            self.kept = [p.grad.clone() for g in self.param_groups for p in g['params']]

    keep = Keep(t.D.parameters(), lr=0.0)
    t.step('d', keep)
    for a, b, k in zip(*parts, keep.kept):
        torch.testing.assert_close((a + b) / 2, k)


# --- what a GPU records -----------------------------------------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """Stands for a CUDA graph on a processor: writes down every operation of a function, and runs them again on the
    same memory. What the host looks at, or decides while it writes, is not there the second time; looking fails."""

    LOOKS = {
        '_local_scalar_dense',
        'item',
        'nonzero',
        'is_nonzero',
        'equal',
        'masked_select',
        'unique',
    }

    def __init__(self, function, rng, other=None):
        super().__init__()
        self.operations = []
        before = {id(t): (t, t.clone()) for t in FIXED}
        state = rng.get_state()
        with self:
            function()
        for t, v in before.values():
            t.copy_(v)  # a recording is no run
        rng.set_state(state)

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.name().split('::')[1].split('.')[0]
        assert name not in self.LOOKS, f'{name}: the host waits for the device'
        out = f(*args, **(kwargs or {}))
        self.operations.append((f, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def __call__(self):
        def place(t):
            return t.untyped_storage().data_ptr()

        for f, args, kwargs, out in self.operations:
            known = {place(a) for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}
            results = zip(tree_leaves(out), tree_leaves(f(*args, **kwargs)))
            for old, new in results:
                if isinstance(old, torch.Tensor) and place(old) not in known:
                    old.copy_(new)


def recorded(record, n=6, **changes):
    "A trainer with fixed shapes after n iterations; every phase has been run, recorded and run again by then."
    y = np.arange(24) % 2
    t = T.Trainer(
        T.Images(NOISE, y, ('a', 'b')),
        dataclasses.replace(TINY, r1_every=2, pl_every=2, **changes),
        record=record,
    )
    FIXED[:] = [
        *t.gradients['G'],
        *t.gradients['D'],
        *t.sums.values(),
        t.w_mean,
        t.pl_next,
        t.controller._seen,
    ]
    for _ in range(n):
        t.iterate()
    return t


FIXED = []


def AS_IT_IS(function, rng, other=None):
    return function


@pytest.mark.parametrize(
    'changes',
    [
        dict(),
        dict(chunk=4, bf16=True, augment='chest_xray'),
        dict(ada='none', p=0.0, style_mixing=0.0),
    ],
    ids=['ada', 'chunks', 'plain'],
)
def test_recorded_passes_are_the_same(changes):
    "To the bit: with images, mixing, p, noise and augmentation that differ in every iteration."
    a, b = (recorded(r, **changes) for r in (AS_IT_IS, Tape))
    assert set(b.recorded) == set(T.PHASES) and all(r.operations for r in b.recorded.values())
    assert [T.weights_sha256(n) for n in a.networks().values()] == [
        T.weights_sha256(n) for n in b.networks().values()
    ]
    assert (
        a.losses() == b.losses()
        and a.controller.state_dict() == b.controller.state_dict()
        and float(a.pl_mean) == float(b.pl_mean)
    )


def test_fixed_shapes_give_what_the_processor_gives():
    "The same numbers but for rounding: nothing is skipped, everything is computed with the same draws."
    a, b = (recorded(r, n=4, ada='fixed') for r in (None, AS_IT_IS))
    for k, v in a.losses().items():
        assert v == pytest.approx(b.sums[k][0].item() / b.sums[k][1].item(), rel=1e-3)
    images = [T.draw(t.G_ema, 16, 0, np.arange(16) % 2) for t in (a, b)]
    assert np.abs(images[0] - images[1]).max() < 0.02


def test_images_on_the_device_are_the_same():
    for x, window in (
        (NOISE, None),
        (NOISE.astype('uint16') * 200, (1000, 30000)),
        (NOISE / 255.0, (0, 1)),
    ):
        host, kept = (T.Images(x, np.arange(24) % 2, ('a', 'b'), window, mirror=True) for _ in 'ab')
        kept.keep_on(torch.device('cpu'))
        (a, c), (b, d) = (data.take([0, 30, 5, 47]) for data in (host, kept))
        assert torch.equal(a, b) and torch.equal(c, d)


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    "Tensors name their GPU with a number: images kept on 'cuda' would else be looked for on the host."
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 1)
    assert (
        T.numbered('cuda') == torch.device('cuda:1')
        and T.numbered('cuda:0').index == 0
        and T.numbered('cpu') == torch.device('cpu')
    )


@pytest.mark.gpu
def test_gpu_records_trains_resumes_and_repeats_itself(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip('no cuda here')
    quiet = {**QUIET, 'device': None, 'snapshot_ticks': 4}
    config = dataclasses.replace(TINY, kimg=0.24, augment='bgc', bf16=True)
    whole, again = (T.train(NOISE, config, tmp_path / k, **quiet) for k in 'ab')
    assert whole['sha256'] == again['sha256']
    T.train(NOISE, dataclasses.replace(config, kimg=0.096), tmp_path / 'c', **quiet)
    assert T.train(NOISE, config, tmp_path / 'c', **quiet)['sha256'] == whole['sha256']


def test_bfloat16_stays_in_a_band():
    "The same draws in bfloat16: losses within 5 % after ten iterations, images within a few gray levels of 255 on average."
    t = [
        T.Trainer(T.Images(NOISE), dataclasses.replace(TINY, bf16=b, width=(256, 16)))
        for b in (False, True)
    ]
    for a in t:
        for _ in range(10):
            a.iterate()
    for k in ('g', 'd_real', 'd_fake'):
        assert float(t[0].sums[k][0]) == pytest.approx(float(t[1].sums[k][0]), rel=0.05)
    images = [T.draw(a.G_ema, 16, 0) for a in t]
    assert np.abs(images[0] - images[1]).mean() * 255 < 8 and any(
        p.dtype == torch.float32 for p in t[1].G.parameters()
    )


def test_no_numbers_any_more(tmp_path, monkeypatch):
    T.train(NOISE, TINY, tmp_path, **QUIET)
    before = (tmp_path / 'checkpoint.pt').read_bytes()
    real = T.Trainer.loss_g
    monkeypatch.setattr(
        T.Trainer, 'loss_g', lambda self, *a: real(self, *a) * (math.nan if self.images > 80 else 1)
    )
    with pytest.raises(
        InputError, match=r'not a number.*last good state, of kimg 0\.08, is in .*checkpoint\.pt'
    ):
        T.train(NOISE, dataclasses.replace(TINY, kimg=0.2), tmp_path, **QUIET)
    good = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
    assert json.loads(good['about'])['iteration'] == 10 and all(
        torch.isfinite(v).all() for v in good['networks']['G'].values()
    )
    assert before != (tmp_path / 'checkpoint.pt').read_bytes()


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    T.train(NOISE, TINY, tmp_path, **QUIET)
    before = (tmp_path / 'checkpoint.pt').read_bytes()

    def full(state, part):
        Path(part).write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as m:
        m.setattr(T.torch, 'save', full)
        with pytest.raises(InputError, match='no space left'):
            T.train(NOISE, dataclasses.replace(TINY, kimg=0.1), tmp_path, **QUIET)
    assert (tmp_path / 'checkpoint.pt').read_bytes() == before and not list(
        tmp_path.glob('.*part*')
    )
    longer = T.train(
        NOISE, dataclasses.replace(TINY, kimg=0.1), tmp_path, **QUIET
    )  # room again: it goes on
    straight = T.train(NOISE, dataclasses.replace(TINY, kimg=0.1), tmp_path / 'straight', **QUIET)
    assert longer['sha256'] == straight['sha256']


def test_bad_input(tmp_path):
    def fails(match, images=NOISE, config=TINY, **kw):
        with pytest.raises(InputError, match=match):
            T.train(images, config, tmp_path / 'x', **{**QUIET, **kw})

    fails('batch=8: there are only 5 images; choose batch=4', NOISE[:5])
    fails("no image of class 'b'", labels=np.zeros(24, int), classes=('a', 'b'))
    fails('labels: missing', classes=('a', 'b'))
    fails('distance_images=1: give a whole number of images from 2', distance_images=1)
    fails('sheet_images=0: give a whole number', sheet_images=0)
    fails('17×17.*nearest that fit', np.zeros((24, 17, 17, 1), 'uint8'))
    fails('window', NOISE.astype('float32'))
    fails('keep', keep='none')
    with pytest.raises(InputError, match='unknown'):
        T.Config(augment='bgd')
    T.train(NOISE, TINY, tmp_path / 'y', **QUIET)
    with pytest.raises(InputError, match='another configuration.*gamma'):
        T.train(NOISE, dataclasses.replace(TINY, gamma=3.0), tmp_path / 'y', **QUIET)
    with pytest.raises(InputError, match='other images'):
        T.train(NOISE[::-1].copy(), TINY, tmp_path / 'y', **QUIET)
    (tmp_path / 'y' / 'checkpoint.pt').write_bytes(b'broken')
    with pytest.raises(InputError, match='checkpoint.pt: not a readable checkpoint'):
        T.train(NOISE, TINY, tmp_path / 'y', **QUIET)


def test_p_that_runs_high_is_told(tmp_path):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        t = T.Trainer(
            T.Images(NOISE[:8]), dataclasses.replace(TINY, p=0.69, ada_kimg=0.02, target=-0.9)
        )
        for _ in range(8):
            t.iterate()
    assert t.controller.p == 0.8 and any('p has reached' in str(w.message) for w in seen)


def test_best_snapshot_is_kept(tmp_path):
    r = T.train(NOISE, dataclasses.replace(TINY, kimg=0.128), tmp_path, **QUIET)
    measured = {x['kimg']: x['distance'] for x in r['log'] if 'distance' in x}
    assert len(measured) == 4 and r['best']['distance'] == min(measured.values())
    assert {p.name for p in tmp_path.glob('network_*')} == {r['best']['file'], r['last']['file']}
    T.train(NOISE, TINY, tmp_path / 'all', **QUIET, keep='all')
    assert len(list((tmp_path / 'all').glob('network_*'))) == 2


def test_commands_train_generate_and_project(tmp_path, capsys):
    from PIL import Image

    from gan_covid.cli import main

    rng = np.random.default_rng(0)
    for k, label in enumerate(('ill', 'well')):
        (tmp_path / 'images' / label).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(
                (rng.normal(80 + 80 * k, 20, (40, 40)).clip(0, 255)).astype('uint8')
            ).save(tmp_path / 'images' / label / f'{i}.png')
    train = [
        'train',
        'stylegan2',
        str(tmp_path / 'images'),
        str(tmp_path / 'out'),
        '--size',
        '16',
        '--kimg',
        '.032',
        '--augment',
        'chest_xray',
        '--device',
        'cpu',
        '-p',
        'width=[64, 8]',
        '-p',
        'batch=8',
        '-p',
        'z_dim=8',
    ]
    assert main(train) == 0
    said = capsys.readouterr().out
    assert (
        '16 images of 16 × 16 × 1, classes ill, well' in said
        and 'network_000000.032.safetensors' in said
    )
    assert (
        main(train) == 0 and 'going on after 0.032 of 0.032' in capsys.readouterr().out
    )  # finished: nothing is done again
    network = str(tmp_path / 'out' / 'network_000000.032.safetensors')
    assert (
        main(
            [
                'generate',
                network,
                str(tmp_path / 'drawn'),
                '--seeds',
                '0-2,7',
                '--label',
                'well',
                '--psi',
                '.7',
                '--device',
                'cpu',
            ]
        )
        == 0
    )
    assert (
        len(list((tmp_path / 'drawn' / 'well').glob('*.png'))) == 4
        and (tmp_path / 'drawn' / 'images.csv').read_text().count('well') >= 4
    )
    capsys.readouterr()
    assert (
        main(['generate', network, str(tmp_path / 'drawn2'), '--label', 'wel', '--device', 'cpu'])
        == 2
        and 'well' in capsys.readouterr().err
    )
    assert (
        main(
            [
                'project',
                network,
                str(tmp_path / 'images' / 'ill' / '0.png'),
                str(tmp_path / 'found'),
                '--steps',
                '5',
                '--label',
                'ill',
                '--device',
                'cpu',
            ]
        )
        == 0
    )
    assert (
        tmp_path / 'found' / 'projected.png'
    ).exists() and 'at the average' in capsys.readouterr().out
    assert (
        main(
            ['train', 'stylegan2', str(tmp_path / 'images'), str(tmp_path / 'out'), '-p', 'gama=1']
        )
        == 2
        and 'gamma' in capsys.readouterr().err
    )
