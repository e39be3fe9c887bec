"Figures, tables and the manifest: deterministic bytes, honest notes, parallel writers, bad input."

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from gan_covid import plotting as pl
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


def figures():
    rng = np.random.default_rng(0)
    fit = {
        'loss': [1, 0.5, 0.4],
        'val_loss': [1, 0.6, 0.7],
        'accuracy': [0.5, 0.7, 0.8],
        'val_accuracy': [0.5, 0.6, 0.6],
    }
    losses = {
        'step': [0, 10, 20],
        'g': [1, 300, 1.2],
        'd_real': [0.5, 0.6, 0.5],
        'd_fake': [0.5, 0.4, 0.5],
        'gp': [0.1, 0.1, 0.1],
    }
    q = {'mean': 1.0, 'sd': 0.1, 'q05': 0.8, 'q50': 1.0, 'q95': 1.2}
    yield 'sheet', pl.sheet(rng.random((6, 8, 8, 1)), titles=list('abcdef'), note=NOTE)
    yield 'one', pl.sheet(rng.integers(0, 255, (1, 9, 5, 3), dtype=np.uint8), note=NOTE)
    yield 'losses', pl.losses(losses, note=NOTE)
    yield 'confusion', pl.confusion_matrix([[3, 0], [0, 0]], ['a', 'b'], note=NOTE)
    yield 'roc', pl.roc({'a': ([0, 0, 1], [0, 1, 1])}, note=NOTE)
    yield (
        'result',
        pl.result_block(
            [[3, 1], [1, 3]], ['a', 'b'], {'a': ([0, 0, 1], [0, 1, 1])}, 'title', note=NOTE
        ),
    )
    yield 'forest', pl.arms_forest(FRAME, published={('original', 'accuracy'): 0.75}, note=NOTE)
    yield (
        'history',
        pl.history({'CNN': fit, 'VGG-16': {k: fit[k] for k in ('loss', 'accuracy')}}, note=NOTE),
    )
    yield 'curve', pl.curve(FRAME, 'mean', 'low', by='metric', levels={'published': 0.5}, note=NOTE)
    course = pd.DataFrame(
        [
            {'kimg': k, 'distance': 1 / k, 'GAN': f'GAN of {n} training images a class'}
            for n in (810, 405, 202, 101)
            for k in (10, 20)
        ]
    )
    yield 'four long names', pl.curve(course, 'kimg', 'distance', by='GAN', note=NOTE)
    yield (
        'four matrices',
        pl.confusion_matrix(
            {a: np.full((3, 3), 200) for a in ('none', 'classic', 'GAN', 'both')},
            ['COVID', 'Normal', 'Viral Pneumonia'],
            note=NOTE,
        ),
    )
    yield 'ranges', pl.ranges({'real': {'RMSE': q, 'SAM': q}, 'generated': {'RMSE': q}}, note=NOTE)
    yield 'tsne', pl.tsne_map(rng.normal(size=(8, 2)), ['real'] * 4 + ['generated'] * 4, note=NOTE)
    yield 'scheme', pl.scheme('gan')
    yield 'network', pl.network_diagram(network('T21 settled'), 'G', note=NOTE)
    yield 'table', pl.table_figure(FRAME, 'title', note=NOTE)


def write_all(folder):
    for name, fig in figures():
        pl.save_figure(fig, folder, name)
    pl.save_table(FRAME.assign(text='a|b_%&'), folder, 'T', 'Title', NOTE)


