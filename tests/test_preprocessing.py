"gan_covid.preprocessing: the finder of marks, the prepared cache after kills and corruption, and bad input."

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from gan_covid import phantoms
from gan_covid import preprocessing as pre
from gan_covid.datasets.public import load
from gan_covid.datasets.table import as_table
from gan_covid.images import resize, to_float
from gan_covid.preprocessing import Steps
from gan_covid.reading import read_image, read_mask
from gan_covid.records import InputError, sha256_file


# ---------------------------------------------------------------- helpers
def smooth(h=256, w=256, seed=0):
    "Soft hills, as an X-ray without any mark: uint8."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w] / max(h, w)
    a = 0
    for _ in range(12):
        height, left, top = rng.uniform(0.3, 1), rng.random(), rng.random()
        width = rng.uniform(0.05, 0.2)
        a = a + height * np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * width**2))
    return np.round(30 + 190 * a / a.max()).astype(np.uint8)


def marked(image, what, at, fill, size=22):
    im = Image.fromarray(image)
    d = ImageDraw.Draw(im)
    if what == 'arrow':
        y, x = at
        d.line([(x, y), (x + 26, y + 10)], fill=fill, width=3)
        d.polygon([(x + 34, y + 13), (x + 22, y + 14), (x + 26, y + 4)], fill=fill)
    else:
        d.text(at[::-1], what, fill=fill, font=ImageFont.load_default(size))
    return np.array(im)


def rows(files, masks=None, label='a', **columns):
    "A table of files as load makes it."
    out = []
    for i, f in enumerate(files):
        try:
            with Image.open(f) as im:
                w, h = im.size
        except Exception:
            w, h = 0, 0
        out.append(
            dict(
                image=str(f),
                mask=masks[i] if masks else None,
                label=label,
                split='train',
                source='test',
                width=w,
                height=h,
                sha256=sha256_file(f) if os.path.isfile(f) else f'{i}',
                **columns,
            )
        )
    return as_table(out)


@pytest.fixture(scope='module')
def drawn():
    "Twelve drawn chest X-rays of different sizes."
    sizes = [(90 + 7 * i, 100 + 3 * i) for i in range(12)]
    draw = phantoms.draw_one
    return [draw('chest_xray', 'Normal', i, s, seed=1, marks=0) for i, s in enumerate(sizes)]


def files_of(drawn, folder):
    "They as files, with a small lung mask each, and their table."
    files, masks = [], []
    for i, d in enumerate(drawn):
        files.append(folder / f'{i}.png')
        Image.fromarray(d.image).save(files[-1])
        masks.append(str(folder / f'{i}-mask.png'))
        h, w = d.mask.shape
        Image.fromarray(d.mask).convert('RGB').resize((64, round(64 * h / w))).save(masks[-1])
    return rows(files, masks)


@pytest.fixture
def pictures(drawn, tmp_path):
    return files_of(drawn, tmp_path)


# ---------------------------------------------------------------- crop
def test_crop_is_the_tight_rectangle_plus_margin_inside_the_image():
    mask = np.zeros((100, 200), bool)
    mask[40:60, 20:60] = mask[30:40, 150:180] = True
    assert pre.lung_box(mask, 0) == (30, 20, 60, 180)
    assert pre.lung_box(mask, 0.1) == (27, 4, 63, 196)
    assert pre.lung_box(mask, 1) == (0, 0, 90, 200)
    assert pre.crop_to_lungs(np.zeros((100, 200, 3)), mask, 0).shape == (30, 160, 3)


@pytest.mark.parametrize(
    'call, name',
    [
        (lambda: pre.crop_to_lungs(np.zeros((9, 9)), np.zeros((9, 9), bool)), 'mask'),
        (lambda: pre.crop_to_lungs(np.zeros((9, 9)), np.ones((9, 8), bool)), 'mask'),
        (lambda: pre.lung_box(np.ones((9, 9)), -0.1), 'margin'),
        (lambda: pre.find_marks(np.zeros((200, 200, 3))), 'image'),
        (lambda: pre.find_marks(np.zeros((64, 100))), 'image'),
        (lambda: pre.find_marks(np.zeros((200, 200)), threshold=0), 'threshold'),
        (lambda: pre.find_marks(np.zeros((200, 200)), lungs=np.ones((20, 20), bool)), 'lungs'),
        (lambda: pre.review_sheet([np.zeros((200, 200), np.uint8)], [[]], 'x.png'), 'marks'),
    ],
)
def test_bad_arguments_name_themselves(call, name):
    with pytest.raises(InputError, match=f'^{name}'):
        call()


