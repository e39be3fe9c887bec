"What the DCGAN notebooks cannot show in one process: kills, two backends, conditional training, bad input."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gan_covid.records import InputError, read_json

RUN = """
import sys, json, numpy as np
from pathlib import Path
from gan_covid.dcgan.training import Config, train
x = np.random.default_rng(0).random((8, 32, 32, 1), "float32")
folder = Path(sys.argv[1])
config = Config(epochs=4, batch=4, seed=5, ema=.9)
r = train(x, config, folder, sheets=1, sheet_images=4, checkpoint_seconds=0)
(folder/"result.json").write_text(json.dumps({k: r[k] for k in ("generator_sha256", "losses")}))
"""


def python(code, *arguments, backend='tensorflow'):
    "A process of its own, with one thread."
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, arguments)],
        env={**os.environ, 'KERAS_BACKEND': backend, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process):
    "What a process printed, once it has ended well."
    out, error = process.communicate()
    assert process.returncode == 0, error[-2000:]
    return out


def killed(folder, backend, wait):
    "Kill the training some time after its first checkpoint; False if it was over before."
    p = python(RUN, folder, backend=backend)
    while p.poll() is None and not (folder / 'checkpoint.npz').exists():
        time.sleep(0.05)
    time.sleep(wait)
    alive = p.poll() is None
    if alive:
        p.send_signal(signal.SIGKILL)
    p.communicate()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize('backend, kills', [('tensorflow', 2), ('torch', 1)])
def test_killed_training_ends_in_the_same_weights(tmp_path, backend, kills):
    """At random moments: in the middle of an epoch, of a checkpoint, of anything. The GAN of head_ct has all
    kinds of state."""
    whole, broken, rng = tmp_path / 'whole', tmp_path / 'killed', np.random.default_rng()
    output(python(RUN, whole, backend=backend))
    hits = [killed(broken, backend, rng.uniform(0, 1.5)) for _ in range(kills)]
    output(python(RUN, broken, backend=backend))
    assert any(hits), 'the training was over before it could be killed'
    assert read_json(broken / 'result.json') == read_json(whole / 'result.json')
    for name in ('losses.jsonl', 'sheet_00004.png'):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


SAME = """
import numpy as np
from gan_covid.dcgan.training import GAN, Config, ops
from gan_covid.records import sha256_array
gan = GAN(Config(batch=8, seed=0))
gan.epoch(np.random.default_rng(0).random((24, 32, 32, 1), "float32"), np.zeros(24, "int32"), 0, 3)
parts = [ops.convert_to_numpy(v).astype("float64").ravel() for v in gan.variables()]
print(sha256_array(np.concatenate(parts)))
"""


@pytest.mark.slow
def test_every_process_computes_the_same_bits():
    """Weights, optimizer moments and batch statistics after three steps, in processes that share nothing;
    TensorFlow's graph rewriter, left on, makes about one in four differ."""
    runs = [output(python(SAME)) for _ in range(3)]
    assert len(set(runs)) == 1 and len(runs[0].strip()) == 64


FORWARD = """
import sys, numpy as np
from gan_covid.dcgan import networks
from gan_covid.engines import load_keras
keras, folder = load_keras(), sys.argv[1]
w, z = np.random.default_rng(1), np.random.default_rng(2).normal(size=(3, 100)).astype("float32")

def drawn(shape):
    return (w.random(shape) + .5 if len(shape) == 1 else w.normal(size=shape)*.03).astype("float32")

for name in sys.argv[2:]:
    G, D = networks.build(name)
    for m in (G, D):
        m.set_weights([drawn(x.shape) for x in m.get_weights()])
    fake = keras.ops.convert_to_numpy(G(z, training=False))
    verdict = keras.ops.convert_to_numpy(D(fake, training=False))
    counts = [networks.count(G), networks.count(D)]
    file = f"{folder}/{keras.backend.backend()}-{name}.npz"
    np.savez(file, fake=fake, verdict=verdict, counts=counts)
"""


@pytest.mark.slow
def test_both_backends_give_the_same_images(tmp_path):
    counts = {'head_ct': [4_870_785, 791_169], 'ct_report_128': [27_269_505, 103_105]}
    for backend in ('tensorflow', 'torch'):
        output(python(FORWARD, tmp_path, *counts, backend=backend))
    for name, expected in counts.items():
        ours, theirs = (np.load(tmp_path / f'{b}-{name}.npz') for b in ('torch', 'tensorflow'))
        assert ours['counts'].tolist() == theirs['counts'].tolist() == expected
        assert ours['fake'].std() > 0.01
        for key in ('fake', 'verdict'):
            # the change of range cancels near 0
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_training_learns_and_bfloat16_agrees_roughly():
    from gan_covid.dcgan.training import GAN, Config, sample

    x, labels = np.zeros((16, 32, 32, 1), 'float32'), np.zeros(16, 'int32')
    x[:, 8:24, 8:24] = 0.9
    drawn = {}
    for policy in ('float32', 'mixed_bfloat16'):
        gan = GAN(Config(batch=8, precision=policy, gradient_penalty=0.0, seed=1))
        drawn[policy] = sample(gan.G, 8, 3, batch=8)  # same seed, same weights, nothing trained yet
        losses = np.concatenate([gan.epoch(x, labels, e, 2) for e in range(6)])
        d = losses[:, 1] + losses[:, 2]
        assert d[-2:].mean() < 0.7 * d[0]  # the discriminator learns to tell noise from squares
    difference = np.abs(drawn['float32'] - drawn['mixed_bfloat16'])
    assert 0 < difference.max() < 0.05 * np.ptp(drawn['float32']) + 2**-8  # bfloat16 keeps 8 bits


