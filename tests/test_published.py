"The published numbers, their arithmetic and what does not add up."

import numpy as np
import pytest

from gan_covid import published as pub
from gan_covid.records import InputError


def test_inventory_is_complete():
    want = (
        {f'T{i}' for i in range(1, 24)}
        | {f'F{i}' for i in range(1, 31)}
        | {f'X{i}' for i in range(1, 6)}
        | {f'O{i}' for i in (*range(1, 13), 15, 17)}
    )
    assert set(pub.INVENTORY) == want and set(pub.PUBLISHED) <= want
    assert {v['paper'] for v in pub.INVENTORY.values()} == set(pub.PAPERS)
    assert set(pub.ids('head_ct')) == {
        'T19',
        'T20',
        'T21',
        'T22',
        'F30',
        'X1',
        'X5',
        'O11',
        'O12',
        'O15',
    }
    with pytest.raises(InputError, match='unknown'):
        pub.ids('nobody2020')


def test_every_id_can_be_asked_and_every_value_is_marked():
    for i in pub.INVENTORY:
        t = pub.published(i)
        assert list(t.columns[:5]) == ['id', 'name', 'value', 'mark', 'remark'] and set(
            t.mark
        ) <= set('SOCI')
        assert t.name.is_unique, i
    with pytest.raises(InputError, match='T99'):
        pub.published('T99')
    with pytest.raises(InputError, match='nothing'):
        pub.value('T1', 'nothing')


def test_result_blocks_give_the_confusion_matrices():
    want = {
        'T5': (148, 52, 200, 0),
        'T6': (192, 8, 185, 15),
        'T7': (180, 20, 198, 2),
        'T8': (177, 23, 199, 1),
        'T9': (177, 23, 197, 3),
        'T10': (197, 3, 170, 30),
    }
    for i, counts in want.items():
        t = pub.published(i).set_index('name')
        assert (
            tuple(t.value[['tp', 'fn', 'tn', 'fp']]) == counts
            and (t.mark[['tp', 'fn', 'tn', 'fp']] == 'C').all()
        )
        assert t.value['fnr'] == pytest.approx(t.value['printed_fpr'])
    true = [pub.published(i).set_index('name').value['fpr'] for i in want]
    assert true == pytest.approx([0, 0.075, 0.01, 0.005, 0.015, 0.15])


def test_sums():
    assert (
        sum(pub.value('T1', c) for c in ('COVID', 'Lung_Opacity', 'Viral Pneumonia', 'Normal'))
        == 21165
    )
    assert [
        pub.value('T1', c) - pub.value('T2', f'test/{c}') - pub.value('T2', f'train/{c}')
        for c in ('COVID', 'Normal')
    ] == [467, 0]


def test_smallest_test_set_against_brute_force():
    "The search and a plain loop over all confusion matrices of up to 12 + 12 images agree."
    rng = np.random.default_rng(0)
    for _ in range(5):
        p, q = rng.integers(2, 12, 2)
        tp, tn = rng.integers(0, p + 1), rng.integers(0, q + 1)
        acc, sens, spec = (round(v, 4) for v in ((tp + tn) / (p + q), tp / p, tn / q))
        fits = [
            P + Q
            for P in range(1, 13)
            for Q in range(1, 13)
            for a in range(P + 1)
            for b in range(Q + 1)
            if abs(a / P - sens) <= 0.50001e-4
            and abs(b / Q - spec) <= 0.50001e-4
            and abs((a + b) / (P + Q) - acc) <= 0.50001e-4
        ]
        assert pub.smallest_test_set(acc, sens, spec)['n'] == min(fits)


def test_x1_rows():
    rows = {
        r: [pub.value('X1', f'{r}/{m}') for m in ('accuracy', 'sensitivity', 'specificity')]
        for r in ('original', 'DCGAN only', 'both')
    }
    assert (
        not pub.accuracy_possible(*rows['DCGAN only'])
        and pub.smallest_test_set(*rows['DCGAN only']) is None
    )
    assert (
        pub.smallest_test_set(*rows['original'])['n'] == 745
        and pub.smallest_test_set(*rows['both'])['n'] == 1185
    )

    # nor does cutting digits off instead of rounding make it fit the 200 images there are
    def cut(v):
        return v + 0.5e-4

    assert all(
        pub.smallest_test_set(*map(cut, rows[r]), largest=200) is None for r in ('original', 'both')
    )


def test_fractions():
    assert [
        pub.as_fraction_of(v, 199)
        for v in (
            0.6583,
            0.7186,
            0.7538,
            0.7839,
            0.7638,
            0.7688,
            0.6985,
            0.7035,
            0.8090,
            0.8040,
            0.7337,
            0.8291,
        )
    ] == [131, 143, 150, 156, 152, 153, 139, 140, 161, 160, 146, 165]
    assert pub.as_fraction_of(0.7038, 199) is None and pub.as_fraction_of(0.7657, 199) is None
    assert all(
        pub.as_fraction_of(v, 1600, 6)
        for v in (0.8875, 0.9475, 0.949375, 0.904375, 0.885, 0.905625)
    )
    assert all(
        pub.as_fraction_of(pub.value('X5', f'val accuracy/{i}'), 120) is None for i in range(1, 6)
    )


def test_layers():
    def total(n):
        return int(pub.network(n).trainable.sum())

    assert (
        total('T20 printed'),
        total('T21 printed'),
        total('T20 settled'),
        total('T21 settled'),
    ) == (576_129, 5_277_568, 791_169, 4_870_785)
    assert (
        int(pub.network('T20 settled').non_trainable.sum()),
        int(pub.network('T21 settled').non_trainable.sum()),
    ) == (1_024, 66_560)
    with pytest.raises(InputError, match='flatten first'):
        pub.count_layers([('dense', 1)], (4, 4, 1))
    with pytest.raises(InputError, match='reshaped'):
        pub.count_layers([('dense', 262144), ('reshape', (45, 45, 128))], (100,))
    with pytest.raises(InputError, match='LAYERS'):
        pub.network('T1')


