"The pages of the report without a browser: what stands on them, where they lead, what they must not hold."

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from gan_covid import cli, report
from gan_covid.findings import GROUPS, answer, findings, group_of, read_profiles
from gan_covid.manifest import Manifest
from gan_covid.published import PAPERS
from gan_covid.records import InputError, read_json

ROOT = Path(__file__).resolve().parent.parent
VOID = {'meta', 'img', 'input', 'br', 'hr', 'link'}
OPTIONAL = {'td', 'th', 'dt', 'dd', 'li'}  # HTML lets their ends out


class Page(HTMLParser):
    "Tags with their attributes, and whether every tag is closed."

    def __init__(self, text: str):
        super().__init__()
        self.found, self.open, self.wrong = [], [], []
        self.feed(text)
        self.wrong += [t for t in self.open if t not in OPTIONAL]

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in OPTIONAL:
            self.open.pop()
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f'/{tag} at {self.getpos()}')

    def values(self, name: str, tag: str = None) -> list:
        return [a[name] for t, a in self.found if name in a and tag in (None, t)]


pytestmark = pytest.mark.slow  # the pages are made once, with all notebooks: some ten seconds


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "A copy of the shipped figures with their pages."
    tmp = tmp_path_factory.mktemp('drawn')
    shutil.copytree(ROOT / 'figures', tmp / 'figures', ignore=shutil.ignore_patterns('*.html'))
    (tmp / 'records').symlink_to(ROOT / 'records')
    assert cli.main(['report', '--figures', str(tmp / 'figures')]) == 0
    return tmp / 'figures'


@pytest.fixture(scope='module')
def overview(drawn):
    return (drawn / 'index.html').read_text()


def test_the_answer_comes_first_and_is_that_of_the_tables(drawn, overview):
    said = answer(read_profiles(drawn))
    assert said.profile.name == 'medium'
    place = overview.index(f'It {said.word}.')
    assert place < overview.index('id="claims"') < overview.index('<article')
    named = '_primary.csv', '_together.csv', '_confirm.csv', '_both.csv'
    files = [f for f in said.profile.folder.glob('*/*.csv') if f.name.endswith(named)]
    rows = pd.concat([pd.read_csv(f) for f in files])
    mine = (rows.role == 'primary') | rows.role.isna()  # a mean over sizes has no role
    assert len(said.lines) == mine.sum()


def test_every_claim_stands_with_verdict_reason_and_what_would_change_it(drawn, overview):
    rows = findings(read_profiles(drawn))
    assert {r.source for r in rows} == set(PAPERS)
    table = overview[overview.index('id="claims"') : overview.index('id="levels"')]
    assert table.count('<tr data-verdicts=') == len(rows) > 100
    assert all(r.group in GROUPS and r.why and r.change for r in rows)
    for paper in PAPERS:
        assert read_json(ROOT / 'figures' / 'small' / 'manifest.json')['claims'][paper]


def test_words_of_verdicts_are_all_known(drawn):
    "None falls into the group of the unknown by its spelling."
    begins = [word for words in GROUPS.values() for word in words]
    said = {r.verdict for r in findings(read_profiles(drawn))}
    said |= {
        v['verdict'] for p in read_profiles(drawn) for i in p.items.values() for v in i['values']
    }
    assert not [w for w in said if not w.startswith(tuple(begins))]
    assert group_of('agrees') == 'agrees or holds'


@pytest.mark.parametrize('name', ['', 'small', 'smoke', 'medium'])
def test_page_is_well_formed_and_every_id_is_one_of_a_kind(drawn, name):
    page = Page((drawn / name / 'index.html').read_text())
    assert page.wrong == []
    ids = page.values('id')
    assert len(ids) == len(set(ids))
    dead = {h[1:] for h in page.values('href', 'a') if h.startswith('#')} - set(ids)
    assert not dead


def test_every_entry_of_every_profile_is_on_the_page_over_all(drawn, overview):
    page = Page(overview)
    ids = set(page.values('id'))
    for p in read_profiles(drawn):
        assert set(p.items) <= ids
    pictures = {
        f'{p.name}/{f}'
        for p in read_profiles(drawn)
        for i in p.items.values()
        for f in i['files']
        if f.endswith('.png') and '.local.' not in f
    }
    assert pictures == {s for s in page.values('src', 'img')}
    assert all(len(alt) > 12 for alt in page.values('alt', 'img'))


def test_entries_lead_to_record_notebook_and_command(overview):
    article = re.search(r'<article[^>]*id="X1".*?</article>', overview, re.S)[0]
    assert 'href="../records/small/head_ct/classify/original/record.json"' in article
    assert 'href="notebooks/head_ct.html#X1"' in article
    assert 'make reproduce PAPER=head_ct PROFILE=small DATA=' in article
    assert re.search(r'<dt>Minutes<dd>[\d.]+ of computing, over \d+ runs', article)
    assert '<dt>Machine<dd>' in article
    assert 'random weights' in article


def test_pictures_say_what_they_show(drawn):
    items = read_profiles(drawn)[1].items  # small
    shows = [i['shows'].get(f) for i in items.values() for f in i['files'] if f.endswith('.png')]
    assert sum(map(bool, shows)) >= 60
    losses = items['T22']['shows']['head_ct/T22_losses.png']
    assert 'epoch' in losses
    assert re.search(r'from [\d.e+-]+ to [\d.e+-]+', losses)


def test_no_address_to_load_from(drawn):
    for file in drawn.rglob('*.html'):
        page = Page(file.read_text())
        loaded = [*page.values('src'), *page.values('href', 'link')]
        assert not [u for u in loaded if '://' in u]


def test_folder_without_figures_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match='no manifest.json of a profile'):
        report.write_overview(tmp_path)
    assert cli.main(['report', '--figures', str(tmp_path)]) == 2
    assert 'gan-covid figures' in capsys.readouterr().err


def test_claims_and_words_of_other_notebooks_stay(tmp_path):
    "Two notebooks write into one manifest; who is drawn again without words keeps those that were there."
    one, two = Manifest(tmp_path), Manifest(tmp_path)
    one.claims['head_ct'] = 'first'
    one.write()
    two.claims['ct_report'] = 'second'
    two.write()
    assert read_json(tmp_path / 'manifest.json')['claims'] == {
        'head_ct': 'first',
        'ct_report': 'second',
    }
