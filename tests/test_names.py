"Names that become paths, rules and pages: whatever a user calls a class, a data set or a profile."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gan_covid import cli, notebooks, plots, profiles, style
from gan_covid.records import InputError, Run, convert, safe_name

ODD = [
    '..',
    'a/b',
    '/etc/passwd',
    'a{b}',
    '{params.notebook}',
    '-x',
    '.h',
    'x' * 300,
    '50%',
    "it's",
    'say "no"',
    'a b',
    'a\nb',
    "'; touch RAN; '",
    '$(touch RAN)',
    '`touch RAN`',
    '<b>$x_{$</b>',
]


def _profile(folder, name='mine.yaml', **changes):
    "A profile for images of one's own, with some keys of the paper changed."
    paper = {'dataset': 'mine', 'labels': ['yes', 'no'], 'arms': ['original'], **changes}
    (folder / name).write_text(yaml.safe_dump({'data': 'real', 'papers': {'head_ct': paper}}))
    return folder / name


@pytest.mark.parametrize('name', [n for n in ODD if safe_name(n) != n])
def test_a_name_that_is_no_part_of_a_path_is_refused(tmp_path, name):
    for changes in ({'dataset': name}, {'gans': {name: {}}}, {'classifiers': {name: {}}}):
        path = _profile(tmp_path, **changes)
        with pytest.raises(InputError, match='cannot be part of a path'):
            profiles.load_profile(path)
    with pytest.raises(InputError, match='cannot be the name of a folder'):
        Run(tmp_path / 'work', 'smoke', 'head_ct', 'prepare', name, {})
    assert not (tmp_path / 'work').exists()


def test_classes_may_be_called_anything_and_runs_stay_in_their_folder(tmp_path):
    path = _profile(tmp_path, labels=ODD, gans={'dcgan': {}, 'style': {'model': 'stylegan2'}})
    settings = profiles.load_profile(path)['papers']['head_ct']
    assert settings['labels'] == ODD and settings['positive'] == '..'
    runs = [r for model in profiles.MODELS for r in profiles.train_runs(settings, model).values()]
    assert [r['label'] for r in runs] == ODD * 2
    names = [r['name'] for r in runs]
    assert all(Path('a', name).parent == Path('a') and safe_name(name) == name for name in names)
    assert len({name.casefold() for name in names}) == len(names)


@pytest.mark.parametrize(
    'changes',
    [
        {'labels': ['\u00e9', 'e\u0301']},
        {'labels': ['Yes', 'yes']},
        {'gans': {'a': {}, 'A': {}}},
        {'labels': ['a-b', 'a'], 'gans': {'c': {'labels': ['a-b']}, 'b-c': {'labels': ['a']}}},
    ],
)
def test_two_names_for_one_folder_are_refused_with_both(tmp_path, changes):
    path = _profile(tmp_path, **changes)
    with pytest.raises(InputError, match=' and .*share the folder'):
        profiles.load_profile(path)


def test_name_of_a_profile_is_a_folder_too(tmp_path):
    name = profiles.load_profile(_profile(tmp_path, '50%{x} $(id).yaml'))['name']
    assert name == safe_name('50%{x} $(id)') != '50%{x} $(id)'
    path = _profile(tmp_path, 'small.yaml')
    with pytest.raises(InputError, match='comes with this package'):
        profiles.load_profile(path)


def test_a_paper_is_a_key_and_no_path(tmp_path):
    paper = '{dataset: head_ct, labels: [a, b], arms: [original]}'
    (tmp_path / 'p.yaml').write_text(f'data: phantom\npapers: {{../runs/score: {paper}}}')
    with pytest.raises(InputError, match='has no notebook'):
        profiles.load_profile(tmp_path / 'p.yaml')


# --- nothing that is given runs as code ---

FOR_A_SHELL = [
    '{params.notebook}',
    "it's",
    'say "no"',
    'a\nb',
    "'; touch RAN; '",
    '$(touch RAN)',
    '`touch RAN`',
]

# stands for the command that executes a notebook: notes how it was called, and writes a record
GAN_COVID = f"""#!{sys.executable}
import json, os, pathlib, sys
notebook, values = pathlib.Path(sys.argv[2]), json.loads(sys.argv[5])
with open(os.environ['CALLS'], 'a') as f:
    f.write(json.dumps(sys.argv[1:]) + chr(10))
base = pathlib.Path(values['work'])/values['profile']/values['paper']
record = base/notebook.stem/values.get('name', values['dataset'])/'record.json'
record.parent.mkdir(parents=True, exist_ok=True)
record.write_text('{{}}')
"""


