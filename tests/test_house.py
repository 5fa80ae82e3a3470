"""The ladder of rooms, as CONTRIBUTING.md draws it: imports go down only. And the size of what is in them."""
import ast
import sys
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

import timm_advprop

PACKAGE = Path(timm_advprop.__file__).parent
FILES = sorted(PACKAGE.rglob('*.py'))
STUDIES = sorted((PACKAGE.parent / 'studies').rglob('*.py'))

# From top to bottom; rooms of one step do not import each other.
LADDER = (
    {'cli'},
    {'hub'},
    {'robustness'},
    {'engine'},
    {'models'},
    {'regimes', 'weights'},
    {'norms', 'attacks', 'corruptions'},
    {'errors', 'settings', 'output', 'version'},
)
# `python -m timm_advprop.<name>` and the package's own names: they stand on top, and nothing imports them.
ENTRANCES = {'__init__', 'app', 'train', 'validate', 'data', 'wrap', 'benchmark'}
ALLOWED_LIBRARIES = {
    'settings': (),
    'errors': (),
    'output': (),
    'norms': ('torch', 'timm.layers', 'timm.utils'),
    'attacks': ('torch',),
    'corruptions': ('torch', 'numpy', 'cv2', 'PIL'),
    'regimes': ('torch', 'torchvision.transforms', 'numpy', 'timm.layers', 'timm.loss', 'timm.task'),
    'models': ('torch', 'timm.models'),
}


def room_of(path):
    if path.name == '__main__.py':
        return '__main__'
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def step_of(room):
    return next((step for step, rooms in enumerate(LADDER) if room in rooms), -1)


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
    return {name[1] if len(name) > 1 else '__init__' for name in names}


def in_package(paths):
    return [pytest.param(path, id=str(path.relative_to(PACKAGE))) for path in paths]


def functions(path):
    """Functions of a file with their length in lines, decorators left out."""
    return [(node.name, node.end_lineno - node.lineno + 1) for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def nesting(node, depth=0):
    """Blocks inside blocks of a function's body: 1 for a loop, 2 for a condition in it."""
    depths = [depth]
    for child in ast.iter_child_nodes(node):
        is_block = isinstance(child, (ast.For, ast.While, ast.If, ast.With, ast.Try))
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            depths.append(nesting(child, depth + (is_block and not is_elif)))
    return max(depths)


def public_definitions(path):
    tree = ast.parse(path.read_text())
    public = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, 'id', None) == '__all__' for target in node.targets):
            public.update(ast.literal_eval(node.value))
    return [node for node in tree.body if getattr(node, 'name', None) in public]


def test_every_file_has_a_place_on_the_ladder():
    rooms = {room_of(path) for path in FILES} - ENTRANCES - {'__main__'}
    assert rooms <= set().union(*LADDER)
    assert {'norms', 'regimes', 'models', 'weights', 'engine', 'hub', 'cli'} <= rooms


def test_import_reader_sees_relative_absolute_and_nested_imports(tmp_path, monkeypatch):
    task = PACKAGE / 'regimes' / 'advprop.py'
    assert {'torch', 'torch.nn', 'timm_advprop.norms', 'timm_advprop.regimes.task'} <= set(imported_modules(task))
    assert imported_rooms(task) == {'norms', 'regimes'}
    monkeypatch.setattr(sys.modules[__name__], 'PACKAGE', tmp_path)
    nested = tmp_path / 'norms' / 'file.py'
    nested.parent.mkdir()
    nested.write_text('def function():\n    from ..cli import train\n    import timm_advprop.hub.push\n')
    assert imported_rooms(nested) == {'cli', 'hub'}


@pytest.mark.parametrize('path', in_package(
    path for path in FILES if room_of(path) not in ENTRANCES | {'__main__'}))
def test_file_imports_only_from_rooms_below(path):
    room = room_of(path)
    others = imported_rooms(path) - {room}
    assert not [other for other in others if step_of(other) <= step_of(room)]


@pytest.mark.parametrize('name', [*sorted(ENTRANCES - {'__init__'}), 'hub/__main__', 'models/__main__'])
def test_entrance_leads_to_the_program_of_its_name(name):
    assert imported_rooms(PACKAGE / f'{name}.py') == {'cli'}
    assert len((PACKAGE / f'{name}.py').read_text().splitlines()) < 10


@pytest.mark.parametrize('path', in_package(path for path in FILES if room_of(path) in ALLOWED_LIBRARIES))
def test_file_imports_only_the_libraries_of_its_room(path):
    libraries = ALLOWED_LIBRARIES[room_of(path)]
    foreign = [
        name for name in imported_modules(path)
        if name.split('.')[0] not in sys.stdlib_module_names | {'timm_advprop'}
        and not any(name == library or name.startswith(f'{library}.') for library in libraries)
    ]
    assert not foreign


def test_no_file_name_stands_for_two_things():
    names = Counter(path.name for path in FILES if room_of(path) not in ENTRANCES)
    assert {name for name, count in names.items() if count > 1} <= {'__init__.py', '__main__.py'}


def test_functions_are_short():
    lengths = {f'{path.name}: {name}': length for path in (*FILES, *STUDIES) for name, length in functions(path)}
    assert median(lengths.values()) <= 10
    assert not {name: length for name, length in lengths.items() if length > 60}


def test_functions_are_flat():
    for path in (*FILES, *STUDIES):
        deep = [node.name for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.FunctionDef) and nesting(node) > 3]
        assert not deep, path


def test_no_regime_is_told_by_its_name_or_class():
    """What a regime needs its class says: neither names nor classes are compared."""
    regimes = timm_advprop.regimes.REGIMES
    told = {*regimes, *(task.__name__ for task in regimes.values())}
    for path in FILES:
        comparisons = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare))
        compared = {part.value if isinstance(part, ast.Constant) else getattr(part, 'id', None)
                    for node in comparisons for part in ast.walk(node)}
        assert not told & compared, path


@pytest.mark.parametrize('path', in_package(FILES))
def test_public_functions_and_classes_have_docstrings(path):
    assert not [node.name for node in public_definitions(path) if not ast.get_docstring(node)]


def test_docstring_check_sees_the_public_definitions():
    assert {'convert_split_norm', 'strip_aux'} <= {
        node.name for node in public_definitions(PACKAGE / 'norms' / 'conversion.py')}


@pytest.mark.parametrize('name', [
    'AdvPropTask', 'Attack', 'convert_split_norm', 'load_checkpoint', 'set_norm_route', 'norm_route', 'strip_aux',
    'split_state_dict', 'pgd', 'create_model', 'push_to_hub',
])
def test_package_exposes_the_public_contract(name):
    assert name in timm_advprop.__all__
    assert callable(getattr(timm_advprop, name))
