"""Sources that users write: functions and classes, what they see of the model, and what is refused."""
import sys

import pytest
import timm
import torch

from tests.regimes.regime_models import (
    HALF,
    assert_all_close,
    assert_step_equals_plain_models,
    assert_unchanged,
    gradients_of,
    make_batch,
    negative,
    plain_twin,
    plain_twins,
    recorded_batches,
    snapshot,
    split_model,
    task_of,
    tiny_model,
)
from timm_advprop import AdvPropTask, InputError
from timm_advprop.norms import num_aux_norms, split_norms
from timm_advprop.regimes import Attack, AugmentedView, FunctionSource, Source, frozen
from timm_advprop.regimes.source import as_source, import_source

pytestmark = pytest.mark.usefixtures('one_thread')

USERS_FILE = '''
from timm_advprop.regimes import Source

NUMBER = 5


class Darker(Source):
    """Images darker by a strength in pixels, in units of images that are normalised by 0.5."""

    def __init__(self, eps_px):
        self.eps_px = eps_px

    def __call__(self, model, images, target):
        return (images - self.eps_px / 255 / 0.5).clamp(-1, 1), target

    def describe(self):
        return f'images darker by {self.eps_px:g}'


def surest(model, images, target):
    """The images in the order of the model's certainty."""
    order = model(images).amax(dim=1).argsort()
    return images[order], target[order]


mirrored = Darker(0.)
'''


