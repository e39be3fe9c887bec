"""How stored outputs are made: no image of a patient is opened, and what papers' notebooks say is fresh."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from steps import ROOT

sys.path.insert(0, str(ROOT / 'workflow'))
import notebooks

PAPERS = sorted(f'nbs/papers/{p.name}' for p in (ROOT / 'nbs' / 'papers').glob('*.ipynb'))


def execute(notebook, folder):
    notebooks.guard(notebook)
    where = {'metadata': {'path': str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name='python3', resources=where).execute()
    notebook.cells.pop(0)


def tried(code, folder):
    execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), folder)


def test_an_image_elsewhere_is_not_opened(tmp_path):
    elsewhere = Path(ROOT.anchor, 'patients', 'scan.PNG')
    with pytest.raises(CellExecutionError, match='generated images only'):
        tried(f'open({str(elsewhere)!r}, "rb")', tmp_path)
    with pytest.raises(CellExecutionError, match='generated images only'):
        tried(f'open({str(ROOT / "work" / "x.npy")!r}, "rb")', tmp_path)
    assert tmp_path.is_relative_to(os.path.realpath(tempfile.gettempdir()))
    tried('import numpy as np; np.save("a.npy", [1]); np.load("a.npy")', tmp_path)


def said(notebook) -> list:
    "Everything that a notebook says in words, cell by cell."
    kinds = 'text/markdown', 'text/plain'
    out = []
    for n, cell in enumerate(notebook.cells, 1):
        for o in cell.get('outputs', []):
            data = o.get('data', {})
            texts = [o.get('text', ''), *(data[k] for k in kinds if k in data)]
            out += [(n, ''.join(text)) for text in texts if text and 'image/png' not in data]
    return out


@pytest.mark.slow
@pytest.mark.parametrize('path', PAPERS, ids=lambda p: Path(p).stem)
def test_what_is_stored_is_what_the_code_says_now(path, tmp_path, monkeypatch):
    "Also where a module behind the notebook has changed: `make notebooks NOTEBOOK=…` stores it anew."
    monkeypatch.delenv('GAN_COVID_DATA', raising=False)
    stored = nbformat.read(ROOT / path, as_version=4)
    now = nbformat.read(ROOT / path, as_version=4)
    execute(now, (ROOT / path).parent)
    notebooks._tidy(now, notebooks.PICTURE)
    assert said(now) == said(stored)
