"Files of networks, published checkpoints read without running anything, and transfer."

import io
import itertools
import json
import pickle
import re
import struct
import sys
import types
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stylegan2_networks import FILES, part, shaken
from test_stylegan2_ops import distance, oracle

from gan_covid.records import InputError
from gan_covid.stylegan2 import files as S
from gan_covid.stylegan2.files import (
    load_any,
    load_networks,
    load_published,
    read_pickle,
    save_networks,
    transfer,
)
from gan_covid.stylegan2.networks import Discriminator, Generator

pytestmark = pytest.mark.usefixtures('one_thread')


def refused(f, *words):
    with pytest.raises(InputError) as e:
        f()
    assert all(w in str(e.value) for w in words), str(e.value)
    return str(e.value)


def small(cls=Generator, seed=0, /, **kw):
    rng = torch.Generator().manual_seed(seed)
    return shaken(
        cls(
            **{**dict(size=16, width=(96, 16)), **({'z_dim': 8} if cls is Generator else {}), **kw},
            generator=rng,
        ),
        seed,
    ).eval()


def latents(n=4, d=8):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1))


# --- files of networks ----------------------------------------------------------------------------------------------------------

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
    assert (
        torch.equal(state, torch.get_rng_state())
        and list(got) == ['G', 'D', 'G_ema']
        and about == json.loads(json.dumps({**ABOUT, 'settings': {'gamma': 0.1, 'lr': 0.5}}))
    )
    c = [0, 1, 1, 0] if settings.get('c_dim') else None
    image = G.eval()(latents(), c, noise='const')
    assert torch.equal(got['G_ema'](latents(), c, noise='const'), image) and torch.equal(
        got['D'](image, c), D(image, c)
    )
    assert (
        all(not n.training and all(p.requires_grad for p in n.parameters()) for n in got.values())
        and got['G'] is not got['G_ema']
        and got['D'].config == D.config
    )
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


# --- published checkpoints ------------------------------------------------------------------------------------------------------


def make_object(meta):
    raise AssertionError('executed')


class EasyDict(dict):
    pass


NAMES = {
    'torch_utils': {},
    'torch_utils.persistence': {'_reconstruct_persistent_obj': make_object},
    'dnnlib': {},
    'dnnlib.util': {'EasyDict': EasyDict},
}


def dump(x, protocol=4):
    "Pickle with modules of the published names at hand, which are gone again before anything is read."
    for module, values in NAMES.items():
        sys.modules[module] = types.ModuleType(module)
        for name, v in values.items():
            v.__module__, v.__qualname__ = module, name
            setattr(sys.modules[module], name, v)
    try:
        return pickle.dumps(x, protocol=protocol)
    finally:
        for module in NAMES:
            del sys.modules[module]


class Object:
    "A persistent object: pickled as the published loader's call with source text and state."

    def __init__(self, name, source='', meta=EasyDict, **kwargs):
        self.meta = meta(type='class', version=6, module_src=source, class_name=name, state=None)
        self.meta['state'] = self.state = dict(
            _parameters=OrderedDict(),
            _buffers=OrderedDict(),
            _modules=OrderedDict(),
            _non_persistent_buffers_set=set(),
            _init_args=(),
            _init_kwargs=EasyDict(kwargs),
            training=False,
        )

    def __reduce__(self):
        return make_object, (self.meta,)


def tree(tensors, name, source='', buffers=(), **kwargs):
    "Tensors by published names as nested persistent objects."
    root = Object(name, source, **kwargs)
    for key, t in tensors.items():
        *where, last = key.split('.')
        at = root
        for w in where:
            at = at.state['_modules'].setdefault(w, Object('Part', source))
        if key in buffers:
            at.state['_buffers'][last] = t
        else:
            at.state['_parameters'][last] = torch.nn.Parameter(t)
        at.state['_parameters'].setdefault('absent', None)
    return root


def published_names(network):
    "Tensors of ours by published names, with the filters that published blocks keep; and which are buffers."

    def plain(k):
        return re.sub(r'\bb(\d+)x\d+\b', r'b\1', k)

    t = {plain(k): v.detach().clone() for k, v in network.state_dict().items()}
    filters = {
        k.rsplit('.', 1)[0] + '.resample_filter': torch.outer(
            *[torch.tensor([1.0, 3, 3, 1]) / 8] * 2
        )
        for k in t
        if k.endswith(('.const', '.noise_const'))
    }
    return {**t, **filters}, {plain(k) for k, _ in network.named_buffers()} | set(filters)


def as_object(network, **kw):
    t, buffers = published_names(network)
    return tree(t, type(network).__name__, buffers=buffers, **kw)


