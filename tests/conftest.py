"""What every test shares: few threads, the engines' safe loading order, one start of the random numbers,
and the real data sets if there are any."""

import importlib.util
import os
import random
import sys
from pathlib import Path

# before NumPy, TensorFlow or torch are loaded. Of processes that test side by side each has one core,
# whatever the one that started them has set for itself
beside = 'PYTEST_XDIST_WORKER' in os.environ
for name in 'OMP', 'OPENBLAS', 'MKL', 'NUMEXPR':
    if beside:
        os.environ[f'{name}_NUM_THREADS'] = '1'
    os.environ.setdefault(f'{name}_NUM_THREADS', '2')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('MPLBACKEND', 'agg')

# TensorFlow loaded before triton aborts the process: both register the same LLVM options
if importlib.util.find_spec('triton'):
    import triton  # noqa: F401  loaded for its effect

import pytest  # noqa: E402  after the environment is set


def pytest_collection_modifyitems(items):
    "Files with long tests first, so that no process is left alone with one in the end."
    long = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in long)


def pytest_runtest_setup(item):
    "Every test draws from its own start, whichever tests ran before it: what fails once fails again."
    random.seed(0)
    for name, seed in (
        ('numpy', lambda m: m.random.seed(0)),
        ('torch', lambda m: m.manual_seed(0)),
        ('keras', lambda m: m.utils.set_random_seed(0)),
    ):
        if name in sys.modules:
            seed(sys.modules[name])


@pytest.fixture(scope='session')
def real_data():
    """Folder that holds the downloaded data sets: the environment variable GAN_COVID_DATA.

    Without it the test is skipped."""
    folder = os.environ.get('GAN_COVID_DATA')
    if not folder:
        pytest.skip(
            'real images are needed: set GAN_COVID_DATA to the folder of the downloaded data sets'
        )
    if not Path(folder).is_dir():
        pytest.fail(f'GAN_COVID_DATA={folder}: no such folder')
    return Path(folder).resolve()


@pytest.fixture
def download_cache(tmp_path_factory, monkeypatch):
    "An empty cache for what is unpacked from zips."
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('GAN_COVID_CACHE', str(folder))
    return folder


@pytest.fixture(scope='module')
def one_thread():
    "torch computes with one thread in a module of tests."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='session')
def radiographs(tmp_path_factory):
    "Folder of the runs on drawn radiographs: test_wmlq2022 and test_mgv2023 share the phantoms in it."
    return tmp_path_factory.mktemp('radiographs')
