"""Make the stored outputs of the notebooks, or find those that no longer belong to their code.

    python workflow/notebooks.py run [nbs/2_data/23_preprocessing.ipynb ...]     all of them by default
    python workflow/notebooks.py check

A notebook carries a stamp in its metadata: a hash of its code and a hash of its outputs. Outputs that were
made in another way than by `run` do not match their stamp. `run` hides the data sets (GAN_COVID_DATA, the
download cache) from the notebooks and refuses to open images that lie elsewhere, so that no pixel of a
patient can get into an output.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = 'outputs_of'  # nbdev-clean keeps this key: see pyproject.toml
PICTURE = 60 * 1024  # bytes of one picture
NOTEBOOK = 300 * 1024  # bytes of a notebook
GALLERY = 600 * 1024  # of one that shows all figures of a source, or every kind of plot
GALLERIES = 'nbs/papers/', 'nbs/8_results/57_plots'
EMPTY = ('nbs/runs/',)  # papermill runs these: nothing is stored


def notebooks() -> list:
    "The notebooks that store outputs, as paths below the root."
    found = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / 'nbs').rglob('*.ipynb'))
    return [p for p in found if not p.startswith(EMPTY) and '.ipynb_checkpoints' not in p]


def largest(path: str) -> int:
    "How many bytes a notebook may have."
    return GALLERY if path.startswith(GALLERIES) else NOTEBOOK


def _hash(parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _joined(value):
    "Text as one string: notebooks may store it as a list of lines."
    if isinstance(value, dict):
        return {k: _joined(v) for k, v in value.items()}
    return ''.join(value) if isinstance(value, list) else value


def stamp(notebook: dict) -> dict:
    "Hashes of a notebook's code and of its outputs."
    code = [c for c in notebook['cells'] if c['cell_type'] == 'code']
    outputs = [
        {k: _joined(v) for k, v in o.items() if k in ('output_type', 'text', 'data')}
        for c in code
        for o in c['outputs']
    ]
    return {'code': _hash([_joined(c['source']) for c in code]), 'outputs': _hash(outputs)}


def problems(path: str) -> list:
    "What is wrong with the stored outputs of one notebook, as sentences."
    file = ROOT / path
    notebook = json.loads(file.read_text(encoding='utf-8'))
    seen, now = notebook['metadata'].get(STAMP, {}), stamp(notebook)
    again = f'run: make notebooks NOTEBOOK={path}'
    if not any(c.get('outputs') for c in notebook['cells']):
        return [f'{path}: stores no output; {again}']
    found = []
    if seen.get('code') != now['code']:
        found.append(f'{path}: its code changed since its outputs were made; {again}')
    elif seen.get('outputs') != now['outputs']:
        found.append(f'{path}: its outputs were not made by make notebooks; {again}')
    size, most = file.stat().st_size, largest(path)
    if size > most:
        found.append(f'{path}: {size // 1024} KB, at most {most // 1024} are allowed')
    for i, cell in enumerate(notebook['cells'], 1):  # as JupyterLab and ruff count
        for output in cell.get('outputs', []):
            png = _joined(output.get('data', {}).get('image/png', ''))
            if len(png) * 3 // 4 > PICTURE:
                found.append(
                    f'{path}, cell {i}: a picture of {len(png) * 3 // 4096} KB, at most 60'
                )
    return found


def _smaller(png: str, most: int) -> str:
    "The same picture, packed better: with a palette, or in the end with fewer pixels, to need `most` bytes."
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if len(png) * 3 // 4 <= most and picture.mode in 'LP':
        return png  # packed well already
    picture = picture.convert('RGB')
    for scale in 1, 0.8, 0.6, 0.4:
        size = round(picture.width * scale), round(picture.height * scale)
        scaled = picture if scale == 1 else picture.resize(size, Image.LANCZOS)
        for colours in None, 256, 64, 32:
            packed = io.BytesIO()
            # an octree keeps the colour of a thin line; a median cut would lose it
            shown = scaled
            if colours:
                shown = scaled.quantize(colours, method=Image.Quantize.FASTOCTREE)
            shown.save(packed, 'PNG', optimize=True)
            if packed.tell() <= most:
                return base64.b64encode(packed.getvalue()).decode() + '\n'
    raise ValueError(
        f'a picture of {picture.width} × {picture.height} pixels does not fit into {most} bytes'
    )


def tidy(notebook, most: int):
    """Leave out what differs from run to run (progress bars, warnings, execution counts), and pack pictures
    into `most` bytes each."""
    for cell in notebook.cells:
        if cell.cell_type != 'code':
            continue
        kept = [o for o in cell.outputs if o.get('name') != 'stderr']
        for output in kept:
            data = output.get('data', {})
            for where, key in [
                (output, 'text'),
                *((data, k) for k in data if k.startswith('text/')),
            ]:
                if key in where:  # no path of one machine
                    where[key] = where[key].replace(f'{ROOT}/', '')
            if 'image/png' in data:
                data['image/png'] = _smaller(data['image/png'], most)
                data.pop('text/plain', None)  # <Figure size …>
            output.pop('execution_count', None)
            if output.output_type == 'execute_result':
                output['execution_count'] = None
            if 'metadata' in output:
                output['metadata'] = {}
        cell.outputs, cell.execution_count, cell.metadata = (
            kept,
            None,
            {k: v for k, v in cell.metadata.items() if k == 'tags'},
        )


# the first thing that a kernel runs: no code of a notebook opens an image of somebody's, wherever it lies
GUARD = """
import sys

