"""What a CPU computes in 16 bits without instructions for it, which is slower than float32, not faster."""
import logging
from typing import Iterable, Optional

import torch

__all__ = ['computes_natively', 'warn_of_emulation']

_logger = logging.getLogger(__name__)

# Any of these, by torch's names for them on x86 and ARM, is what oneDNN's kernels of a type need.
_INSTRUCTIONS = {
    torch.bfloat16: ('avx512_bf16', 'amx_bf16', 'avx10_2', 'avx_ne_convert', 'bf16', 'sve_bf16'),
    torch.float16: ('avx512_fp16', 'amx_fp16', 'avx10_2', 'avx_ne_convert', 'fp16_arith'),
}
_ONEDNN_CHECKS = {torch.bfloat16: '_is_mkldnn_bf16_supported', torch.float16: '_is_mkldnn_fp16_supported'}


def computes_natively(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for a 16-bit type; True where torch does not tell.

    Args:
        dtype: `torch.float16` or `torch.bfloat16`; for other types it is True.
    """
    if dtype not in _INSTRUCTIONS:
        return True
    if hasattr(torch.cpu, 'get_capabilities'):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _INSTRUCTIONS[dtype])
    # torch before it had that: whether oneDNN has kernels, which emulate bfloat16 where there is AVX-512 alone
    check = getattr(torch.ops.mkldnn, _ONEDNN_CHECKS[dtype], None) if torch.backends.mkldnn.is_available() else None
    return check is None or check()


def warn_of_emulation(device: torch.device, dtypes: Iterable[Optional[torch.dtype]]) -> None:
    """Say in one line which types this CPU only emulates.

    Args:
        device: The device of a run; of others than the CPU nothing is said.
        dtypes: Types that it computes in; None is passed over.
    """
    if device.type != 'cpu':
        return
    names = [str(dtype).removeprefix('torch.') for dtype in dict.fromkeys(dtypes)
             if dtype is not None and not computes_natively(dtype)]
    if names:
        _logger.warning(
            f'This CPU has no instructions for {" and ".join(names)}: what is computed in it (--amp-dtype, '
            '--model-dtype, --adv-amp-dtype) takes several times as long as in float32.')
