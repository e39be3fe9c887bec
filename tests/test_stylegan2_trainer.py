"One iteration of StyleGAN2-ADA beyond its notebook: labels, chunks, bfloat16, and what a GPU records."

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gan_covid.stylegan2 import trainer as T
from gan_covid.stylegan2.settings import Config
from gan_covid.stylegan2.training import draw, weights_sha256

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype='uint8')
# bf16=False: the same sums on every machine
TINY = Config(kimg=0.064, batch=8, width=(64, 8), z_dim=8, p=0.4, ada_kimg=1, seed=3, bf16=False)
pytestmark = pytest.mark.usefixtures('one_thread')


def trainer(x=NOISE, labels=None, classes=(), record=None, **changes):
    return T.Trainer(
        T.Images(x, labels, classes), dataclasses.replace(TINY, **changes), record=record
    )


# --- images and labels --------------------------------------------------------------------------


def test_window_decides_what_the_networks_see():
    x = np.array([1000, 2000, 3000], 'uint16').reshape(3, 1, 1, 1).repeat(4, 1).repeat(4, 2)
    taken = T.Images(x, window=(1000, 3000)).take([0, 1, 2])[0]
    assert taken[:, 0, 0, 0].tolist() == [-1, 0, 1]


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
    assert T.numbered('cuda') == torch.device('cuda:1')
    assert T.numbered('cuda:0').index == 0 and T.numbered('cpu') == torch.device('cpu')


def test_what_a_pass_takes_is_sent_once(monkeypatch):
    "A tensor that is on the GPU already cannot be pinned: a second sending ends the training there."
    sent = []

    def send(x, device):
        assert not any(x is other for other in sent)
        sent.append(x.to(device).clone())
        return sent[-1]

    monkeypatch.setattr(T, 'send', send)
    t = trainer(labels=np.arange(24) % 2, classes=('a', 'b'))
    for phase in T.PHASES:
        for x, _ in t.batches.chunks(phase, 0):
            assert x
    assert len(sent) > 8


def test_labels_of_generated_images_follow_the_data():
    t = trainer(labels=np.repeat([0, 1], [22, 2]), classes=('many', 'few'))
    drawn = [t.batches.latents(100, T.draws('cpu', k))[1] for k in range(20)]
    assert 0.04 < np.concatenate(drawn).mean() < 0.14  # 2 of 24 is .083


@pytest.mark.slow
def test_d_learns_from_the_label():
    "With classes told apart by brightness alone, D soon says more of right labels than of wrong ones."
    y, rng = np.arange(32) % 2, np.random.default_rng(0)
    x = rng.normal(60, 10, (32, 16, 16, 1)) + 130 * y[:, None, None, None]
    t = trainer(
        x.clip(0, 255).astype('uint8'),
        y,
        ('dark', 'bright'),
        batch=16,
        width=(128, 16),
        gamma=0.01,
        ada='none',
        p=0.0,
        pl_weight=0.0,
        r1_every=0,
        seed=0,
    )
    for _ in range(30):
        t.iterate()
    with torch.no_grad():
        real, c = t.data.take(np.arange(32))
        right, wrong = (t.networks.D(real, k).mean() for k in (c, 1 - c))
    assert right > wrong + 0.3


# --- gradients ----------------------------------------------------------------------------------


def test_gradients_gather_over_chunks():
    "The gradient of a batch is the mean over its chunks; D has no minibatch statistics beyond a chunk."
    t = trainer(chunk=4, mbstd_group=4, ada='none', p=0.0)
    D, parts, shown = t.networks.D, [], []
    for x, seed in t.batches.chunks('d', 0):
        t.losses.rng.manual_seed(seed)
        loss = 2 * t.losses.d(x) / t.batches.passes
        parts.append(torch.autograd.grad(loss, list(D.parameters()), allow_unused=True))
        shown.append(x['real'])
    assert len(shown) == 2
    assert torch.equal(torch.cat(shown), t.data.take(t.data.order(0, 8, TINY.seed))[0])

    class Keep(torch.optim.SGD):
        def step(self):
            self.kept = [p.grad.clone() for g in self.param_groups for p in g['params']]

    t.networks.opt_d = Keep(D.parameters(), lr=0.0)
    t.step('d')
    for a, b, k in zip(*parts, t.networks.opt_d.kept):
        torch.testing.assert_close((a + b) / 2, k)


