"""Compiled training: few graphs for each regime, all of them made in the first epoch, none of them left out."""
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.regimes.regime_models import CLASSES, NAMES, make_batch, split_model, task_of, tiny_model
from timm_advprop.regimes import REGIMES

pytestmark = pytest.mark.usefixtures('one_thread', 'fresh_dynamo')

# Kinds of passes in a step: those of an attack, a clean one that the attack needs, and the one that trains.
PASSES = {'vanilla': 1, 'madry': 2, 'joint': 2, 'trades': 3, 'advprop': 2, 'fast-advprop': 2}
FULL, SHORT = (20, 20), (20, 20, 10)


# its name in torch 2.6, and later
FAIL_AT_LIMIT = ('fail_on_cache_limit_hit' if hasattr(torch._dynamo.config, 'fail_on_cache_limit_hit') else
                 'fail_on_recompile_limit_hit')


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    # torch's own limit, which timm.optim lifts when it is imported; an error instead of eager mode, unnoticed
    with torch._dynamo.config.patch({'cache_size_limit': 8, FAIL_AT_LIMIT: True}):
        yield
    torch._dynamo.reset()


def graphs_of_epochs(task, sizes, test_sizes, epochs=3, ema=False, backend='eager'):
    """Number of graphs after each training step and each evaluation, epoch by epoch."""
    counter, numbers = CompileCounterWithBackend(backend), []
    if ema:
        task.setup_ema(decay=0.9)
    task.compile(backend=counter)
    if ema:
        task.compile_ema(backend=counter)
    dtype = next(task.parameters()).dtype
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.01)
    for _ in range(epochs):
        numbers.append([])
        task.get_trainable_module().train()
        for size in sizes:
            optimizer.zero_grad()
            task(*make_batch(size, dtype))['loss'].backward()
            optimizer.step()
            task.update_ema()
            numbers[-1].append(counter.frame_count)
        for model in [task.get_eval_model().eval(), *([task.get_eval_model(ema=True).eval()] if ema else [])]:
            with torch.inference_mode():
                for size in test_sizes:
                    model(make_batch(size, dtype)[0])
            numbers[-1].append(counter.frame_count)
    return numbers


def tiny_task(regime, num_aux=1, **flags):
    model = tiny_model(num_aux).train()
    model.num_classes = CLASSES
    return task_of(regime, model, **flags)


def test_every_regime_has_its_passes():
    assert PASSES.keys() == REGIMES.keys()


@pytest.mark.parametrize('regime', REGIMES)
def test_batches_of_one_size_need_a_graph_for_each_pass(regime):
    numbers = graphs_of_epochs(tiny_task(regime), FULL, FULL)
    passes = PASSES[regime]
    assert numbers == [[passes, passes, passes + 1]] + [[passes + 1] * 3] * 2


@pytest.mark.parametrize('num_aux', [2, 4])
def test_each_auxiliary_norm_has_a_graph_of_its_attack(num_aux):
    task = tiny_task('advprop', num_aux, adv_eps=tuple(range(1, num_aux + 1)))
    numbers = graphs_of_epochs(task, FULL, FULL)
    assert numbers == [[num_aux + 1] * 2 + [num_aux + 2]] + [[num_aux + 2] * 3] * 2


@pytest.mark.parametrize('ema', [False, True])
@pytest.mark.parametrize('regime', REGIMES)
def test_a_shorter_last_batch_makes_graphs_for_any_size_in_the_first_epoch_alone(regime, ema):
    first, *others = graphs_of_epochs(tiny_task(regime), SHORT, SHORT, ema=ema)
    assert first[-1] <= 2 * PASSES[regime] + 2 * (1 + ema)
    assert others == [[first[-1]] * len(first)] * 2


@pytest.mark.parametrize('strengths', [(1., 4.), (1., 2., 3., 4.)], ids=['2', '4'])
def test_several_auxiliary_norms_never_fall_back_to_eager_mode(strengths):
    num_aux, limit = len(strengths), torch._dynamo.config.cache_size_limit
    task = tiny_task('advprop', num_aux, adv_eps=strengths)
    first, *others = graphs_of_epochs(task, (20, 20, 10), (20, 20, 3), ema=True)
    assert num_aux * 2 + 3 <= first[-1] <= 2 * (num_aux + 1) + 4
    assert others == [[first[-1]] * len(first)] * 2
    assert num_aux < 4 or first[-1] > limit  # where dynamo would have given up


def test_room_for_graphs_is_made_and_never_taken():
    config = torch._dynamo.config
    with config.patch(cache_size_limit=8):
        tiny_task('advprop', 4, adv_eps=(1., 2., 3., 4.)).compile(backend='eager')
        assert config.cache_size_limit >= 2 * (4 + 1) + 4
    with config.patch(cache_size_limit=1000):
        tiny_task('advprop').compile(backend='eager')
        assert config.cache_size_limit == 1000


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('regime', REGIMES)
def test_timm_models_need_as_few(regime, name):
    task = task_of(regime, split_model(name, torch.float32).train())
    first, *others = graphs_of_epochs(task, SHORT, (20, 20, 3), ema=True, backend='aot_eager')
    assert first[-1] <= 2 * PASSES[regime] + 4
    assert others == [[first[-1]] * len(first)] * 2
