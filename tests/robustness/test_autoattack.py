"""AutoAttack on models whose robust accuracy is known: linear ones, and ones that hide their gradients."""
import copy
import importlib
import logging
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn

from tests.robustness.known_models import (
    Mirrored,
    Stairs,
    eps_between,
    first_pixel_decides,
    grey_images,
    linear,
    margins,
    one_pixel_changes,
)
from timm_advprop import InputError
from timm_advprop.norms import split_norms
from timm_advprop.robustness import autoattack, routed

pytest.importorskip('pyautoattack')
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted  # noqa: E402
from pyautoattack.fab_base import FABAttack  # noqa: E402
from pyautoattack.square import SquareAttack  # noqa: E402

MODULE = importlib.import_module('timm_advprop.robustness.autoattack')
STAGES = ('top1', 'apgd_ce_top1', 'apgd_t_top1', 'fab_t_top1', 'square_top1')


def shorten(monkeypatch, kind, setting, value):
    """Let an attack of the library take fewer steps, which are most of a test's time."""
    run = kind.attack_single_run

    def shorter(self, *args, **settings):
        usual = getattr(self, setting)
        assert usual == {'n_iter': 100, 'n_queries': 5000}[setting]
        setattr(self, setting, value)
        try:
            return run(self, *args, **settings)
        finally:
            setattr(self, setting, usual)
    monkeypatch.setattr(kind, 'attack_single_run', shorter)


@pytest.fixture(autouse=True)
def few_queries(request, monkeypatch):
    if not request.node.get_closest_marker('slow'):
        shorten(monkeypatch, SquareAttack, 'n_queries', 100)


@pytest.fixture
def few_steps(monkeypatch):
    shorten(monkeypatch, APGDAttack, 'n_iter', 5)
    shorten(monkeypatch, FABAttack, 'n_iter', 5)


@pytest.fixture
def attacks_return(monkeypatch):
    """A function that replaces what all attacks of the library return by a function of the images."""
    def replace(attack):
        for kind in (APGDAttack, APGDAttack_targeted, FABAttack, SquareAttack):
            monkeypatch.setattr(kind, 'perturb', lambda self, images, labels: attack(images))
    return replace


# what is found

@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_exactly_the_images_near_a_boundary_fall(norm):
    model, images = linear(), grey_images(12)
    labels, distances = margins(model, images, norm)
    eps = eps_between(distances)
    results = autoattack(model, [(images, labels)], eps=eps, norm=norm)
    withstanding = 100 * (distances > eps).double().mean().item()
    assert 0 < withstanding < 100
    assert [results[name] for name in STAGES] == pytest.approx([100, *[withstanding] * 4])
    assert results['aa_top1'] == pytest.approx(withstanding) and results['images'] == 12


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('factor, withstanding', [(.99, 100), (1.01, 0)])
def test_strengths_on_both_sides_of_the_boundary(norm, factor, withstanding):
    model, images = linear(), grey_images(1)
    labels, distances = margins(model, images, norm)
    results = autoattack(model, [(images, labels)], eps=factor * distances.item(), norm=norm)
    assert results['aa_top1'] == withstanding


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_all_queries_find_nothing_out_of_reach(norm):
    model, images = linear(num_classes=11), grey_images(12)
    labels, distances = margins(model, images, norm)
    eps = .99 * distances.min().item()
    assert autoattack(model, [(images, labels)], eps=eps, norm=norm)['aa_top1'] == 100


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('threshold, withstanding', [(.53, 0), (.55, 100)])
def test_one_pixel_alone_changes_the_class(norm, threshold, withstanding):
    images, labels = torch.full((2, 3, 6, 6), .5), torch.zeros(2, dtype=torch.long)
    results = autoattack(first_pixel_decides(threshold), [(images, labels)], eps=.04, norm=norm)
    assert (results['top1'], results['aa_top1']) == (100, withstanding)


def test_bounds_of_pixels_hold():
    # a white pixel cannot go up, however far the ball reaches
    images, labels = torch.ones(1, 3, 6, 6), torch.zeros(1, dtype=torch.long)
    assert autoattack(first_pixel_decides(1.01), [(images, labels)], eps=.3)['aa_top1'] == 100


