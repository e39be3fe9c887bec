"""ADA's augmentation as its definition reads (arXiv 2006.06676, appendix B): one matrix after another, zeros
between the pixels, filters as convolutions.

Slow and plain on purpose: the tests compare `gan_covid.stylegan2.ada` with it, and the benchmark measures
against it.
"""

import math

import torch
from torch.nn import functional as F

# sym6 as it is usually tabulated (sum √2, 12 digits right): nothing is shared with the module under test
SYM6 = (
    torch.tensor(
        [
            0.015404109327027373,
            0.0034907120842174702,
            -0.11799011114819057,
            -0.048311742585633,
            0.4910559419267466,
            0.787641141030194,
            0.3379294217276218,
            -0.07263752278646252,
            -0.021060292512300564,
            0.04472490177066578,
            0.0017677118642428036,
            -0.007800708325034148,
        ],
        dtype=torch.float64,
    )
    / 2**0.5
)


def shift(x, y):
    return torch.tensor([[1.0, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def stretch(x, y):
    return torch.tensor([[x, 0.0, 0], [0, y, 0], [0, 0, 1]], dtype=torch.float64)


def turn(t):
    return torch.tensor(
        [[math.cos(t), -math.sin(t), 0.0], [math.sin(t), math.cos(t), 0], [0, 0, 1]],
        dtype=torch.float64,
    )


def geometric_matrix(p, h, w):
    """One image's parameters (plain numbers) to the 3 × 3 matrix from output to input pixels: inverse
    transforms, in order."""
    G = torch.eye(3, dtype=torch.float64)
    G = G @ stretch(1 - 2 * p['xflip'], 1)
    G = G @ turn(math.pi / 2 * p['rotate90'])
    G = G @ shift(-round(p['xint'][0] * w), -round(p['xint'][1] * h))
    G = G @ stretch(1 / p['scale'], 1 / p['scale'])
    G = G @ turn(p['rotate_pre'])
    G = G @ stretch(1 / p['aniso'], p['aniso'])
    G = G @ turn(p['rotate_post'])
    return G @ shift(-p['xfrac'][0] * w, -p['xfrac'][1] * h)


def colour_matrix(p):
    "One image's parameters to the 4 × 4 matrix from input to output colours."
    one = torch.eye(4, dtype=torch.float64)
    v = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64) / 3**0.5
    vv = torch.outer(v, v)
    C = one.clone()
    C[:3, 3] += p['brightness']
    C = torch.diag(torch.tensor([p['contrast']] * 3 + [1.0], dtype=torch.float64)) @ C
    C = (one - 2 * vv * p['lumaflip']) @ C
    K = torch.zeros(4, 4, dtype=torch.float64)  # Rodrigues: the matrix of v × …
    K[:3, :3] = torch.tensor(
        [[0.0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]], dtype=torch.float64
    )
    C = (one + math.sin(p['hue']) * K + (1 - math.cos(p['hue'])) * K @ K) @ C
    return (vv + (one - vv) * p['saturation']) @ C


def each(params):
    "The parameters of a batch as one dict of plain numbers an image."
    return [{k: v[i].tolist() for k, v in params.items()} for i in range(len(params['scale']))]


def fir(x, f, axis):
    "True convolution of every channel along an axis, only where the filter fits."
    k = f.flip(0).to(x).view((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
    return F.conv2d(x, k.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])


def double(x, f=SYM6):
    n, c, h, w = x.shape
    # a zero after every pixel
    z = F.pad(x.view(n, c, h, 1, w, 1), [0, 1, 0, 0, 0, 1]).reshape(n, c, 2 * h, 2 * w)
    return fir(fir(F.pad(z, [6, 5, 6, 5]), 2 * f, 2), 2 * f, 3)


def halve(x, f=SYM6.flip(0)):
    return fir(fir(F.pad(x, [5, 5, 5, 5]), f, 2), f, 3)[:, :, ::2, ::2]


def margins(G, h, w):
    """How far the corners of the batch's images reach beyond the image, and 6 pixels: left, right, above,
    below; at most what can be reflected."""
    cx, cy = (w - 1) / 2, (h - 1) / 2
    corners = G @ torch.tensor(
        [[-cx, cx, cx, -cx], [-cy, -cy, cy, cy], [1.0, 1, 1, 1]], dtype=G.dtype
    )
    x, y = corners[:, 0], corners[:, 1]
    need = (-x.min() + 6 - cx, x.max() + 6 - cx, -y.min() + 6 - cy, y.max() + 6 - cy)
    return [math.ceil(min(max(float(v), 0), n - 1)) for v, n in zip(need, (w, w, h, h))]


def apply_geometry(x, G, margin='batch'):
    "margin: 'batch', as far as this batch needs; 'full', as far as can be reflected."
    n, _, h, w = x.shape
    G = G.to(torch.float64)
    left, right, above, below = (w - 1, w - 1, h - 1, h - 1)
    if margin == 'batch':
        left, right, above, below = margins(G, h, w)
    big = double(F.pad(x, [left, right, above, below], mode='reflect'))
    H, W = big.shape[2:]

    # sample 2i of the doubled image stands at pixel i
    def place(n):
        return (torch.arange(2 * (n + 6), dtype=torch.float64) / 2 - 3) - (n - 1) / 2

    yo, xo = torch.meshgrid(place(h), place(w), indexing='ij')
    points = torch.stack([xo, yo, torch.ones_like(xo)]).flatten(1)
    xi, yi = (G[:, :2] @ points).view(n, 2, *xo.shape).unbind(1)
    gx = (2 * (2 * (xi + (w - 1) / 2 + left)) + 1) / W - 1
    gy = (2 * (2 * (yi + (h - 1) / 2 + above)) + 1) / H - 1
    how = dict(mode='bilinear', padding_mode='zeros', align_corners=False)
    seen = F.grid_sample(big, torch.stack([gx, gy], -1).to(x.dtype), **how)
    return halve(seen)[:, :, 3:-3, 3:-3]


def apply_colour(x, C):
    "C: (n, 4, 4). One channel takes the mean over the three rows."
    C = C[:, :3].to(x.dtype)
    if x.shape[1] == 1:
        row = C.mean(1)
        return x * row[:, :3].sum(1).view(-1, 1, 1, 1) + row[:, 3].view(-1, 1, 1, 1)
    return (C[:, :, :3] @ x.flatten(2) + C[:, :, 3:]).view(x.shape)


def augment(x, params, margin='batch'):
    "Everything, from `sample_parameters`' numbers; 1 or 3 channels."
    h, w = x.shape[2:]
    ps = each(params)
    x = apply_geometry(x, torch.stack([geometric_matrix(p, h, w) for p in ps]), margin)
    return apply_colour(x, torch.stack([colour_matrix(p) for p in ps]))
