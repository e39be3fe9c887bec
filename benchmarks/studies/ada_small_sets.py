"""Does ADA earn its place with few images? StyleGAN2 with and without it, several seeds.

    python benchmarks/studies/ada_small_sets.py [--images 200] [--size 32] [--kimg 100] [--seeds 0 1 \
        2] [--width tiny] [--data FOLDER] [--work FOLDER] [--json PATH] [--figure PATH]

The discriminator's overfitting and the Fréchet distance over training, as a figure, for so many
radiographs.

Chest X-rays of the COVID class of the Radiography Database in FOLDER (or $GAN_COVID_DATA), else drawn
phantoms; the output says which. The distance is taken to other real images of the same class, which no
GAN sees, on random convolutional features (no FID). What was trained is kept in --work and not trained
again; a killed run resumes.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from gan_covid import fidelity, phantoms
from gan_covid.datasets.public import load
from gan_covid.preprocessing import prepare
from gan_covid.records import environment, write_json
from gan_covid.stylegan2.settings import Config
from gan_covid.stylegan2.storage import load_networks
from gan_covid.stylegan2.training import draw, train


def radiographs(folder, work, size, label='COVID', phantom=1500):
    "Prepared images of a class (n, size, size, 1), uint8, and what they are."
    if folder:
        title, table = 'COVID-19 Radiography Database', load('radiography', folder)
    else:
        title, table = (
            'drawn phantoms, not patients',
            load(
                'radiography',
                phantoms.write(
                    'radiography',
                    Path(work) / 'phantoms',
                    n_per_class=phantom,
                    size=2 * size,
                    seed=0,
                    marks=0.0,
                ),
            ),
        )
    table = table[table.label == label].reset_index(drop=True)
    images = prepare(table, Path(work) / f'{label}-{size}', size).images
    return np.array(images), f'{title}, class {label}'


class HeldOut:
    "Features whose distance is taken to fixed other images instead of the training images."

    def __init__(self, real):
        self.features, self.real = fidelity.RandomFeatures(), real

    def distance(self, fake):
        return float(
            fidelity.frechet(self.features(self.real / np.float32(255)), self.features(fake))
        )


def run(images, rest, a, mode, seed):
    "Log of one training, with the distance to held-out images at every snapshot."
    folder = Path(a.work) / f'{a.size}-{a.width}-{a.images}-{mode}-{seed}'
    judge = HeldOut(rest[:1000])
    config = Config(
        kimg=a.kimg,
        batch=16,
        width=a.width,
        ada='ada' if mode == 'with' else 'none',
        augment=a.augment,
        ada_kimg=a.ada_kimg,
        seed=seed,
    )
    r = train(
        images,
        config,
        folder,
        tick_kimg=1,
        snapshot_ticks=a.every,
        keep='all',
        validation=rest[-256:],
        distance_images=a.images,
        progress=lambda line: print(f'{mode} ADA, seed {seed}: {line}', flush=True),
    )
    for row in r['log']:
        if 'distance' not in row:
            continue
        G = load_networks(folder / f'network_{row["kimg"]:010.3f}.safetensors', ('G_ema',))[0][
            'G_ema'
        ]
        row['held_out'] = judge.distance(draw(G, 1000, seed))
    return {'mode': mode, 'seed': seed, 'log': r['log'], 's_per_kimg': r['seconds_per_kimg']}


def figure(out):
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, ScalarFormatter

    fig, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout='constrained')
    titles = {
        'r_t': 'r_t, mean of five ticks',
        'p': 'p',
        'gap': 'D(training) − D(held out)',
        'held_out': 'Fréchet distance to held-out images',
    }
    for r in out['runs']:
        look = dict(
            color='C0' if r['mode'] == 'with' else 'C1',
            lw=1,
            alpha=0.8,
            label=f'{r["mode"]} ADA' if r['seed'] == out['runs'][0]['seed'] else None,
        )
        for ax, key in zip(axes, titles):
            rows = [
                (
                    x['kimg'],
                    x['d_train'] - x['d_val'] if key == 'gap' and 'd_val' in x else x.get(key),
                )
                for x in r['log']
            ]
            kimg, y = np.array([row for row in rows if row[1] is not None]).T
            if key == 'r_t' and len(y) > 5:
                kimg, y = kimg[4:], np.convolve(y, np.full(5, 0.2), 'valid')
            ax.plot(kimg, y, **look)
    for ax, title in zip(axes, titles.values()):
        ax.set_title(title, fontsize=10)
        ax.set_xlabel('thousand images shown to D')
    axes[3].set_yscale('log')
    for set_ in (axes[3].yaxis.set_major_formatter, axes[3].yaxis.set_minor_formatter):
        set_(ScalarFormatter())
    axes[3].yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axes[0].legend(frameon=False)
    size = out['settings']['size']
    fig.suptitle(
        f'{out["settings"]["images"]} images of {out["data"]}, {size}×{size}, a line a seed; '
        'distance on random features',
        fontsize=10,
    )
    return fig


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--images', type=int, default=200)
    p.add_argument('--size', type=int, default=32)
    p.add_argument('--kimg', type=float, default=100)
    p.add_argument('--every', type=int, default=10, help='thousand images between snapshots')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--width', default='tiny')
    p.add_argument('--augment', default='chest_xray')
    p.add_argument('--ada-kimg', type=float, default=20.0)
    p.add_argument('--data', default=os.environ.get('GAN_COVID_DATA', ''))
    p.add_argument('--work', default='work/ada_small_sets')
    p.add_argument('--json')
    p.add_argument('--figure')
    a = p.parse_args()
    images, what = radiographs(a.data, a.work, a.size)
    runs = []
    for seed in a.seeds:
        order = np.random.default_rng([seed, 12]).permutation(len(images))
        runs += [
            run(images[np.sort(order[: a.images])], images[order[a.images :]], a, mode, seed)
            for mode in ('without', 'with')
        ]
    last = {
        m: [r['log'][-1]['held_out'] for r in runs if r['mode'] == m] for m in ('without', 'with')
    }
    best = {
        m: [min(x['held_out'] for x in r['log'] if 'held_out' in x) for r in runs if r['mode'] == m]
        for m in ('without', 'with')
    }
    for name, v in (('at the end', last), ('least', best)):
        print(
            f'distance {name}: '
            + ', '.join(
                f'{m} ADA {np.mean(v[m]):.3g} (' + ' '.join(f'{x:.3g}' for x in v[m]) + ')'
                for m in v
            )
        )
    settings = {k: v for k, v in vars(a).items() if k not in ('data', 'work', 'json', 'figure')}
    out = {
        'benchmark': 'ada_small_sets',
        'data': what,
        'settings': settings,
        'runs': runs,
        'last': last,
        'best': best,
        'environment': environment(),
    }
    if a.json:
        write_json(a.json, out)
    if a.figure:
        figure(out).savefig(a.figure, dpi=130)


if __name__ == '__main__':
    main()
