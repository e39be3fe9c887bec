"""What is shipped: records that are whole, a manifest with every id, figures that need no engine, and a wheel
that does its work in any folder, installed beside only what it depends on."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from gan_covid.arms import LEAKY, named
from gan_covid.manifest import Manifest
from gan_covid.published import ids
from gan_covid.records import find_records, read_json, verify_record

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'workflow'))
import notebooks  # noqa: E402  not of the package

TABLES = '.csv', '.md', '.tex'
PROFILES = sorted(p.parent for p in (ROOT / 'figures').glob('*/manifest.json'))
NOTEBOOKS = sorted((ROOT / 'nbs' / 'papers').glob('*.ipynb'))
MOST = 60 * 2**20  # bytes of the wheel: what travels is chosen in setup.py
SHIPPED = sorted({(r['profile'], r['paper']) for r in find_records(ROOT / 'records')})


def test_smoke_and_small_are_shipped():
    assert {p.name for p in PROFILES} >= {'smoke', 'small'} and {
        ('smoke', 'head_ct'),
        ('small', 'head_ct'),
    } <= set(SHIPPED)


@pytest.mark.parametrize('folder', PROFILES, ids=lambda p: p.name)
def test_every_id_of_a_shipped_paper_has_its_files(folder):
    mine = [paper for profile, paper in SHIPPED if profile == folder.name]
    # of a paper whose GANs have not been run yet there are records only
    papers = [paper for paper in mine if (folder / paper).is_dir()]
    assert papers and Manifest.check(folder, papers=papers) == []
    assert all(f'id="{i}"' in (folder / 'index.html').read_text() for p in papers for i in ids(p))


@pytest.mark.parametrize('profile, paper', SHIPPED)
def test_records_are_whole_and_no_gan_saw_a_test_image(profile, paper):
    found = find_records(ROOT / 'records', profile, paper)
    assert [p for r in found for p in verify_record(r)] == []
    assert {r['data']['kind'] for r in found} == {'phantom' if profile == 'smoke' else 'real'}
    generated = [r for r in found if r['step'] == 'generate']
    leaky = [r for r in generated if re.sub(r'-\d+$', '', r['name']) in LEAKY]
    clean = [r for r in generated if r not in leaky]
    assert clean or (profile == 'medium' and not generated)
    assert all(
        r['results']['test_images_seen'] == 0 and r['results']['trained_on'] > 0 for r in clean
    )
    published = [r for r in leaky if r['name'].startswith('published')]
    assert all(r['results']['test_images_seen'] for r in published)  # there to show a leak
    steps = 'classify', 'classify_frozen'
    repeats = [r for c in found if c['step'] in steps for r in c['results']['repeats']]
    assert repeats
    assert all((r['leaked'] == []) == (named(r['arm'])[1] not in LEAKY) for r in repeats)


def test_no_picture_of_a_patient_is_tracked():
    tracked = subprocess.run(
        ['git', 'ls-files', 'figures', 'records'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split('\n')
    assert not [f for f in tracked if '.local.' in f]
    for folder in PROFILES:
        for id, item in read_json(folder / 'manifest.json')['items'].items():
            if any('.local.' in f for f in item['files']):
                assert item['local'], f'{folder.name}/{id}'


@pytest.fixture(scope='module')
def redrawn(tmp_path_factory):
    "All figures of `small`, drawn by one command where TensorFlow, torch and keras cannot be imported."
    tmp = tmp_path_factory.mktemp('redrawn')
    (tmp / 'block').mkdir()
    for engine in ('tensorflow', 'torch', 'keras'):
        refusal = f"raise ImportError('{engine} is not to be loaded here')\n"
        (tmp / 'block' / f'{engine}.py').write_text(refusal)
    folders = {name: str(tmp / name) for name in ('figures', 'work')}
    folders['records'] = str(ROOT / 'records')
    options = [text for name, folder in folders.items() for text in (f'--{name}', folder)]
    command = [sys.executable, '-m', 'gan_covid.cli', 'figures', '--profile', 'small', *options]
    env = {**os.environ, 'PYTHONPATH': str(tmp / 'block')}
    subprocess.run(command, check=True, env=env, cwd=ROOT)
    return tmp


@pytest.mark.slow
@pytest.mark.parametrize('paper', [paper for profile, paper in SHIPPED if profile == 'small'])
def test_figures_are_redrawn_without_engines_to_the_same_tables(redrawn, paper):
    "The shipped tables byte for byte; and pictures of patients are marked so, whether they are here or not."
    shipped, redrawn = (folder / 'figures' / 'small' for folder in (ROOT, redrawn))
    tables = {p.name: p.read_bytes() for p in (shipped / paper).iterdir() if p.suffix in TABLES}
    assert tables
    changed = [t for t, text in tables.items() if (redrawn / paper / t).read_bytes() != text]
    assert changed == []
    ours, theirs = (read_json(f / 'manifest.json')['items'] for f in (redrawn, shipped))
    local = {i: v['local'] for i, v in theirs.items() if v['paper'] == paper}
    assert {i: v['local'] for i, v in ours.items() if v['paper'] == paper} == local


def said(notebook) -> list:
    "Everything that a notebook says in words, cell by cell."
    # the plain text of a table is as wide as the window; its HTML says the same
    kinds = 'text/markdown', 'text/html', 'text/plain'
    out = []
    for n, cell in enumerate(notebook.cells, 1):
        for o in cell.get('outputs', []):
            data = o.get('data', {})
            shown = next((data[k] for k in kinds if k in data), '')
            out += [(n, ''.join(text)) for text in (o.get('text', ''), shown) if text]
    return [(n, text) for n, text in out if not text.startswith('<Figure')]


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_stored_is_what_the_code_says_now(redrawn, path):
    "Also where a module behind the notebook has changed: `make notebooks NOTEBOOK=…` stores it anew."
    stored = nbformat.read(path, as_version=4)
    now = nbformat.read(redrawn / 'work' / 'small' / 'notebooks' / path.name, as_version=4)
    now.cells = [c for c in now.cells if 'injected-parameters' not in c.metadata.get('tags', [])]
    notebooks.tidy(now, notebooks.PICTURE)
    assert said(now) == said(stored)


# --- the wheel


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_help_doctor_and_phantoms(call, tmp_path):
    assert 'figures' in call('--help').stdout
    said = call('doctor').stdout
    assert 'torch      not installed' in said and 'gan_covid/shipped' in said
    assert call('phantoms', 'head_ct', 'drawn', '-n', 3, '--size', 32).returncode == 0
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 6


@pytest.mark.slow
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


def files_of(folder: Path) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.slow
def test_figures_of_the_wheel_are_those_of_the_checkout(call, redrawn, tmp_path):
    "Every file of the figures of `small`, from the records that travel and from all of them."
    done = call('figures', '--profile', 'small')
    assert done.returncode == 0, done.stderr
    drawn, whole = (files_of(f / 'figures') for f in (tmp_path, redrawn))
    assert len(drawn) > 300 and drawn.keys() == whole.keys()
    # pages say where their notebooks and records lie, which is elsewhere
    figures = [p for p in drawn if p.suffix != '.html']
    assert not [str(p) for p in figures if drawn[p] != whole[p]]


@pytest.mark.slow
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
