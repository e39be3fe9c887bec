"""Training images a second of the CT report's classifiers: `classifiers.train` against plain Keras.

    python benchmarks/bench_classifiers.py [--networks ct_cnn vgg16 resnet50] [--size 64] [--images \
        96] [--rounds 3] [--json PATH]

In one process, turn by turn; the ratio is what counts.

The plain way is ImageDataGenerator.flow and `fit`, with the same network from random weights, the same
optimiser, batch and augmentation (flips and rotation to 45°), and as many validation images. Each way
trains in a thread of its own, but only one at a time: an epoch each, over and over, the first one
(compilation) not counted. What counts is processor time, on one thread unless TF_NUM_INTRAOP_THREADS and
OMP_NUM_THREADS say otherwise, so that other work on the machine disturbs little. Wall-clock time is
printed beside it.

Where a network normalises batches, `train` recomputes its statistics after each epoch, which `fit` does
not: a forward pass more. The row "running averages" is without it, the same work as `fit`.
"""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
import argparse
import json
import statistics
import threading
import time
import warnings
from dataclasses import replace

import numpy as np

from gan_covid import classifier_training as T
from gan_covid import classifiers as C
from gan_covid import phantoms
from gan_covid.engines import device_info, load_keras
from gan_covid.protocols import protocol


class Turns:
    """Several trainings in threads, one running at a time; each calls `tick` at the end of an epoch.
    Seconds of the turns: {name: [(processor, wall)]}."""

    def __init__(self, ways):
        self.ways, self.gates = ways, [threading.Semaphore(0) for _ in ways]
        self.seconds, self.error = {name: [] for name in ways}, None

    def run(self):
        threads = [
            threading.Thread(target=self.one, args=(k, name, way))
            for k, (name, way) in enumerate(self.ways.items())
        ]
        for t in threads:
            t.start()
        self.gates[0].release()
        for t in threads:
            t.join()
        if self.error:
            raise self.error
        return self.seconds

    def one(self, k, name, way):
        def wait():
            self.gates[k].acquire()
            self.begun = time.process_time(), time.perf_counter()

        def tick(*_):
            self.seconds[name].append(
                (time.process_time() - self.begun[0], time.perf_counter() - self.begun[1])
            )
            self.gates[(k + 1) % len(self.gates)].release()
            wait()

        wait()
        try:
            way(tick)
        except BaseException as e:
            self.error = self.error or e
        finally:
            self.gates[
                (k + 1) % len(self.gates)
            ].release()  # what is left of this thread, a few copies, is in nobody's turn


def ours(p, data, val):
    return lambda tick: T.train(p, Set(*data, p.pipeline), val, progress=tick)


class Set:
    "Training images with their augmentation, as `train` takes them."

    def __init__(self, x, y, pipeline):
        self.x, self.y, self.pipeline, self.classes = x, y, pipeline, [0, 1]


def plain(p, data, val, jit='auto'):
    keras = load_keras()
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    class Tick(keras.callbacks.Callback):
        def __init__(self, tick):
            super().__init__()
            self.tick = tick

        def on_epoch_end(self, *_):
            self.tick()

    def way(tick):
        def unit(x, y):
            return (x / np.float32(255), np.eye(2, dtype='float32')[y])

        model = C.build_model(p, 2, progress=lambda line: None)
        model.compile(
            keras.optimizers.SGD(p.learning_rate),
            'categorical_crossentropy',
            metrics=['accuracy'],
            jit_compile=jit,
        )
        flow = ImageDataGenerator(rotation_range=45, horizontal_flip=True, vertical_flip=True).flow(
            *unit(*data), batch_size=p.batch, seed=0
        )
        model.fit(
            flow, epochs=p.epochs, validation_data=unit(*val), callbacks=[Tick(tick)], verbose=0
        )

    return way


