"""StyleGAN2-ADA on a GPU: does it work, does it repeat itself, and how fast is it?

    python benchmarks/gpu_stylegan2.py [--device cuda] [--sizes 128 256] [--batch 32] [--json PATH]
                                       [--kernels 12]

Three parts, together some three minutes on one H100:
1. the tests that need a GPU;
2. half a thousand images of two classes at 32 × 32, twice (the same bits?), and once more, killed on the
   way and resumed (the same bits?);
3. seconds a thousand images, memory and launches at each size: gray images, width `auto`, bfloat16, ADA
   "bgc" at p = .3, whole iterations (path length every 4th, R1 every 16th), after two rounds that warm
   up and record. Three ways by turns in one process at the first size: passes recorded as CUDA graphs,
   launch by launch, and that with depthwise filters.

Without a GPU everything runs as well, for a test of this script:
--device cpu --sizes 16 --width tiny --batch 4.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # before the first use of the GPU
import numpy as np
import torch

from gan_covid.records import environment, write_json
from gan_covid.stylegan2 import ops
from gan_covid.stylegan2.settings import Config
from gan_covid.stylegan2.trainer import Images, Trainer
from gan_covid.stylegan2.training import default_device, start_processes, train

CYCLE = 16  # iterations in which every phase has its share


def images(n, size):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 1), dtype='uint8')


def half_a_thousand(folder, device):
    config = Config(kimg=0.512, batch=16, width='tiny', p=0.3, ada_kimg=1, bf16=True, seed=1)
    quiet = dict(
        tick_kimg=0.064, snapshot_ticks=4, sheet_images=16, distance_images=64, checkpoint_seconds=0
    )
    return train(
        images(64, 32),
        config,
        folder,
        np.arange(64) % 2,
        ('a', 'b'),
        device=device,
        **quiet,
        progress=lambda line: print('   ', line, flush=True),
    )


def killed(folder, device):
    "The same in a process of its own that is killed after its first tick, then to the end."
    p = subprocess.Popen(
        [sys.executable, __file__, '--device', device, '--child', str(folder)],
        stdout=subprocess.DEVNULL,
    )
    while p.poll() is None and not (folder / 'log.jsonl').exists():
        time.sleep(0.01)
    alive = p.poll() is None
    if alive:
        p.send_signal(signal.SIGKILL)
    p.wait()
    return alive, half_a_thousand(folder, device)


def same_bits(device):
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        a, b = (half_a_thousand(Path(folder) / k, device) for k in 'ab')
        seconds = (time.time() - start) / 2
        was_killed, c = killed(Path(folder) / 'c', device)
    found = {
        'repeated': a['sha256'] == b['sha256'],
        'killed': was_killed,
        'resumed': a['sha256'] == c['sha256'],
        'seconds': round(seconds, 1),
    }
    print(found, flush=True)
    return found


def wait(device):
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def measure(size, width, batch, device, way, rounds, kernels):
    ops._by_matrices = (lambda x: False) if way == 'depthwise' else FILTERS
    if device.startswith('cuda'):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = Config(batch=batch, width=width, ada='fixed', p=0.3, bf16=True, seed=0)
    # on a GPU shapes are fixed in all ways: what differs is the recording alone
    record = None if way == 'recorded' else False
    t = Trainer(Images(images(4 * batch, size)), config, device, record=record)
    seconds = []
    for k in range(2 + rounds):
        wait(device)
        start = time.perf_counter()
        for _ in range(CYCLE):
            t.iterate()
        wait(device)
        if k > 1:
            seconds.append((time.perf_counter() - start) / CYCLE / batch * 1000)
    row = {
        'size': size,
        'way': way,
        's_per_kimg': round(float(np.median(seconds)), 3),
        'all': [round(s, 3) for s in seconds],
        'losses': {k: round(v, 4) for k, v in t.losses.means().items()},
    }
    if device.startswith('cuda'):
        row['memory_gb'] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        row |= launches(t, kernels)
    print(json.dumps(row), flush=True)
    return row


def launches(t, kernels):
    "Calls of one iteration that start work or wait, and where the GPU's time goes."
    from torch.profiler import ProfilerActivity, profile

    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as seen:  # a whole cycle: R1 is rare
        for _ in range(CYCLE):
            t.iterate()
        torch.cuda.synchronize()
    events = seen.key_averages()

    def count(*names):
        return round(sum(e.count for e in events if e.key in names) / CYCLE, 1)

    busy = [
        (e.self_device_time_total / 1000 / CYCLE, e.count / CYCLE, e.key)
        for e in events
        if e.self_device_time_total > 0 and e.self_cpu_time_total == 0
    ]
    if kernels and t.passes.recorded:
        print(f'    GPU busy {sum(b[0] for b in busy):.1f} ms an iteration')
        for ms, n, key in sorted(busy, reverse=True)[:kernels]:
            print(f'    {ms:8.2f} ms {n:8.1f}  {key[:150]}')
    return {
        'launches': count(
            'cudaLaunchKernel', 'cudaLaunchKernelExC', 'cuLaunchKernel', 'cuLaunchKernelEx'
        ),
        'graphs': count('cudaGraphLaunch'),
        'waits': count('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize'),
        'gpu_ms': round(sum(b[0] for b in busy), 2),
    }


FILTERS = ops._by_matrices


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default=default_device())
    parser.add_argument('--sizes', type=int, nargs='*', default=[128, 256])
    parser.add_argument('--width', default='auto')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument(
        '--rounds', type=int, default=3, help='rounds of 16 iterations that are timed'
    )
    parser.add_argument(
        '--ways',
        nargs='+',
        default=['recorded', 'launches', 'depthwise'],
        help='at the first size; at the others the first of them',
    )
    parser.add_argument('--skip', nargs='*', default=[], choices=['tests', 'bits', 'speed'])
    parser.add_argument(
        '--kernels', type=int, default=0, help='list so many of the longest kernels'
    )
    parser.add_argument('--json')
    parser.add_argument('--child', help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        return half_a_thousand(Path(a.child), a.device) and 0
    start_processes(a.device)
    name = torch.cuda.get_device_name() if a.device.startswith('cuda') else a.device
    result = {
        'benchmark': 'gpu_stylegan2',
        'device': name,
        'width': a.width,
        'batch': a.batch,
        'p': 0.3,
        'environment': environment(name),
    }
    print(f'{name}, torch {torch.__version__}', flush=True)
    if 'tests' not in a.skip:
        root = Path(__file__).resolve().parents[1]
        tests = sorted(root.glob('tests/test_stylegan2_*.py'))
        result['tests'] = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', *tests], cwd=root
        ).returncode
    if 'bits' not in a.skip:
        result['bits'] = same_bits(a.device)
    if 'speed' not in a.skip:
        result['rows'] = []
        for size in a.sizes:
            for way in a.ways if size == a.sizes[0] else a.ways[:1]:
                result['rows'].append(
                    measure(size, a.width, a.batch, a.device, way, a.rounds, a.kernels)
                )
                if a.json:
                    write_json(a.json, result)
    if a.json:
        write_json(a.json, result)
    wrong = result.get('tests') not in (None, 0, 5) or not all(
        result.get('bits', {}).get(k, True) for k in ('repeated', 'resumed')
    )
    return int(wrong)


if __name__ == '__main__':
    sys.exit(main())
