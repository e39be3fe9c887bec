"Splits: sizes, groups that stay together, fairness, repeats."

import numpy as np
import pytest
from dataset_files import fake_table, noise, put

from gan_covid.datasets.leaks import check_split
from gan_covid.datasets.own import load_folder
from gan_covid.datasets.public import load
from gan_covid.datasets.splits import _draw_sides, repeated_splits, stratified_split
from gan_covid.records import InputError


@pytest.mark.parametrize(
    'sizes, says',
    [
        ({'train': 500}, 'train cannot have'),
        ({'learn': 10}, "'learn' is no split"),
        ({'train': 10, 'test': 1}, 'test cannot have'),
        ({'test': {'a': 51, 'b': 1}}, 'test cannot have'),
    ],
)
def test_impossible_sizes(sizes, says):
    with pytest.raises(InputError, match=says):
        stratified_split(fake_table(100), sizes)


def test_class_with_one_image(tmp_path):
    for i in range(30):
        put(tmp_path / 'x' / f'{i}.png', noise(i))
    put(tmp_path / 'y' / '0.png', noise(99))
    with pytest.raises(InputError, match=r"class 'y' has 1 image\(s\)"):
        stratified_split(load_folder(tmp_path), {'train': 0.7, 'val': 0.1, 'test': 0.2})


def test_sizes():
    t = stratified_split(fake_table(100), {'train': None, 'test': {'a': 20, 'b': 10}})
    assert t.groupby(['label', 'split']).size().to_dict() == {
        ('a', 'test'): 20,
        ('a', 'train'): 30,
        ('b', 'test'): 10,
        ('b', 'train'): 40,
    }
    t = stratified_split(fake_table(100), {'train': 60, 'test': 20})
    assert t.split.isna().sum() == 20
    assert t.split.value_counts().to_dict() == {
        'train': 60,
        'test': 20,
    }
    assert stratified_split(
        fake_table(50), {'train': 0.8, 'val': 0.1, 'test': 0.1}
    ).split.value_counts().to_dict() == {'train': 40, 'val': 5, 'test': 5}


def test_groups_stay_together():
    rng = np.random.default_rng(0)
    who = rng.integers(0, 60, 300)
    t = stratified_split(
        fake_table(300, patient=lambda i: f'p{who[i]}-{i % 2}'),
        {'train': 200, 'val': 50, 'test': 50},
        seed=4,
    )
    assert t.groupby('patient').split.nunique().max() == 1
    assert check_split(t).empty
    assert abs((t.split == 'test').sum() - 50) <= 6
    both = fake_table(40)
    both['where'] = ['k' if i in (3, 8, 20) else None for i in range(40)]
    for seed in range(20):
        assert (
            stratified_split(both, {'train': 20, 'val': 10, 'test': 10}, seed, groups='where')
            .split[[3, 8, 20]]
            .nunique()
            == 1
        )


def test_one_giant_group_is_reported():
    with pytest.warns(UserWarning, match='do not fit the sizes'):
        stratified_split(
            fake_table(40, labels=('a',), patient=lambda i: 'p' if i < 30 else None),
            {'train': 20, 'test': 20},
        )


def test_split_is_uniform():
    "Every image gets into the test set about equally often, alone or in a group."
    size = np.array([[4]] * 6 + [[1]] * 36)  # six patients with four images, 36 images alone
    need = np.array([[40], [20]])
    share = np.mean([_draw_sides(size, need, seed)[0] for seed in range(600)], axis=0)
    assert abs(share - 1 / 3).max() < 0.1
    assert abs(share[:6].mean() - share[6:].mean()) < 0.03


def test_repeated_splits_keep_a_given_split():
    t = stratified_split(fake_table(100), {'train': 60, 'val': 20, 'test': 20}, seed=9)
    out = repeated_splits(t, {'train': 60, 'val': 20, 'test': 20}, seed=1, repeats=4)
    assert out[0].equals(t)
    assert all(((o.split == 'train') == (t.split == 'train')).all() for o in out)
    assert [o.split.tolist() for o in out] == [
        o.split.tolist()
        for o in repeated_splits(t, {'train': 60, 'val': 20, 'test': 20}, seed=1, repeats=4)
    ]


def test_real_head_ct_repeats(real_data):
    tables = repeated_splits(load('head_ct', real_data), seed=1, repeats=5)
    train = set(tables[0].image[tables[0].split == 'train'])
    assert all(set(t.image[t.split == 'train']) == train and check_split(t).empty for t in tables)
    assert len({frozenset(t.image[t.split == 'test']) for t in tables}) == 5
