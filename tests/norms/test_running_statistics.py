"""Running statistics that are taken again from images."""
import pytest
import timm
import torch
import torch.nn as nn

from tests.norms.norm_models import create_small_net, snapshot
from timm_advprop.norms import can_recalibrate, convert_split_norm, recalibrate


@pytest.fixture
def net(randomize_norms):
    return randomize_norms(create_small_net()).eval()


def batches_of(*sizes):
    return [torch.randn(size, 3, 16, 16) + 1 for size in sizes]


def statistics(model, batches):
    """Means and unbiased variances of what the first norm sees, each batch by its number of images."""
    total = sum(map(len, batches))
    seen = [model[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    shares = [len(batch) / total for batch in batches]
    return (sum(share * values.mean(1) for share, values in zip(shares, seen)),
            sum(share * values.var(1) for share, values in zip(shares, seen)))


@torch.no_grad()
def test_statistics_are_the_mean_over_images(net):
    batches = batches_of(8, 8, 3)
    mean, var = statistics(net, batches)
    assert recalibrate(net, batches) is net
    torch.testing.assert_close(net[1].running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net[1].running_var, var, rtol=1e-5, atol=1e-6)
    assert net[1].num_batches_tracked == 3


@torch.no_grad()
def test_what_was_there_before_is_forgotten(net):
    (batch,) = batches_of(16)
    recalibrate(net, [batch])
    seen = snapshot(net)
    for norm in (net[1], net[4], net[8]):
        norm.running_mean.fill_(torch.nan)
        norm.running_var.fill_(torch.inf)
    recalibrate(net, [batch])
    assert all(torch.equal(value, seen[key]) for key, value in net.state_dict().items())
    # one batch, normalised by its own statistics, is what a model in train mode sees
    output = nn.Sequential(*net[:2]).eval()(batch)
    torch.testing.assert_close(output, net[1].train()(net[0](batch)), rtol=1e-2, atol=1e-2)


def test_a_batch_of_one_image_is_passed_over(net):
    batches = batches_of(4, 1)
    recalibrate(net, batches)
    seen = snapshot(net)
    recalibrate(net, batches[:1])
    assert all(torch.equal(value, seen[key]) for key, value in net.state_dict().items())
    with pytest.raises(ValueError, match='no images'):
        recalibrate(net, batches[1:])


def test_statistics_stay_where_there_are_no_images(net):
    before = snapshot(net)

    def broken():
        raise OSError('no disk')
        yield

    for batches, error in ((batches_of(1), ValueError), (broken(), OSError)):
        with pytest.raises(error):
            recalibrate(net, batches)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('fails', [False, True])
def test_modes_momenta_and_parameters_stay(net, fails):
    net[1].momentum, net[4].momentum = None, .3
    net.train()
    net[4].eval()
    before = {name: value.clone() for name, value in net.named_parameters()}
    if fails:
        with pytest.raises(RuntimeError):
            recalibrate(net, [torch.zeros(2, 5, 16, 16)])
    else:
        recalibrate(net, batches_of(4))
    assert (net[1].momentum, net[4].momentum, net[8].momentum) == (None, .3, .1)
    assert net.training and net[1].training and not net[4].training
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in net.named_parameters())


def test_dropout_stays_off():
    net = nn.Sequential(nn.Dropout(.9), nn.BatchNorm2d(3))
    (batch,) = batches_of(8)
    recalibrate(net, [batch])
    torch.testing.assert_close(net[1].running_mean, batch.mean((0, 2, 3)))


def test_what_cannot_be_recalibrated_is_refused(net):
    vit = timm.create_model('test_vit')
    assert can_recalibrate(net) and not can_recalibrate(vit)
    with pytest.raises(ValueError, match='no batch norms'):
        recalibrate(vit, batches_of(2))
    with pytest.raises(ValueError, match='one route'):
        recalibrate(convert_split_norm(net), batches_of(2))
