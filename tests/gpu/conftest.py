"""The devices of the GPU suite."""
import pytest
import torch


@pytest.fixture(params=[pytest.param('cpu', marks=pytest.mark.slow), pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request):
    """A CUDA device; and the CPU, which shows that a test itself works."""
    return torch.device(request.param)
