"Looking at a folder: every trap in it is understood, said, or asked back; nothing is guessed."

import json
import subprocess
import sys

import numpy as np
import pytest
from dataset_files import noise, put
from PIL import Image

from gan_covid import check, cli, phantoms
from gan_covid.check import as_text, balanced_accuracy, check_folder
from gan_covid.datasets.own import load_folder
from gan_covid.datasets.splits import stratified_split
from gan_covid.records import InputError

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def found(report) -> dict:
    "Findings by their kind."
    return {f['kind']: f for f in report['findings']}


def heads(n, c='normal', size=48, seed=0):
    return phantoms.draw('head_ct', c, n, size=size, seed=seed)


def two_classes(root, n=20, names=('no', 'yes'), ending='png', **how):
    "Pictures of two classes that differ in nothing but noise."
    for k, c in enumerate(names):
        for i in range(n):
            put(root / c / f'{i}.{ending}', noise(1000 * k + i), **how)
    return root


# --- the report


def test_plain_values_the_worst_first_and_the_same_again(tmp_path):
    two_classes(tmp_path)
    put(tmp_path / 'yes' / 'again.png', noise(3))
    report = check_folder(tmp_path)
    assert json.loads(json.dumps(report)) == report == check_folder(tmp_path)
    order = [('serious', 'look', 'note').index(f['severity']) for f in report['findings']]
    assert order == sorted(order) and report['worst'] == 'serious'
    assert report['classes']['no']['images'] == 20 and report['classes']['yes']['images'] == 21
    text = as_text(report)
    assert 'no/3.png (no) = yes/again.png (yes)' in text and 'to look at, ' in text


