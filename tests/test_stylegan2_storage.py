"Files of networks: what comes back, what is refused, and what a failing write leaves."

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stylegan2_networks import shaken

from gan_covid.records import InputError
from gan_covid.stylegan2.networks import Discriminator, Generator
from gan_covid.stylegan2.storage import load_networks, save_networks

pytestmark = pytest.mark.usefixtures('one_thread')


def refused(f, *words):
    with pytest.raises(InputError) as e:
        f()
    assert all(w in str(e.value) for w in words), str(e.value)
    return str(e.value)


def small(cls=Generator, seed=0, /, **kw):
    "A random network in which all tensors show."
    rng = torch.Generator().manual_seed(seed)
    settings = dict(size=16, width=(96, 16)) | ({'z_dim': 8} if cls is Generator else {}) | kw
    return shaken(cls(**settings, generator=rng), seed).eval()


def latents(n=4, d=8):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


ABOUT = {
    'classes': ['a', 'b'],
    'window': [0, 65535],
    'dtype': 'uint16',
    'kimg': 12.5,
    'data': {'title': 'phantoms', 'images': 7},
    'seed': 3,
    'settings': {'gamma': 0.1, 'lr': np.float32(0.5)},
}


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(size=(24, 16), c_dim=2, channels=3, mapping_layers=3),
        dict(size=(50, 30), first=(25, 15), w_dim=5, bf16=True),
    ],
)
def test_networks_come_back(tmp_path, settings):
    G = small(**settings)
    D = small(
        Discriminator,
        **{k: v for k, v in settings.items() if k not in ('mapping_layers', 'w_dim')},
        kind='skip',
        mbstd_group=2,
    )
    path = save_networks(
        tmp_path / 'sub' / 'n.safetensors', {'G': G.train(), 'D': D, 'G_ema': G}, ABOUT
    )
    state = torch.get_rng_state()
    got, about = load_networks(path)
    assert torch.equal(state, torch.get_rng_state())
    assert list(got) == ['G', 'D', 'G_ema']
    assert about == json.loads(json.dumps({**ABOUT, 'settings': {'gamma': 0.1, 'lr': 0.5}}))
    c = [0, 1, 1, 0] if settings.get('c_dim') else None
    image = G.eval()(latents(), c, noise='const')
    assert torch.equal(got['G_ema'](latents(), c, noise='const'), image)
    assert torch.equal(got['D'](image, c), D(image, c))
    assert all(
        not n.training and all(p.requires_grad for p in n.parameters()) for n in got.values()
    )
    assert got['G'] is not got['G_ema']
    assert got['D'].config == D.config
    assert [p.name for p in path.parent.iterdir()] == ['n.safetensors']


def test_equal_networks_give_equal_bytes_whatever_their_layout(tmp_path):
    G = small()
    a = save_networks(tmp_path / 'a.safetensors', {'G': G}, ABOUT).read_bytes()
    assert (
        a
        == save_networks(
            tmp_path / 'b.safetensors', {'G': G.to(memory_format=torch.channels_last)}, ABOUT
        ).read_bytes()
    )
    save_networks(tmp_path / 'c.safetensors', {'G': G.double()}, ABOUT)
    assert (
        load_networks(tmp_path / 'c.safetensors')[0]['G'].mapping.fc0.weight.dtype == torch.float32
    )


def test_only_what_is_asked_for_with_changes(tmp_path):
    path = save_networks(tmp_path / 'n.safetensors', {'G_ema': small(), 'D': small(Discriminator)})
    ((name, D),) = load_networks(path, 'D', bf16=True, mbstd_group=None)[0].items()
    assert name == 'D' and D.config['bf16'] and D.mbstd == (None, 1)
    both, about = load_networks(path, ['D', 'G_ema'], mbstd_group=2)
    assert list(both) == ['D', 'G_ema'] and both['D'].mbstd == (2, 1) and about == {}
    refused(lambda: load_networks(path, 'G_ema', mbstd_group=2), 'mbstd_group=2')
    refused(lambda: load_networks(path, 'E'), "'E'", 'G_ema, D')
    refused(lambda: load_networks(path, 'G_ema', size=32), 'n.safetensors: G_ema', 'b32x32')
    refused(lambda: load_networks(path, 'G_ema', z_dim=9), 'mapping.fc0.weight', 'shape')
    refused(lambda: load_networks(path, 'G_ema', size=33), '33')
    refused(lambda: load_networks(path, 'G_ema', mapping_layers=10**12), 'mapping_layers')
    refused(lambda: load_networks(path, 'D', 'nowhere:0'), 'nowhere')


