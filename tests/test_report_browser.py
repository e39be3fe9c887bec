"""The report in Chromium: no complaint, pictures load, filters and search work, nothing overflows on a phone.

CHROMIUM names the browser (default: `chromium` on PATH); AXE the file axe.min.js of axe-core, for the
accessibility check (`npm pack axe-core` brings it)."""

import os
import re
import shutil
from pathlib import Path

import pytest
from browser import EXECUTABLE, Browser

from gan_covid import report

ROOT = Path(__file__).resolve().parent.parent
AXE = os.environ.get('AXE')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EXECUTABLE, reason='no Chromium: set CHROMIUM, or apt install chromium'),
]
DESK, PHONE = (1400, 1000), (390, 844)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    tab = Browser(tmp_path_factory.mktemp('profile'))
    yield tab
    tab.close()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "Address of each kind of page, made of what is shipped."
    tmp = tmp_path_factory.mktemp('report')
    shutil.copytree(ROOT / 'figures', tmp / 'figures', ignore=shutil.ignore_patterns('*.html'))
    (tmp / 'records').symlink_to(ROOT / 'records')
    folders = [m.parent for m in (tmp / 'figures').glob('*/manifest.json')]
    made = {folder.name: report.write_report(folder) for folder in folders}
    made['all'] = report.write_overview(tmp / 'figures')
    moved = tmp / 'alone' / 'report.html'
    moved.parent.mkdir()
    made['single'] = report.write_overview(tmp / 'figures', single=True).rename(moved)
    made['notebook'] = tmp / 'figures' / 'notebooks' / 'head_ct.html'
    return {name: page.as_uri() for name, page in made.items()}


KINDS = 'all', 'small', 'single', 'notebook'
LOADED = """(async () => {
  const all = [...document.images];
  for (const i of all) { i.loading = 'eager' }
  document.querySelectorAll('details').forEach((d) => { d.open = true });
  await Promise.all(all.map((i) => i.decode().catch(() => null)));
  return {n: all.length,
          broken: all.filter((i) => !i.complete || !i.naturalWidth).map((i) => i.src.slice(0, 90)),
          dumb: all.filter((i) => i.alt.length < 12).map((i) => i.alt)};
})()"""


@pytest.mark.parametrize('kind', KINDS)
def test_nothing_complains_and_every_picture_loads_and_says_what_it_shows(browser, pages, kind):
    browser.open(pages[kind], *DESK)
    found = browser.run(LOADED)
    assert found['n'] > 5
    assert (found['broken'], found['dumb'], browser.errors) == ([], [], [])
    assert all(r.startswith(('file:', 'data:', 'about:')) for r in browser.requests)


def test_a_single_file_asks_for_nothing_and_is_small(browser, pages):
    path = Path(pages['single'].removeprefix('file://'))
    assert path.stat().st_size < 15e6
    browser.open(pages['single'], *DESK)
    browser.run(LOADED)
    asked = {r for r in browser.requests if not r.startswith(('data:', 'about:'))}
    assert asked == {pages['single']}
    outside = browser.run(
        "[...document.links].map((a) => a.getAttribute('href')).filter((h) => !/^(#|data:|https?:)/.test(h))"
    )
    assert outside == []


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_nothing_overflows_on_a_phone(browser, pages, kind, dark):
    browser.open(pages[kind], *PHONE, dark)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert browser.run('document.documentElement.scrollWidth') <= PHONE[0]
    wide = browser.run(
        """[...document.querySelectorAll('main *')].filter((e) => !e.closest('.wide, pre')
           && e.getBoundingClientRect().right > innerWidth + 1 && e.getClientRects().length)
           .map((e) => e.outerHTML.slice(0, 90)).slice(0, 5)"""
    )
    assert wide == []


@pytest.mark.parametrize('kind', ['all', 'single'])
def test_every_link_within_the_page_leads_somewhere(browser, pages, kind):
    browser.open(pages[kind], *DESK)
    dead = browser.run(
        """[...document.links].map((a) => a.getAttribute('href')).filter((h) => h.startsWith('#')
           && !document.getElementById(decodeURIComponent(h.slice(1))))"""
    )
    assert dead == []


def test_every_file_that_is_linked_is_there(browser, pages):
    for kind in ('all', 'small', 'notebook'):
        browser.open(pages[kind], *DESK)
        links = browser.run("[...new Set([...document.links].map((a) => a.href.split('#')[0]))]")
        files = [Path(re.sub('^file://', '', h)) for h in links if h.startswith('file://')]
        # a notebook leads to other notebooks of the checkout, which this copy is not in
        mine = [f for f in files if '/nbs/' not in str(f) and f.suffix != '.ipynb']
        assert mine
        assert [f for f in mine if not Path(_unquoted(f)).exists()] == []


def _unquoted(path) -> str:
    from urllib.parse import unquote

    return unquote(str(path))


SHOWN = "document.querySelectorAll('[data-verdicts]:not([hidden])').length"


def _count(browser) -> list:
    "Numbers in the line below the search."
    return list(
        map(
            int,
            re.findall(r'\d+', browser.run("document.querySelector('.bar output').textContent")),
        )
    )


