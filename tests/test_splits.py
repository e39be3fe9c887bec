"A split that comes with the images, patients, names of files: what goes where, what stays out of records."

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gan_covid import records
from gan_covid.datasets.leaks import check_split
from gan_covid.datasets.splits import repeated_splits
from gan_covid.preprocessing import Prepared
from gan_covid.records import InputError, read_json

ROOT = Path(__file__).resolve().parent.parent


def execute(notebook, folder='runs', **values):
    "Run a notebook of nbs/ in this process, with other values of its parameters; its variables."
    names = {'display': lambda *a: None}
    path = ROOT / 'nbs' / folder / f'{notebook}.ipynb'
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    for cell in (c for c in cells if c['cell_type'] == 'code'):
        exec(compile(''.join(cell['source']), notebook, 'exec'), names)
        if 'parameters' in cell['metadata'].get('tags', []):
            assert not set(values) - set(names), 'no such parameter'
            names |= values
    return names


def write(folder, n, names='MUELLER_ANNA_{}.png', seed=0):
    "n pictures of noise."
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, a in enumerate(np.random.default_rng(seed).integers(0, 256, (n, 20, 20), 'uint8')):
        Image.fromarray(a).save(Path(folder) / names.format(i))


def prepare(tmp_path, data, **values):
    "Prepared images and the record of runs/prepare."
    given = dict(work=str(tmp_path / 'work'), data=str(data), dataset='mine', size=16)
    execute('prepare', **given, **values)
    folder = tmp_path / 'work' / 'smoke' / 'head_ct' / 'prepare' / 'mine'
    return Prepared.open(folder / 'images'), read_json(folder / 'record.json')


def hashes(*folders):
    return {records.sha256_file(p) for f in folders for p in Path(f).rglob('*.png')}


@pytest.fixture
def sorted_folder(tmp_path):
    "Own images in train and test, four of each patient; three training images are copies of test images."
    for k, label in enumerate(('ill', 'well')):
        for p in range(6):
            write(tmp_path / 'data' / 'train' / label / f'{label}{p}', 4, seed=100 * k + p)
        for p in range(6, 9):
            write(tmp_path / 'data' / 'test' / label / f'{label}{p}', 4, seed=100 * k + p)
    data = tmp_path / 'data'
    for i in range(3):
        shutil.copyfile(
            data / f'test/ill/ill7/MUELLER_ANNA_{i}.png', data / f'train/ill/ill0/copy{i}.png'
        )
    return data


@pytest.mark.filterwarnings('ignore:images that belong together', 'ignore:data')
def test_the_users_own_test_folder_stays(tmp_path, sorted_folder, capsys):
    prepared, record = prepare(tmp_path, sorted_folder)
    part = {s: t for s, t in prepared.table.groupby('split')}
    assert set(part['test'].sha256) == hashes(sorted_folder / 'test')
    assert len(part['test']) == 24
    assert len(part['train']) + len(part['val']) == 48
    assert len(part['val']) >= 4
    assert not set(part['test'].sha256) & {*part['train'].sha256, *part['val'].sha256}
    assert prepared.table.groupby('patient').split.nunique().max() == 1
    assert check_split(prepared.table).empty
    results = record['results']
    assert results['given'] == ['train', 'test']
    assert results['patients'] == 18
    assert len(results['left_out']) == 3
    assert 'the split that came with the images stays: train, test' in capsys.readouterr().out


@pytest.mark.filterwarnings('ignore:images that belong together', 'ignore:data')
def test_patients_do_not_cross(tmp_path, capsys):
    for k, label in enumerate(('ill', 'well')):
        for p in range(10):
            write(tmp_path / 'data' / label / f'{label}{p}', 3, seed=100 * k + p)
    prepared, record = prepare(tmp_path, tmp_path / 'data')
    table = prepared.table
    assert table.groupby('patient').split.nunique().max() == 1
    assert len(table) == 60
    assert table.split.nunique() == 3
    assert record['results']['patients'] == 20
    assert record['data']['title'] == 'mine, 60 images of 20 patients'
    assert 'ATTENTION' not in capsys.readouterr().out
    sizes = table.split.value_counts().to_dict()
    for keep in (True, False):
        for t in repeated_splits(table, sizes, 3, 4, keep_train=keep):
            assert t.groupby('patient').split.nunique().max() == 1
    parted = table.assign(split=['train', 'val', 'test'] * 20)  # image by image, as if nobody knew
    assert (check_split(parted).kind == 'patient').sum() == 20


