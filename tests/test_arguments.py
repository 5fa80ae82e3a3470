"""YAML recipes, refused flags, timm's names and defaults."""
from pathlib import Path

import pytest
import yaml

from timm_advprop.arguments import ProgramParser, parse_with_recipe
from timm_advprop.errors import InputError
from timm_advprop.evaluation.args import parse_args as parse_validate_args
from timm_advprop.train.args import create_parser, parse_args

RECIPES = sorted(Path(__file__).parents[1].glob('hparams/*.yaml'))


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / 'recipe.yaml'
        path.write_text(text)
        return str(path)
    return write


def expect_error(capsys, parse, argv, *words):
    with pytest.raises((SystemExit, InputError)) as error:
        parse(argv)
    if isinstance(error.value, SystemExit):
        assert error.value.code == 2
        message = capsys.readouterr().err
    else:
        message = str(error.value)
    assert '\n' not in message.strip()
    for word in words:
        assert word in message


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.name)
def test_recipe_parses_and_a_misspelt_key_fails(path, tmp_path, capsys):
    content = yaml.safe_load(path.read_text())
    args = parse_args(['--config', str(path)])
    for key, value in content.items():
        parsed = getattr(args, key.replace('-', '_'))
        assert parsed == (value if not isinstance(parsed, list) or isinstance(value, list) else [value]), key

    for key in content:
        misspelt = tmp_path / 'misspelt.yaml'
        misspelt.write_text(path.read_text().replace(f'\n{key}:', f'\n{key}x:'))
        expect_error(capsys, parse_args, ['--config', str(misspelt)], f'{key}x', 'unknown key')


def test_recipe_overrides_defaults_and_flags_override_the_recipe(recipe):
    path = recipe(
        'epochs: 7\nlr: 0.25\nadv-eps: [1, 2]\nmodel_ema: true\nchannels-last: false\nmean: [0.1, 0.2, 0.3]\n')
    args = parse_args(['--config', path, '--lr', '0.5'])
    assert (args.epochs, args.lr, args.adv_eps, args.mean) == (7, 0.5, [1., 2.], [0.1, 0.2, 0.3])
    assert args.model_ema and not args.channels_last


@pytest.mark.parametrize('text, words', [
    ('modle: resnet18\n', ('modle', 'model')),
    ('adv-attack: pdg\n', ('--adv-attack', 'pdg')),
    ('adv-eps: -1\n', ('--adv-eps', '-1')),
    ('adv-steps: 0\n', ('--adv-steps', '0')),
    ('lr: fast\n', ('--lr', 'fast')),
    ('amp: 3\n', ('amp', 'true or false')),
    ('epochs: [1, 2]\n', ('epochs', 'one value')),
    ('clip-mode: nrom\n', ('--clip-mode', 'nrom')),
    ('- a\n- b\n', ('not a recipe',)),
    ('a: [\n', ('not YAML',)),
    ('torchscript: true\n', ('torchscript', 'not supported')),
])
def test_wrong_recipe_is_one_line(recipe, capsys, text, words):
    expect_error(capsys, parse_args, ['-c', recipe(text)], *words)


def test_missing_recipe_names_the_file(capsys):
    expect_error(capsys, parse_args, ['-c', 'nowhere.yaml'], 'nowhere.yaml')


def test_args_yaml_of_a_run_is_a_recipe(recipe):
    args = parse_args(['--model', 'test_resnet_ap', '--adv-eps', '2', '--mixup', '0.2', '--opt-kwargs', 'foreach=True'])
    again = parse_args(['-c', recipe(yaml.safe_dump(vars(args)))])
    again.config = args.config
    assert vars(again) == vars(args)


@pytest.mark.parametrize('flag', [
    '--naflex-loader', '--kd-model-name=x', '--torchscript', '--fuser=te', '--train-img-sizes=96',
])
def test_flags_that_make_no_sense_are_refused_with_the_reason(capsys, flag):
    expect_error(capsys, parse_args, [flag], flag.split('=')[0], 'not supported')


@pytest.mark.parametrize('argv, words', [
    (['--mdoel', 'x'], ('--mdoel', '--model')),
    (['--regime', 'advpro'], ('--regime', 'vanilla')),
    (['--batch-size', '0'], ('--batch-size', '0')),
    (['--adv-random-start', '1.5'], ('--adv-random-start', '1.5')),
    (['--adv-at', 'pgd'], ('--adv-at',)),
])
def test_wrong_flag_is_one_line(capsys, argv, words):
    expect_error(capsys, parse_args, argv, *words)


def test_defaults_are_those_of_timm():
    args = parse_args([])
    timm_defaults = dict(
        model='resnet50', batch_size=128, opt='sgd', lr=None, lr_base=0.1, lr_base_size=256, momentum=0.9,
        weight_decay=2e-5, sched='cosine', epochs=300, warmup_epochs=5, warmup_lr=1e-5, min_lr=0, decay_rate=0.1,
        decay_epochs=90, decay_milestones=[90, 180, 270], cooldown_epochs=0, patience_epochs=10, smoothing=0.1,
        hflip=0.5, vflip=0., color_jitter=0.4, aa=None, reprob=0., remode='pixel', mixup=0., cutmix=0.,
        mixup_switch_prob=0.5, train_interpolation='random', scale=[0.08, 1.0], dist_bn='reduce',
        model_ema_decay=0.9998, seed=42, log_interval=50, checkpoint_hist=10, workers=4, eval_metric='top1',
        amp_dtype='float16', device='cuda', grad_accum_steps=1, clip_mode='norm', train_split='train',
        val_split='validation', lr_cycle_decay=0.5,
    )
    assert {name: getattr(args, name) for name in timm_defaults} == timm_defaults


def test_adversarial_defaults():
    args = vars(parse_args([]))
    assert args['regime'] is None
    assert {value for name, value in args.items() if name.startswith('adv_')} == {None}  # the regime has its own
    validation = parse_validate_args([])
    assert (validation.route, validation.adv_attack, validation.adv_target) == ('clean', 'none', 'none')


def test_every_flag_has_help():
    for action in create_parser()._actions:
        assert action.help


def test_scalar_that_looks_like_a_flag_survives_a_recipe(recipe):
    parser = ProgramParser()
    parser.add_argument('-c', '--config')
    parser.add_argument('--name')
    assert parse_with_recipe(parser, ['-c', recipe('name: "--odd"\n')]).name == '--odd'
