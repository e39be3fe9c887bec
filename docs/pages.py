"""The pages of the site, made from README.md, the notebooks with their stored outputs, and the modules.

    python docs/pages.py FOLDER [address of the repository]

Nothing is executed and no module is imported, so neither an engine nor a network is needed.
"""

import ast
import json
import re
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(ROOT / 'settings.ini', encoding='utf-8')

PAGES = {
    'index': '',  # its title is README's
    'start': 'Start in five minutes',
    'answer': 'The answer',
    'own_images': 'Your own images',
    'cluster': 'On a cluster',
    'speed': 'How fast, and does it work?',
    'notebooks': 'Reading the code',
}
# A part of README.md goes to the first page whose words are in its title: a heading or a bold beginning.
WORDS = [
    ('own_images', 'own images|images of your own|own data|take away'),
    ('cluster', 'cluster'),
    ('answer', 'came out|the answer'),
    ('start', 'two commands|time for|start|install'),
    ('speed', 'how fast'),
    ('notebooks', 'notebooks'),
]
LIGHT = 'nbs/8_results', 'nbs/papers'  # notebooks that need neither an engine nor data
BESIDE = 'CITATION.cff', 'LICENSE', 'NOTICE', 'CHANGELOG.md', 'CONTRIBUTING.md'


# --- README.md


def page_of(line: str, now: str) -> str:
    "The page where a line of README.md belongs; `now`: that of the line before."
    heading, bold = re.match(r'## (.+)', line), re.match(r'\*\*(.+?)\*\*', line)
    if not heading and not bold:
        return now
    title = (heading or bold)[1].lower()
    found = next((page for page, words in WORDS if re.search(words, title)), None)
    return found or ('index' if heading else now)


def readme_parts() -> dict:
    "{page: lines of README.md}."
    parts, now, code = {page: [] for page in PAGES}, 'index', False
    for line in (ROOT / 'README.md').read_text(encoding='utf-8').splitlines():
        code ^= line.startswith('```')
        now = now if code else page_of(line, now)
        parts[now].append(line)
    if empty := [page for page, lines in parts.items() if not any(lines)]:
        sys.exit(f'README.md: nothing in it for the page {empty[0]!r}; see WORDS in docs/pages.py')
    return parts


def anchors(parts: dict) -> dict:
    "Where each heading of README.md stands on the site: {its anchor: page.md#anchor}."
    headings = {
        page: re.findall(r'^#+ (.+)', '\n'.join(part), re.M) for page, part in parts.items()
    }
    places = {}
    for page, titles in headings.items():
        for title in titles:
            anchor = re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
            places[anchor] = f'{page}.md#{anchor}'
    return places


# --- links


class Links:
    "Where the links of a page lead on the site."

    def __init__(self, source: Path, repository: str):
        self.source, self.repository = source, repository
        self.anchors = {}  # of headings that stand on several pages, see `anchors`

    def fix(self, text: str, folder: str = '.') -> str:
        "Text with links that work; `folder`: where it stands, below the root."
        return re.sub(r'(!?)\[([^\]]*)\]\(([^)\s]+)\)', lambda m: self._fixed(m, folder), text)

    def _fixed(self, m, folder: str) -> str:
        picture, words, target = m.groups()
        if '://' in target or target.startswith('mailto:'):
            return m[0]
        if target.startswith('#'):
            return f'[{words}]({self.anchors.get(target[1:], target)})'
        path, _, anchor = target.partition('#')
        file = (ROOT / folder / path).resolve()
        if not file.is_relative_to(ROOT) or not file.exists():
            return words
        name = file.relative_to(ROOT).as_posix()
        if picture:
            return f'![{words}]({self._copied(name, folder)})'
        if name.startswith('nbs/') and file.suffix == '.ipynb' or file.name in BESIDE[3:]:
            return m[0]
        # the report of a profile; the page over all of them is not part of the site
        if file.parent == ROOT / 'figures' and (file / 'index.html').exists():
            return self._raw(words, f'{name}/index.html', folder)
        if self.repository:
            return f'[{words}]({self.repository}/blob/main/{name})'
        if file.is_file() and file.suffix not in ('.py', '.ipynb'):
            return f'[{words}]({self._copied(name, folder)})'
        return words

    def _copied(self, name: str, folder: str) -> str:
        "The path of a copy within the pages' source, as seen from a folder."
        target = self.source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        return self._up(folder) + name

    def _raw(self, words: str, name: str, folder: str) -> str:
        return f'<a href="{self._up(folder)}{name}">{words}</a>'

    @staticmethod
    def _up(folder: str) -> str:
        return '' if folder == '.' else '../' * len(Path(folder).parts)


