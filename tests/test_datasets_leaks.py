"Leaks: by patient, by pixels, and those that ids do not show."

import numpy as np
import pandas as pd
import pytest
from dataset_files import fake_table, file_names

from gan_covid.datasets import leaks
from gan_covid.datasets.leaks import check_split, patient_leaks
from gan_covid.datasets.loey import _alike, loey_split
from gan_covid.datasets.public import load
from gan_covid.images import resize
from gan_covid.records import InputError


@pytest.fixture(scope='module')
def covid_ct(real_data):
    return load('covid_ct', real_data)


def test_patient_leaks():
    ids = ['Patient 7', 'patient_07', ' Patient  7', 'Patient 70', 'Patient 70', 'P-1', None, None]
    t = fake_table(
        8,
        patient=lambda i: ids[i],
        split=lambda i: ['train', 'test', 'train', 'val', 'val', 'test', 'train', 'test'][i],
    )
    assert patient_leaks(t).values.tolist() == [['Patient 7 = patient_07', 'a, b', 2, 0, 1]]
    assert list(patient_leaks(t)) == ['patient', 'label', 'train', 'val', 'test']
    t.loc[1, 'split'] = None
    assert patient_leaks(t).empty
    assert list(patient_leaks(t)) == ['patient', 'label', 'train', 'val', 'test']
    assert patient_leaks(fake_table(4)).empty


def test_real_patients_and_pixels_of_the_official_split(covid_ct):
    assert covid_ct.patient.nunique() == 384 == covid_ct.patient.map(leaks._person).nunique()
    assert patient_leaks(covid_ct).empty
    assert patient_leaks(loey_split(covid_ct)).empty
    assert pd.Series([leaks.pixel_hash(p) for p in covid_ct.image]).is_unique
    t, most = covid_ct.copy(), covid_ct.patient.value_counts().idxmax()
    t.loc[t.index[t.patient == most][0], 'split'] = (
        'val' if t.split[t.patient == most].iloc[0] != 'val' else 'test'
    )
    assert patient_leaks(t).patient.tolist() == [most]
    assert check_split(t)[['kind', 'key']].values.tolist() == [['patient', most]]


def test_real_leaks_that_ids_do_not_show(covid_ct):
    "The same slices under both labels, and persons under two ids, on both sides of the official split."
    t = covid_ct.assign(name=file_names(covid_ct)).set_index('name')
    for test, train in (('kjr-21-e24-p5-29.png', '71%0.jpg'), ('kjr-21-e24-p5-31.png', '71%1.jpg')):
        assert (t.split[test], t.label[test]) == ('test', 'COVID')
        assert (t.split[train], t.label[train]) == ('train', 'NonCOVID')
        assert _alike((t.image[test], t.image[train]))
    t.loc[['2020.03.12.20034686-p17-91-3.png', '2020.03.12.20034686-p17-91-4.png'], 'patient'] = [
        'Patient 168',
        'Patient 169',
    ]  # as the pictures say: Pt 1, Pt 2
    assert patient_leaks(t).values.tolist() == [
        ['Patient 168', 'COVID', 1, 0, 1],
        ['Patient 169', 'COVID', 1, 0, 1],
    ]


NAMED = {  # pairs that were found by eye
    'radiography': [(489, 1344), (97, 100), (130, 1221), (127, 1197), (166, 220), (151, 392)],
    'head_ct': [('198.png', '199.png')],
    'covid_ct': [('kjr-21-e24-p5-29.png', '71%0.jpg')],
}


@pytest.mark.parametrize('name', list(NAMED))
def test_pairs_that_the_eye_found_are_found(name, real_data):
    t = load(name, real_data)
    pairs = leaks.near_duplicates(t)
    files = t.image.map(lambda p: p.rsplit('/', 1)[-1])
    found = {frozenset((files[r.first], files[r.second])) for r in pairs.itertuples()}
    for a, b in NAMED[name]:
        names = (f'COVID-{a}.png', f'COVID-{b}.png') if name == 'radiography' else (a, b)
        assert frozenset(names) in found
    assert len(pairs) < 30
    left = t[leaks.one_of_each(t, pairs)]
    again = leaks.near_duplicates(left.reset_index(drop=True))
    assert not len(again)


def test_brightness_and_contrast_change_nothing_and_another_person_does():
    rng = np.random.default_rng(0)
    a, b = (resize(rng.integers(0, 256, (12, 12), dtype=np.uint8), 224) for _ in range(2))
    darker = (a * 0.5 + 20).astype(np.uint8)
    v = [leaks.gray_steps(x) for x in (a, darker, 255 - a, b)]
    assert v[0] @ v[1] > 0.99 and v[0] @ v[2] < -0.99 and abs(v[0] @ v[3]) < 0.4


def test_the_test_image_stays_and_contradictions_go():
    t = fake_table(6, split=lambda i: ['train', 'test', 'train', 'val', 'train', None][i])
    t['label'] = ['a', 'a', 'b', 'a', 'a', 'b']
    pairs = pd.DataFrame({'first': [0, 3, 2], 'second': [1, 4, 5], 'correlation': 0.95})
    assert leaks.one_of_each(t, pairs).tolist() == [False, True, True, True, False, False]
    t['label'] = ['b', 'a', 'b', 'b', 'a', 'a']
    # a test image stays though its twin has another label; two others that disagree go
    assert leaks.one_of_each(t, pairs).tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize('least', [0, -1, 1.5])
def test_a_likeness_that_cannot_be(least):
    with pytest.raises(InputError, match='near='):
        leaks.near_duplicates(fake_table(3), least)
