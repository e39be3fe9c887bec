"A training beyond its notebook: kills, several processes, unusual images, transfer, and what can go wrong."

import dataclasses
import errno
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_covid.cli import main
from gan_covid.records import InputError, read_json
from gan_covid.stylegan2 import training as T
from gan_covid.stylegan2.storage import load_networks
from gan_covid.stylegan2.trainer import Losses, Trainer

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype='uint8')
# bf16=False: the same sums on every machine
TINY = T.Config(kimg=0.064, batch=8, width=(64, 8), z_dim=8, p=0.4, ada_kimg=1, seed=3, bf16=False)
QUIET = dict(
    device='cpu',
    tick_kimg=0.016,
    snapshot_ticks=2,
    sheet_images=4,
    distance_images=40,
    checkpoint_seconds=0,
    progress=None,
)


def with_(config=TINY, **changes):
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope='module')
def first(tmp_path_factory, one_thread):
    "A finished training of 64 images with two snapshots, and its results; copy the folder to write in it."
    folder = tmp_path_factory.mktemp('first') / 'out'
    return folder, T.train(NOISE, TINY, folder, **QUIET, keep='all')


@pytest.fixture
def copy(first, tmp_path):
    "A copy of the folder of `first`."
    return Path(shutil.copytree(first[0], tmp_path / 'copy'))


# --- kills, and several processes ---------------------------------------------------------------

RUN = """
import json, sys
from pathlib import Path
import numpy as np, torch
from gan_covid.stylegan2.settings import Config
from gan_covid.stylegan2.training import train
torch.set_num_threads(1)
x = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype="uint8")
folder, chunk = Path(sys.argv[1]), int(sys.argv[2])
config = Config(kimg=.128, batch=16, chunk=chunk, width=(64, 8), z_dim=8, p=.3, ada_kimg=1,
                augment="bgc", seed=5, bf16=False)
r = train(x, config, folder, np.arange(40) % 2, ("a", "b"), device="cpu", tick_kimg=.032,
          snapshot_ticks=3, sheet_images=4, distance_images=40, checkpoint_seconds=0)
if r:
    result = {k: r[k] for k in ("sha256", "log", "best", "last")}
    (folder/"result.json").write_text(json.dumps(result))
"""