@pytest.fixture
def pkl(tmp_path):
    def write(x, protocol=4, name='x.pkl'):
        (tmp_path / name).write_bytes(x if isinstance(x, bytes) else dump(x, protocol))
        return tmp_path / name

    return write


def source_that_marks(tmp_path):
    return f'open({str(tmp_path / "marker")!r}, "w").close()\nraise SystemExit("executed")\n'


@FILES
@pytest.mark.parametrize('protocol', [2, 4])
def test_published_file_gives_the_published_numbers(file, protocol, pkl, tmp_path):
    "A file of the published structure, with the published parameters in it: images and logits are the published ones, and its source text stays text."
    z = oracle(f'f_networks_{file}_gray.npz')

    def tensors(p):
        return {k: torch.as_tensor(v, dtype=torch.float32) for k, v in part(z, p).items()}

    source = source_that_marks(tmp_path)
    G, D = (
        tree({**tensors('G.'), **tensors('Gbuf.')}, 'Generator', source, part(z, 'Gbuf.')),
        tree(tensors('D.'), 'Discriminator', source),
    )
    path = pkl(
        {
            'training_set_kwargs': EasyDict(path='set.zip', max_size=50, xflip=False),
            'G': G,
            'D': D,
            'G_ema': G,
            'augment_pipe': None,
        },
        protocol,
    )
    got, about = load_published(path)
    z = {
        k: torch.as_tensor(v).float()
        for k, v in z.items()
        if k in ('z', 'c', 'real', 'img_const', 'img_none', 'logits_real', 'logits_fake', 'ws')
    }
    for n in ('G', 'G_ema'):
        assert distance(got[n].mapping(z['z'], z['c']), z['ws']) < 1e-5
        assert (
            distance(got[n](z['z'], z['c'], noise='const'), z['img_const']) < 1e-5
            and distance(got[n](z['z'], z['c'], noise='none'), z['img_none']) < 1e-5
        )
    assert (
        distance(got['D'](z['real'], z['c']), z['logits_real']) < 1e-5
        and distance(got['D'](z['img_const'], z['c']), z['logits_fake']) < 1e-5
    )
    assert (
        about['window'] == [0, 255]
        and len(about['classes']) == z['c'].shape[1]
        and about['data']['images'] == 50
        and about['data']['title'] == 'set'
    )
    assert not (tmp_path / 'marker').exists() and not set(NAMES) & set(sys.modules)
    assert read_pickle(path)['D']['module_src'] == source


@pytest.mark.parametrize('kind', ['resnet', 'skip', 'orig'])
@pytest.mark.parametrize(
    'c_dim, channels, size, width, layers',
    [(0, 1, 8, (64, 8), 1), (3, 3, 32, (96, 16), 8), (2, 4, 16, (1000, 12), 2)],
)
def test_our_networks_go_through_a_published_file(
    kind, c_dim, channels, size, width, layers, pkl, tmp_path
):
    G, D = (
        small(
            size=size, c_dim=c_dim, channels=channels, width=width, mapping_layers=layers, w_dim=11
        ),
        small(
            Discriminator,
            size=size,
            c_dim=c_dim,
            channels=channels,
            width=width,
            kind=kind,
            mbstd_group=2,
        ),
    )
    base = EasyDict(channel_base=width[0], channel_max=width[1])
    path = pkl(
        {
            'D': as_object(
                D,
                source=source_that_marks(tmp_path),
                epilogue_kwargs=EasyDict(mbstd_group_size=2),
                **base,
            ),
            'G_ema': as_object(G, source=source_that_marks(tmp_path), synthesis_kwargs=base),
        },
        1 + channels,
    )
    got, about = load_published(path)
    c = torch.arange(4) % c_dim if c_dim else None
    image = G(latents(), c, noise='const')
    assert torch.equal(got['G_ema'](latents(), c, noise='const'), image) and torch.equal(
        got['D'](image, c), D(image, c)
    )
    assert (
        got['G_ema'].mapping.layers == layers
        and got['D'].kind == kind
        and got['D'].mbstd == D.mbstd
        and not (tmp_path / 'marker').exists()
    )
    again, about = load_networks(save_networks(tmp_path / 'n.safetensors', got, about))
    assert (
        torch.equal(again['G_ema'](latents(), c, noise='const'), image)
        and about['settings']['published'] == 'x.pkl'
    )


