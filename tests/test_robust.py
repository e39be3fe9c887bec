"""What users, other runs and the system do to a run: two in one folder, values of other types, relative
paths, disks that are full, kernels that are killed."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import papermill
import papermill.iorw
import pytest

from gan_covid import cli, notebooks, profiles, records
from gan_covid.records import InputError, InUse, Run, hold

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / 'nbs' / 'runs'

# --- one run a folder ---

HOLD = """
import sys, time
from gan_covid.records import hold

lock = hold(sys.argv[1])
print('held', flush=True)
time.sleep(100)
"""


@pytest.fixture
def held(tmp_path, monkeypatch):
    "A folder at work in another process, and that process."
    monkeypatch.setattr(records.Lock, 'patience', 0.2)
    folder = tmp_path / 'smoke' / 'p' / 's' / 'n'
    command = [sys.executable, '-c', HOLD, str(folder)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'held\n'
    yield folder, other
    other.kill()
    other.communicate()


def test_second_training_in_a_folder_is_refused_and_a_killed_one_is_followed(held):
    from gan_covid.stylegan2 import training

    folder, other = held
    where = folder.parents[3], 'smoke', 'p', 's', 'n'
    images = np.zeros((8, 16, 16, 1), 'uint8')
    words = f'{folder}: another run is at work there .process {other.pid} on .*, since '
    with pytest.raises(InUse, match=words):
        training.train(images, training.Config(), folder)
    with pytest.raises(InUse, match=str(other.pid)):
        Run(*where, {})
    assert os.listdir(folder) == ['.lock']  # untouched
    other.kill()
    other.wait()
    run = Run(*where, {})
    (run.checkpoints / 'state').write_bytes(b'1')
    assert Run(*where, {'other': 1}).checkpoints.is_dir()  # one process may hold it twice
    run.finish({})


def test_dcgan_training_holds_its_folder():
    from gan_covid import dcgan

    text = (Path(dcgan.__file__).parent / 'training.py').read_text()
    assert '\n@alone\ndef train(' in text  # tried with StyleGAN2's; here without loading the engine


@pytest.mark.parametrize('number', [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_file_system_without_locks_claims_no_other_run(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(records.fcntl, 'flock', no_locks)
    for k, v in dict(lost=0.5, settle=0.05, beat=0.1, patience=0.2).items():
        monkeypatch.setattr(records.Lock, k, v)
    with hold(tmp_path):
        assert os.listdir(tmp_path) == ['.claim']
    gone = {'pid': 1, 'host': 'elsewhere', 'since': 'then', 'token': 'x'}
    (tmp_path / '.claim').write_text(json.dumps(gone))
    with hold(tmp_path) as lock:
        assert records.holder_of(lock.path)['pid'] == os.getpid()  # without a pulse: taken over
    assert os.listdir(tmp_path) == []


# a process for each folder, which holds it while a command with a child works there; modules are loaded once
GROUPS = """
import os, sys
from gan_covid import records, reproduce

command = ['sh', '-c', 'sleep 100 & echo $! > sleeping; wait']
for folder in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        with records.hold(folder) as lock:
            sys.exit(reproduce._run_group(command, lock, cwd=folder))
    print(pid, flush=True)
for _ in sys.argv[1:]:
    os.wait()
