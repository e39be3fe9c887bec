"""The wheel, installed beside only what it depends on, does its work in any folder."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST = 60 * 2**20  # bytes of the wheel: what travels is chosen in setup.py
pytestmark = pytest.mark.slow


def name_of(requirement: str) -> str:
    return re.sub('[-_.]+', '-', requirement).lower()


def locked() -> set:
    "The packages that the package itself depends on, directly or not."
    text = (ROOT / 'requirements-figures.lock').read_text(encoding='utf-8')
    return {name_of(n) for n in re.findall(r'^([\w.-]+)==', text, re.M)}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built without a trace in the checkout."
    out = tmp_path_factory.mktemp('wheel')
    build = ['egg_info', '--egg-base', out, 'build', '--build-base', out / 'build']
    build += ['bdist_wheel', '--bdist-dir', out / 'bdist', '--dist-dir', out / 'dist']
    command = [sys.executable, 'setup.py', '--quiet', *map(str, build)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next((out / 'dist').glob('*.whl'))


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel and what it depends on, and no engine.

    The packages are links to those that are installed here, so that no network is needed."""
    env = tmp_path_factory.mktemp('env')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(env)], check=True)
    site = next(env.glob('lib/python*/site-packages'))
    for dist in importlib.metadata.distributions():
        if name_of(dist.metadata['Name']) not in locked():
            continue
        for top in {f.parts[0] for f in dist.files or []} - {'..', '__pycache__'}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(dist.locate_file(top)).resolve())
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    return env / 'bin' / 'python'


@pytest.fixture
def call(python, tmp_path):
    "Calls gan-covid in an empty folder."
    hidden = 'PYTHONPATH', 'PYTHONHOME', 'GAN_COVID_DATA', 'VIRTUAL_ENV'
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    # where nbconvert's templates lie; an installer puts them into the environment
    env['JUPYTER_PATH'] = str(Path(sys.prefix) / 'share' / 'jupyter')

    def run(*arguments):
        command = [str(python), '-m', 'gan_covid.cli', *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_the_wheel_is_small_and_holds_notebooks_workflow_and_records(wheel):
    assert wheel.stat().st_size < MOST
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    shipped = [n.removeprefix('gan_covid/shipped/') for n in names if '/shipped/' in n]
    for folder, ending in (
        ('nbs/runs', '.ipynb'),
        ('nbs/papers', '.ipynb'),
        ('workflow/configs', '.yaml'),
    ):
        there = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).glob(f'*{ending}')}
        assert there and there <= set(shipped)
    assert 'workflow/Snakefile' in shipped and 'workflow/profiles/slurm/config.yaml' in shipped
    assert any(n.startswith('records/medium/') for n in shipped)
    assert not [n for n in names if n.startswith(('tests/', 'figures/')) or '.local.' in n]


def test_help_doctor_and_phantoms(call, tmp_path):
    assert 'figures' in call('--help').stdout
    said = call('doctor').stdout
    assert 'torch      not installed' in said and 'gan_covid/shipped' in said
    assert call('phantoms', 'head_ct', 'drawn', '-n', 3, '--size', 32).returncode == 0
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 6


@pytest.mark.parametrize(
    'command, package, extra',
    [
        ('reproduce', 'snakemake', 'workflow'),
        ('train stylegan2 drawn out', 'torch', 'engines'),
        ('generate network.safetensors out', 'torch', 'engines'),
    ],
)
def test_what_is_missing_is_said_in_one_line(call, command, package, extra):
    call('phantoms', 'head_ct', 'drawn', '-n', 3, '--size', 32)
    done = call(*command.split())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert package in done.stderr and re.search(rf'gan_covid\[.*{extra}.*\]', done.stderr)


def test_figures_are_those_of_the_checkout(call, tmp_path):
    "Every file of the phantoms' figures, from the records that travel and from all of them."
    done = call('figures', '--profile', 'smoke')
    assert done.returncode == 0, done.stderr
    folders = ['--records', ROOT / 'records', '--figures', 'all', '--work', 'work']
    command = [sys.executable, '-m', 'gan_covid.cli', 'figures', '--profile', 'smoke', *folders]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run([*map(str, command)], cwd=tmp_path, env=env, check=True, capture_output=True)
    drawn, whole = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob('*') if p.is_file()}
        for f in (tmp_path / 'figures', tmp_path / 'all')
    )
    assert len(drawn) > 300 and drawn.keys() == whole.keys()
    # pages say where their notebooks and records lie, which is elsewhere
    figures = [p for p in drawn if p.suffix != '.html']
    assert not [str(p) for p in figures if drawn[p] != whole[p]]


def test_code_hashes_are_those_of_the_checkout(python):
    "So a run begun with the package goes on in the checkout, and the other way round."
    code = 'from gan_covid import notebooks as n; print(n.code_hash(n.ROOT / "nbs/runs/classify.ipynb"))'
    places = (str(python), {'PYTHONPATH': ''}), (sys.executable, {'PYTHONPATH': str(ROOT)})
    said = [
        subprocess.run(
            [p, '-c', code], env=os.environ | e, check=True, capture_output=True, cwd='/'
        ).stdout
        for p, e in places
    ]
    assert said[0] == said[1] != b''