def test_versions_and_plain_modules_and_half_precision(pkl):
    "Another version, a plain dict in place of EasyDict, modules of torch.nn between, and parameters of 16 or 64 bits."
    G = small()
    t, buffers = published_names(G)
    root = tree(
        {k: v.half() if 'conv0' in k else v.double() for k, v in t.items()},
        'Generator',
        buffers=buffers,
        meta=dict,
    )
    root.meta['version'] = 3
    levels = root.state['_modules']['synthesis']
    box = torch.nn.ModuleDict()
    box._modules = levels.state['_modules']
    root.state['_modules']['synthesis'] = box
    got, _ = load_published(pkl({'G_ema': root}))
    assert (
        distance(got['G_ema'](latents(), noise='const'), G(latents(), noise='const')) < 2e-3
        and got['G_ema'].synthesis.b8x8.conv0.weight.dtype == torch.float32
    )


def test_reading_takes_settings_to_change_and_leaves_random_state(pkl):
    path = pkl({'G_ema': as_object(small()), 'D': as_object(small(Discriminator))})
    state = torch.get_rng_state()
    G = load_published(path, 'G_ema', bf16=True)[0]['G_ema']
    assert (
        G.config['bf16']
        and torch.equal(state, torch.get_rng_state())
        and load_published(path, 'D', mbstd_group=None)[0]['D'].mbstd == (None, 1)
    )
    refused(lambda: load_published(path, 'G'), "'G'", 'D, G_ema')
    refused(lambda: load_published(path, depth=3), 'depth=3')
    refused(lambda: load_published(path, 'G_ema', mbstd_group=2), 'mbstd_group=2')


def test_every_parameter_has_to_be_there(pkl):
    "Each one taken away in turn, or an odd one added, is named."
    for network, name in ((small(c_dim=2), 'G_ema'), (small(Discriminator, c_dim=2), 'D')):
        t, buffers = published_names(network)
        for key in t:
            if key.endswith('resample_filter'):
                continue
            message = refused(
                lambda: load_published(
                    pkl(
                        {name: tree({k: v for k, v in t.items() if k != key}, 'X', buffers=buffers)}
                    )
                ),
                f'x.pkl: {name}',
            )
            assert (
                re.sub(r'b(\d+)', r'b\1x\1', key) in message
                or key in message
                or key.rsplit('.', 2)[-2] in ('torgb', 'fromrgb', 'skip', 'embed', 'fc1', 'fc7')
                or key.startswith('mapping')
            ), (key, message)
        refused(
            lambda: load_published(
                pkl({name: tree({**t, 'odd.weight': torch.ones(2)}, 'X', buffers=buffers)})
            ),
            'odd.weight',
        )


@pytest.mark.parametrize(
    'change, words',
    [
        (
            lambda t: t.update({'synthesis.b4.resample_filter': torch.ones(4, 4) / 16}),
            ['resample_filter', '[1, 3, 3, 1]'],
        ),
        (lambda t: t.update({'synthesis.b4.const': torch.ones(16, 5, 4)}), ['synthesis.b4.const']),
        (lambda t: t.update({'synthesis.b8.conv1.weight': torch.ones(5, 12, 3, 3)}), ['channels']),
        (
            lambda t: t.update({'mapping.fc0.weight': torch.ones(3)}),
            ['mapping.fc0.weight', '2 axes'],
        ),
        (
            lambda t: t.update({'synthesis.b64.torgb.weight': torch.ones(1, 2, 1, 1)}),
            ['[4, 8, 16, 64]'],
        ),
        (lambda t: t.update({'synthesis.b8.skip.weight': torch.ones(1)}), ["'skip'"]),
        (
            lambda t: t.update({'mapping.w_avg': torch.ones(8, dtype=torch.int64)}),
            ['mapping.w_avg', 'int64'],
        ),
        (lambda t: t.pop('synthesis.b8.torgb.weight'), ['synthesis.b8']),
    ],
)
def test_other_architectures_are_named(change, words, pkl):
    t, buffers = published_names(small())
    change(t)
    refused(lambda: load_published(pkl({'G': tree(t, 'G', buffers=set(t))})), 'x.pkl: G', *words)


@pytest.mark.parametrize(
    'settings, word',
    [
        (dict(activation='relu'), 'relu'),
        (dict(mapping_kwargs=EasyDict(lr_multiplier=0.1)), 'lr_multiplier'),
        (dict(synthesis_kwargs=EasyDict(use_noise=False)), 'use_noise'),
    ],
)
def test_other_settings_are_named(settings, word, pkl):
    refused(lambda: load_published(pkl({'G': as_object(small(), **settings)})), 'x.pkl: G', word)
    ours = dict(
        activation='lrelu',
        mapping_kwargs=EasyDict(lr_multiplier=0.01, num_layers=2),
        synthesis_kwargs=EasyDict(use_noise=True, conv_clamp=256),
    )
    assert load_published(pkl({'G': as_object(small(), **ours)}))[1]['settings']['G'] == {
        'conv_clamp': 256
    }


