"""Images a second of a GAN: our compiled epoch against the plain tutorial loop.

    python benchmarks/bench_dcgan.py [--networks head_ct ct_report_64] [--images 64] [--rounds 5] \
        [--json PATH]

In one process, turn by turn; the ratio is what counts.

The loop is the widespread one: `predict` makes fake images, `train_on_batch` trains the discriminator on
real ones and on fakes, and the stacked model trains the generator through the frozen discriminator. It
has no gradient penalty, so ours runs without it for the ratio; head_ct also with it, to show what it
costs. ct_report has none.

What counts is processor time, on one thread unless TF_NUM_INTRAOP_THREADS and OMP_NUM_THREADS say
otherwise, so that other work on the machine disturbs little.
"""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
import argparse
import json
import statistics
import time
from unittest import mock

import numpy as np

from gan_covid.dcgan import networks
from gan_covid.dcgan.training import GAN, Config
from gan_covid.engines import device_info, load_keras, seed_everything

keras = load_keras()


def tutorial(name, images, batch, policy):
    "The reference: one epoch of predict and three train_on_batch a step."
    seed_everything(0)
    G, D = networks.build(name, policy=policy)

    def adam():
        return keras.optimizers.Adam(2e-4, beta_1=0.5)

    D.compile(loss='binary_crossentropy', optimizer=adam())
    # frozen inside the stacked model; its own training is not, because it was compiled before
    D.trainable = False
    z = keras.Input((100,))
    stacked = keras.Model(z, D(G(z)))
    stacked.compile(loss='binary_crossentropy', optimizer=adam())
    D.trainable = True
    rng = np.random.default_rng(0)

    def epoch():
        for _ in range(len(images) // batch):
            real = images[rng.integers(0, len(images), batch)]
            fake = G.predict(rng.standard_normal((batch, 100)).astype('float32'), verbose=0)
            D.train_on_batch(real, np.zeros((batch, 1)))
            D.train_on_batch(fake, np.ones((batch, 1)))
            stacked.train_on_batch(
                rng.standard_normal((batch, 100)).astype('float32'), np.zeros((batch, 1))
            )

    return epoch


def ours(name, images, batch, **settings):
    gan, number, labels = (
        GAN(Config(networks=name, batch=batch, **{'precision': 'float32', **settings})),
        iter(range(10**9)),
        np.zeros(len(images), 'int32'),
    )
    return lambda: gan.epoch(images, labels, next(number), len(images) // batch)


def with_plain_filter(name, images, batch, **settings):
    "Ours, but the generator's last convolution as Keras computes it, not in blocks."
    with mock.patch.object(networks, 'NarrowConv2D', networks.L.Conv2D):
        return ours(name, images, batch, **settings)


def share(name, images, batch):
    "Processor seconds of the parts of a step, measured apart: where the time goes."
    seed_everything(0)
    G, D = networks.build(name)
    if keras.backend.backend() != 'tensorflow':
        return {}
    import tensorflow as tf

    z, x = tf.random.normal((batch, 100)), tf.constant(images[:batch])

    def both(model, v):
        @tf.function
        def f():
            with tf.GradientTape() as t:
                y = tf.reduce_sum(model(v, training=True))
            return t.gradient(y, model.trainable_variables)

        return f

    forward = tf.function(lambda: G(z, training=True))
    out = {}
    for name, f in (
        ('generator forward', forward),
        ('generator forward and backward', both(G, z)),
        ('discriminator forward and backward', both(D, x)),
    ):
        f()
        times = []
        for _ in range(3):
            t = time.process_time()
            f()
            times.append(time.process_time() - t)
        out[name] = round(statistics.median(times), 4)
    return out


def measure(name, images, batch, rounds):
    size, settings = (
        networks.NETWORKS[name].size,
        {'gradient_penalty': 0.0}
        if name == 'head_ct'
        else {'gradient_penalty': 0.0, 'real_noise': 0.0, 'invert_labels': False},
    )
    x = np.random.default_rng(0).random((images, size, size, 1), 'float32')
    variants = {
        'tutorial loop': tutorial(name, x, batch, 'float32'),
        'ours': ours(name, x, batch, **settings),
    }
    if name == 'head_ct':
        variants['ours, gradient penalty'] = ours(name, x, batch, gradient_penalty=10.0)
    variants |= {
        'tutorial loop, bfloat16': tutorial(name, x, batch, 'mixed_bfloat16'),
        'ours, bfloat16': ours(name, x, batch, precision='mixed_bfloat16', **settings),
    }
    if name != 'head_ct':
        for how, precision in (('', 'float32'), (', bfloat16', 'mixed_bfloat16')):
            as_usual = with_plain_filter(name, x, batch, precision=precision, **settings)
            variants[f'ours, plain last filter{how}'] = as_usual
    seconds = {k: [] for k in variants}
    for f in variants.values():
        f()  # compile
    for _ in range(rounds):
        for k, f in variants.items():
            t, w = time.process_time(), time.perf_counter()
            f()
            seconds[k].append((time.process_time() - t, time.perf_counter() - w))
    base = seconds['tutorial loop']

    def ratio(s, i):
        return round(statistics.median(b[i] / v[i] for b, v in zip(base, s)), 2)

    rows = {
        k: {
            'images_per_second': round(images / statistics.median(t for t, _ in s), 1),
            'ratio': ratio(s, 0),
            'ratio_wall': ratio(s, 1),
        }
        for k, s in seconds.items()
    }
    print(f'{name}, {size}×{size}, {images} images an epoch, batch {batch}')
    for k, r in rows.items():
        print(
            f'    {k:34s} {r["images_per_second"]:7.1f} images a processor second  '
            f'{r["ratio"]:5.2f} x the tutorial loop  ({r["ratio_wall"]:.2f} by wall clock)'
        )
    parts = share(name, x, batch)
    for k, s in parts.items():
        print(f'        {k:38s} {s:.3f} s a batch of {batch}', flush=True)
    return {'rows': rows, 'seconds': parts}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        '--networks',
        nargs='+',
        default=['head_ct', 'ct_report_64'],
        choices=list(k for k, n in networks.NETWORKS.items() if not n.conditional),
    )
    p.add_argument(
        '--images', type=int, help='images of an epoch (default: 64; from 64 pixels on 32)'
    )
    p.add_argument('--batch', type=int, default=16)
    p.add_argument(
        '--rounds', type=int, default=5, help='epochs of each that count; the median is taken'
    )
    p.add_argument('--json', help='write the numbers here as well')
    a = p.parse_args()
    out = {
        name: measure(
            name, a.images or (64 if networks.NETWORKS[name].size < 64 else 32), a.batch, a.rounds
        )
        for name in a.networks
    }
    if a.json:
        open(a.json, 'w').write(json.dumps({'networks': out, **device_info()}, indent=1) + '\n')


if __name__ == '__main__':
    main()