def test_command_prints_writes_and_tells_by_its_exit_code(tmp_path, capsys):
    two_classes(tmp_path / 'own')
    asked = ['data', 'check', str(tmp_path / 'own'), '--json', str(tmp_path / 'r.json')]
    assert cli.main(asked) == 0
    assert '40 images of 2 classes' in capsys.readouterr().out
    assert json.loads((tmp_path / 'r.json').read_text())['images'] == 40
    put(tmp_path / 'own' / 'yes' / 'again.png', noise(3))
    assert cli.main(asked) == 1
    for bad, words in (
        ([str(tmp_path / 'nowhere')], 'no such folder'),
        ([str(tmp_path / 'own' / 'no' / '1.png')], 'a file (image). Give the folder'),
        ([str(tmp_path / 'own'), '--patients', '('], 'no regular expression'),
        ([str(tmp_path / 'own'), '--window', '1'], 'two numbers'),
        ([str(tmp_path / 'own'), '--near', '2'], 'near=2.0'),
    ):
        assert cli.main(['data', 'check', *bad]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count('\n') == 1


def test_no_engine_is_loaded(tmp_path):
    two_classes(tmp_path)
    code = (
        'import sys\nfrom gan_covid import cli\n'
        f'cli.main(["data", "check", {str(tmp_path)!r}])\n'
        'sys.exit(", ".join({"torch", "tensorflow", "keras", "jax"} & set(sys.modules)) or None)'
    )
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0 and '40 images' in r.stdout, r.stderr


def test_names_of_files_and_patients_can_be_hashed(tmp_path):
    two_classes(tmp_path / 'own')
    for i, place in enumerate(('train/no', 'train/yes', 'test/no', 'test/yes')):
        put(tmp_path / 'parts' / place / 'Smith_1.png', noise(500 + i))
    put(tmp_path / 'own' / 'yes' / 'Smith_John.png', noise(3))
    put(tmp_path / 'own' / 'yes' / 'Smith_mask.png', noise(4))
    (tmp_path / 'own' / 'yes' / 'Smith.png').write_bytes(b'')
    (tmp_path / 'own' / 'yes' / 'Smith.docx').write_bytes(b'letter')
    assert 'Smith_John' in as_text(check_folder(tmp_path / 'own'))
    for folder, how in ('own', {}), ('parts', dict(patients='(Smith)_')):
        report = check_folder(tmp_path / folder, hashed=True, **how)
        assert 'Smith' not in json.dumps(report)
    assert found(report)['patients in two parts']['names'] == ['patient 1']


# --- traps of own folders


def test_masks_beside_images_are_no_images(tmp_path):
    two_classes(tmp_path)
    for i in range(4):
        put(tmp_path / 'yes' / f'{i}_mask.png', (noise(i) > 99) * np.uint8(255))
    put(tmp_path / 'yes' / '99_mask.png', noise(99))
    report = check_folder(tmp_path)
    assert report['classes']['yes'] | {'images': 20, 'masks': 4} == report['classes']['yes']
    lost = found(report)['not used']
    assert lost['names'] == ['yes/99_mask.png'] and 'no image belongs to it' in lost['said']
    assert '4 of 40 images have a mask' in as_text(report)


@pytest.mark.slow
def test_patients_in_names_are_asked_and_then_taken(tmp_path):
    for k, c in enumerate(('no', 'yes')):
        for i in range(12):
            put(tmp_path / c / f'P{100 * k + i // 3:03d}_{i % 3}.png', noise(100 * k + i))
    asked = found(check_folder(tmp_path))['patients unknown']
    assert asked['severity'] == 'look' and "patients=r'(P\\d+)'" in asked['do']
    report = check_folder(tmp_path, patients=r'(P\d+)')
    assert 'patients unknown' not in found(report) and report['patients'] == 8
    table = stratified_split(
        load_folder(tmp_path, patients=r'(P\d+)'), {'train': 0.5, 'val': 0.25, 'test': 0.25}
    )
    assert table.groupby('patient').split.nunique().max() == 1
    assert found(check_folder(tmp_path, patients=False))['patients unknown']['severity'] == 'note'


def test_a_tiff_of_several_pages_is_named(tmp_path):
    two_classes(tmp_path, ending='tif')
    pages = [Image.fromarray(noise(i)) for i in range(500, 503)]
    pages[0].save(tmp_path / 'no' / 'series.tif', save_all=True, append_images=pages[1:])
    said = found(check_folder(tmp_path))['not used']
    assert said['names'] == ['no/series.tif'] and 'holds 3 pages' in said['said']
    assert 'Save each page as a file' in said['do']


def test_a_table_of_labels_is_asked_and_then_taken(tmp_path, capsys):
    for i in range(12):
        put(tmp_path / 'own' / f'{i:02}.png', noise(i))
        put(tmp_path / 'own' / 'lungs' / f'of {i:02}.png', (noise(i) > 99) * np.uint8(255))
    lines = ['image,label,patient,split,mask']
    parts = ['train'] * 6 + ['val'] * 2 + ['test'] * 4
    lines += [
        f'{i:02}.png,{("no", "yes")[i % 2]},p{i},{s},lungs/of {i:02}.png'
        for i, s in enumerate(parts)
    ]
    table = tmp_path / 'own' / 'labels.csv'
    table.write_text('\n'.join(lines))
    for i in range(12):  # images and masks apart: the folder alone says nothing of classes
        (tmp_path / 'own' / 'lungs' / f'of {i:02}.png').rename(tmp_path / f'{i}.png')
    (tmp_path / 'own' / 'lungs').rmdir()
    assert cli.main(['data', 'check', str(tmp_path / 'own')]) == 2
    assert 'labels.csv names them, with the columns image, label, ' in capsys.readouterr().err
    (tmp_path / 'own' / 'lungs').mkdir()
    for i in range(12):
        (tmp_path / f'{i}.png').rename(tmp_path / 'own' / 'lungs' / f'of {i:02}.png')
    reports = [check_folder(tmp_path / 'own', labels=table), check_folder(table)]
    for report in reports:
        assert report['parts'] == {'train': 6, 'test': 4, 'val': 2} and report['patients'] == 12
        assert {c: v['masks'] for c, v in report['classes'].items()} == {'no': 6, 'yes': 6}
        assert 'not used' not in found(report)
    table.write_text('\n'.join([*lines[:-1], '11.png,yes,p11,test,nowhere.png']))
    with pytest.raises(InputError, match=r"line 13: '11.png': its mask 'nowhere.png' is not there"):
        load_folder(table)


def test_an_image_in_two_classes_is_named_here_and_refused_there(tmp_path):
    two_classes(tmp_path)
    Image.fromarray(noise(5)).convert('RGB').save(tmp_path / 'yes' / 'other.png')
    said = found(check_folder(tmp_path))['copies across classes']
    assert said['severity'] == 'serious' and said['n'] == 1
    assert said['names'] == ['no/5.png (no) = yes/other.png (yes)']
    with pytest.raises(InputError, match='the same picture in two classes'):
        load_folder(tmp_path)


@pytest.mark.slow
def test_twelve_bits_in_sixteen_are_told(tmp_path):
    for k, c in enumerate(('no', 'yes')):
        for i in range(12):
            put(tmp_path / c / f'{i}.png', noise(100 * k + i).astype(np.uint16) * 16)
    report = check_folder(tmp_path)
    assert report['window'] == [0, 4095] and '12 bits only' in found(report)['bits']['said']
    assert check_folder(tmp_path, window=(0, 2000))['window'] == [0, 2000]
    put(tmp_path / 'no' / '99.png', noise(99))
    assert found(check_folder(tmp_path))['mixed depth']['severity'] == 'look'


@pytest.mark.parametrize('names', [('yes', 'no'), ('0', '1'), ('None', 'NA'), ('true', 'off')])
@pytest.mark.parametrize('how', ['folders', 'table'])
def test_names_of_classes_stay_as_they_are_written(tmp_path, names, how):
    if how == 'folders':
        two_classes(tmp_path, 4, names)
    else:
        two_classes(tmp_path / 'all', 4, ('a', 'b'))
        rows = [f'{c}/{i}.png,{n}' for c, n in zip('ab', names) for i in range(4)]
        (tmp_path / 'all' / 'labels.csv').write_text('\n'.join(['image,label', *rows]))
    path = tmp_path if how == 'folders' else tmp_path / 'all' / 'labels.csv'
    assert set(check_folder(path)['classes']) == set(names)
    assert set(load_folder(path).label) == set(names)


@pytest.mark.slow
def test_parts_above_the_classes(tmp_path):
    for s, n in ('train', 8), ('validation', 4), ('test', 4):
        two_classes(tmp_path / s, n)
        for p in (tmp_path / s).rglob('*.png'):
            number = 100 * len(s) + int(p.stem) + 50 * (p.parent.name == 'yes')
            put(p.with_name(f'q{number}_1.png'), noise(number))
            p.unlink()
    report = check_folder(tmp_path, patients=r'(q\d+)_')
    assert report['parts'] == {'train': 16, 'val': 8, 'test': 8}
    assert report['worst'] != 'serious'
    train = next((tmp_path / 'train' / 'no').glob('*.png'))
    number = int(train.stem[1:-2])
    put(tmp_path / 'test' / 'no' / f'q0{number}_2.png', noise(number + 7777))  # another image of q…
    leak = found(check_folder(tmp_path, patients=r'(q\d+)_'))['patients in two parts']
    assert leak['severity'] == 'serious' and leak['names'] == [f'q0{number} = q{number}']
    put(tmp_path / 'test' / 'no' / 'q999_1.png', noise(number))
    copied = found(check_folder(tmp_path, patients=r'(q\d+)_'))['copies across parts']
    assert copied['severity'] == 'serious' and 'test/no/q999_1.png' in copied['names'][0]
    for p in (tmp_path / 'test' / 'yes').iterdir():
        p.unlink()
    lacking = found(check_folder(tmp_path, patients=r'(q\d+)_'))['part without a class']
    assert lacking['severity'] == 'serious' and "test has no image of 'yes'" in lacking['said']
    put(tmp_path / 'extra' / '1.png', noise(1))
    with pytest.raises(InputError, match='partly splits, partly classes'):
        check_folder(tmp_path)


def test_one_folder_too_high_is_told(tmp_path):
    two_classes(tmp_path / 'download')
    said = found(check_folder(tmp_path))['one class']
    assert said['severity'] == 'serious' and "give the folder 'download' itself" in said['do']


def test_hospitals_above_the_classes_are_told(tmp_path):
    for k, hospital in enumerate(('north', 'south')):
        for j, c in enumerate(('no', 'yes')):
            for i in range(12):
                put(tmp_path / hospital / c / f'{i}.png', noise(1000 * k + 100 * j + i))
    said = found(check_folder(tmp_path))['same sub-folders']
    assert said['severity'] == 'serious' and 'have the same sub-folders: no, yes' in said['said']
    for p in tmp_path.rglob('*.png'):  # a split below the classes is no such thing
        part = {'no': 'train', 'yes': 'test'}[p.parent.name]
        (p.parent.with_name(part)).mkdir(exist_ok=True)
        p.rename(p.parent.with_name(part) / p.name)
    for p in [*tmp_path.rglob('no'), *tmp_path.rglob('yes')]:
        p.rmdir()
    report = check_folder(tmp_path)
    assert 'same sub-folders' not in found(report) and report['parts'] == {'train': 24, 'test': 24}


def test_masks_that_do_not_fit_are_named(tmp_path):
    two_classes(tmp_path)
    put(tmp_path / 'yes' / '1_mask.png', np.zeros((24, 30), np.uint8))
    put(tmp_path / 'yes' / '2_mask.png', (noise(2) > 99) * np.uint8(255))
    put(tmp_path / 'yes' / '3_mask.png', (noise(2, (30, 24)) > 99) * np.uint8(255))
    said = found(check_folder(tmp_path))['masks']
    assert said['names'] == ['yes/1.png', 'yes/3.png'] and 'the mask is empty' in said['said']


def test_a_class_that_cannot_be_read_is_serious(tmp_path):
    two_classes(tmp_path, names=('a', 'b', 'c'))
    for p in (tmp_path / 'c').iterdir():
        p.write_bytes(b'')
    report = check_folder(tmp_path)
    assert found(report)['class lost']['said'] == 'No image of c can be used'
    assert report['worst'] == 'serious' and found(report)['not used']['n'] == 20


def test_classes_that_differ_in_spelling_only(tmp_path):
    two_classes(tmp_path, names=('Covid 19', 'covid-19', 'other'))
    assert (
        "'Covid 19' and 'covid-19' differ" in found(check_folder(tmp_path))['class names']['said']
    )


@pytest.mark.slow
def test_an_archive_as_medmnist_gives_it(tmp_path, download_cache):
    arrays, rng = {}, np.random.default_rng(0)
    for part, n in ('train', 30), ('val', 8), ('test', 10):
        arrays[f'{part}_images'] = rng.integers(0, 256, (n, 28, 28, 3), np.uint8)
        arrays[f'{part}_labels'] = (np.arange(n) % 2)[:, None]
    np.savez(tmp_path / 'breast.npz', **arrays)
    for path in tmp_path / 'breast.npz', tmp_path:
        report = check_folder(path)
        assert report['title'] == 'breast.npz' and report['images'] == 48
        assert report['parts'] == {'train': 30, 'test': 10, 'val': 8}
        assert set(report['classes']) == {'0', '1'}
    table = load_folder(tmp_path / 'breast.npz')
    last = table[table.split == 'test'].image.iloc[-1]
    assert (np.asarray(Image.open(last)) == arrays['test_images'][-1]).all()
    np.savez(tmp_path / 'chest.npz', **arrays)
    with pytest.raises(InputError, match='several sets'):
        check_folder(tmp_path)
    gray = {k: v[..., 0] if 'images' in k else v[:, 0] for k, v in arrays.items()}
    np.savez(tmp_path / 'gray.npz', **gray, train_patients=np.arange(30) // 3)
    assert check_folder(tmp_path / 'gray.npz')['patients'] == 10
    np.savez(tmp_path / 'many.npz', images=gray['test_images'], labels=np.eye(10, dtype=int))
    (tmp_path / 'cut.npz').write_bytes((tmp_path / 'gray.npz').read_bytes()[:999])
    for name, words in (('many', 'several labels'), ('cut', 'no archive of plain arrays')):
        with pytest.raises(InputError, match=f'{name}.npz.*{words}'):
            load_folder(tmp_path / f'{name}.npz')


# --- copies and shortcuts


@pytest.mark.slow
def test_nearly_equal_pictures_across_classes(tmp_path):
    for c, name in ('no', 'normal'), ('yes', 'hemorrhage'):
        for i, a in enumerate(heads(12, name, 96, 5)):
            put(tmp_path / c / f'{i}.png', a)
    before = found(check_folder(tmp_path)).get('near copies across classes', {'n': 0})['n']
    brighter = np.clip(heads(12, 'normal', 96, 5)[4].astype(float) * 1.2 + 5, 0, 255)
    put(tmp_path / 'yes' / 'b.jpg', brighter.astype(np.uint8), quality=80)
    said = found(check_folder(tmp_path))['near copies across classes']
    assert said['n'] == before + 1 and 'no/4.png (no) ≈ yes/b.jpg (yes)' in said['names']


FORMS = {
    'size': dict(image=lambda a: np.pad(a, 3)),
    'format': dict(name='{}.tif'),
    'depth': dict(image=lambda a: a.astype(np.uint16) * 257),
    'colour': dict(image=lambda a: np.stack([a] * 3, 2)),
    'quality': dict(name='{}.jpg', quality=40, of_no=dict(name='{}.jpg', quality=90)),
}


@pytest.mark.parametrize('what', FORMS)
def test_whatever_of_a_file_tells_the_class_is_serious(tmp_path, what):
    form = dict(FORMS[what])
    forms = {'no': form.pop('of_no', {}), 'yes': form}
    for k, c in enumerate(('no', 'yes')):
        how = dict(forms[c])
        name, change = how.pop('name', '{}.png'), how.pop('image', lambda a: a)
        for i in range(25):
            put(tmp_path / c / name.format(i), change(noise(1000 * k + i)), **how)
    said = found(check_folder(tmp_path))['form alone']
    assert said['severity'] == 'serious' and said['numbers']['value'] > 0.9
    assert said['numbers']['low'] < said['numbers']['value'] <= said['numbers']['high']


def test_a_frame_of_one_class_is_found(tmp_path):
    for k, c in enumerate(('no', 'yes')):
        for i in range(40):
            a = noise(1000 * k + i, (64, 64))
            a[:6] = a[-6:] = 30 if c == 'yes' else 60
            put(tmp_path / c / f'{i}.png', a)
    assert found(check_folder(tmp_path))['frame alone']['severity'] == 'serious'


def test_very_different_numbers_alone_are_no_shortcut(tmp_path):
    for c, k, n in ('many', 0, 120), ('few', 1000, 15):
        for i in range(n):
            put(tmp_path / c / f'{i}.png', noise(k + i, (24 + i % 3, 30)))
    report = found(check_folder(tmp_path, patients=False))
    for probe in 'form alone', 'frame alone', 'spectrum alone':
        assert report[probe]['severity'] == 'note', report[probe]
    assert '8.0 times as many' in report['unequal classes']['said']


def test_patients_count_once_in_an_interval():
    y = np.repeat([0, 1], 60)
    told = np.where(np.arange(120) % 6 == 0, 1 - y, y)
    single, grouped = (balanced_accuracy(y, told, np.arange(120) // k) for k in (1, 10))
    assert single['value'] == grouped['value'] == pytest.approx(5 / 6)
    assert grouped['low'] < single['low'] and grouped['high'] > single['high']


def test_a_large_set_is_sampled_for_the_probes(tmp_path, monkeypatch):
    two_classes(tmp_path, 30)
    monkeypatch.setattr(check, '_PROBED', 40)
    monkeypatch.setattr(check, '_PAIRED', 59)
    report = found(check_folder(tmp_path))
    assert report['frame alone']['severity'] == 'note'
    assert 'more than 59 images' in report['near copies unknown']['said']
    seen = check.see(load_folder(tmp_path))
    part = check.some_of(seen, 40)
    assert part.table.label.value_counts().to_dict() == {'no': 20, 'yes': 20}
    rows = [seen.names.index(n) for n in part.names]
    assert (part.steps == seen.steps[rows]).all() and len(set(rows)) == 40


def test_too_few_patients_for_a_probe_is_said(tmp_path):
    two_classes(tmp_path, 6)
    for c in 'no', 'yes':
        for p in list((tmp_path / c).iterdir()):
            p.rename(p.with_name(f'{c}_{p.name}'))
    report = found(check_folder(tmp_path, patients='^(no|yes)_'))
    assert report['shortcuts unknown']['severity'] == 'look'


def test_odd_pictures_are_named(tmp_path):
    for c, name in ('no', 'normal'), ('yes', 'hemorrhage'):
        for i, a in enumerate(heads(15, name)):
            put(tmp_path / c / f'{i}.png', a)
    put(tmp_path / 'no' / 'blank.png', np.full((48, 48), 7, np.uint8))
    put(tmp_path / 'no' / 'negative.png', 255 - heads(1, seed=9)[0])
    marked = np.stack([heads(1, seed=8)[0]] * 3, 2)
    marked[:8, :8] = 200, 0, 0
    put(tmp_path / 'no' / 'red.png', marked)
    report = found(check_folder(tmp_path))
    assert report['blank']['names'] == ['no/blank.png']
    assert report['negatives']['names'] == ['no/negative.png']
    assert report['colour']['names'] == ['no/red.png'] and report['colour']['severity'] == 'look'


def test_marks_of_one_class(tmp_path):
    films = phantoms.draw('chest_xray', 'Normal', 32, size=160, seed=4)
    for i, a in enumerate(films):
        if i % 2:
            a = a.copy()
            a[8:26, 10:14] = a[22:26, 10:22] = 255  # a letter L
        put(tmp_path / ('right', 'left')[i % 2] / f'{i}.png', a)
    said = found(check_folder(tmp_path))['burnt-in marks']
    assert said['severity'] == 'look' and 'one class has more' in said['do']
    assert 'left: 16 of 16' in said['said']


@pytest.mark.slow
def test_real_head_ct_by_its_table(real_data):
    root = real_data / 'head_ct_hemorrhage'
    report = found(check_folder(root / 'head_ct', labels=root / 'labels.csv'))
    assert report['copies']['names'] == ['188.png = 189.png']
    assert 'copies across classes' not in report
    assert 0.6 < report['form alone']['numbers']['value'] < 0.85