def test_no_networks_in_it(pkl):
    refused(lambda: load_published(pkl({'a': 1})), 'no networks', 'a')
    refused(lambda: load_published(pkl({'G': {}})), 'x.pkl: G', 'state')
    refused(lambda: load_published(pkl({'G': Object('G')})), 'x.pkl: G')
    refused(lambda: read_pickle(pkl([1])), 'list')


# --- hostile pickles ------------------------------------------------------------------------------------------------------------


class Call:
    "Pickled as a call; `state` is put onto its result."

    def __init__(self, f, *args, state=None):
        self.made = (f, args) if state is None else (f, args, state)

    def __reduce__(self):
        return self.made


def text(s):
    return b'X' + struct.pack('<I', len(s)) + s.encode()


def glob(module, name):
    return f'c{module}\n{name}\n'.encode()


def program(body):
    return b'\x80\x02' + body + b'.'


def hostile(mark):
    import builtins
    import functools
    import importlib
    import operator
    import os
    import subprocess

    touch = f'touch {mark}'
    write = f'open({str(mark)!r}, "w").close()'

    def S8(s):
        return b'\x8c' + bytes([len(s)]) + s.encode()

    def legacy(payload):
        return S._MAGIC + b'\x80\x02M\xe9\x03.' + payload

    yield 'os.system', dump({'G': Call(os.system, touch)}), 'system'
    yield 'subprocess', dump({'G': Call(subprocess.call, touch.split())}), 'subprocess'
    for f in (
        eval,
        exec,
        builtins.__import__,
        builtins.open,
        builtins.compile,
        builtins.getattr,
        builtins.setattr,
        builtins.type,
        builtins.map,
        builtins.print,
    ):
        yield f.__name__, dump({'G': Call(f, write)}), f.__name__
    yield 'getattr of a tensor', dump({'G': Call(getattr, torch.ones(1), '__class__')}), 'getattr'
    yield 'partial', dump({'G': Call(functools.partial, os.system, touch)}), 'functools'
    yield 'attrgetter', dump({'G': Call(operator.attrgetter, 'system')}), 'operator'
    yield 'import_module', dump({'G': Call(importlib.import_module, 'antigravity')}), 'importlib'
    yield 'torch.load', dump({'G': Call(torch.load, str(mark))}), 'torch.serialization'
    yield 'torch.save', dump({'G': Call(torch.save, 1, str(mark))}), 'torch.serialization'
    for n in (
        '_import_dotted_name',
        '_rebuild_wrapper_subclass',
        '_rebuild_device_tensor_from_numpy',
        '_rebuild_sparse_tensor',
        '_element_size',
    ):
        yield (
            f'torch._utils.{n}',
            program(glob('torch._utils', n) + text('os.system') + b'\x85R'),
            n,
        )
    yield (
        'dotted name',
        b'\x80\x04' + S8('torch.storage') + S8('_load_from_bytes.__globals__') + b'\x93.',
        '__globals__',
    )
    yield (
        'dotted module',
        b'\x80\x04' + S8('torch.storage') + S8('os.system') + b'\x93' + S8(touch) + b'\x85R.',
        'os.system',
    )
    yield (
        'dotted torch.nn',
        b'\x80\x04' + S8('torch.nn.modules.module') + S8('sys.modules') + b'\x93.',
        'sys.modules',
    )
    yield (
        'posix through numpy',
        program(glob('numpy.core.multiarray', 'fromstring') + text('x') + b'\x85R'),
        'fromstring',
    )
    yield 'numpy.load', program(glob('numpy', 'load') + text(str(mark)) + b'\x85R'), 'numpy.load'
    yield 'INST', b'(' + f"S'{touch}'\nios\nsystem\n.".encode(), 'instruction'
    yield 'OBJ', program(b'(' + glob('os', 'system') + text(touch) + b'o'), 'OBJ'
    yield 'extension registry', program(b'\x82\x01'), 'EXT1'
    yield 'persistent id', program(text('x') + b'Q'), 'BINPERSID'
    yield 'next buffer', b'\x80\x05\x97.', 'NEXT_BUFFER'
    yield 'maker as value', program(b'}' + text('G') + glob('torch', 'device') + b's'), '_Maker'
    # BUILD puts attributes (or slots) onto whatever lies below
    for slots in (False, True):
        state = (
            b'}'
            + text('__call__')
            + glob('torch', 'device')
            + b's'
            + text('kind')
            + text('evil')
            + b's'
        )
        state = b'N' + state + b'\x86' if slots else state
        for name, below in (
            ('maker', glob('torch', 'device')),
            ('dict class', glob('collections', 'OrderedDict')),
            ('module class', glob('torch.nn.modules.linear', 'Linear')),
            ('record', glob('torch', 'device') + text('a') + b'\x85R'),
            ('array', glob('numpy', 'dtype') + b')R'),
            ('plain dict', b'}'),
            ('text', text('a')),
            ('list', b']'),
        ):
            yield (
                f'BUILD on a {name}, slots {slots}',
                program(b'}' + text('G') + below + state + b'b' + b's'),
                '',
            )
    yield 'NEWOBJ of a function', program(glob('torch', 'device') + b')\x81'), ''
    yield (
        'call of a dict class with an iterator',
        program(glob('collections', 'OrderedDict') + b'K\x05\x85R'),
        '',
    )
    yield 'call of text', program(text('a') + b')R'), ''
    # storages that are no storages
    yield (
        'storage: zip',
        program(
            glob('torch.storage', '_load_from_bytes')
            + b'B'
            + struct.pack('<I', 4)
            + b'PK\3\4'
            + b'\x85R'
        ),
        'format',
    )
    evil = legacy(b'\x80\x02}.' + dump(Call(os.system, touch), 2))
    yield (
        "storage: a trap in torch's format",
        dump({'x': Call(torch.storage._load_from_bytes, evil)}),
        'something else',
    )
    buffer = io.BytesIO()
    torch.save({'x': 1}, buffer, _use_new_zipfile_serialization=False)
    large = storage(torch.ones(4)).replace(b'K\x04N', b'J\xff\xff\xff\x7fN')
    assert large != storage(torch.ones(4))
    yield (
        'storage: claims 8 GB',
        dump({'x': Call(torch.storage._load_from_bytes, large)}),
        'damaged',
    )
    yield (
        'storage: a dict',
        dump({'x': Call(torch.storage._load_from_bytes, buffer.getvalue())}),
        'storage',
    )
    yield (
        'storage: cut',
        dump({'x': Call(torch.storage._load_from_bytes, storage(torch.ones(9))[:-5])}),
        'damaged',
    )
    yield 'storage: text', dump({'x': Call(torch.storage._load_from_bytes, 'abc')}), 'bytes'

    # tensors that are larger than what they lie in
    def rebuild(size, stride, offset=0):
        return dump(
            {
                'x': Call(
                    torch._utils._rebuild_tensor_v2,
                    Call(torch.storage._load_from_bytes, storage(torch.ones(4))),
                    offset,
                    size,
                    stride,
                    False,
                    OrderedDict(),
                )
            }
        )

    yield 'tensor of nothing', rebuild((2**40,), (0,)), 'storage'
    yield 'tensor beyond the end', rebuild((4,), (2**40,)), ''
    yield 'tensor before the start', rebuild((4,), (-1,)), 'storage'
    yield 'tensor with an offset', rebuild((4,), (1,), 2**50), ''
    yield 'tensor of text', rebuild(('a',), (1,)), ''
    yield 'object array', dump({'x': np.array([Call(os.system, touch)], object)}), 'system'
    yield 'object array without a call', dump({'x': np.array([{}], object)}), "'O8'"
    yield 'array with fields', dump({'x': np.zeros(2, [('a', 'f4')])}), 'type'
    # size and depth
    yield 'memo', program(b'}r\xff\xff\xff\x7f'), 'LONG_BINPUT'
    yield 'long text', program(b'X\xff\xff\xff\x7fa'), ''
    yield 'long bytes', b'\x80\x04\x8e' + struct.pack('<Q', 2**50) + b'a.', ''
    yield 'long bytearray', b'\x80\x05\x96' + struct.pack('<Q', 2**62) + b'a.', ''
    yield 'long frame', b'\x80\x04\x95' + struct.pack('<Q', 2**62) + b'}.', ''
    yield 'long number', program(b'\x8a\xff' + b'\x7f' * 255), 'LONG1'
    yield 'deep', program(b']' * 5000 + b'a' * 4999), ''
    yield 'circle', program(b'}q\0' + text('G') + b'h\0s'), 'itself'
    yield 'circle through a record', program(b']q\0' + glob('torch', 'device') + b'h\0\x85Ra'), ''
    yield (
        'unfolding',
        program(
            b'}('
            + text('b')
            + b'B'
            + struct.pack('<I', 10**5)
            + b'\0' * 10**5
            + b'q\0'
            + b''.join(
                text(f'{i}')
                + glob('_codecs', 'encode')
                + text('a' * 2000)
                + b'q\1'
                + text('latin1')
                + b'\x86R'
                if i == 0
                else text(f'{i}') + glob('_codecs', 'encode') + b'h\1' + text('latin1') + b'\x86R'
                for i in range(2000)
            )
            + b'u'
        ),
        'unfolds',
    )
    yield 'no pickle', b'hello', ''
    yield 'nothing', b'', ''
    yield 'TensorFlow', program(glob('dnnlib.tflib.network', 'Network') + b')\x81'), 'TensorFlow'