@pytest.mark.filterwarnings('ignore:data')
def test_unknown_patients_are_said_loudly(tmp_path, capsys):
    for k, label in enumerate(('ill', 'well')):
        write(tmp_path / 'data' / label, 30, seed=k)
    prepared, record = prepare(tmp_path, tmp_path / 'data')
    assert 'ATTENTION: the patients of 60 of 60 images are unknown' in capsys.readouterr().out
    assert record['results']['patients'] == 'unknown'
    assert record['data']['title'] == 'mine, 60 images, patients unknown'
    sizes = prepared.table.split.value_counts().to_dict()
    assert sizes == {'train': 43, 'val': 10, 'test': 7}  # shares, not 144/34/22


@pytest.mark.filterwarnings('ignore:data')
def test_splits_that_cannot_be_used(tmp_path):
    write(tmp_path / 'a' / 'test' / 'ill', 5)
    write(tmp_path / 'a' / 'test' / 'well', 5, seed=1)

    def refused(words, data, **values):
        with pytest.raises(InputError, match=words):
            prepare(tmp_path, tmp_path / data, **values)

    refused('test given, but no image to train on', 'a')
    for k, place in enumerate(('train/ill', 'train/well', 'test/ill')):
        write(tmp_path / 'b' / place, 9, seed=k)
    refused('no image of class well for the part test', 'b')
    refused("split='published': mine is no published set", 'b', split='published')


def answers(monkeypatch):
    "Classifiers that guess: what a record says of its images does not depend on how well they do."
    from gan_covid import classifier_training

    rng = np.random.default_rng(0)
    record = {'weights': 'random', 'precision': 'float32', 'seconds': 1.0}

    def train(*_, test, **__):
        scores = rng.dirichlet([1, 1], len(test))
        return SimpleNamespace(model=None, scores=scores, as_record=lambda: record)

    monkeypatch.setattr(classifier_training, 'train', train)


def classify(tmp_path, **values):
    given = dict(dataset='mine', name='a', arm='original+classical', positive='ill')
    given |= dict(work=str(tmp_path / 'work'), epochs=1, weights='random')
    execute('classify', **given, **values)
    folder = tmp_path / 'work' / 'smoke' / 'head_ct' / 'classify' / 'a'
    return read_json(folder / 'record.json')['results']['repeats']


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:images that belong together', 'ignore:data')
def test_no_name_of_a_file_leaves_the_work_folder(tmp_path, monkeypatch):
    "Names of files and patients, of images that are used, broken, left out or in two parts of a given split."
    for k, label in enumerate(('ill', 'well')):
        for part, patients in (('train', range(8)), ('test', range(7, 12))):  # patient 7 crosses
            for p in patients:
                folder = tmp_path / 'data' / part / label / f'MUELLER_{label}_{p}'
                write(folder, 3, seed=1000 * k + 20 * p + len(part))
    train, test = tmp_path / 'data' / 'train' / 'ill', tmp_path / 'data' / 'test' / 'ill'
    (train / 'MUELLER_ill_0' / 'MUELLER_BROKEN.png').write_bytes(b'no picture')
    shutil.copyfile(
        test / 'MUELLER_ill_9' / 'MUELLER_ANNA_0.png', train / 'MUELLER_ill_1' / 'MUELLER_COPY.png'
    )
    prepared, record = prepare(tmp_path, tmp_path / 'data')
    assert len(record['results']['rejected']) == 1
    assert len(record['results']['left_out']) == 1
    crossing = [c for c in record['results']['crossing'] if c['kind'] == 'patient']
    assert len(crossing) == 2
    assert all(len(i) == 16 for c in crossing for i in c['images'])
    answers(monkeypatch)
    runs = classify(tmp_path, repeats=2)
    tests = [r['test'] for r in runs]
    # given, so not drawn anew
    assert tests[0]['id'] == tests[1]['id']
    assert len(tests[0]['id']) == 30
    assert len(set(tests[0]['group'])) == 10
    assert {c['key'] for c in crossing} <= set(tests[0]['group'])
    names = dict(zip(prepared.table.sha256.str[:16], prepared.table.patient))
    for i, g in zip(tests[0]['id'], tests[0]['group']):
        assert names[i] == names[g]  # one patient

    work = tmp_path / 'work'
    published = records.publish(work, tmp_path / 'records', 'smoke')
    kept = [p for p in (tmp_path / 'records').rglob('*') if p.is_file()]
    assert len(published) == 2
    assert not [p for p in kept if b'MUELLER' in p.read_bytes() or 'MUELLER' in p.name]
    assert (
        'MUELLER' in (work / 'smoke/head_ct/prepare/mine/images/table.csv').read_text()
    )  # here a user finds them
    if not shutil.which('git'):
        return
    subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
    new = ['git', 'ls-files', '-o', '--exclude-standard']
    out = subprocess.run(
        new, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert any(f.startswith('records/') for f in out)
    assert not [f for f in out if f.startswith('work/')]


@pytest.mark.filterwarnings('ignore:data')
def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path, monkeypatch):
    "class/patient/0.png gave an image's id twice, which evaluation refuses after all training."
    for k, label in enumerate(('ill', 'well')):
        for p in range(10):
            write(tmp_path / 'data' / label / f'{label}{p}', 2, names='{}.png', seed=100 * k + p)
    prepare(tmp_path, tmp_path / 'data')
    answers(monkeypatch)
    for r in classify(tmp_path, repeats=3):
        assert len(set(r['test']['id'])) == len(r['test']['id'])
        assert None not in r['test']['group']