@pytest.mark.parametrize('label, top1', [(0, 100), (1, 0)])
def test_an_image_on_the_boundary_has_the_class_that_argmax_says(label, top1):
    images = torch.full((1, 3, 6, 6), .5)
    results = autoattack(first_pixel_decides(.5), [(images, torch.tensor([label]))], eps=1e-3)
    assert (results['top1'], results['aa_top1']) == (top1, 0)


def test_square_finds_what_has_no_gradient_and_a_warning_says_so(caplog):
    model, labels = Stairs().eval(), torch.arange(4)
    images = .5 + .05 * model.linear[1].weight[labels].sign().view(4, 3, 6, 6)
    results = autoattack(model, [(images, labels)], eps=.2)
    assert results['fab_t_top1'] >= 50 and results['square_top1'] == 0
    assert any('Square Attack has decreased the robust accuracy' in text for text in caplog.messages)


def test_square_alone_fools_a_model_without_defence(caplog):
    model, images = linear(), grey_images(8)
    square = SquareAttack(model, eps=.1, seed=0)
    labels, _ = margins(model, images, 'linf')
    adv = square.perturb(images, labels)
    assert (model(adv).argmax(1) != labels).all() and (adv - images).abs().max() <= .1 + 1e-6
    assert autoattack(model, [(images, labels)], eps=.1)['apgd_ce_top1'] == 0  # gradients find as much
    assert not [text for text in caplog.messages if 'Square Attack' in text]


@pytest.mark.parametrize('norm, eps', [('linf', .02), ('l2', .2)])
def test_result_is_that_of_the_library_itself(norm, eps, few_steps):
    from pyautoattack import AutoAttack
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 16), nn.Tanh(), nn.Linear(16, 10)).eval()
    images = torch.rand(12, 3, 6, 6)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    adv, _ = AutoAttack(model, eps=eps, norm=MODULE._NORMS[norm], seed=0).run_standard_evaluation(images, labels)
    expected = 100 * (model(adv).argmax(1) == labels).double().mean().item()
    results = autoattack(model, [(images, labels)], eps=eps, norm=norm)
    assert 0 < expected < 70 and results['top1'] == pytest.approx(100 * 11 / 12)
    assert results['aa_top1'] == pytest.approx(expected)
    accuracies = [results[name] for name in STAGES]
    assert accuracies == sorted(accuracies, reverse=True)


# what counts

@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('size, withstanding', [(.1, 0), (.1 + 5e-7, 0), (.1 + 1e-5, 100), (float('nan'), 100)])
def test_images_outside_of_the_ball_do_not_count(attacks_return, caplog, norm, size, withstanding):
    attacks_return(lambda images: one_pixel_changes(images, size))
    images, labels = torch.full((3, 3, 6, 6), .5), torch.zeros(3, dtype=torch.long)
    results = autoattack(first_pixel_decides(.55), [(images, labels)], eps=.1, norm=norm)
    assert results['aa_top1'] == withstanding
    said = [text for text in caplog.messages if 'leave the ball' in text]
    assert len(said) == (4 if size > .1 + 1e-6 else 0)


def test_an_attack_that_changes_its_images_does_not_move_the_ball(attacks_return):
    attacks_return(lambda images: images.add_(.2))
    images, labels = torch.full((3, 3, 6, 6), .5), torch.zeros(3, dtype=torch.long)
    assert autoattack(first_pixel_decides(.55), [(images, labels)], eps=.1)['aa_top1'] == 100
    assert (images == .5).all()


@pytest.mark.parametrize('size, withstanding', [(3 + 2e-6, 0), (3 + 1e-5, 100)])
def test_large_l2_balls_are_rounded_more(attacks_return, size, withstanding):
    attacks_return(lambda images: (images.double() + size / 108 ** .5).float())
    images, labels = torch.full((3, 3, 6, 6), .5), torch.zeros(3, dtype=torch.long)
    results = autoattack(first_pixel_decides(.55), [(images, labels)], eps=3, norm='l2')
    assert results['aa_top1'] == withstanding


