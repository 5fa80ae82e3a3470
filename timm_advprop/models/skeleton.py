"""Models without values, to read their structure: nothing is allocated, nothing initialised."""
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from timm.models import create_model
from torch.overrides import TorchFunctionMode

__all__ = ['create_skeleton']

_FILLS = {
    *(getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith('_') and not name.startswith('_')),
    *(getattr(torch.Tensor, name) for name in (
        'normal_', 'uniform_', 'erfinv_', 'clamp_', 'mul_', 'add_', 'fill_', 'zero_', 'div_', 'copy_')),
}


def create_skeleton(name: str) -> nn.Module:
    """Create a registered model on the meta device and skip the initialisation of what has no values there.

    Args:
        name: Model name.
    """
    try:
        with torch.device('meta'), _SkipFills():
            return create_model(name)
    except NotImplementedError:  # RegNets of older timm count their channels with tensors that need values
        return create_model(name)


class _SkipFills(TorchFunctionMode):
    def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Sequence[type],
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            target = args[0] if args else kwargs['tensor']
            if target.is_meta:
                return target
        return func(*args, **kwargs)
