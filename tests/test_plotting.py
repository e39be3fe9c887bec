"Plots, tables and the manifest: deterministic bytes, honest notes, parallel writers, bad input."

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from gan_covid import plots, style, tables
from gan_covid.manifest import Entry, Manifest
from gan_covid.published import INVENTORY, network
from gan_covid.records import InputError, read_json, write_json

NOTE = 'simulated numbers, no data'
FRAME = pd.DataFrame(
    {
        'arm': ['original', 'generated'] * 2,
        'metric': ['accuracy'] * 2 + ['mcc'] * 2,
        'mean': [0.8, 0.7, 0.6, 0.4],
        'low': [0.7, 0.6, 0.4, 0.2],
        'high': [0.9, 0.8, 0.7, np.nan],
    }
)
CURVE = {'a': ([0, 0, 1], [0, 1, 1])}
FIT = {
    'loss': [1, 0.5, 0.4],
    'val_loss': [1, 0.6, 0.7],
    'accuracy': [0.5, 0.7, 0.8],
    'val_accuracy': [0.5, 0.6, 0.6],
}
LOSSES = {
    'step': [0, 10, 20],
    'g': [1, 300, 1.2],
    'd_real': [0.5, 0.6, 0.5],
    'd_fake': [0.5, 0.4, 0.5],
    'gp': [0.1, 0.1, 0.1],
}


def long_names():
    "Four lines whose names take a row of the legend each."
    rows = [
        {'kimg': k, 'distance': 1 / k, 'GAN': f'GAN of {n} training images a class'}
        for n in (810, 405, 202, 101)
        for k in (10, 20)
    ]
    return plots.curve(pd.DataFrame(rows), 'kimg', 'distance', by='GAN', note=NOTE)


def figures():
    "One figure of each kind."
    rng = np.random.default_rng(0)
    q = {'mean': 1.0, 'sd': 0.1, 'q05': 0.8, 'q50': 1.0, 'q95': 1.2}
    counts, classes = [[3, 1], [1, 3]], ['COVID', 'Normal', 'Viral Pneumonia']
    arms = {a: np.full((3, 3), 200) for a in ('none', 'classic', 'GAN', 'both')}
    fits = {'CNN': FIT, 'VGG-16': {k: FIT[k] for k in ('loss', 'accuracy')}}
    groups = ['real'] * 4 + ['generated'] * 4
    similar = {'real': {'RMSE': q, 'SAM': q}, 'generated': {'RMSE': q}}
    given = {('original', 'accuracy'): 0.75}
    yield 'sheet', plots.sheet_figure(rng.random((6, 8, 8, 1)), titles=list('abcdef'), note=NOTE)
    yield 'one', plots.sheet_figure(rng.integers(0, 255, (1, 9, 5, 3), dtype=np.uint8), note=NOTE)
    yield 'losses', plots.losses(LOSSES, note=NOTE)
    yield 'confusion', plots.confusion_matrix([[3, 0], [0, 0]], ['a', 'b'], note=NOTE)
    yield 'four matrices', plots.confusion_matrix(arms, classes, note=NOTE)
    yield 'roc', plots.roc(CURVE, note=NOTE)
    yield 'result', plots.result_block(counts, ['a', 'b'], CURVE, 'title', note=NOTE)
    yield 'forest', plots.arms_forest(FRAME, published=given, note=NOTE)
    yield 'history', plots.history(fits, note=NOTE)
    yield (
        'curve',
        plots.curve(FRAME, 'mean', 'low', by='metric', levels={'published': 0.5}, note=NOTE),
    )
    yield 'four long names', long_names()
    yield 'ranges', plots.ranges(similar, note=NOTE)
    yield 'tsne', plots.tsne_map(rng.normal(size=(8, 2)), groups, note=NOTE)
    yield 'scheme', plots.scheme('gan')
    yield 'network', plots.network_diagram(network('T21 settled'), 'G', note=NOTE)