"""
SIGNALS = signal.SIGTERM, signal.SIGHUP, signal.SIGKILL


@pytest.fixture(scope='module')
def groups(tmp_path_factory):
    "{signal: (folder, process that holds it)}."
    folders = [tmp_path_factory.mktemp(how.name) for how in SIGNALS]
    command = [sys.executable, '-c', GROUPS, *map(str, folders)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pids = [int(first.stdout.readline()) for _ in folders]
    yield dict(zip(SIGNALS, zip(folders, pids)))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    first.wait()
    first.stdout.close()


def _alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def _wait_until(true):
    "Ask again and again, at most 20 seconds."
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
@pytest.mark.parametrize('how', SIGNALS)
def test_children_end_with_the_call_or_keep_its_folder(groups, monkeypatch, how):
    monkeypatch.setattr(records.Lock, 'patience', 1.0)
    folder, parent = groups[how]
    sleeping = folder / 'sleeping'
    _wait_until(lambda: sleeping.exists() and sleeping.read_text().strip())
    child = int(sleeping.read_text())
    os.kill(parent, how)
    _wait_until(lambda: not _alive(parent))
    if how != signal.SIGKILL:
        assert not _alive(child)
        with hold(folder):
            return
    assert _alive(child)
    with pytest.raises(InUse, match='kill -- -[0-9]+') as said:
        hold(folder)
    group = re.search('kill -- -([0-9]+)', str(said.value))[1]
    os.killpg(int(group), signal.SIGTERM)  # as the message says
    with hold(folder):
        assert not _alive(child)


# --- values ---


@pytest.mark.parametrize(
    'given, words',
    [
        (['-p', 'learning_rate=fast'], "learning_rate='fast': give a number"),
        (['-p', 'conditional=ja'], "conditional='ja': give true or false"),
        (['-p', 'epochs=2.5'], "epochs='2.5': give a whole number"),
        (['-p', 'seed=2026-11-26'], 'seed='),
        (['-p', 'labels=[a'], 'labels='),
        (['-p', 'labels={a: b}'], 'give a list'),
        (['-p', 'label="a'], None),
        (['--json', '{'], '--json: not readable as JSON'),
        (['--json', '[1]'], '--json: [1] is no object'),
        (['--json', '{"label": false}'], 'label=False: give text'),
        (['-p', 'epochs='], "epochs='': give a whole number"),
    ],
)
def test_value_of_another_type_is_one_line(tmp_path, capfd, monkeypatch, given, words):
    monkeypatch.setattr('papermill.execute_notebook', lambda *a, **k: None)
    command = ['run', str(RUNS / 'train_dcgan.ipynb'), str(tmp_path / 'out.ipynb'), *given]
    code, said = cli.main(command), capfd.readouterr().err
    if words is None:
        assert code == 0 and not said
    else:
        assert code == 2 and words in said and said.count('\n') == 1


def test_text_stays_text_and_numbers_become_numbers(tmp_path, monkeypatch):
    taken = {}
    monkeypatch.setattr('papermill.execute_notebook', lambda *a, **k: taken.update(a[2]))
    given = [
        'learning_rate=1e-4',
        'label=no',
        'name=010',
        'paper=2026-11-26',
        'dataset="on"',
        'labels=[yes, 010, 1e3]',
        'conditional=true',
        'epochs=1e3',
    ]
    command = ['run', str(RUNS / 'train_dcgan.ipynb'), str(tmp_path / 'out.ipynb')]
    for one in given:
        command += ['-p', one]
    assert cli.main(command) == 0
    assert taken == {
        'learning_rate': 1e-4,
        'label': 'no',
        'name': '010',
        'paper': '2026-11-26',
        'dataset': 'on',
        'labels': ['yes', '010', '1e3'],
        'conditional': True,
        'epochs': 1000,
    }


@pytest.mark.parametrize(
    'old, new, words',
    [
        ('epochs: 12', 'epochs: many', "head_ct.train_dcgan.epochs='many': give a whole number"),
        ('seed: 0', 'seed: x', "head_ct.seed='x': give a whole number"),
        ('labels: [hemorrhage, normal]', 'labels: normal', 'head_ct.labels='),
        (
            'train_dcgan: {epochs: 12, sheets: 4}',
            'train_dcgan: 12',
            'head_ct.train_dcgan must hold',
        ),
        ('latent: 400', 'latent: all', "gans.latent_400.latent='all'"),
        (
            'vgg16: {protocol: ct_report-vgg16, epochs: 1',
            'vgg16: {protocol: ct_report-vgg16, epochs: ein',
            "vgg16.epochs='ein'",
        ),
        ('papers:', 'papers: 5 #', 'papers must hold'),
        ('sheets: 4}', 'sheets: 4', 'not readable as YAML'),
    ],
)
def test_profile_with_a_value_of_another_type(tmp_path, old, new, words):
    text = (profiles.PROFILES / 'smoke.yaml').read_text()
    assert old in text
    text = text.replace(old, new, 1) if 'papers' not in old else 'data: phantom\npapers: 5\n'
    (tmp_path / 'mine.yaml').write_text(text)
    with pytest.raises(InputError) as e:
        profiles.load_profile(tmp_path / 'mine.yaml')
    assert words in str(e.value) and 'mine.yaml' in str(e.value) and '\n' not in str(e.value)


def test_profile_reads_values_as_declared(tmp_path):
    text = (profiles.PROFILES / 'smoke.yaml').read_text()
    for old, new in (
        ('labels: [hemorrhage, normal]', 'labels: [no, 010]'),
        ('epochs: 12', 'learning_rate: 1e-4, epochs: 12'),
        ('gradient_penalty: 0', 'gradient_penalty: 1e1'),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / 'mine.yaml').write_text(text)
    papers = profiles.load_profile(tmp_path / 'mine.yaml')['papers']
    assert papers['head_ct']['labels'] == ['no', '010']
    assert papers['head_ct']['train_dcgan']['learning_rate'] == 1e-4
    assert papers['ct_report']['train_dcgan']['gradient_penalty'] == 10
    each = {'COVID': 28, 'Lung_Opacity': 28, 'Normal': 30, 'Viral Pneumonia': 26}
    assert papers['wmlq2022']['prepare']['each'] == each


def test_settings_take_numbers_for_numbers():
    from gan_covid.protocols import Protocol
    from gan_covid.stylegan2.settings import Config

    from_text = Config(lr='1e-4', batch='8', ceiling='null', first='[4, 4]')
    assert from_text == Config(lr=1e-4, batch=8, ceiling=None, first=(4, 4))
    assert Protocol(learning_rate='1e-4', patience=None).learning_rate == 1e-4
    for make, name, value in (
        (Config, 'kimg', 'ten'),
        (Config, 'kimg', None),
        (Config, 'bf16', 'ja'),
        (Config, 'mirror', 'x'),
        (Config, 'p', False),
        (Config, 'augment', 5),
        (Config, 'seed', '1.5'),
        (Protocol, 'dropout', 'much'),
        (Protocol, 'learning_rate', True),
        (Protocol, 'restore_best', 'perhaps'),
        (Protocol, 'size', 'big'),
    ):
        with pytest.raises(InputError, match=f'{name}='):
            make(**{name: value})


def test_command_train_checks_its_settings(capfd):
    for given, words in (
        ('lr=fast', "lr='fast': give a number"),
        ('mirror=ja', 'mirror='),
        ('batch=[', 'batch='),
    ):
        assert cli.main(['train', 'stylegan2', 'nowhere', 'out', '-p', given]) == 2
        assert words in (said := capfd.readouterr().err) and said.count('\n') == 1


@pytest.mark.parametrize('path', sorted(RUNS.glob('*.ipynb')), ids=lambda p: p.stem)
def test_every_parameter_declares_a_type_that_is_checked(path):
    known = notebooks.parameters_of(path)
    assert not [name for name, p in known.items() if p['kind'] in (object, list, dict)]


# --- paths ---


@pytest.mark.slow
def test_relative_paths_start_where_the_user_stands(tmp_path, monkeypatch, capfd):
    (tmp_path / 'mine.yaml').write_text((profiles.PROFILES / 'smoke.yaml').read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('PYTHONPATH', raising=False)
    command = 'reproduce --profile mine.yaml --paper head_ct --work w --dry-run --jobs 1'
    assert cli.main(command.split()) == 0, capfd.readouterr().err
    assert (tmp_path / 'w' / 'mine.config.json').exists()


def test_files_named_in_a_profile_start_where_the_user_stands(tmp_path, monkeypatch):
    text = (profiles.PROFILES / 'smoke.yaml').read_text()
    old = 'train_stylegan2: {kimg: 0.6,'
    assert old in text
    text = text.replace(old, 'train_stylegan2: {init: first.safetensors, kimg: 0.6,', 1)
    (tmp_path / 'mine.yaml').write_text(text)
    monkeypatch.chdir(tmp_path)
    words = 'wmlq2022.train_stylegan2.init: .*first.safetensors not found'
    with pytest.raises(InputError, match=words):
        profiles.load_profile('mine.yaml')
    (tmp_path / 'first.safetensors').touch()
    monkeypatch.chdir(ROOT)
    profile = profiles.load_profile(tmp_path / 'mine.yaml', tmp_path)
    init = profile['papers']['wmlq2022']['train_stylegan2']['init']
    assert init == str(tmp_path / 'first.safetensors')
    assert profile['path'] == str(tmp_path / 'mine.yaml')


# --- late failures and errors of the system ---


def _notebook(path, code, kernelspec=True):
    "Write a notebook with a title, one parameter `x`, and a cell of code."
    empty = {'cell_type': 'code', 'outputs': [], 'execution_count': None}
    cells = [
        {'cell_type': 'markdown', 'metadata': {}, 'source': '# x'},
        {'metadata': {'tags': ['parameters']}, 'source': 'x: int = 1  # a number', **empty},
        {'metadata': {}, 'source': code, **empty},
    ]
    kernel = {'name': 'python3', 'language': 'python', 'display_name': 'x'}
    metadata = {'kernelspec': kernel} if kernelspec else {}
    found = {'cells': cells, 'metadata': metadata, 'nbformat': 4, 'nbformat_minor': 4}
    path.write_text(json.dumps(found))
    return path


def test_notebook_without_kernelspec_runs(tmp_path):
    nb = _notebook(tmp_path / 'a{b}.ipynb', 'assert x == 2', kernelspec=False)
    notebooks.run_notebook(nb, tmp_path / 'out{1}.ipynb', {'x': '2'})
    assert (tmp_path / 'out{1}.ipynb').exists()


KILLED = 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'
FULL = 'raise OSError(28, "No space left on device", "/data/x.npy")'


def _run(tmp_path, capfd, code):
    "Last line of what `gan-covid run` says of a notebook with this code; it must fail."
    notebook = _notebook(tmp_path / 'n.ipynb', code)
    assert cli.main(['run', str(notebook), str(tmp_path / 'out.ipynb')]) == 2
    return capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    'code, words',
    [
        (KILLED, 'ended from outside.*memory ran out.*--jobs 1'),
        (FULL, '/data/x.npy: no space left on the disk'),
    ],
)
def test_kernel_that_is_killed_or_meets_the_system_says_so_in_one_line(
    tmp_path, capfd, code, words
):
    last = _run(tmp_path, capfd, code)
    assert last.startswith('gan-covid: ') and re.search(words, last), last


@pytest.mark.parametrize(
    'name, value, words',
    [
        ('MemoryError', '8 GiB', 'memory ran out: 8 GiB'),
        (
            'PermissionError',
            "[Errno 13] Permission denied: '/data/x.npy'",
            '/data/x.npy: no permission',
        ),
    ],
)
def test_errors_in_a_notebook_are_one_line(tmp_path, capfd, monkeypatch, name, value, words):
    "As above, without starting a kernel."

    def fails(*_, **__):
        raise papermill.exceptions.PapermillExecutionError(2, 2, 'code', name, value, [])

    monkeypatch.setattr('papermill.execute_notebook', fails)
    last = _run(tmp_path, capfd, '1')
    assert last.startswith('gan-covid: ') and words in last, last


@pytest.mark.parametrize(
    'number, words',
    [(errno.ENOSPC, 'no space left'), (errno.EROFS, 'read-only'), (errno.EACCES, 'no permission')],
)
def test_executed_copy_that_cannot_be_written_is_one_line(
    tmp_path, capfd, monkeypatch, number, words
):
    def write(self, text, path):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(papermill.iorw.LocalHandler, 'write', write)
    notebook = _notebook(tmp_path / 'n.ipynb', '1')
    assert cli.main(['run', str(notebook), str(tmp_path / 'out.ipynb')]) == 2
    said = capfd.readouterr().err
    assert all(w in said for w in (words, 'out.ipynb', 'same command')) and 'Traceback' not in said


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_errors_of_the_system_are_one_line_from_every_command(tmp_path, capfd, monkeypatch, number):
    def mkdir(self, *a, **k):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, 'mkdir', mkdir)
    for command in (
        ['data', 'fetch', 'head_ct', str(tmp_path / 'd')],
        ['phantoms', 'head_ct', str(tmp_path / 'p'), '-n', '2'],
        ['run', str(RUNS / 'prepare.ipynb'), str(tmp_path / 'x' / 'o.ipynb')],
        ['reproduce', '--work', str(tmp_path / 'w')],
    ):
        assert cli.main(command) == 2, command
        said = capfd.readouterr().err
        assert said.count('\n') == 1 and str(tmp_path) in said, said


def test_step_names_the_one_that_comes_first(tmp_path, capfd):
    "Tried with a step that loads no engine."
    command = [
        'run',
        str(RUNS / 'collect.ipynb'),
        str(tmp_path / 'out.ipynb'),
        '-p',
        f'work={tmp_path}',
    ]
    assert cli.main(command) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert 'record.json: not found' in last
    assert 'gan-covid run nbs/runs/prepare.ipynb prepare.ipynb -p dataset=covid_ct' in last
    assert 'gan-covid reproduce --profile small --paper ct_report' in last


# --- StyleGAN2 ---


def test_one_image_is_refused_before_the_training(tmp_path):
    from gan_covid.stylegan2 import training

    said, config = [], training.Config(kimg=0.064, batch=1, width=(64, 8), z_dim=8)
    image = np.zeros((1, 16, 16, 1), 'uint8')
    with pytest.raises(InputError, match='images: 1; a training needs at least 2'):
        training.train(image, config, tmp_path / 'out', device='cpu', progress=said.append)
    assert not said


def test_kimg_reached_before_the_first_snapshot(tmp_path):
    from gan_covid.stylegan2 import training

    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), dtype='uint8')

    def config(kimg):
        return training.Config(kimg=kimg, batch=8, width=(64, 8), z_dim=8)

    how = dict(
        device='cpu',
        tick_kimg=0.016,
        snapshot_ticks=10,
        sheet_images=4,
        distance_images=16,
        checkpoint_seconds=0,
    )

    def stop(line):
        if line.startswith('kimg 0.032'):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(images, config(0.064), tmp_path / 'out', progress=stop, **how)
    found = training.train(images, config(0.032), tmp_path / 'out', progress=None, **how)
    assert found['kimg'] == found['last']['kimg'] == found['best']['kimg'] == 0.032
    assert (tmp_path / 'out' / found['last']['file']).exists()
    again = training.train(images, config(0.032), tmp_path / 'out', progress=None, **how)
    assert again['sha256'] == found['sha256'] and again['last'] == found['last']


@pytest.mark.slow
def test_example_of_the_readme(tmp_path, monkeypatch):
    "The Python that README shows, with less training."
    (code,) = re.findall('```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    assert 'kimg=0.1' in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace('kimg=0.1', 'kimg=0.016'), {})
    assert len(list(Path('samples').rglob('*.png'))) == 16
