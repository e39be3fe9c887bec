"""ADA's augmentation, forward and backward, against the plain pipeline.

The plain pipeline pads, puts zeros between the pixels, and filters by convolutions; the ratio is what
counts.

One thread, processor time, both in turn on the same draws in one process, median of the pairs. Drawing
the numbers and joining the matrices is ours on both sides, and counted on both. The plain pipeline is
`tests/stylegan2_ada_reference.py`. Pipeline "bgc", float32. At p = 0.3 every ninth image draws no
geometry at all, at p = 1 hardly one.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'tests'))
import stylegan2_ada_reference as plain

from gan_covid.stylegan2 import ada

torch.set_num_threads(1)

CASES = [
    (64, 1, 0.3),
    (64, 1, 0.1),
    (64, 1, 0.6),
    (64, 1, 1.0),
    (64, 3, 0.3),
    (32, 1, 0.3),
    (128, 1, 0.3),
]  # pixels, channels, p


def theirs(x, params):
    x = plain.apply_geometry(x, ada.geometric_matrices(params, x.shape[2:]))
    C = ada.colour_matrices(params, x.shape[1])
    return ada.apply_colour(x, C)


def ours(x, params):
    return ada.apply_colour(
        ada.apply_geometry(x, ada.geometric_matrices(params, x.shape[2:])),
        ada.colour_matrices(params, x.shape[1]),
    )


def seconds(f, x, p, seed):
    "One draw, the images, and the gradient: (seconds, images, gradient)."
    start = time.process_time()
    out = f(x, ada.sample_parameters('bgc', len(x), p, torch.Generator().manual_seed(seed)))
    (g,) = torch.autograd.grad(out, x, x.detach())
    return time.process_time() - start, out.detach(), g


def case(pixels, channels, p, batch, rounds):
    x = (
        torch.rand(batch, channels, pixels, pixels, generator=torch.Generator().manual_seed(0)) * 2
        - 1
    ).requires_grad_()
    pairs, error = [], [0.0, 0.0]
    for seed in range(-1, rounds):  # the first is for warming up
        a, b = seconds(theirs, x, p, seed % 2**32), seconds(ours, x, p, seed % 2**32)
        if seed >= 0:
            pairs.append((a[0], b[0]))
        error = [max(e, float((u - v).abs().max())) for e, u, v in zip(error, a[1:], b[1:])]
    ratio = [a / b for a, b in pairs]

    def median(k):
        return round(statistics.median(v[k] for v in pairs) * 1000 / batch, 3)

    return {
        'pixels': pixels,
        'channels': channels,
        'p': p,
        'batch': batch,
        'ratio': round(statistics.median(ratio), 1),
        'ratio_low': round(min(ratio), 1),
        'ratio_high': round(max(ratio), 1),
        'plain_ms_per_image': median(0),
        'ours_ms_per_image': median(1),
        'largest_difference': error[0],
        'largest_difference_of_gradients': error[1],
    }


def main():
    a = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    a.add_argument('--json', help='write the rows to this file')
    a.add_argument('--rounds', type=int, default=7, help='pairs a case')
    a.add_argument('--batch', type=int, default=16)
    a.add_argument('--first', action='store_true', help='only 64 × 64, one channel, p = 0.3')
    a = a.parse_args()
    rows = []
    for c in CASES[:1] if a.first else CASES:
        rows.append(r := case(*c, a.batch, a.rounds))
        print(
            f'{r["pixels"]:4d}²  {r["channels"]} channel{"s" if r["channels"] > 1 else " "}  p {r["p"]:.1f}  '
            f'plain {r["plain_ms_per_image"]:7.2f}  ours {r["ours_ms_per_image"]:6.2f} ms/image  '
            f'ratio {r["ratio"]:5.1f} ({r["ratio_low"]:.1f} to {r["ratio_high"]:.1f})  '
            f'difference {r["largest_difference"]:.1e}, '
            f'of gradients {r["largest_difference_of_gradients"]:.1e}',
            flush=True,
        )
    if a.json:
        Path(a.json).write_text(
            json.dumps(
                {
                    'rows': rows,
                    'torch': torch.__version__,
                    'threads': 1,
                    'machine': platform.machine(),
                },
                indent=1,
            )
            + '\n'
        )


if __name__ == '__main__':
    main()
