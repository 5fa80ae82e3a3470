"""The plain model of a route, for a publication: a blend of main and auxiliary norms, or one of them."""
from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch.nn as nn

from ..engine.datasets import DataConfig
from ..engine.placement import open_placement
from ..engine.recalibration import Recalibration
from ..engine.route_names import canonical_route, is_blend, plain_model_of, route_problem, route_share
from ..engine.run_settings import DeviceSettings, LoaderSettings, TrainDataSettings
from ..errors import InputError, as_input_error
from ..norms import has_split_norm
from ..weights import weights_digest

__all__ = ['Blend', 'BlendRequest', 'blended']


@dataclass(frozen=True)
class BlendRequest:
    """A route that is published as a plain model.

    Args:
        route: The route, as `--route` of the validation program takes it.
        recalibrate: Number of training images that running statistics are taken from, 0 for none.
        data_dir: Root folder of the data set, by default that of the run.
    """
    route: str
    recalibrate: int = 0
    data_dir: Optional[str] = None

    @classmethod
    def of(cls, route: Any, recalibrate: int = 0, data_dir: Optional[str] = None) -> Optional['BlendRequest']:
        """What arguments ask for, None where they ask for nothing.

        Raises:
            InputError: There is no such route, or the others have no route.
        """
        if route is None:
            if recalibrate or data_dir:
                raise InputError('--recalibrate and --data-dir are for the statistics of one route: give --route, such '
                                 'as main or 0.3.')
            return None
        problem = route_problem(str(route))
        if problem:
            raise InputError(f'--route {problem}, got {str(route)!r}.')
        if recalibrate < 0 or recalibrate == 1:
            raise InputError(f'--recalibrate must be 0 for none, or at least 2, got {recalibrate}.')
        if data_dir and not recalibrate:
            raise InputError('--data-dir is for the images of --recalibrate.')
        return cls(canonical_route(str(route)), recalibrate, data_dir)


@dataclass(frozen=True)
class Blend:
    """What the norms of a published plain model are made of.

    Args:
        request: What was asked for.
        aux_norms: What the auxiliary norms of the run were trained on, see `Release`.
        recalibrated: Images that running statistics were taken from, '' where they are those of training.
        weights: Name of the weights, as the validation program calls them.
    """
    request: BlendRequest
    aux_norms: Sequence[Mapping[str, Any]]
    recalibrated: str
    weights: str

    @property
    def route(self) -> str:
        """The route, by its one name."""
        return self.request.route

    @property
    def flags(self) -> str:
        """The flags that ask for it."""
        count = self.request.recalibrate
        return f'--route {self.route}' + (f' --recalibrate {count}' if count else '')

    @property
    def name(self) -> str:
        """The norms in a word: `blend 0.3`, `main`, `aux`, `aux 2`."""
        if is_blend(self.route):
            return f'blend {self.route}'
        return self.route if self.route in ('main', 'aux') else f'aux {self.route}'

    def uses_aux(self, number: int) -> bool:
        """Whether the auxiliary norms of a number, from 1, are among them."""
        return self.route == str(number) or number == 1 and bool(route_share(self.route))

    def details(self) -> Dict[str, str]:
        """What `config.json` says of it."""
        return {'route': self.route, **({'recalibrated': self.recalibrated} if self.recalibrated else {})}


def blended(
        model: nn.Module,
        request: BlendRequest,
        recipe: Mapping[str, Any],
        config: DataConfig,
        aux_norms: Sequence[Mapping[str, Any]],
) -> Tuple[nn.Module, Blend]:
    """The plain model of a route.

    Args:
        model: The model of the run, on the CPU.
        request: The route.
        recipe: Arguments of the run, under the names of `args.yaml`.
        config: How images are sized and normalised.
        aux_norms: What its auxiliary norms were trained on.

    Returns:
        The model, and what its norms are made of.

    Raises:
        InputError: The model has no such route, or its statistics cannot be taken again.
    """
    if request.route != 'main' and not has_split_norm(model):
        raise InputError(f'--route {request.route} needs auxiliary norms, the model has none.')
    recalibration = _recalibration(request, recipe, config) if request.recalibrate else None
    plain = as_input_error(plain_model_of, model, request.route)
    # the validation program takes auxiliary norms where they are, unless it has to write into a plain model
    validated = plain if is_blend(request.route) or recalibration else model
    weights = weights_digest(validated.state_dict(), request.route)
    if recalibration is None:
        return plain, Blend(request, aux_norms, '', weights)
    placement = open_placement(DeviceSettings())
    plain = recalibration(plain.float().to(placement.device), placement, LoaderSettings.from_values(
        {name: recipe[name] for name in ('workers', 'pin_mem', 'no_prefetcher') if name in recipe})).cpu()
    return plain, Blend(request, aux_norms, recalibration.describe(), recalibration.digest(weights))


def _recalibration(request: BlendRequest, recipe: Mapping[str, Any], config: DataConfig) -> Recalibration:
    data = as_input_error(TrainDataSettings.from_values, recipe)
    # a checkpoint cannot ask for downloads and for code
    data = replace(data, data_dir=request.data_dir or data.data_dir, dataset_download=False,
                   dataset_trust_remote_code=False)
    recalibration = Recalibration(data, data.train_split, request.recalibrate, config)
    recalibration.check_split()
    return recalibration
