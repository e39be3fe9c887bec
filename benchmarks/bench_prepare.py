"""`prepare` against a plain Pillow loop on images of real size; and how fast phantoms are drawn.

    python benchmarks/bench_prepare.py [--data FOLDER] [--size 128] [--rounds 3] [--json PATH]

By turns in one process.

With --data (or GAN_COVID_DATA) on COVID-CT, else on phantoms drawn in its layout and sizes. The plain
loop keeps its result in memory only; `prepare` also writes it to disk, safely, with table and checksums.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gan_covid import phantoms
from gan_covid.datasets.public import load
from gan_covid.preprocessing import prepare


def plain(files, size):
    return np.stack([np.asarray(Image.open(f).convert('L').resize((size, size))) for f in files])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--data',
        default=os.environ.get('GAN_COVID_DATA'),
        help='folder that holds COVID-CT; without it phantoms are drawn',
    )
    parser.add_argument('--size', type=int, default=128, help='pixels of the result')
    parser.add_argument('--rounds', type=int, default=3, help='rounds; the median counts')
    parser.add_argument('--json', help='write the numbers here as well')
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        table = load('covid_ct', args.data or phantoms.write('covid_ct', tmp, n_per_class=150))
        files, n = table.image.tolist(), len(table)

        def prepared(workers):
            shutil.rmtree(tmp / 'out', ignore_errors=True)
            return prepare(table, tmp / 'out', args.size, workers=workers, progress=False)

        ways = {
            'plain loop': lambda: plain(files, args.size),
            'prepare, 1 thread': lambda: prepared(1),
            'prepare': lambda: prepared(None),
        }
        times = {k: [] for k in ways}
        for way in ways.values():
            way()  # files into the page cache
        for _ in range(args.rounds):
            for k, way in ways.items():
                start, cpu = time.perf_counter(), time.process_time()
                way()
                times[k].append((time.perf_counter() - start, time.process_time() - cpu))
        pixels = (table.width * table.height).mean()
    what = 'COVID-CT' if args.data else 'phantoms like COVID-CT'
    print(
        f'{what}: {n} images of {pixels / 1e3:.0f} thousand pixels on average to {args.size}×{args.size}, '
        f'{cores} cores, median of {args.rounds}'
    )
    base, rows = None, []
    for k, t in times.items():
        wall, cpu = (statistics.median(v) for v in zip(*t))
        base = base or (wall, cpu)
        rows.append(
            {
                'way': k,
                'images_per_s': n / wall,
                'cpu_ms_per_image': 1e3 * cpu / n,
                'ratio': base[0] / wall,
                'ratio_cpu': base[1] / cpu,
            }
        )
        print(
            f'{k:20} {n / wall:8.0f} images/s   {base[0] / wall:5.2f} × plain   '
            f'{1e3 * cpu / n:6.2f} ms of processor time an image'
        )
    drawn = {}
    for kind in ('chest_xray', 'chest_ct', 'head_ct'):
        label = phantoms.CLASSES[kind][0]
        phantoms.draw_one(kind, label, 0, 64)
        start, m = time.perf_counter(), 0
        while time.perf_counter() - start < 2:
            phantoms.draw_one(kind, label, m, 64)
            m += 1
        drawn[kind] = m / (time.perf_counter() - start)
        print(f'phantoms, {kind}, 64×64, 1 process: {drawn[kind]:.0f} images/s')
    if args.json:
        Path(args.json).write_text(
            json.dumps(
                {
                    'benchmark': 'prepare',
                    'data': what,
                    'images': n,
                    'pixels': pixels,
                    'size': args.size,
                    'cores': cores,
                    'rows': rows,
                    'phantoms_per_s': drawn,
                },
                indent=1,
            )
            + '\n'
        )


if __name__ == '__main__':
    main()
