"""Which loss an attack goes by: cross-entropy for classes of a softmax, else the task's criterion."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from tests.regimes.regime_models import CLASSES, HALF, make_batch, recorded_batches, tiny_model
from timm_advprop.attacks import cross_entropy
from timm_advprop.errors import InputError
from timm_advprop.regimes import AdvPropTask, Attack, FastAdvPropTask, JointTask, MadryTask
from timm_advprop.regimes.attack_loss import RandomTargetLoss, attack_loss_of

pytestmark = pytest.mark.usefixtures('one_thread')
UNTARGETED = Attack(eps_px=8, alpha_px=4, steps=2, target='none', random_start=0.)
TARGETED = Attack(eps_px=8, alpha_px=4, steps=2, target='random', random_start=0.)
BCE = nn.BCEWithLogitsLoss()
TASKS = [AdvPropTask, JointTask, MadryTask, FastAdvPropTask]


def one_logit_model():
    model = tiny_model()
    model[-1] = nn.Linear(8, 1)
    return model.train()


def attacked(task_type, model, criterion, attack, target, images=None):
    """The images before and after the attack of a training step."""
    images = make_batch(len(target), torch.float32)[0] if images is None else images
    if task_type is FastAdvPropTask:
        attack = Attack(eps_px=8, alpha_px=4, target=attack.target, random_start=0.)
    task = task_type(model, criterion, attack, verbose=False, **HALF)
    with recorded_batches(model) as seen:
        result = task(images, target)
    result['loss'].backward()
    clean = seen[0]
    adversarial = seen[-1][-len(clean):]
    if task_type is FastAdvPropTask:  # which shuffles
        near = torch.cdist(adversarial.flatten(1), clean.flatten(1)).argmin(dim=1)
        clean = clean[near]
    return clean, adversarial


@pytest.mark.parametrize('attack', [UNTARGETED, TARGETED], ids=lambda attack: attack.target)
@pytest.mark.parametrize('task_type', TASKS)
def test_a_single_logit_is_pushed_to_the_other_answer(task_type, attack):
    model, target = one_logit_model(), (torch.arange(20) % 2).float().unsqueeze(1)
    clean, adversarial = attacked(task_type, model, BCE, attack, target)
    assert (clean != adversarial).flatten(1).any(dim=1).all()


@pytest.mark.parametrize('attack', [UNTARGETED, TARGETED], ids=lambda attack: attack.target)
def test_the_loss_of_a_single_logit_rises(attack):
    model, target = one_logit_model().eval(), torch.tensor([[0.], [1.], [1.], [0.]])
    images = make_batch(4, torch.float32)[0]
    adversarial, _ = attack.normalised_by(**HALF).against(BCE)(model, images, target)
    before, after = ((model(x) * (1 - 2 * target)).flatten() for x in (images, adversarial))
    assert (after > before).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.long])
@pytest.mark.parametrize('criterion', [BCE, F.binary_cross_entropy_with_logits, BinaryCrossEntropy()])
def test_images_of_several_labels_or_none_are_attacked_by_the_binary_loss(criterion, dtype):
    model, images = tiny_model().eval(), make_batch(4, torch.float64)[0].float()
    target = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]]).to(dtype)
    attack = Attack(eps_px=4, alpha_px=4, steps=1, target='none', random_start=0., **HALF)
    adversarial, _ = attack.against(criterion)(model, images, target)
    leaf = images.clone().requires_grad_()
    F.binary_cross_entropy_with_logits(model(leaf), target.float()).backward()
    expected = (images + 4 / 255 / 0.5 * leaf.grad.sign()).clamp(-1, 1)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-6)
    assert (adversarial != images).flatten(1).any(dim=1).all()


@pytest.mark.parametrize('criterion', [
    nn.CrossEntropyLoss(label_smoothing=0.3), LabelSmoothingCrossEntropy(0.3), SoftTargetCrossEntropy(),
    JsdCrossEntropy(), F.cross_entropy], ids=lambda criterion: getattr(criterion, '__name__', type(criterion).__name__))
def test_softmax_criteria_are_attacked_by_plain_cross_entropy(criterion):
    assert attack_loss_of(criterion) is None
    assert UNTARGETED.against(criterion) is UNTARGETED or UNTARGETED.against(criterion) == UNTARGETED


@pytest.mark.parametrize('criterion', [BinaryCrossEntropy(0.1), lambda output, target: output.sum()])
def test_labels_of_one_class_are_attacked_by_cross_entropy_whatever_the_criterion(criterion):
    output, target = torch.randn(4, CLASSES), torch.arange(4)
    assert torch.equal(attack_loss_of(criterion)(output, target), F.cross_entropy(output, target, reduction='sum'))


def test_a_loss_that_was_set_stays():
    def loss(output, target):
        return output.sum(dim=1)

    attack = Attack(target='none', loss=loss)
    assert attack.against(BCE).loss is loss
    assert AdvPropTask(tiny_model(), BCE, attack, verbose=False, **HALF).sources[0].loss is loss
    images = make_batch(4, torch.float32)[0]
    model = tiny_model().eval()
    adversarial, _ = Attack(eps_px=4, target='none', loss=loss, **HALF)(model, images, torch.arange(4))
    assert (model(adversarial).sum(dim=1) > model(images).sum(dim=1)).all()


def test_a_random_target_is_a_label_that_the_image_lacks_alone():
    drawn = []
    loss = RandomTargetLoss(lambda output, target: drawn.append(target) or output.sum())
    target = torch.tensor([[1., 0., 1., 1.], [0., 1., 1., 1.]]).repeat(20, 1)
    for _ in range(3):
        loss(torch.zeros(40, 4), target)
    assert drawn[0] is drawn[1] is drawn[2]  # one for all steps
    assert torch.equal(drawn[0], 1 - target) and drawn[0].dtype == target.dtype
    many = RandomTargetLoss(lambda output, target: target)(torch.zeros(40, 4), torch.zeros(40, 4))
    assert (many.sum(dim=1) == 1).all() and (many.sum(dim=0) > 0).all()


def test_a_random_target_of_a_single_logit_is_the_other_answer():
    target = torch.tensor([[0.], [1.], [0.25]])
    assert torch.equal(RandomTargetLoss(lambda output, target: target)(torch.zeros(3, 1), target), 1 - target)


@pytest.mark.parametrize('attack', [UNTARGETED, TARGETED], ids=lambda attack: attack.target)
def test_a_single_logit_and_a_softmax_have_nothing_to_attack(attack):
    with pytest.raises(InputError, match='single logit|at least 2 classes') as error:
        attack.normalised_by(**HALF)(one_logit_model(), make_batch(4, torch.float32)[0], torch.zeros(4).long())
    assert '\n' not in str(error.value)


def test_class_weights_may_be_of_another_type_than_logits():
    output, weights = torch.randn(4, CLASSES), torch.rand(4, CLASSES)
    expected = F.cross_entropy(output, weights.half().float(), reduction='sum')
    assert torch.equal(cross_entropy(output, weights.half()), expected)
    assert cross_entropy(output, torch.ones(4, CLASSES).long()).isfinite()
