"""What pyproject.toml declares is what the package imports, and where its files are."""
import ast
import re
import sys

import pytest
from setuptools import find_packages

from tests.test_house import FILES, PACKAGE

tomllib = pytest.importorskip('tomllib')  # of Python 3.11
ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
EXTRAS = PROJECT['optional-dependencies']
DISTRIBUTIONS = {'PIL': 'pillow', 'yaml': 'pyyaml', 'cv2': 'opencv-python-headless', 'sklearn': 'scikit-learn',
                 'elpv_dataset': 'elpv-dataset', 'torch_uncertainty_assets': 'torch-uncertainty-assets',
                 'huggingface_hub': 'huggingface-hub'}
OPTIONAL = {'sklearn': 'data', 'cv2': 'robustness', 'pyautoattack': 'robustness', 'matplotlib': 'demo',
            'elpv_dataset': 'studies', 'gradio': 'app'}


def names(requirements):
    """Distributions that requirements name, those of the extras they name among them."""
    found = set()
    for requirement in requirements:
        own = re.fullmatch(r'timm-advprop\[(.*)\]', requirement)
        found |= (set().union(*(names(EXTRAS[extra]) for extra in own[1].split(','))) if own else
                  {re.match(r'[\w-]+', requirement)[0]})
    return found


def third_party(files):
    modules = set().union(*(imported(ast.walk(ast.parse(path.read_text()))) for path in files))
    return modules - set(sys.stdlib_module_names) - {'timm_advprop', 'studies', 'tests'}


def imported(nodes):
    """Modules that nodes of a file import, relative imports left out."""
    nodes = list(nodes)
    return {alias.name.split('.')[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names} | {
        node.module.split('.')[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}


def test_what_the_package_imports_is_declared():
    required = names(PROJECT['dependencies'])
    for module in third_party(FILES):
        if module in OPTIONAL:
            assert DISTRIBUTIONS.get(module, module) in names(EXTRAS[OPTIONAL[module]]), module
        else:
            assert DISTRIBUTIONS.get(module, module) in required, module


def test_every_dependency_is_imported():
    modules = {DISTRIBUTIONS.get(module, module) for module in third_party(FILES)}
    assert names(PROJECT['dependencies']) <= modules


def test_what_is_optional_is_imported_where_it_is_needed():
    at_once = {(module, path.parent.name) for path in FILES for module in imported(ast.parse(path.read_text()).body)
               if module in OPTIONAL}
    assert at_once == {('cv2', 'corruptions'), ('gradio', 'cli')}  # whose files are imported by need


# tests/models, a venv's, another example, and a package that pins old releases of others
@pytest.mark.parametrize('folder, extra, beside', [
    ('studies', 'studies', set()),
    ('tests', 'dev', {'models', 'setuptools'}),
    ('examples', 'examples', {'digits', 'own_loop', 'torchattacks'}),
])
def test_studies_tests_and_examples_are_provided_for(folder, extra, beside):
    modules = third_party((ROOT / folder).rglob('*.py')) - beside
    provided = names(PROJECT['dependencies']) | names(EXTRAS[extra])
    assert {DISTRIBUTIONS.get(module, module) for module in modules} <= provided


def test_every_folder_of_code_is_a_package():
    assert {path.parent for path in FILES} == {PACKAGE.joinpath(*name.split('.')[1:])
                                               for name in find_packages(str(ROOT), include=['timm_advprop*'])}
