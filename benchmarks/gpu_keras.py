"""Keras on the torch backend, on whichever device there is; ends with 1 if something fails.

    python benchmarks/gpu_keras.py [--images 256] [--epochs 4] [--size 64] [--classifier-epochs 2] \
        [--device cpu] [--json PATH]

A short DCGAN training twice, a killed one that resumes, a short classifier training.

Meant for a first contact with a GPU: at most two minutes there, and with `--images 16 --epochs 2 --size
32 --small` a minute on a laptop. It needs Keras, torch, NumPy, pandas, SciPy, scikit-learn, Pillow; no
TensorFlow. Both precisions are timed, so that one sees whether `auto` chooses the quicker one here.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

WAYS = {
    'first': 'auto',
    'again': 'auto',
    'float32': 'float32',
    'mixed_bfloat16': 'mixed_bfloat16',
}  # the first also pays for loading


def arguments(given=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--images', type=int, default=256)
    p.add_argument('--epochs', type=int, default=4, help='of the DCGAN')
    p.add_argument('--size', type=int, default=64, help='pixels a side that the classifier sees')
    p.add_argument('--classifier-epochs', type=int, default=2)
    p.add_argument(
        '--small',
        action='store_true',
        help='smallest networks: ct_report_32 and the CNN of ct_report',
    )
    p.add_argument('--device', help='cpu, cuda, mps; else the one that Keras takes')
    p.add_argument('--json', help='also write the results there')
    return p.parse_args(given)


def drawn(n, size):
    "Two classes of images in [0, 1], a disc on the left or on the right, and their numbers."
    import numpy as np

    rng, label = np.random.default_rng(0), np.arange(n) % 2
    y, x = np.mgrid[:size, :size] / size

    def disc(k):
        return ((x - 0.3 - 0.4 * k) ** 2 + (y - 0.5) ** 2 < 0.03) * 0.6

    return np.stack(
        [np.clip(disc(k) + rng.normal(0.2, 0.05, (size, size)), 0, 1) for k in label]
    ).astype('float32')[..., None], label


def gan(a):
    "Seconds and hash of a DCGAN training in both precisions, again, and stopped and resumed."
    from gan_covid.dcgan.training import Config, train

    name = 'ct_report_32' if a.small else 'head_ct'
    images, out = drawn(a.images, 32)[0], {}

    def play(folder, epochs, **settings):
        start = time.time()
        config = Config(networks=name, epochs=epochs, batch=min(16, a.images), seed=1, **settings)
        r = train(images, config, folder, sheets=1, sheet_images=8, checkpoint_seconds=0)
        return {
            'seconds': round(time.time() - start, 2),
            'precision': r['precision'],
            'why': r['precision_why'],
            'sha256': r['generator_sha256'][:16],
            'engine': r['engine'],
        }

    with tempfile.TemporaryDirectory() as work:
        for way, precision in WAYS.items():
            out[way] = play(Path(work) / way, a.epochs, precision=precision)
        play(Path(work) / 'resumed', max(1, a.epochs // 2))
        out['resumed'] = play(Path(work) / 'resumed', a.epochs)
    out['same bits twice'] = out['first']['sha256'] == out['again']['sha256']
    out['same bits resumed'] = out['first']['sha256'] == out['resumed']['sha256']
    return out


def classifier(a):
    "Seconds, accuracy and hash of a classifier training in both precisions, and again."
    from gan_covid.classifier_training import train
    from gan_covid.classifiers import predict
    from gan_covid.protocols import protocol
    from gan_covid.records import sha256_array

    images, label = drawn(a.images, a.size)
    n, out = len(images) * 3 // 4, {}
    p = protocol(
        'ct_report-ct_cnn' if a.small else 'head_ct',
        size=a.size,
        epochs=a.classifier_epochs,
        weights='random',
        batch=min(16, n),
    )
    for way, precision in WAYS.items():
        start = time.time()
        r = train(
            replace(p, precision=precision),
            (images[:n], label[:n]),
            (images[n:], label[n:]),
            seed=1,
        )
        score = predict(r.model, images[n:])
        out[way] = {
            'seconds': round(time.time() - start, 2),
            'precision': r.precision,
            'why': r.precision_why,
            'accuracy': float((score.argmax(1) == label[n:]).mean()),
            'sha256': sha256_array(score)[:16],
        }
    out['same bits twice'] = out['first']['sha256'] == out['again']['sha256']
    return out


def main(given=None) -> int:
    a = arguments(given)
    os.environ['KERAS_BACKEND'] = 'torch'
    if a.device:
        os.environ['KERAS_TORCH_DEVICE'] = a.device
    from gan_covid.engines import device_info, load_keras

    load_keras()
    import torch

    out, failed = {'engine': {**device_info(), 'torch': torch.__version__}}, []
    print(json.dumps(out['engine']), flush=True)
    for name, work in ('gan', gan), ('classifier', classifier):
        try:
            out[name] = work(a)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        for way, found in out[name].items():
            print(f'{name}: {way}: {found}', flush=True)
        failed += [f'{name}: {way}: no' for way, found in out[name].items() if found is False]
    print('failed: ' + '; '.join(failed) if failed else 'all well', flush=True)
    if a.json:
        from gan_covid.records import write_json

        write_json(a.json, {**out, 'failed': failed})
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
