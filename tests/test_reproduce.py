"""Strict parameters, profiles, code hashes, the command line and publishing."""

import json
import shutil
from pathlib import Path

import pytest

from gan_covid import cli, notebooks, profiles, records, reproduce
from gan_covid.arms import named
from gan_covid.records import InputError

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / 'nbs' / 'runs'


def test_misspelled_parameter_is_an_error_and_not_a_default_run(tmp_path, capfd):
    assert (
        cli.main(
            ['run', str(RUNS / 'train_dcgan.ipynb'), str(tmp_path / 'out.ipynb'), '-p', 'epoch=3']
        )
        == 2
    )
    assert "no parameter 'epoch'; did you mean 'epochs'?" in capfd.readouterr().err
    assert not (tmp_path / 'out.ipynb').exists()


def test_notebook_without_parameters_cell(tmp_path):
    nb = json.loads((RUNS / 'train_dcgan.ipynb').read_text())
    for c in nb['cells']:
        c['metadata'] = {}
    (tmp_path / 'n.ipynb').write_text(json.dumps(nb))
    with pytest.raises(InputError, match='exactly one cell tagged `parameters`'):
        notebooks.parameters_of(tmp_path / 'n.ipynb')


@pytest.mark.parametrize(
    'change, words',
    [
        (
            ('epochs: 12', 'epoch: 12'),
            "head_ct.train_dcgan: unknown key 'epoch'; did you mean 'epochs'",
        ),
        (('classify:', 'clasify:'), "unknown key 'clasify'; did you mean 'classify'"),
        (('data: phantom', 'data: fantom'), 'data must be phantom or real'),
        (('head_ct:\n', 'head_mr:\n'), "paper 'head_mr' has no notebook"),
        (('papers:', 'papers: ['), 'not readable as YAML'),
    ],
)
def test_profile_that_cannot_be(tmp_path, change, words):
    text = (profiles.PROFILES / 'smoke.yaml').read_text()
    assert change[0] in text
    (tmp_path / 'mine.yaml').write_text(text.replace(*change, 1))
    with pytest.raises(InputError, match='mine.yaml.*' + words):
        profiles.load_profile(tmp_path / 'mine.yaml')


@pytest.mark.parametrize('name', [p.stem for p in profiles.PROFILES.glob('*.yaml')])
def test_shipped_profiles_are_sound(name):
    profile = profiles.load_profile(name)
    assert profile['papers']
    for paper in profile['papers']:
        settings = profile['papers'][paper]
        for step in profiles.STEPS:
            profiles.settings_of(settings, step)
        of_step = {
            **{f'train_{m}': profiles.train_runs(settings, m) for m in profiles.MODELS},
            'classify': profiles.classify_runs(settings, profiles.FOREIGN),
            'classify_frozen': profiles.frozen_runs(settings),
        }
        assert of_step['classify'] or of_step['classify_frozen']
        assert any(of_step[f'train_{m}'] for m in profiles.MODELS)
        judge = settings.get('score', {}).get('classifier', 'original')
        assert not judge or judge in of_step['classify']
        for step, runs in of_step.items():
            takes = notebooks.parameters_of(notebooks.ROOT / 'nbs' / 'runs' / f'{step}.ipynb')
            assert all(k in takes for r in runs.values() for k in r)
        for r in of_step[
            'classify'
        ].values():  # the sets of generated images that the arms of a run take are made
            sets = {
                source or r.get('own', 'dcgan')
                for kind, source, _ in map(named, [r['arm'], *r.get('also', [])])
                if kind.generated
            }
            assert sets <= {*profiles.gans_of(settings), *profiles.FOREIGN}