def test_layers_agree_with_the_networks_that_are_trained():
    "The printed lists are counted without an engine; Keras must come to the same."
    pytest.importorskip('keras', reason='no Keras in this environment')
    networks = pytest.importorskip(
        'gan_covid.dcgan.networks', reason='no engine in this environment'
    )
    assert networks.count(networks.head_ct_generator()) == pub.value(
        'T21', 'parameters'
    ) and networks.count(networks.head_ct_discriminator()) == pub.value('T20', 'parameters')


@pytest.mark.parametrize('paper', list(pub.PAPERS))
def test_does_not_add_up_is_complete_text(paper):
    t = pub.does_not_add_up(paper)
    assert list(t.columns) == ['id', 'claim', 'computed', 'verdict', 'explanation'] and set(
        t.verdict
    ) <= set(pub.VERDICTS)
    assert (
        (t.map(lambda v: isinstance(v, str) and bool(v.strip()) and 'nan' not in v.lower().split()))
        .all()
        .all()
    )
    assert set(i for ids in t.id for i in ids.replace('–', ', ').split(', ')) <= set(pub.INVENTORY)
    assert (
        pub.does_not_add_up(paper).equals(t)
        and (pub.does_not_add_up(paper, everything=False).verdict != 'holds').all()
    )


def test_the_checks_follow_the_numbers(monkeypatch):
    "Verdicts are computed: mend a published number and the verdict turns."
    mended = [(r[0], 0.87, *r[2:]) if r[0] == 'accuracy' else r for r in pub.PUBLISHED['T5']]
    monkeypatch.setitem(pub.PUBLISHED, 'T5', mended)
    t = pub.does_not_add_up('wmlq2022')
    assert t.verdict[t.id == 'T5'].item() == 'holds'
    monkeypatch.setitem(
        pub.PUBLISHED,
        'X1',
        [(r[0], 0.75, *r[2:]) if r[0] == 'DCGAN only/accuracy' else r for r in pub.PUBLISHED['X1']],
    )
    t = pub.does_not_add_up('head_ct')
    assert 'impossible' not in set(t.verdict)


def test_bounds_of_mcnemar():
    low, high = pub.mcnemar_bounds(150, 161, 199)
    assert (
        low == pytest.approx(2 * 0.5**11)
        and 0.2 < high < 0.4
        and pub.mcnemar_bounds(10, 10, 20) == (1.0, 1.0)
    )
    with pytest.raises(InputError, match='not possible'):
        pub.mcnemar_bounds(5, 30, 20)


def test_not_stated():
    for paper in pub.PAPERS:
        t = pub.not_stated(paper)
        assert (
            list(t.columns) == ['what', 'default', 'reason', 'mark']
            and t.what.is_unique
            and len(t) >= 5
        )
    with pytest.raises(InputError, match='unknown'):
        pub.not_stated('x')


def test_bad_rates():
    with pytest.raises(InputError, match='percent'):
        pub.counts_from_rates(74, 1, 200, 200)
    with pytest.raises(InputError, match='at least one'):
        pub.counts_from_rates(0.7, 1, 0, 200)
    assert not pub.counts_from_rates(0.7237, 0.8304, 11, 11)['exact']


def test_texts_say_what_the_settings_are():
    "Lines of the notebooks and modules that name a default, held against the default itself; and authors against CITATION.cff."
    import re
    from pathlib import Path

    import yaml

    from gan_covid.protocols import PROTOCOLS
    from gan_covid.records import read_json

    root = Path(__file__).resolve().parent.parent
    default = {paper: {r['what']: r for r in rows} for paper, rows in pub.NOT_STATED.items()}

    def cells(name):
        return [''.join(c['source']) for c in read_json(root / 'nbs' / f'{name}.ipynb')['cells']]

    fit = re.search(r"^fit: str = '(\w+)'", cells('runs/prepare')[1], re.M)[1]
    said = default['head_ct']['"zero-padded" and "scaled down to 32×32"']
    assert fit == 'pad' and said['default'].startswith('padded')
    head = default['ct_report']['fully connected layers on VGG-16 and ResNet50, frozen layers'][
        'default'
    ]
    for name in ('vgg16', 'resnet50'):
        p = PROTOCOLS[f'ct_report-{name}']
        assert (
            f'dense {p.dense[0]}, dropout {p.dropout}, dense {p.dense[1]}, dense 2'.replace(
                '0.', '.'
            )
            in head
        )
    p = PROTOCOLS['head_ct']
    assert (
        f'until {p.patience} epochs bring no progress, at most {p.epochs}'
        in default['head_ct']["length of the classifier's training"]['default']
    )
    assert (
        default['head_ct']['how many generated images of each class']['mark'] == 'O'
        and pub.value('X5', 'images/generated') == 200
    )
    sources = {
        m[1]: r
        for r in yaml.safe_load((root / 'CITATION.cff').read_text(encoding='utf-8'))['references']
        if (m := re.match(r'source (\w+)', r.get('notes', '')))
    }
    assert set(sources) == set(pub.PAPERS)
    for key, r in sources.items():
        line = cells(f'papers/{key}')[0].splitlines()[1]
        for a in r['authors']:
            assert a['family-names'] in line and a['family-names'] in pub.PAPERS[key], (key, a)
        if key in ('wmlq2022', 'mgv2023'):
            assert r['title'] in line and r['title'].lower() in pub.PAPERS[key].lower()
