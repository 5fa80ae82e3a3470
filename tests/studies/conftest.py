"""What tests of studies share."""
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def data(few_digits, tmp_path):
    """Real digits under the studies' names of splits, in the folder of Fashion-MNIST's data set."""
    folder = tmp_path / 'fashion-mnist-2000'
    shutil.copytree(few_digits, folder)
    shutil.copytree(folder / 'validation', folder / 'holdout')
    return str(folder)
