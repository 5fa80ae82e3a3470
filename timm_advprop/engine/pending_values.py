"""Numbers on their way from a device: whoever asks for them at once would let the device run dry."""
from typing import Dict, Mapping

import torch

__all__ = ['PendingValues']


class PendingValues:
    """Copies scalars to the host while the device goes on.

    Args:
        values: Scalars on one device, by name.
    """

    def __init__(self, values: Mapping[str, torch.Tensor]):
        self.names = list(values)
        self.values = torch.stack([value.detach().float() for value in values.values()])
        self.arrived = None
        if self.values.device.type == 'cuda':
            source = self.values
            self.values = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self.values.copy_(source, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self) -> Dict[str, float]:
        """Wait for what was computed before this object was made, not for what was launched since."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist()))
