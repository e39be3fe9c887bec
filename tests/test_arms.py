"Arms on whole sets: what goes in, what stays out, and which mistakes are named."

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gan_covid import phantoms
from gan_covid.arms import ARMS, Arm, build, held_out, leakage
from gan_covid.datasets.public import load
from gan_covid.datasets.splits import stratified_split
from gan_covid.images import resize
from gan_covid.preprocessing import Prepared, prepare, save_images
from gan_covid.reading import read_image
from gan_covid.records import InputError

CLASSES = ['hemorrhage', 'normal']


def sha(i):
    return f'{i:064x}'


def real_set(train=(12, 9), val=(4, 4), test=(3, 3), size=16):
    "A prepared set whose image i is filled with the number i."
    numbers = {'train': train, 'val': val, 'test': test}
    rows = [
        (c, split) for split, ns in numbers.items() for c, n in zip(CLASSES, ns) for _ in range(n)
    ]
    table = pd.DataFrame(
        {
            'image': [f'/somewhere/{i:03d}.png' for i in range(len(rows))],
            'mask': pd.NA,
            'label': [c for c, _ in rows],
            'split': [s for _, s in rows],
            'patient': pd.NA,
            'source': 'real',
            'width': size,
            'height': size,
            'sha256': [sha(i) for i in range(len(rows))],
        }
    )
    images = np.arange(len(rows), dtype=np.uint8)[:, None, None, None]
    images = images * np.ones((1, size, size, 1), np.uint8)
    return SimpleNamespace(images=images, table=table, info={})


def generated_set(real, n=(20, 20), size=8, trained_on=None):
    label = [c for c, k in zip(CLASSES, n) for _ in range(k)]
    table = pd.DataFrame(
        {
            'image': [f'generated/{c}/{i}' for i, c in enumerate(label)],
            'mask': pd.NA,
            'label': label,
            'split': 'train',
            'patient': pd.NA,
            'source': 'generated',
            'width': size,
            'height': size,
            'sha256': [sha(1000 + i) for i in range(len(label))],
        }
    )
    if trained_on is None:
        trained_on = list(real.table.sha256[real.table.split == 'train'])
    images = np.full((len(label), size, size, 1), 255, np.uint8)
    return SimpleNamespace(images=images, table=table, info={'trained_on': trained_on})


@pytest.fixture
def real():
    return real_set()


@pytest.fixture
def gan(real):
    return generated_set(real)


@pytest.mark.parametrize('arm', ARMS)
def test_every_arm_holds_what_its_name_says(arm, real, gan):
    s, a = build(arm, real, gan, n_generated='match', seed=3), ARMS[arm]
    assert s.classes == CLASSES and s.arm == arm and s.leaked == []
    numbers = zip(CLASSES, (12, 12) if a.balance else (12, 9))
    times = 2 if a.repeated else int(a.real)
    wanted = {c: {'real': k * times, 'generated': k * a.generated} for c, k in numbers}
    assert s.counts() == wanted
    assert s.x.dtype == np.uint8 and s.x.shape == (len(s), 16, 16, 1)
    assert (s.pipeline == 'protocol') == a.classical
    training = np.flatnonzero(real.table.split == 'train')
    assert set(s.x[s.origin == 'real'][:, 0, 0, 0]) <= set(training)
    for part in ('val', 'test'):
        h = held_out(arm, real, part, gan, seed=3)
        assert not set(h.sha256) & set(s.sha256)
        if part == 'test' and a.test == 'generated':
            assert set(h.origin) == {'generated'}
            continue
        assert set(h.origin) == {'real'}
        assert h.x[:, 3, 3, 0].tolist() == np.flatnonzero(real.table.split == part).tolist()


def test_no_hash_of_a_test_image_reaches_training(real, gan):
    "The chain of proof: the GAN's record, the training set, the test set."
    held = {h for part in ('val', 'test') for h in held_out('original', real, part).sha256}
    for arm in ARMS:
        assert not held & {*build(arm, real, gan).sha256, *gan.info['trained_on']}


@pytest.mark.parametrize(
    'n, expected',
    [
        (None, (20, 20)),
        (5, (5, 5)),
        ('match', (12, 9)),
        ('balance', (0, 3)),
        ({'normal': 7}, (0, 7)),
        ({'hemorrhage': 0, 'normal': 20}, (0, 20)),
    ],
)
def test_numbers_of_generated_images(n, expected, real, gan):
    s = build('original+generated', real, gan, n_generated=n)
    assert tuple(s.counts()[c]['generated'] for c in CLASSES) == expected


