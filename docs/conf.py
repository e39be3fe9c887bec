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
html_extra_path = ['extra']
html_theme_options = {'navigation_with_keys': True}
