"""Package metadata from settings.ini; every `*_requirements` key there becomes an extra."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
suffix = '_requirements'

# pyproject.toml lists under `dynamic` exactly the fields that are set here: tests/test_repository.py
setup(
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
    ],
    package_data={'gan_covid': ['sources/*.yaml', 'templates/*']},  # published numbers, report page
    install_requires=cfg['requirements'].split(),
    extras_require={
        k.removesuffix(suffix): v.split() for k, v in cfg.items() if k.endswith(suffix)
    },
    entry_points={'console_scripts': cfg['console_scripts'].split()},
)
