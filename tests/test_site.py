"""The site: every notebook, module and part of README has its page, and every link leads somewhere."""

import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'docs'))
import pages  # noqa: E402  the maker of the pages

ini = ConfigParser(delimiters=['='])
ini.read(ROOT / 'settings.ini', encoding='utf-8')
SETTINGS = ini['DEFAULT']
SPHINX = ROOT / '.venv-site' / 'bin' / 'python'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "The source of the site, as `make site` writes it where no address of the repository is known."
    folder = tmp_path_factory.mktemp('site') / 'source'
    pages.write_pages(folder)
    return folder


def texts(file) -> str:
    "Prose of a page or notebook of the site's source, without code."
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.ipynb':
        cells = json.loads(text)['cells']
        text = '\n'.join(c['source'] for c in cells if c['cell_type'] == 'markdown')
    return re.sub(r'^```.*?^```|`[^`\n]*`', '', text, flags=re.M | re.S)


def test_every_part_of_readme_has_a_page(source):
    for page in pages.PAGES:
        assert len((source / f'{page}.md').read_text(encoding='utf-8')) > 200, page
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    found = ''.join((source / f'{page}.md').read_text(encoding='utf-8') for page in pages.PAGES)
    lost = [h for h in re.findall(r'^##+ .+', readme, re.M) if h not in found]
    assert not lost
    assert 'pretrained' in (source / 'answer.md').read_text(encoding='utf-8')
    assert '--slurm' in (source / 'cluster.md').read_text(encoding='utf-8')


def test_a_marked_word_in_code_starts_no_page(monkeypatch, tmp_path):
    "A comment `## start` within a block of code is no heading."
    readme = '# x\n```sh\n## start\n```\n' + ''.join(
        f'## {w.partition("|")[0]}\n\ntext\n' for _, w in pages.WORDS
    )
    (tmp_path / 'README.md').write_text(readme)
    monkeypatch.setattr(pages, 'ROOT', tmp_path)
    parts = pages.readme_parts()
    assert '## start' in parts['index'] and parts['start'][0] != '## start'
    (tmp_path / 'README.md').write_text('# x\n')
    with pytest.raises(SystemExit, match='nothing in it for the page'):
        pages.readme_parts()


def test_every_notebook_is_in_a_room(source):
    notebooks = {
        p.relative_to(ROOT).with_suffix('').as_posix() for p in (ROOT / 'nbs').glob('*/*.ipynb')
    }
    listed = set()
    for room in source.glob('room_*.md'):
        listed |= set(re.findall(r'^nbs/\S+', room.read_text(encoding='utf-8'), re.M))
    assert listed == notebooks and len(notebooks) > 70


def test_outputs_are_those_that_are_stored(source):
    "Nothing is executed, and every picture has an alternative text."
    file = next((ROOT / 'nbs' / '7_statistics').glob('*intervals.ipynb'))
    places = file, source / file.relative_to(ROOT)
    stored, shown = (json.loads(p.read_text(encoding='utf-8')) for p in places)
    of = lambda nb: [o for c in nb['cells'] for o in c.get('outputs', [])]  # noqa: E731
    assert of(stored) and of(shown) == of(stored)
    for file in source.rglob('*.ipynb'):
        for cell in json.loads(file.read_text(encoding='utf-8'))['cells']:
            if any('image/png' in o.get('data', {}) for o in cell.get('outputs', [])):
                assert len(cell['metadata']['mystnb']['image']['alt']) > 8, file


def test_links_lead_somewhere(source):
    for file in [*source.rglob('*.md'), *source.rglob('*.ipynb')]:
        for target in re.findall(r'\]\(([^)\s]+)\)', texts(file)):
            path = target.partition('#')[0]
            if path and '://' not in path:
                assert (file.parent / path).exists(), f'{file.relative_to(source)}: {target}'
        for target in re.findall(r'<a href="([^"]+)"', texts(file)):
            if '://' not in target:
                assert (source / 'extra' / target.replace('../', '')).exists(), target


def test_a_link_to_a_heading_finds_its_page(source):
    "Parts of README stand on several pages, and a link from one to the other leads there."
    found = []
    for page in pages.PAGES:
        text = texts(source / f'{page}.md')
        for target, anchor in re.findall(r'\]\(([\w.]*)#([^)]+)\)', text):
            there = texts(source / target) if target else text
            headings = re.findall(r'^#+ (.+)', there, re.M)
            assert anchor in {h.lower().replace(' ', '-') for h in headings}, (page, anchor)
            found.append(target)
    assert 'start.md' in found


def test_no_picture_of_a_patient_goes_along(source, tmp_path, monkeypatch):
    assert not [p for p in source.rglob('*') if '.local.' in p.name]
    report = tmp_path / 'figures' / 'mine'
    report.mkdir(parents=True)
    for name in ('index.html', 'a.png', 'b.local.png'):
        (report / name).write_text('x')
    monkeypatch.setattr(pages, 'ROOT', tmp_path)
    pages.copy_reports(tmp_path / 'out')
    assert {p.name for p in (tmp_path / 'out').rglob('*.*')} == {'index.html', 'a.png'}


def test_every_public_name_is_in_the_api(source):
    seen = 0
    for file in (ROOT / 'gan_covid').rglob('*.py'):
        name, _ = pages.module_page(file)
        tree = ast.parse(file.read_text(encoding='utf-8'))
        offered = next(
            (ast.literal_eval(s.value) for s in tree.body if pages._assigns(s, '__all__')), []
        )
        defined = {n.name for n in tree.body if hasattr(n, 'name')} & set(offered)
        if name.startswith('gan_covid._') or not defined:
            continue
        text = (source / 'api' / f'{name}.md').read_text(encoding='utf-8')
        assert not [n for n in defined if f'\n## {n}\n' not in text], name
        seen += len(defined)
    assert seen > 500
    text = (source / 'api' / 'gan_covid.fidelity.md').read_text(encoding='utf-8')
    assert (
        'real: np.ndarray,  # ' in text and 'def frechet(' in text
    )  # parameters with their comments


