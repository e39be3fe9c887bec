"Published checkpoints: the published numbers come out, and nothing in a hostile file runs."

import builtins
import functools
import importlib
import io
import itertools
import operator
import os
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import types
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from test_stylegan2_networks import FILES, part
from test_stylegan2_ops import distance, oracle
from test_stylegan2_storage import latents, refused, small

from gan_covid.records import InputError
from gan_covid.stylegan2 import published as S
from gan_covid.stylegan2.networks import Discriminator, Generator
from gan_covid.stylegan2.published import load_any, load_published, read_pickle
from gan_covid.stylegan2.storage import load_networks, save_networks
from gan_covid.stylegan2.transfer import transfer

pytestmark = pytest.mark.usefixtures('one_thread')


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
    """A file of the published structure with the published parameters: images and logits are the
    published ones, and its source text stays text."""
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
        assert distance(got[n](z['z'], z['c'], noise='const'), z['img_const']) < 1e-5
        assert distance(got[n](z['z'], z['c'], noise='none'), z['img_none']) < 1e-5
    assert distance(got['D'](z['real'], z['c']), z['logits_real']) < 1e-5
    assert distance(got['D'](z['img_const'], z['c']), z['logits_fake']) < 1e-5
    assert about['window'] == [0, 255]
    assert len(about['classes']) == z['c'].shape[1]
    assert about['data']['images'] == 50
    assert about['data']['title'] == 'set'
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
    assert torch.equal(got['G_ema'](latents(), c, noise='const'), image)
    assert torch.equal(got['D'](image, c), D(image, c))
    assert got['G_ema'].mapping.layers == layers
    assert got['D'].kind == kind
    assert got['D'].mbstd == D.mbstd
    assert not (tmp_path / 'marker').exists()
    again, about = load_networks(save_networks(tmp_path / 'n.safetensors', got, about))
    assert torch.equal(again['G_ema'](latents(), c, noise='const'), image)
    assert about['settings']['published'] == 'x.pkl'


def test_versions_and_plain_modules_and_half_precision(pkl):
    "Another version, a dict instead of EasyDict, modules of torch.nn between, 16 or 64 bits."
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
    assert distance(got['G_ema'](latents(), noise='const'), G(latents(), noise='const')) < 2e-3
    assert got['G_ema'].synthesis.b8x8.conv0.weight.dtype == torch.float32


def test_reading_takes_settings_to_change_and_leaves_random_state(pkl):
    path = pkl({'G_ema': as_object(small()), 'D': as_object(small(Discriminator))})
    state = torch.get_rng_state()
    G = load_published(path, 'G_ema', bf16=True)[0]['G_ema']
    assert G.config['bf16']
    assert torch.equal(state, torch.get_rng_state())
    assert load_published(path, 'D', mbstd_group=None)[0]['D'].mbstd == (None, 1)
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


# --- hostile pickles ------------------------------------------------------------------------------


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


def short_text(s):
    return b'\x8c' + bytes([len(s)]) + s.encode()


def calls(mark):
    "Functions that would do something, called by REDUCE."
    touch = f'touch {mark}'
    write = f'open({str(mark)!r}, "w").close()'
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


def names(mark):
    "Names that lead elsewhere, and instructions that no checkpoint needs."
    touch = f'touch {mark}'
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
        b'\x80\x04'
        + short_text('torch.storage')
        + short_text('_load_from_bytes.__globals__')
        + b'\x93.',
        '__globals__',
    )
    yield (
        'dotted module',
        b'\x80\x04'
        + short_text('torch.storage')
        + short_text('os.system')
        + b'\x93'
        + short_text(touch)
        + b'\x85R.',
        'os.system',
    )
    yield (
        'dotted torch.nn',
        b'\x80\x04' + short_text('torch.nn.modules.module') + short_text('sys.modules') + b'\x93.',
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


def states(mark):
    "BUILD puts attributes (or slots) onto whatever lies below."
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


def storages(mark):
    "Storages that are no storages, and tensors that are larger than what they lie in."
    touch = f'touch {mark}'

    def legacy(payload):
        return S._MAGIC + b'\x80\x02M\xe9\x03.' + payload

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


def sizes(mark):
    "Small files that ask for much, and files that are none."
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


def hostile(mark):
    "(name, file, a word of the message) of each."
    for cases in (calls, names, states, storages, sizes):
        yield from cases(mark)


def storage(t):
    "Bytes of a tensor's storage, as a pickle of it holds them."
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
    assert {k: repr(v) for k, v in vars(S).items() if k.startswith('_')} == before[0]
    assert not {
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
    """40 lists that each hold the one before twice, and modules likewise: read once each; as a network
    they are refused before 2⁴⁰ steps."""
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
    for cut in range(0, len(data) - 1, 13):
        refused(lambda: read_pickle(pkl(data[:cut])), 'x.pkl')
    rng, bad = np.random.default_rng(0), 0
    for _ in range(500):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            try:
                read_pickle(pkl(bytes(damaged)))
            except InputError:
                bad += 1
    assert 66 < bad < 500


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
                assert got[k].shape == v.shape
                assert got[k].dtype == v.dtype
                assert torch.equal(got[k], v.detach())
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


def test_transfer_from_a_published_file_to_gray(pkl):
    "What the reader is for: colour weights with labels, for gray images without."
    G = load_published(pkl({'G_ema': as_object(small(c_dim=3, channels=3))}))[0]['G_ema']
    target = small(Generator, 5, size=32)
    said = transfer(G, target)
    assert torch.equal(target.synthesis.b16x16.conv1.weight, G.synthesis.b16x16.conv1.weight)
    assert any('3 -> 1' in s for s in said)
    assert any('32x32' in s for s in said)
    assert torch.isfinite(target(latents(), noise='const')).all()