def test_larger_draws_contain_smaller_ones_and_the_seed_decides(real, gan):
    def ids(n, seed):
        return set(build('generated', real, gan, n_generated=n, seed=seed).id)

    assert ids(4, 0) < ids(8, 0) < ids(20, 0) and ids(8, 0) == ids(8, 0) != ids(8, 1)


def test_balancing_and_order_of_classes(real, gan):
    up, down = (build(Arm(balance=how), real, seed=1) for how in ('oversample', 'undersample'))
    assert np.bincount(up.y).tolist() == [12, 12] and len(set(up.id)) == 21
    assert np.bincount(down.y).tolist() == [9, 9] and len(set(down.id)) == 18
    turned = build('original', real, classes=CLASSES[::-1])
    assert turned.classes == CLASSES[::-1]
    assert (turned.y == 1 - build('original', real).y).all()


def test_trained_and_tested_on_generated_images(real, gan):
    arm = Arm(real=False, generated=True, test='generated')
    train, test = build(arm, real, gan, seed=5), held_out(arm, real, 'test', gan, seed=5)
    assert set(test.origin) == {'generated'} and np.bincount(test.y).tolist() == [3, 3]
    assert not set(test.id) & set(train.id) and len(train) == 34
    assert set(held_out(arm, real, 'val', gan).origin) == {'real'}


def test_images_of_another_source(real, gan):
    arm, foreign = Arm(generated=True, source='loey', leak='allow'), generated_set(real, (2, 2))
    foreign.info = {}  # what Loey's GAN saw is not known
    s = build(arm, real, {'own': gan, 'loey': foreign})
    assert s.counts()['normal']['generated'] == 2 and s.leaked is None
    with pytest.raises(InputError, match=r'generated images \(loey\) not supplied'):
        build(arm, real, {'own': gan})
    with pytest.raises(InputError, match='trained_on'):
        build(Arm(generated=True, source='loey'), real, {'loey': foreign})


def test_a_gan_that_saw_test_images_is_refused_by_name(real, gan):
    seen = real.table.sha256[(real.table.split == 'train') | (real.table.index == 27)]
    gan.info = {'trained_on': {'normal': list(seen), 'hemorrhage': []}}
    assert leakage(gan.info, real.table)[['split', 'image']].values.tolist() == [
        ['val', '/somewhere/027.png']
    ]
    for arm in ('generated', 'original+generated', 'original+generated+classical'):
        with pytest.raises(InputError, match='leak.*1 validation or test.*027.png'):
            build(arm, real, gan)
    assert build(Arm(generated=True, leak='allow'), real, gan).leaked == ['027.png']
    assert build('original', real, gan).leaked == []  # does not use the GAN


def test_one_image_in_training_and_test(real, gan):
    real.table.loc[30, 'sha256'] = real.table.sha256[0]
    with pytest.raises(InputError, match='training part and in the test part: 000.png'):
        build('original', real)
    assert len(build('original', real, copies='drop')) == 20
    kept = build('original', real, copies='keep')
    assert len(kept) == 21 and kept.leaked == ['030.png']
    gan.info = {'trained_on': [sha(1)]}
    # no real image in it; the GAN is judged by its own list
    assert build('generated', real, gan, n_generated=2).leaked == []
    gan.info = {'trained_on': [sha(0)]}
    with pytest.raises(InputError, match='leak'):
        build('generated', real, gan, n_generated=2)


def test_equal_pixels_in_two_files_count_as_one_image(real, gan):
    real.images[30] = real.images[0]
    with pytest.raises(InputError, match='training part and in the test part: 000.png'):
        build('original', real)
    assert len(build('original', real, copies='drop')) == 20
    assert build('original', real, copies='keep').leaked == ['030.png']
    with pytest.raises(InputError, match='leak.*030.png'):
        build('generated', real, gan)  # the GAN saw 000.png


