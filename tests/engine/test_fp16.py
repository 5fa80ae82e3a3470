"""Training in fp16 with a real loss scaler, on the CPU and on a GPU: an overflow stops no run and spoils no image."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.regimes.regime_models import make_batch, task_of, tiny_model
from timm_advprop.engine.loop import NonFiniteLoss, Trainer
from timm_advprop.engine.placement import Placement
from timm_advprop.norms import strip_aux
from timm_advprop.regimes import REGIMES, Attack, PyramidAttack, RegimeSettings, attacks_of

SCALE = 2. ** 8
HALF = (0.5,) * 3, (0.5,) * 3
EPS = 4 / 255 / 0.5  # of the default attack, for images normalised by mean and std 0.5
ATTACKERS = [name for name in REGIMES if attacks_of(RegimeSettings(name), is_split=True)]


class Observed(nn.Module):
    """Notes what passes a model, and lets gradients or logits overflow in some of its passes.

    Args:
        model: The model.
        is_steep: Says of images whether their pass has a gradient that is 2 ** 14 times as large on its way: one of 4
            is infinite in fp16, where 256 times that of a loss is much larger.
        is_high: Says of images whether their logits overflow.
    """

    def __init__(self, model, is_steep=lambda images: False, is_high=lambda images: False):
        super().__init__()
        self.model, self.is_steep, self.is_high = model, is_steep, is_high
        self.images, self.outputs, self.overflows = [], [], []

    def forward(self, images):
        self.images.append(images.detach())
        output = self.model(images)
        self.outputs.append(output.detach())
        if self.is_steep(images):
            small = output * 2. ** -14
            if small.requires_grad:
                small.register_hook(lambda grad: self.overflows.append(not bool(grad.isfinite().all())))
            output = small * 2. ** 14
        return output * 2. ** 20 if self.is_high(images) else output


def batches(device, count):
    return [tuple(value.to(device) for value in make_batch(10, torch.float32, seed)) for seed in range(count)]


def trainer_of(regime, device, count=3, scale=SCALE, growth_interval=2000, criterion=None, flags=None, **observed):
    """A trainer in fp16, and the observed model."""
    model = tiny_model()
    split = REGIMES[regime].sources_of_aux_norms(RegimeSettings(regime))
    observed = Observed(model if split else strip_aux(model), **observed).to(device)
    task = task_of(regime, observed, criterion, **(flags or {}))
    placement = Placement(device, amp_dtype=torch.float16)
    scaler = placement.loss_scaler()
    scaler._scaler = torch.amp.GradScaler(device.type, init_scale=scale, growth_interval=growth_interval)
    optimizer = torch.optim.SGD(observed.parameters(), lr=0.05)
    return Trainer(task, batches(device, count), optimizer, placement, loss_scaler=scaler), observed


def state_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(model, before):
    """Names of the parameters that are not as before."""
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def scale_of(trainer):
    return trainer.loss_scaler.state_dict()['scale']


def assert_finite(values):
    assert all(torch.isfinite(value).all() for value in values)


@pytest.mark.parametrize('regime', REGIMES)
def test_every_parameter_trains_and_the_scale_grows(device, regime):
    trainer, model = trainer_of(regime, device, count=4, growth_interval=2)
    before = state_of(model)
    metrics = trainer.train_epoch(0)
    assert changed(model, before) == {name for name, _ in model.named_parameters()}
    assert {output.dtype for output in model.outputs} == {torch.float16}
    assert scale_of(trainer) == 4 * SCALE
    assert_finite([*model.state_dict().values(), *model.images, torch.tensor(list(metrics.values()))])


def update_of(regime, device, amp_dtype, scaled):
    torch.manual_seed(0)
    trainer, model = trainer_of(regime, device, count=1, flags=dict(adv_random_start=0., adv_target='none')
                                if regime in ATTACKERS and regime != 'trades' else None)
    trainer.placement = Placement(device, amp_dtype=amp_dtype)
    trainer.loss_scaler = trainer.loss_scaler if scaled else None
    before = state_of(model)
    trainer.train_epoch(0)
    return torch.cat([(value.detach() - before[name]).flatten() for name, value in model.named_parameters()])


@pytest.mark.parametrize('regime', REGIMES)
def test_an_update_in_fp16_is_about_that_in_float32(device, regime):
    half, whole = update_of(regime, device, torch.float16, True), update_of(regime, device, None, False)
    assert F.cosine_similarity(half, whole, dim=0) > 0.99
    assert half.norm() / whole.norm() == pytest.approx(1, abs=0.05)


# overflow in an attack

@pytest.mark.parametrize('attack', [
    Attack(), Attack(target='none', random_start=1.), Attack(kind='gd'), Attack(norm='l2', eps_px=200., alpha_px=50.,
                                                                               steps=3),
    Attack(norm_stats='train'), PyramidAttack(eps_px=1.),
], ids=lambda attack: f'{type(attack).__name__} {attack.describe()}')
@pytest.mark.parametrize('overflow', ['is_steep', 'is_high'])
def test_attacked_images_stay_in_range(device, attack, overflow):
    model = Observed(strip_aux(tiny_model()), **{overflow: lambda images: True}).to(device)
    images, target = batches(device, 1)[0]
    with torch.autocast(device.type, torch.float16):
        adversarial, _ = attack.normalised_by(*HALF)(model, images, target)
    assert_finite([adversarial])
    assert adversarial.dtype == torch.float32 and adversarial.abs().max() <= 1 + 1e-6
    assert all(model.overflows) and len(model.overflows) == (attack.num_steps if overflow == 'is_steep' else 0)
    if attack == Attack():
        assert (adversarial - images).abs().max() <= EPS + 1e-6


@pytest.mark.parametrize('regime', ATTACKERS)
def test_gradients_that_overflow_make_no_update_until_the_scale_is_low(device, regime):
    trainer, model = trainer_of(regime, device, count=1, is_steep=lambda images: True)
    before, scales = state_of(model), [scale_of(trainer)]
    while not changed(model, before):
        trainer.train_epoch(0)
        scales.append(scale_of(trainer))
        assert scales[-1] in (scales[-2] / 2, scales[-2]) and scales[-1] > SCALE / 2 ** 9
    assert scales[-1] == scales[-2] == SCALE / 2 ** (len(scales) - 2) < SCALE / 4
    assert_finite([*model.state_dict().values(), *model.images])
    assert max(images.abs().max() for images in model.images) <= 1
    assert any(model.overflows)


def test_adversarial_images_of_a_step_that_overflows_are_in_the_ball(device):
    trainer, model = trainer_of('advprop', device, count=1, is_steep=lambda images: True)
    trainer.train_epoch(0)
    clean, adversarial = model.images[-1].chunk(2)
    assert 0 < (clean - adversarial).abs().max() <= EPS + 1e-6


# overflow in gradients that Fast AdvProp reuses

@pytest.mark.parametrize('flags', [
    dict(adv_target='none'), dict(adv_target='random'), dict(adv_norm='l2', adv_eps=200., adv_alpha=50.)], ids=str)
def test_reused_gradients_that_overflow_stop_no_update(device, flags):
    trainer, model = trainer_of(  # of ten images two are attacked
        'fast-advprop', device, flags=flags, is_steep=lambda images: len(images) == 2)
    before = state_of(model)
    trainer.train_epoch(0)
    assert model.overflows and all(model.overflows)
    assert scale_of(trainer) == SCALE
    assert changed(model, before) == {name for name, _ in model.named_parameters()}
    assert_finite([*model.state_dict().values(), *model.images])


# overflow in the loss

@pytest.mark.parametrize('regime', REGIMES)
def test_a_loss_in_fp16_is_too_large_for_a_high_scale(device, regime):
    trainer, model = trainer_of(
        regime, device, count=1, scale=2. ** 16,
        criterion=lambda output, target: F.cross_entropy(output, target).half())
    before = state_of(model)
    trainer.train_epoch(0)
    assert not changed(model, before) and scale_of(trainer) == 2. ** 15
    trainer.train_epoch(1)
    assert changed(model, before) and scale_of(trainer) == 2. ** 15
    assert_finite([*model.state_dict().values(), *model.images])


@pytest.mark.parametrize('regime', REGIMES)
def test_an_infinite_loss_stops_before_its_update(device, regime):
    trainer, model = trainer_of(regime, device, count=3)
    for _ in range(2):
        trainer.train_epoch(0)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.is_high = lambda images: True
    with pytest.raises(NonFiniteLoss, match='no update was made'):
        trainer.train_epoch(1)
    assert not changed(model, before) and scale_of(trainer) == SCALE
    assert_finite([*before.values(), *model.images])
