"""What is shipped: records that are whole, a manifest with every id, figures that need no engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gan_covid.arms import LEAKY, named
from gan_covid.plotting import Manifest
from gan_covid.published import ids
from gan_covid.records import find_records, read_json, verify_record

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted(p.parent for p in (ROOT / 'figures').glob('*/manifest.json'))
SHIPPED = sorted({(r['profile'], r['paper']) for r in find_records(ROOT / 'records')})


def test_smoke_and_small_are_shipped():
    assert {p.name for p in PROFILES} >= {'smoke', 'small'} and {
        ('smoke', 'head_ct'),
        ('small', 'head_ct'),
    } <= set(SHIPPED)


@pytest.mark.parametrize('folder', PROFILES, ids=lambda p: p.name)
def test_every_id_of_a_shipped_paper_has_its_files(folder):
    papers = [paper for profile, paper in SHIPPED if profile == folder.name]
    assert papers and Manifest.check(folder, papers=papers) == []
    assert all(f'id="{i}"' in (folder / 'index.html').read_text() for p in papers for i in ids(p))


@pytest.mark.parametrize('profile, paper', SHIPPED)
def test_records_are_whole_and_no_gan_saw_a_test_image(profile, paper):
    found = find_records(ROOT / 'records', profile, paper)
    assert [p for r in found for p in verify_record(r)] == []
    assert {r['data']['kind'] for r in found} == {'phantom' if profile == 'smoke' else 'real'}
    generated = [r for r in found if r['step'] == 'generate']
    clean = [r for r in generated if r['name'] not in LEAKY]
    assert clean and all(
        r['results']['test_images_seen'] == 0 and r['results']['trained_on'] > 0 for r in clean
    )
    assert all(
        r['results']['test_images_seen'] for r in generated if r['name'] == 'published'
    )  # there to show a leak
    repeats = [r for c in found if c['step'] == 'classify' for r in c['results']['repeats']]
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


@pytest.mark.parametrize(
    'profile, paper', [s for s in SHIPPED if s[0] == 'small'] or [('small', 'head_ct')]
)
def test_figures_are_redrawn_without_engines_to_the_same_tables(tmp_path, profile, paper):
    "The paper's notebook runs with TensorFlow, torch and keras made unimportable, and gives the shipped tables byte for byte."
    (tmp_path / 'block').mkdir()
    for engine in ('tensorflow', 'torch', 'keras'):
        (tmp_path / 'block' / f'{engine}.py').write_text(
            f"raise ImportError('{engine} is not to be loaded here')\n"
        )
    env = {**os.environ, 'PYTHONPATH': str(tmp_path / 'block')}
    subprocess.run(
        [
            sys.executable,
            '-m',
            'gan_covid.cli',
            'figures',
            '--profile',
            profile,
            '--paper',
            paper,
            '--figures',
            str(tmp_path / 'figures'),
            '--work',
            str(tmp_path / 'work'),
            '--records',
            str(ROOT / 'records'),
        ],
        check=True,
        env=env,
        cwd=ROOT,
    )
    tables = sorted(p.name for p in (ROOT / 'figures' / profile / paper).glob('*.csv'))
    assert tables
    assert {
        t
        for t in tables
        if (tmp_path / 'figures' / profile / paper / t).read_bytes()
        != (ROOT / 'figures' / profile / paper / t).read_bytes()
    } == set()
    drawn, shipped = (
        {
            i: v['local']
            for i, v in read_json(f / profile / 'manifest.json')['items'].items()
            if v['paper'] == paper
        }
        for f in (tmp_path / 'figures', ROOT / 'figures')
    )
    assert (
        drawn == shipped
    )  # what has pictures of patients is marked so, whether they are here or not


def test_notebook_says_what_the_study_of_ada_found():
    study = read_json(ROOT / 'benchmarks' / 'results' / 'ada_small_sets.json')
    text = ' '.join(
        ''.join(c['source'])
        for c in read_json(ROOT / 'nbs' / '12_stylegan2_training.ipynb')['cells']
        if c['cell_type'] == 'markdown'
    ).replace('\n', ' ')

    def mean(v):
        return f'{sum(v) / len(v):.3f}'

    def seeds(mode):
        return ', '.join(f'{v:.3f}' for v in study['last'][mode])

    last, best = study['last'], study['best']
    assert (
        f'is {mean(last["without"])} without (seeds: {seeds("without")}) and {mean(last["with"])} with ADA ({seeds("with")})'
        in text
    )
    assert f'about the same, {mean(best["without"])} and {mean(best["with"])}' in text
    gaps = {
        m: [
            [x['d_train'] - x['d_val'] for x in r['log'] if 'd_val' in x][-1]
            for r in study['runs']
            if r['mode'] == m
        ]
        for m in last
    }
    assert (
        7 <= min(gaps['without']) <= max(gaps['without']) < 8.1
        and 3 <= min(gaps['with']) <= max(gaps['with']) < 4
    )