def _no_foreign_images(event, given, allowed=ALLOWED, refused=REFUSED, kinds=KINDS):
    import os
    if event == 'open' and isinstance(given[0], (str, os.PathLike)):
        path = os.path.realpath(os.fspath(given[0]))
        ours = path.startswith(allowed) and not path.startswith(refused)
        if path.lower().endswith(kinds) and not ours:
            raise PermissionError(f'{path}: outputs that are stored show drawn and generated images only')

sys.addaudithook(_no_foreign_images)
"""
KINDS = (
    '.png',
    '.jpg',
    '.jpeg',
    '.gif',
    '.tif',
    '.tiff',
    '.bmp',
    '.webp',
    '.dcm',
    '.npy',
    '.npz',
    '.nii',
    '.zip',
)


def guard(notebook):
    "Put the guard before all cells; take it out again with `notebook.cells.pop(0)`."
    import nbformat

    allowed = [str(ROOT), os.path.realpath(tempfile.gettempdir()), sys.prefix, sys.base_prefix]
    code = GUARD.replace('ALLOWED', repr(tuple(allowed))).replace('KINDS', repr(KINDS))
    code = code.replace('REFUSED', repr((str(ROOT / 'work'), str(ROOT / 'data'))))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(code))


def run(path: str) -> float:
    "Execute one notebook and keep its outputs; the file changes only if all went well. Returns seconds."
    import nbformat
    from nbclient import NotebookClient
    from nbdev.clean import nbdev_clean

    start = time.time()
    file = ROOT / path
    notebook = nbformat.read(file, as_version=4)
    where = {'metadata': {'path': str(file.parent)}}
    guard(notebook)
    NotebookClient(notebook, timeout=1200, kernel_name='python3', resources=where).execute()
    notebook.cells.pop(0)
    for share in 1, 0.75, 0.5, 0.375, 0.25:
        tidy(notebook, round(share * PICTURE))
        if len(nbformat.writes(notebook).encode()) <= largest(path):
            break
    part = file.with_name(f'.part.{file.name}')
    try:
        part.write_text(nbformat.writes(notebook) + '\n', encoding='utf-8')
        nbdev_clean(part)
        text = json.loads(part.read_text(encoding='utf-8'))
        text['metadata'][STAMP] = stamp(text)
        part.write_text(json.dumps(text, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return time.time() - start


def hide_data(empty: str):
    "No data set is to be found by what runs from here on, and one thread computes."
    os.environ.pop('GAN_COVID_DATA', None)
    os.environ['GAN_COVID_CACHE'] = empty
    os.environ.pop('MPLBACKEND', None)
    os.environ |= {'OMP_NUM_THREADS': '1', 'TF_CPP_MIN_LOG_LEVEL': '3'}


def run_all(paths: list, workers: int) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as empty, ThreadPoolExecutor(workers) as pool:
        hide_data(empty)
        jobs = {path: pool.submit(run, path) for path in paths}
        for n, (path, job) in enumerate(jobs.items(), 1):
            try:
                print(f'{n}/{len(paths)} {path}: {job.result():.0f} s', flush=True)
            except Exception as e:  # whatever a notebook raises
                print(f'{n}/{len(paths)} {path}: failed\n{e}', file=sys.stderr, flush=True)
                failed += 1
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=['run', 'check'])
    parser.add_argument('paths', nargs='*', help='notebooks, below the root (default: all)')
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    paths = args.paths or notebooks()
    if args.what == 'run':
        failed = run_all(paths, args.workers)
        found = [line for path in paths for line in problems(path)] if not failed else []
    else:
        failed, found = 0, [line for path in paths for line in problems(path)]
    print('\n'.join(found), file=sys.stderr, end='\n' if found else '')
    return int(bool(failed or found))


if __name__ == '__main__':
    sys.exit(main())