def storage(t):
    "Bytes of a tensor's storage, as a pickle of it holds them."
    import pickletools

    return next(
        a for o, a, _ in pickletools.genops(pickle.dumps(t, protocol=4)) if 'BYTES' in o.name
    )


HOSTILE = [name for name, *_ in hostile('mark')]


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(name, tmp_path, pkl, capfd):
    data, word = next((d, w) for n, d, w in hostile(tmp_path / 'marker') if n == name)
    before = {k: repr(v) for k, v in vars(S).items() if k.startswith('_')}, set(sys.modules)
    assert 'weights_only' not in refused(
        lambda: read_pickle(pkl(data)), 'x.pkl', word
    )  # torch would advise to switch it off
    with pytest.raises(InputError):
        load_any(tmp_path / 'x.pkl')
    assert not (tmp_path / 'marker').exists() and not capfd.readouterr().out
    assert {k: repr(v) for k, v in vars(S).items() if k.startswith('_')} == before[0] and not {
        'antigravity',
        *NAMES,
    } & set(sys.modules)


def test_the_traps_would_have_worked(tmp_path):
    "Loaded the ordinary way, a trap of the list leaves its mark: the test above can fail."
    data = next(d for n, d, _ in hostile(tmp_path / 'marker') if n == 'os.system')
    pickle.loads(data)
    assert (tmp_path / 'marker').exists()


