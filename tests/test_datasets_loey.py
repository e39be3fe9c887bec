"The split of Loey et al., and telling their generated images from real ones."

import warnings
from pathlib import Path

import pandas as pd
import pytest
from dataset_files import BROKEN, file_names, make_covid_ct, noise, put, zip_folder
from PIL import Image

from gan_covid.datasets.layouts import DATASETS
from gan_covid.datasets.loey import load_generated, locate_generated, loey_split
from gan_covid.datasets.public import load
from gan_covid.datasets.table import COLUMNS, as_table
from gan_covid.reading import read_image
from gan_covid.records import InputError

pytestmark = pytest.mark.usefixtures('download_cache')


FUNGUS = [
    f'Talaromyces-marneffei-infection-relapse-presenting-as-ost_2020_International-p1-12%{i}.png'
    for i in range(4)
]
LONG = [
    'impact_of_covid19_infection_on_pregnancy_outcomes_and_the_risk_of_maternaltoneonatal_'
    f'intrapartum_transmission_of_covid19_during_natural_birth-p8-41%{i}.png'
    for i in (1, 3, 5)
]


@pytest.fixture(scope='module')
def covid_ct(real_data):
    return load('covid_ct', real_data)


@pytest.mark.parametrize('reading, gone', [('fungus', FUNGUS), ('names', LONG + FUNGUS[3:])])
def test_real_loey_split(covid_ct, reading, gone):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = loey_split(covid_ct, reading)
    assert t.split.value_counts().to_dict() == {'train': 425, 'val': 118, 'test': 199}
    assert t[t.split == 'test'].label.value_counts().to_dict() == {'COVID': 94, 'NonCOVID': 105}
    assert set(file_names(covid_ct)) - set(file_names(t)) == set(gone)
    assert list(t) == COLUMNS
    assert list(t.index) == list(range(742))
    assert len(covid_ct) == 746
    assert {k: v for k, v in t.attrs.items() if k != 'notes'} == {
        k: v for k, v in covid_ct.attrs.items() if k != 'notes'
    }
    assert t.attrs['notes'][:-1] == covid_ct.attrs['notes']
    assert all(
        w in t.attrs['notes'][-1]
        for w in (f"'{reading}'", '4 of 4', 'our inference, I', '425/118/199')
    )
    assert {c: int(n) for c, n in t.label.value_counts().items()} == DATASETS['covid_ct'].used[
        'T18'
    ]


@pytest.mark.parametrize(
    'change, gone',
    [
        (lambda n: n, 4),
        (lambda n: n.replace('%', '_'), 4),
        (lambda n: n.upper(), 4),
        (lambda n: n.replace('Talaromyces', 'x'), 0),
    ],
)
def test_loey_split_of_other_copies(change, gone):
    names = [change(n) for n in FUNGUS + LONG] + ['2020.03.01-p1-1.png']
    t = as_table(
        [
            dict(image=f'/nowhere/{n}', label='COVID', split='test', width=32, height=32, sha256=n)
            for n in names
        ]
    )
    t.attrs = dict(notes=['first'])
    with pytest.warns(UserWarning, match=f'{gone} of 4 .*not the whole set'):
        out = loey_split(t)
    assert len(out) == 8 - gone
    assert len(out.attrs['notes']) == 2
    assert out.attrs['notes'][0] == 'first'
    assert f'{gone} of 4' in out.attrs['notes'][1]
    assert t.attrs == dict(notes=['first'])
    with pytest.warns(UserWarning, match='0 of 4'):
        assert len(loey_split(t.assign(label='NonCOVID'))) == 8


def test_loey_split_of_other_data(tmp_path):
    t = load('covid_ct', make_covid_ct(tmp_path / 'COVID-CT'))
    with pytest.warns(UserWarning, match='0 of 4 COVID images left out; 8/2/2 images'):
        out = loey_split(t, 'names')
    assert out.equals(t)
    assert t.attrs['notes'] == []
    assert len(out.attrs['notes']) == 1
    with pytest.raises(InputError, match="reading 'Fungus' is unknown. There are: fungus, names"):
        loey_split(t, 'Fungus')


# --- generated images


def real_table(root):
    return load('covid_ct', make_covid_ct(root / 'COVID-CT'))


