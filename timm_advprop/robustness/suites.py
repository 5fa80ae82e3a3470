"""The suites by name, and what a command line asks for of them."""
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from ..engine.attack_settings import TestAttack
from ..engine.eval_settings import EvalSettings
from ..errors import InputError, near_matches
from ..settings import Settings, setting
from .attack_suites import attack_cells, autoattack_cells
from .cells import Cell
from .image_suites import clean_cells, corruption_cells, imagenet_c_cells, published_cells, real_cells
from .published_sets import PUBLISHED_SETS, check_num_classes

__all__ = ['SUITES', 'Suite', 'SuiteSettings', 'check_attack_flags', 'check_model', 'is_attacked', 'suite_cells']


@dataclass(frozen=True)
class Suite:
    """A kind of evaluation.

    Args:
        cells: Makes its cells from the settings of a run and the suite's folder. What is missing is told here, before a
            model is opened.
        has_folder: It has a data set of its own; others take the split of `--data-dir`.
        attacks: It attacks the model.
        of_imagenet: It is for models of the 1,000 ImageNet classes.
    """
    cells: Callable[[EvalSettings, str], List[Cell]]
    has_folder: bool = False
    attacks: bool = False
    of_imagenet: bool = False


SUITES: Dict[str, Suite] = {
    'corruptions': Suite(corruption_cells),
    'imagenet-c': Suite(imagenet_c_cells, has_folder=True, of_imagenet=True),
    **{name: Suite(partial(published_cells, name=name), has_folder=True, of_imagenet=True) for name in PUBLISHED_SETS},
    'imagenet-real': Suite(real_cells, of_imagenet=True),
    'attacks': Suite(attack_cells, attacks=True),
    'autoattack': Suite(autoattack_cells, attacks=True),
}


_FOR_AUTOATTACK = {'adv_eps', 'adv_norm'}  # of the flags of an attack


def _suite_problem(value: str) -> Optional[str]:
    name, given, folder = value.partition('=')
    if name not in SUITES:
        return f'must be one of {", ".join(SUITES)}{near_matches(name, list(SUITES))}'
    if given and not SUITES[name].has_folder:
        return f'must be {name} alone: it takes the data set of --data-dir'
    if given and not folder:
        return f'must have a folder behind {name}='
    return None


def _suite_help() -> str:
    of_split = ', '.join(name for name, suite in SUITES.items() if not suite.has_folder)
    of_folder = ', '.join(f'{name}=DIR' for name, suite in SUITES.items() if suite.has_folder)
    return (f'evaluate beyond the clean test set. Of the split of --data-dir: {of_split}; of a folder: {of_folder}. '
            'Writes --results-file (default: robustness.csv), tables and pictures beside it; the same command goes on '
            'where it stopped. attacks has --adv-eps 1 2 4 8 by default. Needs timm-advprop[robustness]')


@dataclass(frozen=True)
class SuiteSettings(Settings):
    """Which suites."""
    title = 'Robustness suites'
    suite: Tuple[str, ...] = setting((), _suite_help(), nargs='+', metavar='NAME[=DIR]', check=_suite_problem)


def suite_cells(settings: EvalSettings, suites: Sequence[str]) -> List[Cell]:
    """The cells of a run, clean images first where there is a validation split.

    Args:
        settings: Settings of the run.
        suites: Suites as `--suite` takes them, `NAME` or `NAME=DIR`.

    Raises:
        InputError: A folder or a library is missing.
    """
    asked = _folders_by_name(suites)
    cells = [] if all(SUITES[name].has_folder for name in asked) else clean_cells(settings)
    for name, folder in asked.items():
        cells += SUITES[name].cells(settings, _folder(name, folder, settings, alone=len(asked) == 1))
    return cells


def is_attacked(suites: Sequence[str]) -> bool:
    """Whether one of the suites attacks the model."""
    return any(SUITES[name].attacks for name in _folders_by_name(suites))


def check_attack_flags(suites: Sequence[str], attack: TestAttack) -> None:
    """Check that the suites have a use for the flags of an attack.

    Raises:
        ValueError: They have not.
    """
    if not is_attacked(suites) and (attack.attack or attack.given):
        raise ValueError('Flags of an attack belong to a suite that attacks: --suite attacks or autoattack.')
    if 'attacks' not in suites and (attack.attack or not _FOR_AUTOATTACK.issuperset(attack.given)):
        raise ValueError('Suite autoattack takes --adv-eps and --adv-norm; other flags of an attack are for --suite '
                         'attacks.')


def check_model(suites: Sequence[str], num_classes: int) -> None:
    """Check that a model can be evaluated on suites.

    Raises:
        InputError: A suite is of other classes.
    """
    for name in _folders_by_name(suites):
        if SUITES[name].of_imagenet:
            check_num_classes(name, num_classes)


def _folders_by_name(suites: Sequence[str]) -> Dict[str, str]:
    folders: Dict[str, str] = {}
    for name, _, folder in (value.partition('=') for value in suites):
        if folders.setdefault(name, folder) != folder:
            raise InputError(f'Suite {name} has two folders: evaluate them one after the other, each with a '
                             '--results-file of its own.')
    return folders


def _folder(name: str, folder: str, settings: EvalSettings, alone: bool) -> str:
    if not SUITES[name].has_folder or folder:
        return folder
    if alone and settings.data.data_dir:
        return settings.data.data_dir
    raise InputError(f'Suite {name} needs the folder of its images: --suite {name}=DIR.')
