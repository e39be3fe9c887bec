"""Speed at the price of quality? StyleGAN2-ADA trained the plain way, our way, and with bfloat16.

    python benchmarks/studies/stylegan2_quality.py [--size 32] [--width tiny] [--kimg 20] [--seeds 0 1 \
        2 3] [--data FOLDER] [--work FOLDER] [--json PATH]

Several seeds; Fréchet distances to held-out images, with intervals.

Chest X-rays of the COVID class of the Radiography Database in FOLDER (or $GAN_COVID_DATA), else drawn
phantoms; 800 train, the rest is what distances are taken to, on random convolutional features (no FID).
The plain way is that of bench_stylegan2.py. All ways start from the same weights and see the same images
and draws. A way and seed that is done is kept in --work.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from ada_small_sets import HeldOut, radiographs
from bench_stylegan2 import Plain
from scipy import stats

from gan_covid.records import environment, read_json, write_json
from gan_covid.stylegan2.settings import Config
from gan_covid.stylegan2.trainer import Images, Trainer
from gan_covid.stylegan2.training import draw


def course(images, rest, a, way, seed):
    "Distances at the quarters of a training."
    path = Path(a.work) / f'{a.size}-{a.width}-{a.kimg:g}-{way}-{seed}.json'
    if path.exists():
        return read_json(path)
    config = Config(
        kimg=a.kimg,
        batch=16,
        width=a.width,
        ada='ada',
        ada_kimg=50.0,
        augment='bgc',
        bf16=way == 'bfloat16',
        seed=seed,
    )
    t, judge, out, start = (
        (Plain if way == 'plain' else Trainer)(Images(images), config),
        HeldOut(rest),
        [],
        time.process_time(),
    )
    total = round(a.kimg * 1000 / 16)
    for k in range(1, 5):
        while t.iteration < total * k // 4:
            t.iterate()
        out.append(
            {
                'kimg': t.images / 1000,
                'distance': judge.distance(draw(t.networks.G_ema, 1000, seed)),
                'p': t.controller.p,
            }
        )
        print(
            way,
            seed,
            out[-1],
            f'{(time.process_time() - start) / out[-1]["kimg"]:.1f} s/kimg',
            flush=True,
        )
    row = {
        'way': way,
        'seed': seed,
        'course': out,
        'processor_s_per_kimg': round((time.process_time() - start) / a.kimg, 1),
    }
    write_json(path, row)
    return row


def interval(x):
    "Mean and 95 % interval of Student."
    x = np.asarray(x)
    half = (
        stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
        if len(x) > 1
        else float('nan')
    )
    return {'mean': float(x.mean()), 'low': float(x.mean() - half), 'high': float(x.mean() + half)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--size', type=int, default=32)
    p.add_argument('--width', default='tiny')
    p.add_argument('--kimg', type=float, default=20)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3])
    p.add_argument('--data', default=os.environ.get('GAN_COVID_DATA', ''))
    p.add_argument('--work', default='work/stylegan2_quality')
    p.add_argument('--json')
    a = p.parse_args()
    images, what = radiographs(a.data, a.work, a.size)
    order = np.random.default_rng(12).permutation(len(images))
    train, rest = images[np.sort(order[:800])], images[order[800:]]
    rows = [
        course(train, rest, a, way, seed)
        for seed in a.seeds
        for way in ('plain', 'float32', 'bfloat16')
    ]
    last = {
        w: [r['course'][-1]['distance'] for r in rows if r['way'] == w]
        for w in ('plain', 'float32', 'bfloat16')
    }
    out = {w: {**interval(v), 'seeds': v} for w, v in last.items()}
    for w in ('float32', 'bfloat16'):
        out[w]['difference'] = {
            **interval(np.subtract(last[w], last['plain'])),
            'p': float(stats.ttest_rel(last[w], last['plain']).pvalue),
        }
    for w, v in out.items():
        print(w, v)
    if a.json:
        write_json(
            a.json,
            {
                'benchmark': 'stylegan2_quality',
                'data': what,
                'settings': {k: v for k, v in vars(a).items() if k not in ('data', 'work', 'json')},
                'distance': out,
                'runs': rows,
                'environment': environment(),
            },
        )


if __name__ == '__main__':
    main()