def make_alone(root, classes=('COVID', 'NonCOVID'), n=3):
    for k, c in enumerate(classes):
        for i in range(n):
            put(root / c / f'{i}.png', noise(1000 + 10 * k + i, (32, 32)))
    return root


def make_mixed(root, real, parts=('train+CGAN', 'val', 'test'), classes=('COVID', 'NonCOVID'), n=3):
    "Every real image in its part, and `n` generated ones a class where the part says CGAN (or says train)."
    for k, (label, folder) in enumerate(zip(('COVID', 'NonCOVID'), classes)):
        for part in parts:
            for p in real.image[(real.label == label) & (real.split == part.split('+')[0])]:
                put(root / part / folder / Path(p).name, read_image(p), format='PNG')
            if 'CGAN' in part or part == 'train':
                for i in range(n):
                    put(
                        root / part / folder / f'{i}.png',
                        noise(2000 + 100 * parts.index(part) + 10 * k + i, (32, 32)),
                    )
    return root


@pytest.mark.parametrize(
    'name, classes',
    [
        ('COVID-19CGAN', ('COVID', 'NonCOVID')),
        ('COVID-19CGAN', ('CT_COVID', 'CT_NonCOVID')),
        ('covid19cgan', ('covid', 'NonCovid')),
        ('CGAN', ('COVID-19', 'non-COVID')),
        ('COVID-19CGAN', ('train/COVID', 'train/NonCOVID')),
    ],
)
def test_generated_alone(tmp_path, name, classes):
    root = make_alone(tmp_path / 'set' / 'COVID-19' / name, classes)
    for path in (root, root.parent, tmp_path / 'set', tmp_path):
        assert locate_generated(path) == root
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        t = load_generated(tmp_path)
    assert list(t) == COLUMNS
    assert t.label.tolist() == ['COVID'] * 3 + ['NonCOVID'] * 3
    assert set(t.split) == {'train'}
    assert set(t.source) == {'Loey et al.'}
    assert t.patient.isna().all()
    assert set(t.width) == {32}
    assert t.attrs['rejected'] == t.attrs['notes'] == t.attrs['left_out'] == []
    assert t.attrs['root'] == str(root)
    assert t.attrs['folders'] == {c: 3 for c in classes}


