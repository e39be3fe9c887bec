"""Run notebooks within this process, as the tests of the sources need them: engines are loaded once.

That papermill runs them in a process of their own is tested in test_reproduce.py, by the batch of
`make test`, and, without engines, in test_figures.py.
"""

import contextlib
from pathlib import Path

import matplotlib
from IPython.core.interactiveshell import InteractiveShell  # noqa: F401  display() outside a kernel

from gan_covid.manifest import Manifest
from gan_covid.notebooks import ROOT, check_parameters
from gan_covid.records import read_json

RADIOGRAPHS = ['COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia']
# six iterations, three snapshots
GAN = {
    'kimg': 0.048,
    'batch': 8,
    'tick_kimg': 0.016,
    'snapshot_ticks': 1,
    'width': 'tiny',
    'augment': 'chest_xray',
    'sheet_images': 16,
    'distance_images': 16,
}


def run_here(notebook, parameters: dict) -> dict:
    "Execute the code cells of a notebook with these parameters; returns its names."
    given, names = check_parameters(notebook, parameters), {'__name__': '__main__'}
    with contextlib.chdir(ROOT), matplotlib.rc_context():
        for i, cell in enumerate(read_json(notebook)['cells'], 1):
            if cell['cell_type'] != 'code':
                continue
            code = compile(''.join(cell['source']), f'{Path(notebook).stem}, cell {i}', 'exec')
            exec(code, names)
            if 'parameters' in cell['metadata'].get('tags', []):
                names |= given
    return names


class Steps:
    "The steps of one source in a folder; each gives its record."

    def __init__(self, work, paper: str, dataset: str):
        self.work, self.paper, self.dataset = Path(work), paper, dataset
        self.base = self.work / 't' / paper

    def run(self, notebook: str, name: str, folder: str = None, **values) -> dict:
        "Run a notebook of nbs/runs; `folder`: the step's folder where it is not called like the notebook."
        takes = {'profile': 't', 'paper': self.paper, 'work': str(self.work)}
        takes |= {'dataset': self.dataset} | ({} if notebook == 'prepare' else {'name': name})
        run_here(ROOT / 'nbs' / 'runs' / f'{notebook}.ipynb', takes | values)
        return self.record(folder or notebook, name)

    def record(self, step: str, name: str) -> dict:
        return read_json(self.base / step / name / 'record.json')

    def once(self, notebook: str, name: str, **values) -> dict:
        "The record of a step that may have run already."
        done = (self.base / notebook / name / 'record.json').exists()
        return self.record(notebook, name) if done else self.run(notebook, name, **values)

    def prepared(self):
        "The prepared images of the source."
        from gan_covid.preprocessing import Prepared

        return Prepared.open(self.base / 'prepare' / self.dataset / 'images')

    def generated(self, name: str):
        "A set of generated images."
        from gan_covid.preprocessing import Prepared

        return Prepared.open(self.base / 'generate' / name / 'images')


def draw(paper: str, figures, records) -> dict:
    "Run a source's notebook; returns the entries of its manifest, which has to be whole."
    values = {'profile': 't', 'records': str(records), 'figures': str(figures), 'work': ''}
    run_here(ROOT / 'nbs' / 'papers' / f'{paper}.ipynb', values)
    assert Manifest.check(figures, papers=[paper]) == []
    return read_json(Path(figures) / 'manifest.json')['items']
