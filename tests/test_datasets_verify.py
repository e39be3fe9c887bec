"Verifying: the real sets as they are, and the exit codes of a whole and a partial one."

from pathlib import Path

import pytest
from dataset_files import make_head_ct

from gan_covid.datasets.leaks import check_split
from gan_covid.datasets.public import load
from gan_covid.datasets.splits import stratified_split
from gan_covid.datasets.table import COLUMNS
from gan_covid.datasets.verify import data_verify, verify

pytestmark = pytest.mark.usefixtures('download_cache')


def test_exit_codes(tmp_path, capsys):
    make_head_ct(tmp_path / 'h', 200)
    assert data_verify('head_ct', tmp_path) == 0
    assert ': complete' in capsys.readouterr().out
    next((tmp_path / 'h').rglob('007.png')).unlink()
    assert data_verify('head_ct', tmp_path) == 1
    assert '- 007.png' in capsys.readouterr().out


def test_real_head_ct(real_data):
    t = load('head_ct', real_data)
    assert list(t) == COLUMNS
    assert t.label.value_counts().to_dict() == {'normal': 100, 'hemorrhage': 100}
    assert t.attrs['rejected'] == []
    for seed in range(3):
        s = stratified_split(t, seed=seed)
        assert s.groupby(['label', 'split']).size().to_dict() == {
            (c, p): n
            for c in ('normal', 'hemorrhage')
            for p, n in (('train', 72), ('val', 17), ('test', 11))
        }
        assert s[s.image.str.contains(r'18[89]\.png')].split.nunique() == 1
        assert check_split(s).empty
    (
        s.loc[s.image.str.endswith('188.png'), 'split'],
        s.loc[s.image.str.endswith('189.png'), 'split'],
    ) = 'train', 'test'
    assert len(check_split(s)) == 1
    r = verify('head_ct', real_data)
    assert r.ok
    assert [[Path(p).name for p in d['images']] for d in r.duplicates] == [['188.png', '189.png']]
