"The published numbers: what the data files hold, and that they come with the package."

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from gan_covid import published as pub
from gan_covid.notebooks import code_hash
from gan_covid.records import InputError, read_json

ROOT = Path(__file__).resolve().parent.parent


def test_inventory_is_complete():
    numbers = {'T': range(1, 24), 'F': range(1, 31), 'X': range(1, 6), 'O': (*range(1, 13), 15, 17)}
    want = [f'{letter}{i}' for letter, some in numbers.items() for i in some]
    assert list(pub.INVENTORY) == want and set(pub.PUBLISHED) <= set(want)
    assert {v['paper'] for v in pub.INVENTORY.values()} == set(pub.PAPERS)
    head = ['T19', 'T20', 'T21', 'T22', 'F30', 'X1', 'X5', 'O11', 'O12', 'O15']
    assert pub.ids('head_ct') == head


def test_every_id_can_be_asked_and_every_value_is_marked():
    for i in pub.INVENTORY:
        t = pub.published(i)
        assert list(t.columns[:5]) == ['id', 'name', 'value', 'mark', 'remark']
        assert set(t.mark) <= set(pub.MARKS) and t.name.is_unique, i
    with pytest.raises(InputError, match='T99'):
        pub.published('T99')


@pytest.mark.parametrize('paper', pub.SOURCES)
def test_files_hold_nothing_that_is_not_read(paper):
    read = pub.read_source(paper)
    assert set(read) <= {'source', 'items', 'networks', 'not_stated', 'primary'}
    for id, item in read['items'].items():
        assert set(item) <= {'title', 'mark', 'remark', 'factors', 'values'}, id
        for name, v in item.get('values', {}).items():
            assert not isinstance(v, dict) or set(v) <= set(pub.Value._fields), (id, name)


def test_no_name_stands_twice_in_a_file():
    "YAML would take the last one without a word."

    def unique(loader, node):
        names = [loader.construct_object(key) for key, _ in node.value]
        assert len(set(names)) == len(names), names
        return loader.construct_mapping(node, deep=True)

    loader = type('Strict', (yaml.SafeLoader,), {})
    loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique)
    for paper in pub.SOURCES:
        text = (ROOT / 'gan_covid' / 'sources' / f'{paper}.yaml').read_text(encoding='utf-8')
        assert yaml.load(text, loader) == pub.read_source(paper)


def test_result_blocks_give_the_confusion_matrices():
    want = {
        'T5': [148, 52, 200, 0],
        'T6': [192, 8, 185, 15],
        'T7': [180, 20, 198, 2],
        'T8': [177, 23, 199, 1],
        'T9': [177, 23, 197, 3],
        'T10': [197, 3, 170, 30],
    }
    counts = ['tp', 'fn', 'tn', 'fp']
    tables = {i: pub.published(i).set_index('name') for i in want}
    assert {i: t.value[counts].tolist() for i, t in tables.items()} == want
    for t in tables.values():
        assert set(t.mark[counts]) == {'C'}
        assert t.value['fnr'] == pytest.approx(t.value['printed_fpr'])
    true = [t.value['fpr'] for t in tables.values()]
    assert true == pytest.approx([0, 0.075, 0.01, 0.005, 0.015, 0.15])


def test_layers():
    def total(name, column='trainable'):
        return int(pub.network(name)[column].sum())

    assert total('T20 printed') == 576_129 and total('T20 settled') == 791_169
    assert total('T21 printed') == 5_277_568 and total('T21 settled') == 4_870_785
    assert total('T20 settled', 'non_trainable') == 1_024
    assert total('T21 settled', 'non_trainable') == 66_560
    assert total('T16 generator 128') == 27_269_505 and total('T16 discriminator 128') == 103_105
    assert total('T16 generator 256') == 26_876_289 and total('T16 discriminator 256') == 299_713
    assert total('T17 CNN 128') == 697_186 and total('T17 CNN 256') == 2_270_050
    with pytest.raises(InputError, match='LAYERS'):
        pub.network('T1')


