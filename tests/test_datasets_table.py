"One table: what is broken is left out and named, and the order is always the same."

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_files import BROKEN, file_names, gray, make_head_ct, put

from gan_covid.datasets.own import load_folder
from gan_covid.datasets.public import load
from gan_covid.datasets.verify import verify
from gan_covid.records import InputError

pytestmark = pytest.mark.usefixtures('download_cache')


def test_load_leaves_out_what_is_broken(tmp_path):
    root = make_head_ct(tmp_path / 'head')
    folder = root / 'head_ct' / 'head_ct'
    good = (folder / '000.png').read_bytes()
    for i, (name, spoil) in enumerate(list(BROKEN.items())[:5]):
        (folder / f'{i:03d}.png').write_bytes(spoil(good))
    put(folder / '005.png', gray[:1, :1])
    with pytest.warns(UserWarning, match='6 not used') as caught:
        t = load('head_ct', root)
    assert len(caught) == 1
    assert file_names(t) == ['006.png', '007.png']
    assert sorted(Path(r['file']).name for r in t.attrs['rejected']) == [
        f'{i:03d}.png' for i in range(6)
    ]
    assert all(r['why'] for r in t.attrs['rejected'])
    r = verify('head_ct', root)
    assert not r.ok
    assert len(r.broken) == 6


def test_nothing_usable(tmp_path):
    root = make_head_ct(tmp_path / 'head', 2)
    for p in root.rglob('*.png'):
        p.write_bytes(b'')
    with pytest.raises(InputError, match='no image of Head CT'):
        load('head_ct', root)


def test_unreadable_folder(tmp_path, monkeypatch):
    root, scandir = make_head_ct(tmp_path / 'head'), os.scandir

    def closed(p):
        if Path(p).name == 'head_ct':
            raise PermissionError(13, 'Permission denied')
        return scandir(p)

    monkeypatch.setattr(os, 'scandir', closed)
    with pytest.raises(InputError, match='head.*ermission'):
        load('head_ct', root)
    with pytest.raises(InputError, match='head.*could not be read|Could not be read.*head'):
        load('head_ct', tmp_path)
    with pytest.raises(InputError, match='head_ct.*Permission denied'):
        load_folder(root / 'head_ct')


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    root, scandir = make_head_ct(tmp_path / 'head', 20), os.scandir
    first = load('head_ct', root)

    def shuffled(path):
        entries = list(scandir(path))
        return random.Random(1).sample(entries, len(entries))

    monkeypatch.setattr(os, 'scandir', shuffled)
    assert load('head_ct', root).equals(first)


def test_import_loads_nothing_heavy():
    heavy = 'torch', 'tensorflow', 'keras', 'kagglehub', 'pooch'
    code = (
        'import sys, gan_covid.datasets.verify, gan_covid.datasets.loey; '
        f'print([m for m in {heavy} if m in sys.modules])'
    )
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert r.stdout.strip() == '[]'
