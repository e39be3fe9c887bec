"""StyleGAN2 as it is defined, for comparison: zeros are inserted, weights are made for every sample,
derivatives are torch's own.

Two readers: the tests, which compare `gan_covid.stylegan2` with it on cases of any shape, and
benchmarks/bench_stylegan2_ops.py, which takes its time. `literal=True` is the definition to the letter (the
convolution of a doubling layer runs on the large image). Otherwise a doubling layer is a transposed
convolution followed by the filter and a halving one the filter followed by a strided convolution, as the
StyleGAN2 paper's layers are usually computed. No tensor here is channels_last and nothing is folded.
"""

import math

import torch
import torch.nn.functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)


def kernel(taps=TAPS):
    f = torch.tensor(taps)
    f = torch.outer(f, f) if f.ndim == 1 else f
    return f / f.sum()


def four(p):
    p = [p] * 4 if isinstance(p, int) else list(p)
    return [p[0], p[0], p[1], p[1]] if len(p) == 2 else p


def two(v):
    return (v, v) if isinstance(v, int) else tuple(v)


# --- operations ---


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1.0):
    (ux, uy), (dx, dy), (x0, x1, y0, y1), (n, c, h, w) = two(up), two(down), four(padding), x.shape
    f = torch.ones(1, 1) if f is None else torch.outer(f, f) if f.ndim == 1 else f
    # 1. zeros
    x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, ux - 1, 0, 0, 0, uy - 1])
    x = x.reshape(n, c, h * uy, w * ux)
    # 2. padding, or cropping
    x = F.pad(x, [max(x0, 0), max(x1, 0), max(y0, 0), max(y1, 0)])
    x = x[:, :, max(-y0, 0) : x.shape[2] - max(-y1, 0), max(-x0, 0) : x.shape[3] - max(-x1, 0)]
    # 3. filter
    f = (f * gain).to(x)
    f = f if flip_filter else f.flip(0, 1)
    x = F.conv2d(x, f[None, None].repeat(c, 1, 1, 1), groups=c)
    # 4. thinning out
    return x[:, :, ::dy, ::dx]


def extent(f):
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def add(a, b):
    return [i + j for i, j in zip(a, b)]