@pytest.mark.slow
def test_layers_agree_with_the_networks_that_are_trained():
    "The printed lists are counted without an engine; Keras must come to the same."
    pytest.importorskip('keras', reason='no Keras in this environment')
    networks = pytest.importorskip('gan_covid.dcgan.networks', reason='no engine here')
    assert networks.count(networks.head_ct_generator()) == pub.value('T21', 'parameters')
    assert networks.count(networks.head_ct_discriminator()) == pub.value('T20', 'parameters')


def cells(name):
    return [''.join(c['source']) for c in read_json(ROOT / 'nbs' / f'{name}.ipynb')['cells']]


def test_defaults_are_those_of_the_settings():
    "What `not_stated` says that is done here, held against the default itself."
    from gan_covid.protocols import PROTOCOLS

    said = {p: {r['what']: r['default'] for r in rows} for p, rows in pub.NOT_STATED.items()}
    head, report = said['head_ct'], said['ct_report']
    assert re.search(r"^fit: str = '(\w+)'", cells('runs/prepare')[1], re.M)[1] == 'pad'
    assert head['"zero-padded" and "scaled down to 32×32"'].startswith('padded')
    for name in ('vgg16', 'resnet50'):
        p = PROTOCOLS[f'ct_report-{name}']
        layers = f'dense {p.dense[0]}, dropout {p.dropout}, dense {p.dense[1]}, dense 2'
        text = report['fully connected layers on VGG-16 and ResNet50, frozen layers']
        assert layers.replace('0.', '.') in text
    p = PROTOCOLS['head_ct']
    length = f'until {p.patience} epochs bring no progress, at most {p.epochs}'
    assert length in head["length of the classifier's training"]
    assert pub.value('X5', 'images/generated') == 200


def test_sources_are_those_of_the_citation_file():
    text = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    sources = {}
    for reference in yaml.safe_load(text)['references']:
        if m := re.match(r'source (\w+)', reference.get('notes', '')):
            sources[m[1]] = reference
    assert set(sources) == set(pub.PAPERS)
    for key, reference in sources.items():
        line = cells(f'papers/{key}')[0].splitlines()[1]
        for author in reference['authors']:
            name = author['family-names']
            assert name in line and name in pub.PAPERS[key], (key, author)
        if key in ('wmlq2022', 'mgv2023'):
            title = reference['title']
            assert title in line and title.lower() in pub.PAPERS[key].lower()


def test_a_corrected_number_makes_the_papers_figures_again(tmp_path):
    "The data files are part of the hash of the code behind a paper's notebook, their comments are not."
    for d in ('nbs', 'gan_covid'):
        shutil.copytree(ROOT / d, tmp_path / d, ignore=shutil.ignore_patterns('__pycache__'))
    paper, run = (
        tmp_path / 'nbs' / f'{name}.ipynb' for name in ('papers/mgv2023', 'runs/train_dcgan')
    )
    file = tmp_path / 'gan_covid' / 'sources' / 'mgv2023.yaml'
    before = code_hash(paper, tmp_path), code_hash(run, tmp_path)
    file.write_text('# a comment\n' + file.read_text(encoding='utf-8'), encoding='utf-8')
    assert (code_hash(paper, tmp_path), code_hash(run, tmp_path)) == before
    file.write_text(file.read_text(encoding='utf-8').replace('4000', '4001'), encoding='utf-8')
    assert code_hash(paper, tmp_path) != before[0] and code_hash(run, tmp_path) == before[1]


@pytest.mark.slow
def test_wheel_holds_the_data_files(tmp_path):
    tracked = ['setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'NOTICE']
    for name in tracked:
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / 'gan_covid', tmp_path / 'gan_covid')
    build = "import setuptools.build_meta as b; print(b.build_wheel('.'))"
    run = [sys.executable, '-c', build]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = zipfile.ZipFile(tmp_path / done.stdout.split()[-1]).namelist()
    assert {f'gan_covid/sources/{p}.yaml' for p in pub.SOURCES} <= set(names)