def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_networks(tmp_path / 'n.safetensors', {'G': small()})
    before = path.read_bytes()
    import safetensors.torch

    def fails(tensors, part, meta):
        Path(part).write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(safetensors.torch, 'save_file', fails)
    refused(lambda: save_networks(path, {'G': small(Generator, 1)}), 'no space left')
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['n.safetensors']


def test_bad_things_are_not_saved(tmp_path):
    refused(lambda: save_networks(tmp_path / 'x', {'G': torch.nn.Linear(1, 1)}), 'Linear')
    refused(lambda: save_networks(tmp_path / 'x', {'G.x': small()}), 'G.x')
    refused(lambda: save_networks(tmp_path / 'x', {'G': small()}, {'x': object()}), 'about')
    assert not list(tmp_path.iterdir())


def with_header(path, change):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + n])
    info = json.loads(header['__metadata__']['gan_covid_stylegan2'])
    change(header, info)
    if '__metadata__' in header:
        header['__metadata__'] = {'gan_covid_stylegan2': json.dumps(info)}
    text = json.dumps(header).encode()
    other = path.with_name('other.safetensors')
    other.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + n :])
    return other


def test_broken_and_foreign_files_are_named(tmp_path):
    path = save_networks(tmp_path / 'n.safetensors', {'G': small()}, ABOUT)
    whole = path.read_bytes()
    for cut in (0, 5, 8, 100, 3000, len(whole) - 1):
        (tmp_path / 'cut').write_bytes(whole[:cut])
        refused(lambda: load_networks(tmp_path / 'cut'), 'cut', 'Copy it again')
    refused(lambda: load_networks(tmp_path / 'none'), 'none: not found')
    refused(lambda: load_networks(tmp_path), 'not found')
    for change, word in (
        (lambda h, i: h.pop('__metadata__'), 'none that gan_covid saved'),
        (lambda h, i: i.update(version=99), 'Update'),
        (lambda h, i: i.pop('networks'), 'networks'),
        (lambda h, i: i['networks']['G'].update(kind='Transformer'), "'Transformer'"),
        (lambda h, i: i['networks']['G']['config'].update(depth=3), 'depth'),
        (lambda h, i: i['networks'].update(G=3), 'broken'),
        (lambda h, i: i['networks']['G']['config'].update(width='vast'), 'vast'),
        (lambda h, i: i['networks']['G']['config'].update(size=[2**40, 2**40]), 'more numbers'),
        (lambda h, i: i['networks']['G']['config'].update(width=[2**40, 2**40]), 'more numbers'),
        (lambda h, i: i['networks']['G']['config'].update(channels=2**40), 'more numbers'),
        (lambda h, i: i['networks']['G']['config'].update(z_dim=2**40), 'more numbers'),
        (lambda h, i: i['networks']['G']['config'].update(width=[2**20, 2**20]), 'more numbers'),
        (lambda h, i: i['networks']['G']['config'].update(width=[96, 15]), 'shape'),
        (lambda h, i: h.update({'G.more': h.pop('G.mapping.fc1.bias')}), 'G.mapping.fc1.bias'[2:]),
        (
            lambda h, i: h.update(
                {'G.mapping.fc1.bias': {**h['G.mapping.fc1.bias'], 'dtype': 'I32'}}
            ),
            'int32',
        ),
    ):
        other = with_header(path, change)
        refused(lambda: load_networks(other), 'other.safetensors', word)
    assert list(load_networks(with_header(path, lambda h, i: None))[0]) == ['G']
