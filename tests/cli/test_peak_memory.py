import pytest
import torch
import torch.nn.functional as F

from timm_advprop.cli.peak_memory import bytes_of, peak_memory

pytestmark = pytest.mark.usefixtures('one_thread')
CPU = torch.device('cpu')
MIB = 2 ** 20


def block(number, device=CPU):
    """A tensor of so many MiB."""
    return torch.empty(number * MIB, dtype=torch.uint8, device=device)


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_the_peak_is_the_most_that_is_there_at_a_time(device):
    def function():
        first, second = block(32, device), block(64, device)
        del first
        third = block(16, device)  # 80, after 96
        view = second.view(2, -1)
        return third, view
    assert peak_memory(function, torch.device(device)) == 96 * MIB


def test_what_is_inside_of_an_operation_counts():
    logits, target = torch.ones(1000, 1000), torch.zeros(1000, dtype=torch.long)
    # a number comes out, by way of the logarithms of all probabilities
    assert peak_memory(lambda: F.cross_entropy(logits, target), CPU) == pytest.approx(4e6, rel=0.01)


def test_a_backward_pass_counts():
    values = torch.zeros(MIB, requires_grad=True)  # 4 MiB

    def function():
        output = values.exp().exp()  # saves both
        output.backward(torch.ones_like(output))  # the gradients of output, of what is inside, and of values
    values.grad = torch.zeros_like(values)
    assert peak_memory(function, CPU) == pytest.approx(20 * MIB, rel=0.001)


def test_what_was_there_before_counts_neither_way():
    kept = []
    assert peak_memory(lambda: kept.append(block(3)), CPU) == 3 * MIB
    before = block(5)

    def function():
        kept.clear()
        before.zero_()
        block(2)
    assert peak_memory(function, CPU) == 2 * MIB


def test_nothing_needs_nothing():
    assert peak_memory(lambda: None, CPU) == 0


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match='not on meta'):
        peak_memory(lambda: None, torch.device('meta'))


def test_bytes_of_what_tensors_share_count_once():
    values = torch.zeros(100)
    assert bytes_of([values, values[:10], values.view(10, 10), torch.zeros(5, dtype=torch.float64)]) == 440
    assert bytes_of([]) == 0