def write_all(folder) -> dict:
    drawn = dict(figures())
    for name, fig in drawn.items():
        style.save_figure(fig, folder, name)
    tables.save_table(FRAME.assign(text='a|b_%&'), folder, 'T', 'Title', NOTE)
    return drawn


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "All figures, drawn and written where the user has set other letters and sizes: folder, name -> figure."
    folder = tmp_path_factory.mktemp('drawn')
    with matplotlib.rc_context({'font.size': 30, 'axes.grid': False, 'savefig.dpi': 20}):
        return folder, write_all(folder)


@pytest.mark.slow
def test_every_figure_is_the_same_in_another_process_and_after_foreign_settings(drawn, tmp_path):
    folder, figs = drawn
    code = "import sys; sys.path.insert(0, 'tests'); import test_plotting as t; t.write_all(sys.argv[1])"
    env = {**os.environ, 'PYTHONHASHSEED': '7', 'TZ': 'Asia/Tokyo'}
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], check=True, env=env)
    ours, theirs = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (folder, tmp_path))
    assert len(ours) == 2 * len(figs) + 3 and set(ours) == set(theirs)
    assert [n for n in ours if ours[n] != theirs[n]] == []


@pytest.mark.slow
def test_text_stays_inside_the_figure_and_above_the_note(drawn):
    "No text of any figure leaves the page, and none but the note stands in the foot."
    for name, fig in drawn[1].items():
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        renderer, page = canvas.get_renderer(), fig.bbox
        foot = fig.texts[0].get_window_extent(renderer)
        # axes with their drawn tick labels, titles and texts; then the legends of the figure
        boxes = [(ax.get_title() or 'axes', ax.get_tightbbox(renderer)) for ax in fig.axes]
        boxes += [
            (t.get_text(), t.get_window_extent(renderer)) for ax in fig.axes for t in ax.texts
        ]
        boxes += [('legend', legend.get_window_extent(renderer)) for legend in fig.legends]
        for what, box in boxes:
            if box is None or box.width == 0:
                continue
            inside = box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
            assert inside, (name, what)
            assert box.y0 >= foot.y1 - 1, (name, what)


def test_no_engine_and_no_window_is_loaded():
    heavy = 'torch', 'tensorflow', 'keras', 'matplotlib.pyplot'
    modules = 'plots', 'tables', 'manifest', 'claims'
    code = f'import sys; from gan_covid import {", ".join(modules)}\n'
    code += f'print([m for m in {heavy} if m in sys.modules])'
    run = [sys.executable, '-c', code]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_a_figure_without_a_note_is_refused():
    for draw in (
        lambda n: plots.sheet_figure(np.zeros((1, 4, 4)), note=n),
        lambda n: plots.history({'loss': [1, 2]}, note=n),
        lambda n: plots.scheme('gan', note=n),
    ):
        with pytest.raises(InputError, match='data and weights'):
            draw('')
    with pytest.raises(TypeError, match='note'):
        plots.sheet_figure(np.zeros((1, 4, 4)))
    with pytest.raises(InputError, match='T1'):
        tables.save_table(FRAME, 'nowhere', 'T1')


def test_pictures_with_patients_are_named_for_git_to_ignore(tmp_path):
    fig = plots.sheet_figure(np.zeros((1, 4, 4)), note=NOTE)
    names = [p.name for p in style.save_figure(fig, tmp_path, 'F25', local=True)]
    assert names == ['F25.local.png', 'F25.local.pdf']
    if not Path('.git').exists():
        pytest.skip('not a git checkout')

    def ignored(name):
        file = f'figures/small/ct_report/{name}'
        return subprocess.run(['git', 'check-ignore', '-q', file]).returncode == 0

    assert [ignored(n) for n in (*names, 'F25.png')] == [True, True, False]


