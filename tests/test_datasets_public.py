"Finding, loading and fetching a public set."

import shutil
import types

import pytest
from dataset_files import make_covid_ct, make_head_ct, zip_folder

from gan_covid.datasets.public import data_fetch, fetch, load
from gan_covid.records import InputError

pytestmark = pytest.mark.usefixtures('download_cache')


def test_not_there_and_twice_there(tmp_path):
    with pytest.raises(InputError, match='data fetch head_ct'):
        load('head_ct', tmp_path)
    with pytest.raises(InputError, match='no such folder'):
        load('head_ct', tmp_path / 'nowhere')
    with pytest.raises(InputError, match="'headct' is unknown. There are: radiography"):
        load('headct', tmp_path)
    make_covid_ct(tmp_path / 'COVID-CT')
    with pytest.raises(InputError, match='Radiography Database is not there'):
        load('radiography', tmp_path)  # Data-split/COVID holds no images
    make_head_ct(tmp_path / 'a')
    make_head_ct(tmp_path / 'b')
    with pytest.raises(InputError, match='more than once'):
        load('head_ct', tmp_path)


def test_kaggle_zip_in_the_folder(tmp_path):
    zip_folder(make_head_ct(tmp_path / 'made'), tmp_path / 'archive.zip')
    for p in sorted((tmp_path / 'made').rglob('*'), reverse=True):
        p.unlink() if p.is_file() else p.rmdir()
    (tmp_path / 'other.zip').write_bytes(b'broken')
    assert len(load('head_ct', tmp_path)) == len(load('head_ct', tmp_path / 'archive.zip')) == 8


def test_zip_and_a_full_disk(tmp_path, monkeypatch):
    zip_folder(make_head_ct(tmp_path / 'h'), tmp_path / 'h.zip')
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: types.SimpleNamespace(free=10))
    with pytest.raises(InputError, match='h.zip.*no space left'):
        load('head_ct', tmp_path / 'h.zip')
    with pytest.raises(InputError, match='needs about'):
        fetch('radiography', tmp_path / 'r')


def test_fetch_offline(tmp_path, capsys):
    with pytest.raises(InputError, match='no connection.*Look at the network'):
        fetch('covid_ct', tmp_path, mirror='http://127.0.0.1:9', attempts=1, timeout=2)


def test_fetch_kaggle_errors(tmp_path, monkeypatch, capsys):
    import kagglehub

    def refuse(handle):
        raise type(
            'KaggleApiHTTPError', (OSError,), {'response': types.SimpleNamespace(status_code=403)}
        )('403 Client Error')

    monkeypatch.setattr(kagglehub, 'dataset_download', refuse)
    assert data_fetch('head_ct', tmp_path) == 2
    err = capsys.readouterr().err
    assert 'credentials' in err
    assert 'kaggle.json' in err
    assert 'felipekitamura' in err
    assert 'Traceback' not in err
    (tmp_path / 'head-ct-hemorrhage').mkdir()
    with pytest.raises(InputError, match='not complete'):
        fetch('head_ct', tmp_path)


def test_fetch_kaggle_leaves_a_complete_set_alone(tmp_path, monkeypatch):
    import kagglehub

    make_head_ct(tmp_path / 'h', 200)
    monkeypatch.setattr(kagglehub, 'dataset_download', lambda h: pytest.fail('downloaded again'))
    assert fetch('head_ct', tmp_path) == tmp_path / 'h'