# ---------------------------------------------------------------- marks
def test_smooth_images_have_no_marks():
    assert [pre.find_marks(smooth(seed=s)) for s in range(10)] == [[]] * 10
    assert pre.find_marks(np.full((200, 200), 9, np.uint8)) == []


@pytest.mark.parametrize('what', ['R', 'PORTABLE', '10:42', 'arrow'])
@pytest.mark.parametrize('dark', [False, True])
def test_marks_on_smooth_images_are_found_where_they_are(what, dark):
    """Ten places and grounds each; white marks on dark and middle ground, black ones on middle and
    pale ground."""
    rng, hits = np.random.default_rng(3), 0
    for s in range(10):
        ground = smooth(seed=s)
        ground = (ground // 2 + 120 if dark else ground // 2 + 20).astype(np.uint8)
        at = int(rng.integers(5, 220)), int(rng.integers(5, 130))
        image = marked(ground, what, at, 0 if dark else 255)
        i, j = np.nonzero(image != ground)
        for m in pre.find_marks(image):
            rows = m.top <= i.max() and m.bottom > i.min()
            if rows and m.left <= j.max() and m.right > j.min():
                assert m.sharpness >= 0.5
                hits += 1
                break
    assert hits >= 9, hits


def test_a_word_is_one_mark_and_two_words_apart_are_two():
    ground = smooth(seed=1) // 2 + 10
    one = marked(ground, 'SUPINE', (20, 20), 255)
    assert len(pre.find_marks(one)) == 1
    assert len(pre.find_marks(marked(one, 'L', (200, 200), 255))) == 2


def test_soft_blobs_of_the_same_height_are_no_marks():
    y, x = np.mgrid[:256, :256]
    blob = 0.3 + 0.6 * np.exp(-((x - 100) ** 2 + (y - 90) ** 2) / (2 * 6**2))
    assert pre.find_marks(blob) == [] and pre.find_marks(1 - blob) == []


def test_exposure_does_not_matter():
    image = marked(smooth(seed=2) // 2 + 20, 'R', (30, 40), 255)
    marks = pre.find_marks(image)
    darker = pre.find_marks(image * 0.3 / 255)  # the same, as float and underexposed
    assert len(marks) == 1 and [m[:4] for m in darker] == [m[:4] for m in marks]
    assert abs(darker[0].sharpness - marks[0].sharpness) < 1e-3


def test_threshold_is_a_threshold():
    image = marked(smooth(seed=4) // 2 + 60, 'R', (100, 100), 200)
    found = [len(pre.find_marks(image, threshold=t)) > 0 for t in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    assert found[0] and not found[-1] and found == sorted(found, reverse=True)


def test_inside_says_how_much_lies_in_the_lungs():
    image, lungs = marked(smooth(seed=5) // 2 + 10, 'L', (120, 60), 255), np.zeros((256, 256), bool)
    assert np.isnan(pre.find_marks(image)[0].inside)
    assert pre.find_marks(image, lungs)[0].inside == 0
    lungs[100:160, 40:100] = True
    assert pre.find_marks(image, lungs)[0].inside == 1
    i, j = np.nonzero(image == 255)
    half = np.zeros_like(lungs)
    half[: int(np.median(i)) + 1] = True
    assert 0.2 < pre.find_marks(image, half)[0].inside < 0.8


def test_large_images_are_looked_at_on_a_smaller_scale_and_boxes_come_back_in_their_pixels():
    image = marked(smooth(900, 1200, seed=6) // 2 + 10, 'AP', (100, 700), 255, size=80)
    (m,) = pre.find_marks(image)
    i, j = np.nonzero(image == 255)
    assert np.allclose(m[:4], [i.min(), j.min(), i.max() + 1, j.max() + 1], atol=10)


def test_error_rate_on_phantoms():
    "The notebook's numbers, on other phantoms and with room: found over 80 %, accused under 12 %."
    drawn = [
        phantoms.draw_one('chest_xray', c, i, 256, seed=23, marks=0.5)
        for c in phantoms.CLASSES['chest_xray']
        for i in range(6)
    ]
    truth, found = np.array([[d.marks.any(), bool(pre.find_marks(d.image))] for d in drawn]).T
    assert truth.sum() > 6 and (~truth).sum() > 6
    assert found[truth].mean() > 0.8 and found[~truth].mean() < 0.12


def test_review_sheet_shows_only_images_with_marks(tmp_path):
    images = [
        smooth(300, 200, seed=7),
        marked(smooth(300, 200, seed=8) // 2 + 10, 'R', (10, 10), 255),
    ]
    path = pre.review_sheet(
        images, [pre.find_marks(a) for a in images], tmp_path / 'new' / 'sheet.png', side=100
    )
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (100, 100, 3) and ((sheet[..., 0] > 200) & (sheet[..., 1] < 120)).any()


# ---------------------------------------------------------------- reading
@pytest.mark.parametrize(
    'mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'opaque', 'I;16', 'CMYK', 'P+transparency']
)
def test_fast_reading_equals_read_image(tmp_path, mode):
    a = smooth(60, 80)
    im = Image.fromarray(np.dstack([a, 255 - a, a // 2]))
    f = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    if mode == 'RGBA':
        im.putalpha(Image.fromarray(a))
    elif mode == 'opaque':
        im = im.convert('RGBA')
    elif mode == 'LA':
        im = Image.fromarray(a).convert('LA')
        im.putalpha(Image.fromarray(255 - a))
    elif mode == 'I;16':
        im = Image.fromarray(a.astype(np.uint16) * 257)
    elif mode != 'RGB':
        im = im.convert(mode[:4].rstrip('+tr'))
    im.save(f, **({'transparency': 3} if '+' in mode else {}))
    assert np.array_equal(np.asarray(pre._gray(f)), read_image(f))


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_jpegs_called_png_are_read_small_but_right(tmp_path, mode):
    Image.fromarray(smooth(600, 800)).convert(mode).save(
        tmp_path / 'a.png', format='JPEG', quality=95
    )
    full, small = read_image(tmp_path / 'a.png'), pre._gray(tmp_path / 'a.png', (128, 128))
    assert small.size == (200, 150)
    assert np.abs(np.asarray(pre._gray(tmp_path / 'a.png')).astype(int) - full).max() <= 2
    assert np.abs(resize(full, 64).astype(int) - resize(np.asarray(small), 64)).max() <= 3


# ---------------------------------------------------------------- prepare
def test_prepare_does_crop_resize_and_keeps_rows_in_order(pictures, tmp_path):
    steps = Steps((24, 40), crop='lungs', margin=0.1, fit='pad', method='lanczos')
    ready = pre.prepare(pictures, tmp_path / 'out', steps)
    assert ready.images.shape == (12, 24, 40, 1) and ready.images.dtype == np.uint8
    pd.testing.assert_frame_equal(ready.table, pictures)
    for i, r in pictures.iterrows():
        a = read_image(r.image)
        crop = pre.crop_to_lungs(a, read_mask(r['mask'], a.shape), 0.1)
        assert np.array_equal(ready.images[i, ..., 0], resize(crop, (24, 40), 'pad', 'lanczos'))
    names = ['images.npy', 'prepare.json', 'rejected.csv', 'table.csv']
    assert sorted(f.name for f in (tmp_path / 'out').iterdir()) == names


def test_number_of_threads_changes_nothing(pictures, tmp_path):
    a, b = (pre.prepare(pictures, tmp_path / str(n), 16, workers=n, progress=False) for n in (1, 5))
    assert a.fingerprint == b.fingerprint
    for name in ('images.npy', 'table.csv', 'rejected.csv', 'prepare.json'):
        assert sha256_file(tmp_path / '1' / name) == sha256_file(tmp_path / '5' / name)


def break_files(tmp_path, good):
    "One bad file of each kind; returns paths and the word that its reason must contain."
    data, bad = Path(good).read_bytes(), {}

    def file(name, content, word):
        (tmp_path / name).write_bytes(content)
        bad[tmp_path / name] = word

    file('truncated.png', data[: len(data) // 2], 'broken')
    file('zero.png', b'', 'empty')
    file('text.png', b'this is no image', 'not an image')
    Image.new('L', (1, 1), 5).save(tmp_path / 'one.png')
    bad[tmp_path / 'one.png'] = '1×1'
    Image.new('L', (50, 50), 5).save(tmp_path / 'blank.png')
    bad[tmp_path / 'blank.png'] = 'blank'
    (tmp_path / 'folder.png').mkdir()
    bad[tmp_path / 'folder.png'] = 'cannot be read'
    bad[tmp_path / 'missing.png'] = 'not found'
    jpeg = tmp_path / 'half.jpg'
    Image.fromarray(smooth(300, 300)).save(jpeg)
    file('half.jpg', jpeg.read_bytes()[:2000], 'broken')
    return bad


def test_bad_files_are_listed_with_a_reason_and_cost_no_others(pictures, tmp_path):
    bad = break_files(tmp_path, pictures.image[0])
    odd = tmp_path / 'sixteen.png', tmp_path / 'palette.png'
    Image.fromarray(smooth(40, 50).astype(np.uint16) * 257).save(odd[0])
    Image.fromarray(smooth(40, 50)).convert('RGB').quantize(256).save(odd[1])
    table = rows([pictures.image[0], *bad, *odd, pictures.image[1]])
    ready = pre.prepare(table, tmp_path / 'out', 32)
    assert ready.table.image.tolist() == [pictures.image[0], *map(str, odd), pictures.image[1]]
    # the same picture in 16 bits and as a palette
    assert np.abs(ready.images[1].astype(int) - ready.images[2]).max() <= 8
    assert list(ready.rejected) == ['file', 'label', 'why'] and ready.info['rejected'] == len(bad)
    why = dict(zip(ready.rejected.file, ready.rejected.why))
    for f, word in bad.items():
        assert word in why[str(f)], (f, why[str(f)])


def test_unexpected_errors_of_one_file_are_caught(pictures, tmp_path, monkeypatch):
    def odd(path, *args, real=pre._gray):
        if path == pictures.image[3]:
            raise RuntimeError('a decoder bug')
        return real(path, *args)

    monkeypatch.setattr(pre, '_gray', odd)
    ready = pre.prepare(pictures, tmp_path / 'out', 16)
    assert len(ready) == 11 and ready.rejected.why.tolist() == ['RuntimeError: a decoder bug']


def bad_masks(pictures, tmp_path):
    "Rows whose masks are missing in the table, missing on disk, empty, broken, of another shape, a dot."
    Image.new('L', (64, 60)).save(tmp_path / 'empty.png')
    (tmp_path / 'broken.png').write_bytes(b'')
    Image.new('L', (30, 90), 255).save(tmp_path / 'shape.png')
    dot = Image.new('L', (200, round(200 * pictures.height[5] / pictures.width[5])))
    dot.putpixel((50, 50), 255)
    dot.save(tmp_path / 'dot.png')
    t = pictures.copy()
    t.loc[0, 'mask'] = np.nan
    for i, name in enumerate(['gone.png', 'empty.png', 'broken.png', 'shape.png', 'dot.png'], 1):
        t.loc[i, 'mask'] = str(tmp_path / name)
    return t


def test_without_a_usable_mask_an_image_is_rejected_or_whole(pictures, tmp_path):
    t = bad_masks(pictures, tmp_path)
    rejected = pre.prepare(t, tmp_path / 'a', Steps(32, crop='lungs'))
    assert len(rejected) == 6 and rejected.info['whole'] == {}
    assert rejected.rejected.file.tolist() == t.image[:6].tolist()
    words = ['no lung mask', 'gone.png', 'empty', 'broken.png', 'shape', 'dot.png']
    assert all(word in why for word, why in zip(words, rejected.rejected.why, strict=True))
    whole = pre.prepare(t, tmp_path / 'b', Steps(32, crop='lungs', no_mask='whole'))
    assert len(whole) == 12 and list(whole.info['whole']) == sorted(t.image[:6])
    assert np.array_equal(whole.images[0, ..., 0], resize(read_image(t.image[0]), 32))
    assert np.array_equal(whole.images[6:], rejected.images)


def test_marks_can_be_dropped_with_a_sheet_to_look_at(tmp_path):
    files = []
    for i in range(6):
        a = smooth(300, 300, seed=i) // 2 + 20
        files.append(tmp_path / f'{i}.png')
        Image.fromarray(marked(a, 'R', (20, 20 + 30 * i), 255) if i % 2 else a).save(files[-1])
    kept = pre.prepare(rows(files), tmp_path / 'keep', 32)
    drop = pre.prepare(rows(files), tmp_path / 'drop', Steps(32, marks='drop'))
    assert len(kept) == 6 and drop.table.image.tolist() == [str(f) for f in files[::2]]
    assert drop.rejected.why.str.contains('burnt-in mark').all()
    assert Image.open(tmp_path / 'drop' / 'dropped_marks.png').width == 3 * 192
    steps = Steps(32, marks='drop', threshold=1.0)
    strict = pre.prepare(rows(files), tmp_path / 'drop', steps)
    assert len(strict) >= 3 and strict.info['parameters']['threshold'] == 1


def test_no_usable_image_is_one_clear_error_and_can_be_mended(pictures, tmp_path):
    t, f = pictures[:1], Path(pictures.image[0])
    data = f.read_bytes()
    f.write_bytes(b'')
    with pytest.raises(InputError, match=str(f)):
        pre.prepare(t, tmp_path / 'out', 16)
    assert not (tmp_path / 'out' / 'prepare.json').exists()
    f.write_bytes(data)
    assert len(pre.prepare(t, tmp_path / 'out', 16)) == 1


@pytest.mark.parametrize(
    'wrong',
    [
        dict(size=0),
        dict(size='big'),
        dict(crop='heart'),
        dict(margin=2),
        dict(marks='erase'),
        dict(fit='cover'),
        dict(method='area'),
        dict(no_mask='guess'),
        dict(window=(2, 1)),
    ],
)
def test_bad_steps_name_themselves(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Steps(**{'size': 16, **wrong})


def test_bad_number_of_threads(pictures, tmp_path):
    with pytest.raises(InputError, match='workers'):
        pre.prepare(pictures, tmp_path / 'out', 16, workers=0)
    assert not (tmp_path / 'out').exists()


def test_bad_tables(pictures, tmp_path):
    with pytest.raises(InputError, match='sha256'):
        pre.prepare(pictures.drop(columns='sha256'), tmp_path / 'out', 16)
    with pytest.raises(InputError, match='no rows'):
        pre.prepare(pictures[:0], tmp_path / 'out', 16)


def test_a_file_in_the_way_of_the_folder(pictures, tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(InputError, match='file'):
        pre.prepare(pictures, tmp_path / 'file', 16)
    with pytest.raises(InputError, match='file'):
        pre.prepare(pictures, tmp_path / 'file' / 'below', 16)


@pytest.fixture
def calls(monkeypatch):
    "One entry for every image that is prepared from here on."
    made, real = [], pre._prepare_one

    def counted(*args):
        made.append(args)
        return real(*args)

    monkeypatch.setattr(pre, '_prepare_one', counted)
    return made


def test_same_call_returns_at_once_and_other_calls_do_the_work(pictures, tmp_path, calls):
    def prepare(table=pictures, size=16, **kw):
        return pre.prepare(table, tmp_path / 'out', Steps(size, crop='lungs', **kw), workers=2)

    first = prepare()
    assert len(calls) == 12
    assert prepare().fingerprint == first.fingerprint and len(calls) == 12
    prepare(threshold=0.3)  # means nothing without marks='drop'
    assert len(calls) == 12
    prepare(size=17)
    assert len(calls) == 24
    other = pictures.assign(label='b')
    prepare(other, 17)
    assert len(calls) == 36
    Image.new('L', (64, 64), 255).save(pictures['mask'][0])  # another mask in the same place
    prepare(other, 17)
    assert len(calls) == 48


def test_an_interrupted_run_resumes(pictures, tmp_path, monkeypatch, calls):
    "Interrupted at every safe point in turn; the result is byte for byte that of a run in one go."
    Path(pictures.image[4]).write_bytes(b'')
    monkeypatch.setattr(pre, '_CHUNK', 3)
    monkeypatch.setattr(pre, '_BATCH', 2)
    whole = pre.prepare(pictures, tmp_path / 'whole', 16)
    for stop in range(4):

        def fails(path, obj, real=pre.write_json):
            if path.name == f'{stop:05}.json':
                raise KeyboardInterrupt
            return real(path, obj)

        with monkeypatch.context() as m:
            m.setattr(pre, 'write_json', fails)
            with pytest.raises(KeyboardInterrupt):
                pre.prepare(pictures, tmp_path / 'out', 16)
        with pytest.raises(InputError, match='prepare.json'):
            pre.Prepared.open(tmp_path / 'out')
    calls.clear()
    ready = pre.prepare(pictures, tmp_path / 'out', 16)
    assert len(calls) == 3  # only the last piece was left
    assert ready.fingerprint == whole.fingerprint and len(ready) == 11
    for name in ('images.npy', 'table.csv', 'rejected.csv', 'prepare.json'):
        assert sha256_file(tmp_path / 'out' / name) == sha256_file(tmp_path / 'whole' / name)


KILLED = """
import sys, time
import pandas as pd
from gan_covid import preprocessing as pre
from gan_covid.datasets.table import as_table
pre._CHUNK, pre._BATCH = 2, 1
real = pre._prepare_one
def slow(*a):
    time.sleep(.15)
    return real(*a)
pre._prepare_one = slow
pre.prepare(as_table(pd.read_csv(sys.argv[1])), sys.argv[2], 16, workers=1)
"""


@pytest.mark.slow
def test_kill_9_costs_at_most_one_piece(pictures, tmp_path, monkeypatch, calls):
    pictures.to_csv(tmp_path / 'table.csv', index=False)
    process = subprocess.Popen(
        [sys.executable, '-c', KILLED, str(tmp_path / 'table.csv'), str(tmp_path / 'out')],
        stderr=subprocess.DEVNULL,
    )
    note = tmp_path / 'out' / '.partial' / '00001.json'
    end = time.time() + 60
    while not note.exists() and process.poll() is None and time.time() < end:
        time.sleep(0.02)
    assert note.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'out' / 'prepare.json').exists()
    monkeypatch.setattr(pre, '_CHUNK', 2)
    ready = pre.prepare(pictures, tmp_path / 'out', 16)
    assert len(calls) <= 8
    assert ready.fingerprint == pre.prepare(pictures, tmp_path / 'whole', 16).fingerprint


def test_a_full_disk_is_one_clear_error_and_the_next_call_resumes(pictures, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', full)
        with pytest.raises(InputError, match='space'):
            pre.prepare(pictures, tmp_path / 'out', 16)
    assert len(pre.prepare(pictures, tmp_path / 'out', 16)) == 12


# ---------------------------------------------------------------- the prepared folder
@pytest.fixture(scope='module')
def prepared(drawn, tmp_path_factory):
    "A prepared folder to copy."
    folder, split = tmp_path_factory.mktemp('prepared'), ['train'] * 8 + ['val'] * 2 + ['test'] * 2
    table = files_of(drawn, folder).assign(label=['a', 'b'] * 6, split=split)
    return pre.prepare(table, folder / 'ready', 16).folder


@pytest.fixture
def ready(prepared, tmp_path):
    return pre.Prepared.open(shutil.copytree(prepared, tmp_path / 'ready'))


def test_select(ready):
    x, t = ready.select()
    assert x.shape == (12, 16, 16, 1) and x.dtype == np.float32 and 0 <= x.min() < x.max() <= 1
    x, t = ready.select('train', 'a')
    assert len(x) == 4 and set(t.label) == {'a'} and list(t.index) == [0, 1, 2, 3]
    assert np.array_equal(x[1], to_float(ready.images[2]))
    assert len(ready.select(['val', 'test'])[0]) == 4
    assert len(ready.select(label=['a', 'b'])[0]) == 12
    with pytest.raises(InputError, match="split='dev'.*train, val, test"):
        ready.select('dev')
    with pytest.raises(InputError, match="label='c'"):
        ready.select(label='c')
    by_label = ready.table.assign(split=np.where(ready.table.label == 'a', 'train', 'test'))
    with pytest.raises(InputError, match='both'):
        ready.with_split(by_label).select('test', 'a')


def test_with_split_follows_the_images_not_the_order(ready):
    t = ready.table.sample(frac=1, random_state=0)
    t = t.assign(split=np.where(t.label == 'a', 'train', 'test'))
    other = ready.with_split(t)
    assert (other.table.split == np.where(other.table.label == 'a', 'train', 'test')).all()
    assert (other.table.image == ready.table.image).all()
    assert other.fingerprint != ready.fingerprint and ready.table.split.iloc[8] == 'val'
    with pytest.raises(InputError, match='no row'):
        ready.with_split(t[1:])


def test_fingerprint_is_about_content(ready, tmp_path):
    "The same files elsewhere have the same fingerprint; a pixel, a label or a split changes it."
    moved = ready.table.copy()
    (tmp_path / 'moved').mkdir()
    for i, f in enumerate(moved.image):
        moved.loc[i, 'image'] = str(shutil.copy(f, tmp_path / 'moved'))
    assert pre.prepare(moved, tmp_path / 'again', 16).fingerprint == ready.fingerprint
    labels = pre.prepare(moved.assign(label='a'), tmp_path / 'labels', 16)
    assert labels.fingerprint != ready.fingerprint
    images = np.array(ready.images)
    images[0, 0, 0] ^= 1
    assert pre.save_images(tmp_path / 'pixel', images, ready.table).fingerprint != ready.fingerprint


def test_images_are_mapped_not_read(ready):
    assert isinstance(ready.images, np.memmap) and not ready.images.flags.writeable


def cut(f):
    f.write_bytes(f.read_bytes()[:500])


def last_line_lost(f):
    f.write_text('\n'.join(f.read_text().splitlines()[:-1]))


def text_for_a_number(f):
    f.write_text(f.read_text().replace(',100,', ',wide,'))


def holds(content):
    "Something else in the place of a file."
    if isinstance(content, np.ndarray):
        return lambda f: np.save(f, content)
    return lambda f: f.write_text(content)


@pytest.mark.parametrize(
    'piece, do',
    [
        ('images.npy', Path.unlink),
        ('images.npy', cut),
        ('images.npy', holds('')),
        ('images.npy', holds(np.zeros((12, 8, 8, 1), np.uint8))),
        ('images.npy', holds(np.zeros((12, 16, 16, 1)))),
        ('table.csv', Path.unlink),
        ('table.csv', last_line_lost),
        ('table.csv', holds('a,b\n1,2\n')),
        ('table.csv', holds('')),
        ('table.csv', text_for_a_number),
        ('rejected.csv', Path.unlink),
        ('prepare.json', Path.unlink),
        ('prepare.json', holds('{"shape": ')),
    ],
)
def test_a_missing_or_broken_piece_is_named(ready, piece, do):
    do(ready.folder / piece)
    with pytest.raises(InputError, match=piece):
        pre.Prepared.open(ready.folder)


def test_changed_pixels_are_seen_when_verifying(ready):
    pre.Prepared.open(ready.folder, verify=True)
    f = ready.folder / 'images.npy'
    data = bytearray(f.read_bytes())
    data[-1] ^= 1
    f.write_bytes(data)
    pre.Prepared.open(ready.folder)
    with pytest.raises(InputError, match='images.npy'):
        pre.Prepared.open(ready.folder, verify=True)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match='nowhere'):
        pre.Prepared.open(tmp_path / 'nowhere')


def test_text_stays_text_and_missing_stays_missing(pictures, tmp_path):
    t = pictures.assign(label='007', patient=['01', None] * 6)
    t.loc[3, ['mask', 'split']] = None
    back = pre.prepare(as_table(t), tmp_path / 'out', 16).table
    assert back.label[0] == '007' and back.patient[0] == '01'
    assert back.patient.isna().sum() == 6
    assert pd.isna(back['mask'][3]) and pd.isna(back.split[3])


def test_save_images(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 10, 12, 1), np.uint8)
    t = pd.DataFrame({'image': [f'generated/a/{i}' for i in range(4)]}, index=[9, 8, 7, 6])
    t = t.assign(label='a', split='train', source='generated')
    made = pre.save_images(tmp_path / 'g', x, t, {'gan': 'g1'})
    assert np.array_equal(made.images, x)
    assert (made.table.width == 12).all() and made.table.sha256.is_unique
    assert made.info['gan'] == 'g1' and len(made.rejected) == 0
    again = pre.save_images(tmp_path / 'g', x[:2], t[:2])
    assert len(again) == 2 and 'gan' not in again.info
    for bad, table, word in (
        (x / 255, t, 'uint8'),
        (x[..., 0], t, 'images'),
        (x, t[:3], '3 rows'),
        (x, t.drop(columns='label'), 'label'),
    ):
        with pytest.raises(InputError, match=word):
            pre.save_images(tmp_path / 'bad', bad, table)
    assert not (tmp_path / 'bad').exists()


# ---------------------------------------------------------------- phantoms and real images
def test_phantom_set_end_to_end(tmp_path):
    table = load('head_ct', phantoms.write('head_ct', tmp_path, n_per_class=3, size=96, seed=1))
    ready = pre.prepare(table, tmp_path / 'out', 32)
    assert len(ready) == len(table) and ready.select(label='hemorrhage')[0].shape == (3, 32, 32, 1)


def test_real_head_ct(real_data, tmp_path):
    table = load('head_ct', real_data)
    ready = pre.prepare(table, tmp_path / 'out', 32, progress=False)
    assert ready.images.shape == (200, 32, 32, 1) and len(ready.rejected) == 0
    assert ready.table.label.value_counts().tolist() == [100, 100]
    for i in (0, 77, 199):
        whole = resize(read_image(table.image[i]), 32).astype(int)
        assert np.abs(whole - ready.images[i, ..., 0]).max() <= 4


def test_real_lung_crops(real_data, tmp_path):
    folder = real_data / 'COVID-19_Radiography_Dataset' / 'Viral Pneumonia'
    files = sorted((folder / 'images').glob('*.png'))[:24] if folder.is_dir() else []
    if not files:
        pytest.skip('no masked X-rays in GAN_COVID_DATA')
    table = rows(files, [str(folder / 'masks' / f.name) for f in files])
    ready = pre.prepare(table, tmp_path / 'out', Steps(128, crop='lungs'), progress=False)
    whole = pre.prepare(table, tmp_path / 'whole', 128, progress=False)
    assert len(ready) == 24
    assert np.abs(ready.images.astype(int) - whole.images).mean() > 5
    corners = [p.images[:, :12, :12].astype(float).mean() for p in (ready, whole)]
    assert corners[0] != corners[1]


def test_files_of_two_sizes_are_filtered_alike(tmp_path):
    rng = np.random.default_rng(0)
    large = resize(rng.integers(0, 256, (75, 75), dtype=np.uint8), 299)
    rows = []
    for name, picture in (('large', large), ('small', resize(large, 224))):
        Image.fromarray(picture).save(tmp_path / f'{name}.png')
        file = tmp_path / f'{name}.png'
        h, w = picture.shape
        row = {'image': str(file), 'label': name, 'source': 'here', 'width': w, 'height': h}
        rows.append(row | {'sha256': sha256_file(file)})
    table = as_table(rows)
    fine = {}
    for via in (None, 224):
        made = pre.prepare(table, tmp_path / f'via {via}', Steps(128, via=via), progress=False)
        fine[via] = np.abs(np.asarray(made.images[0], int) - np.asarray(made.images[1], int)).max()
    assert fine[224] == 0 < fine[None]
    assert Steps(128, via=224).as_dict()['via'] == [224, 224] and 'via' not in Steps(128).as_dict()
