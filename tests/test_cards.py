"""Generators to take away: trained by the command line on a folder, with a card; drawn from, with a sheet."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gan_covid import cards, cli, phantoms
from gan_covid.records import InputError, read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Drawn chests in `train` and `val`, of two classes whose names read like numbers."
    root = tmp_path_factory.mktemp('own') / 'mine'
    for part, n in (('train', 24), ('val', 10)):
        for name, label in (('0', 'Normal'), ('1', 'COVID')):
            (root / part / name).mkdir(parents=True)
            images = phantoms.draw('chest_xray', label, n, 32, seed=n)
            for i, x in enumerate(images):
                Image.fromarray(x).save(root / part / name / f'{i}.png')
    return root


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
    "Folders of a CGAN, of a DCGAN a class, and of a StyleGAN2, each trained for a moment."
    out = tmp_path_factory.mktemp('trained')
    short = {
        'cgan': ['--kimg', '0.1', '--licence', 'CC BY 4.0'],
        'dcgan': ['-p', 'epochs=2', '-p', 'batch=8'],
        'stylegan2': ['--kimg', '0.05', '-p', 'width=tiny', '-p', 'batch=8'],
    }
    for kind, options in short.items():
        assert cli.main(['train', kind, str(folder), str(out / kind), *options]) == 0
    return out


def test_a_card_stands_beside_each_network(trained):
    files = [p for kind in ('*.keras', '*.safetensors') for p in trained.rglob(kind)]
    files = [p for p in files if p.name != 'discriminator.keras']
    assert len(files) == 4
    for file in files:
        card = cards.known_of(file)
        assert card['network']['file'] == file.name and card['training']['seed'] == 0
        assert card['data']['held_out'] in (10, 20) and card['copies']['n']['heldout'] in (10, 20)
        text = cards.card_files(file)[1].read_text(encoding='utf-8')
        assert card['network']['sha256'] in text and '## Limits' in text
    conditional = cards.known_of(trained / 'cgan' / 'generator.keras')
    assert conditional['data']['licence'] == 'CC BY 4.0'
    assert conditional['data']['by_class'] == {'0': 24, '1': 24}
    one = cards.known_of(trained / 'dcgan' / '1' / 'generator.keras')
    assert one['data']['by_class'] == {'1': 24} and one['data']['licence'] == cards.LICENCE_UNKNOWN


def test_no_network_is_a_pickle(trained):
    "A .keras file is a zip of JSON and HDF5; a .safetensors file begins with the length of a JSON header."
    for file in trained.rglob('generator.keras'):
        with zipfile.ZipFile(file) as packed:
            assert {n.rpartition('.')[2] for n in packed.namelist()} <= {'json', 'h5'}
            assert '__lambda__' not in packed.read('config.json').decode()
    (file,) = trained.rglob('*.safetensors')
    with open(file, 'rb') as f:
        json.loads(f.read(int.from_bytes(f.read(8), 'little')))


@pytest.mark.parametrize('kind, n', [('cgan', 8), ('dcgan', 8), ('stylegan2', 4)])
def test_images_come_with_a_sheet(trained, tmp_path, kind, n):
    network = trained / kind if kind != 'stylegan2' else next(trained.rglob('*.safetensors'))
    label = ['--label', '1'] if kind == 'stylegan2' else []
    command = ['generate', str(network), str(tmp_path / 'a'), '--seeds', '0-3', *label]
    assert cli.main(command) == 0
    first = {p: p.read_bytes() for p in (tmp_path / 'a').rglob('*.png')}
    assert len(first) == n
    table = pd.read_csv(tmp_path / 'a' / 'images.csv', dtype=str)
    assert set(table.label) == ({'1'} if kind == 'stylegan2' else {'0', '1'})
    sheet = read_json(tmp_path / 'a' / 'data_sheet.json')
    assert sheet['images'] == n and sheet['shape'] == [32, 32, 1]
    assert cards.DRAWN_ONLY in (tmp_path / 'a' / 'data_sheet.md').read_text(encoding='utf-8')
    next(iter(first)).unlink()
    assert cli.main([*command[:2], str(tmp_path / 'a'), '--seeds', '0-4', *label]) == 0
    assert all(p.read_bytes() == data for p, data in first.items())


def test_a_card_of_another_network_is_refused(trained, tmp_path, capsys):
    network, card = trained / 'cgan' / 'generator.keras', tmp_path / 'generator.card.json'
    (tmp_path / 'generator.keras').write_bytes(network.read_bytes())
    card.write_text(json.dumps({**cards.known_of(network), 'network': {'sha256': 'of another'}}))
    assert cli.main(['generate', str(tmp_path / 'generator.keras'), str(tmp_path / 'out')]) == 2
    assert 'the card of another network' in capsys.readouterr().err
    card.unlink()  # without a card: classes by number
    command = ['generate', str(tmp_path / 'generator.keras'), str(tmp_path / 'out'), '--label', '1']
    assert cli.main([*command, '--seeds', '5']) == 0
    assert (tmp_path / 'out' / '1' / '1-000005.png').exists()
    assert 'not known' in (tmp_path / 'out' / 'data_sheet.md').read_text(encoding='utf-8')


def test_the_record_of_a_training_stands_in_for_a_card(tmp_path):
    (tmp_path / 'generator.keras').write_bytes(b'x')
    record = {'parameters': {'labels': ['a', 'b']}, 'data': {'title': 't', 'kind': 'phantom'}}
    (tmp_path / 'record.json').write_text(json.dumps(record))
    known = cards.known_of(tmp_path / 'generator.keras')
    assert known['about']['classes'] == ['a', 'b'] and known['data']['phantom']


def test_prepared_images_keep_their_name(tmp_path):
    "A folder that a run prepared is called as in its record; phantoms are told from images of patients."
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'prepare.json').write_text('{}')
    record = {'data': {'title': '20 drawn phantoms', 'kind': 'phantom'}}
    (tmp_path / 'record.json').write_text(json.dumps(record))
    assert cards.named(tmp_path / 'images') == {'title': '20 drawn phantoms', 'phantom': True}
    assert cards.named(tmp_path) == {'title': tmp_path.name, 'phantom': False}
    assert cards.named(phantoms.write('head_ct', tmp_path, 2, size=32))['phantom']


@pytest.mark.parametrize(
    'command, said',
    [
        ('train dcgan {folder} {out} --augment bgc', '--augment: only StyleGAN2'),
        ('train cgan {folder} {out} --size 48', 'squares of 32, 64, 128'),
        ('train cgan {folder} {out} -p latnet=3', 'latnet: no such setting'),
        ('train cgan {folder}/train/0 {out}', 'two classes or more'),
        ('train dcgan {folder} {out} --channels 3', 'gray'),
        ('generate {trained}/cgan {out} --psi 0.5', '--psi: only StyleGAN2'),
        ('generate {trained}/cgan {out} --label 7', 'no such class; there are 0, 1'),
        ('generate {trained}/dcgan {out} --label 7', 'no such class; there are 0, 1'),
        ('generate {out}/none.keras {out}', 'not found'),
    ],
)
def test_bad_input_gets_one_line(folder, trained, tmp_path, capsys, command, said):
    words = command.format(folder=folder, trained=trained, out=tmp_path / 'out').split()
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_twelve_bits_come_back_as_twelve_bits(tmp_path):
    "Values and type of the training images are those of the drawn ones."
    rng = np.random.default_rng(0)
    for i in range(12):
        image = rng.integers(0, 4096, (32, 32)).astype('uint16')
        (tmp_path / 'in').mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / 'in' / f'{i}.png')
    options = ['--window', '0', '4095', '-p', 'epochs=1']
    assert cli.main(['train', 'dcgan', str(tmp_path / 'in'), str(tmp_path / 'net'), *options]) == 0
    assert (
        cli.main(['generate', str(tmp_path / 'net'), str(tmp_path / 'out'), '--seeds', '0-2']) == 0
    )
    drawn = [np.asarray(Image.open(p)) for p in (tmp_path / 'out').rglob('*.png')]
    assert len(drawn) == 3 and {x.dtype.name for x in drawn} == {'uint16'}
    assert 255 < max(x.max() for x in drawn) <= 4095


def test_too_few_images_are_not_measured():
    few = np.zeros((4, 8, 8, 1), 'float32')
    assert cards.measure(few, few) == {}
    with pytest.raises(InputError, match='not found'):
        from gan_covid.dcgan.own import networks_in

        networks_in('nowhere.keras')