def test_pixels_of_a_sheet_are_the_images(tmp_path):
    x = np.zeros((4, 32, 32), np.uint8)
    x[1] = 255
    fig = plots.sheet_figure(x, columns=2, note=NOTE)
    (path,) = style.save_figure(fig, tmp_path, 's', formats=('png',))
    a = np.asarray(Image.open(path).convert('L'))
    h, w = a.shape
    assert a[h // 5, w // 4] == 0 and a[h // 5, 3 * w // 4] == 255


BAD_IMAGES = {
    'none': (np.zeros((0, 4, 4)), 'n > 0'),
    'one without n': (np.zeros((4, 4)), 'got shape'),
    'two sizes': ([np.zeros((4, 4)), np.zeros((5, 4))], 'one size'),
    'two channels': (np.zeros((2, 4, 4, 2)), 'got shape'),
}


@pytest.mark.parametrize('images, says', BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_of_a_sheet(images, says):
    with pytest.raises(InputError, match=says):
        plots.sheet_figure(images, note=NOTE)


def test_other_bad_input(tmp_path):
    with pytest.raises(InputError, match='embedding'):
        plots.tsne_map(np.zeros((3, 3)), list('abc'), note=NOTE)
    with pytest.raises(InputError, match="'reproduced' is missing"):
        tables.published_beside(pd.DataFrame({'name': ['a'], 'published': [1]}))


def test_tables_read_back(tmp_path):
    df = pd.DataFrame(
        {
            'name': ['a,b', 'c"d', 'x_y & 5 %'],
            'value': [1 / 3, np.nan, 1e-7],
            'n': [1, 21165, 3],
            'shape': [(32, 32, 1), (1.5, 2), None],
            'yes': [True, False, True],
        }
    )
    csv, md, tex = tables.save_table(df, tmp_path, 'T9', 'A title', NOTE)
    back = pd.read_csv(csv)
    assert back.value[0] == pytest.approx(1 / 3, rel=1e-5) and np.isnan(back.value[1])
    assert back.n.tolist() == df.n.tolist() and back['shape'][0] == '32×32×1'
    assert set(back.note) == {NOTE} and b'\r' not in csv.read_bytes()
    assert md.read_text().count('|\n') == 5 and md.read_text().endswith(f'*{NOTE}*\n')
    for words in (r'x\_y \& 5 \%', r'32$\times$32$\times$1', r'\label{tab:T9}'):
        assert words in tex.read_text()


def test_verdicts():
    rows = {
        'inside': (0.5, 0.6, 0.4, 0.7, 'agrees'),
        'on the edge': (0.4, 0.6, 0.4, 0.7, 'agrees'),
        'outside': (0.3, 0.6, 0.4, 0.7, 'differs'),
        'count': (200, 200, None, None, 'agrees'),
        'other count': (200, 199, None, None, 'differs'),
        'word': ('Adam', 'Adam', None, None, 'agrees'),
        'unpublished': (None, 0.6, 0.4, 0.7, 'not comparable'),
        'not run': (0.5, np.nan, None, None, 'not comparable'),
        'single': (0.5, 0.5001, None, None, 'not comparable'),
    }
    columns = ['published', 'reproduced', 'low', 'high', 'want']
    df = pd.DataFrame.from_dict(rows, orient='index', columns=columns, dtype=object)
    df = df.rename_axis('name').reset_index()
    assert tables.published_beside(df).verdict.tolist() == df.want.tolist()
    phantom = tables.published_beside(df, why='phantom data')
    assert set(phantom.verdict) == {'not comparable'} and phantom.why.notna().all()


def manifest(folder, **more):
    "A manifest with one table in it."
    files = tables.save_table(FRAME, folder / 'head_ct', 'T19', 'A table', NOTE)
    entry = Entry('head_ct', 'Images', files, ['head_ct/prepare/all'], 'phantom', **more)
    return Manifest(folder).add('T19', entry)


@pytest.mark.slow
def test_parallel_notebooks_lose_nothing(tmp_path):
    code = (
        'import sys; from gan_covid.manifest import Entry, Manifest\n'
        "entry = Entry('wmlq2022', 't', ['a.csv'], data='phantom')\n"
        'for i in sys.argv[2:]: Manifest(sys.argv[1]).add(i, entry).write()'
    )
    parts = [[f'F{i}' for i in range(k, 31, 3)] for k in (1, 2, 3)]
    running = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path), *p]) for p in parts]
    assert [r.wait() for r in running] == [0, 0, 0]
    assert set(read_json(tmp_path / 'manifest.json')['items']) == {f'F{i}' for i in range(1, 31)}


