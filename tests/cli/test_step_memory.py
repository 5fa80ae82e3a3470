import pytest
import torch
import torch.nn as nn
from timm.task import ClassificationTask

from timm_advprop.cli.step_memory import print_memory, step_memory
from timm_advprop.cli.training_step import TrainingStep
from timm_advprop.engine.placement import Placement

pytestmark = pytest.mark.usefixtures('one_thread')
CPU = torch.device('cpu')
PARAMETERS, BUFFERS, IMAGES = 4 * (64 * 64 + 64 + 2 * 64), 4 * 2 * 64 + 8, 4 * 4096 * 64
BATCH = IMAGES + 8 * 4096


def step_of(model=None):
    model = model or nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    batch = torch.randn(4096, 64), torch.zeros(4096, dtype=torch.long)
    return TrainingStep(ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False), batch, Placement(CPU))


def test_memory_of_a_step_of_known_tensors():
    memory = step_memory(step_of(), CPU)
    assert memory.kept == 2 * PARAMETERS + BUFFERS + BATCH  # SGD's momentum is as large as the parameters
    # saved: the outputs of the layer and of log-softmax; then a gradient of the latter, and of its input
    assert memory.activations == pytest.approx(4 * IMAGES, rel=0.03)
    assert memory.peak == pytest.approx(memory.kept + 4 * IMAGES, rel=0.03)
    assert memory.accumulating == memory.kept + memory.activations + PARAMETERS


def test_gradients_come_as_activations_go():
    memory = step_memory(step_of(nn.Sequential(nn.Linear(64, 5000), nn.ReLU(), nn.Linear(5000, 64))), CPU)
    assert memory.kept + memory.activations < memory.peak < memory.accumulating


def test_a_step_trains_and_leaves_no_gradients():
    step = step_of()
    before = [value.clone() for value in step.module.parameters()]
    step()
    assert all(value.grad is None for value in step.module.parameters())
    assert not any(map(torch.equal, before, step.module.parameters()))
    step.add_gradients()
    first = [value.grad.clone() for value in step.module.parameters()]
    step.add_gradients()
    for gradient, value in zip(first, step.module.parameters(), strict=True):
        torch.testing.assert_close(value.grad, 2 * gradient)


def test_a_table_is_relative_to_its_first_row(capsys):
    memory = step_memory(step_of(), CPU)
    print_memory({'one': memory, 'two': memory._replace(activations=2 * memory.activations, peak=3 * memory.peak)})
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[:3] == ['MiB', 'kept', 'activations']
    (_, kept, activations, *first), (_, _, doubled, *second) = rows
    assert float(kept) == pytest.approx(memory.kept / 2 ** 20, abs=0.05)
    assert float(doubled) == pytest.approx(2 * float(activations), abs=0.11)
    assert (first[0], first[2], second[0], second[2]) == ('1.000', '1.000', '2.000', '3.000')