def run(folder, wait=True, launcher=(), chunk=8):
    script = folder.parent / 'run.py'
    script.write_text(RUN)
    p = subprocess.Popen(
        [sys.executable, *launcher, str(script), str(folder), str(chunk)],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        err = p.communicate()[1]
        assert p.returncode == 0, err
    return p


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The training of RUN in one piece, in a process of its own."
    folder = tmp_path_factory.mktemp('whole') / 'out'
    run(folder)
    return folder


@pytest.mark.slow
def test_killed_training_ends_in_the_same_weights_and_log(whole, tmp_path):
    "Killed at a random moment: in an iteration, a snapshot, a checkpoint."
    killed = tmp_path / 'killed'
    p, checkpoint = run(killed, wait=False), killed / 'checkpoint.pt'
    while p.poll() is None and not checkpoint.exists():
        time.sleep(0.02)
    time.sleep(np.random.default_rng().uniform(0, 0.3))
    assert p.poll() is None, 'the training was over before it could be killed'
    p.send_signal(signal.SIGKILL)
    p.wait()
    p.stderr.close()
    (killed / '.checkpoint.1.part.pt').write_bytes(b'half')  # as a kill within a write leaves it
    run(killed)
    for name in ('result.json', 'log.jsonl'):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(p.name for p in killed.glob('*')) == sorted(p.name for p in whole.glob('*'))


def weights(networks):
    tensors = [p for n in networks.values() for p in n.state_dict().values()]
    return torch.cat([p.detach().flatten() for p in tensors])


@pytest.mark.slow
def test_two_processes_are_one_with_two_chunks(whole, tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    where = ('--nproc_per_node', '2', '--master_addr', '127.0.0.1', '--master_port', str(port))
    run(tmp_path / 'two', launcher=('-m', 'torch.distributed.run', *where))
    two, one = (read_json(folder / 'result.json') for folder in (tmp_path / 'two', whole))
    found = [load_networks(folder / one['last']['file'])[0] for folder in (tmp_path / 'two', whole)]
    a, b = map(weights, found)
    data = T.Images(NOISE, np.arange(24) % 2, ('a', 'b'))
    far = float((weights(Trainer(data, with_(seed=6)).networks.named()) - b).abs().mean())
    assert float((a - b).abs().mean()) < 1e-3 * far  # sums in another order, and nothing else
    for x, y in zip(two['log'], one['log']):
        assert x['kimg'] == y['kimg'] and x['p'] == pytest.approx(y['p'], abs=1e-9)
        assert x['d_real'] == pytest.approx(y['d_real'], rel=0.2)  # losses: those of process 0


@pytest.mark.slow
def test_a_kill_before_the_first_tick_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    "A tick can take many minutes: the folder, and what was done before the kill, are on disk all the same."
    slow = {**QUIET, 'tick_kimg': 0.064}  # one tick is eight iterations, the whole training
    whole, real = T.train(NOISE, TINY, tmp_path / 'whole', **slow), Trainer.iterate

    def killed(at):
        def iterate(self):
            if self.iteration == at:
                raise KeyboardInterrupt
            real(self)

        with monkeypatch.context() as m:
            m.setattr(Trainer, 'iterate', iterate)
            with pytest.raises(KeyboardInterrupt):
                T.train(NOISE, TINY, tmp_path / 'killed', **slow)
        return T.about_checkpoint(tmp_path / 'killed' / 'checkpoint.pt')['iteration']

    assert [killed(at) for at in (0, 3, 6, 7)] == [0, 0, 4, 4]
    again = T.train(NOISE, TINY, tmp_path / 'killed', **slow)
    assert again['sha256'] == whole['sha256'] and again['log'] == whole['log']


@pytest.mark.gpu
@pytest.mark.parametrize('classes', [(), ('a', 'b', 'c')], ids=['one class', 'conditional'])
def test_gpu_records_trains_resumes_and_repeats_itself(tmp_path, classes):
    if not torch.cuda.is_available():
        pytest.skip('no cuda here')
    labels = np.arange(len(NOISE)) % 3 if classes else None
    quiet = {**QUIET, 'device': None, 'snapshot_ticks': 4, 'labels': labels, 'classes': classes}
    config = with_(kimg=0.24, augment='bgc', bf16=True)
    whole, again = (T.train(NOISE, config, tmp_path / k, **quiet) for k in 'ab')
    assert whole['sha256'] == again['sha256']
    T.train(NOISE, with_(config, kimg=0.096), tmp_path / 'c', **quiet)
    assert T.train(NOISE, config, tmp_path / 'c', **quiet)['sha256'] == whole['sha256']
    # launch by launch: the same draws
    plain = T.train(NOISE, config, tmp_path / 'd', **quiet, record=False)
    assert plain['log'][0]['g'] == pytest.approx(whole['log'][0]['g'], rel=0.05)


# --- images of every kind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    'shape, dtype, window',
    [
        ((20, 16, 32, 1), 'uint8', None),
        ((20, 16, 16, 3), 'uint8', None),
        ((20, 24, 24, 1), 'uint16', (1000, 3000)),
        ((20, 16, 16, 2), 'float32', (-1000.0, 400.0)),
    ],
    ids=['wide', 'colour', 'uint16', 'two channels'],
)
def test_other_images_are_trained_and_sampled(tmp_path, shape, dtype, window):
    low, high = window or (0, 255)
    x = np.random.default_rng(0).uniform(low, high, shape).astype(dtype)
    given = dict(validation=x[:5], validation_labels=np.arange(5) % 3, window=window)
    config = with_(kimg=0.016)
    r = T.train(x, config, tmp_path, np.arange(20) % 3, ('a', 'b', 'c'), **given, **QUIET)
    networks, about = load_networks(tmp_path / r['last']['file'])
    assert about['window'] == [low, high] and about['dtype'] == dtype
    assert about['classes'] == ['a', 'b', 'c'] and about['kimg'] == 0.016
    fake = T.draw(networks['G_ema'], 6, 0, np.arange(6) % 3)
    assert fake.shape == (6, *shape[1:]) and fake.dtype == np.float32
    assert 0 <= fake.min() < fake.max() <= 1 and np.isfinite(fake).all()
    a, b = (T.draw(networks['G_ema'], 1, 0, [k]) for k in (0, 1))
    assert not np.array_equal(a, b)  # the label reaches the image
    assert {'d_train', 'd_val', 'd_gen', 'distance'} <= set(r['log'][-1])
    assert (tmp_path / 'sheet_000000.016.png').stat().st_size > 100


def test_rare_class_and_a_held_out_part_without_it(tmp_path):
    # sorted by class, as prepared tables are, and the rare class beyond the 256 images that D's
    # outputs are taken on
    x = np.random.default_rng(0).integers(0, 256, (304, 16, 16, 1), dtype='uint8')
    y, names = np.repeat([0, 1], [300, 4]), ('many', 'few')
    held_out = dict(validation=x[:9], validation_labels=y[:9])
    r = T.train(x, with_(kimg=0.008), tmp_path, y, names, **held_out, **QUIET)
    assert all(math.isfinite(r['log'][-1][k]) for k in ('d_train', 'd_val', 'd_gen', 'distance'))
    chosen = T.Monitor(T.Images(x, y, names), T.Images(x, y, names), n=304).few
    assert len(set(chosen)) == 256 and chosen.max() > 256  # from all images,
    assert not (np.diff(chosen) > 0).all()  # mixed


def test_few_images_are_compared_with_many_generated_ones(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 1), dtype='uint8')
    data = T.Images(x, np.repeat([0, 1], [24, 6]), ('many', 'few'))
    m = T.Monitor(data, n=100)
    assert len(m.real) == 30 and m.n == len(m.labels) == 100
    assert 16 <= m.labels.sum() <= 26 and set(m.labels[90:]) == {0, 1}  # shares, to the end
    asked, draw = [], T.draw
    monkeypatch.setattr(T, 'draw', lambda G, n, *a: asked.append(n) or draw(G, n, *a))
    assert m.measure(Trainer(data, TINY).networks)['distance'] > 0 and asked == [100]
    assert len(T.Monitor(T.Images(x), n=20).real) == 20  # and no more real ones than that