def parts(p, data, val):
    "Milliseconds of processor time an image, of the parts of `train`'s epoch, each measured by itself."
    model = C.build_model(p, 2, progress=lambda line: None)
    net, _, step = T._program(p, model)
    images = T._Data(*data, *val, [0, 1], p.pipeline)
    batches = list(T.epoch_batches(images, p.batch, 0, 0))
    ways = {
        'augmentation': lambda: list(T.epoch_batches(images, p.batch, 0, 0)),
        'step': lambda: [step(*b) for b in batches][-1][0].numpy(),
        'statistics': lambda: T.recompute_statistics(net, (b for b, _ in batches)),
        'validation': lambda: T._scores(net, val[0], np.eye(2, dtype='float32')[val[1]], 0.0),
    }
    if not C.normalisations(net):
        del ways['statistics']
    out = {}
    for name, way in ways.items():
        way()
        seconds = []
        for _ in range(3):
            t = time.process_time()
            way()
            seconds.append(time.process_time() - t)
        out[name] = round(1e3 * statistics.median(seconds) / len(data[0]), 3)
    return out


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument(
        '--networks',
        nargs='+',
        default=['ct_cnn', 'vgg16', 'resnet50'],
        choices=['ct_cnn', 'vgg16', 'resnet50'],
    )
    a.add_argument('--size', type=int, default=64, help='pixels a side')
    a.add_argument(
        '--images', type=int, default=96, help='training images; a quarter as many for validation'
    )
    a.add_argument('--rounds', type=int, default=3, help='epochs that count; the median is taken')
    a.add_argument('--json', help='write the numbers here as well')
    a = a.parse_args()
    warnings.filterwarnings('ignore')

    def draw(n, seed):
        classes = phantoms.CLASSES['chest_ct']
        images = [phantoms.draw('chest_ct', label, n // 2, a.size, seed) for label in classes]
        return np.concatenate(images)[..., None], np.repeat([0, 1], n // 2)

    data, val, out = draw(a.images, 0), draw(a.images // 4, 1), {}
    for network in a.networks:
        p = protocol(
            f'ct_report-{network}',
            size=a.size,
            weights='random',
            epochs=a.rounds + 1,
            stop_accuracy=None,
            precision='float32',
        )
        half = replace(p, precision='mixed_bfloat16')
        ways = {'plain Keras': plain(p, data, val), 'train': ours(p, data, val)}
        if network != 'vgg16':
            ways['train, running averages'] = ours(replace(p, bn_statistics='running'), data, val)
        ways |= {
            'plain Keras, bfloat16': plain(half, data, val),
            'train, bfloat16': ours(half, data, val),
        }
        seconds = {k: v[1:] for k, v in Turns(ways).run().items()}
        base = seconds['plain Keras']

        def ratio(s, i):
            return round(statistics.median(b[i] / t[i] for b, t in zip(base, s)), 2)

        rows = {
            k: {
                'images_per_second': round(a.images / statistics.median(t[0] for t in s), 1),
                'ratio': ratio(s, 0),
                'ratio_wall': ratio(s, 1),
            }
            for k, s in seconds.items()
        }
        out[network] = {
            'rows': rows,
            'ms_per_image': {
                'train': parts(p, data, val),
                'train, bfloat16': parts(half, data, val),
            },
        }
        print(f'{network}, {a.size}×{a.size}, {a.images} images an epoch, batch {p.batch}')
        for k, r in rows.items():
            print(
                f'    {k:28s} {r["images_per_second"]:7.1f} images a processor second  '
                f'{r["ratio"]:5.2f} x plain Keras  ({r["ratio_wall"]:.2f} by wall clock)'
            )
        for k, ms in out[network]['ms_per_image'].items():
            print(
                f'    {k + ", ms an image:":28s} '
                + ', '.join(f'{n} {v:.2f}' for n, v in ms.items()),
                flush=True,
            )
    if a.json:
        open(a.json, 'w').write(
            json.dumps(
                {'size': a.size, 'images': a.images, 'networks': out, **device_info()}, indent=1
            )
            + '\n'
        )


if __name__ == '__main__':
    main()