def test_reader_is_not_changed_by_what_it_reads(pkl, tmp_path):
    good = pkl({'G_ema': as_object(small())}, name='good.pkl')
    want = load_published(good)[0]['G_ema'](latents(), noise='const')
    for _, data, _ in hostile(tmp_path / 'marker'):
        with pytest.raises(InputError):
            read_pickle(pkl(data))
    assert torch.equal(load_published(good)[0]['G_ema'](latents(), noise='const'), want)


def test_many_paths_to_few_objects(pkl):
    "40 lists that each hold the one before twice, and modules likewise: read once each; as a network they are refused before 2⁴⁰ steps."
    x = [0]
    for _ in range(40):
        x = [x, x]
    assert len(read_pickle(pkl({'x': x}))['x']) == 2
    m = Object('Leaf')
    for _ in range(20):
        outer = Object('Part')
        outer.state['_modules'] |= {'a': m, 'b': m}
        m = outer
    refused(lambda: load_published(pkl({'G': m})), 'more modules')


def test_cut_and_damaged_files(pkl, tmp_path):
    "Every kind of damage ends in an InputError, or in values if only numbers or texts were hit."
    data = dump(
        {
            'G_ema': tree(
                {'mapping.fc0.weight': torch.ones(2, 3), 'w': torch.ones(2)},
                'Generator',
                buffers={'w'},
            ),
            'a': np.arange(3),
            'n': np.float32(1),
            't': torch.float16,
            'd': torch.device('cpu'),
        }
    )
    for cut in range(0, len(data) - 1, 7):
        refused(lambda: read_pickle(pkl(data[:cut])), 'x.pkl')
    rng, bad = np.random.default_rng(0), 0
    for _ in range(1500):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            try:
                read_pickle(pkl(bytes(damaged)))
            except InputError:
                bad += 1
    assert 200 < bad < 1500


def test_values_are_the_same_with_every_protocol(pkl):
    shared = torch.arange(12.0)
    x = {
        't': shared.reshape(3, 4).t(),
        'odd': shared[3:9:2],
        'p': torch.nn.Parameter(torch.ones(2)),
        'none': torch.empty(0, 3),
        'bool': torch.tensor([True]),
        'scalar': torch.tensor(3.0, dtype=torch.float64),
        'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        'big': np.arange(3, dtype='>f4'),
        'words': np.array(['ab', 'c']),
        'zero': np.array(4),
        'n': np.int64(-3),
        'f': frozenset([1]),
        'nan': float('nan'),
        'long': 2**40,
        'nested': {'a': [(), [], {}, None, True, -5]},
        'ä': 'ß',
    }
    for protocol in (2, 3, 4, 5):
        got = read_pickle(pkl(x, protocol))
        for k, v in x.items():
            if torch.is_tensor(v):
                assert (
                    got[k].shape == v.shape
                    and got[k].dtype == v.dtype
                    and torch.equal(got[k], v.detach())
                )
            elif isinstance(v, np.ndarray):
                assert got[k].dtype == v.dtype and np.array_equal(got[k], v)
            elif k != 'nan':
                assert got[k] == v and type(got[k]) in (type(v), int)
        assert got['nan'] != got['nan']
    for a, b in itertools.product(
        ('numpy.core', 'numpy._core'), repeat=2
    ):  # both names that NumPy's modules have had
        assert np.array_equal(
            read_pickle(pkl(dump({'x': np.arange(3)}, 2).replace(a.encode(), b.encode())))['x'],
            [0, 1, 2],
        )