def test_transfer_keeps_what_fits(first, tmp_path):
    folder, r = first
    source, said, three = folder / r['last']['file'], [], NOISE.repeat(3, 3)
    labels, classes = np.arange(24) % 2, ('a', 'b')
    quiet = {**QUIET, 'progress': said.append}
    config = with_(kimg=0.016, ada_kimg=None)
    t = T.train(three, config, tmp_path / 'b', labels, classes, init=source, **quiet)
    assert t['settings']['ada_kimg'] == 100 and any('network' in s for s in said)
    a, b = (load_networks(f)[0]['G'] for f in (source, tmp_path / 'b' / t['last']['file']))
    fresh = Trainer(T.Images(three, labels, classes), TINY).networks.G

    def apart(one, two):
        one, two = (n.synthesis.b8x8.conv1.weight.detach() for n in (one, two))
        return float((one - two).abs().mean())

    assert apart(a, b) < 0.1 * apart(fresh, b)


# --- snapshots, and what can go wrong -----------------------------------------------------------


def test_best_snapshot_is_kept(first, tmp_path):
    folder, _ = first
    assert len(list(folder.glob('network_*'))) == 2  # keep='all'
    r = T.train(NOISE, TINY, tmp_path, **{**QUIET, 'snapshot_ticks': 1})
    measured = {x['kimg']: x['distance'] for x in r['log'] if 'distance' in x}
    assert len(measured) == 4 and r['best']['distance'] == min(measured.values())
    assert {p.name for p in tmp_path.glob('network_*')} == {r['best']['file'], r['last']['file']}


def test_no_numbers_any_more(copy, monkeypatch):
    real = Losses.g

    def broken(self, x):
        loss = real(self, x)
        return loss * math.nan if self.controller.iteration > 10 else loss

    monkeypatch.setattr(Losses, 'g', broken)
    with pytest.raises(
        InputError, match=r'not a number.*last good state, of kimg 0\.08, is in .*checkpoint\.pt'
    ):
        T.train(NOISE, with_(kimg=0.12), copy, **QUIET)
    good = torch.load(copy / 'checkpoint.pt', weights_only=True)
    assert json.loads(good['about'])['iteration'] == 10
    assert all(torch.isfinite(v).all() for v in good['networks']['G'].values())


