"""Sphinx's settings. Every page is made by pages.py, from README.md, the notebooks and the modules."""

import os
from configparser import ConfigParser
from pathlib import Path

ini = ConfigParser(delimiters=['='])
ini.read(Path(os.environ['GAN_COVID_ROOT']) / 'settings.ini', encoding='utf-8')

project = html_title = ini['DEFAULT']['lib_name']
author = ini['DEFAULT']['author']
version = release = ini['DEFAULT']['version']
language = 'en'
smartquotes = False  # docstrings speak of '' and ' as they are typed

extensions = ['myst_nb']
nb_execution_mode = 'off'  # outputs are shown as they are stored
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3
suppress_warnings = ['mystnb.unknown_mime_type', 'myst.header']

html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_extra_path = ['extra']
html_theme_options = {'navigation_with_keys': True}

# What the theme leaves out for people who read by keyboard or by ear
ACCESSIBLE = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="pages of this site">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="sections of this page">',
    '<pre>': '<pre tabindex="0">',
}


def make_accessible(app, error):
    "Complete the pages when all are written."
    for page in [] if error else Path(app.outdir).rglob('*.html'):
        if 'figures' in page.relative_to(app.outdir).parts:
            continue  # reports of their own
        text = page.read_text(encoding='utf-8')
        for old, new in ACCESSIBLE.items():
            text = text.replace(old, new)
        page.write_text(text, encoding='utf-8')


def setup(app):
    app.connect('build-finished', make_accessible)
