"""Precision by machine, on both engines; devices, the environment of engines, and what `doctor` says.
A processor without bfloat16, a GPU and Apple's device are played."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from gan_covid import engines, protocols
from gan_covid.records import InputError, Run, environment, read_json

ROOT = Path(__file__).resolve().parent.parent
PLAIN, QUICK = {'sse2', 'avx2', 'avx512f'}, {'sse2', 'avx512_bf16', 'amx_bf16'}


def never():
    raise AssertionError('measured, where the processor could be asked')


@pytest.fixture
def plain(monkeypatch):
    "A processor without bfloat16."
    monkeypatch.setattr(engines, 'cpu_flags', lambda: PLAIN)
    for name in '_torch_ratio', '_keras_ratio':
        monkeypatch.setattr(engines, name, never)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(engines, 'cpu_flags', lambda: QUICK)


# --- what auto takes


def test_auto_is_float32_where_the_processor_has_no_bfloat16(plain):
    assert engines.choose_bf16('auto') == (False, 'the processor has no bfloat16 instructions')
    assert engines.choose_precision('auto') == (
        'float32',
        'the processor has no bfloat16 instructions',
    )


def test_auto_is_bfloat16_where_the_processor_has_it(quick):
    assert engines.choose_bf16('auto') == (True, 'the processor has amx_bf16 and avx512_bf16')
    assert engines.choose_precision('auto')[0] == 'mixed_bfloat16'


def test_a_card_is_asked(monkeypatch):
    import torch

    for capability, expected in ((7, 5), False), ((8, 0), True), ((9, 0), True):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
        assert engines.choose_bf16('auto', 'cuda:1')[0] is expected


def test_flags_of_linux(monkeypatch):
    x86 = 'processor\t: 0\nmodel name\t: A\nflags\t\t: fpu sse2 avx512_bf16\n\n'
    x86 += 'processor\t: 1\nflags\t\t: fpu\n'
    arm = 'processor\t: 0\nFeatures\t: fp asimd bf16\n'
    for text, expected in (
        (x86, {'fpu', 'sse2', 'avx512_bf16'}),
        (arm, {'fp', 'asimd', 'bf16'}),
        ('', set()),
    ):
        monkeypatch.setattr(engines.Path, 'read_text', lambda self: text)
        assert engines.cpu_flags() == expected

    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(engines.Path, 'read_text', missing)
    assert engines.cpu_flags() == set()


def test_defaults_are_auto_everywhere():
    from gan_covid.dcgan import training as dcgan
    from gan_covid.notebooks import parameters_of
    from gan_covid.stylegan2 import training as stylegan2

    assert dcgan.Config().precision == stylegan2.Config().bf16 == 'auto'
    assert {p.precision for p in protocols.PROTOCOLS.values()} == {'auto'}
    runs = {'train_dcgan': 'precision', 'classify': 'precision', 'train_stylegan2': 'bf16'}
    for run, name in runs.items():
        default = parameters_of(ROOT / 'nbs' / 'runs' / f'{run}.ipynb')[name]['default']
        assert ast.literal_eval(default) == 'auto'


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'workflow' / 'configs').glob('*.yaml')), ids=lambda p: p.stem
)
def test_no_profile_asks_for_bfloat16(path):
    def asked(value):
        "All values of precision and bf16, at any depth."
        found = []
        if isinstance(value, dict):
            found = [v for k, v in value.items() if k in ('precision', 'bf16')]
            value = list(value.values())
        if isinstance(value, list):
            found += [a for v in value for a in asked(v)]
        return found

    assert set(asked(yaml.safe_load(path.read_text(encoding='utf-8')))) <= {'auto'}


def test_networks_that_gain_nothing_stay_in_float32(quick):
    from gan_covid.dcgan.training import Config

    def settled(p):
        return p.settled()[0].precision

    assert settled(protocols.protocol('wmlq2022-efficientnetb0')) == 'float32'
    assert settled(protocols.protocol('ct_report-vgg16')) == 'mixed_bfloat16'
    assert settled(Config(networks='cgan_32', classes=2)) == 'float32'
    assert settled(Config(networks='cgan_64', classes=2)) == 'mixed_bfloat16'


@pytest.mark.parametrize('value', ['bfloat16', 'ja', True, None])
def test_what_is_no_precision(value):
    from gan_covid.dcgan import training as dcgan
    from gan_covid.stylegan2 import training as stylegan2

    with pytest.raises(InputError, match='precision='):
        dcgan.Config(precision=value)
    if value is not True:
        with pytest.raises(InputError, match='bf16='):
            stylegan2.Config(bf16=value)


# --- StyleGAN2: first line, record, resume

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), dtype='uint8')


def stylegan2(folder, kimg=0.016, **settings):
    from gan_covid.stylegan2.settings import Config
    from gan_covid.stylegan2.training import train

    said = []
    config = Config(
        kimg=kimg,
        batch=8,
        width=(64, 8),
        z_dim=8,
        mapping_layers=1,
        pl_weight=0,
        ada='none',
        **settings,
    )
    return train(
        IMAGES,
        config,
        folder,
        device='cpu',
        tick_kimg=0.008,
        snapshot_ticks=0,
        sheet_images=2,
        distance_images=8,
        checkpoint_seconds=0,
        progress=said.append,
    ), said


@pytest.mark.slow
def test_stylegan2_says_what_it_computes_in_and_keeps_it_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, 'cpu_flags', lambda: QUICK)
    r, said = stylegan2(tmp_path / 'moved', kimg=0.008)
    why = 'the processor has amx_bf16 and avx512_bf16'
    assert said[0].startswith(f'StyleGAN2-ADA: bfloat16 ({why}), torch ')
    assert said[0].endswith(' on cpu')
    assert (r['precision'], r['precision_why'], r['settings']['bf16']) == ('bfloat16', why, True)
    whole = stylegan2(tmp_path / 'stayed', kimg=0.016)[0]
    monkeypatch.setattr(engines, 'cpu_flags', lambda: PLAIN)
    r, said = stylegan2(tmp_path / 'moved', kimg=0.016)
    kept = 'as in the checkpoint; a new training would take float32 here'
    assert said[0].startswith(f'StyleGAN2-ADA: bfloat16 ({kept}') and 'after 0.008' in said[1]
    assert r['precision'] == 'bfloat16' and r['sha256'] == whole['sha256']
    with pytest.raises(InputError, match='bf16: True there, False here'):
        stylegan2(tmp_path / 'moved', kimg=0.024, bf16=False)


# --- DCGAN and classifiers


def dcgan(folder, epochs=1, **settings):
    from gan_covid.dcgan.training import Config, train

    said, x = [], np.random.default_rng(0).random((4, 32, 32, 1), 'float32')
    return train(
        x,
        Config(
            networks='ct_report_32',
            epochs=epochs,
            batch=4,
            gradient_penalty=0.0,
            seed=1,
            **settings,
        ),
        folder,
        sheets=0,
        checkpoint_seconds=0,
        progress=said.append,
    ), said


@pytest.mark.slow
def test_dcgan_says_and_keeps_its_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, 'cpu_flags', lambda: PLAIN)
    r, said = dcgan(tmp_path)
    why = 'the processor has no bfloat16 instructions'
    assert said[0].startswith(f'DCGAN ct_report_32: float32 ({why}), Keras ')
    assert r['precision'] == 'float32'
    monkeypatch.setattr(engines, 'cpu_flags', lambda: QUICK)
    if engines._keras_device()[0] != 'cpu':
        pytest.skip('Keras computes on an accelerator here')
    r, said = dcgan(tmp_path, epochs=2)
    assert (
        said[0].startswith(
            'DCGAN ct_report_32: float32 (as in the checkpoint; a new training would take mixed_bfloat16 here'
        )
        and said[1].startswith('resuming after epoch 1')
        and r['precision'] == 'float32'
    )
    with pytest.raises(InputError, match='precision differ'):
        dcgan(tmp_path, epochs=3, precision='mixed_bfloat16')


@pytest.mark.slow
def test_checkpoint_of_another_backend_is_not_mixed_in(tmp_path):
    dcgan(tmp_path)
    with np.load(tmp_path / 'checkpoint.npz') as f:
        state = dict(f)
    about = json.loads(str(state['about']))
    state['about'] = json.dumps({**about, 'backend': 'other'})
    np.savez(tmp_path / 'checkpoint.npz', **state)
    with pytest.raises(InputError, match='KERAS_BACKEND=other'):
        dcgan(tmp_path, epochs=2)


def test_classifier_says_and_keeps_its_precision(tmp_path, monkeypatch):
    from gan_covid import classifier_training

    if engines._keras_device()[0] != 'cpu':
        pytest.skip('Keras computes on an accelerator here')
    # the smallest network, as if it gained
    network = dataclasses.replace(protocols.NETWORKS['ct_cnn'], slow='')
    monkeypatch.setitem(protocols.NETWORKS, 'ct_cnn', network)
    x, y, said = np.random.default_rng(0).random((8, 32, 32, 1), 'float32'), np.arange(8) % 2, []
    p = protocols.protocol(
        'ct_report-ct_cnn', size=32, epochs=2, weights='random', batch=8, stop_accuracy=None
    )

    def train(progress):
        data = (x, y), (x, y)
        return classifier_training.train(
            p, *data, 0, tmp_path, progress=progress, checkpoint_seconds=0
        )

    class Killed(Exception):
        pass

    def killed(line):
        said.append(line)
        if line.startswith('epoch 2'):
            raise Killed

    monkeypatch.setattr(engines, 'cpu_flags', lambda: PLAIN)
    with pytest.raises(Killed):
        train(killed)
    why = 'the processor has no bfloat16 instructions'
    assert said[0].startswith(f'ct_cnn at 32 pixels: float32 ({why}), Keras ')
    monkeypatch.setattr(engines, 'cpu_flags', lambda: QUICK)
    said.clear()
    r = train(said.append)
    kept = 'as in the checkpoint; a new training would take mixed_bfloat16 here'
    assert said[0].startswith(f'ct_cnn at 32 pixels: float32 ({kept}')
    assert 'resumes after epoch 1' in said[1] and r.precision == 'float32'
    assert r.as_record()['precision_why'].startswith('as in the checkpoint')
    assert r.model.layers[-2].compute_dtype == 'float32'


def test_record_and_key(tmp_path):
    """What was used stands in the record; the key holds the wish, so that the same run is found on
    another machine."""
    assert environment('A100', 'bfloat16')['precision'] == 'bfloat16'
    assert 'precision' not in environment()
    parameters = {'precision': 'auto'}
    run = Run(tmp_path, 'smoke', 'head_ct', 'train_dcgan', 'a', parameters)
    run.finish({'precision': 'float32'}, precision='float32')
    again = Run(tmp_path, 'smoke', 'head_ct', 'train_dcgan', 'a', parameters)
    assert again.finished
    assert {again.record[part]['precision'] for part in ('environment', 'results')} == {'float32'}


def finish_arguments(run):
    "Names of the keywords with which a run notebook ends its record."
    calls = []
    for cell in read_json(ROOT / 'nbs' / 'runs' / f'{run}.ipynb')['cells']:
        if cell['cell_type'] == 'code':
            nodes = ast.walk(ast.parse(''.join(cell['source'])))
            calls += [n for n in nodes if isinstance(n, ast.Call)]
    (call,) = [n for n in calls if getattr(n.func, 'attr', '') == 'finish']
    return {keyword.arg for keyword in call.keywords}


@pytest.mark.parametrize('run', ['train_dcgan', 'train_stylegan2', 'classify', 'generate', 'score'])
def test_records_name_the_device_and_the_precision(run):
    wanted = {'device'} if run in ('generate', 'score') else {'device', 'precision'}
    assert wanted <= finish_arguments(run)


# --- devices


STAND_IN = """
import os
assert os.environ.get('CUBLAS_WORKSPACE_CONFIG') == ':4096:8'
assert os.environ['TF_NUM_INTRAOP_THREADS'] == '3', 'TensorFlow takes all cores of the machine'
class cuda:
    is_available = staticmethod(lambda: False)
