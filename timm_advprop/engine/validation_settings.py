"""What a training run validates beside clean images on the main norms, and which checkpoint is the best."""
from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

from ..errors import near_matches
from ..regimes import Attack
from ..settings import Settings, setting
from .attack_settings import TestAttack
from .route_names import canonical_route, is_blend

__all__ = ['METRICS', 'ValidationSettings', 'is_decreasing', 'prefix_of_route']

METRICS = ('loss', 'top1', 'top5', 'macro_f1', 'balanced_accuracy')


def _route_problem(route: str) -> Optional[str]:
    return 'must be aux or the number of an auxiliary norm' if is_blend(canonical_route(route)) else None


@dataclass(frozen=True)
class ValidationSettings(Settings):
    """What is validated in an epoch, and the metric of the best checkpoint."""
    title = 'Validation parameters'
    val_interval: int = setting(1, 'epochs between validations', low=1, metavar='N')
    val_routes: Tuple[str, ...] = setting(
        (), 'validate the auxiliary norms too: aux, or i for the i-th', nargs='+', metavar='ROUTE',
        check=_route_problem)
    val_adv_eps: Optional[float] = setting(
        None, 'validate under a PGD attack of this strength too, through the main norms', above=0, high=255,
        unit='in 0–255 pixels', metavar='PX')
    val_extra_interval: Optional[int] = setting(
        None, 'epochs between validations of --val-routes and --val-adv-eps', low=1, metavar='N',
        default_help='--val-interval')
    eval_metric: str = setting(
        'top1', f'metric of the best checkpoint: {", ".join(METRICS)}; of --val-routes aux_top1, aux2_top1 and so on, '
        'of --val-adv-eps adv_top1 and so on', metavar='METRIC')

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_extra_interval and self.val_extra_interval % self.val_interval:
            raise ValueError(f'--val-extra-interval {self.val_extra_interval} must be a multiple of --val-interval '
                             f'{self.val_interval}.')

    @property
    def routes(self) -> List[str]:
        """Routes to validate beside the main one, each once."""
        return [route for route in dict.fromkeys(map(canonical_route, self.val_routes)) if route != 'main']

    @property
    def attack(self) -> Optional[Attack]:
        """The attack to validate under, that of `validate.py --adv-attack pgd`."""
        return None if self.val_adv_eps is None else replace(TestAttack.default, eps_px=self.val_adv_eps)

    def is_due(self, epoch: int, last: int) -> bool:
        """Whether an epoch is validated; the last one always is."""
        return epoch == last or (epoch + 1) % self.val_interval == 0

    def extras_are_due(self, epoch: int, last: int) -> bool:
        """Whether auxiliary norms and attacked images are validated then, too."""
        return epoch == last or (epoch + 1) % (self.val_extra_interval or self.val_interval) == 0

    def problem_of_metric(self) -> Optional[str]:
        """What is wrong with the metric of the best checkpoint, None where a run measures it."""
        kinds = ['', *(f'{prefix_of_route(route)}_' for route in self.routes), *(['adv_'] if self.attack else [])]
        measured = [kind + name for kind in kinds for name in METRICS]
        if self.eval_metric in measured:
            return None
        hint = near_matches(self.eval_metric, measured)
        return (f'--eval-metric {self.eval_metric} is not measured{hint}: it may be {", ".join(METRICS)}, with aux_ in '
                'front where --val-routes aux is given (aux2_ with 2), with adv_ where --val-adv-eps is')


def prefix_of_route(route: str) -> str:
    """Begins the names of a route's metrics: `aux`, `aux2`."""
    return route if route == 'aux' else f'aux{route}'


def is_decreasing(metric: str) -> bool:
    """Whether a lower value of a metric is better."""
    return metric.endswith('loss')
