"Images of one's own through the workflow: what is refused before a training, the split, and the page."

import numpy as np
import pytest
from PIL import Image
from test_splits import execute

from gan_covid import cli, profiles, records, report
from gan_covid.records import InputError


def _folder(root, **classes):
    "A folder of small random images: {class: how many}."
    rng = np.random.default_rng(0)
    for name, n in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(root / name / f'{i}.png')
    return root


def _profile(folder, labels, more='', dataset='mine'):
    "A profile as somebody writes it by hand."
    path = folder / 'my.yaml'
    keys = f'    dataset: {dataset}\n    labels: {labels}\n    arms: [original]\n    {more}\n'
    path.write_text(f'data: real\npapers:\n  head_ct:\n{keys}')
    return path


def test_names_of_classes_are_what_is_written(tmp_path):
    path = _profile(tmp_path, '[yes, no, 010, 1e3, ~, 2020-01-01]', 'seed: 7')
    settings = profiles.load_profile(path)['papers']['head_ct']
    assert settings['labels'] == ['yes', 'no', '010', '1e3', '~', '2020-01-01']
    assert settings['seed'] == 7
    assert profiles.classify_runs(settings)['original']['positive'] == 'yes'
    path = _profile(tmp_path, '[yes, no]', 'positive: no')
    settings = profiles.load_profile(path)['papers']['head_ct']
    assert profiles.classify_runs(settings)['original']['positive'] == 'no'
    assert profiles.settings_of(settings, 'prepare')['labels'] == ['yes', 'no']


ANOTHER = (
    'classify: {own: x}\n    gans: {y: {}}\n    classifiers: {c: {arms: [original, generated]}}'
)


@pytest.mark.parametrize(
    'labels, more, words',
    [
        ('[yes, no]', 'positive: on', "positive: 'on' is not among the labels yes, no"),
        ('[yes, yes]', '', 'a class stands there twice'),
        ('[yes]', '', 'name two sub-folders'),
        ('[yes, no]', 'score: {classifier: orginal}', "'orginal' is no run of classify"),
        ('[yes, [no]]', '', 'give a list, e.g. .a, b., of text'),
        ('[yes, no]', ANOTHER, "takes images of the GAN 'x'"),
    ],
)
def test_profile_of_own_images_that_cannot_be(tmp_path, labels, more, words):
    path = _profile(tmp_path, labels, more)
    with pytest.raises(InputError, match=f'my.yaml: head_ct.*{words}'):
        profiles.load_profile(path)


def test_own_images_go_with_a_notebook_that_can_draw_them(tmp_path):
    path = _profile(tmp_path, '[yes, no]')
    path.write_text(path.read_text().replace('head_ct:', 'mgv2023:'))
    with pytest.raises(InputError, match='images of your own go with head_ct'):
        profiles.load_profile(path)
    path.write_text(
        _profile(tmp_path, '[yes, no]').read_text().replace('data: real', 'data: phantom')
    )
    with pytest.raises(InputError, match='cannot be drawn as phantoms'):
        profiles.load_profile(path)


@pytest.mark.parametrize(
    'labels, dataset, words',
    [
        ('[yes, nope]', 'mine', "has no sub-folder 'nope' with images; did you mean 'no'?"),
        ('[yes, few]', 'mine', "'few' has 9 images"),
        ('[yes, no]', 'covid_ct', 'head_ct needs the data set covid_ct'),
    ],
)
def test_data_that_lack_something_are_refused_before_anything_runs(
    tmp_path, capfd, labels, dataset, words
):
    data = _folder(tmp_path / 'data', yes=12, no=12, few=9)
    path = _profile(tmp_path, labels, dataset=dataset)
    for dry in ([], ['--dry-run']):
        given = ['--profile', str(path), '--data', str(data), '--work', str(tmp_path / 'work')]
        assert cli.main(['reproduce', *given, *dry]) == 2
        assert words in capfd.readouterr().err
    assert not (tmp_path / 'work').exists()


def test_any_number_of_images_is_split_in_the_source_s_proportion(tmp_path):
    data = _folder(tmp_path / 'data', yes=40, no=20, other=15)
    values = dict(profile='mine', paper='head_ct', dataset='mine', labels=['yes', 'no'], size=16)
    execute('prepare', work=str(tmp_path / 'work'), data=str(data), **values)
    folder = tmp_path / 'work' / 'mine' / 'head_ct' / 'prepare' / 'mine'
    results = records.read_json(folder / 'record.json')['results']
    counts = results['counts'].values()
    parts = {s: sum(c[s] for c in counts) for s in ('train', 'val', 'test')}
    assert parts == {'train': 43, 'val': 10, 'test': 7}
    assert set(results['counts']) == {'yes', 'no'}
    assert results['about']['own'] is True
    assert results['about']['images'] == 60


def _records(root, classes):
    "Records of prepare and classify, as runs of two arms and two repeats leave them."
    about = {'name': 'mine', 'kind': 'real', 'images': 60, 'title': 'mine, 60 images', 'own': True}
    counts = {c: {'train': 14, 'val': 3, 'test': 3} for c in classes}
    records.Run(root, 'own', 'head_ct', 'prepare', 'mine', {}, about).finish(
        {'counts': counts, 'about': about}
    )
    rng, repeats = np.random.default_rng(0), []
    for arm in ('original', 'original+generated'):
        for r in range(2):
            truth = np.repeat(range(len(classes)), 3)
            score = rng.dirichlet(np.ones(len(classes)), len(truth))
            ids = [f'{r}/{i}' for i in range(len(truth))]
            one = dict(arm=arm, network='resnet50', repeat=r, seed=r, leaked=[])
            one |= dict(classes=sorted(classes), positive=classes[0])
            one['n_train'] = {'real': 43, 'generated': 0}
            curves = 'loss', 'val_loss', 'accuracy', 'val_accuracy'
            one['history'] = {k: [0.5, 0.6] for k in curves}
            one['test'] = dict(id=ids, y_true=truth.tolist(), y_score=score.tolist())
            repeats.append(one)
    protocol = {'protocol': {'network': 'resnet50', 'size': 32}}
    run = records.Run(root, 'own', 'head_ct', 'classify', 'original', protocol, about)
    run.finish({'repeats': repeats}, weights='random')


@pytest.mark.slow
@pytest.mark.parametrize('classes', [['yes', 'no'], ['50%', '$a_{b$', '<i>c|d']])
def test_page_of_own_images_shows_them_beside_nothing_published(tmp_path, classes):
    _records(tmp_path / 'records', classes)
    folders = {k: str(tmp_path / k) for k in ('records', 'figures', 'work')}
    execute('head_ct', 'papers', profile='own', **folders)
    page = report.write_report(tmp_path / 'figures').read_text()
    assert 'published' not in page
    assert 'agrees<' not in page
    assert 'agrees (' not in page
    assert 'mine, 60 images' in page
    assert '<i>c' not in page
    items = records.read_json(tmp_path / 'figures' / 'manifest.json')['items']
    shown = {v['name']: v['reproduced'] for v in items['T19']['values']}
    assert shown['images'] == 20 * len(classes)
    assert {c: shown[c] for c in classes} == dict.fromkeys(classes, 20)
    assert all(v['published'] is None for i in items.values() for v in i['values'])
    for v in items['X1']['values']:
        assert v['low'] is None or 0 <= v['low'] <= v['reproduced'] <= v['high'] <= 1
    assert 'published' not in (tmp_path / 'figures' / 'head_ct' / 'X1.csv').read_text()
