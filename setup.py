"""Package metadata from settings.ini; every `*_requirements` key there becomes an extra."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
suffix = '_requirements'

PROFILES = 'smoke', 'small', 'medium', 'paper'  # not those of one's own

# What commands need beside the modules. Of the GANs' contact sheets, the largest part of the records, only
# those travel that a figure shows; tests/test_figures.py draws figures from what travels.
SHIPPED = [
    'nbs/runs/*.ipynb',
    'nbs/papers/*.ipynb',
    'workflow/Snakefile',
    'workflow/configs/*.yaml',
    'workflow/profiles/*/*.yaml',
    *(
        f'records/{profile}/**/*.{kind}'
        for profile in ('smoke', 'small', 'medium', 'paper')
        for kind in ('json', 'npz')
    ),
    'records/*/ct_report/train_dcgan/*COVID/sheet_*.png',
    'records/*/ct_report/train_dcgan/*COVID-published/sheet_*.png',
    'records/*/wmlq2022/train_stylegan2/COVID-own/sheet_*.png',
]


class BuildWithFiles(build_py):
    "Modules, and beside them the files of SHIPPED in gan_covid/shipped: see gan_covid/notebooks.py."

    def run(self):
        super().run()
        if self.editable_mode:
            return  # the checkout is there
        folder = Path(self.build_lib) / 'gan_covid' / 'shipped'
        shutil.rmtree(folder, ignore_errors=True)
        for file in sorted({f for pattern in SHIPPED for f in here.glob(pattern)}):
            target = folder / file.relative_to(here)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


# pyproject.toml lists under `dynamic` exactly the fields that are set here: tests/test_repository.py
setup(
    cmdclass={'build_py': BuildWithFiles},
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    keywords=cfg['keywords'].split(),
    license=cfg['license'],
    packages=[
        'gan_covid',
        'gan_covid.anatomy',
        'gan_covid.datasets',
        'gan_covid.dcgan',
        'gan_covid.stylegan2',
        'gan_covid.study',
    ],
    package_data={
        'gan_covid': ['sources/*.yaml', 'templates/*'],  # published numbers, report page
        'gan_covid.study': ['page.html', 'methods.txt', 'references.yaml'],
    },
    install_requires=cfg['requirements'].split(),
    extras_require={
        k.removesuffix(suffix): v.split() for k, v in cfg.items() if k.endswith(suffix)
    },
    entry_points={'console_scripts': cfg['console_scripts'].split()},
)
