"""What every split norm is: a norm with auxiliary norms below it, and the route that says which of them images pass."""
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import torch
import torch.nn as nn
from timm.layers.norm_act import FrozenBatchNorm2d
from torch.nn.parallel import DistributedDataParallel

from .state_dict import index_aux_key, num_aux_in

__all__ = ['AuxNorms', 'SplitNorm', 'has_split_norm', 'num_aux_norms', 'split_norms']

MAIN, AUX, SPLIT = 0, 1, -1

_INSTEAD_OF_FREEZING = (
    'Freeze parameters with timm.utils.freeze(model, layers, include_bn_running_stats=False), and the statistics of '
    'norms in a layer with timm_advprop.freeze_norms(layer).')
_INSTEAD_OF_CONVERTING = (
    'Use timm_advprop.convert_sync_batchnorm(model) for synchronised split norms, timm_advprop.strip_aux(model) for a '
    'plain model that other converters can take.')


class AuxNorms(nn.ModuleList):
    """The auxiliary norms of one split norm.

    Converters that know nothing of split norms (torch's and timm's `convert_sync_batchnorm`, timm's
    `freeze_batch_norm_2d` and `convert_splitbn_model`) rebuild the main norm and replace the norms below it one by one.
    They would leave the auxiliary norms unused without a word, or change them and not the main norm, so replacing one
    is refused here.
    """
    if TYPE_CHECKING:  # a norm has attributes that nn.Module does not know
        def __iter__(self) -> Iterator[Any]: ...
        def __getitem__(self, idx: int) -> Any: ...

    def add_module(self, name: str, module: Optional[nn.Module]) -> None:
        self._refuse_another(name, module)
        super().add_module(name, module)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_another(name, value)
        super().__setattr__(name, value)

    def _refuse_another(self, name: str, module: Any) -> None:
        present = self.__dict__.get('_modules', {}).get(name)
        if present is not None and module is not present:
            advice = _INSTEAD_OF_FREEZING if isinstance(module, FrozenBatchNorm2d) else _INSTEAD_OF_CONVERTING
            raise TypeError(f'Replacing an auxiliary {type(present).__name__} by another {type(module).__name__} would '
                            f'drop the split norms. {advice}')


