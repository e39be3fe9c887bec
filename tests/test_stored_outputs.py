"""How stored outputs are made: no image of a patient is opened. Whether they are fresh: test_figures.py."""

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