@pytest.mark.slow
def test_the_workflow_hands_every_text_on_as_it_is(tmp_path, monkeypatch):
    folder = tmp_path / "it's $(touch RAN) `touch RAN`"
    folder.mkdir()
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'gan-covid').write_text(GAN_COVID)
    (tmp_path / 'bin' / 'gan-covid').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    path = _profile(folder, labels=FOR_A_SHELL, train_dcgan={'networks': '$(touch RAN)'})
    work, snakefile = folder / 'work', notebooks.ROOT / 'workflow' / 'Snakefile'
    config = {'profile': str(path), 'papers': ['head_ct'], 'data': str(folder), 'work': str(work)}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    given = {
        '--snakefile': snakefile,
        '--directory': work,
        '--configfile': tmp_path / 'config.json',
    }
    command = [sys.executable, '-m', 'snakemake', '--cores', '2', '--nolock', '--quiet', 'rules']
    command += ['--until', 'train_dcgan', *(str(v) for option in given.items() for v in option)]
    done = subprocess.run(command, cwd=notebooks.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = [json.loads(json.loads(c)[4]) for c in (tmp_path / 'calls').read_text().splitlines()]
    trained = [v for v in values if 'label' in v]
    assert {v['label'] for v in trained} == set(FOR_A_SHELL)
    assert {v['networks'] for v in trained} == {'$(touch RAN)'}
    assert not list(tmp_path.rglob('RAN')) and not (notebooks.ROOT / 'RAN').exists()
    assert {p.name for p in (folder / 'work' / 'mine').iterdir()} == {'head_ct', 'notebooks'}


def _cell(source, *tags):
    return {
        'cell_type': 'code',
        'id': 'b' + ''.join(tags)[:1],
        'metadata': {'tags': list(tags)},
        'execution_count': None,
        'outputs': [],
        'source': source,
    }


KERNEL = {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
NOTEBOOK = {
    'nbformat': 4,
    'nbformat_minor': 5,
    'metadata': {'kernelspec': KERNEL},
    'cells': [
        _cell("name: str = ''\nlabels: list = []\nout: str = ''", 'parameters'),
        _cell('import json, pathlib\npathlib.Path(out).write_text(json.dumps([name, labels]))'),
    ],
}

CODE = [
    '__import__("os").system("touch RAN")',
    '"; import os; os.system("touch RAN"); "',
    "''' + open('RAN', 'w').close() + '''",
    '\\"\nopen("RAN", "w")\n\\"',
    '{__import__("os").system("touch RAN")}',
    '%%bash\ntouch RAN',
    '!touch RAN',
    '\\',
]


def test_the_notebook_gets_every_text_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'n.ipynb').write_text(json.dumps(NOTEBOOK))
    values = {'name': '\n'.join(CODE), 'labels': CODE, 'out': str(tmp_path / 'out')}
    notebooks.run_notebook(tmp_path / 'n.ipynb', tmp_path / 'o.ipynb', values, cwd=tmp_path)
    assert json.loads((tmp_path / 'out').read_text()) == [values['name'], CODE]
    assert not (tmp_path / 'RAN').exists()


@pytest.mark.parametrize(
    'value',
    [
        '!!python/object/apply:os.system ["touch RAN"]',
        '!!python/object/new:os.system ["touch RAN"]',
        '!!python/name:os.system',
        '!!python/module:os',
    ],
)
def test_yaml_makes_no_objects(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'p.yaml').write_text(f'data: {value}\npapers: {{}}')
    with pytest.raises(InputError, match='not readable as YAML'):
        profiles.load_profile(tmp_path / 'p.yaml')
    assert cli._values([f'name={value}']) == {'name': value}  # text, until a type is declared
    with pytest.raises(InputError):
        convert('name', value, list[str])
    assert not (tmp_path / 'RAN').exists()


# --- what is shown ---


def test_figures_show_names_as_they_are(tmp_path):
    import numpy as np

    odd = ['$a_{b$', '$\\frac$', '_x', '50%', '<b>', '\\']
    figures = {
        'confusion': plots.confusion_matrix(np.eye(6, dtype=int), odd, note='of $x_{$'),
        'tsne': plots.tsne_map(np.random.rand(12, 2), odd * 2, note='n'),
        'sheet': plots.sheet_figure(
            np.zeros((6, 8, 8)), titles=odd, columns=6, row_titles=['$\\frac$'], note='n'
        ),
    }
    for name, fig in figures.items():
        assert style.save_figure(fig, tmp_path, name)[0].stat().st_size > 0
        texts = fig.findobj(lambda a: hasattr(a, 'get_parse_math'))
        named = [t for t in texts if '$' in t.get_text()]
        assert named and not any(t.get_parse_math() for t in named)  # no formulas
    assert any(t.get_text().endswith('_x (2)') for t in figures['tsne'].legends[0].get_texts())


@pytest.mark.parametrize(
    'given',
    [
        ['--profile', '/etc'],
        ['--profile', '../records/small'],
        ['--profile', '*'],
        ['--paper', '../x'],
        ['--paper', '*'],
    ],
)
def test_figures_are_asked_for_by_name(tmp_path, capfd, given):
    folders = ['--records', str(notebooks.ROOT / 'records')]
    folders += ['--figures', str(tmp_path / 'f'), '--work', str(tmp_path / 'w')]
    assert cli.main(['figures', *given, *folders]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1 and not (tmp_path / 'f').exists()
