"gan_covid.evaluation: rates and AUC against scikit-learn, results as records hold them, bad input."

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics as skm

from gan_covid import evaluation as ev
from gan_covid.evaluation import simulated_result as result
from gan_covid.records import InputError
from gan_covid.summaries import summarise

FOUR = ('COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia')


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('n', [1, 2, 7, 200])
def test_binary_rates_are_scikit_learns(seed, n):
    rng = np.random.default_rng([seed, n])
    y, s = rng.integers(0, 2, n), rng.random(n).round(1)
    p = (s > 0.5).astype(int)
    got, nan = ev.rates(ev.confusion(y, p)), dict(zero_division=np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert got['accuracy'] == pytest.approx(skm.accuracy_score(y, p))
        assert got['sensitivity'] == pytest.approx(skm.recall_score(y, p, **nan), nan_ok=True)
        negatives = skm.recall_score(y, p, pos_label=0, **nan)
        assert got['specificity'] == pytest.approx(negatives, nan_ok=True)
        assert got['precision'] == pytest.approx(skm.precision_score(y, p, **nan), nan_ok=True)
        assert got['f1'] == pytest.approx(skm.f1_score(y, p, **nan), nan_ok=True)
        if len(set(y)) == 2:
            assert got['mcc'] == pytest.approx(skm.matthews_corrcoef(y, p))
            assert ev.auc(y, s) == pytest.approx(skm.roc_auc_score(y, s))
        else:
            assert np.isnan(got['mcc']) and np.isnan(ev.auc(y, s))


def test_four_classes_are_scikit_learns():
    o = ev.outcome(result('original', 0, 1.0, range(200), FOUR))
    got, y, p = ev.measure(o['y_true'], o['y_score']), o['y_true'], o['y_score'].argmax(1)
    assert got['macro_f1'] == pytest.approx(skm.f1_score(y, p, average='macro'))
    assert got['macro_precision'] == pytest.approx(skm.precision_score(y, p, average='macro'))
    assert got['macro_recall'] == pytest.approx(skm.balanced_accuracy_score(y, p))
    assert got['mcc'] == pytest.approx(skm.matthews_corrcoef(y, p))
    assert got['macro_auc'] == pytest.approx(skm.roc_auc_score(y, o['y_score'], multi_class='ovr'))


def test_a_stack_of_matrices_is_each_of_them():
    cms = np.random.default_rng(0).integers(0, 4, (50, 2, 2))
    cms[0] = [[3, 0], [4, 0]]
    stack = ev.rates(cms)
    for i, cm in enumerate(cms):
        for k, v in ev.rates(cm).items():
            assert stack[k][i] == pytest.approx(v, nan_ok=True), (k, cm)


def test_the_positive_class_is_found_by_name():
    ct = result('original', 0, 1.0, classes=('COVID', 'NonCOVID'))
    y, score = ct['test']['y_true'], ct['test']['y_score']
    other = {'y_true': [1 - i for i in y], 'y_score': [s[::-1] for s in score]}
    swapped = {**ct, 'classes': ['NonCOVID', 'COVID'], 'test': {**ct['test'], **other}}
    a, b = (ev.table([r]).iloc[0] for r in (ct, swapped))
    for k in ev.METRICS:
        assert a[k] == pytest.approx(b[k]), k
    names = {'y_true': [ct['classes'][i] for i in y]}
    assert ev.table([{**ct, 'test': {**ct['test'], **names}}]).equals(ev.table([ct]))
    animals = result('a', 0, 1.0, classes=('cat', 'dog'))
    with pytest.raises(InputError, match='positive class'):
        ev.table([animals])
    assert len(ev.table([animals], positive='dog')) == 1


def test_weights_are_repeated_images():
    o = ev.outcome(result('original', 0, 0.7))
    w = np.random.default_rng(0).integers(0, 3, 60)
    again = ev.measure(np.repeat(o['y_true'], w), np.repeat(o['y_score'], w, axis=0))
    for k, v in ev.measure(o['y_true'], o['y_score'], 1, w).items():
        assert v == pytest.approx(again[k]), k


def test_records_are_read_as_results():
    r = result('original', 0, 1.0)
    record = {
        'profile': 'smoke',
        'step': 'classify',
        'parameters': {'network': 'ResNet50'},
        'results': json.loads(json.dumps(r)),
    }
    assert ev.table([record]).equals(ev.table([r]))
    assert ev.table([record], by=('network',)).network.item() == 'ResNet50'


@pytest.mark.parametrize(
    'change, says',
    [
        ({'y_true': [0] * 59}, '59'),
        ({'id': ['0'] * 60}, 'twice'),
        ({'y_true': [2] * 60}, 'whole numbers from 0 to 1'),
        ({'y_true': ['bleeding'] * 60}, "unknown class 'bleeding'"),
        ({'y_score': [[np.nan, 1.0]] * 60}, 'not finite'),
        ({'y_score': [[0.2, 0.3, 0.5]] * 60}, '2 classes but 3 scores'),
        ({'y_score': None}, 'y_score'),
        ({'id': [], 'y_true': [], 'y_score': np.zeros((0, 2))}, 'at least one image'),
        ({'group': ['P1', 'P2']}, '2 entries for 60 images'),
    ],
)
def test_broken_results_are_named(change, says):
    r = result('original', 3, 1.0)
    with pytest.raises(InputError, match='original/3') as e:
        summarise([{**r, 'test': {**r['test'], **change}}])
    assert says in str(e.value)


def test_other_bad_input():
    with pytest.raises(InputError, match='test.id'):
        ev.outcome({'arm': 'original', 'repeat': 0, 'test': {}})
    with pytest.raises(InputError, match='none given'):
        ev.by_arm([])
    with pytest.raises(InputError, match="no 'kind'"):
        ev.by_arm([result('original', 0, 1.0)], by=('kind',))
    with pytest.raises(InputError, match='square'):
        ev.rates([[1, 2, 3]])
    with pytest.raises(InputError, match='one length'):
        ev.confusion([0, 1], [1])
