"""What comes before the work itself: loading Keras, starting helpers that draw, building networks.

    python benchmarks/bench_start.py [--rounds 3] [--json PATH]

Each of our ways and the plain one in turn, in processes of their own; the ratio is what counts. Processor
time holds that of all helpers.

- Keras: `load_keras`, which hides packages that Keras takes for parts that nothing here uses; against
  `import keras`.
- Phantoms: 120 CT slices by the process itself, as `phantoms.write` decides; against two helpers.
- Arms: four trainings of EfficientNet-B0 with the weights of two seeds, built once for a seed; against once
  for each.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

from gan_covid.records import environment

KERAS = """
import sys
if sys.argv[1] == 'ours':
    from gan_covid.engines import load_keras
    load_keras()
else:
    import triton
    import keras
"""
PHANTOMS = """
import sys, tempfile
from gan_covid.phantoms import write
with tempfile.TemporaryDirectory() as folder:
    write('covid_ct', folder, 60, 128, workers=None if sys.argv[1] == 'ours' else 2)
"""
ARMS = """
import sys
from dataclasses import replace
import numpy as np
from gan_covid import classifier_training as training
from gan_covid.protocols import protocol
x = np.random.default_rng(0).integers(0, 255, (64, 32, 32, 1), dtype=np.uint8)
part = x, np.arange(64) % 2
p = replace(protocol('wmlq2022-efficientnetb0'), size=32, epochs=1, weights='random')
for run in range(4):
    if sys.argv[1] == 'plain':
        training._untrained.clear()
    training.train(p, part, part, seed=run % 2, progress=None)
"""
CASES = {'Keras': KERAS, 'Phantoms': PHANTOMS, 'Arms': ARMS}


def seconds(code: str, way: str) -> dict:
    "Processor and wall-clock time of a process and its helpers."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, '-c', code, way], env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {'processor': used, 'wall': time.perf_counter() - begun}


def main(args) -> dict:
    found = {}
    for name, code in CASES.items():
        runs = [{w: seconds(code, w) for w in ('ours', 'plain')} for _ in range(args.rounds)]
        for kind in ('processor', 'wall'):
            ours, plain = ([r[w][kind] for r in runs] for w in ('ours', 'plain'))
            ratio = statistics.median(a / b for a, b in zip(ours, plain))
            found[f'{name}, {kind}'] = {'ours': ours, 'plain': plain, 'ratio': ratio}
            middle = statistics.median(ours), statistics.median(plain)
            print(f'{name:9} {kind:10} {middle[0]:6.1f} s, plain {middle[1]:6.1f} s: {ratio:.2f}')
    return found


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', help='also write the numbers there')
    args = parser.parse_args()
    found = main(args)
    if args.json:
        with open(args.json, 'w') as f:
            json.dump({'ways': found, 'environment': environment()}, f, indent=1)