def test_public_sets_keep_their_names(tmp_path):
    "What is shipped stays comparable."
    given = dict(paper='ct_report', dataset='covid_ct', phantoms=20, size=16, split='official')
    execute('prepare', work=str(tmp_path / 'work'), **given)
    results = read_json(tmp_path / 'work/smoke/ct_report/prepare/covid_ct/record.json')['results']
    assert results['given'] == []
    assert results['patients'] > 0
    assert results['patients_by_part']['COVID']


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_a_gan_gets_the_training_images_of_a_split_only(
    tmp_path, sorted_folder, monkeypatch, capsys
):
    from gan_covid import cli
    from gan_covid.stylegan2 import training

    seen = {}
    monkeypatch.setattr(training, 'train', lambda **given: seen.update(given) or {})

    def train(images, *more):
        seen.clear()
        assert cli.main(['train', 'stylegan2', str(images), str(tmp_path / 'out'), *more]) == 0
        return len(seen['images']), len(seen.get('validation', ())), capsys.readouterr().out

    n, held_out, said = train(sorted_folder)
    assert (n, held_out) == (48, 0)
    assert '24 test images, and 3 that are copies' in said
    assert seen['about']['images'] == 48
    write(sorted_folder / 'val' / 'ill', 8, seed=900)
    write(sorted_folder / 'val' / 'well', 8, seed=901)
    assert train(sorted_folder)[:2] == (48, 16)
    assert len(seen['validation_labels']) == 16
    shutil.rmtree(sorted_folder / 'val' / 'well')
    (sorted_folder / 'val' / 'ill' / 'MUELLER_ANNA_0.png').unlink()
    assert train(sorted_folder)[:2] == (48, 0)  # too few to look at
    shutil.rmtree(sorted_folder / 'val')
    prepared = prepare(tmp_path, sorted_folder)[0]
    n, held_out, said = train(prepared.folder)
    assert n == (prepared.table.split == 'train').sum()
    assert '24 test images' in said
    mine = (prepared.table.split == 'train').to_numpy(bool)
    assert np.array_equal(seen['images'], prepared.images[mine])
    shutil.rmtree(sorted_folder / 'train')
    assert cli.main(['train', 'stylegan2', str(sorted_folder), str(tmp_path / 'out')]) == 2
    assert 'no image to train on' in capsys.readouterr().err


def test_networks_can_be_read_by_others(tmp_path):
    "safetensors makes files of mode 0600, whatever the umask says."
    from gan_covid.stylegan2.networks import Generator
    from gan_covid.stylegan2.storage import save_networks

    G = Generator(size=(16, 16), width=(64, 8), z_dim=8)
    before = os.umask(0o022)
    try:
        path = save_networks(tmp_path / 'network.safetensors', {'G_ema': G})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
