"""StyleGAN2's operations and networks against the plain reference of the tests.

    python benchmarks/bench_stylegan2_ops.py [--rounds 4] [--size 64] [--width small] [--batch 16] \
        [--only WORD] [--json PATH]

One thread, processor time, variants by turns in one process, median of pairs.

The reference (tests/stylegan2_reference.py) inserts zeros, makes a weight for each sample, leaves
derivatives to torch and computes in float32; its doubling layers are transposed convolutions and its
halving layers strided ones, as usual, not the definition to the letter. "styles on the input" is the
reference without weights for each sample in its convolutions, a usual alternative in training. All times
are of forward and backward pass together, unless the name says otherwise; the gradient penalty (R1) is
computed in float32 by all. A ratio above 1 means that ours is faster.
"""

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = '1'

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'tests'))
import stylegan2_reference as R

from gan_covid.records import environment
from gan_covid.stylegan2 import ops
from gan_covid.stylegan2.networks import Discriminator, Generator


def backward(f, *inputs):
    "A call of forward and backward pass by all inputs; the cotangent is one."

    def run():
        y = f(*inputs)
        return torch.autograd.grad(y, inputs, torch.ones_like(y))

    return run


def leaf(*shape, last=False):
    x = torch.randn(shape)
    return (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()


def both(name, plain, ours, *shapes):
    "Two variants of one operation on tensors of the same shapes; images of ours are channels_last."
    a, b = [leaf(*s) for s in shapes], [leaf(*s, last=len(s) == 4) for s in shapes]
    return name, {'plain': backward(plain, *a), 'ours': backward(ours, *b)}


def penalty(conv, switch):
    "Derivative of the squared image gradient by the weights, through two layers."

    def f(x, w):
        y = F.leaky_relu(conv(x, w), 0.2)
        y = conv(y, w).square().sum()
        with switch():
            (g,) = torch.autograd.grad(y, x, create_graph=True)
        return g.square().sum((1, 2, 3))

    return f


def operations(batch, c=64, s=64):
    k, f, h = R.kernel(), ops.fir_filter(), s // 2
    image, small, weight = (batch, c, s, s), (batch, c, h, h), (c, c, 3, 3)
    yield both(
        'filter and double', lambda x: R.upsample2d(x, k), lambda x: ops.upsample2d(x, f), small
    )
    yield both(
        'filter and halve', lambda x: R.downsample2d(x, k), lambda x: ops.downsample2d(x, f), image
    )
    yield both(
        'filter, 12 taps',
        lambda x: R.filter2d(x, torch.outer(t12, t12)),
        lambda x: ops.filter2d(x, t12),
        (batch, 8, s, s),
    )
    yield both(
        'convolution 3×3',
        lambda x, w: F.conv2d(x, w, padding=1),
        lambda x, w: ops.conv2d(x, w, padding=1),
        image,
        weight,
    )
    yield both(
        'convolution, doubling',
        lambda x, w: R.conv2d_resample(x, w, k, up=2, padding=1, literal=False),
        lambda x, w: ops.conv2d_resample(x, w, f, up=2, padding=1),
        small,
        weight,
    )
    yield both(
        'convolution, halving',
        lambda x, w: R.conv2d_resample(x, w, k, down=2, padding=1, literal=False),
        lambda x, w: ops.conv2d_resample(x, w, f, down=2, padding=1),
        image,
        weight,
    )
    yield both(
        'modulated 3×3',
        lambda x, w, t: R.modulated_conv2d(x, w, t, padding=1),
        lambda x, w, t: ops.modulated_conv2d(x, w, t, padding=1),
        image,
        weight,
        (batch, c),
    )
    yield both(
        'modulated, 512 channels, 8×8',
        lambda x, w, t: R.modulated_conv2d(x, w, t, padding=1),
        lambda x, w, t: ops.modulated_conv2d(x, w, t, padding=1),
        (batch, 512, 8, 8),
        (512, 512, 3, 3),
        (batch, 512),
    )
    yield both(
        'bias and leaky ReLU',
        lambda x, b: R.bias_act(x, b, act='lrelu'),
        lambda x, b: ops.bias_act(x, b, act='lrelu'),
        image,
        (c,),
    )
    yield both(
        'minibatch deviation',
        lambda x: R.minibatch_stddev(x),
        lambda x: ops.minibatch_stddev(x),
        (batch, 128, 4, 4),
    )
    yield both(
        'second derivative',
        penalty(lambda x, w: F.conv2d(x, w, padding=1), nullcontext),
        penalty(lambda x, w: ops.conv2d(x, w, padding=1), ops.no_weight_gradients),
        image,
        weight,
    )


t12 = ops.fir_filter(range(1, 13))


def gradient_penalty(net, params, real, **kw):
    "Gradients of R1."
    x = real.clone().requires_grad_()
    logits = net(x, **kw)
    with ops.no_weight_gradients():
        (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum((1, 2, 3)).mean(), params, allow_unused=True)


def network_rows(batch, size, width):
    how = dict(literal=False)
    G, D = (
        f(size=size, width=width, generator=torch.Generator().manual_seed(0))
        for f in (Generator, Discriminator)
    )
    Gh, Dh = (type(n)(**{**n.config, 'bf16': True}) for n in (G, D))
    Gh.load_state_dict(G.state_dict()), Dh.load_state_dict(D.state_dict())
    z = torch.randn(batch, G.z_dim)
    with torch.no_grad():
        real = G(z)
    cot, cots = torch.randn_like(real), torch.randn(batch, 1)

    def ours_g(net):
        return lambda: torch.autograd.grad(
            (net(z, track=False) * cot).sum(), list(net.parameters())
        )

    def plain_g(per_sample):
        p = dict(G.named_parameters())

        def run():
            w = R.mapping(p, z, None, 2)[:, None].repeat(1, G.num_ws, 1)
            maps = [
                torch.randn(batch, 1, *hw)
                for hw in [G.synthesis.sizes[0]] + [s for s in G.synthesis.sizes[1:] for _ in 'ab']
            ]
            return torch.autograd.grad(
                (
                    R.synthesis(p, w, G.size, G.synthesis.first, maps, per_sample=per_sample, **how)
                    * cot
                ).sum(),
                list(G.parameters()),
            )

        return run

    p = dict(D.named_parameters())

    def plain_d(x):
        return R.discriminator(p, x, first=D.first, **how)

    def loss(net, params, x):
        return lambda: torch.autograd.grad((net(x) * cots).sum(), params)

    def r1(net, params, **kw):
        return lambda: gradient_penalty(net, params, real, **kw)

    mine, half = list(D.parameters()), list(Dh.parameters())

    def both_d(a, b):
        return lambda: (a(), b())

    yield (
        'generator',
        {
            'plain': plain_g(True),
            'styles on the input': plain_g(False),
            'ours': ours_g(G),
            'ours, bfloat16': ours_g(Gh),
        },
    )
    yield (
        'discriminator',
        {
            'plain': loss(plain_d, mine, real),
            'ours': loss(D, mine, real),
            'ours, bfloat16': loss(Dh, half, real),
        },
    )
    yield (
        'discriminator and R1',
        {
            'plain': both_d(loss(plain_d, mine, real), r1(plain_d, mine)),
            'ours': both_d(loss(D, mine, real), r1(D, mine, fp32=True)),
            'ours, bfloat16': both_d(loss(Dh, half, real), r1(Dh, half, fp32=True)),
        },
    )
    yield 'R1 alone', {'plain': r1(plain_d, mine), 'ours': r1(D, mine, fp32=True)}
    with torch.no_grad():
        w = G.mapping(z, track=False)
    few, mine_g = w[: batch // 2].clone().requires_grad_(), list(G.synthesis.parameters())

    def lengths(f):
        def run():
            with ops.no_weight_gradients():
                (g,) = torch.autograd.grad(
                    (f(few) * cot[: batch // 2]).sum(), few, create_graph=True
                )
            return torch.autograd.grad(
                g.square().sum(2).mean(1).sqrt().sum(), mine_g, allow_unused=True
            )

        return run

    flat = dict(G.named_parameters())
    yield (
        'path length, half batch',
        {
            'plain': lengths(
                lambda w: R.synthesis(flat, w, G.size, G.synthesis.first, 'none', **how)
            ),
            'styles on the input': lengths(
                lambda w: R.synthesis(
                    flat, w, G.size, G.synthesis.first, 'none', per_sample=False, **how
                )
            ),
            'ours': lengths(lambda w: G.synthesis(w, 'none', fp32=True)),
        },
    )

    def sample(f):
        def run():
            with torch.no_grad():
                return f()

        return run

    yield (
        'images, no derivatives',
        {
            'plain': sample(lambda: R.synthesis(flat, w, G.size, G.synthesis.first, 'none', **how)),
            'ours': sample(lambda: G.synthesis(w, 'none')),
            'ours, bfloat16': sample(lambda: Gh.synthesis(w, 'none')),
        },
    )


def measure(variants, rounds):
    "{variant: seconds of processor time of every round}, by turns."
    for f in variants.values():
        f()
    seconds = {k: [] for k in variants}
    for _ in range(rounds):
        for k, f in variants.items():
            start = time.process_time()
            f()
            seconds[k].append(time.process_time() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--rounds', type=int, default=4, help='rounds; the median of the pairs counts'
    )
    parser.add_argument('--size', type=int, default=64, help='pixels a side of the networks')
    parser.add_argument(
        '--width', default='small', help='channels of the networks: tiny, small, auto'
    )
    parser.add_argument('--batch', type=int, default=16, help='images in a batch')
    parser.add_argument('--only', default='', help='rows whose name contains this')
    parser.add_argument('--json', help='write the numbers here as well')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    print(
        f'one thread, batch {args.batch}, networks: {args.width} {args.size}×{args.size}; '
        f'median of {args.rounds} pairs'
    )
    print(f'{"forward and backward":30}{"variant":22}{"ms":>10}{"plain / variant":>18}')
    for source in (operations(args.batch), network_rows(args.batch, args.size, args.width)):
        for name, variants in source:
            if args.only not in name:
                continue
            seconds = measure(variants, args.rounds)
            for k, s in seconds.items():
                ratio = statistics.median(a / b for a, b in zip(seconds['plain'], s))
                rows.append(
                    {'what': name, 'variant': k, 'seconds': statistics.median(s), 'ratio': ratio}
                )
                print(
                    f'{name:30}{k:22}{1e3 * rows[-1]["seconds"]:>10.1f}'
                    + ('' if k == 'plain' else f'{ratio:>18.2f}'),
                    flush=True,
                )
    if args.json:
        Path(args.json).write_text(
            json.dumps(
                {
                    'benchmark': 'stylegan2_ops',
                    'batch': args.batch,
                    'size': args.size,
                    'width': args.width,
                    'rounds': args.rounds,
                    'threads': 1,
                    'rows': rows,
                    'environment': environment(),
                },
                indent=1,
                ensure_ascii=False,
            )
            + '\n'
        )


if __name__ == '__main__':
    main()
