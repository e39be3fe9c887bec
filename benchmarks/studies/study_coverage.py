"""Do the intervals of a study hold what they promise, where every image is a test image in turn?

    python benchmarks/studies/study_coverage.py [--sets 400] [--images 120]

Sets of images are drawn again and again from one population: two classes, a hundred features, of
which some tell the classes apart; in some sets three images come from one patient. Each set goes
through a study's own partitions, units and comparisons (`study.plan`, `study.answer`). The classifier
is a ridge regression, which takes no time. The arm adds images of a generator that was fitted to the
training part of each fold: a normal distribution of each class, moved by an error that each GAN has
for itself. The true difference is the mean over all sets. Counted is how often the 95 % interval of a
set holds it, how often p is below .05, and how the computed standard error compares with the spread
that was seen.
"""

import argparse

import numpy as np

from gan_covid.study.answer import differences
from gan_covid.study.measure import NETWORK
from gan_covid.study.plan import Material, Plan, partitions

D, TELLING = 100, 10


class Images:
    "Features in the place of prepared images."

    def __init__(self, table):
        self.table, self.images = table, None

    def __len__(self):
        return len(self.table)


def population(rng, n, grouped):
    "Features, classes and groups of one set."
    y = np.arange(n) % 2
    x = rng.normal(size=(n, D))
    x[:, :TELLING] += 0.42 * (2 * y - 1)[:, None]
    groups = np.arange(n)
    if grouped:  # three images of a patient, of one class
        groups = np.empty(n, int)
        for k in (0, 1):
            rows = np.flatnonzero(y == k)
            groups[rows] = 2 * (np.arange(len(rows)) // 3) + k
        x += rng.normal(size=(groups.max() + 1, D))[groups]
    return x, y, groups


def ridge(x, y, test, weight, rng):
    "Scores of a ridge regression on a bootstrap sample: runs differ as those of a network do."
    rows = rng.integers(len(x), size=len(x))
    x, y = x[rows], y[rows]
    w = np.linalg.solve(x.T @ x + weight * np.eye(D), x.T @ (2.0 * y - 1))
    p = 1 / (1 + np.exp(-2 * np.clip(test @ w, -20, 20)))
    return np.stack([1 - p, p], 1)


def draw(x, y, rng, kind):
    "Images of a generator that saw x: new ones of its normal distribution, or (no difference) its own again."
    out = []
    for k in (0, 1):
        mine = x[y == k]
        if kind == 'same':
            out.append(mine)
        else:
            shift = rng.normal(size=D) * 0.25  # what this GAN has got wrong
            out.append(mine.mean(0) + shift + rng.normal(size=mine.shape) * mine.std(0))
    return np.concatenate(out), np.repeat([0, 1], [len(o) for o in out])


def results_of(x, y, material, plan, rng, kind):
    "All runs of control and arm."
    out = []
    for p, splits in enumerate(partitions(material, plan)):
        for arm in ('original+repeated', 'original+generated'):
            if arm == 'original+generated' and p >= plan.seeds:
                continue
            scores = np.zeros((plan.runs, len(y), 2))
            for split in splits:
                train, test = split == 'train', split == 'test'
                more = draw(x[train], y[train], rng, 'same' if arm == 'original+repeated' else kind)
                xs, ys = np.concatenate([x[train], more[0]]), np.concatenate([y[train], more[1]])
                for r in range(plan.runs):
                    scores[r, test] = ridge(xs, ys, x[test], 30.0, rng)
            for r in range(plan.runs):
                test = {
                    'id': [f'{i:04}' for i in range(len(y))],
                    'group': [f'g{g}' for g in material.groups],
                    'y_true': y.tolist(),
                    'y_score': scores[r],
                }
                about = {'arm': arm, 'network': NETWORK, 'gan': p + 1, 'repeat': r, 'share': 1.0}
                out.append({**about, 'classes': ['no', 'yes'], 'positive': 'yes', 'test': test})
    return out


def simulate(n, grouped, kind, sets):
    import pandas as pd

    rows = []
    for s in range(sets):
        rng = np.random.default_rng([n, grouped, kind == 'same', s])
        x, y, groups = population(rng, n, grouped)
        table = pd.DataFrame({'label': np.array(['no', 'yes'])[y], 'split': None})
        material = Material(Images(table), groups, ['no', 'yes'], 'yes', True)
        plan = Plan('folds', 'accuracy', folds=5, repeats=5, runs=3, gan='dcgan', seeds=3, seed=s)
        row = differences(results_of(x, y, material, plan, rng, kind), plan).iloc[0]
        rows.append((row.difference, row.low, row.high, row.se, row.p, row['mean'], row.detectable))
    d, low, high, se, p, mean, seen = np.array(rows, float).T
    truth = 0.0 if kind == 'same' else d.mean()
    return {
        'images': n,
        'grouped': grouped,
        'arm': kind,
        'accuracy': mean.mean(),
        'true difference': truth,
        'coverage': ((low <= truth) & (truth <= high)).mean(),
        'seen': (p < 0.05).mean(),
        'computed error / true': np.sqrt((se**2).mean()) / d.std(ddof=1),
        'detectable': seen.mean(),
    }


def main():
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--sets', type=int, default=400)
    parser.add_argument('--images', type=int, nargs='+', default=[60, 120, 300])
    a = parser.parse_args()
    found = [
        simulate(n, grouped, kind, a.sets)
        for n in a.images
        for grouped in (False, True)
        for kind in ('same', 'fitted')
    ]
    print(pd.DataFrame(found).round(3).to_string(index=False))


if __name__ == '__main__':
    main()