@pytest.mark.parametrize(
    'what, message',
    [
        (dict(arm='orginal'), "arm 'orginal' is unknown"),
        (dict(arm='generated', generated=None), 'not supplied'),
        (dict(arm='generated', n_generated=21), '21 of class .* 20 there'),
        (dict(arm='generated', n_generated=-1), 'n_generated=-1'),
        (dict(arm='generated', n_generated=1.5), 'n_generated=1.5'),
        (dict(arm='generated', n_generated={'tumour': 3}), 'tumour'),
        (dict(arm='generated', n_generated={'normal': 3}), '1 class only'),
        (dict(arm='generated', n_generated=0), '0 class only'),
        (dict(arm='original', classes=['normal', 'tumour']), 'classes='),
        (dict(arm='original', copies='no'), 'copies='),
    ],
)
def test_bad_requests(what, message, real, gan):
    with pytest.raises(InputError, match=message):
        build(**{'real': real, 'generated': gan, **what})


def test_bad_sets(real, gan):
    with pytest.raises(InputError, match="no image with split='test'"):
        held_out('original', real_set(test=(0, 0)), 'test')
    with pytest.raises(InputError, match="no image with split='train'"):
        build('original', real_set(train=(0, 0)))
    with pytest.raises(InputError, match='1 class only'):
        build('original', real_set(train=(5, 0)))
    with pytest.raises(InputError, match="split='train'"):
        held_out('original', real, 'train')
    gan.table.loc[0, 'label'] = 'tumour'
    with pytest.raises(InputError, match="class 'tumour' is not among"):
        build('generated', real, gan)
    with pytest.raises(InputError, match='are needed for testing'):
        held_out('generated-on-generated', real, 'test', generated_set(real, (3, 3)))


def test_sizes(real, gan):
    s = build('original+generated', real, gan, size=24)
    assert s.x.shape[1:] == (24, 24, 1) and (s.x[s.origin == 'generated'] == 255).all()
    assert held_out('original', real, 'val', size=24).x.shape[1:] == (24, 24, 1)


def test_prepared_phantoms_and_generated_folder(tmp_path):
    """From files to a training set: phantoms, split, prepared folder, generated folder with the GAN's
    hashes on disk."""
    source = phantoms.write('head_ct', tmp_path, 10, 64, seed=1, workers=1)
    sizes = {'train': 10, 'val': 4, 'test': 4}
    table = stratified_split(load('head_ct', source), sizes, seed=1)
    real = prepare(table, tmp_path / 'real', 32, progress=False)
    assert (real.table.split.isna()).sum() == 2  # asked for by no split, so used nowhere
    rows = pd.DataFrame(
        [
            {'image': f'generated/{c}/{i}', 'label': c, 'source': 'generated', 'split': 'train'}
            for c in CLASSES
            for i in range(6)
        ]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 1), np.uint8)
    hashes = sorted(real.table.sha256[real.table.split == 'train'])
    save_images(tmp_path / 'gan', pixels, rows, {'trained_on': hashes})
    gan = Prepared.open(tmp_path / 'gan')
    s = build('original+generated+classical', real, gan, n_generated=4, seed=2)
    assert s.counts() == {c: {'real': 5, 'generated': 4} for c in CLASSES}
    assert s.x.shape == (18, 32, 32, 1) and s.leaked == []
    assert len(held_out('original', real, 'val')) == 4
    save_images(tmp_path / 'gan', pixels, rows, {'trained_on': sorted(real.table.sha256)})
    assert len(leakage(tmp_path / 'gan', real.table)) == 8
    with pytest.raises(InputError, match='leak: .* 8 validation or test images'):
        build('generated', real, Prepared.open(tmp_path / 'gan'))


def test_real_head_ct_split(real_data):
    """The duplicates 188.png and 189.png (SOURCES §5) have equal pixels in different files; a split
    that parts them is refused, ours is not."""
    table = stratified_split(load('head_ct', real_data), seed=0)
    small = [resize(read_image(p), 16, method='bilinear') for p in table.image]
    pixels = np.stack(small)[..., None]
    images = SimpleNamespace(images=pixels, table=table, info={})
    assert build('original', images).x.shape == (144, 16, 16, 1)
    assert len(held_out('original', images, 'test')) == 22
    name = table.image.str[-7:]
    assert table.sha256[name == '188.png'].item() != table.sha256[name == '189.png'].item()
    parted = table.split.mask(name == '188.png', 'train').mask(name == '189.png', 'test')
    with pytest.raises(InputError, match='188.png'):
        build('original', SimpleNamespace(**vars(images) | {'table': table.assign(split=parted)}))
