"""Who may import whom: down only, as CONTRIBUTING.md draws it; and the public names."""
import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import timm_advprop

PACKAGE = Path(timm_advprop.__file__).parent
FILES = sorted(PACKAGE.rglob('*.py'))

# A room is a file or folder right below the package. Which rooms it may import from; rooms not listed here only have
# to keep out of circles.
ALLOWED_ROOMS = {
    'norms': set(),
    'attacks': set(),
    'errors': set(),
    'regimes': {'norms', 'attacks', 'errors'},
    'downloads': {'errors'},
    'publication': {'downloads', 'norms', 'errors'},
    'models': {'publication', 'norms', 'errors'},
    'checkpoints': {'models', 'norms', 'errors'},
    'evaluation': {'models', 'regimes', 'norms', 'checkpoints', 'arguments', 'inputs', 'errors', 'version'},
    'hub': {'models', 'regimes', 'norms', 'publication', 'downloads', 'evaluation', 'checkpoints', 'arguments',
            'inputs', 'errors', 'version'},
}
FORBIDDEN_ROOMS = {
    'train': {'norms', 'attacks', '__init__'},
}
ALLOWED_LIBRARIES = {
    'norms': ('torch', 'timm.layers'),
    'attacks': ('torch',),
    'regimes': ('torch', 'timm.task'),
    'models': ('torch', 'timm.models'),
}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_modules(path):
    """Full names of what a file imports, wherever in the file: `torch.nn`, `timm.layers`, `timm_advprop.norms`, …"""
    location = ('timm_advprop', *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = location[:len(location) + 1 - node.level] if node.level else ()
            module = '.'.join((*base, *([node.module] if node.module else [])))
            if module in ('timm', 'timm_advprop'):  # `from timm import layers` imports timm.layers
                yield from (f'{module}.{alias.name}' for alias in node.names)
            else:
                yield module


def imported_rooms(path):
    names = [name.split('.') for name in imported_modules(path) if name.split('.')[0] == 'timm_advprop']
    rooms = {room_of(file) for file in FILES}
    return {name[1] if len(name) > 1 and name[1] in rooms else '__init__' for name in names} - {room_of(path)}


def files_of(rooms):
    return [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in FILES if room_of(path) in rooms]


def public_definitions(path):
    tree = ast.parse(path.read_text())
    public = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, 'id', None) == '__all__' for target in node.targets):
            public.update(ast.literal_eval(node.value))
    return [node for node in tree.body if getattr(node, 'name', None) in public]


def test_rooms_with_rules_exist():
    assert {'norms', 'attacks', 'errors', 'regimes', 'models'} <= {room_of(path) for path in FILES}


def test_import_reader_sees_relative_absolute_and_nested_imports():
    task = PACKAGE / 'regimes' / 'advprop.py'
    assert {'torch', 'torch.nn', 'timm_advprop.norms', 'timm_advprop.regimes.adversary'} <= set(
        imported_modules(task))
    assert imported_rooms(task) == {'norms', 'errors'}
    rooms = {'models', 'attacks', 'checkpoints', 'errors', 'hub', 'norms', 'regimes', 'version'}
    assert rooms == imported_rooms(PACKAGE / '__init__.py')


@pytest.mark.parametrize('path', files_of(ALLOWED_ROOMS))
def test_file_imports_only_from_rooms_below(path):
    assert imported_rooms(path) <= ALLOWED_ROOMS[room_of(path)]


@pytest.mark.parametrize('path', files_of(FORBIDDEN_ROOMS))
def test_training_loop_knows_neither_norms_nor_attacks(path):
    assert not imported_rooms(path) & FORBIDDEN_ROOMS[room_of(path)]


@pytest.mark.parametrize('path', files_of(ALLOWED_LIBRARIES))
def test_file_imports_only_the_libraries_of_its_room(path):
    libraries = ALLOWED_LIBRARIES[room_of(path)]
    foreign = [
        name for name in imported_modules(path)
        if name.split('.')[0] not in sys.stdlib_module_names | {'timm_advprop'}
        and not any(name == library or name.startswith(f'{library}.') for library in libraries)
    ]
    assert not foreign


def test_rooms_import_each_other_without_circles():
    graph = {}
    for path in FILES:
        graph.setdefault(room_of(path), set()).update(imported_rooms(path))
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize('path', files_of({room_of(path) for path in FILES}))
def test_public_functions_and_classes_have_docstrings(path):
    assert not [node.name for node in public_definitions(path) if not ast.get_docstring(node)]


def test_docstring_check_sees_the_public_definitions():
    assert {'convert_split_norm', 'strip_aux'} <= {
        node.name for node in public_definitions(PACKAGE / 'norms' / 'conversion.py')}


@pytest.mark.parametrize('name', [
    'AdvPropTask', 'convert_split_norm', 'load_checkpoint', 'set_norm_route', 'norm_route', 'strip_aux',
    'split_state_dict', 'pgd', 'create_model', 'push_to_hub',
])
def test_package_exposes_the_public_contract(name):
    assert name in timm_advprop.__all__
    assert callable(getattr(timm_advprop, name))
