"""An image under attack, on models whose answer is known."""
from functools import partial

import pytest
import timm
import torch
import torch.nn as nn

from tests.robustness.known_models import linear
from timm_advprop import convert_split_norm, norm_route
from timm_advprop.engine.route_names import plain_model_of
from timm_advprop.errors import InputError
from timm_advprop.robustness.attacked_image import ImageAttack, attack_image, shown_routes

MEAN, STD = (.4, .5, .6), (.2, .25, .3)


def attacked(model, asked, pixels=None, routes=('main',)):
    pixels = torch.empty(3, 6, 6).uniform_(.3, .7) if pixels is None else pixels
    return attack_image(lambda route: model, pixels, asked, routes, MEAN, STD)


def normalised(pixels):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((pixels - mean) / std).unsqueeze(0)


def test_an_attack_of_a_linear_model_goes_to_the_corner_of_the_ball():
    # Of two classes the loss of the label rises with the difference of the weights, in every pixel.
    model = linear(num_classes=2)
    shown = attacked(model, ImageAttack(eps_px=5., steps=3))
    weight = model[1].weight.detach().view(2, 3, 6, 6)
    direction = (weight[1 - shown.label] - weight[shown.label]).sign()
    assert shown.label == model(normalised(shown.clean)).argmax().item()
    torch.testing.assert_close(shown.perturbation, direction * 5 / 255, atol=1e-6, rtol=0)


def test_a_class_to_reach_gets_likelier_and_an_attack_away_makes_the_label_less_likely():
    model = linear()
    pixels = torch.empty(3, 6, 6).uniform_(.3, .7)
    away = attacked(model, ImageAttack(), pixels)
    clean, adversarial = away.probabilities['main']
    assert away.goal is None and adversarial[away.label] < clean[away.label]
    for number in range(5):
        shown = attacked(model, ImageAttack(target=str(number)), pixels)
        clean, adversarial = shown.probabilities['main']
        assert (shown.goal, shown.label) == (number, away.label)
        assert adversarial[number] > clean[number]


def test_a_random_class_is_wrong_and_the_same_each_time_and_takes_nothing_from_the_generator():
    state = torch.get_rng_state()
    for label in range(5):
        goals = {ImageAttack(target='random').goal(label, 5) for _ in range(3)}
        assert len(goals) == 1 and goals <= set(range(5)) - {label}
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('eps_px, steps', [(0., 5), (.5, 1), (4., 1), (4., 20), (32., 50)])
def test_an_attacked_image_is_within_its_strength_and_in_the_range_of_pixels(eps_px, steps):
    pixels = torch.rand(3, 6, 6).round()  # black and white: half of all steps would lead out
    shown = attacked(linear(), ImageAttack(eps_px=eps_px, steps=steps), pixels)
    assert shown.perturbation.abs().max() <= eps_px / 255 + 1e-6
    assert 0 <= shown.attacked.min() and shown.attacked.max() <= 1
    assert shown.perturbation.abs().max() > .9 * eps_px / 255 or not eps_px


@pytest.mark.parametrize('eps_px, steps, alpha_px', [(4., 1, 4.), (4., 2, 4.), (4., 5, 2.), (8., 20, 1.)])
def test_steps_reach_the_edge_of_the_ball(eps_px, steps, alpha_px):
    assert ImageAttack(eps_px=eps_px, steps=steps).alpha_px == pytest.approx(alpha_px)


def test_each_route_says_what_the_model_says_on_it(randomize_norms):
    model = randomize_norms(convert_split_norm(timm.create_model('test_resnet', num_classes=10), num_aux=2)).eval()
    routes = shown_routes(2, '2')
    shown = attack_image(
        partial(plain_model_of, model), torch.rand(3, 32, 32), ImageAttack(route='2'), routes, MEAN, STD)
    assert list(shown.probabilities) == ['main', 'aux', '2']
    for route, index in (('main', 0), ('aux', 1), ('2', 2)):
        for pixels, probabilities in zip((shown.clean, shown.attacked), shown.probabilities[route]):
            with norm_route(model, index), torch.no_grad():
                expected = model(normalised(pixels)).softmax(1)[0]
            torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=1e-4)
    assert shown.label == shown.probabilities['2'][0].argmax().item()


def test_the_attack_goes_through_its_route(randomize_norms):
    model = randomize_norms(convert_split_norm(timm.create_model('test_resnet', num_classes=10))).eval()
    pixels, model_of = torch.rand(3, 32, 32), partial(plain_model_of, model)
    through = {route: attack_image(model_of, pixels, ImageAttack(route=route), ['main'], MEAN, STD).attacked
               for route in ('main', 'aux', '0.5')}
    assert not torch.equal(through['main'], through['aux'])
    alone = attack_image(lambda route: model_of('0.5'), pixels, ImageAttack(), ['main'], MEAN, STD).attacked
    assert torch.equal(through['0.5'], alone)


def test_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attacked(model, ImageAttack())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize('num_aux, route, routes', [
    (0, 'main', ('main',)), (1, 'main', ('main', 'aux')), (1, 'aux', ('main', 'aux')), (3, '2', ('main', 'aux', '2')),
    (1, '0.3', ('main', 'aux', '0.3'))])
def test_main_and_aux_and_the_attacked_route_are_shown(num_aux, route, routes):
    assert shown_routes(num_aux, route) == routes


@pytest.mark.parametrize('wrong, said', [
    (dict(eps_px=33.), 'eps_px must be from 0 to 32'), (dict(eps_px='4'), 'eps_px must be a number'),
    (dict(eps_px=float('nan')), 'eps_px must be from 0 to 32'), (dict(steps=0), 'steps must be from 1 to 50'),
    (dict(steps=2.5), 'steps must be a whole number'), (dict(steps=None), 'steps must be given'),
    (dict(target='-1'), 'target must be none, random, or the number of a class'),
    (dict(target=['0']), 'target must be none, random'),
    (dict(route='nope'), 'route must be main, aux'), (dict(route='1.5'), 'route must be main, aux'),
    (dict(route=['main']), 'route must be a text'), (dict(route=None), 'route must be given'),
], ids=str)
def test_what_is_no_attack_is_refused(wrong, said):
    with pytest.raises(ValueError) as error:
        ImageAttack(**wrong)
    assert str(error.value).startswith(said)


def test_a_class_that_the_model_lacks_is_refused():
    with pytest.raises(InputError, match='There is no class 5: the model has 5, from 0.'):
        attacked(linear(), ImageAttack(target='5'))
