"""Classical augmentation: gan_covid against Keras' loop over images, in one process, by turns.

    python benchmarks/bench_augmentation.py [--images 256] [--rounds 3] [--json PATH]

Keras' loop is ImageDataGenerator.random_transform.

Without Keras the same loop runs on scipy's affine_transform, the function that Keras calls, and the
output says so.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings

import numpy as np
from scipy import ndimage

from gan_covid import augmentation as aug


def keras_loop():
    "A function (images, pipeline) -> images as Keras does it, and its name."
    try:
        from gan_covid.engines import load_keras

        load_keras()
        from keras.src.legacy.preprocessing.image import ImageDataGenerator
    except Exception as e:
        print(f'no Keras ({e}): scipy only', file=sys.stderr)

        def loop(x, p):
            params = aug.sample_parameters(p, len(x), 0, x.shape[1:3])
            M = aug.affine_matrices(params, x.shape[1:3])
            return np.stack(
                [
                    np.clip(
                        b
                        * ndimage.affine_transform(
                            im[..., 0], m[:, :2], m[:, 2], order=1, mode=p.fill_mode
                        ),
                        0,
                        1,
                    )[..., None]
                    for im, m, b in zip(x, M, params['brightness'])
                ]
            )

        return loop, 'scipy'

    def loop(x, p):
        options = aug.asdict(p)
        # brightness works on gray values to 255 there: that pipeline gets its images in that range, as usual
        scale = 255 if p.brightness_range else 1
        g = ImageDataGenerator(**options)
        return np.stack([g.random_transform(im * scale) for im in x]) / scale

    return loop, 'keras'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=256, help='images of one round')
    parser.add_argument('--rounds', type=int, default=3, help='rounds; the median counts')
    parser.add_argument('--json', help='write the numbers here as well')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    loop, name = keras_loop()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    rows = []
    print(
        f'{cores} cores, {args.images} images a round, median of {args.rounds}; reference: {name}'
    )
    heads = f'{name} img/s', '1 thread img/s', 'threads img/s'
    columns = ''.join(f'{h:>16}' for h in heads)
    print(f'{"pipeline":12}{"size":>6}{columns}{"ratio 1":>9}{"ratio":>8}')
    for size in (64, 128):
        x = np.random.default_rng(0).random((args.images, size, size, 1), dtype=np.float32)
        for key in ('wmlq2022', 'ct_report', 'head_ct_x5'):
            p = aug.PIPELINES[key]
            ways = [
                lambda: loop(x, p),
                lambda: aug.augment(x, p, workers=1),
                lambda: aug.augment(x, p),
            ]
            times = [[], [], []]
            for way in ways:
                way()
            for _ in range(args.rounds):
                for way, t in zip(ways, times):
                    start = time.perf_counter()
                    way()
                    t.append(time.perf_counter() - start)
            reference, single, threaded = (args.images / statistics.median(t) for t in times)
            rows.append(
                {
                    'pipeline': key,
                    'size': size,
                    'reference': name,
                    'reference_per_s': reference,
                    'single_thread_per_s': single,
                    'per_s': threaded,
                    'ratio_single_thread': single / reference,
                    'ratio': threaded / reference,
                }
            )
            print(
                f'{key:12}{size:>6}{reference:>16.0f}{single:>16.0f}{threaded:>16.0f}'
                f'{single / reference:>9.1f}{threaded / reference:>8.1f}',
                flush=True,
            )
    if args.json:
        with open(args.json, 'w') as f:
            json.dump({'benchmark': 'augmentation', 'cores': cores, 'rows': rows}, f, indent=1)


if __name__ == '__main__':
    main()
