"""What is shipped: records that are whole, a manifest with every id, figures that need no engine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gan_covid.arms import LEAKY, named
from gan_covid.plotting import Manifest
from gan_covid.published import ids
from gan_covid.records import find_records, read_json, verify_record

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted(p.parent for p in (ROOT / 'figures').glob('*/manifest.json'))
SHIPPED = sorted({(r['profile'], r['paper']) for r in find_records(ROOT / 'records')})


def test_smoke_and_small_are_shipped():
    assert {p.name for p in PROFILES} >= {'smoke', 'small'} and {
        ('smoke', 'head_ct'),
        ('small', 'head_ct'),
    } <= set(SHIPPED)


@pytest.mark.parametrize('folder', PROFILES, ids=lambda p: p.name)
def test_every_id_of_a_shipped_paper_has_its_files(folder):
    papers = [paper for profile, paper in SHIPPED if profile == folder.name]
    assert papers and Manifest.check(folder, papers=papers) == []
    assert all(f'id="{i}"' in (folder / 'index.html').read_text() for p in papers for i in ids(p))


@pytest.mark.parametrize('profile, paper', SHIPPED)
def test_records_are_whole_and_no_gan_saw_a_test_image(profile, paper):
    found = find_records(ROOT / 'records', profile, paper)
    assert [p for r in found for p in verify_record(r)] == []
    assert {r['data']['kind'] for r in found} == {'phantom' if profile == 'smoke' else 'real'}
    generated = [r for r in found if r['step'] == 'generate']
    clean = [r for r in generated if r['name'] not in LEAKY]
    assert clean and all(
        r['results']['test_images_seen'] == 0 and r['results']['trained_on'] > 0 for r in clean
    )
    assert all(
        r['results']['test_images_seen'] for r in generated if r['name'] == 'published'
    )  # there to show a leak
    repeats = [r for c in found if c['step'] == 'classify' for r in c['results']['repeats']]
    assert all((r['leaked'] == []) == (named(r['arm'])[1] not in LEAKY) for r in repeats)


def test_no_picture_of_a_patient_is_tracked():
    tracked = subprocess.run(
        ['git', 'ls-files', 'figures', 'records'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split('\n')
    assert not [f for f in tracked if '.local.' in f]
    for folder in PROFILES:
        for id, item in read_json(folder / 'manifest.json')['items'].items():
            if any('.local.' in f for f in item['files']):
                assert item['local'], f'{folder.name}/{id}'


@pytest.mark.parametrize(
    'profile, paper', [s for s in SHIPPED if s[0] == 'small'] or [('small', 'head_ct')]
)
def test_figures_are_redrawn_without_engines_to_the_same_tables(tmp_path, profile, paper):
    "The paper's notebook runs with TensorFlow, torch and keras made unimportable, and gives the shipped tables byte for byte."
    (tmp_path / 'block').mkdir()
    for engine in ('tensorflow', 'torch', 'keras'):
        (tmp_path / 'block' / f'{engine}.py').write_text(
            f"raise ImportError('{engine} is not to be loaded here')\n"
        )
    env = {**os.environ, 'PYTHONPATH': str(tmp_path / 'block')}
    subprocess.run(
        [
            sys.executable,
            '-m',
            'gan_covid.cli',
            'figures',
            '--profile',
            profile,
            '--paper',
            paper,
            '--figures',
            str(tmp_path / 'figures'),
            '--work',
            str(tmp_path / 'work'),
            '--records',
            str(ROOT / 'records'),
        ],
        check=True,
        env=env,
        cwd=ROOT,
    )
    tables = sorted(p.name for p in (ROOT / 'figures' / profile / paper).glob('*.csv'))
    assert tables
    assert {
        t
        for t in tables
        if (tmp_path / 'figures' / profile / paper / t).read_bytes()
        != (ROOT / 'figures' / profile / paper / t).read_bytes()
    } == set()
    drawn, shipped = (
        {
            i: v['local']
            for i, v in read_json(f / profile / 'manifest.json')['items'].items()
            if v['paper'] == paper
        }
        for f in (tmp_path / 'figures', ROOT / 'figures')
    )
    assert (
        drawn == shipped
    )  # what has pictures of patients is marked so, whether they are here or not


def test_readme_says_what_the_tables_say():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    said = re.findall(
        r'^\| `(\w+)` (\w+), ([^|]+) \| `([^`]+)` against `([^`]+)` \| [^|]+ \| (\S+) \[(\S+), (\S+)\] \| (\S+) \|$',
        text,
        re.M,
    )
    assert len(said) == text.count('` against `') > 0
    for paper, id, network, arm, baseline, *numbers in said:
        tables = [
            pd.read_csv(f)
            for end in ('differences', 'leak')
            if (f := ROOT / 'figures' / 'small' / paper / f'{id}_{end}.csv').exists()
        ]
        rows = [
            r
            for t in tables
            for r in t.to_dict('records')
            if r['metric'] == 'accuracy'
            and (r['arm'], r.get('baseline', 'original')) == (arm, baseline)
            and network in (r.get('network', network), f'{r.get("images a class")} images a class')
        ]
        assert len(rows) == 1, (paper, id, network, arm)
        p = rows[0]['p_adjusted']
        assert numbers == [
            *(f'{rows[0][k]:+.3f}'.replace('-', '−') for k in ('difference', 'low', 'high')),
            '<0.001' if p < 0.001 else f'{p:.2g}',
        ], (paper, id, network, arm)


def test_text_on_the_radiograph_gans_says_what_their_logs_say():
    text = (
        ' '.join(
            ''.join(c['source'])
            for c in read_json(ROOT / 'nbs' / 'papers' / 'wmlq2022.ipynb')['cells']
            if c['cell_type'] == 'markdown'
        )
        .replace('\n', ' ')
        .replace('−', '-')
    )
    runs = {
        r['name']: r['results']
        for r in find_records(ROOT / 'records', 'small', 'wmlq2022')
        if r['step'] == 'train_stylegan2'
    }
    ways = {n: ([x for x in r['log'] if 'distance' in x], r['best']) for n, r in runs.items()}
    (first, *_), best = ways['conditional']
    assert (
        f'from {first["distance"]:.3f} (at 10 thousand) to {best["distance"]:.3f} (at {best["kimg"]:.0f})'
        in text
        and max(x['p'] for x in runs['conditional']['log']) < 0.01
    )
    (first, *_, last), best = ways['COVID-own']
    assert (
        f'from {first["distance"]:.3f} to {best["distance"]:.3f} (at {best["kimg"]:.0f} thousand)'
        in text
        and f'({last["d_val"]:.2f} and {last["d_gen"]:.2f}) and training images {last["d_train"]:.2f}'
        in text
    )


def test_text_on_the_radiograph_classifiers_says_what_the_tables_say():
    text = (
        ' '.join(
            ''.join(c['source'])
            for c in read_json(ROOT / 'nbs' / 'papers' / 'wmlq2022.ipynb')['cells']
            if c['cell_type'] == 'markdown'
        )
        .replace('\n', ' ')
        .replace('−', '-')
    )

    def table(name):
        return pd.read_csv(ROOT / 'figures' / 'small' / 'wmlq2022' / f'{name}.csv').to_dict(
            'records'
        )

    gains = {
        (r['network'], r['arm'], r['baseline'], r['metric'], name[:2]): r
        for name in ('T11_differences', 'O2_differences', 'O1_differences')
        for r in table(name)
    }

    def gain(network, arm, baseline='original', metric='accuracy', of='T1'):
        r = gains[network, f'original+{arm}', baseline, metric, of]
        return f'{r["difference"]:+.3f} [{r["low"]:+.3f}, {r["high"]:+.3f}]'

    i, e = 'InceptionV3', 'EfficientNet-B0'
    for words in (
        f"rises by {gain(i, 'generated')}, with balanced classes by {gain(i, 'balanced')}; EfficientNet-B0's by {gain(e, 'generated')} and {gain(e, 'balanced')}",
        f'moves by {gain(i, "generated", metric="auc")} and {gain(e, "generated", metric="auc")}',
        f'the GAN adds {gain(i, "generated", "original+balanced", of="O2")} and {gain(e, "generated", "original+balanced", of="O2")}',
        f'costs here**: {gain(i, "classical")} and {gain(e, "classical")}',
        f'({gain(i, "generated", "original+classical", of="O2")}, {gain(e, "generated", "original+classical", of="O2")})',
        f'balance nothing: {gain(e, "generated", of="O1")} of accuracy; balancing {gain(e, "balanced", of="O1")}, classical augmentation {gain(e, "classical", of="O1")}',
    ):
        assert words in text, words
    cells = {(r['network'], r['arm']): r for r in table('O2')}

    def each(arm, metric):
        return ' and '.join(
            cells[n, arm][metric].split()[0] for n in ('inceptionv3', 'efficientnetb0')
        )

    assert (
        f'specificity {each("original", "specificity")}' in text
        and f'rises to {each("original+generated", "sensitivity")} (balanced: {each("original+balanced", "sensitivity")})'
        in text
    )
    assert (
        f'sensitivity {cells["inceptionv3", "original"]["sensitivity"].split()[0]} (InceptionV3) and {cells["efficientnetb0", "original"]["sensitivity"].split()[0]} (EfficientNet-B0)'
        in text
    )
    fits = {(r['network'], r['arm']): [] for r in table('O2')}
    for c in find_records(ROOT / 'records', 'small', 'wmlq2022'):
        if c['step'] == 'classify' and not c['name'].startswith('four'):
            for r in c['results']['repeats']:
                fits[r['network'], r['arm']].append(r['history']['accuracy'][-1])

    def learnt(arm):
        return ' and '.join(
            f'{sum(fits[n, arm]) / len(fits[n, arm]):.2f}'
            for n in ('inceptionv3', 'efficientnetb0')
        )

    assert (
        f'accuracy in training {learnt("original+classical")}, without augmentation {learnt("original")}'
        in text
    )
    assert (
        '(intervals from {low:.0f} to {high:.0f} at the COVID GAN)'.format(
            **next(r for r in table('quality_own') if r['compared'] == 'generated with real')
        )
        in text
    )
    assert {
        k[:2]
        for k, r in gains.items()
        if k[4] != 'O2' and k[3] == 'accuracy' and r['p_adjusted'] <= 0.05
    } == {(e, 'original+classical')}  # "only EfficientNet-B0 with classical augmentation differs"
    asked = next(
        r['results']['classes']
        for r in find_records(ROOT / 'records', 'small', 'wmlq2022')
        if (r['step'], r['name']) == ('score', 'conditional')
    )
    for rows in asked.values():
        a, b, c = (f'{100 * n.get(k, 0) / sum(n.values()):.0f}' for k, n in sorted(rows.items()))
        assert f'in {a}, {b} and {c} per cent' in text


def test_text_on_the_sizes_of_data_set_says_what_the_tables_say():
    text = (
        ' '.join(
            ''.join(c['source'])
            for c in read_json(ROOT / 'nbs' / 'papers' / 'mgv2023.ipynb')['cells']
            if c['cell_type'] == 'markdown'
        )
        .replace('\n', ' ')
        .replace('−', '-')
    )

    def table(name):
        return pd.read_csv(ROOT / 'figures' / 'small' / 'mgv2023' / f'{name}.csv').to_dict(
            'records'
        )

    records = {
        (r['step'], r['name'].removesuffix('-original')): r['results']
        for r in find_records(ROOT / 'records', 'small', 'mgv2023')
    }
    sizes = {900: 'larger', 450: 'smaller', 224: 'quarter', 112: 'eighth'}

    def series(values):
        return '{}, {}, {} and {}'.format(*values)

    def interval(r):
        return f'{r["difference"]:+.3f} [{r["low"]:+.3f}, {r["high"]:+.3f}]'

    gains = {
        (r['arm'], r['images a class']): r
        for r in table('T23_differences')
        if r['metric'] == 'accuracy'
    }
    accuracy = {
        r['images a class']: r['accuracy'].split()[0]
        for r in table('T23_results')
        if r['arm'] == 'original'
    }
    trained = {n: records['train_stylegan2', n] for n in sizes.values()}
    fits = {}
    for n in sizes.values():
        for r in records['classify', n]['repeats']:
            fits.setdefault((r['arm'], n), []).append(r['history']['accuracy'][-1])

    def fit(arm, n):
        return f'{sum(fits[arm, n]) / len(fits[arm, n]):.2f}'

    ends = {n: [x for x in r['log'] if 'distance' in x][-1] for n, r in trained.items()}
    large, small = ends['larger'], ends['eighth']
    for words in (
        f'{series(sizes)} images of each for training and validation, of which {series(r["training_images"] // 3 for r in trained.values())} for training',
        'comes down to {}, {}, {} and {}'.format(
            *(f'{r["best"]["distance"]:.3f}' for r in trained.values())
        ),
        f'{large["d_train"]:.2f} and {large["d_val"]:.2f} with 810',
        f'{small["d_train"]:.2f} and {small["d_val"]:.2f} with 101',
        f'({small["d_gen"]:.2f}) and ADA begins to work (p {small["p"]:.3f})',
        f'accuracy is {series(accuracy[s] for s in sizes)}',
        f'are worth +{float(accuracy[900]) - float(accuracy[450]):.3f}',
        f'change it by {series(interval(gains["original+generated", s]) for s in sizes)}',
        f'`wmlq2022`: {series(interval(gains["original+classical", s]) for s in sizes)}',
        f'GAN against classical is {series(interval(r) for r in table("O17_claim"))}',
        f'{fit("original+generated", "eighth")} against {fit("original", "eighth")} with 112 images',
        f'{fit("original+classical", "larger")} to {fit("original+classical", "eighth")}, without {fit("original", "larger")} to {fit("original", "eighth")}',
    ):
        assert words in text, words
    gaps = [e['d_train'] - e['d_val'] for e in ends.values()]
    assert gaps == sorted(gaps) and all(
        r['p_adjusted'] > 0.5 for (arm, _), r in gains.items() if arm == 'original+generated'
    )  # "overfitting is in that order"; "nothing gained that four runs could see"

    def agree(rows):
        return [
            100 * rows[c].get(c, 0) / sum(rows[c].values())
            for c in ('COVID', 'Normal', 'Viral Pneumonia')
        ]

    classes = {n: records['score', n]['classes'] for n in sizes.values()}
    (a, b), (c, d), (e, f) = (
        (f'{min(v):.0f}', f'{max(v):.0f}')
        for v in zip(*(agree(x['generated']) for x in classes.values()))
    )
    assert (
        f'agrees with {a} to {b} per cent of the COVID images, {c} to {d} of Normal, {e} to {f} of viral pneumonia'
        in text
    )
    assert (
        '(real test images: {:.0f}, {:.0f} and {:.0f})'.format(
            *agree(classes['larger']['real test images'])
        )
        in text
    )
    copies = records['score', 'larger'][
        'copies'
    ]  # the others were compared with all training images, not with their own
    n, near = copies['n']['generated'], copies['distance']
    assert (
        f"Of the {n} images of the largest set's GAN one is" in text
        and near['nearer'] == 1
        and f'{n * near["expected"]:.0f} would be by chance' in text
    )


def test_text_on_the_report_says_how_its_trainings_ended():
    text = ' '.join(
        ''.join(c['source'])
        for c in read_json(ROOT / 'nbs' / 'papers' / 'ct_report.ipynb')['cells']
        if c['cell_type'] == 'markdown'
    ).replace('\n', ' ')
    runs = [
        r
        for c in find_records(ROOT / 'records', 'small', 'ct_report')
        if c['step'] == 'classify'
        for r in c['results']['repeats']
        if r['network'] == 'ct_cnn'
    ]

    def passed(r):
        return r['history']['accuracy'][-1] > 0.95

    classical = [r for r in runs if 'classical' in r['arm']]
    assert all(passed(r) != (r in classical) for r in runs) and {
        r['epochs'] for r in classical
    } == {150}
    epochs = [r['epochs'] for r in runs if r not in classical]
    assert f'after {min(epochs)} to {max(epochs)} epochs' in text

    def span(some):
        return '{:.2f} to {:.2f}'.format(
            *(f(r['history']['accuracy'][-1] for r in some) for f in (min, max))
        )

    alone = [r for r in classical if r['arm'] == 'original+classical']
    assert (
        len(alone) == 5
        and f'a training accuracy of {span(alone)}, and those with GAN images beside at {span([r for r in classical if r not in alone])}'
        in text
    )


def test_readme_says_what_the_study_of_quality_found():
    found = read_json(ROOT / 'benchmarks' / 'results' / 'stylegan2_quality.json')['distance']
    text = (ROOT / 'README.md').read_text().replace('\n', ' ').replace('−', '-')

    def interval(r, sign=''):
        return f'{r["mean"]:{sign}.3f} [{r["low"]:{sign}.3f}, {r["high"]:{sign}.3f}]'

    assert interval(found['plain']) in text and all(len(r['seeds']) >= 4 for r in found.values())
    for way in ('float32', 'bfloat16'):
        assert (
            interval(found[way]) in text
            and f'{interval(found[way]["difference"], "+")}, p = {found[way]["difference"]["p"]:.2f}'
            in text
        )
    assert (
        max(
            abs(found[way]['difference'][k])
            for way in ('float32', 'bfloat16')
            for k in ('low', 'high')
        )
        < 0.035
    )


def test_readme_says_what_the_benchmark_of_stylegan2_measured():
    ways = {}
    for r in read_json(ROOT / 'benchmarks' / 'results' / 'bench_stylegan2.json')['rows']:
        ways.setdefault(r['config'], {})[r['way']] = r
    text = (ROOT / 'README.md').read_text().replace('\n', ' ')
    for config, w in ways.items():
        width, size = config.split('-')
        plain, ours, half = w['plain'], w['ours'], w['ours, bfloat16']
        assert (
            f'| `{width}`, {size} × {size} | {plain["s_per_kimg"]:.0f} s | {ours["s_per_kimg"]:.0f} s, {ours["ratio"]:.1f}× | {half["s_per_kimg"]:.0f} s, {half["ratio"]:.1f}× | {plain["peak_mb"]} MB | {ours["peak_mb"]} MB |'
            in text
        )

    def between(v):
        return f'{100 * min(v):.0f} to {100 * max(v):.0f} %'

    share = {
        p: between([w['ours, bfloat16']['share'][p] for w in ways.values()])
        for p in ('d', 'g', 'path', 'r1')
    }
    assert f'D {share["d"]}, G {share["g"]}, path length {share["path"]}, R1 {share["r1"]}' in text
    spent = {
        width: between(
            [w['ours, bfloat16']['convolutions'] for c, w in ways.items() if c.startswith(width)]
        )
        for width in ('tiny', 'small')
    }
    assert f'Convolutions are {spent["tiny"]} of it (`tiny`) and {spent["small"]} (`small`)' in text