def test_profile_names_gans_and_classifiers_that_exist(tmp_path):
    text = (profiles.PROFILES / 'smoke.yaml').read_text()
    for old, new, words in (
        (
            'latent_400: {labels',
            'latent_400: {lables',
            "ct_report.gans.latent_400: unknown key 'lables'; did you mean 'labels'",
        ),
        (
            'latent_400: {labels',
            'latent_400: {snapshot: best, labels',  # a DCGAN keeps its last network only
            "ct_report.gans.latent_400: unknown key 'snapshot'",
        ),
        (
            'vgg16: {protocol',
            'vgg16: {protocoll',
            "ct_report.classifiers.vgg16: unknown key 'protocoll'; did you mean 'protocol'",
        ),
    ):
        assert old in text
        (tmp_path / 'mine.yaml').write_text(text.replace(old, new))
        with pytest.raises(InputError, match=words):
            profiles.load_profile(tmp_path / 'mine.yaml')
    settings = profiles.load_profile('smoke')['papers']['ct_report']
    with pytest.raises(InputError, match='to be a run of their own'):
        profiles.classify_runs(
            {
                **settings,
                'classifiers': {'ct_cnn': {'arms': [['original', 'original+generated@loey']]}},
            },
            ('loey',),
        )
    with pytest.raises(InputError, match="no GAN 'publisht' among `gans`"):
        profiles.classify_runs(
            {**settings, 'classifiers': {'ct_cnn': {'arms': ['original+generated@publisht']}}}
        )


def test_runs_that_left_the_profile_are_set_aside(tmp_path):
    profile, base = profiles.load_profile('smoke'), tmp_path / 'smoke' / 'ct_report'
    for run in (
        'classify/ct_cnn-original',
        'classify/ct_cnn-original+classical',
        'generate/dcgan',
        'generate/loey',
        'train_dcgan/COVID',
        'train_dcgan/Covid',
        'prepare/covid_ct',
        'prepare/head_ct',
    ):
        (base / run).mkdir(parents=True)
    (base / 'train_dcgan' / 'Covid' / 'losses.jsonl').write_text('{}')
    moved = reproduce.set_aside(tmp_path, profile, 'ct_report')
    assert sorted(
        p.relative_to(tmp_path / 'smoke' / 'set_aside' / 'ct_report').as_posix() for p in moved
    ) == ['classify/ct_cnn-original+classical', 'prepare/head_ct', 'train_dcgan/Covid']
    assert (
        tmp_path / 'smoke' / 'set_aside' / 'ct_report' / 'train_dcgan' / 'Covid' / 'losses.jsonl'
    ).exists() and reproduce.set_aside(tmp_path, profile, 'ct_report') == []


def test_images_of_others_are_an_arm_only_where_they_are():
    settings = profiles.load_profile('smoke')['papers']['ct_report']
    without, with_ = profiles.classify_runs(settings), profiles.classify_runs(settings, ('loey',))
    assert (
        {n for n in with_ if n not in without} == {n for n in with_ if n.endswith('@loey')} != set()
    )
    assert all(with_[n]['n_generated'] == 0 for n in with_ if n.endswith('@loey'))


def test_real_profile_asks_for_the_images(tmp_path, capfd, monkeypatch):
    assert cli.main(['reproduce', '--profile', 'small', '--work', str(tmp_path)]) == 2
    assert 'needs real images' in capfd.readouterr().err
    assert (
        cli.main(
            [
                'reproduce',
                '--profile',
                'small',
                '--data',
                str(tmp_path / 'nowhere'),
                '--work',
                str(tmp_path),
            ]
        )
        == 2
    )
    assert 'no such folder' in capfd.readouterr().err
    assert cli.main(['reproduce', '--paper', 'head_cd', '--work', str(tmp_path)]) == 2
    assert "did you mean 'head_ct'" in capfd.readouterr().err
    assert (
        cli.main(['reproduce', '--paper', 'head_cd', '--paper', 'head_ct', '--work', str(tmp_path)])
        == 2
    )
    assert "did you mean 'head_ct'" in capfd.readouterr().err
    assert (
        cli.main(
            [
                'figures',
                '--paper',
                'head_ct',
                '--paper',
                'head_cd',
                '--records',
                str(ROOT / 'records'),
                '--figures',
                str(tmp_path),
                '--work',
                str(tmp_path),
            ]
        )
        == 2
    )
    assert 'paper head_cd' in capfd.readouterr().err


def _copy(tmp_path):
    for d in ('nbs', 'gan_covid'):
        shutil.copytree(ROOT / d, tmp_path / d, ignore=shutil.ignore_patterns('__pycache__'))
    return tmp_path


def _hashes(root):
    return {
        p.stem: notebooks.code_hash(p, root)
        for p in [
            *sorted((root / 'nbs' / 'runs').glob('*.ipynb')),
            *sorted((root / 'nbs' / 'papers').glob('*.ipynb')),
        ]
    }


