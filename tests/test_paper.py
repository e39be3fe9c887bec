"""The sources' notebooks as they are stored, and the README: both say what the records say."""

import json

import pytest
from steps import ROOT

from gan_covid import paper
from gan_covid.notebooks import parameters_of

NOTEBOOKS = sorted((ROOT / 'nbs' / 'papers').glob('*.ipynb'))
BEST_FIRST = 'paper', 'small', 'smoke'


def cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def outputs(path, kind):
    "Outputs of one type of a notebook, as text, with the number of their cell."
    return [
        (i, ''.join(output['data'][kind]))
        for i, cell in enumerate(cells(path))
        for output in cell.get('outputs', [])
        if kind in output.get('data', {})
    ]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_with_the_best_shipped_profile_and_without_writing_anything(path):
    shipped = [p for p in BEST_FIRST if (ROOT / 'records' / p / path.stem).is_dir()]
    defaults = {k: v['default'] for k, v in parameters_of(path).items()}
    assert defaults['profile'] == repr(shipped[0])
    assert defaults['figures'] == defaults['work'] == "''"


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_first_screen_says_claim_answer_and_uncertainty_with_a_picture(path):
    said = next(text for _, text in outputs(path, 'text/markdown'))
    where, _ = outputs(path, 'image/png')[0]
    assert all(word in said for word in ('**Claim:**', '**Seen here:**', '**How uncertain:**'))
    assert 'Profile `small`' in said
    before = cells(path)[: where + 1]
    assert where <= 5 and not [c for c in before[1:] if c['cell_type'] == 'markdown']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_every_shipped_table_and_figure_is_shown(path):
    "By its id; local ones, with patients' pixels, by the table in their place."
    manifest = json.loads((ROOT / 'figures' / 'small' / 'manifest.json').read_text())['items']
    shown = ' '.join(text for _, text in outputs(path, 'text/markdown'))
    mine = [i for i, item in manifest.items() if item['paper'] == path.stem]
    assert mine and not [i for i in mine if f'**{i}**' not in shown]


def test_readme_says_what_the_tables_say(monkeypatch):
    "The stored outputs of the index notebook are what its cells compute now."
    said = []
    monkeypatch.setattr(paper, 'say', lambda text: said.append(text.strip()))
    monkeypatch.chdir(ROOT / 'nbs')
    names, index = {}, ROOT / 'nbs' / 'index.ipynb'
    for cell in cells(index):
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), names)
    assert said == [text for _, text in outputs(index, 'text/markdown')], 'run make readme'


def test_of_several_gans_the_first_takes_the_name_of_their_set(tmp_path):
    "Tables and figures of one GAN find it; a GAN alone, or of another set, keeps its name."
    runs = paper.Runs('ct_report', 'smoke', tmp_path)
    dcgans = 'COVID-dcgan-1', 'COVID-dcgan-2', 'NonCOVID-dcgan-1'
    others = 'conditional', 'own-1', 'own-10', 'own-2'
    runs.steps = {
        'train_dcgan': {name: {'of': name} for name in dcgans},
        'generate': {name: {'of': name} for name in others},
    }
    assert runs.name_first_gans() == ['COVID', 'own']
    assert list(runs['train_dcgan']) == ['COVID', 'COVID-dcgan-2', 'NonCOVID-dcgan-1']
    assert list(runs['generate']) == ['conditional', 'own', 'own-10', 'own-2']
    assert runs['train_dcgan']['COVID'] == {'of': 'COVID-dcgan-1'}
    assert runs['train_stylegan2'] == runs['score'] == {}
