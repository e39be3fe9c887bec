"Small data sets as files, with noise for images; and pictures that are broken."

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from gan_covid.datasets.table import as_table

gray = np.random.default_rng(0).integers(0, 256, (24, 30), 'uint8')


def put(path, image=gray, **kw):
    "A picture at a place, whose folders are made."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **kw)
    return path


def noise(i, size=(24, 30)):
    return np.random.default_rng(i).integers(0, 256, size, 'uint8')


def make_covid_ct(root, listed=True):
    "Six images a class: 4 train, 1 val, 1 test, two images a patient."
    for label, ending in (('COVID', 'png'), ('NonCOVID', 'jpg')):
        names = [f'{label}-p1-12%{i}.{ending}' for i in range(6)]
        for i, n in enumerate(names):
            image = noise(100 * (label == 'COVID') + i)
            put(root / 'Images-processed' / f'CT_{label}' / n, image, format='PNG')
        if listed:
            folder = root / 'Data-split' / label
            folder.mkdir(parents=True)
            for split, part in (('train', names[:4]), ('val', names[4:5]), ('test', names[5:])):
                (folder / f'{split}CT_{label}.txt').write_text('\n'.join(part) + '\n')
        if label == 'COVID':
            ids = [f'Patient {i // 2}' + ' ' * (i % 2) for i in range(6)]
            meta = {'File name': names, 'Patient ID': ids, 'DOI': '10.1/x'}
        else:
            ids = [f'crawled_patient_{i // 2}' for i in range(6)]
            meta = {'Unnamed: 0': range(6), 'image name': names, 'patient id': ids}
        stem = 'COVID-CT-MetaInfo' if label == 'COVID' else 'NonCOVID-CT-MetaInfo'
        pd.DataFrame(meta).to_csv(root / f'{stem}.csv', index=False)
    return root


def make_head_ct(root, n=8):
    for i in range(n):
        put(root / 'head_ct' / 'head_ct' / f'{i:03d}.png', noise(i))
    (root / 'labels.csv').write_text(
        'id, hemorrhage\n' + ''.join(f'{i},{int(i < n // 2)}\n' for i in range(n))
    )
    return root


def zip_folder(folder, path, prefix=''):
    with zipfile.ZipFile(path, 'w') as z:
        for p in sorted(Path(folder).rglob('*')):
            if p.is_file():
                z.write(p, prefix + str(p.relative_to(folder)))
    return path


def fake_table(n, labels=('a', 'b'), **columns):
    "A table without files, classes in turn; further columns by functions of the row's number."
    rows = [
        dict(image=f'/nowhere/{i}.png', label=labels[i % len(labels)], width=32, height=32)
        | dict(sha256=str(i), **{k: f(i) for k, f in columns.items()})
        for i in range(n)
    ]
    return as_table(rows)


def file_names(table):
    return [Path(p).name for p in table.image]


BROKEN = {
    'cut.png': lambda b: b[: len(b) // 2],
    'nearly.png': lambda b: b[:-20],
    'flipped.png': lambda b: b[:80] + bytes([b[80] ^ 255]) + b[81:],
    'empty.png': lambda b: b'',
    'text.png': lambda b: b'this is text',
    'page.jpg': lambda b: b'<html>not found</html>',
}