# --- notebooks


def title_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return ''.join(cells[0]['source']).splitlines()[0].lstrip('# ')


def hosted(name: str, repository: str) -> str:
    "Links that open a light notebook elsewhere; '' where the repository's address is not known."
    place = re.match(r'https://github\.com/([\w.-]+/[\w.-]+)$', repository)
    if not place or not name.startswith(LIGHT):
        return ''
    colab = f'https://colab.research.google.com/github/{place[1]}/blob/main/{name}'
    binder = f'https://mybinder.org/v2/gh/{place[1]}/main?labpath={name}'
    return f'Open it in [Binder]({binder}) or [Colab]({colab}).'


def picture_texts(cells: list):
    "Give every stored picture an alternative text: the caption below it, or the heading above it."
    heading = ''
    for i, cell in enumerate(cells):
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            heading = (re.findall(r'^#+ (.+)', text, re.M) or [heading])[-1]
            continue
        below = ''.join(cells[i + 1]['source']) if i + 1 < len(cells) else ''
        caption = re.match(r'\*([^*].+?)\*\s*$', below, re.S)
        alt = (
            re.sub(r'[`*$\[\]]', '', caption[1])
            if caption
            else f'Picture of the section: {heading}'
        )
        cell['metadata']['mystnb'] = {'image': {'alt': ' '.join(alt.split())}}


def write_notebook(file: Path, links: Links):
    "Copy a notebook into the pages' source, without the marks for nbdev."
    notebook, name = json.loads(file.read_text(encoding='utf-8')), file.relative_to(ROOT).as_posix()
    folder, cells = str(file.relative_to(ROOT).parent), []
    for cell in notebook['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'code':
            text = re.sub(
                r'^#\| *(export|default_exp|hide|notest|slow|gpu)\b.*\n?', '', text, flags=re.M
            )
            if not text.strip():
                continue
        else:
            text = links.fix(text, folder)
        cells.append({**cell, 'source': text, 'metadata': {}})
    if elsewhere := hosted(name, links.repository):
        cells[0]['source'] += f'\n\n{elsewhere}'
    picture_texts(cells)
    language = {'name': 'python', 'pygments_lexer': 'python'}
    kernel = {'name': 'python3', 'display_name': 'Python', 'language': 'python'}
    notebook |= {'cells': cells, 'metadata': {'kernelspec': kernel, 'language_info': language}}
    target = links.source / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook), encoding='utf-8')


# --- the modules


def header(node, text: str) -> str:
    "The first lines of a function or class as they stand, with the comments on its parameters."
    lines = text.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    if node.body[0].lineno == node.lineno:
        lines = [text.splitlines()[node.lineno - 1]]
    if isinstance(node, ast.ClassDef):
        fields = [s for s in node.body if isinstance(s, ast.AnnAssign)]
        start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else None
        if fields and start:
            lines += ['', *text.splitlines()[start - 1 : fields[-1].end_lineno]]
    indent = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
    return '\n'.join(x[indent:] for x in lines).rstrip()


def described(node, text: str, level: str, name: str) -> list:
    "Markdown of a function, class or method, with the methods of a class."
    lines = [
        f'{level} {name}',
        '',
        '```python',
        header(node, text),
        '```',
        '',
        ast.get_docstring(node) or '',
        '',
    ]
    if isinstance(node, ast.ClassDef):
        methods = [
            m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith('_')
        ]
        for m in methods:
            lines += described(m, text, level + '#', f'{name}.{m.name}')
    return lines


def module_page(file: Path) -> tuple:  # name, Markdown; '' where the module offers nothing
    "What a module offers, from its source."
    text = file.read_text(encoding='utf-8')
    tree, name = ast.parse(text), '.'.join(file.relative_to(ROOT).with_suffix('').parts)
    offered = next((ast.literal_eval(s.value) for s in tree.body if _assigns(s, '__all__')), [])
    notebook = re.search(r'File to edit: (\S+\.ipynb)', text)
    if not offered or not notebook:
        return name, ''
    path = (file.parent / notebook[1]).resolve().relative_to(ROOT).as_posix()
    lines = [f'# {name}', '', ast.get_docstring(tree) or '', '']
    lines += [
        f'Derived, shown and tested in the notebook [{title_of(ROOT / path)}](../{path}).',
        '',
    ]
    for node in tree.body:
        if getattr(node, 'name', None) in offered:
            lines += described(node, text, '##', node.name)
    return name, '\n'.join(lines)


