"Files of drawn images: what a stopped run leaves, what fits into one folder, types and tables."

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_stylegan2_sampling import NAMES, network

from gan_covid.records import InputError, read_json
from gan_covid.stylegan2 import writing as W
from gan_covid.stylegan2.sampling import sample

ABOUT = dict(classes=NAMES, window=[0, 255], dtype='uint8', kimg=1.0)
pytestmark = pytest.mark.usefixtures('one_thread')


def test_stopped_run_is_resumed(tmp_path, monkeypatch):
    G, write, done = network(c_dim=3), W._write_image, []
    files = [f'Viral Pneumonia/Viral_Pneumonia-{i:06d}.png' for i in range(12)]

    def generate(folder):
        look = dict(psi=0.6, noise='random', batch=4)
        W.generate_images(G, ABOUT, tmp_path / folder, range(12), 'Viral Pneumonia', **look)

    def stops(path, a):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(write(path, a))

    with monkeypatch.context() as m:
        m.setattr(W, '_write_image', stops)
        with pytest.raises(KeyboardInterrupt):
            generate('a')
    there = [p.relative_to(tmp_path / 'a').as_posix() for p in (tmp_path / 'a').rglob('*.png')]
    assert sorted(pd.read_csv(tmp_path / 'a' / 'images.csv')['file']) == sorted(there) == files[:5]
    for folder in 'ab':
        generate(folder)
    for name in ['images.csv', *files]:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    assert (pd.read_csv(tmp_path / 'a' / 'images.csv')['label'] == 'Viral Pneumonia').all()


def test_nothing_is_computed_for_what_is_there(tmp_path, monkeypatch):
    G = network()
    W.generate_images(G, {}, tmp_path, range(3))
    monkeypatch.setattr(W, 'sample', None)
    files = W.generate_images(G, {}, tmp_path, range(3))['file'].tolist()
    assert files == [f'generated/00000{i}.png' for i in range(3)]


def test_classes_share_a_folder_settings_do_not(tmp_path):
    G = network(c_dim=3)
    for c in NAMES:
        W.generate_images(G, ABOUT, tmp_path, range(2), c)
    table = pd.read_csv(tmp_path / 'images.csv')
    assert table['label'].tolist() == [c for c in NAMES for _ in range(2)]
    assert len(set(table['file'])) == 6
    same = dict(network=G, about=ABOUT, folder=tmp_path, seeds=[1], label=0)
    for other in (
        dict(psi=0.5),
        dict(noise='none'),
        dict(cutoff=2),
        dict(centre='class'),
        dict(about={**ABOUT, 'window': [0, 100]}),
        dict(about={**ABOUT, 'dtype': 'uint16'}),
        dict(network=network(1, c_dim=3)),
    ):
        with pytest.raises(InputError, match='other settings'):
            W.generate_images(**same | other)
    # what is only written down does not count
    W.generate_images(G, {**ABOUT, 'kimg': 2.0, 'seed': 3}, tmp_path, [1], 0)
    assert read_json(tmp_path / 'generate.json')['about']['kimg'] == 1


def test_class_names_that_make_equal_files(tmp_path):
    about, G = {'classes': ['a/b', 'a b', 'c']}, network(c_dim=3)
    with pytest.raises(InputError, match='same file'):
        W.generate_images(G, about, tmp_path / 'x', [1, 1], ['a/b', 'a b'])
    assert not (tmp_path / 'x').exists()


@pytest.mark.filterwarnings('ignore:The image decoding')
def test_16_bit_colours_are_read_by_others(tmp_path):
    decode = pytest.importorskip('torchvision.io')
    x = np.random.default_rng(0).integers(0, 2**16, (2, 5, 7, 3)).astype('uint16')
    W.write_images(tmp_path, x, ['a', 'b'], dtype='uint16')
    for name, y in zip('ab', x):
        data = bytearray((tmp_path / f'{name}.png').read_bytes())
        data = torch.frombuffer(data, dtype=torch.uint8)
        got = decode.decode_png(data, decode.ImageReadMode.UNCHANGED)
        assert got.dtype == torch.uint16 and np.array_equal(got.permute(1, 2, 0).numpy(), y)
        with Image.open(tmp_path / f'{name}.png') as im:
            im.verify()


@pytest.mark.parametrize(
    'channels, dtype, ending',
    [(2, 'uint8', 'npy'), (4, 'uint16', 'npy'), (1, 'float32', 'npy'), (3, 'uint8', 'png')],
)
def test_types_of_files(tmp_path, channels, dtype, ending):
    x = np.random.default_rng(0).random((1, 4, 6, channels))
    row = W.write_images(tmp_path, x, ['a'], [10, 90], dtype, 3, 'A', 0.5).iloc[0].tolist()
    assert row == [f'a.{ending}', 3, 'A', 0.5]
    path = tmp_path / f'a.{ending}'
    back = np.load(path) if ending == 'npy' else np.array(Image.open(path))
    assert back.dtype == dtype and np.array_equal(back, W.to_dtype(x[0], [10, 90], dtype))
    assert 10 <= back.min() and back.max() <= 90


def test_broken_table_is_named(tmp_path):
    (tmp_path / 'images.csv').write_bytes(b'')
    with pytest.raises(InputError, match='images.csv'):
        W.write_images(tmp_path, np.zeros((1, 4, 4, 1)), ['a'])


def test_projection_on_disk(tmp_path):
    G, about = network(channels=3), {'dtype': 'float32', 'window': [-1000, 400]}
    image = W.to_dtype(sample(G, 1)[0], [-1000, 400], 'float32')
    search = dict(steps=10, space='w+', fit_noise=False)
    found = W.project_image(G, about, image, tmp_path, **search)
    with np.load(tmp_path / 'w.npz') as f:
        assert list(f.files) == ['w'] and np.array_equal(f['w'], found['w'])
    record = read_json(tmp_path / 'project.json')
    assert found['w'].shape == (6, 16) and record['space'] == 'w+' and record['rmse'] > 0
    assert np.abs(np.load(tmp_path / 'target.npy') - image).max() < 0.01
    with pytest.raises(InputError, match='resize'):
        W.project_image(G, {}, np.zeros((8, 8, 3), 'uint8'), tmp_path)
    with pytest.raises(InputError, match='trained on uint8'):
        W.project_image(G, {}, np.zeros((16, 16, 3), 'uint16'), tmp_path)