"""


def test_environment_is_set_before_an_engine_is_imported(tmp_path):
    "cuBLAS reads its workspace once: the variable has to stand there before torch asks for a device."
    for name in ('triton', 'torch', 'keras'):
        (tmp_path / f'{name}.py').write_text(STAND_IN)
    own = 'CUBLAS_WORKSPACE_CONFIG', 'TF_NUM_INTRAOP_THREADS'
    env = {k: v for k, v in os.environ.items() if k not in own}
    env |= {'KERAS_BACKEND': 'torch', 'OMP_NUM_THREADS': '3', 'PYTHONPATH': str(tmp_path)}
    code = 'import sys; from gan_covid.engines import load_keras; print(load_keras().__file__)'
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert r.returncode == 0 and str(tmp_path) in r.stdout, r.stderr


@pytest.mark.parametrize('driver', ['/dev/nvidiactl', '/dev/dxg', '/dev/kfd'])
def test_gpu_is_looked_for_on_linux_windows_linux_and_amd(monkeypatch, driver):
    import torch

    monkeypatch.setattr(engines.os.path, 'exists', lambda p: p == driver)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert engines._gpu()


def test_a_job_that_may_use_fewer_cores_gets_as_many_threads(monkeypatch):
    for name in 'OMP_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS':
        monkeypatch.setenv(name, 'x')
        monkeypatch.delenv(name)
    monkeypatch.setattr(
        engines, 'core_limits', lambda: {'machine': 64, 'affinity': 64, 'container': 4}
    )
    engines.repeatable()
    assert os.environ['OMP_NUM_THREADS'] == os.environ['TF_NUM_INTRAOP_THREADS'] == '4'


def test_device_is_the_one_that_keras_takes(monkeypatch):
    "On Apple's GPU, and with KERAS_TORCH_DEVICE, Keras computes elsewhere than torch.cuda says."

    mps = SimpleNamespace(device=SimpleNamespace(type='mps'))
    fake = SimpleNamespace(
        backend=SimpleNamespace(backend=lambda: 'torch'),
        ops=SimpleNamespace(convert_to_tensor=lambda x: mps),
    )
    monkeypatch.setattr(engines, 'load_keras', lambda: fake)
    monkeypatch.setattr(engines, 'torch_device_name', lambda device: device.type)
    assert engines.device_name() == 'mps'
    assert engines.choose_precision('auto') == ('float32', 'bfloat16 is not used on mps')


# --- doctor


def test_doctor_in_an_environment_without_engines(tmp_path):
    code = """
        import importlib.util as u, sys
        find = u.find_spec
        hidden = "torch", "tensorflow", "keras", "triton"
        u.find_spec = lambda n, *a: None if n in hidden else find(n, *a)
        from gan_covid.cli import main
        sys.exit(main(["doctor"]))
    """
    command = [sys.executable, '-c', textwrap.dedent(code)]
    r = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert r.returncode == 0 and not r.stderr, r.stderr
    assert r.stdout.count('not installed') == 3 and 'make setup' in r.stdout


@pytest.mark.slow
def test_doctor_says_what_is_broken_and_what_is_there(tmp_path):
    "A torch that cannot be loaded is one line, and not a traceback; the others are asked all the same."
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / '__init__.py').write_text(
        "raise OSError('libcudart.so.13: cannot open shared object file')\n"
    )
    env = {**os.environ, 'PYTHONPATH': str(tmp_path), 'KERAS_BACKEND': 'tensorflow'}
    r = subprocess.run(
        [sys.executable, '-m', 'gan_covid.cli', 'doctor', '--work', str(tmp_path / 'work')],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
    )
    assert r.returncode == 1 and 'Traceback' not in r.stdout + r.stderr, r.stdout + r.stderr
    rows = {line.split()[0]: line for line in r.stdout.splitlines()}
    assert 'does not load: OSError: libcudart.so.13' in rows['torch']
    assert 'precision=auto is' in rows['keras'] and ' on cpu' in rows['tensorflow']
    assert {'gan_covid', 'python', 'processor', 'cores', 'memory', 'disk'} <= set(rows)