def test_full_disk_keeps_the_last_checkpoint(copy, monkeypatch):
    before = (copy / 'checkpoint.pt').read_bytes()

    def full(state, part):
        Path(part).write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as m:
        m.setattr(T.torch, 'save', full)
        with pytest.raises(InputError, match='no space left'):
            T.train(NOISE, with_(kimg=0.08), copy, **QUIET)
    assert (copy / 'checkpoint.pt').read_bytes() == before and not list(copy.glob('.*part*'))
    assert T.train(NOISE, with_(kimg=0.08), copy, **QUIET)['kimg'] == 0.08  # room again: resumed


def test_bad_input(copy, tmp_path):
    def fails(match, images=NOISE, config=TINY, folder=tmp_path / 'x', **kw):
        with pytest.raises(InputError, match=match):
            T.train(images, config, folder, **{**QUIET, **kw})

    fails('batch=8: there are only 5 images; choose batch=4', NOISE[:5])
    fails("no image of class 'b'", labels=np.zeros(24, int), classes=('a', 'b'))
    fails('labels: missing', classes=('a', 'b'))
    fails('distance_images=1: give a whole number of images from 2', distance_images=1)
    fails('sheet_images=0: give a whole number', sheet_images=0)
    fails('tick_kimg=0: give thousands of images', tick_kimg=0)
    fails('17×17.*nearest that fit', np.zeros((24, 17, 17, 1), 'uint8'))
    fails('window', NOISE.astype('float32'))
    fails('keep', keep='none')
    with pytest.raises(InputError, match='unknown'):
        T.Config(augment='bgd')
    fails('another configuration.*gamma', config=with_(gamma=3.0), folder=copy)
    fails('other images', NOISE[::-1].copy(), folder=copy)
    (copy / 'checkpoint.pt').write_bytes(b'broken')
    fails('checkpoint.pt: not a readable checkpoint', folder=copy)


# --- commands -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_train_generate_and_project(tmp_path, capsys):
    rng, images, out = np.random.default_rng(0), tmp_path / 'images', tmp_path / 'out'
    for k, label in enumerate(('ill', 'well')):
        (images / label).mkdir(parents=True)
        for i in range(8):
            a = rng.normal(80 + 80 * k, 20, (40, 40)).clip(0, 255).astype('uint8')
            Image.fromarray(a).save(images / label / f'{i}.png')

    def gan_covid(*words):
        capsys.readouterr()
        code, said = main([str(w) for w in words]), capsys.readouterr()
        return code, said.out + said.err

    train = ['train', 'stylegan2', images, out, '--size', 16, '--kimg', '.032']
    train += ['--augment', 'chest_xray', '--device', 'cpu']
    train += ['-p', 'width=[64, 8]', '-p', 'batch=8', '-p', 'z_dim=8']
    code, said = gan_covid(*train)
    assert code == 0 and '16 images of 16 × 16 × 1, classes ill, well' in said
    assert 'network_000000.032.safetensors' in said
    code, said = gan_covid(*train)  # finished: nothing is done again
    assert code == 0 and 'resumed after 0.032 of 0.032' in said

    network = out / 'network_000000.032.safetensors'
    look = ['--seeds', '0-2,7', '--label', 'well', '--psi', '.7', '--device', 'cpu']
    assert gan_covid('generate', network, tmp_path / 'drawn', *look)[0] == 0
    assert len(list((tmp_path / 'drawn' / 'well').glob('*.png'))) == 4
    assert (tmp_path / 'drawn' / 'images.csv').read_text().count('well') >= 4
    wrong = ['--label', 'wel', '--device', 'cpu']
    code, said = gan_covid('generate', network, tmp_path / 'drawn2', *wrong)
    assert code == 2 and 'well' in said

    search = ['--steps', 5, '--label', 'ill', '--device', 'cpu']
    code, said = gan_covid(
        'project', network, images / 'ill' / '0.png', tmp_path / 'found', *search
    )
    assert code == 0 and 'at the average' in said
    assert (tmp_path / 'found' / 'projected.png').exists()
    code, said = gan_covid('train', 'stylegan2', images, out, '-p', 'gama=1')
    assert code == 2 and 'gamma' in said
