"""What the DCGAN notebooks cannot show in one process: kills, two backends, conditional training, bad input."""

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
x = np.random.default_rng(0).random((12, 32, 32, 1), "float32")
folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
r = train(x, Config(epochs=epochs, batch=4, seed=5, ema=.9), folder, sheets=1, checkpoint_seconds=0)
(folder/"result.json").write_text(json.dumps({k: r[k] for k in ("generator_sha256", "losses")}))
"""


def run(folder, epochs=4, backend='tensorflow', wait=True):
    p = subprocess.Popen(
        [sys.executable, '-c', RUN, str(folder), str(epochs)],
        env={**os.environ, 'KERAS_BACKEND': backend, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        err = p.communicate()[1]
        assert p.returncode == 0, err
    return p


@pytest.mark.parametrize('backend', ['tensorflow', 'torch'])
def test_killed_training_ends_in_the_same_weights(tmp_path, backend):
    run(tmp_path / 'whole', backend=backend)
    whole = read_json(tmp_path / 'whole' / 'result.json')
    rng, kills = np.random.default_rng(), 0
    for _ in range(3):  # at random moments: in the middle of an epoch, of a checkpoint, of anything
        p = run(tmp_path / 'killed', backend=backend, wait=False)
        checkpoint, seen = tmp_path / 'killed' / 'checkpoint.npz', None
        while p.poll() is None and not checkpoint.exists():
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1.5))
        if p.poll() is None:
            p.send_signal(signal.SIGKILL)
            kills += 1
        p.wait()
        p.stderr.close()
    run(tmp_path / 'killed', backend=backend)
    assert kills, 'the training was over before it could be killed'
    assert read_json(tmp_path / 'killed' / 'result.json') == whole
    assert (tmp_path / 'killed' / 'losses.jsonl').read_bytes() == (
        tmp_path / 'whole' / 'losses.jsonl'
    ).read_bytes()


SAME = """
import numpy as np
from gan_covid.dcgan.training import GAN, Config, ops
from gan_covid.records import sha256_array
gan = GAN(Config(batch=16, seed=0))
gan.epoch(np.random.default_rng(0).random((48, 32, 32, 1), "float32"), np.zeros(48, "int32"), 0, 3)
print(sha256_array(np.concatenate([ops.convert_to_numpy(v).astype("float64").ravel() for v in gan.variables()])))
"""


def test_every_process_computes_the_same_bits():
    "Weights, optimizer moments and batch statistics after three steps, in processes that share nothing; TensorFlow's graph rewriter, left on, makes about one in four differ."
    runs = [
        subprocess.run(
            [sys.executable, '-c', SAME],
            env={**os.environ, 'KERAS_BACKEND': 'tensorflow', 'OMP_NUM_THREADS': n},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in '111'
    ]
    assert len(set(runs)) == 1 and len(runs[0].strip()) == 64


FORWARD = """
import sys, numpy as np
from gan_covid.dcgan import networks, training
from gan_covid.engines import load_keras
keras, name, folder = load_keras(), sys.argv[1], sys.argv[2]
G, D = networks.build(name)
w = np.random.default_rng(1)
for m in (G, D): m.set_weights([(w.random(x.shape) + .5 if x.ndim == 1 else w.normal(size=x.shape)*.03).astype("float32") for x in m.get_weights()])
z = np.random.default_rng(2).normal(size=(3, 100)).astype("float32")
fake = keras.ops.convert_to_numpy(G(z, training=False))
np.savez(f"{folder}/{keras.backend.backend()}-{name}.npz", fake=fake, verdict=keras.ops.convert_to_numpy(D(fake, training=False)), counts=[networks.count(G), networks.count(D)])
"""


@pytest.mark.parametrize(
    'name, counts', [('head_ct', [4_870_785, 791_169]), ('ct_report_128', [27_269_505, 103_105])]
)
def test_both_backends_give_the_same_images(tmp_path, name, counts):
    out = {}
    for backend in ('tensorflow', 'torch'):
        subprocess.run(
            [sys.executable, '-c', FORWARD, name, str(tmp_path)],
            env={**os.environ, 'KERAS_BACKEND': backend},
            check=True,
            capture_output=True,
        )
        out[backend] = np.load(tmp_path / f'{backend}-{name}.npz')
        assert out[backend]['counts'].tolist() == counts
    assert out['torch']['fake'].std() > 0.01
    for key in ('fake', 'verdict'):
        np.testing.assert_allclose(
            out['torch'][key], out['tensorflow'][key], rtol=1e-4, atol=1e-6
        )  # the change of range cancels near 0


def test_training_learns_and_bfloat16_agrees_roughly():
    from gan_covid.dcgan.training import GAN, Config, sample

    x = np.zeros((16, 32, 32, 1), 'float32')
    x[:, 8:24, 8:24] = 0.9
    d, drawn = {}, {}
    for policy in ('float32', 'mixed_bfloat16'):
        gan = GAN(Config(batch=8, precision=policy, gradient_penalty=0.0, seed=1))
        drawn[policy] = sample(gan.G, 8, 3, batch=8)  # same seed, same weights, nothing trained yet
        losses = np.concatenate([gan.epoch(x, np.zeros(16, 'int32'), e, 2) for e in range(6)])
        d[policy] = losses[:, 1] + losses[:, 2]
        assert (
            d[policy][-2:].mean() < 0.7 * d[policy][0]
        )  # the discriminator learns to tell noise from squares
    difference = np.abs(drawn['float32'] - drawn['mixed_bfloat16'])
    assert 0 < difference.max() < 0.05 * np.ptp(drawn['float32']) + 2**-8  # bfloat16 keeps 8 bits


def test_conditional_training_uses_the_label(tmp_path):
    from gan_covid.dcgan.training import Config, load_network, sample, train

    x = np.zeros((8, 32, 32, 1), 'float32')
    x[4:] = 1
    train(
        x,
        Config(epochs=1, batch=8, classes=2),
        tmp_path,
        np.repeat([0, 1], 4),
        sheets=1,
        progress=lambda s: None,
    )
    g = load_network(tmp_path / 'generator.keras')
    assert np.abs(sample(g, 2, 0, label=0, batch=2) - sample(g, 2, 0, label=1, batch=2)).max() > 0
    with pytest.raises(InputError, match='every label'):
        train(x, Config(epochs=1, batch=8, classes=3), tmp_path / 'b', np.repeat([0, 1], 4))


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

    with pytest.raises(InputError, match=words):
        train(
            np.zeros((8, 32, 32, 1), 'float32'),
            Config(**{'epochs': 1, 'batch': 4, **change}),
            tmp_path,
        )


def test_loss_that_is_no_number_keeps_the_last_good_state(tmp_path, monkeypatch):
    from gan_covid.dcgan import training

    x = np.random.default_rng(0).random((4, 32, 32, 1), 'float32')
    epoch = training.GAN.epoch
    monkeypatch.setattr(
        training.GAN,
        'epoch',
        lambda self, a, b, n, s: epoch(self, a, b, n, s) * (np.nan if n == 1 else 1),
    )
    with pytest.raises(InputError, match='epoch 2: a loss is no number'):
        training.train(
            x,
            training.Config(epochs=3, batch=4),
            tmp_path,
            sheets=0,
            checkpoint_seconds=0,
            progress=lambda s: None,
        )
    assert json.loads(str(np.load(tmp_path / 'checkpoint.npz')['about']))['epoch'] == 1


def test_full_disk_at_a_checkpoint_keeps_the_last_one(tmp_path, monkeypatch):
    import errno

    from gan_covid.dcgan import training

    x = np.random.default_rng(0).random((4, 32, 32, 1), 'float32')
    config = training.Config(epochs=2, batch=4)
    gan = training.GAN(config)
    training.save_checkpoint(gan, tmp_path / 'checkpoint.npz', 1, [[0.0] * 4], 1.0)
    before = (tmp_path / 'checkpoint.npz').read_bytes()

    def full(path, **arrays):
        Path(path).write_bytes(b'half of it')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(training.np, 'savez', full)
    with pytest.raises(InputError, match='checkpoint.npz: no space left'):
        training.train(x, config, tmp_path, sheets=0, checkpoint_seconds=0, progress=lambda s: None)
    assert (tmp_path / 'checkpoint.npz').read_bytes() == before and [
        p.name for p in tmp_path.iterdir()
    ] == ['checkpoint.npz']


def test_broken_files(tmp_path):
    from gan_covid.dcgan.training import GAN, Config, load_checkpoint, load_network

    (tmp_path / 'checkpoint.npz').write_bytes(b'PK half')
    with pytest.raises(InputError, match='checkpoint.npz: not a readable checkpoint'):
        load_checkpoint(GAN(Config()), tmp_path / 'checkpoint.npz')
    (tmp_path / 'generator.keras').write_bytes(b'')
    with pytest.raises(InputError, match='generator.keras: not a Keras model'):
        load_network(tmp_path / 'generator.keras')
    with pytest.raises(InputError, match='Train the GAN first'):
        load_network(tmp_path / 'nothing.keras')


def test_conditional_gan_draws_the_class_asked_for():
    "The study of labels, one seed: a classifier that saw real phantoms only agrees with the label, class by class, and no class is one image over and over."
    script = Path(__file__).parents[1] / 'benchmarks' / 'studies' / 'cgan_labels.py'
    code = f'import sys, json; sys.argv = ["x"]; sys.path.insert(0, {str(script.parent)!r}); import cgan_labels as c, types; r = c.main(types.SimpleNamespace(dataset="covid_ct", images=150, size=32, epochs=80, seeds=[1], lr=5e-4, beta_1=0., wrong_labels=.5, ema=.99, precision="float32", json=None, figure=None)); print(json.dumps(r["gans"]))'
    p = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'KERAS_BACKEND': 'tensorflow'},
        capture_output=True,
        text=True,
    )
    assert p.returncode == 0, p.stderr[-2000:]
    (gan,) = json.loads(p.stdout.strip().splitlines()[-1])
    assert min(gan['agreement']) > 0.85 and min(gan['variety']) > 0.6, gan