def _assigns(node, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(getattr(t, 'id', '') == name for t in node.targets)


def write_api(source: Path) -> list:
    "A page a module; their names."
    names = []
    for file in sorted((ROOT / 'gan_covid').rglob('*.py')):
        name, text = module_page(file)
        if text:
            (source / 'api').mkdir(exist_ok=True)
            (source / 'api' / f'{name}.md').write_text(text, encoding='utf-8')
            names.append(name)
    return names


# --- the whole


def toctree(entries, caption: str = '', more: str = '') -> str:
    options = f':caption: {caption}\n' if caption else ''
    return '\n'.join(['', '```{toctree}', options + more, *entries, '```', ''])


def write_rooms(source: Path) -> list:
    "A page a folder of notebooks; their names, the papers first."
    rooms = []
    titles = dict(
        re.findall(r'^\*\*(\w+)\*\*: (.+)', (ROOT / 'README.md').read_text('utf-8'), re.M)
    )
    for folder in sorted(
        p for p in (ROOT / 'nbs').iterdir() if p.is_dir() and any(p.glob('*.ipynb'))
    ):
        files = sorted(folder.glob('*.ipynb'))
        said = re.sub(r': \[.*', '', titles.get(folder.name, folder.name)).rstrip('.')
        said = said[:1].upper() + said[1:]
        entries = [f'nbs/{folder.name}/{f.stem}' for f in files]
        text = f'# {said}\n' + toctree(entries, more=':maxdepth: 1\n')
        (source / f'room_{folder.name}.md').write_text(text, encoding='utf-8')
        rooms.append(f'room_{folder.name}')
    return sorted(rooms, key=lambda r: r != 'room_papers')  # what most readers come for


def copy_reports(source: Path) -> list:
    "The reports of tables and figures, without pictures that show pixels of patients; their folders."
    found = []
    for page in sorted((ROOT / 'figures').glob('*/index.html')):
        target = source / 'extra' / 'figures' / page.parent.name
        shutil.copytree(
            page.parent, target, ignore=shutil.ignore_patterns('*.local.*', '*.tex', '.*')
        )
        found.append(page.parent.name)
    return found


def write_pages(source: Path, repository: str = ''):
    "The whole source of the site."
    shutil.rmtree(source, ignore_errors=True)
    (source / 'extra').mkdir(parents=True)
    shutil.copyfile(ROOT / 'docs' / 'conf.py', source / 'conf.py')
    shutil.copytree(ROOT / 'docs' / '_static', source / '_static')
    links = Links(source, repository)
    for file in sorted((ROOT / 'nbs').glob('*/*.ipynb')):
        write_notebook(file, links)
    for name in BESIDE:
        if (ROOT / name).exists() and name.endswith('.md'):
            text = links.fix((ROOT / name).read_text(encoding='utf-8'))
            (source / name).write_text(text, encoding='utf-8')
    rooms, api, reports = write_rooms(source), write_api(source), copy_reports(source)
    (source / 'api.md').write_text('# API\n' + toctree([f'api/{n}' for n in api]), encoding='utf-8')
    parts = readme_parts()
    links.anchors = anchors(parts)
    for page, lines in parts.items():
        text = links.fix('\n'.join(lines))
        if page == 'index':
            text += front_matter(rooms, reports)
        else:
            text = f'# {PAGES[page]}\n\n{text}'
        (source / f'{page}.md').write_text(text, encoding='utf-8')


def front_matter(rooms: list, reports: list) -> str:
    "The reports, and what stands in the side bar."
    shown = [f'- <a href="figures/{r}/index.html">profile {r}</a>' for r in reports]
    beside = [n.removesuffix('.md') for n in BESIDE if n.endswith('.md') and (ROOT / n).exists()]
    hidden = ':hidden:\n'
    return '\n'.join(
        [
            '\n\n## All tables and figures\n',
            *shown,
            toctree(['start', 'answer', 'own_images', 'cluster', 'speed'], 'To use', hidden),
            toctree(['notebooks', *rooms], 'To read', hidden),
            toctree(['api', *beside], 'To look up', hidden),
        ]
    )


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    address = ''.join(sys.argv[2:3]) or ini['DEFAULT'].get('repository', '')
    write_pages(Path(sys.argv[1]).resolve(), address.rstrip('/'))
