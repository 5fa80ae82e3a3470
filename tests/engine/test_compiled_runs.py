"""Compiled runs: the graphs that a whole run makes, from train.py's settings."""
import pytest
import torch
from torch._dynamo.backends.registry import _COMPILER_FNS, register_backend
from torch._dynamo.testing import CompileCounterWithBackend

from tests.engine.runs import run
from timm_advprop.errors import InputError

# its name in torch 2.6, and later
FAIL_AT_LIMIT = ('fail_on_cache_limit_hit' if hasattr(torch._dynamo.config, 'fail_on_cache_limit_hit') else
                 'fail_on_recompile_limit_hit')


@pytest.fixture
def counter():
    """A backend that settings can name."""
    limit = torch._dynamo.config.cache_size_limit
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('eager')
    register_backend(counter, name='counting')
    with torch._dynamo.config.patch({FAIL_AT_LIMIT: True}):
        yield counter
    torch._dynamo.config.cache_size_limit = limit
    _COMPILER_FNS.pop('counting')
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_run_makes_all_its_graphs_in_its_first_epoch(few_digits, tmp_path, counter):
    numbers = []
    for epochs in (1, 3):
        torch._dynamo.reset()
        counter.clear()
        run(few_digits, tmp_path / str(epochs), epochs=epochs, torchcompile='counting', model_ema=True, batch_size=16)
        numbers.append(counter.frame_count)
    # the attack and the training step; evaluation of the model and of its average, whose last batch is a shorter one
    assert numbers[0] == numbers[1] <= 6


@pytest.mark.slow
def test_one_attacked_image_too_few_for_batch_statistics_is_one_line(few_digits, tmp_path, counter):
    with pytest.raises(InputError, match='^fast-advprop attacks 1 image of a batch of 8, .* larger images'):
        run(few_digits, tmp_path, torchcompile='counting', regime='fast-advprop', batch_size=8)