class SplitNorm(nn.Module):
    """Mixin that gives a norm auxiliary norms. It comes before the plain norm among the bases.

    A subclass states `plain_type`, the norm it splits, `aux_type`, the kind of its auxiliary norms, and `_normalize`,
    the forward pass of the main norm. It is registered as a leaf of FX graphs (`register_notrace_module`): a trace
    would hold the route of its moment forever.
    """
    if TYPE_CHECKING:  # TorchScript would take annotations of this class for all of the plain norm's
        plain_type: Type[nn.Module]
        aux_type: Type[nn.Module]
        aux_bn: AuxNorms
        route: int
        split_sizes: Optional[Sequence[int]]
        split_in: Optional[Tuple[nn.Module]]
        frozen: Tuple[bool, bool]
        def _normalize(self, x: torch.Tensor) -> torch.Tensor: ...
    own_state = ('route', 'split_sizes', 'split_in', 'frozen', 'share')  # which its plain norm does not have
    # Of the class, so that a norm nobody routed has them, whichever way it came to be: made, converted, unpickled.
    route = MAIN
    split_sizes = None
    # On route split: (the model,), in whose train mode the batch is divided; None divides it always. In a tuple, which
    # nn.Module does not take for a child.
    split_in = None
    frozen = (False, False)  # main norm, auxiliary norms: see freeze_norms
    share = 'none'  # of main and auxiliary norms: see shared_statistics

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():  # a scripted model is the main route
            return self._normalize(x)
        return self._normalize_by_route(x)

    def add_aux_norms(self, num_aux: int, share: str = 'none') -> None:
        """Add auxiliary norms, copies of the main norm.

        Args:
            num_aux: Their number, at least 1.
            share: What all norms share, see `shared_statistics`; nothing where the norm keeps no running statistics.
        """
        if num_aux < 1:
            raise ValueError(f'num_aux must be at least 1, got {num_aux}.')
        self.aux_bn = AuxNorms(self._copy_main_norm() for _ in range(num_aux))

    def _copy_main_norm(self) -> nn.Module:
        # Not deepcopy, which would take the norm's hooks and children along; not aux_type's constructor, which does not
        # know all settings (a frozen weight, attributes of subclasses).
        copy = self.aux_type.__new__(self.aux_type)
        nn.Module.__init__(copy)
        for name, value in vars(self).items():
            if name not in vars(copy):
                setattr(copy, name, value)
        for name, value in self._parameters.items():
            if value is not None:
                value = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
            copy.register_parameter(name, value)
        for name, value in self._buffers.items():
            copy.register_buffer(name, None if value is None else value.clone())
        return copy.train(self.training)

    def train(self, mode: bool = True) -> 'SplitNorm':
        """Set train or eval mode; frozen norms stay in eval mode."""
        super().train(mode)
        main, aux = self.frozen
        self.training = mode and not main
        self.aux_bn.train(mode and not aux)
        return self

    def __prepare_scriptable__(self) -> 'SplitNorm':
        # torch.jit.script asks for the module to compile
        if self.route > MAIN or self._divides():
            raise ValueError('A scripted model is the main route, this one is on another: set_norm_route(model, '
                             '\'main\') before torch.jit.script, or trace it.')
        return self

    def _divides(self) -> bool:
        # Not by the norm's own mode: a user may freeze the statistics of some norms, and parts of a model in train mode
        # must not mix in these.
        return self.route == SPLIT and (self.split_in is None or self.split_in[0].training)

    @torch.jit.unused
    def _normalize_by_route(self, x: torch.Tensor) -> torch.Tensor:
        if self._divides():
            return self._normalize_parts(x)
        if self.route > MAIN:
            return self._apply_aux(self.aux_bn[self.route - 1], x)
        if DistributedDataParallel._active_ddp_module is not None and torch.is_grad_enabled():
            unused = [value for value in self.aux_bn.parameters() if value.requires_grad]
            x = _Unused.apply(x, *unused) if unused else x
        return self._normalize(x)

    def _normalize_parts(self, x: torch.Tensor) -> torch.Tensor:
        # All kinds of images are one batch, [main; aux 1; aux 2; …] along dimension 0: the shared layers run once, over
        # all of them, DDP sees one forward pass, and only here do the parts go separate ways.
        main, *others = x.split(self._part_sizes(x.shape[0]))
        return torch.cat([self._normalize(main), *(norm(part) for norm, part in zip(self.aux_bn, others))])

    def _apply_aux(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return norm(x)

    def _part_sizes(self, num_rows: int) -> List[int]:
        # Rows of a part are its images, unless the model lays the tokens or windows of all images below each other, as
        # [N * L, C] (levit) or [N * windows, C, H, W] (efficientvit_msra): L rows an image, image by image, so that
        # parts stay whole and in order.
        if self.split_sizes is None:
            return self._equal_parts(num_rows)
        num_images = sum(self.split_sizes)
        if num_rows < num_images or num_rows % num_images:  # no divmod, which dynamo cannot trace
            raise ValueError(f'Route split was set for parts of {list(self.split_sizes)} images, '
                             f'the batch has {num_rows}.')
        return [size * (num_rows // num_images) for size in self.split_sizes]

    def _equal_parts(self, num_rows: int) -> List[int]:
        num_parts = 1 + len(self.aux_bn)
        if num_rows % num_parts:
            raise ValueError(f'Route split needs a batch divisible by {num_parts} (one equal part for each norm), '
                             f'got {num_rows}. State the parts with set_norm_route(model, \'split\', sizes=…).')
        return [num_rows // num_parts] * num_parts

    def _load_from_state_dict(
            self, state_dict: Dict[str, Any], prefix: str, local_metadata: Dict[str, Any], strict: bool,
            missing_keys: List[str], unexpected_keys: List[str], error_msgs: List[str],
    ) -> None:
        # Auxiliary norms that a checkpoint lacks (a plain one has none) start as copies of the main norm. They do so
        # here because create_model, load_checkpoint, resume, features_only and the Hub all load through this method,
        # strict or not, and because only the norm knows which of the keys are its own.
        keys = [key for key in state_dict if key.startswith(f'{prefix}aux_bn.')]
        for key in keys:
            state_dict[index_aux_key(key)] = state_dict.pop(key)
        keys = [index_aux_key(key) for key in keys]
        surplus = num_aux_in(keys) - len(self.aux_bn)
        if surplus > 0:  # a non-strict load would drop them without a word
            error_msgs.append(f'{prefix}aux_bn: {surplus} more auxiliary norms than the model has, create it with '
                              f'num_aux={len(self.aux_bn) + surplus}.')
        for i, aux in enumerate(self.aux_bn):
            aux_prefix = f'{prefix}aux_bn.{i}.'
            missing = [name for name in aux.state_dict() if aux_prefix + name not in keys]
            # All are missing, or the statistics, which it shared with the main norm. Else it stays an error.
            if missing in (list(aux.state_dict()), [name for name, _ in aux.named_buffers()]):
                state_dict.update({aux_prefix + name: state_dict[prefix + name].clone()
                                   for name in missing if prefix + name in state_dict})
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, num_aux={len(self.aux_bn)}'


class _Unused(torch.autograd.Function):
    # Ties parameters that a pass does not use to its graph, without gradients. DDP waits for all parameters: a split
    # model that is trained on its main route, by a task that knows nothing of routes, would fail where the plain one
    # does not.
    @staticmethod
    def forward(ctx, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.num_parameters = len(parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        return grad, *[None] * ctx.num_parameters


def split_norms(model: nn.Module) -> Iterator[SplitNorm]:
    """Iterate over the split norms of a model."""
    return (module for module in model.modules() if isinstance(module, SplitNorm))


def has_split_norm(model: nn.Module) -> bool:
    """Whether a model has split norms."""
    return next(split_norms(model), None) is not None


def num_aux_norms(model: nn.Module) -> int:
    """Number of auxiliary norms of each split norm of a model, 0 for a plain model."""
    norm = next(split_norms(model), None)
    return 0 if norm is None else len(norm.aux_bn)