@pytest.mark.parametrize('value, withstanding', [(1., 0), (1.001, 100), (0., 0), (-.001, 100)])
def test_images_outside_of_0_to_1_do_not_count(attacks_return, value, withstanding):
    side = 1 if value > .5 else -1
    images, labels = torch.full((3, 3, 6, 6), value - side * .05).clamp(0, 1), torch.zeros(3, dtype=torch.long)
    attacks_return(lambda images: one_pixel_changes(images, side * .05))
    model = nn.Sequential(Mirrored(side < 0), first_pixel_decides(.97))
    assert autoattack(model, [(images, labels)], eps=.1)['aa_top1'] == withstanding


def test_images_of_the_right_class_do_not_count(attacks_return):
    attacks_return(lambda images: one_pixel_changes(images, .04))
    images, labels = torch.full((3, 3, 6, 6), .5), torch.zeros(3, dtype=torch.long)
    assert autoattack(first_pixel_decides(.55), [(images, labels)], eps=.1)['aa_top1'] == 100


def test_wrong_images_are_not_attacked_and_batches_are_filled_up(attacks_return):
    seen = []
    attacks_return(lambda images: (seen.append(len(images)), images)[1])
    images, labels = torch.full((11, 3, 6, 6), .5), torch.tensor([0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0])
    results = autoattack(first_pixel_decides(.55), zip(images.split(3), labels.split(3)), eps=.1)
    assert seen == 4 * [3, 3, 2]
    assert results['aa_top1'] == results['top1'] == pytest.approx(100 * 8 / 11) and results['images'] == 11


def test_each_attack_meets_what_withstood_those_before(attacks_return, monkeypatch):
    attacks_return(lambda images: images)
    sizes = []

    def fools_the_first(self, images, labels):
        sizes.append(len(images))
        return torch.cat([one_pixel_changes(images[:1], .1), images[1:]])
    for kind in (APGDAttack, FABAttack):
        monkeypatch.setattr(kind, 'perturb', fools_the_first)
    images, labels = torch.full((4, 3, 6, 6), .5), torch.zeros(4, dtype=torch.long)
    results = autoattack(first_pixel_decides(.55), [(images, labels)], eps=.1)
    assert sizes == [4, 3]
    assert list(results.values()) == [100, 75, 75, 50, 50, 50, 4]
    assert list(results) == [*STAGES, 'aa_top1', 'images']


def test_no_image_is_classified_rightly():
    images, labels = torch.full((2, 3, 6, 6), .5), torch.ones(2, dtype=torch.long)
    results = autoattack(first_pixel_decides(.55), [(images, labels)], eps=.1)
    assert list(results.values()) == [0, 0, 0, 0, 0, 0, 2]


# the model

@pytest.fixture
def split_model(randomize_norms):
    return randomize_norms(timm.create_model('test_resnet_ap', num_classes=5))


def test_routes_differ_and_the_model_is_as_it_was(split_model, few_steps):
    images = torch.rand(6, 3, 16, 16)
    split_model.train()
    split_model.layer1.eval()
    for parameter in split_model.layer2.parameters():
        parameter.requires_grad_(False)
    for norm in split_norms(split_model):
        norm.route = 1
    modes = [module.training for module in split_model.modules()]
    state = {name: value.clone() for name, value in split_model.state_dict().items()}
    trained = [parameter.requires_grad for parameter in split_model.parameters()]
    labels = routed(copy.deepcopy(split_model).eval(), 'clean')(images).argmax(1)
    results = [autoattack(routed(split_model, route), [(images, labels)], eps=1e-4) for route in ('main', 'aux')]
    assert results[0]['top1'] == 100 and results[1]['top1'] < 100
    assert [module.training for module in split_model.modules()] == modes
    assert [parameter.requires_grad for parameter in split_model.parameters()] == trained
    assert all(parameter.grad is None for parameter in split_model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in split_model.state_dict().items())
    assert {norm.route for norm in split_norms(split_model)} == {1}