def test_every_figure_is_the_same_in_another_process_and_after_foreign_settings(tmp_path):
    import matplotlib

    with matplotlib.rc_context({'font.size': 30, 'axes.grid': False, 'savefig.dpi': 20}):
        write_all(tmp_path / 'a')
    code = "import sys; sys.path.insert(0, 'tests'); from test_plotting import write_all; write_all(sys.argv[1])"
    subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'b')],
        check=True,
        env={**os.environ, 'PYTHONHASHSEED': '7', 'TZ': 'Asia/Tokyo'},
    )
    names = sorted(p.name for p in (tmp_path / 'a').iterdir())
    assert len(names) == 2 * len(list(figures())) + 3 and names == sorted(
        p.name for p in (tmp_path / 'b').iterdir()
    )
    for n in names:
        assert (tmp_path / 'a' / n).read_bytes() == (tmp_path / 'b' / n).read_bytes(), n


def test_no_engine_and_no_window_is_loaded():
    code = "import sys, gan_covid.plotting, gan_covid.published, gan_covid.evaluation; print([m for m in ('torch', 'tensorflow', 'keras', 'matplotlib.pyplot') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )


def test_a_figure_without_a_note_is_refused():
    for draw in (
        lambda n: pl.sheet(np.zeros((1, 4, 4)), note=n),
        lambda n: pl.history({'loss': [1, 2]}, note=n),
        lambda n: pl.table_figure(FRAME, note=n),
        lambda n: pl.scheme('gan', note=n),
    ):
        with pytest.raises(InputError, match='data and weights'):
            draw('')
    with pytest.raises(TypeError, match='note'):
        pl.sheet(np.zeros((1, 4, 4)))
    with pytest.raises(InputError, match='T1'):
        pl.save_table(FRAME, 'nowhere', 'T1')


def test_text_stays_inside_the_figure_and_above_the_note():
    "No text of any figure leaves the page, and none but the note stands in the foot."
    for name, fig in figures():
        canvas = FigureCanvasAgg(fig)
        canvas.draw()
        renderer, page = canvas.get_renderer(), fig.bbox
        foot = fig.texts[0].get_window_extent(renderer)
        # axes with their drawn tick labels, titles and texts; then the legends and titles of the figure
        boxes = [(ax.get_title() or 'axes', ax.get_tightbbox(renderer)) for ax in fig.axes]
        boxes += [
            (t.get_text(), t.get_window_extent(renderer)) for ax in fig.axes for t in ax.texts
        ] + [('legend', l.get_window_extent(renderer)) for l in fig.legends]
        for what, box in boxes:
            if box is None or box.width == 0:
                continue
            assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1, (
                name,
                what,
            )
            assert box.y0 >= foot.y1 - 1, (name, what)


def test_pictures_with_patients_are_named_for_git_to_ignore(tmp_path):
    fig = pl.sheet(np.zeros((1, 4, 4)), note=NOTE)
    assert [p.name for p in pl.save_figure(fig, tmp_path, 'F25', local=True)] == [
        'F25.local.png',
        'F25.local.pdf',
    ]
    if not Path('.git').exists():
        pytest.skip('not a git checkout')

    def check(name):
        return subprocess.run(
            ['git', 'check-ignore', '-q', f'figures/small/ct_report/{name}']
        ).returncode

    assert check('F25.local.png') == check('F25.local.pdf') == 0 and check('F25.png') == 1