def test_filters(browser, pages):
    browser.open(pages['all'], *DESK)
    (everything,) = _count(browser)
    assert everything == browser.run(SHOWN) > 200
    browser.run('document.querySelector(\'[data-verdict="agrees or holds"]\').click()')
    agree = browser.run(SHOWN)
    assert 0 < agree < everything
    assert _count(browser) == [agree, everything]
    assert browser.run(
        """[...document.querySelectorAll('[data-verdicts]:not([hidden])')]
           .every((e) => e.dataset.verdicts.split('|').includes('agrees or holds'))"""
    )
    # the folded tables that hold what is left are open, and of a source without any nothing stands
    assert browser.run(
        """[...document.querySelectorAll('tr[data-verdicts]:not([hidden])')]
           .every((e) => e.getClientRects().length)"""
    )
    browser.run("document.querySelector('[data-kind=none]').click()")
    assert 0 < browser.run(SHOWN) < agree
    browser.run('document.querySelector(\'[data-verdict="differs or does not hold"]\').click()')
    assert browser.run(SHOWN) > 0  # one of two verdicts
    browser.run("document.querySelector('.bar [type=reset]').click()")
    browser.run('new Promise((done) => setTimeout(done, 50))')
    assert browser.run(SHOWN) == everything
    assert browser.run("document.querySelectorAll('[aria-pressed=true]').length") == 0
    for kind in ('real', 'phantom', 'generated'):
        button = f"document.querySelector('[data-kind={kind}]')"
        browser.run(f'{button}.click()')
        assert 0 < browser.run(SHOWN) < everything, kind
        browser.run(f'{button}.click()')


def test_search(browser, pages):
    browser.open(pages['all'], *DESK)
    browser.run("document.getElementById('find').focus()")
    browser.send('Input.insertText', text='VGG-16 accuracy')
    found = browser.run(
        "[...document.querySelectorAll('article[data-verdicts]:not([hidden])')].map((e) => e.id)"
    )
    assert 'T13' in found
    assert 'T19' not in found
    texts = browser.run(
        """[...document.querySelectorAll('[data-verdicts]:not([hidden])')]
           .map((e) => e.textContent.toLowerCase())"""
    )
    assert texts
    assert all('vgg-16' in t and 'accuracy' in t for t in texts)
    browser.send('Input.insertText', text=' nowhere-to-be-found')
    assert browser.run(SHOWN) == 0
    assert _count(browser)[0] == 0
    assert browser.run("document.getElementById('head_ct').hidden")


def test_keyboard(browser, pages):
    "The first key leads past the contents; what has the focus is seen; a button takes the space bar."
    browser.open(pages['all'], *DESK)
    browser.press('Tab', 9)
    assert browser.run('document.activeElement.className') == 'skip'
    assert browser.run('document.activeElement.getBoundingClientRect().left') >= 0
    browser.press('Enter', 13, '\r')
    assert browser.run('document.activeElement.id') == 'main'
    for _ in range(12):
        browser.press('Tab', 9)
        if browser.run("document.activeElement.hasAttribute('aria-pressed')"):
            break
    assert browser.run('getComputedStyle(document.activeElement).outlineStyle') == 'solid'
    browser.press(' ', 32, ' ')
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == 'true'


def test_light_and_dark_by_system_and_by_hand(browser, pages):
    back = 'getComputedStyle(document.body).backgroundColor'
    browser.open(pages['all'], *DESK)
    light = browser.run(back)
    browser.open(pages['all'], *DESK, dark=True)
    dark = browser.run(back)
    assert light != dark
    browser.run("document.getElementById('theme').click()")
    assert browser.run(back) == light
    browser.run('localStorage.clear()')


def test_a_link_opens_what_is_folded(browser, pages):
    browser.open(pages['all'] + '#T5-smoke', *DESK)
    assert browser.run("document.getElementById('T5-smoke').open")
    browser.open(pages['single'] + '#notebook-head_ct-T19', *DESK)
    assert browser.run("document.getElementById('notebook-head_ct-T19').getClientRects().length")


def test_without_scripts_all_is_there(browser, pages):
    browser.send('Emulation.setScriptExecutionDisabled', value=True)
    try:
        browser.open(pages['all'], *DESK)
        assert browser.run("getComputedStyle(document.querySelector('.bar')).display") == 'none'
        assert browser.run("document.querySelectorAll('[hidden]:not(.bar, button)').length") == 0
        assert browser.run("document.querySelector('#T5 img, #T5 table').getClientRects().length")
    finally:
        browser.send('Emulation.setScriptExecutionDisabled', value=False)


def test_it_prints(browser, pages, tmp_path):
    browser.open(pages['small'], *DESK)
    browser.send('Emulation.setEmulatedMedia', media='print')
    hidden = browser.run("getComputedStyle(document.querySelector('.side')).display")
    browser.send('Emulation.setEmulatedMedia', media='')
    assert hidden == 'none'
    browser.print(tmp_path / 'x.pdf')
    assert (tmp_path / 'x.pdf').read_bytes().startswith(b'%PDF')


@pytest.mark.skipif(not AXE, reason='no axe-core: set AXE to its axe.min.js (npm pack axe-core)')
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_accessibility(browser, pages, kind, dark):
    browser.open(pages[kind], *DESK, dark)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    browser.run(Path(AXE).read_text(encoding='utf-8') + '; 0')
    found = browser.run(
        """axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations.map((v) =>
           [v.id, v.impact, v.nodes.length, v.nodes[0].html.slice(0, 200)].join(' | ')))"""
    )
    assert found == []