def test_check_finds_what_is_wrong(tmp_path):
    assert 'not found' in Manifest.check(tmp_path)[0]
    manifest(tmp_path).write()
    one = {'T19': INVENTORY['T19']}
    assert Manifest.check(tmp_path, one) == []
    assert len(Manifest.check(tmp_path)) == len(INVENTORY) - 1
    assert len(Manifest.check(tmp_path, papers=['head_ct'])) == 9
    (tmp_path / 'head_ct' / 'T19.csv').write_text('')
    items = read_json(tmp_path / 'manifest.json')['items']
    items['T19']['values'] = [
        {'name': 'a', 'verdict': 'maybe'},
        {'name': 'b', 'verdict': 'not comparable'},
    ]
    items['T77'] = items['T19']
    write_json(tmp_path / 'manifest.json', {'items': items})
    assert Manifest.check(tmp_path, one) == [
        'T19: head_ct/T19.csv is empty',
        "T19: value 'a' has verdict 'maybe'",
        "T19: value 'b' is not comparable, but it does not say why",
        'T77: not in the inventory',
    ]


def test_local_pictures_may_be_absent(tmp_path):
    def write(**more):
        files = ['ct_report/F25.local.png']
        entry = Entry('ct_report', 'Samples', files, data='COVID-CT, 742 images', **more)
        Manifest(tmp_path).add('F25', entry).write()

    one = {'F25': INVENTORY['F25']}
    write(local=True)
    assert Manifest.check(tmp_path, one) == []
    assert 'is not there' in Manifest.check(tmp_path, one, local=True)[0]
    write()
    assert 'not local' in Manifest.check(tmp_path, one)[0]


def test_entries_hold_no_machine_paths(tmp_path):
    item = manifest(tmp_path).items['T19']
    assert item['files'] == ['head_ct/T19.csv', 'head_ct/T19.md', 'head_ct/T19.tex']
    assert str(tmp_path) not in str(item)
    wrong = {
        'outside': Entry('head_ct', 't', [tmp_path / 'a.csv'], data='phantom'),
        'relative': Entry('head_ct', 't', [], [str(tmp_path)], 'phantom'),
        'on which data': Entry('head_ct', 't', []),
    }
    for says, entry in wrong.items():
        with pytest.raises(InputError, match=says):
            Manifest(tmp_path / 'smoke').add('T19', entry)
    second = Manifest(tmp_path).add('O12@ct_report', Entry('ct_report', 't', [], data='phantom'))
    assert set(second.items) == {'O12@ct_report'}


def test_a_keras_description_is_drawn():
    conv = {
        'name': 'conv',
        'type': 'Conv2DTranspose',
        'shape': [32, 32, 128],
        'parameters': 262272,
        'detail': '128 filters 4×4, stride 2',
    }
    norm = {**conv, 'name': 'bn', 'type': 'BatchNormalization', 'parameters': 512, 'detail': ''}
    tanh = {**conv, 'name': 'act', 'type': 'Activation', 'parameters': 0, 'detail': 'tanh'}
    rows = [conv, norm, tanh]
    small = '128 filters 4×4, stride 2 + batch norm + tanh'
    assert plots.fold(rows) == [('Conv2DTranspose', small, (32, 32, 128), 262784, 256)]
    assert plots.network_diagram(rows, note=NOTE).get_figwidth() == style.WIDTH