def test_pixels_of_a_sheet_are_the_images(tmp_path):
    x = np.zeros((4, 32, 32), np.uint8)
    x[1] = 255
    (path,) = pl.save_figure(pl.sheet(x, columns=2, note=NOTE), tmp_path, 's', formats=('png',))
    a = np.asarray(Image.open(path).convert('L'))
    h, w = a.shape
    assert a[h // 5, w // 4] == 0 and a[h // 5, 3 * w // 4] == 255


@pytest.mark.parametrize(
    'images, says',
    [
        (np.zeros((0, 4, 4)), 'n > 0'),
        (np.zeros((4, 4)), 'got shape'),
        ([np.zeros((4, 4)), np.zeros((5, 4))], 'one size'),
        (np.zeros((2, 4, 4, 2)), 'got shape'),
    ],
)
def test_sheet_bad_images(images, says):
    with pytest.raises(InputError, match=says):
        pl.sheet(images, note=NOTE)


def test_other_bad_input(tmp_path):
    with pytest.raises(InputError, match='2 × 2'):
        pl.confusion_matrix([[1, 2, 3]] * 3, ['a', 'b'], note=NOTE)
    with pytest.raises(InputError, match="no 'epoch'"):
        pl.losses({'step': [1], 'g': [1]}, x='epoch', note=NOTE)
    with pytest.raises(InputError, match='at least 5'):
        pl.tsne(np.zeros((3, 4)))
    with pytest.raises(InputError, match='embedding'):
        pl.tsne_map(np.zeros((3, 3)), list('abc'), note=NOTE)
    with pytest.raises(InputError, match='kind'):
        pl.scheme('vae')
    with pytest.raises(InputError, match='empty list'):
        pl.network_diagram([], note=NOTE)
    with pytest.raises(InputError, match='formats'):
        pl.save_figure(pl.scheme('gan'), tmp_path, 'x', formats=('bmp',))
    with pytest.raises(InputError, match="'reproduced' is missing"):
        pl.published_beside(pd.DataFrame({'name': ['a'], 'published': [1]}))


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
    csv, md, tex = pl.save_table(df, tmp_path, 'T9', 'A title', NOTE)
    back = pd.read_csv(csv)
    assert (
        back.value.tolist()[0] == pytest.approx(1 / 3, rel=1e-5)
        and np.isnan(back.value[1])
        and back.n.tolist() == df.n.tolist()
        and back['shape'][0] == '32×32×1'
    )
    assert set(back.note) == {NOTE} and b'\r' not in csv.read_bytes()
    assert md.read_text().count('|\n') == 5 and md.read_text().endswith(f'*{NOTE}*\n')
    assert (
        r'x\_y \& 5 \%' in tex.read_text()
        and r'32$\times$32$\times$1' in tex.read_text()
        and r'\label{tab:T9}' in tex.read_text()
    )


def test_verdicts():
    rows = [
        ('inside', 0.5, 0.6, 0.4, 0.7),
        ('on the edge', 0.4, 0.6, 0.4, 0.7),
        ('outside', 0.3, 0.6, 0.4, 0.7),
        ('count', 200, 200, None, None),
        ('other count', 200, 199, None, None),
        ('word', 'Adam', 'Adam', None, None),
        ('unpublished', None, 0.6, 0.4, 0.7),
        ('not run', 0.5, np.nan, None, None),
        ('single', 0.5, 0.5001, None, None),
    ]
    df = pd.DataFrame(
        rows, columns=['name', 'published', 'reproduced', 'low', 'high'], dtype=object
    )
    assert pl.published_beside(df).verdict.tolist() == [
        'agrees',
        'agrees',
        'differs',
        'agrees',
        'differs',
        'agrees',
        'not comparable',
        'not comparable',
        'not comparable',
    ]
    phantom = pl.published_beside(df, why='phantom data')
    assert set(phantom.verdict) == {'not comparable'} and phantom.why.notna().all()


def entry(folder, id='T19', **more):
    files = pl.save_table(FRAME, folder / 'head_ct', id, 'A table', NOTE)
    return pl.Manifest(folder).add(
        id, 'head_ct', 'Images', files, ['head_ct/prepare/all'], 'phantom', None, **more
    )


def test_parallel_notebooks_lose_nothing(tmp_path):
    code = (
        'import sys; from gan_covid.plotting import Manifest\n'
        "for i in sys.argv[2:]: Manifest(sys.argv[1]).add(i, 'wmlq2022', 't', ['a.csv'], (), 'phantom').write()"
    )
    parts = [[f'F{i}' for i in range(k, 31, 3)] for k in (1, 2, 3)]
    running = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path), *p]) for p in parts]
    assert [r.wait() for r in running] == [0, 0, 0]
    assert set(read_json(tmp_path / 'manifest.json')['items']) == {f'F{i}' for i in range(1, 31)}


