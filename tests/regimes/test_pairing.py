"""Losses between routes: against closed forms and plain second implementations, and in the tasks that take them."""
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from tests.cli.programs import run_train
from tests.engine.runs import read_summary
from tests.regimes.regime_models import (
    ALPHA,
    CLASSES,
    DETERMINISTIC,
    HALF,
    STRONG,
    assert_all_close,
    gradients_of,
    hand_attack,
    make_batch,
    negative,
    plain_twin,
    plain_twins,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import AdvPropTask, InputError, JointTask
from timm_advprop.regimes import PAIRINGS, Attack, AugmentedView, GaussianNoise, RegimeSettings, Source
from timm_advprop.regimes.pairing import alp, distributions, js, kl

pytestmark = pytest.mark.usefixtures('one_thread')
ATTACK = Attack(eps_px=STRONG, alpha_px=ALPHA, **DETERMINISTIC)
LABELS = torch.tensor([0, 1, 2])


# The losses, by hand


def alp_by_hand(main, aux):
    return sum(float((a - b) ** 2) for a, b in zip(main.flatten(), aux.flatten())) / main.numel()


def kl_by_hand(main, aux):
    p, q = (logits.exp() / logits.exp().sum(-1, keepdim=True) for logits in (main, aux))
    return float((p * (p / q).log()).sum() / len(p))


def js_by_hand(main, aux):
    p, q = (logits.exp() / logits.exp().sum(-1, keepdim=True) for logits in (main, aux))
    mean = (p + q) / 2
    return float(sum((half * (half / mean).log()).sum() / 2 for half in (p, q)) / len(p))


BY_HAND = {'alp': alp_by_hand, 'kl': kl_by_hand, 'js': js_by_hand}


def logits_pair(*shape):
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(2, *shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize('name', PAIRINGS)
def test_a_pairing_is_its_formula(name):
    main, aux = logits_pair(4, 5)
    assert PAIRINGS[name][0](main, aux, LABELS).item() == pytest.approx(BY_HAND[name](main, aux), rel=1e-12)


@pytest.mark.parametrize('name', PAIRINGS)
def test_gradients_flow_into_both_routes_and_are_those_of_finite_differences(name):
    main, aux = (logits.requires_grad_() for logits in logits_pair(3, 4))
    assert torch.autograd.gradcheck(lambda main, aux: PAIRINGS[name][0](main, aux, LABELS), (main, aux))
    gradients = torch.autograd.grad(PAIRINGS[name][0](main, aux, LABELS), (main, aux))
    assert all(gradient.abs().min() > 1e-6 for gradient in gradients)


def test_the_gradients_in_closed_form():
    main, aux = (logits.requires_grad_() for logits in logits_pair(3, 4))
    p, q = main.softmax(1).detach(), aux.softmax(1).detach()
    _, of_aux = torch.autograd.grad(kl(main, aux, LABELS), (main, aux))
    torch.testing.assert_close(of_aux, (q - p) / 3)
    of_main, of_aux = torch.autograd.grad(alp(main, aux, LABELS), (main, aux))
    torch.testing.assert_close(of_aux, (2 * (aux - main) / 12).detach())
    torch.testing.assert_close(of_main, -of_aux)


@pytest.mark.parametrize('name', PAIRINGS)
def test_equal_logits_cost_nothing(name):
    main, _ = logits_pair(4, 5)
    assert PAIRINGS[name][0](main, main.clone(), LABELS).item() == pytest.approx(0, abs=1e-14)


def test_only_the_kl_divergence_has_a_direction():
    main, aux = torch.tensor([[3., 0., 0.]]), torch.tensor([[0., 0.5, 1.]])
    assert kl(main, aux, LABELS) != pytest.approx(kl(aux, main, LABELS).item(), rel=1e-3)
    for symmetric in (alp, js):
        assert symmetric(main, aux, LABELS).item() == pytest.approx(symmetric(aux, main, LABELS).item())


def test_opposite_answers_are_log_2_apart():
    main, aux = torch.tensor([[80., 0.]]), torch.tensor([[0., 80.]])
    assert js(main, aux, LABELS).item() == pytest.approx(math.log(2))
    main, aux = main.requires_grad_(), aux.requires_grad_()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(js(main, aux, LABELS), (main, aux)))


def test_the_weights_are_those_of_the_papers_codes():
    assert {name: weight for name, (_, weight) in PAIRINGS.items()} == dict(alp=0.5, kl=6, js=12)


# Questions of yes or no


def test_questions_of_their_own_have_a_sigmoid_each():
    (main, aux), labels = logits_pair(4, 3), torch.rand(4, 3)
    as_asked = [distributions(logits, labels, BinaryCrossEntropy()) for logits in (main, aux)]
    torch.testing.assert_close(as_asked[0].softmax(-1)[..., 0], main.sigmoid())
    p, q = main.sigmoid(), aux.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 4
    torch.testing.assert_close(kl(*as_asked, labels), expected)
    mean = (p + q) / 2
    expected = sum(half * (half / mean).log() + (1 - half) * ((1 - half) / (1 - mean)).log() for half in (p, q))
    torch.testing.assert_close(js(*as_asked, labels), expected.sum() / 2 / 4)


@pytest.mark.parametrize('criterion, target, shape', [
    (nn.CrossEntropyLoss(), torch.tensor([0, 1]), (2, 3)), (SoftTargetCrossEntropy(), torch.rand(2, 3), (2, 3)),
    (BinaryCrossEntropy(), torch.tensor([0, 1]), (2, 3)), (BinaryCrossEntropy(), torch.rand(2, 3), (2, 3, 2)),
    (nn.BCEWithLogitsLoss(), torch.rand(2, 3), (2, 3, 2)),
], ids=['labels', 'weights', 'binary labels', 'binary weights', 'several labels'])
def test_what_the_model_says_is_of_a_softmax_or_of_sigmoids(criterion, target, shape):
    assert distributions(torch.randn(2, 3), target, criterion).shape == shape


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_what_the_model_says_is_in_float32(dtype):
    logits = torch.randn(2, 3).to(dtype)
    for criterion in (nn.CrossEntropyLoss(), BinaryCrossEntropy()):
        assert distributions(logits, torch.rand(2, 3), criterion).dtype == torch.float32


def test_a_single_logit_is_a_question_of_its_own_or_refused():
    logits, labels = torch.randn(2, 1), torch.tensor([0, 1])
    assert distributions(logits, labels, nn.BCEWithLogitsLoss()).shape == (2, 1, 2)
    with pytest.raises(InputError, match='softmax of a single logit.*--bce-loss'):
        distributions(logits, labels, nn.CrossEntropyLoss())


@pytest.mark.parametrize('name', PAIRINGS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_a_pairing_is_computed_in_float32(name, dtype):
    model, (images, target) = tiny_model(dtype=torch.float32).train(), make_batch(dtype=torch.float32)
    seen = []

    def pairing(main, aux, target):
        seen.append((main.dtype, aux.dtype))
        return alp(main, aux, target)

    for paired in (name, pairing):
        task = AdvPropTask(model, sources=GaussianNoise(), pairing=paired, verbose=False, **HALF)
        with torch.autocast('cpu', torch.bfloat16):
            result = task(images, target)
        assert result['pairing_loss'].dtype == torch.float32 and result['output'].dtype == torch.bfloat16
    assert seen == [(torch.float32, torch.float32)]


# In the tasks


@pytest.mark.parametrize('pairing', PAIRINGS)
@pytest.mark.parametrize('weight', [None, 0.3, 0.])
def test_advprop_adds_the_pairing_of_both_routes(pairing, weight):
    model, (images, target) = split_model().train(), make_batch()
    twins = plain_twins(model)
    made = hand_attack(twins[1], images, target, STRONG, ATTACK.num_steps)
    clean, adv = twins[0](images), twins[1](made)
    term = PAIRINGS[pairing][0](clean, adv, target)
    loss = F.cross_entropy(clean, target) + F.cross_entropy(adv, target)
    loss = loss + (PAIRINGS[pairing][1] if weight is None else weight) * term
    loss.backward()

    task = AdvPropTask(model, sources=ATTACK, pairing=pairing, pairing_weight=weight, verbose=False, **HALF)
    result = task(images, target)
    torch.testing.assert_close(result['loss'], loss)
    torch.testing.assert_close(result['pairing_loss'], term.detach())
    assert not result['pairing_loss'].requires_grad
    result['loss'].backward()
    shared = {name: value for name, value in gradients_of(model).items() if '.aux_bn.' not in name and 'bn' not in name}
    of_twins = [gradients_of(twin) for twin in twins]
    for name in ('fc.weight', 'conv1.0.weight'):
        torch.testing.assert_close(shared[name], of_twins[0][name] + of_twins[1][name], rtol=1e-7, atol=1e-10)
    aux = {name.replace('aux_bn.0.', ''): value for name, value in gradients_of(model).items() if 'aux_bn' in name}
    assert_all_close(aux, {name: of_twins[1][name] for name in aux}, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize('pairing', PAIRINGS)
def test_joint_training_adds_the_pairing_of_its_two_kinds_of_images(pairing):
    model, (images, target) = split_model().train(), make_batch()
    twin = plain_twin(model, 0).train()
    made = hand_attack(twin, images, target, STRONG, ATTACK.num_steps)
    clean, adv = twin(torch.cat([images, made])).chunk(2)
    term = PAIRINGS[pairing][0](clean, adv, target)
    (F.cross_entropy(clean, target) + F.cross_entropy(adv, target) + 0.7 * term).backward()
    result = JointTask(
        model, attack=ATTACK, pairing=pairing, pairing_weight=0.7, verbose=False, **HALF)(images, target)
    result['loss'].backward()
    torch.testing.assert_close(result['pairing_loss'], term.detach())
    assert_all_close(gradients_of(model), gradients_of(twin), rtol=1e-7, atol=1e-10)


def test_every_source_that_shows_the_clean_images_has_a_term():
    model, (images, target) = split_model(num_aux=3).train(), make_batch(6)
    seen = []

    def pairing(main, aux, target):
        seen.append((main, aux, target))
        return (main - aux).abs().sum()

    sources = [AugmentedView(), negative, GaussianNoise()]
    task = AdvPropTask(model, sources=sources, pairing=pairing, verbose=False, **HALF)
    result = task(torch.cat([images, images.flip(3)]), target.repeat(2))
    assert len(seen) == 2
    assert all(main is seen[0][0] and torch.equal(labels, target) for main, _, labels in seen)
    torch.testing.assert_close(result['pairing_loss'], sum((main - aux).abs().sum() for main, aux, _ in seen).detach())
    plain = AdvPropTask(model, sources=sources, verbose=False, **HALF)
    assert task.describe() == f'{plain.describe()}, pairing pairing × 1'


@pytest.mark.parametrize('name', PAIRINGS)
@pytest.mark.parametrize('bce', [False, True])
def test_mixed_targets_are_paired(name, bce):
    images, target = make_batch(6)
    images, target = Mixup(mixup_alpha=0.8, num_classes=CLASSES)(images, target)
    criterion = BinaryCrossEntropy() if bce else SoftTargetCrossEntropy()
    task = AdvPropTask(split_model().train(), criterion, GaussianNoise(eps_px=30), pairing=name, verbose=False, **HALF)
    result = task(images, target.double())
    assert result['pairing_loss'] > 0
    result['loss'].backward()


@pytest.mark.parametrize('pairing', ['alp', lambda main, aux, target: F.mse_loss(main, aux)], ids=['alp', 'function'])
def test_pairings_of_logits_get_logits_whatever_the_criterion(pairing):
    model, (images, target) = split_model().train(), make_batch()
    clean, other = (twin(part) for twin, part in zip(plain_twins(model), (images, images.flip(3))))

    class Mirrored(Strange):
        shows_clean_images = True

        def __call__(self, model, images, target):
            return images.flip(3), target

    labels = F.one_hot(target, CLASSES).double()
    task = AdvPropTask(model, BinaryCrossEntropy(), Mirrored(), pairing=pairing, verbose=False, **HALF)
    torch.testing.assert_close(task(images, labels)['pairing_loss'], F.mse_loss(clean, other).detach())


class Strange(Source):
    shows_clean_images = False

    def __call__(self, model, images, target):
        return images.flip(0), target.flip(0)

    def describe(self):
        return 'images of others'


@pytest.mark.parametrize('source, made', [
    (negative, 'images of negative'), (Strange(), 'images of others')], ids=['function', 'source'])
def test_images_that_show_something_else_are_not_paired(source, made):
    with pytest.raises(ValueError, match=f'not known of {made}: leave it out'):
        AdvPropTask(tiny_model(), sources=source, pairing='kl', verbose=False, **HALF)


@pytest.mark.parametrize('arguments, words', [
    (dict(pairing='jsd'), "Unknown pairing 'jsd': give one of alp, kl, js"),
    (dict(pairing='kl', pairing_weight=-1), 'adv-pairing-weight. must be at least 0, got -1'),
    (dict(pairing='kl', pairing_weight=float('nan')), 'must be at least 0'),
    (dict(pairing_weight=2.), 'weight of a pairing: say of which'),
])
@pytest.mark.parametrize('task_type', [AdvPropTask, JointTask])
def test_what_is_no_pairing_is_refused(task_type, arguments, words):
    with pytest.raises(ValueError, match=words):
        task_type(tiny_model(), **arguments, verbose=False, **HALF)


# On the command line


@pytest.mark.parametrize('regime', ['advprop', 'joint'])
def test_flags_ask_for_a_pairing(regime):
    task = task_of(regime, tiny_model(), adv_pairing='js', adv_pairing_weight=3.)
    assert (task.pairing.name, task.pairing.weight) == ('js', 3)
    assert task.describe().endswith(', pairing js × 3')
    assert task_of(regime, tiny_model(), adv_pairing='js').pairing.weight == 12
    assert task_of(regime, tiny_model(), adv_pairing='js', adv_pairing_weight=0.).pairing.weight == 0
    assert task_of(regime, tiny_model()).pairing is None


def test_none_takes_the_pairing_of_a_recipe_away():
    settings = RegimeSettings.from_values(dict(adv_pairing='none', adv_pairing_weight=3.))
    assert settings == RegimeSettings()


@pytest.mark.parametrize('flags, words', [
    (dict(adv_pairing_weight=3.), 'say of which'),
    (dict(adv_pairing='kl', adv_source=f'{negative.__module__}:negative'), 'not known of images of negative'),
])
def test_wrong_flags_are_refused_before_anything_is_built(flags, words):
    with pytest.raises(ValueError, match=words):
        AdvPropTask.arguments(RegimeSettings.from_values(flags))


def test_a_plain_model_wants_its_regime_named():
    with pytest.raises(ValueError, match='say which regime'):
        task_of(None, nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), adv_pairing='kl')


def test_a_pairing_trains_through_the_program(few_digits, tmp_path, caplog):
    with caplog.at_level('INFO'):
        run = run_train(few_digits, tmp_path, '--adv-pairing', 'alp', '--adv-pairing-weight', '2', '--adv-match-masks')
    row, = read_summary(run)
    terms = {name: float(row[f'train_{name}_loss']) for name in ('clean', 'adv', 'pairing')}
    assert terms['pairing'] > 0
    assert float(row['train_loss']) == pytest.approx(
        terms['clean'] + terms['adv'] + 2 * terms['pairing'], rel=1e-4)
    assert 'pairing alp × 2' in caplog.text