def up_padding(f, up):
    (fw, fh), (ux, uy) = extent(f), two(up)
    return [(fw + ux - 1) // 2, (fw - ux) // 2, (fh + uy - 1) // 2, (fh - uy) // 2]


def down_padding(f, down):
    (fw, fh), (dx, dy) = extent(f), two(down)
    return [(fw - dx + 1) // 2, (fw - dx) // 2, (fh - dy + 1) // 2, (fh - dy) // 2]


def filter2d(x, f, padding=0, **kw):
    fw, fh = extent(f)
    own = [fw // 2, (fw - 1) // 2, fh // 2, (fh - 1) // 2]
    return upfirdn2d(x, f, padding=add(four(padding), own), **kw)


def upsample2d(x, f, up=2, padding=0, gain=1.0, **kw):
    (ux, uy), pad = two(up), add(four(padding), up_padding(f, up))
    return upfirdn2d(x, f, up=up, padding=pad, gain=gain * ux * uy, **kw)


def downsample2d(x, f, down=2, padding=0, **kw):
    return upfirdn2d(x, f, down=down, padding=add(four(padding), down_padding(f, down)), **kw)


def whole_padding(f, up, down, padding):
    p = four(padding)
    if up > 1:
        p = add(p, up_padding(f, up))
    if down > 1:
        p = add(p, down_padding(f, down))
    return p


def resample_literally(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True):
    "Up-sample, convolve, down-sample, one after the other."
    p = whole_padding(f, up, down, padding)
    x = upfirdn2d(x, f, up=up, padding=p, gain=up**2) if up > 1 else upfirdn2d(x, None, padding=p)
    x = F.conv2d(x, w if flip_weight else w.flip(2, 3), groups=groups)
    return upfirdn2d(x, f, down=down) if down > 1 else x


def resample_as_usual(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True):
    "The same result with strided convolutions, where there are any."
    (kh, kw), p = w.shape[2:], whole_padding(f, up, down, padding)
    if up == down == 1 or (up > 1 and down > 1):
        return resample_literally(x, w, f, up, down, padding, groups, flip_weight)
    if kh == kw == 1:
        if up == 1:
            return F.conv2d(upfirdn2d(x, f, down=down, padding=p), w, groups=groups)
        return upfirdn2d(F.conv2d(x, w, groups=groups), f, up=up, padding=p, gain=up**2)
    if up == 1:
        w = w if flip_weight else w.flip(2, 3)
        return F.conv2d(upfirdn2d(x, f, padding=p), w, stride=down, groups=groups)
    o, i = w.shape[:2]
    t = (w.flip(2, 3) if flip_weight else w).reshape(groups, o // groups, i, kh, kw)
    t = t.transpose(1, 2).reshape(groups * i, o // groups, kh, kw)
    x = F.conv_transpose2d(x, t, stride=up, groups=groups)
    pad = [p[0] - kw + 1, p[1] + up - kw, p[2] - kh + 1, p[3] + up - kh]
    return upfirdn2d(x, f, padding=pad, gain=up**2)


def conv2d_resample(x, w, f=None, literal=True, **how):
    return (resample_literally if literal else resample_as_usual)(x, w, f, **how)


def modulated_conv2d(x, w, s, noise=None, demodulate=True, per_sample=True, **how):
    """per_sample: one grouped convolution with a weight for each sample; else styles on the input,
    demodulation on the output, from the same weights. how: as for conv2d_resample."""
    n, _, h, wd = x.shape
    own = w[None] * s[:, None, :, None, None]  # [n, o, i, kh, kw]
    d = (own.square().sum((2, 3, 4)) + 1e-8).rsqrt() if demodulate else None
    if per_sample:
        if demodulate:
            own = own * d[:, :, None, None, None]
        own = own.reshape(-1, *own.shape[2:])
        y = conv2d_resample(x.reshape(1, -1, h, wd), own, groups=n, **how)
        y = y.reshape(n, -1, *y.shape[2:])
    else:
        y = conv2d_resample(x * s[:, :, None, None], w, **how)
        if demodulate:
            y = y * d[:, :, None, None]
    return y if noise is None else y + noise


GAINS = {'relu': math.sqrt(2), 'lrelu': math.sqrt(2), 'swish': math.sqrt(2)}


def activation(x, act, alpha):
    if act == 'relu':
        return torch.where(x > 0, x, 0 * x)
    if act == 'lrelu':
        return torch.where(x > 0, x, alpha * x)
    if act == 'tanh':
        return torch.tanh(x)
    if act == 'sigmoid':
        return 1 / (1 + torch.exp(-x))
    if act == 'swish':
        return x / (1 + torch.exp(-x))
    assert act == 'linear'
    return x


def bias_act(x, b=None, dim=1, act='linear', alpha=0.2, gain=None, clamp=None):
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    x = activation(x, act, alpha) * (GAINS.get(act, 1.0) if gain is None else gain)
    return x if clamp is None else x.clamp(-clamp, clamp)


def minibatch_stddev(x, group=4, channels=1):
    "One group, one bundle of channels after the other."
    n, c, h, w = x.shape
    g = n if group is None else min(group, n)
    rows = [[] for _ in range(n)]
    for i in range(n // g):
        members = list(range(i, n, n // g))
        for part in x[members].chunk(channels, 1):
            deviation = ((part - part.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
            for m in members:
                rows[m].append(deviation)
    rows = torch.stack([torch.stack(r) for r in rows])
    return torch.cat([x, rows[:, :, None, None].expand(n, channels, h, w)], 1)


# --- networks: functions of a state dict with the names of gan_covid.stylegan2.networks ---


def dense(p, name, x, act='linear', lr=1.0):
    w = p[name + '.weight']
    return bias_act(x @ (w * (lr / math.sqrt(w.shape[1]))).t(), p[name + '.bias'] * lr, act=act)


def mapping(p, z, c, layers, prefix='mapping.'):
    "w [n, w_dim] of latent vectors z (None in a discriminator) and labels c [n, k] (None without)."

    def unit(v):
        return v * (v.square().mean(1, keepdim=True) + 1e-8).rsqrt()

    x = [unit(z)] if z is not None else []
    if c is not None and c.shape[1]:
        x.append(unit(dense(p, prefix + 'embed', c)))
    x = torch.cat(x, 1)
    for i in range(layers):
        x = dense(p, f'{prefix}fc{i}', x, 'lrelu', 0.01)
    return x


def blocks(size, first):
    "(height, width) from the first block to the image."
    out = [tuple(first)]
    while out[-1] != tuple(size):
        out.append((2 * out[-1][0], 2 * out[-1][1]))
    return out


def synthesis(p, ws, size, first=(4, 4), noise='none', prefix='synthesis.', **how):
    "Images of ws [n, num_ws, w_dim]; noise: 'none', 'const', or a list of [n, 1, h, w], one a 3×3 layer."
    f, x, image, i = kernel(), None, None, 0
    maps = iter(noise) if isinstance(noise, (list, tuple)) else None
    for h, w in blocks(size, first):
        b = f'{prefix}b{h}x{w}.'
        if x is None:
            x = p[b + 'const'][None].repeat(len(ws), 1, 1, 1)
        for name, up in (('conv0', 2), ('conv1', 1)):
            q = b + name
            if q + '.weight' not in p:
                continue
            s = dense(p, q + '.affine', ws[:, i])
            more = dict(up=up, padding=1, f=f, flip_weight=up == 1, **how)
            x = modulated_conv2d(x, p[q + '.weight'], s, **more)
            m = next(maps) if maps else p[q + '.noise_const'] if noise == 'const' else None
            if m is not None:
                x = x + m * p[q + '.noise_strength']
            x = bias_act(x, p[q + '.bias'], act='lrelu')
            i += 1
        q = b + 'torgb'
        s = dense(p, q + '.affine', ws[:, i]) / math.sqrt(x.shape[1])
        y = modulated_conv2d(x, p[q + '.weight'], s, demodulate=False, **how)
        y = bias_act(y, p[q + '.bias'])
        image = y if image is None else upsample2d(image, f) + y
    return image


def conv_layer(p, name, x, act='lrelu', down=1, gain=1.0, **how):
    w = p[name + '.weight']
    more = dict(down=down, padding=w.shape[2] // 2, **how)
    x = conv2d_resample(x, w / math.sqrt(w[0].numel()), kernel(), **more)
    return bias_act(x, p.get(name + '.bias'), act=act) * gain


def discriminator(p, image, c=None, kind='resnet', first=(4, 4), mbstd=(4, 1), **how):
    "Logits [n, 1]; mbstd: images of a group, and channels, of the minibatch deviation."
    x, gain = None, math.sqrt(0.5) if kind == 'resnet' else 1.0
    for h, w in blocks(image.shape[2:], first)[:0:-1]:
        b = f'b{h}x{w}.'
        if x is None or kind == 'skip':
            y = conv_layer(p, b + 'fromrgb', image, **how)
            x = y if x is None else x + y
        if kind == 'skip':
            image = downsample2d(image, kernel())
        y = conv_layer(p, b + 'skip', x, 'linear', 2, gain, **how) if kind == 'resnet' else None
        x = conv_layer(p, b + 'conv0', x, **how)
        x = conv_layer(p, b + 'conv1', x, 'lrelu', 2, gain, **how)
        x = x if y is None else x + y
    b = f'b{first[0]}x{first[1]}.'
    if kind == 'skip':
        x = x + conv_layer(p, b + 'fromrgb', image, **how)
    x = conv_layer(p, b + 'conv', minibatch_stddev(x, *mbstd), **how)
    x = dense(p, b + 'out', dense(p, b + 'fc', x.flatten(1), 'lrelu'))
    if c is None or not c.shape[1]:
        return x
    m = mapping(p, None, c, 8)
    return (x * m).sum(1, keepdim=True) / math.sqrt(m.shape[1])


# --- what the training asks of the derivatives ---


def r1(logits, image):
    "Squared length of the gradient of each image's logit, [n], and the gradient."
    (g,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return g.square().sum((1, 2, 3)), g


def path_lengths(image, noise, ws):
    """Length of the gradient of each image by its styles [n], and the gradient; `noise` like `image`, already
    divided by the square root of its pixels."""
    (g,) = torch.autograd.grad((image * noise).sum(), ws, create_graph=True)
    return g.square().sum(2).mean(1).sqrt(), g