@pytest.mark.parametrize(
    'name, parts, n',
    [
        ('COVID-19+CGAN', ('train+CGAN', 'val', 'test'), 6),
        ('COVID-19+CGAN', ('train+CGAN', 'val+CGAN', 'test'), 12),
        ('COVID-19 & CGAN', ('train & CGAN', 'val', 'test'), 6),
        ('COVID-19_CGAN', ('train', 'val', 'test'), 6),
        ('COVID-19CGAN', ('train', 'test'), 6),
    ],
)
def test_generated_among_real(tmp_path, name, parts, n):
    real = real_table(tmp_path / 'real')
    parts_real = real.assign(
        split=real.split.map({p.split('+')[0].split(' ')[0]: p.split('+')[0] for p in parts})
    )
    root = make_mixed(tmp_path / 'loey' / name, parts_real, parts)
    put(tmp_path / 'loey' / 'COVID-19+Aug+CGAN' / 'train+Aug+CGAN' / 'COVID' / '7.png', noise(7))
    with pytest.warns(UserWarning, match='real images left out') as caught:
        t = load_generated(tmp_path / 'loey', real)
    assert len(caught) == 1
    assert locate_generated(tmp_path / 'loey') == root
    assert t.groupby('label').size().to_dict() == {'COVID': n // 2, 'NonCOVID': n // 2}
    assert all(Path(p).stem.isdecimal() for p in t.image)
    assert all('test' not in Path(p).parts for p in t.image)
    assert list(t.index) == list(range(n))
    looked_at = parts if parts[0] == 'train' else [p for p in parts if 'CGAN' in p]
    asked = [s for s in ('train', 'val') if any(p.startswith(s) for p in looked_at)]
    read = real.split.isin(asked).sum()
    assert len(t.attrs['left_out']) == read
    assert all('has the name' in w['why'] for w in t.attrs['left_out'])
    met = f'of the {read} real images of {" and ".join(asked)} {read} were met'
    assert met in t.attrs['notes']
    with pytest.raises(InputError, match='real and generated images together. Give real='):
        load_generated(tmp_path / 'loey')


# after and before COVID-19+CGAN in the alphabet
@pytest.mark.parametrize('name', ['COVID-19CGAN', 'CGAN'])
def test_generated_prefers_the_folder_without_real_images(tmp_path, name):
    real = real_table(tmp_path / 'real')
    make_mixed(tmp_path / 'loey' / 'COVID-19+CGAN', real)
    make_alone(tmp_path / 'loey' / name)
    assert locate_generated(tmp_path / 'loey').name == name
    assert len(load_generated(tmp_path / 'loey')) == 6
    put(tmp_path / 'loey' / name / 'COVID' / 'real.png', read_image(real.image[0]))
    # where no real image should be, a name alone proves nothing
    folder = tmp_path / 'loey' / name / 'COVID'
    (folder / '0.png').rename(folder / Path(real.image[0]).name)
    assert len(load_generated(tmp_path / 'loey')) == 7
    with pytest.warns(
        UserWarning, match='1 real images left out, 0 known by their name, 1 by their pixels'
    ):
        t = load_generated(tmp_path / 'loey', real)
    assert len(t) == 6
    assert [Path(w['file']).name for w in t.attrs['left_out']] == ['real.png']
    assert real.image[0] in t.attrs['left_out'][0]['why']


def test_generated_among_real_under_other_names(tmp_path):
    made = make_covid_ct(tmp_path / 'real' / 'COVID-CT')
    put(
        made / 'Images-processed' / 'CT_NonCOVID' / 'NonCOVID-p1-12%0.jpg',
        Image.fromarray(noise(50)).resize((150, 120)),
        format='PNG',
    )  # white noise does not survive resizing
    real = load('covid_ct', made)
    root = make_mixed(tmp_path / 'loey' / 'COVID-19+CGAN', real)
    folder, images = (
        root / 'train+CGAN' / 'NonCOVID',
        real.image[(real.label == 'NonCOVID') & (real.split == 'train')].tolist(),
    )
    for p in images:
        (folder / Path(p).name).unlink()
    first, second = (Path(p).stem + '.png' for p in images[:2])
    decoded = [Image.fromarray(read_image(p)) for p in images]
    put(folder / first, decoded[0].resize((64, 64)))  # converted and resized
    put(folder / second, noise(77, (64, 64)))  # generated, called so by chance
    put(folder / 'renamed.png', decoded[2].convert('RGB'))  # same pixels
    put(folder / 'lost.png', decoded[3].resize((64, 64)))  # nothing tells
    says = (
        '6 real images left out, 5 known by their name, 1 by their pixels.*'
        'of the 8 real images of train 6 were met; the others may be among'
    )
    with pytest.warns(UserWarning, match=says):
        t = load_generated(root, real)
    kept = {Path(p).name for p in t.image[t.label == 'NonCOVID']}
    assert kept == {'0.png', '1.png', '2.png', second, 'lost.png'}
    assert {Path(w['file']).name for w in t.attrs['left_out']} >= {'renamed.png', first}
    with pytest.raises(InputError, match='real: no image of COVID or NonCOVID'):
        load_generated(root, real.assign(label='x'))


def test_generated_broken_and_unexpected_files(tmp_path):
    root = make_alone(tmp_path / 'COVID-19CGAN')
    good = (root / 'COVID' / '0.png').read_bytes()
    for i, spoil in enumerate(BROKEN.values()):
        (root / 'COVID' / f'bad{i}.png').write_bytes(spoil(good))
    put(root / 'NonCOVID' / 'tiny.png', noise(1, (3, 3)))
    put(root / 'samples.png', noise(2))
    (root / 'NonCOVID' / 'Thumbs.db').touch()
    (root / 'readme.txt').write_text('x')
    with pytest.warns(UserWarning, match=f'{len(BROKEN) + 2} not used') as caught:
        t = load_generated(tmp_path)
    assert len(caught) == 1
    assert len(t) == 6
    why = {Path(r['file']).name: r['why'] for r in t.attrs['rejected']}
    assert len(why) == len(BROKEN) + 2
    assert 'no folder of a class' in why['samples.png']
    assert '3×3' in why['tiny.png']
    for p in (root / 'NonCOVID').iterdir():
        p.unlink()
    with pytest.warns(UserWarning, match='no images of NonCOVID'):
        assert set(load_generated(tmp_path).label) == {'COVID'}


@pytest.mark.parametrize('inside', [True, False])
def test_generated_in_a_zip(tmp_path, download_cache, inside):
    make_alone(tmp_path / 'made' / 'COVID-19CGAN')
    (tmp_path / 'here').mkdir()
    (tmp_path / 'here' / 'broken.zip').write_bytes(b'no zip')
    z = zip_folder(tmp_path / 'made', tmp_path / 'here' / 'archive.zip', 'COVID-19/')
    # asked, not unpacked
    assert locate_generated(z if inside else z.parent) == z
    assert not list(download_cache.iterdir())
    assert len(load_generated(z if inside else z.parent)) == 6
    assert len(list(download_cache.iterdir())) == 1
    with pytest.raises(InputError, match='broken.zip: the zip cannot be read'):
        locate_generated(tmp_path / 'here' / 'broken.zip')


def test_generated_not_there(tmp_path):
    make_covid_ct(tmp_path / 'COVID-CT')
    for c in ('COVID', 'NonCOVID'):
        put(tmp_path / 'loey' / 'COVID-19+Aug+CGAN' / 'train+Aug+CGAN' / c / '1.png')
        put(tmp_path / 'loey' / 'COVID-19+Aug' / 'train+Aug' / c / '1.png')
    assert locate_generated(tmp_path) is None
    assert locate_generated(tmp_path / 'loey' / 'COVID-19+Aug+CGAN') is None
    with pytest.raises(
        InputError,
        match=r'are not there. Expected: COVID-19CGAN/<class>/.*mloey1/.*Aug.*classical augmentations',
    ):
        load_generated(tmp_path)
    with pytest.raises(InputError, match='no such folder'):
        locate_generated(tmp_path / 'nowhere')
    zip_folder(tmp_path / 'loey', tmp_path / 'z.zip')
    assert locate_generated(tmp_path / 'z.zip') is None
    with pytest.raises(InputError, match='are not there'):
        load_generated(tmp_path / 'z.zip')
    (tmp_path / 'loey' / 'COVID-19CGAN' / 'COVID').mkdir(parents=True)
    assert locate_generated(tmp_path) is None  # empty
    make_alone(tmp_path / 'a' / 'COVID-19CGAN')
    make_alone(tmp_path / 'b' / 'COVID-19CGAN')
    for f in (locate_generated, load_generated):
        with pytest.raises(InputError, match='more than once'):
            f(tmp_path)


def test_generated_only_real_images(tmp_path):
    real = real_table(tmp_path / 'real')
    with pytest.raises(InputError, match=r'no generated image is there, only real ones \(8\)'):
        load_generated(make_mixed(tmp_path / 'COVID-19+CGAN', real, n=0), real)


def test_real_images_known_again_after_resizing(covid_ct, tmp_path):
    "Known at another size, as JPEG called .png, under other endings; noise with such a name is not."
    train = covid_ct[covid_ct.split == 'train']
    some = pd.concat([train[train.label == c].iloc[::12] for c in ('COVID', 'NonCOVID')])
    for r in some.itertuples():
        put(
            tmp_path / 'COVID-19+CGAN' / 'train+CGAN' / r.label / f'{Path(r.image).stem}.png',
            Image.fromarray(read_image(r.image)).resize((256, 256)),
            format='JPEG',
        )
    for i in range(4):
        put(tmp_path / 'COVID-19+CGAN' / 'train+CGAN' / 'COVID' / f'{i}.png', noise(i, (256, 256)))
    name = next(
        Path(p).stem
        for p in train.image[train.label == 'NonCOVID']
        if p.endswith('.jpg') and p not in set(some.image)
    )
    put(
        tmp_path / 'COVID-19+CGAN' / 'train+CGAN' / 'NonCOVID' / f'{name}.png', noise(9, (256, 256))
    )
    with pytest.warns(UserWarning, match=f'of the 425 real images of train {len(some)} were met'):
        t = load_generated(tmp_path, covid_ct)
    assert sorted(file_names(t)) == sorted([f'{i}.png' for i in range(4)] + [f'{name}.png'])
    assert len(t.attrs['left_out']) == len(some)
