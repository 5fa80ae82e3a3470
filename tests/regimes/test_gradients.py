"""Losses whose backward passes rescale gradients of some parameters and add known ones; other losses stay alone."""
import pytest
import torch
import torch.nn as nn
from timm.models import checkpoint

from timm_advprop.regimes.gradients import add_gradients, scale_gradients


class Net(nn.Module):
    """One parameter is used twice, one is frozen, and a part may be recomputed."""

    def __init__(self, checkpointing=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.frozen = nn.Parameter(torch.ones(3).double(), requires_grad=False)
        self.checkpointing = checkpointing

    def body(self, x):
        return self.first(self.second(self.first(x).relu() * self.frozen))

    def forward(self, x):
        return (checkpoint(self.body, x) if self.checkpointing else self.body(x)).square().sum()

    def gradients(self):
        return {name: value.grad.clone() for name, value in self.named_parameters() if value.grad is not None}


X = torch.linspace(-1, 1, 12).double().view(4, 3)
FACTORS = {'first.weight': 3., 'second.bias': 0.5}


def factors_of(net):
    return {**{net.get_parameter(name): factor for name, factor in FACTORS.items()}, net.frozen: 7.}


def expected_gradients(factor=1.):
    net = Net()
    net(X).backward()
    return {name: value * factor * FACTORS.get(name, 1.) for name, value in net.gradients().items()}


def assert_gradients(net, expected):
    actual = net.gradients()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients_are_scaled_wherever_a_parameter_is_used(checkpointing):
    net = Net(checkpointing)
    loss = net(X)
    scale_gradients(loss, factors_of(net))
    loss.backward()
    assert_gradients(net, expected_gradients())


def test_each_loss_has_its_own_factors_and_keeps_them():
    net = Net()
    losses = [net(X), net(X), net(X)]
    scale_gradients(losses[0], factors_of(net))
    scale_gradients(losses[1], {net.first.weight: 0.})
    losses[0].backward(retain_graph=True)
    losses[0].backward()
    assert_gradients(net, expected_gradients(2.))
    net.zero_grad()
    losses[2].backward()  # no factors
    assert_gradients(net, {name: value / FACTORS.get(name, 1.) for name, value in expected_gradients().items()})
    net.zero_grad()
    losses[1].backward()
    assert not net.first.weight.grad.any() and net.second.weight.grad.any()


def test_other_losses_of_the_same_parameters_are_left_alone():
    net = Net()
    loss = net(X)
    scale_gradients(loss, factors_of(net))
    (loss + net.first.weight.square().sum()).backward()
    expected = expected_gradients()
    expected['first.weight'] += 2 * net.first.weight.detach()
    assert_gradients(net, expected)


@pytest.mark.parametrize('times', [1, 2])
def test_known_gradients_are_added_times_their_weights_in_each_backward_pass(times):
    net = Net()
    parameters = [net.first.weight, net.first.bias, net.second.weight]
    known = [torch.ones(3, 3).double(), None, torch.ones(1).double().expand(3, 3)]
    loss = add_gradients(net(X), parameters, known, [2., 5., 0.25])
    torch.testing.assert_close(loss.detach(), Net()(X).detach())
    for i in range(times):
        (loss * 3).backward(retain_graph=i + 1 < times)
    plain = Net()
    (plain(X) * 3 * times).backward()
    expected = plain.gradients()
    expected['first.weight'] += 3 * times * 2.
    expected['second.weight'] += 3 * times * 0.25
    assert_gradients(net, expected)
    assert all((value == 1).all() for value in known if value is not None)
    with pytest.raises(RuntimeError, match='second time'):
        loss.backward()
