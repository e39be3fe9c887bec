"""Whole StyleGAN2-ADA training iterations against the plain path.

    python benchmarks/bench_stylegan2.py [--configs tiny-32 small-128 …] [--batch 16] [--rounds 3]
                                         [--json PATH]

Phase by phase by turns in one process: one thread, processor time, median of pairs; the ratio is what
counts. Peak memory of each way is taken in a process of its own.

The plain path is the reference of the tests (zeros between pixels, a weight for each sample, torch's own
derivatives, augmentation by padding and filters), float32, with torch's Adam; ours is `Trainer`, in
float32 and with bfloat16 convolutions. ADA "bgc" at p = .3, one channel, two mapping layers. An
iteration is G + path length/4 + D + R1/16. All start from the same weights and draws; by how much their
losses differ in the first iteration is printed. Shares are of an iteration; convolutions are those of
torch's profiler, FIR filters among them; memory is the most that a process held over two iterations,
less what it held with torch loaded.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')
os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # torch's profiler says when it starts and stops
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'tests'))
import stylegan2_ada_reference as plain_ada
import stylegan2_reference as plain

from gan_covid.records import environment, write_json
from gan_covid.stylegan2 import ada
from gan_covid.stylegan2.settings import Config
from gan_covid.stylegan2.trainer import Images, Trainer

WEIGHT = {'g': 1, 'path': 1 / 4, 'd': 1, 'r1': 1 / 16}


class PlainG:
    "A generator whose synthesis is the reference's; everything else is that of the generator it wraps."

    def __init__(self, G):
        self.wrapped = G

    def __getattr__(self, name):
        return getattr(self.wrapped, name)

    def synthesis(self, w, noise, rng, fp32=False):
        G = self.wrapped
        maps = [
            torch.randn(len(w), 1, *hw, generator=rng)
            for hw in [G.synthesis.sizes[0]] + [s for s in G.synthesis.sizes[1:] for _ in 'ab']
        ]
        return plain.synthesis(
            dict(G.named_parameters()), w, G.size, G.synthesis.first, maps, literal=False
        )


class PlainD:
    def __init__(self, D):
        self.wrapped = D

    def __getattr__(self, name):
        return getattr(self.wrapped, name)

    def __call__(self, x, c=None, fp32=False):
        return plain.discriminator(
            dict(self.wrapped.named_parameters()),
            x,
            kind=self.wrapped.kind,
            first=self.wrapped.first,
            literal=False,
        )


class Plain(Trainer):
    def __init__(self, *a, **k):
        super().__init__(*a, **k)
        n = self.networks
        n.G, n.D = PlainG(n.G), PlainD(n.D)
        n.opt_g, n.opt_d = (
            torch.optim.Adam(x.parameters(), lr=o.defaults['lr'], betas=o.defaults['betas'])
            for x, o in ((n.G, n.opt_g), (n.D, n.opt_d))
        )
        self.losses.augmented = self.augmented

    def augmented(self, images):
        p, pipe, rng = self.controller.probability, self.losses.pipe, self.losses.rng
        params = ada.sample_parameters(pipe, len(images), p, rng)
        moved = plain_ada.apply_geometry(images, ada.geometric_matrices(params, images.shape[2:]))
        return ada.apply_colour(moved, ada.colour_matrices(params, images.shape[1]))


def phase(t, name):
    "Processor seconds of one phase."
    t.networks.D.requires_grad_(False), t.networks.G.requires_grad_(False)
    start = time.process_time()
    t.step(name)
    return time.process_time() - start


WAYS = {'plain': (Plain, False), 'ours': (Trainer, False), 'ours, bfloat16': (Trainer, True)}


def trainer(name, batch, way):
    width, size = name.split('-')
    images = np.random.default_rng(0).integers(0, 256, (64, int(size), int(size), 1), dtype='uint8')
    kind, bf16 = WAYS[way]
    return kind(
        Images(images), Config(batch=batch, width=width, ada='fixed', p=0.3, seed=0, bf16=bf16)
    )


def peak_mb(name, batch, way):
    "Peak memory of two iterations with all phases, in a fresh process."
    torch.set_num_threads(1)

    def most():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1024**2 if sys.platform == 'darwin' else 1024
        )

    before, t = most(), trainer(name, batch, way)
    for _ in range(2):
        for p in WEIGHT:
            phase(t, p)
    return round(most() - before)


def convolutions(t):
    "Share of an iteration's operator time that goes into convolutions, forward and backward."
    spent = dict.fromkeys(('convolution', 'all'), 0.0)
    for p, weight in WEIGHT.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            phase(t, p)
        for e in seen.key_averages():
            spent['all'] += weight * e.self_cpu_time_total
            if 'convolution' in e.key:
                spent['convolution'] += weight * e.self_cpu_time_total
    return round(spent['convolution'] / spent['all'], 3)


def case(name, batch, rounds, memory):
    ways = {w: trainer(name, batch, w) for w in WAYS}
    seconds = {w: {p: [] for p in WEIGHT} for w in ways}
    for k in range(-1, rounds):
        for p in WEIGHT:
            for w, t in ways.items():
                s = phase(t, p)
                if k >= 0:
                    seconds[w][p].append(s)
        if k < 0:
            noted = {
                w: {name: float(s) / n for name, (s, n) in t.losses.sums.items()}
                for w, t in ways.items()
            }  # later Adam has made more of the last bits
        for t in ways.values():
            t.iteration += 1
    whole = {
        w: [sum(WEIGHT[p] * seconds[w][p][k] for p in WEIGHT) for k in range(rounds)] for w in ways
    }
    share = {
        w: {
            p: round(
                statistics.median(
                    WEIGHT[p] * seconds[w][p][k] / whole[w][k] for k in range(rounds)
                ),
                3,
            )
            for p in WEIGHT
        }
        for w in ways
    }
    rows = [
        {
            'config': name,
            'way': w,
            's_per_kimg': round(statistics.median(whole[w]) / batch * 1000, 2),
            'ratio': round(statistics.median(a / b for a, b in zip(whole['plain'], whole[w])), 2),
            'phases_ms': {p: round(1000 * statistics.median(v)) for p, v in seconds[w].items()},
            'phase_ratio': {
                p: round(statistics.median(a / b for a, b in zip(seconds['plain'][p], v)), 2)
                for p, v in seconds[w].items()
            },
            'share': share[w],
            'convolutions': None if w == 'plain' else convolutions(ways[w]),
            'peak_mb': memory[w],
            'losses_apart': round(
                max(abs(noted[w][k] / noted['plain'][k] - 1) for k in noted['plain']), 6
            ),
        }
        for w in ways
    ]
    for r in rows:
        phases = '  '.join(
            f'{p} {r["phases_ms"][p]} ms ({r["phase_ratio"][p]}×, {r["share"][p]:.0%})'
            for p in WEIGHT
        )
        shared = '' if r['convolutions'] is None else f'  convolutions {r["convolutions"]:.0%}'
        print(
            f'{name:10}{r["way"]:16}{r["s_per_kimg"]:9.1f} s/kimg  {r["ratio"]:5.2f}×   '
            f'{phases}{shared}  {r["peak_mb"]} MB  losses apart by {r["losses_apart"]:.1e}',
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--configs',
        nargs='+',
        default=[f'{w}-{s}' for w in ('tiny', 'small') for s in (32, 64, 128)],
        help='width-size',
    )
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json')
    a = parser.parse_args()
    torch.set_num_threads(1)
    # first of all: a new process inherits the mark that this one has left on Linux
    with ProcessPoolExecutor(
        1, multiprocessing.get_context('spawn'), max_tasks_per_child=1
    ) as alone:
        memory = {
            name: dict(
                zip(WAYS, alone.map(peak_mb, [name] * len(WAYS), [a.batch] * len(WAYS), WAYS))
            )
            for name in a.configs
        }
    rows = [r for name in a.configs for r in case(name, a.batch, a.rounds, memory[name])]
    if a.json:
        write_json(
            a.json,
            {
                'benchmark': 'stylegan2',
                'batch': a.batch,
                'rounds': a.rounds,
                'threads': 1,
                'p': 0.3,
                'rows': rows,
                'environment': environment(),
            },
        )


if __name__ == '__main__':
    main()