def test_bfloat16_stays_in_a_band():
    "The same draws in bfloat16: losses within 5 %, images within a few gray levels of 255 on average."
    t = [trainer(bf16=b, width=(256, 16)) for b in (False, True)]
    for a in t:
        for _ in range(5):
            a.iterate()
    sums = [a.losses.sums for a in t]
    for k in ('g', 'd_real', 'd_fake'):
        assert float(sums[0][k][0]) == pytest.approx(float(sums[1][k][0]), rel=0.05)
    images = [draw(a.networks.G_ema, 16, 0) for a in t]
    assert np.abs(images[0] - images[1]).mean() * 255 < 8
    assert any(p.dtype == torch.float32 for p in t[1].networks.G.parameters())


def test_p_that_runs_high_is_told():
    with pytest.warns(UserWarning, match='p has reached'):
        t = trainer(NOISE[:8], p=0.69, ada_kimg=0.02, target=-0.9, pl_weight=0.0, r1_every=0)
        for _ in range(8):
            t.iterate()
    assert t.controller.p == 0.8


# --- what a GPU records -------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """Stands for a CUDA graph on a processor: writes down every operation of a function, and runs them
    again on the same memory. What the host looks at, or decides while it writes, is not there the
    second time; looking fails."""

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
        before = [(t, t.clone()) for t in FIXED]
        state = rng.get_state()
        with self:
            function()
        for t, v in before:
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
            for old, new in zip(tree_leaves(out), tree_leaves(f(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and place(old) not in known:
                    old.copy_(new)


FIXED = []  # what a recording must leave as it was


def as_it_is(function, rng, other=None):
    "Records nothing: a function of fixed tensors is its own record."
    return function


def fails(function, rng, other=None):
    raise RuntimeError('CUDA error: out of memory\nand many more lines')


def recorded(record, n=3, **changes):
    "A trainer with labels after n iterations of all phases: each was run, recorded, and run again."
    changes = {'r1_every': 1, 'pl_every': 1} | changes
    t = trainer(NOISE, np.arange(24) % 2, ('a', 'b'), record, **changes)
    sums = t.losses
    FIXED[:] = [*t.passes.gradients['G'], *t.passes.gradients['D'], *sums.sums.values()]
    FIXED.extend([sums.w_mean, sums.pl_next, t.controller._seen])
    for _ in range(n):
        t.iterate()
        if t.config.ada != 'none':
            t.controller.p += 0.1  # another p in each iteration
    return t


def state(t):
    hashes = [weights_sha256(n) for n in t.networks.named().values()]
    return hashes, t.losses.means(), t.controller.state_dict(), float(t.losses.pl_mean)


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        dict(),
        dict(chunk=4, bf16=True, augment='chest_xray', style_mixing=0.0),
        dict(ada='none', p=0.0, pl_weight=0.0),
    ],
    ids=['ada', 'chunks', 'plain'],
)
def test_recorded_passes_are_the_same(changes):
    "To the bit: with images, mixing, p, noise and augmentation that differ in every iteration."
    a, b = (recorded(r, **changes) for r in (as_it_is, Tape))
    phases = set(T.PHASES) - ({'path'} if 'pl_weight' in changes else set())
    assert set(b.passes.recorded) == phases
    assert all(r.operations for r in b.passes.recorded.values())
    assert state(a) == state(b)


def test_without_a_recording_the_training_continues_launch_by_launch():
    "A GPU whose memory is full says so when it records: one warning, and the same numbers."
    with pytest.warns(UserWarning, match='cannot be recorded .CUDA error: out of memory.') as seen:
        a = recorded(fails)
    assert len([w for w in seen if 'recorded' in str(w.message)]) == 1
    assert a.passes.record is None and not a.passes.recorded
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        b = recorded(as_it_is)
    assert state(a) == state(b)


def test_fixed_shapes_give_what_the_processor_gives():
    "The same numbers but for rounding: nothing is skipped, everything is computed with the same draws."
    settings = dict(ada='fixed', r1_every=2, pl_every=2)
    a, b = (recorded(r, n=2, **settings) for r in (None, as_it_is))
    means = [t.losses.means() for t in (a, b)]
    assert means[0].keys() == set(T.LOSSES)
    for k, v in means[0].items():
        assert math.isclose(v, means[1][k], rel_tol=1e-3), k
    images = [draw(t.networks.G_ema, 16, 0, np.arange(16) % 2) for t in (a, b)]
    assert np.abs(images[0] - images[1]).max() < 0.02
