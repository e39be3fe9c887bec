"Transfer between networks of other sizes, channels, classes and first blocks."

import pytest
import torch
from test_stylegan2_ops import distance
from test_stylegan2_storage import latents, refused, small

from gan_covid.stylegan2.networks import Discriminator, Generator
from gan_covid.stylegan2.transfer import transfer

pytestmark = pytest.mark.usefixtures('one_thread')


def states(n):
    return {k: v.clone() for k, v in n.state_dict().items()}


@pytest.mark.parametrize('kind', [Generator, Discriminator])
def test_transfer_to_an_equal_network_copies_all(kind):
    a, b = small(kind, 0, c_dim=2), small(kind, 1, c_dim=2)
    assert transfer(a, b) == []
    assert all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())


def test_transfer_adapts_image_channels():
    gray, z = torch.randn(4, 1, 16, 16), latents()
    for n, m in ((3, 1), (1, 3), (3, 2)):
        a, b = small(channels=n), small(Generator, 1, channels=m)
        assert transfer(a, b)
        assert torch.allclose(
            b(z, noise='const'),
            a(z, noise='const').mean(1, keepdim=True).expand(-1, m, -1, -1),
            atol=1e-4,
        )
        for k in ('resnet', 'skip', 'orig'):
            a, b = (
                small(Discriminator, channels=n, kind=k),
                small(Discriminator, 1, channels=m, kind=k),
            )
            assert transfer(a, b)
            assert distance(b(gray.expand(-1, m, -1, -1)), a(gray.expand(-1, n, -1, -1))) < 1e-4


def test_transfer_between_conditional_and_not():
    z = latents()
    plain, two, three = small(), small(Generator, 1, c_dim=2), small(Generator, 2, c_dim=3)
    before = states(two)
    said = transfer(plain, two)
    assert torch.equal(two.mapping.fc0.weight[:, 8:], before['mapping.fc0.weight'][:, 8:])
    assert torch.equal(two.mapping.embed.bias, before['mapping.embed.bias'])
    assert torch.allclose(two.mapping.fc0.weight[:, :8], plain.mapping.fc0.weight * 2**0.5)
    assert torch.equal(two.mapping.w_avg, plain.mapping.w_avg)
    assert len(said) == 2
    with torch.no_grad():
        two.mapping.fc0.weight[:, 8:] = 0
    assert torch.allclose(two(z, [0, 1, 1, 0], noise='const'), plain(z, noise='const'), atol=1e-4)
    other = small(Generator, 3)
    said = transfer(two, other)
    assert torch.allclose(other(z, noise='const'), plain(z, noise='const'), atol=1e-4)
    assert any('not used' in s and 'embed' in s for s in said)
    before = states(three)
    said = transfer(two, three)
    assert said == [
        'mapping.embed.weight, mapping.embed.bias: left fresh, the source has 2 classes, the target 3 classes'
    ]
    assert all(
        torch.equal(three.state_dict()[k], before[k] if 'embed' in k else v)
        for k, v in two.state_dict().items()
    )


def test_transfer_between_conditional_discriminators():
    plain, two, three = (
        small(Discriminator),
        small(Discriminator, 1, c_dim=2),
        small(Discriminator, 2, c_dim=3),
    )
    before = states(two)
    said = transfer(plain, two)
    assert torch.equal(two.b8x8.conv0.weight, plain.b8x8.conv0.weight)
    assert torch.equal(two.b4x4.out.weight, before['b4x4.out.weight'])
    assert torch.equal(two.mapping.fc3.weight, before['mapping.fc3.weight'])
    assert any('b4x4.out.weight' in s and 'another shape' in s for s in said)
    assert any('no classes' in s for s in said)
    said = transfer(two, three)
    assert len(said) == 1
    assert 'mapping.embed.weight, mapping.embed.bias' in said[0]
    assert torch.equal(three.mapping.fc7.weight, two.mapping.fc7.weight)


def test_transfer_between_sizes_counts_from_the_coarse_end():
    for a, b in ((16, 32), (32, 16), (16, (48, 32)), ((48, 32), 16), (8, (40, 32))):
        width = (10_000, 8)
        G, H, D, E = (
            small(size=a, width=width),
            small(Generator, 1, size=b, width=width),
            small(Discriminator, size=a, width=width),
            small(Discriminator, 1, size=b, width=width),
        )
        before = states(E)
        said, dsaid = transfer(G, H), transfer(D, E)
        for x, y in zip(G.synthesis.sizes, H.synthesis.sizes):
            p, q = (getattr(n.synthesis, f'b{h}x{w}') for n, (h, w) in ((G, x), (H, y)))
            assert torch.equal(p.conv1.weight, q.conv1.weight)
            assert torch.equal(p.torgb.affine.weight, q.torgb.affine.weight)
            assert x != y or torch.equal(p.conv1.noise_const, q.conv1.noise_const)
        for x, y in zip(D.sizes[::-1][1:], E.sizes[::-1][1:]):
            p, q = (getattr(n, f'b{h}x{w}') for n, (h, w) in ((D, x), (E, y)))
            assert torch.equal(p.conv0.weight, q.conv0.weight)
            assert torch.equal(p.skip.weight, q.skip.weight)
        if len(D.sizes) < len(E.sizes):
            finest = 'b%dx%d' % E.sizes[0]
            assert torch.equal(
                E.state_dict()[f'{finest}.conv0.weight'], before[f'{finest}.conv0.weight']
            )
            assert any(
                finest[1:] in s and 'levels that the source lacks' in s for s in said + dsaid
            )
        if len(D.sizes) > len(E.sizes):
            assert any('not used of the source' in s and '%dx%d' % D.sizes[0] in s for s in said)


def test_transfer_between_first_blocks_keeps_the_response():
    "A first block of another size: features that are the same everywhere give the same."
    a, b = small(Discriminator, size=16), small(Discriminator, 1, size=(24, 20))
    transfer(a, b)
    x = torch.randn(4, 16, 1, 1)
    level = (
        a.b4x4.fc(x.expand(-1, -1, 4, 4).flatten(1)),
        b.b6x5.fc(x.expand(-1, -1, 6, 5).flatten(1)),
    )
    assert distance(*level[::-1]) < 0.35
    assert (
        distance(
            level[1],
            small(Discriminator, 1, size=(24, 20)).b6x5.fc(x.expand(-1, -1, 6, 5).flatten(1)),
        )
        > 0.5
    )
    const = torch.zeros(16, 4, 4)
    const[:, :2] = 1.0
    G, H = small(), small(Generator, 1, size=(24, 16))
    with torch.no_grad():
        G.synthesis.b4x4.const.copy_(const)
    transfer(G, H)
    assert H.synthesis.b6x4.const[:, :2].min() == 1 and H.synthesis.b6x4.const[:, -2:].max() == 0


def test_transfer_names_what_does_not_fit():
    said = transfer(small(width=(96, 16)), small(Generator, 1, width=(96, 12), mapping_layers=4))
    assert any('another shape' in s for s in said)
    assert any('2 layers in the source and 4' in s for s in said)
    assert any('mapping.fc2' in s and 'nothing in this place' in s for s in said)
    said = transfer(small(Discriminator, kind='resnet'), small(Discriminator, kind='skip'))
    assert any('fromrgb' in s for s in said)
    assert any('skip.weight' in s and 'not used' in s for s in said)
    for pair in ((small(), small(Discriminator)), (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))):
        refused(lambda: transfer(*pair), 'two generators or two discriminators')