def test_random_generators_and_traces_are_as_they_were(few_steps):
    images, trace = grey_images(3), lambda *args: None
    model = linear()
    states = torch.get_rng_state(), np.random.get_state()[1]
    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        autoattack(model, [(images, model(images).argmax(1))], eps=.01)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(previous)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


def test_seed_decides_the_attacks(few_steps):
    images, sums = grey_images(3), []
    model = linear()
    labels = model(images).argmax(1)
    model.register_forward_pre_hook(lambda module, args: sums.append(args[0].double().sum().item()))
    seen = []
    for seed in (0, 0, 1):
        torch.rand(1)
        sums.clear()
        autoattack(model, [(images, labels)], eps=.01, seed=seed)
        seen.append(list(sums))
    assert seen[0] == seen[1] != seen[2]


def test_reduced_precision_is_off(few_steps):
    images, seen = grey_images(2), set()
    model = linear()
    labels = model(images).argmax(1)
    model.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        autoattack(model, [(images.double(), labels)], eps=.01)
    assert seen == {torch.float32}


@pytest.mark.parametrize('num_classes', [1, 2, 3])
def test_too_few_classes(num_classes):
    with pytest.raises(InputError, match=f'needs at least 4 classes, the model has {num_classes}: ') as error:
        autoattack(linear(num_classes), [(grey_images(2), torch.zeros(2).long())], eps=.01)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('num_classes, targets', [(4, 3), (9, 8), (10, 9), (12, 9)])
def test_number_of_targets(monkeypatch, num_classes, targets):
    seen = []

    def note_targets(self, images, labels):
        seen.append((self.n_target_classes, getattr(self, 'targeted', True)))
        return images
    for kind in (APGDAttack_targeted, FABAttack):
        monkeypatch.setattr(kind, 'perturb', note_targets)
    images = grey_images(1)
    model = linear(num_classes)
    autoattack(model, [(images, model(images).argmax(1))], eps=1e-4)
    assert seen == [(targets, True), (targets, True)]


# what is said

def test_warnings_of_a_kind_come_once(caplog, few_steps):
    model, images = Stairs().eval(), grey_images(7)
    autoattack(model, zip(images.split(2), model(images).argmax(1).split(2)), eps=.01)
    said = [text for text in caplog.messages if 'points with zero gradient' in text]
    assert len(said) == 1 and said[0].startswith('AutoAttack: ')
    assert 'https://github.com/fra31/auto-attack/blob/master/flags_doc.md' in said[0]


def test_probabilities_and_noise_are_warned_of_once(caplog, few_steps):
    class Noisy(nn.Softmax):
        def forward(self, images):
            return super().forward(images.flatten(1)[:, :5] + torch.rand(len(images), 5))

    images = grey_images(4)
    autoattack(Noisy(dim=1), [(images, torch.zeros(4).long())] * 2, eps=.01)
    for kind in ('probability distribution', 'randomized defense'):
        assert sum(kind in text for text in caplog.messages) == 1


def test_gradients_inside_of_a_model_are_warned_of_for_that_model(caplog, few_steps):
    class Dynamic(nn.Sequential):
        def forward(self, images):
            with torch.enable_grad():
                torch.ones(1, requires_grad=True).sum().backward()
            return super().forward(images)

    images, model = grey_images(2), linear()
    for kind, times in ((Dynamic(model), 1), (model, 1)):
        autoattack(kind, [(images, model(images).argmax(1))], eps=.01)
        assert sum('dynamic defense' in text for text in caplog.messages) == times


def test_log_and_progress(caplog, monkeypatch, few_steps):
    bars = []

    class Bar(MODULE.tqdm):
        def __init__(self, **settings):
            super().__init__(**settings)
            bars.append((self, settings['desc'], settings['total']))

    monkeypatch.setattr(MODULE, 'tqdm', Bar)
    model, images = linear(), grey_images(5)
    with caplog.at_level(logging.INFO, logger=MODULE.__name__):
        autoattack(model, zip(images.split(2), model(images).argmax(1).split(2)), eps=1e-4)
    assert [(title, total) for _, title, total in bars] == [
        (title, 5) for title in ('APGD-CE', 'APGD-T', 'FAB-T', 'Square')]
    assert all(bar.n == pytest.approx(5) for bar, _, _ in bars)
    said = [text for text in caplog.messages if text.startswith('AutoAttack: ')]
    assert len(said) == 4 and said[0].startswith('AutoAttack: 100.00% of 5 images withstood APGD-CE, 0:0')


