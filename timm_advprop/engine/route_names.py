"""Routes as a command line names them: main, aux, the number of a norm, or a share such as 0.3 for a blend."""
import re
from typing import Optional

import torch.nn as nn

from ..norms import Route, blend_routes, has_split_norm, norm_route, num_aux_norms

__all__ = ['canonical_route', 'is_blend', 'norm_route_of', 'plain_model_of', 'route_problem', 'route_share']

_NAMES = {'main': 'main', 'clean': 'main', '0': 'main', 'aux': 'aux', '1': 'aux'}
_AUX = re.compile(r'aux(?=[1-9]\d*$)')  # before a number, as tables name the further auxiliary norms
_SHARES = {'main': 0., 'aux': 1.}


def route_problem(route: str) -> Optional[str]:
    """What is wrong with the name of a route, None where nothing is."""
    route = _AUX.sub('', route)
    share = _number(route)
    if _is_norm(route) or share is not None and 0 <= share <= 1:
        return None
    return 'must be main, aux, the number of an auxiliary norm, or a share of the first one such as 0.3'


def canonical_route(route: str) -> str:
    """The one name of a route: `0.3` for `.30`, `2` for `02` and `aux2`, and `main` and `aux` for none and all of the
    first auxiliary norm."""
    route = _AUX.sub('', route)
    share = _number(route)
    if share is not None:  # a whole number names a norm
        route = str(int(share)) if share.is_integer() else repr(share)
    return _NAMES.get(route, route)


def route_share(route: str) -> Optional[float]:
    """Share of the first auxiliary norms in what images pass: 0 for `main`, 1 for `aux`, 0.3 for the blend of this
    name; None for other auxiliary norms."""
    return _SHARES.get(route, None if _is_norm(route) else _number(route))


def is_blend(route: str) -> bool:
    """Whether a route is a blend, of a plain model that lies between the routes of a split one."""
    return not _is_norm(route)


def norm_route_of(route: str) -> Route:
    """A route as `set_norm_route` takes it; the plain model of a blend has none but `'main'`."""
    return int(route) if route.isdecimal() else route if _is_norm(route) else 'main'


def plain_model_of(model: nn.Module, route: str) -> nn.Module:
    """Copy a model as the plain one that images of a route pass.

    Args:
        model: A model with split norms, or a plain one.
        route: The route; a plain model has `'main'` alone.

    Raises:
        ValueError: The model has no such route.
    """
    if not has_split_norm(model) and route == 'main':
        return model
    if is_blend(route):
        return blend_routes(model, route_share(route))  # pyright: ignore[reportArgumentType]
    with norm_route(model, norm_route_of(route)):  # which knows whether there is one
        pass
    number = {'main': 0, 'aux': 1}.get(route, norm_route_of(route))
    return blend_routes(model, [float(norm == number) for norm in range(1 + num_aux_norms(model))])


def _is_norm(route: str) -> bool:
    return route in _NAMES or route.isdecimal()


def _number(route: str) -> Optional[float]:
    try:
        return float(route)
    except ValueError:
        return None