@pytest.mark.slow
def test_conditional_training_uses_the_label(tmp_path):
    from gan_covid.dcgan.training import Config, load_network, sample, train

    x, labels = np.zeros((8, 32, 32, 1), 'float32'), np.repeat([0, 1], 4)
    x[4:] = 1
    config = Config(networks='cgan_32', epochs=1, batch=8, classes=2)
    train(x, config, tmp_path, labels, sheets=1, progress=lambda s: None)
    g = load_network(tmp_path / 'generator.keras')
    zero, one = (sample(g, 2, 0, label=k, batch=2) for k in (0, 1))
    assert np.abs(zero - one).max() > 0
    with pytest.raises(InputError, match='every label'):
        train(x, Config(epochs=1, batch=8, classes=3), tmp_path / 'b', labels)


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(batch=64), 'batch=64: only 8 training images'),
        (dict(networks='head'), "networks='head'"),
        (dict(learning_rate=-1.0), 'learning_rate=-1'),
        (dict(networks='ct_report_128'), 'size=128'),
    ],
)
def test_settings_that_cannot_be(tmp_path, change, words):
    from gan_covid.dcgan.training import Config, train

    x = np.zeros((8, 32, 32, 1), 'float32')
    with pytest.raises(InputError, match=words):
        train(x, Config(**{'epochs': 1, 'batch': 4, **change}), tmp_path)


@pytest.fixture
def small():
    "Images and settings of the smallest GAN."
    from gan_covid.dcgan.training import Config

    x = np.random.default_rng(0).random((4, 32, 32, 1), 'float32')
    return x, Config(networks='ct_report_32', epochs=3, batch=4, gradient_penalty=0.0)


QUIET = dict(sheets=0, checkpoint_seconds=0, progress=lambda line: None)


@pytest.mark.slow
def test_loss_that_is_no_number_keeps_the_last_good_state(tmp_path, monkeypatch, small):
    from gan_covid.dcgan import training

    epoch = training.GAN.epoch

    def broken(self, images, labels, number, steps):
        return epoch(self, images, labels, number, steps) * (np.nan if number == 1 else 1)

    monkeypatch.setattr(training.GAN, 'epoch', broken)
    with pytest.raises(InputError, match='epoch 2: a loss is no number'):
        training.train(*small, tmp_path, **QUIET)
    assert json.loads(str(np.load(tmp_path / 'checkpoint.npz')['about']))['epoch'] == 1


@pytest.mark.slow
def test_full_disk_at_a_checkpoint_keeps_the_last_one(tmp_path, monkeypatch, small):
    import errno

    from gan_covid.dcgan import training

    path, (x, config) = tmp_path / 'checkpoint.npz', small
    training.save_checkpoint(training.GAN(config), path, 1, [[0.0] * 4], 1.0)
    before = path.read_bytes()

    def full(path, **arrays):
        Path(path).write_bytes(b'half of it')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(training.np, 'savez', full)
    with pytest.raises(InputError, match='checkpoint.npz: no space left'):
        training.train(x, config, tmp_path, **QUIET)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_broken_files(tmp_path):
    from gan_covid.dcgan.training import load_checkpoint, load_network

    (tmp_path / 'checkpoint.npz').write_bytes(b'PK half')
    with pytest.raises(InputError, match='checkpoint.npz: not a readable checkpoint'):
        load_checkpoint(None, tmp_path / 'checkpoint.npz')
    (tmp_path / 'generator.keras').write_bytes(b'')
    with pytest.raises(InputError, match='generator.keras: not a Keras model'):
        load_network(tmp_path / 'generator.keras')
    with pytest.raises(InputError, match='Train the GAN first'):
        load_network(tmp_path / 'nothing.keras')


STUDY = """
import json, sys, types
sys.path.insert(0, sys.argv.pop(1))
import cgan_labels
settings = dict(
    dataset="covid_ct", images=100, judge_images=250, size=32, epochs=60, seeds=[1], lr=5e-4, beta_1=0.,
    wrong_labels=.5, ema=.99, precision="float32", json=None, figure=None,
)
print(json.dumps(cgan_labels.main(types.SimpleNamespace(**settings))["gans"]))
"""


@pytest.mark.slow
def test_conditional_gan_draws_the_class_asked_for():
    """The study of labels, one seed: a classifier that saw real phantoms only agrees with the label, class by
    class, and no class is one image over and over."""
    studies = Path(__file__).parents[1] / 'benchmarks' / 'studies'
    printed = output(python(STUDY, studies))
    (gan,) = json.loads(printed.strip().splitlines()[-1])
    assert min(gan['agreement']) > 0.85 and min(gan['variety']) > 0.6, gan
