"""Does the conditional GAN draw the class that it is asked for?

    python benchmarks/studies/cgan_labels.py [--dataset covid_ct] [--images 150] [--epochs 80] \
        [--seeds 0 1 2] [--size 32] [--ema .99] [--json PATH] [--figure PATH]

A classifier that saw real images only is asked, per class, on phantoms.

Phantoms are drawn, not patients. The classifier (the CT report's CNN) is trained on other phantoms than
the GAN, and its accuracy on a third set stands beside the agreement: it is the most that agreement can
mean. A GAN that draws one image a class would agree as well, so the variety of its images stands there
too, relative to that of the phantoms.
"""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from gan_covid import phantoms
from gan_covid.classifier_training import train
from gan_covid.classifiers import predict
from gan_covid.datasets.public import load
from gan_covid.dcgan.training import GAN, Config, sample
from gan_covid.engines import device_info
from gan_covid.preprocessing import prepare
from gan_covid.protocols import Protocol
from gan_covid.records import environment, write_json


def drawn(dataset, n, size, seed):
    "n phantoms a class: float32 (k·n, size, size, 1) in [0, 1], class numbers, class names."
    with tempfile.TemporaryDirectory() as folder:
        table = load(
            dataset,
            phantoms.write(dataset, folder, n_per_class=n, size=4 * size, seed=seed, marks=0.0),
        )
        p = prepare(table, Path(folder) / 'prepared', size, progress=False)
        classes = sorted(set(p.table.label))
        return (
            np.array(p.images, 'float32') / 255,
            p.table.label.map({c: i for i, c in enumerate(classes)}).to_numpy('int32'),
            classes,
        )


def variety(x):
    return float(x.std(0).mean())


def agreement(model, images: list) -> list:
    "Share of each class's images that the classifier takes for that class."
    return [
        float((predict(model, np.clip(x, 0, 1)).argmax(1) == k).mean())
        for k, x in enumerate(images)
    ]


def main(a):
    (x, y, classes), (cx, cy, _), (tx, ty, _) = (
        drawn(a.dataset, a.images, a.size, 0),
        drawn(a.dataset, a.judge_images, a.size, 1),
        drawn(a.dataset, 100, a.size, 2),
    )
    judge = train(
        Protocol(
            'ct_cnn',
            a.size,
            'adam',
            2e-3,
            batch=32,
            epochs=25,
            patience=None,
            dropout=0.25,
            weights='random',
            monitor='val_loss',
        ),
        (cx, cy),
        (tx, ty),
        progress=None,
        seed=3,
    ).model
    real = agreement(judge, [tx[ty == k] for k in range(len(classes))])
    print('classifier on real phantoms:', dict(zip(classes, real)), flush=True)
    rows = []
    for seed in a.seeds:
        gan = GAN(
            Config(
                networks=f'cgan_{a.size}',
                epochs=a.epochs,
                batch=16,
                learning_rate=a.lr,
                beta_1=a.beta_1,
                gradient_penalty=0.0,
                real_noise=0.0,
                invert_labels=False,
                classes=len(classes),
                wrong_labels=a.wrong_labels,
                ema=a.ema,
                precision=a.precision,
                seed=seed,
            )
        )
        start = time.process_time()
        for epoch in range(a.epochs):
            gan.epoch(x, y, epoch, len(x) // 16)
        images = [sample(gan.sampler, 200, 5, k) for k in range(len(classes))]
        rows.append(
            {
                'seed': seed,
                'agreement': agreement(judge, images),
                'variety': [variety(i) / variety(x[y == k]) for k, i in enumerate(images)],
                'seconds': round(time.process_time() - start, 1),
            }
        )
        print(rows[-1], flush=True)
    out = {
        'what': 'agreement of a classifier trained on real phantoms '
        'with the label asked of the conditional GAN',
        'data': f'{a.dataset}: drawn phantoms, not patients',
        'settings': {k: v for k, v in vars(a).items() if k not in ('json', 'figure')},
        'classes': classes,
        'classifier_on_real': real,
        'gans': rows,
        'engine': device_info(),
        'environment': environment(),
    }
    if a.json:
        write_json(a.json, out)
    if a.figure:
        figure(out).savefig(a.figure, dpi=150)
    return out


def figure(out):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3.2), layout='constrained')
    at = np.arange(len(out['classes']))
    ax.bar(at, out['classifier_on_real'], 0.6, color='.85', label='real phantoms (held out)')
    for k, r in enumerate(out['gans']):
        ax.plot(
            at + 0.08 * (k - (len(out['gans']) - 1) / 2),
            r['agreement'],
            'o',
            label=f'conditional GAN, seed {r["seed"]}',
        )
    ax.axhline(0.9, color='.4', lw=0.8, ls=':')
    ax.set(
        xticks=at,
        xticklabels=out['classes'],
        ylim=(0, 1.02),
        ylabel='classifier agrees with the label',
        title='Drawn phantoms, not patients',
    )
    ax.legend(fontsize=7, loc='lower right')
    return fig


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--dataset', default='covid_ct')
    p.add_argument('--images', type=int, default=150)
    p.add_argument('--judge-images', type=int, default=600)  # of a class, for the classifier
    p.add_argument('--size', type=int, default=32)
    p.add_argument('--epochs', type=int, default=80)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--lr', type=float, default=5e-4)
    p.add_argument('--beta-1', type=float, default=0.0)
    p.add_argument('--wrong-labels', type=float, default=0.5)
    p.add_argument('--ema', type=float, default=0.99)
    p.add_argument('--precision', default='float32')
    p.add_argument('--json')
    p.add_argument('--figure')
    main(p.parse_args())
