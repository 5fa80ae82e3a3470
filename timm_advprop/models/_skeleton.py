"""Models without values, to read their structure: nothing is allocated, nothing initialised."""
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

import torch
from torch.overrides import TorchFunctionMode

__all__ = ['without_values']

_FILLS = {
    *(getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith('_') and not name.startswith('_')),
    *(getattr(torch.Tensor, name) for name in (
        'normal_', 'uniform_', 'erfinv_', 'clamp_', 'mul_', 'add_', 'fill_', 'zero_', 'div_', 'copy_')),
}


@contextmanager
def without_values() -> Iterator[None]:
    """Build models on the meta device and skip the initialisation of what has no values there."""
    with torch.device('meta'), _SkipFills():
        yield


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