def test_links_to_hosted_notebooks_need_an_address(source, tmp_path):
    light = 'nbs/papers/head_ct.ipynb'
    assert pages.hosted(light, '') == '' and pages.hosted(light, 'https://elsewhere.org/a/b') == ''
    assert 'a/b/blob/main/nbs/papers/head_ct.ipynb' in pages.hosted(light, 'https://github.com/a/b')
    assert pages.hosted('nbs/5_stylegan2/37_training.ipynb', 'https://github.com/a/b') == ''
    assert 'mybinder' not in (source / light).read_text(encoding='utf-8')
    pages.write_pages(tmp_path / 'named', 'https://github.com/a/b')
    assert 'mybinder.org/v2/gh/a/b/main' in (tmp_path / 'named' / light).read_text(encoding='utf-8')


# --- what stands beside the code


def test_contributing_names_real_files():
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    named = re.findall(r'\]\(([^)#\s]+)\)', text)
    assert len(named) > 20 and not [t for t in named if not (ROOT / t).exists()]
    for section in ('a data set', 'an arm', 'a score', 'a paper'):
        part = text.split(f'## Add {section}\n')[1].split('\n## ')[0]
        assert re.findall(r'^(\d)\. ', part, re.M) == list('12345'), section
    for word in re.findall(r'`([A-Z_]{4,})`', text):  # DATASETS, ARMS, METRICS, …
        assert any(
            re.search(rf'^{word}\b', p.read_text(encoding='utf-8'), re.M)
            for p in (ROOT / 'gan_covid').rglob('*.py')
        ), word


def test_metadata_of_archives_agree():
    code, archive = (
        json.loads((ROOT / f).read_text(encoding='utf-8'))
        for f in ('codemeta.json', '.zenodo.json')
    )
    assert code['version'] == archive['version'] == SETTINGS['version']
    assert (
        code['license'].endswith(archive['license']) and archive['license'] == SETTINGS['license']
    )
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert archive['title'] == cited['title']
    assert code['description'] == archive['description'] == cited['abstract']
    assert f'## {SETTINGS["version"]}\n' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')


def test_workflow_runs_what_ci_runs_and_publishes_the_site():
    flow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text(encoding='utf-8'))
    runs = [s.get('run', '') for job in flow['jobs'].values() for s in job['steps']]
    assert '.ci/run' in runs and any(r.startswith('make site') for r in runs)
    assert set(flow['jobs']['publish']['needs']) == {'test', 'site'}
    for form in (ROOT / '.github/ISSUE_TEMPLATE').glob('*.yml'):
        found = yaml.safe_load(form.read_text(encoding='utf-8'))
        assert form.name == 'config.yml' or {'name', 'description', 'body'} <= set(found)


# --- the built site


@pytest.fixture(scope='module')
def built(source, tmp_path_factory):
    "The site as pages; without the environment of `make site` the test is skipped."
    if not SPHINX.exists():
        pytest.skip('needs Sphinx: run make site once')
    out = tmp_path_factory.mktemp('built')
    command = [SPHINX, '-m', 'sphinx', '-q', '-b', 'html', '-j', '2', source, out]
    env = {**os.environ, 'GAN_COVID_ROOT': str(ROOT)}
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'WARNING' not in done.stderr, done.stderr[:2000]
    return out


@pytest.mark.slow
def test_pages_are_whole(built):
    "Every link and picture of every page is there, and every picture says what it shows."
    made = [p for p in built.rglob('*.html') if 'figures' not in p.relative_to(built).parts]
    assert len(made) > 150
    for page in made:
        text = page.read_text(encoding='utf-8')
        text = re.sub(
            r'<pre\b.*?</pre>', '', text, flags=re.S
        )  # code may speak of pages that are nowhere
        for target in re.findall(r'(?:href|src)="([^"#]+?)(?:[#?][^"]*)?"', text):
            if not re.match(r'\w+:', target):
                there = page.parent / unquote(html.unescape(target))
                assert there.exists(), f'{page.name}: {target}'
        for picture in re.findall(r'<img\b[^>]*_images[^>]*>', text):
            assert re.search(r'alt="[^"]', picture), f'{page.name}: {picture[:120]}'
        assert 'role="heading">' not in text, f'{page.name}: a heading without its level'


PROBE = """<iframe id="f" src="{page}" style="width:390px;height:3000px;border:0"></iframe><script>
f.onload = () => {{ const d = f.contentDocument.documentElement; document.title = 'WIDTH ' + d.scrollWidth; }}
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['index', 'answer', 'own_images', 'nbs/papers/head_ct', 'api/gan_covid.arms']
)
def test_a_page_fits_a_phone(built, name):
    "390 pixels wide, nothing has to be scrolled sideways."
    browser = shutil.which('chromium') or shutil.which('chromium-browser')
    if not browser:
        pytest.skip('needs Chromium')
    (built / 'probe.html').write_text(PROBE.format(page=f'{name}.html'))
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--allow-file-access-from-files']
    flags += ['--virtual-time-budget=5000', '--dump-dom', (built / 'probe.html').as_uri()]
    done = subprocess.run([browser, *flags], capture_output=True, text=True, timeout=120)
    width = re.search(r'WIDTH (\d+)', done.stdout)
    assert width and int(width[1]) <= 390, width
