"""Recipes by name, what their heads say, and that they say what is true."""
import os
import re
from pathlib import Path

import pytest
import timm
import yaml

from tests.cli.programs import FAST, MODEL, run_train
from timm_advprop.cli import recipes
from timm_advprop.cli.recipes import find_recipe, images_per_update, recipe_head, recipe_names
from timm_advprop.cli.train import main as train_main
from timm_advprop.cli.train import parse_args
from timm_advprop.engine.open_model import base_name
from timm_advprop.engine.optimization import learning_rate
from timm_advprop.errors import InputError
from timm_advprop.models import split_models
from timm_advprop.regimes import create_task, regime_of

FOLDER = Path(__file__).parents[2] / 'hparams'
# the rate of each recipe with the processes of its command
RATES = {
    'convnext_tiny_ap_imagenet': 4e-3,
    'deit_small_ap_pyramid_imagenet': 1e-3,
    **{f'efficientnet_b{i}_ap_imagenet': 0.256 for i in range(9)},
    'efficientnet_b0_ap_fine_grained_imagenet': 0.256,
    'resnet50_ap_imagenet_pgd1': 0.05,
    'resnet50_madry_pretrain_imagenet': 0.1,
    'resnet50_clean_finetune_imagenet': 0.01,
    **{f'resnet{depth}_ap_fast_imagenet': 0.1 for depth in (50, 101, 152)},
}
ONE_GPU = [name for name in recipe_names() if name.endswith('_1gpu')]


def read(name):
    return yaml.safe_load((FOLDER / f'{name}.yaml').read_text())


def rate(settings, images):
    return learning_rate(settings.optimizer, images, verbose=False)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_is_found_by_its_name_from_any_folder(elsewhere):
    assert recipe_names() == sorted(path.stem for path in FOLDER.glob('*.yaml'))
    for config in ('resnet50_ap_imagenet_pgd1', 'resnet50_ap_imagenet_pgd1.yaml'):
        assert Path(find_recipe(config)) == FOLDER / 'resnet50_ap_imagenet_pgd1.yaml'
        settings = parse_args(['--config', config])
        assert (settings.model.model, settings.given['config']) == ('resnet50_ap', config)


def test_a_file_goes_before_a_recipe_of_its_name(elsewhere):
    (elsewhere / 'resnet50_ap_imagenet_pgd1').mkdir()  # as of a run's output: no recipe
    assert parse_args(['-c', 'resnet50_ap_imagenet_pgd1']).schedule.epochs == 105
    (elsewhere / 'resnet50_ap_imagenet_pgd1.yaml').write_text('epochs: 7\n')
    assert parse_args(['-c', 'resnet50_ap_imagenet_pgd1.yaml']).schedule.epochs == 7
    assert parse_args(['-c', str(FOLDER / 'resnet50_ap_imagenet_pgd1.yaml')]).schedule.epochs == 105


@pytest.mark.parametrize('config', ['resnet50_ap_imagenet_pdg1', 'hparams/resnet50_ap_imagenet_pgd1.yaml'])
def test_an_unknown_name_is_one_line_with_near_ones(elsewhere, config):
    with pytest.raises(InputError, match=f'recipe {config}: .*did you mean resnet50_ap_imagenet_pgd1 .*--list-recipes'
                       ) as error:
        parse_args(['--config', config])
    assert '\n' not in str(error.value)


def test_recipes_of_an_installed_package_stand_inside_it(tmp_path, monkeypatch):
    package = tmp_path / 'timm_advprop'
    (package / 'hparams').mkdir(parents=True)
    (package / 'hparams' / 'only.yaml').write_text('epochs: 7\n')
    monkeypatch.setattr(recipes, '_PACKAGE', package)
    assert recipe_names() == ['only'] and parse_args(['-c', 'only']).schedule.epochs == 7


def test_the_list_has_every_recipe_and_its_first_sentence(capsys):
    with pytest.raises(SystemExit) as exit:
        train_main(['--list-recipes'])
    assert exit.value.code == 0
    told = dict(re.split(' {2,}', line) for line in capsys.readouterr().out.splitlines())
    assert list(told) == recipe_names()
    assert told['efficientnet_b8_ap_imagenet'] == 'EfficientNet-B8 on ImageNet with AdvProp'
    assert told['resnet50_ap_fast_imagenet_1gpu'] == 'ResNet-50 on ImageNet with Fast AdvProp on one GPU'


@pytest.mark.parametrize('name', recipe_names())
def test_a_head_tells_command_cost_and_result(name):
    head = recipe_head(find_recipe(name))
    command, = [part for part in head if f'--config {name} ' in part]
    assert ('--data-dir imagenet' in command) == ('imagenet' in name)
    settings = parse_args(['--config', name, *re.findall('--regime [a-z-]+', command)[0].split()]
                          if '--regime' in command else ['--config', name])
    told, = [part for part in head if part.startswith('Cost: ')]
    assert float(told.split()[1]) == pytest.approx(cost_of(settings), abs=.005)
    assert 'Result: ' in told


def cost_of(settings):
    is_split = base_name(settings.model.model) in split_models()
    num_aux = len(regime_of(settings.regime, is_split).sources_of_aux_norms(settings.regime))
    name, several = ('test_resnet_ap', dict(num_aux=max(1, num_aux))) if is_split else ('test_resnet', {})
    model = timm.create_model(name, **several)
    return create_task(settings.regime, model, mean=(.5,) * 3, std=(.5,) * 3, verbose=False).relative_cost()