def test_the_beginning_of_a_file_decides(tmp_path, pkl):
    a, b = (
        save_networks(tmp_path / 'a.pkl', {'G': small()}),
        pkl({'G': as_object(small())}, name='b.safetensors'),
    )
    assert torch.equal(
        load_any(a)[0]['G'].mapping.fc0.weight,
        load_any(b, 'G', bf16=True)[0]['G'].mapping.fc0.weight,
    )
    torch.save(small().state_dict(), tmp_path / 't.pkl')
    refused(lambda: load_any(tmp_path / 't.pkl'), 't.pkl', 'torch.save')
    (tmp_path / 'e').write_bytes(b'')
    refused(lambda: load_any(tmp_path / 'e'), 'cut off')
    refused(lambda: load_any(tmp_path / 'none'), 'not found')
    refused(lambda: read_pickle(tmp_path / 'none'), 'not found')


# --- transfer -------------------------------------------------------------------------------------------------------------------


def states(n):
    return {k: v.clone() for k, v in n.state_dict().items()}


@pytest.mark.parametrize('kind', [Generator, Discriminator])
def test_transfer_to_an_equal_network_copies_all(kind):
    a, b = small(kind, 0, c_dim=2), small(kind, 1, c_dim=2)
    assert transfer(a, b) == [] and all(
        torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items()
    )


def test_transfer_adapts_image_channels():
    gray, z = torch.randn(4, 1, 16, 16), latents()
    for n, m in ((3, 1), (1, 3), (3, 2)):
        a, b = small(channels=n), small(Generator, 1, channels=m)
        assert transfer(a, b) and torch.allclose(
            b(z, noise='const'),
            a(z, noise='const').mean(1, keepdim=True).expand(-1, m, -1, -1),
            atol=1e-4,
        )
        for k in ('resnet', 'skip', 'orig'):
            a, b = (
                small(Discriminator, channels=n, kind=k),
                small(Discriminator, 1, channels=m, kind=k),
            )
            assert (
                transfer(a, b)
                and distance(b(gray.expand(-1, m, -1, -1)), a(gray.expand(-1, n, -1, -1))) < 1e-4
            )


def test_transfer_between_conditional_and_not():
    z = latents()
    plain, two, three = small(), small(Generator, 1, c_dim=2), small(Generator, 2, c_dim=3)
    before = states(two)
    said = transfer(plain, two)
    assert torch.equal(
        two.mapping.fc0.weight[:, 8:], before['mapping.fc0.weight'][:, 8:]
    ) and torch.equal(two.mapping.embed.bias, before['mapping.embed.bias'])
    assert (
        torch.allclose(two.mapping.fc0.weight[:, :8], plain.mapping.fc0.weight * 2**0.5)
        and torch.equal(two.mapping.w_avg, plain.mapping.w_avg)
        and len(said) == 2
    )
    with torch.no_grad():
        two.mapping.fc0.weight[:, 8:] = 0
    assert torch.allclose(two(z, [0, 1, 1, 0], noise='const'), plain(z, noise='const'), atol=1e-4)
    other = small(Generator, 3)
    said = transfer(two, other)
    assert torch.allclose(other(z, noise='const'), plain(z, noise='const'), atol=1e-4) and any(
        'not used' in s and 'embed' in s for s in said
    )
    before = states(three)
    said = transfer(two, three)
    assert said == [
        'mapping.embed.weight, mapping.embed.bias: left fresh, the source has 2 classes, the target 3 classes'
    ]
    assert all(
        torch.equal(three.state_dict()[k], before[k] if 'embed' in k else v)
        for k, v in two.state_dict().items()
    )


def test_transfer_between_conditional_discriminators():
    plain, two, three = (
        small(Discriminator),
        small(Discriminator, 1, c_dim=2),
        small(Discriminator, 2, c_dim=3),
    )
    before = states(two)
    said = transfer(plain, two)
    assert (
        torch.equal(two.b8x8.conv0.weight, plain.b8x8.conv0.weight)
        and torch.equal(two.b4x4.out.weight, before['b4x4.out.weight'])
        and torch.equal(two.mapping.fc3.weight, before['mapping.fc3.weight'])
    )
    assert any('b4x4.out.weight' in s and 'another shape' in s for s in said) and any(
        'no classes' in s for s in said
    )
    said = transfer(two, three)
    assert (
        len(said) == 1
        and 'mapping.embed.weight, mapping.embed.bias' in said[0]
        and torch.equal(three.mapping.fc7.weight, two.mapping.fc7.weight)
    )