@pytest.fixture
def users_file(tmp_path, monkeypatch):
    """The name of a module in a package of the user's."""
    package = tmp_path / 'users_package'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'sources.py').write_text(USERS_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    yield 'users_package.sources'
    for name in ('users_package', 'users_package.sources'):
        sys.modules.pop(name, None)


# Functions that look at the model


@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_efficientnet_ap'])
def test_a_function_sees_the_model_on_the_route_of_its_norm(name):
    model, (images, target) = split_model(name, num_aux=2).eval(), make_batch()
    twins, seen = [plain_twin(model, route).eval() for route in range(3)], []

    def look(model, images, target):
        with frozen(model):
            seen.append(model(images))
        return images, target

    AdvPropTask(model, sources=[look, look], verbose=False, **HALF)(images, target)
    by_route = [twin(images) for twin in twins]
    assert len(seen) == 2
    for route, logits in enumerate(seen, 1):
        torch.testing.assert_close(logits, by_route[route], rtol=0, atol=1e-12)
        assert not any(torch.allclose(logits, by_route[other]) for other in range(3) if other != route)


def test_a_function_in_train_mode_sees_the_batch_statistics_and_affine_parameters_of_its_norm():
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    twins, seen = plain_twins(model), []

    def look(model, images, target):
        seen.append(model(images).detach())
        return images, target

    AdvPropTask(model, sources=[Attack(steps=1), look], verbose=False, **HALF)(images, target)
    by_route = [twin(images) for twin in twins]
    torch.testing.assert_close(seen, [by_route[2]], rtol=0, atol=1e-12)
    assert not any(torch.allclose(seen[0], by_route[other]) for other in (0, 1))


def test_images_that_depend_on_the_model_train_the_norm_that_made_them():
    model, (images, target) = split_model().train(), make_batch()
    twins = plain_twins(model)

    def ascent(model, images, target):
        with frozen(model), torch.enable_grad():
            images.requires_grad_()
            gradient, = torch.autograd.grad(model(images).logsumexp(dim=1).sum(), images)
        return images + 0.25 * gradient.sign(), target.flip(0)

    before = plain_twin(model, 1).eval()
    start = images.clone().requires_grad_()
    made = images + 0.25 * torch.autograd.grad(before(start).logsumexp(dim=1).sum(), start)[0].sign()
    result = AdvPropTask(model, sources=ascent, weight=0.5, verbose=False, **HALF)(images, target)
    assert_step_equals_plain_models(model, twins, [(images, target), (made, target.flip(0))], (1, 0.5), result)


# Functions


@pytest.mark.parametrize('source', [negative, f'{negative.__module__}:negative'], ids=['callable', 'name'])
def test_a_functions_images_and_labels_train_the_auxiliary_norm(source):
    model, (images, target) = split_model().train(), make_batch()
    twins = plain_twins(model)
    if callable(source):
        task = AdvPropTask(model, sources=source, weight=0.5, verbose=False, **HALF)
    else:
        task = task_of('advprop', model, adv_source=source, adv_weight=0.5)
    parts = [(images, target), negative(model, images, target)]
    assert_step_equals_plain_models(model, twins, parts, (1, 0.5), task(images, target))
    assert task.relative_cost() == 2


@pytest.mark.parametrize('function', [
    lambda model, images, target: (images[:3], target), lambda model, images, target: (images, target[:3]),
    lambda model, images, target: images, lambda model, images, target: None,
    lambda model, images, target: (images, target, target)], ids=['images', 'targets', 'no pair', 'nothing', 'three'])
def test_a_function_must_return_as_many_images_and_targets(function):
    task = AdvPropTask(split_model().train(), sources=function, verbose=False, **HALF)
    with pytest.raises(InputError, match='a pair of 6 images and as many targets'):
        task(*make_batch())
    assert {norm.route for norm in split_norms(task.get_trainable_module())} == {0}


def test_a_function_may_work_in_place():
    model, (images, target) = split_model().train(), make_batch()
    expected = plain_twin(model, 0).train()(images)

    def blacken(model, images, target):
        return images.zero_(), target.zero_()

    result = AdvPropTask(model, sources=blacken, verbose=False, **HALF)(images, target)
    torch.testing.assert_close(result['output'], expected)
    assert images.any() and target.any()


@pytest.mark.parametrize('dtype, made', [
    (torch.float32, torch.float64), (torch.float64, torch.float32), (torch.bfloat16, torch.float32)], ids=str)
def test_images_of_another_type_take_that_of_the_batch(dtype, made):
    model, (images, target) = tiny_model(dtype=dtype).train(), make_batch(dtype=dtype)
    task = AdvPropTask(model, sources=lambda model, images, target: (images.to(made), target), verbose=False, **HALF)
    with recorded_batches(model) as seen:
        task(images, target)
    assert seen[0].dtype == dtype and torch.equal(seen[0], images.to(made).to(dtype).repeat(2, 1, 1, 1))


def test_what_a_source_is_called():
    class Sharpen:
        def __call__(self, model, images, target):
            return images, target

    assert as_source(negative).describe() == 'images of negative'
    assert as_source(Sharpen()).describe() == 'images of Sharpen'
    assert FunctionSource(negative).facts() == dict(trained_on='images of negative')
    assert AugmentedView(1).facts() == dict(trained_on='augmented images')
    assert FunctionSource(negative).relative_cost() == AugmentedView(1).relative_cost() == 0
    source = AugmentedView(2)
    assert as_source(source) is source and source.normalised_by((0.5,), (0.5,)) is source


def test_an_augmented_view_is_its_part_of_the_batch_as_it_is():
    images, target = make_batch(4)
    made, labels = AugmentedView(3)(tiny_model(), images, target)
    assert made is images and labels is target
    assert (AugmentedView().view, AugmentedView(3).view, AugmentedView.weight, AugmentedView.part) == (1, 3, 1, 'aug')


# By name


def test_a_class_of_sources_in_the_users_file_is_made_for_each_strength(users_file):
    model, (images, target) = split_model('test_resnet'), make_batch()
    task = task_of('advprop', model.train(), adv_source=f'{users_file}:Darker', adv_eps=[8., 64.], adv_weight=0.5)
    assert num_aux_norms(model) == 2
    assert isinstance(task.sources[0], Source)
    twins = plain_twins(model)
    parts = [(images, target), *(((images - eps / 255 / 0.5).clamp(-1, 1), target) for eps in (8., 64.))]
    assert_step_equals_plain_models(model, twins, parts, (1, 0.5, 0.5), task(images, target))
    assert 'images darker by 8; images darker by 64' in task.describe()


def test_a_class_of_sources_has_the_regimes_strength_where_none_is_given(users_file):
    task = task_of('advprop', split_model(), adv_source=f'{users_file}:Darker')
    assert [source.eps_px for source in task.sources] == [4]


@pytest.mark.parametrize('name, words', [('surest', 'images of surest'), ('mirrored', 'images darker by 0')])
def test_a_function_or_a_source_in_the_users_file_has_one_norm(users_file, name, words):
    model, (images, target) = split_model().train(), make_batch()
    task = task_of('advprop', model, adv_source=f'{users_file}:{name}')
    assert len(task.sources) == 1 and words in task.describe()
    assert task(images, target)['loss'].isfinite()


@pytest.mark.parametrize('name, words', [
    ('salt', 'Unknown source .salt. .--adv-source.: give one of pgd, ifgsm, gd, pyramid, .*package.module:name'),
    ('no_such_package:noise', 'Cannot import the source no_such_package:noise'),
    ('.a:b', 'Cannot import the source .a:b'),
    ('tests.regimes.regime_models:nothing', 'Cannot import .*nothing'),
    ('tests.regimes.regime_models:', 'Cannot import'),
    ('tests.regimes.broken_source:noise', 'Cannot import .*broken_source:noise: NameError'),
    ('tests.regimes.regime_models:CLASSES', 'cannot be called'),
])
def test_a_source_that_is_not_there_is_named(name, words):
    with pytest.raises(ValueError, match=words):
        task_of('advprop', timm.create_model('test_resnet'), adv_source=name)


def test_a_name_stands_for_what_the_module_has():
    assert import_source('tests.regimes.regime_models:negative') is negative


# Rule 8: a source that fails


@pytest.mark.parametrize('norm_stats', ['eval', 'train'])
def test_a_function_that_fails_in_frozen_leaves_the_model_as_it_was(norm_stats):
    model, (images, target) = split_model(num_aux=2).train(), make_batch()
    model.layer1.eval()
    model.conv1[1].aux_bn[1].bias.requires_grad_(False)

    def fail(model, images, target):
        with frozen(model, norm_stats):
            model(images)
            raise RuntimeError('out of memory')

    task = AdvPropTask(model, sources=[negative, fail], verbose=False, **HALF)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match='out of memory'):
        task(images, target)
    assert_unchanged(model, before)


def test_labels_that_a_source_makes_with_the_model_bring_no_gradients():
    def soft(detached):
        def label(model, images, target):
            labels = model(images).softmax(1)
            return images, labels.detach() if detached else labels
        return label

    gradients = []
    for detached in (True, False):
        model = split_model()
        torch.manual_seed(0)
        AdvPropTask(model.train(), sources=soft(detached), **HALF)(*make_batch())['loss'].backward()
        gradients.append(gradients_of(model))
    assert_all_close(gradients[1], gradients[0], rtol=0., atol=0.)


def test_a_function_that_fails_is_named():
    task = task_of('advprop', split_model(), adv_source='os.path:join')
    with pytest.raises(InputError, match='^The source .images of join. failed: TypeError: '):
        task(*make_batch())


@pytest.mark.parametrize('sources', ['x', 3, {Attack()}, [None]], ids=str)
def test_what_makes_no_images_is_refused(sources):
    with pytest.raises(TypeError, match='makes no images'):
        AdvPropTask(split_model(), sources=sources, verbose=False, **HALF)