def test_rates_are_those_of_the_stated_batch_and_follow_another():
    assert {*RATES, *ONE_GPU} == {name for name in recipe_names() if name.endswith('_imagenet') or 'imagenet_' in name}
    for name, expected in RATES.items():
        settings, images = parse_args(['--config', name]), images_per_update(find_recipe(name), read(name))
        assert rate(settings, images) == pytest.approx(expected, rel=1e-12), name
        assert rate(settings, images // 8) == pytest.approx(expected / 8, rel=1e-12), name
        assert rate(parse_args(['--config', name, '--lr', '3']), images // 8) == 3


def test_the_stated_batch_is_that_of_all_processes_and_accumulated_batches(tmp_path):
    assert images_per_update(find_recipe('resnet50_ap_imagenet_pgd1'), read('resnet50_ap_imagenet_pgd1')) == 8 * 32
    assert images_per_update(find_recipe('efficientnet_b0_ap_imagenet'), read('efficientnet_b0_ap_imagenet')) == 4096
    assert images_per_update(find_recipe('test_resnet_ap_digits'), read('test_resnet_ap_digits')) == 64
    path = tmp_path / 'args.yaml'
    path.write_text('batch_size: 8\n')
    assert images_per_update(path, yaml.safe_load(path.read_text())) is None  # of a run: it tells no processes
    path.write_text('# train.py \\\n#   --nproc_per_node=2 --config x\nbatch_size: 8\ngrad_accum_steps: 3\n')
    assert images_per_update(path, yaml.safe_load(path.read_text())) == 48


@pytest.mark.parametrize('name', ONE_GPU)
def test_a_recipe_for_one_gpu_makes_the_update_of_its_several(name):
    """The batches of the processes one after another; what norms see in a pass stays, and nothing else differs."""
    one, several = read(name), read(name.removesuffix('_1gpu'))
    processes = one['grad-accum-steps'] // several.get('grad-accum-steps', 1)
    assert processes > 1 and not several.get('sync-bn')
    assert {key: value for key, value in one.items() if key not in ('grad-accum-steps', 'bn-momentum')} == {
        key: value for key, value in several.items() if key not in ('grad-accum-steps', 'bn-momentum')}
    several_images = images_per_update(find_recipe(name.removesuffix('_1gpu')), several)
    assert images_per_update(find_recipe(name), one) == several_images
    momentum = several.get('bn-momentum', 0.1)  # of timm's ResNets
    assert one['bn-momentum'] == pytest.approx(1 - (1 - momentum) ** (1 / processes), rel=5e-3)


def test_another_batch_than_the_recipes_is_warned_of(few_digits, tmp_path, caplog):
    flags = ['--config', 'test_resnet_ap_digits', '--dry-run']
    run_train(few_digits, tmp_path, *flags, common=FAST[:FAST.index('--batch-size')])
    assert 'images for an update' not in caplog.text
    run_train(few_digits, tmp_path, *flags)
    assert ('16 images for an update, where test_resnet_ap_digits has 64 (--batch-size, --grad-accum-steps, '
            'processes): the rate does not follow: --lr is given.') in caplog.text
    caplog.clear()
    run_train(few_digits, tmp_path, *MODEL, '--model-kwargs', '--config', 'resnet50_ap_imagenet_pgd1', '--dry-run',
              common=[])
    assert '32 images for an update, where resnet50_ap_imagenet_pgd1 has 256' in caplog.text
    assert 'processes): the rate follows.' in caplog.text


def test_a_recipe_may_come_through_a_pipe(few_digits, tmp_path):
    """`--config <(…)` of a shell, which can be read once."""
    reading, writing = os.pipe()
    os.write(writing, b'model: test_resnet_ap\nadv-eps: [2]\n')
    os.close(writing)
    run_train(few_digits, tmp_path, '--config', f'/dev/fd/{reading}', '--dry-run')
    os.close(reading)


@pytest.mark.parametrize('flags, passed_over, kept', [
    (['--regime', 'fast-advprop'], ['adv_steps'], dict(adv_eps=[8.], adv_alpha=4.)),
    (['--adv-source', 'augmix'], ['adv_alpha', 'adv_eps', 'adv_steps'], {}),
    (['--adv-source=gaussian-noise'], ['adv_alpha', 'adv_steps'], dict(adv_eps=[8.])),
    (['--regime', 'advprop'], [], dict(adv_steps=3)),
    (['--adv-source', 'pgd'], [], dict(adv_steps=3)),
])
def test_what_another_regime_or_source_has_no_use_for_in_a_recipe_is_passed_over(caplog, flags, passed_over, kept):
    with caplog.at_level('INFO'):
        settings = parse_args(['--config', 'test_resnet_ap_digits', *flags])
    assert {name: settings.given[name] for name in (*passed_over, *kept)} == {**dict.fromkeys(passed_over), **kept}
    named = ', '.join(f'--{name.replace("_", "-")}' for name in passed_over)
    lines = [line.partition(' of test_resnet_ap_digits: passed over')[0] for line in caplog.messages]
    assert lines == [named] * bool(named)
    create_task(settings.regime, timm.create_model('test_resnet_ap'), verbose=False)


def test_what_is_typed_or_the_recipes_own_regime_has_no_use_for_is_an_error(tmp_path):
    settings = parse_args(['--config', 'test_resnet_ap_digits', '--regime', 'fast-advprop', '--adv-steps', '2'])
    with pytest.raises(ValueError, match='^Regime fast-advprop has no use for --adv-steps'):
        regime_of(settings.regime, is_split=True)
    (tmp_path / 'own.yaml').write_text('regime: fast-advprop\nadv-steps: 2\n')
    assert parse_args(['--config', str(tmp_path / 'own.yaml')]).given['adv_steps'] == 2