def test_no_progress(monkeypatch, capfd, few_steps):
    monkeypatch.setattr(MODULE, '_PROGRESS_SECONDS', 0)
    model, images = linear(), grey_images(1)
    for show in (True, False):
        autoattack(model, [(images, model(images).argmax(1))], eps=1e-4, show_progress=show)
        assert ('Square' in capfd.readouterr().err) == show


@pytest.mark.slow
@pytest.mark.parametrize('num_classes', [5, 12])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_passes_are_as_many_as_the_progress_bar_expects(monkeypatch, norm, num_classes):
    counts = []

    def perturb_and_count(self, images, labels):
        before = len(passes)
        adv = attacks[type(self)](self, images, labels)
        counts.append(len(passes) - before)
        return adv

    kinds = APGDAttack, APGDAttack_targeted, FABAttack, SquareAttack
    attacks = {kind: kind.perturb for kind in kinds}
    attacks[importlib.import_module('pyautoattack.fab_pt').FABAttack_PT] = FABAttack.perturb
    for kind in kinds:
        monkeypatch.setattr(kind, 'perturb', perturb_and_count)
    expected = []
    monkeypatch.setattr(MODULE._Forward, 'progress', recorded(MODULE._Forward.progress, expected))
    model, images, passes = linear(num_classes), grey_images(1), []
    labels = model(images).argmax(1)
    model.register_forward_hook(lambda *args: passes.append(1))
    autoattack(model, [(images, labels)], eps=1e-5, norm=norm)
    assert counts == expected


def recorded(progress, seen):
    def record(self, num_images, attack):
        seen.append(attack.max_passes)
        return progress(self, num_images, attack)
    return record


# bad input

@pytest.mark.parametrize('settings, message', [
    (dict(eps=0), 'eps is in the units of images in 0–1 and above 0, such as 4/255; got 0'),
    (dict(eps=4), 'got 4'), (dict(eps=float('nan')), 'got nan'), (dict(eps=float('inf'), norm='l2'), 'got inf'),
    (dict(eps=.1, norm='l1'), "Unknown norm 'l1': give one of linf, l2"),
])
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        autoattack(linear(), [(grey_images(2), torch.zeros(2).long())], **settings)


@pytest.mark.parametrize('change', [lambda images: images - .5, lambda images: images * 255,
                                    lambda images: images * float('nan')])
def test_normalised_images_are_refused(change):
    images, labels = grey_images(4), torch.zeros(4).long()
    batches = [(images, labels), (change(images), labels)]
    with pytest.raises(InputError, match='takes images in 0–1, got .* to .*: give them without normalisation'):
        autoattack(linear(), batches, eps=.1)


@pytest.mark.parametrize('batches', [[], [(torch.empty(0, 3, 6, 6), torch.empty(0).long())]])
def test_no_images(batches):
    with pytest.raises(InputError, match='AutoAttack needs images, got none'):
        autoattack(linear(), batches, eps=.1)


def test_images_too_small_for_square_in_l2(few_steps):
    images = grey_images(2, size=4)
    with pytest.raises(InputError, match='in L2 needs images of at least 5 × 5 pixels, got 4 × 4'):
        autoattack(linear(size=4), [(images, torch.zeros(2).long())], eps=.1, norm='l2')
    model = linear(size=5)
    images = grey_images(2, size=5)
    assert autoattack(model, [(images, model(images).argmax(1))], eps=1e-4, norm='l2')['aa_top1'] == 100


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyautoattack', None)
    with pytest.raises(InputError, match=r"pip install 'timm-advprop\[robustness\]'") as error:
        autoattack(linear(), [(grey_images(2), torch.zeros(2).long())], eps=.1)
    assert '\n' not in str(error.value)