def test_check_finds_what_is_wrong(tmp_path):
    assert 'not found' in pl.Manifest.check(tmp_path)[0]
    entry(tmp_path).write()
    one = {'T19': INVENTORY['T19']}
    assert (
        pl.Manifest.check(tmp_path, one) == []
        and len(pl.Manifest.check(tmp_path)) == len(INVENTORY) - 1
    )
    assert len(pl.Manifest.check(tmp_path, papers=['head_ct'])) == 9
    (tmp_path / 'head_ct' / 'T19.csv').write_text('')
    items = read_json(tmp_path / 'manifest.json')['items']
    items['T19']['values'] = [
        {'name': 'a', 'verdict': 'maybe'},
        {'name': 'b', 'verdict': 'not comparable'},
    ]
    items['T77'] = items['T19']
    write_json(tmp_path / 'manifest.json', {'items': items})
    problems = ' | '.join(pl.Manifest.check(tmp_path, one))
    for word in (
        'T19.csv is empty',
        "verdict 'maybe'",
        'does not say why',
        'T77: not in the inventory',
    ):
        assert word in problems


def test_local_pictures_may_be_absent(tmp_path):
    m = pl.Manifest(tmp_path).add(
        'F25',
        'ct_report',
        'Samples',
        ['ct_report/F25.local.png'],
        (),
        'COVID-CT, 742 images',
        local=True,
    )
    m.write()
    one = {'F25': INVENTORY['F25']}
    assert (
        pl.Manifest.check(tmp_path, one) == []
        and 'is not there' in pl.Manifest.check(tmp_path, one, local=True)[0]
    )
    pl.Manifest(tmp_path).add(
        'F25', 'ct_report', 'Samples', ['ct_report/F25.local.png'], (), 'COVID-CT, 742 images'
    ).write()
    assert 'not local' in pl.Manifest.check(tmp_path, one)[0]


def test_entries_hold_no_machine_paths(tmp_path):
    e = entry(tmp_path).items['T19']
    assert e['files'] == ['head_ct/T19.csv', 'head_ct/T19.md', 'head_ct/T19.tex'] and str(
        tmp_path
    ) not in str(e)
    with pytest.raises(InputError, match='outside'):
        pl.Manifest(tmp_path / 'smoke').add(
            'T19', 'head_ct', 't', [tmp_path / 'a.csv'], (), 'phantom'
        )
    with pytest.raises(InputError, match='relative'):
        pl.Manifest(tmp_path).add('T19', 'head_ct', 't', [], [str(tmp_path)], 'phantom')
    with pytest.raises(InputError, match='on which data'):
        pl.Manifest(tmp_path).add('T19', 'head_ct', 't', [])
    assert (
        'O12@ct_report'
        in pl.Manifest(tmp_path).add('O12@ct_report', 'ct_report', 't', [], (), 'phantom').items
    )


def test_a_keras_description_is_drawn():
    rows = [
        {
            'name': 'conv',
            'type': 'Conv2DTranspose',
            'shape': [32, 32, 128],
            'parameters': 262272,
            'detail': '128 filters 4×4, stride 2',
        },
        {
            'name': 'bn',
            'type': 'BatchNormalization',
            'shape': [32, 32, 128],
            'parameters': 512,
            'detail': '',
        },
        {
            'name': 'act',
            'type': 'Activation',
            'shape': [32, 32, 128],
            'parameters': 0,
            'detail': 'tanh',
        },
    ]
    ((label, small, shape, n, fixed),) = pl.fold(rows)
    assert (
        label == 'Conv2DTranspose'
        and small == '128 filters 4×4, stride 2 + batch norm + tanh'
        and shape == (32, 32, 128)
        and (n, fixed) == (262784, 256)
    )
    assert pl.network_diagram(rows, note=NOTE).get_figwidth() == pl.WIDTH