def test_prose_changes_no_hash_and_code_changes_its_branch_only(tmp_path):
    root = _copy(tmp_path)
    before = _hashes(root)
    score = root / 'nbs' / 'runs' / 'score.ipynb'
    nb = json.loads(score.read_text())
    for c in nb['cells']:
        if c['cell_type'] == 'markdown':
            c['source'] = 'other words'
    score.write_text(json.dumps(nb))
    module = root / 'gan_covid' / 'similarity.py'
    module.write_text('# a comment\n' + module.read_text())
    assert _hashes(root) == before
    module.write_text(module.read_text() + '\nmore = 1\n')
    assert {k for k, v in _hashes(root).items() if v != before[k]} == {
        'score',
        'generate',
        'collect',
        'train_stylegan2',
        'study',
    }  # the others use fidelity, which measures with similarity
    everything = root / 'gan_covid' / 'records.py'
    everything.write_text(everything.read_text() + '\nmore = 1\n')
    assert all(v != before[k] for k, v in _hashes(root).items())


def test_failing_cell_keeps_its_notebook_and_says_why(tmp_path):
    nb = json.loads((RUNS / 'train_dcgan.ipynb').read_text())
    (tmp_path / 'n.ipynb').write_text(json.dumps(nb))
    with pytest.raises(InputError, match="record.json: not found. The step 'prepare' comes first"):
        notebooks.run_notebook(
            tmp_path / 'n.ipynb',
            tmp_path / 'out' / 'n.ipynb',
            {'work': str(tmp_path), 'label': 'normal'},
        )
    assert 'InputError' in (tmp_path / 'out' / 'n.ipynb').read_text()


def test_publishing_replaces_one_paper_only(tmp_path):
    def entry(paper):
        return {'paper': paper, 'files': []}

    records.write_json(tmp_path / 'built' / 'manifest.json', {'items': {'T19': entry('head_ct')}})
    records.atomic_write(tmp_path / 'built' / 'head_ct' / 'T19.csv', 'new')
    records.write_json(
        tmp_path / 'kept' / 'manifest.json',
        {'items': {'T1': entry('wmlq2022'), 'X1': entry('head_ct')}},
    )
    records.atomic_write(tmp_path / 'kept' / 'head_ct' / 'X1.csv', 'old')
    reproduce.publish_figures(tmp_path / 'built', tmp_path / 'kept', 'head_ct')
    assert set(records.read_json(tmp_path / 'kept' / 'manifest.json')['items']) == {'T1', 'T19'}
    assert [p.name for p in (tmp_path / 'kept' / 'head_ct').iterdir()] == ['T19.csv']


def test_two_calls_in_one_work_folder_are_kept_apart(tmp_path):
    import fcntl

    with open(tmp_path / '.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match='another run is at work there'):
            reproduce.reproduce(reproduce.Request(work=tmp_path))


def test_several_gans_on_the_same_images(tmp_path):
    file = tmp_path / 'mine.yaml'
    text = (profiles.PROFILES / 'smoke.yaml').read_text(encoding='utf-8')
    file.write_text(text, encoding='utf-8')
    settings = profiles.load_profile(file)['papers']['mgv2023']
    runs = profiles.train_runs(settings, 'stylegan2')
    assert [runs[f'smaller-{k}']['repeat'] for k in (1, 2)] == [0, 1]
    alike = [{k: v for k, v in runs[n].items() if k not in ('repeat', 'name')} for n in runs]
    assert alike[1] == alike[2] != alike[0]  # the same images, and another seed
    frozen = profiles.frozen_runs(settings)
    assert frozen['smaller']['gans'] == ['smaller-1', 'smaller-2']
    assert profiles.sets_behind(frozen['smaller']) == ['smaller-1', 'smaller-2']


@pytest.mark.parametrize(
    'change, words',
    [
        (('seeds: 2', 'seeds: 0'), 'give a whole number from 1'),
        (('seeds: 2', 'seeds: two'), 'seeds'),
        (('gans: [larger]}', 'gans: [larges]}'), "no GAN 'larges'"),
        (('epochs: true}', 'epoch: true}'), "did you mean 'epochs'"),
    ],
)
def test_gans_and_heads_that_cannot_be(tmp_path, change, words):
    text = (profiles.PROFILES / 'smoke.yaml').read_text(encoding='utf-8')
    assert change[0] in text
    file = tmp_path / 'mine.yaml'
    file.write_text(text.replace(*change), encoding='utf-8')
    with pytest.raises(InputError, match=words):
        profiles.load_profile(file)
