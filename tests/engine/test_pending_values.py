"""`PendingValues`: what a step tells the host, without a stall."""
import pytest
import torch

from timm_advprop.engine.pending_values import PendingValues


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')])])
def test_values_come_by_name_as_they_were(device):
    loss = torch.tensor(1.5, device=device, requires_grad=True)
    values = PendingValues({'loss': loss * 2, 'top1': torch.tensor(25, device=device)})
    with torch.no_grad():
        loss.fill_(7.)
    assert values.read() == {'loss': 3., 'top1': 25.} == values.read()