def test_transfer_between_sizes_counts_from_the_coarse_end():
    for a, b in ((16, 32), (32, 16), (16, (48, 32)), ((48, 32), 16), (8, (40, 32))):
        width = (10_000, 8)
        G, H, D, E = (
            small(size=a, width=width),
            small(Generator, 1, size=b, width=width),
            small(Discriminator, size=a, width=width),
            small(Discriminator, 1, size=b, width=width),
        )
        before, top = states(E), len(D.sizes)
        said, dsaid = transfer(G, H), transfer(D, E)
        for x, y in zip(G.synthesis.sizes, H.synthesis.sizes):
            p, q = (getattr(n.synthesis, f'b{h}x{w}') for n, (h, w) in ((G, x), (H, y)))
            assert (
                torch.equal(p.conv1.weight, q.conv1.weight)
                and torch.equal(p.torgb.affine.weight, q.torgb.affine.weight)
                and (x != y or torch.equal(p.conv1.noise_const, q.conv1.noise_const))
            )
        for x, y in zip(D.sizes[::-1][1:], E.sizes[::-1][1:]):
            p, q = (getattr(n, f'b{h}x{w}') for n, (h, w) in ((D, x), (E, y)))
            assert torch.equal(p.conv0.weight, q.conv0.weight) and torch.equal(
                p.skip.weight, q.skip.weight
            )
        if len(D.sizes) < len(E.sizes):
            finest = 'b%dx%d' % E.sizes[0]
            assert torch.equal(
                E.state_dict()[f'{finest}.conv0.weight'], before[f'{finest}.conv0.weight']
            ) and any(finest[1:] in s and 'levels that the source lacks' in s for s in said + dsaid)
        if len(D.sizes) > len(E.sizes):
            assert any('not used of the source' in s and '%dx%d' % D.sizes[0] in s for s in said)


def test_transfer_between_first_blocks_keeps_the_response():
    "A first block of another size: features that are the same everywhere give the same."
    a, b = small(Discriminator, size=16), small(Discriminator, 1, size=(24, 20))
    transfer(a, b)
    x = torch.randn(4, 16, 1, 1)
    level = (
        a.b4x4.fc(x.expand(-1, -1, 4, 4).flatten(1)),
        b.b6x5.fc(x.expand(-1, -1, 6, 5).flatten(1)),
    )
    assert (
        distance(*level[::-1]) < 0.35
        and distance(
            level[1],
            small(Discriminator, 1, size=(24, 20)).b6x5.fc(x.expand(-1, -1, 6, 5).flatten(1)),
        )
        > 0.5
    )
    const = torch.zeros(16, 4, 4)
    const[:, :2] = 1.0
    G, H = small(), small(Generator, 1, size=(24, 16))
    with torch.no_grad():
        G.synthesis.b4x4.const.copy_(const)
    transfer(G, H)
    assert H.synthesis.b6x4.const[:, :2].min() == 1 and H.synthesis.b6x4.const[:, -2:].max() == 0


def test_transfer_names_what_does_not_fit():
    said = transfer(small(width=(96, 16)), small(Generator, 1, width=(96, 12), mapping_layers=4))
    assert (
        any('another shape' in s for s in said)
        and any('2 layers in the source and 4' in s for s in said)
        and any('mapping.fc2' in s and 'nothing in this place' in s for s in said)
    )
    said = transfer(small(Discriminator, kind='resnet'), small(Discriminator, kind='skip'))
    assert any('fromrgb' in s for s in said) and any(
        'skip.weight' in s and 'not used' in s for s in said
    )
    for pair in ((small(), small(Discriminator)), (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))):
        refused(lambda: transfer(*pair), 'two generators or two discriminators')


def test_transfer_from_a_published_file_to_gray(pkl):
    "What the reader is for: colour weights with labels, for gray images without."
    G = load_published(pkl({'G_ema': as_object(small(c_dim=3, channels=3))}))[0]['G_ema']
    target = small(Generator, 5, size=32)
    said = transfer(G, target)
    assert (
        torch.equal(target.synthesis.b16x16.conv1.weight, G.synthesis.b16x16.conv1.weight)
        and any('3 -> 1' in s for s in said)
        and any('32x32' in s for s in said)
    )
    assert torch.isfinite(target(latents(), noise='const')).all()
