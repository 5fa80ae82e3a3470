"""YAML recipes, refused flags, one-line errors."""
from pathlib import Path

import pytest
import yaml

from timm_advprop import __version__
from timm_advprop.cli.hub import main as hub_main
from timm_advprop.cli.parser import ProgramParser, parse_recipe
from timm_advprop.cli.train import create_parser, parse_args
from timm_advprop.cli.train import main as train_main
from timm_advprop.cli.validate import create_parser as create_validate_parser
from timm_advprop.cli.validate import main as validate_main
from timm_advprop.cli.validate import parse_args as parse_validate_args
from timm_advprop.errors import InputError
from timm_advprop.settings import Setting

RECIPES = sorted(Path(__file__).parents[2].glob('hparams/*.yaml'))


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
    given = parse_args(['--config', str(path)]).given
    for key, value in content.items():
        parsed = given[key.replace('-', '_')]
        assert parsed == (value if not isinstance(parsed, list) or isinstance(value, list) else [value]), key

    for key in content:
        misspelt = tmp_path / 'misspelt.yaml'
        misspelt.write_text(path.read_text().replace(f'\n{key}:', f'\n{key}x:'))
        expect_error(capsys, parse_args, ['--config', str(misspelt)], f'{key}x', 'unknown key')


def test_recipe_overrides_defaults_and_flags_override_the_recipe(recipe):
    path = recipe(
        'epochs: 7\nlr: 0.25\nadv-eps: [1, 2]\nmodel_ema: true\nchannels-last: false\nmean: [0.1, 0.2, 0.3]\n')
    settings = parse_args(['--config', path, '--lr', '0.5'])
    assert (settings.schedule.epochs, settings.optimizer.lr) == (7, 0.5)
    assert (settings.regime.strengths, settings.image.mean) == ((1., 2.), (0.1, 0.2, 0.3))
    assert settings.ema.model_ema and not settings.device.channels_last


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
    ('epochs: 1\nlr: 2\nepochs: 3\n', ('recipe.yaml: epochs is given twice', 'line 3')),
    ('batch-size: 1\nbatch_size: 3\n', ('batch_size is given twice', 'line 2')),
    ('adv-source:\n  - pgd: {eps: 2, eps: 3}\n', ('eps is given twice', 'line 2')),
    ('torchscript: true\n', ('torchscript', 'not supported')),
    ('kd-model-name: resnet18\nkd-temperature: 3\n', ('kd-model-name', 'not supported')),
    ('experiment: 2024-13-45\n', ('not YAML', 'month')),
    ('model-kwargs: num_aux\n', ('--model-kwargs', 'takes name=value')),
])
def test_wrong_recipe_is_one_line(recipe, capsys, text, words):
    expect_error(capsys, parse_args, ['-c', recipe(text)], *words)


@pytest.mark.parametrize('text', ['adv-source: pgd\n', 'adv-eps: [1, 2]\n', 'opt-kwargs: {foreach: true}\n'])
def test_a_list_at_the_end_of_a_recipe_ends_with_it(recipe, text):
    path = recipe(text)
    for argv in (['images', '-c', path], ['-c', path, 'images']):
        given = parse_args(argv).given
        assert (given['data_dir'], given['config']) == ('images', path)
        assert given == {**parse_args(['-c', path]).given, 'data_dir': 'images'}


def test_missing_recipe_names_the_file(capsys):
    expect_error(capsys, parse_args, ['-c', 'nowhere.yaml'], 'nowhere.yaml')


def test_a_refused_flag_that_is_off_may_stand_in_a_recipe(recipe):
    # as in an args.yaml of timm's own script
    assert parse_args(['-c', recipe('torchscript: false\nkd_model_name: null\ntta: 0\nepochs: 7\n')]).given[
        'epochs'] == 7


def test_a_typed_base_rate_holds_against_the_rate_of_a_recipe(recipe):
    path = recipe('lr: 0.2\n')
    assert parse_args(['-c', path]).optimizer.lr == 0.2
    assert parse_args(['-c', path, '--lr-base', '0.3']).optimizer.lr is None
    assert parse_args(['-c', path, '--lr-base=0.3', '--lr', '0.1']).optimizer.lr == 0.1


SOURCES_RECIPE = """
adv-source:
  - pgd: {eps: 2, steps: 1}
  - gaussian-noise
  - package.images:make:
      range: [0.5, 1.0e-3]
      name: odd
      other: null
  - gaussian-noise:
"""


def test_sources_of_a_recipe_and_of_the_command_line_are_the_same(recipe):
    flags = ['pgd eps=2 steps=1', 'gaussian-noise', 'package.images:make range=[0.5,0.001] name=odd', 'gaussian-noise']
    settings = parse_args(['-c', recipe(SOURCES_RECIPE)])
    assert settings.given['adv_source'] == flags and settings.regime.named == tuple(flags)
    assert parse_args(['--adv-source', *flags]).regime == settings.regime
    again = parse_args(['-c', recipe(yaml.safe_dump(dict(settings.given)))])  # as a run's args.yaml has it
    assert again.regime == settings.regime
    assert parse_args(['-c', recipe('adv-source: gaussian-noise\n')]).regime.named == ('gaussian-noise',)
    assert parse_args(['-c', recipe(SOURCES_RECIPE), '--adv-source', 'pgd']).regime.named == ('pgd',)


@pytest.mark.parametrize('text, words', [
    ('adv-source: {pgd: {eps: 2}}\n', 'adv-source takes a list'),
    ('adv-source:\n  - pgd:\n    eps: 2\n', 'an entry of adv-source is a name and its settings'),
    ('adv-source:\n  - pgd: 2\n', 'an entry of adv-source is a name and its settings'),
    ('adv-source:\n  - {}\n', 'an entry of adv-source is a name and its settings'),
    ('epochs: {pgd: 2}\n', 'epochs takes one value'),
])
def test_an_entry_of_a_recipes_list_is_a_name_and_its_settings(recipe, capsys, text, words):
    expect_error(capsys, parse_args, ['-c', recipe(text)], words)


def test_given_values_of_a_run_are_a_recipe(recipe):
    settings = parse_args(['--model', 'test_resnet_ap', '--adv-eps', '2', '--mixup', '0.2', '--opt-kwargs',
                           'foreach=True', '--scale', '0.5', '1', '--val-split', '', '--torchcompile', 'eager'])
    again = parse_args(['-c', recipe(yaml.safe_dump(dict(settings.given)))])
    assert {**again.given, 'config': settings.given['config']} == settings.given


@pytest.mark.parametrize('argv, words', [
    (['--mdoel', 'x'], ('--mdoel', '--model')),
    (['--mdoel=x'], ('--mdoel', '--model')),
    (['--regime', 'advpro'], ('--regime', 'vanilla')),
    (['--batch-size', '0'], ('--batch-size', '0', 'at least 1')),
    (['--batch-size', '1.5'], ('--batch-size', '1.5', 'int')),
    (['--adv-random-start', '1.5'], ('--adv-random-start', '1.5', 'from 0 to 1')),
    (['--adv-eps', 'nan'], ('--adv-eps', 'nan', '0–255 pixels')),
    (['--adv-at', 'pgd'], ('--adv-at',)),
    (['--scale', '0.5'], ('--scale', '2')),
])
def test_wrong_flag_is_one_line(capsys, argv, words):
    expect_error(capsys, parse_args, argv, *words)


def test_adversarial_defaults():
    given = parse_args([]).given
    assert given['regime'] is None
    of_regime = {name: value for name, value in given.items() if name.startswith('adv_')}
    assert of_regime.pop('adv_match_masks') is False
    assert set(of_regime.values()) == {None}  # the regime has its own
    validation = parse_validate_args([])
    assert validation.model.route == ('main',) and validation.attack.attack is None
    attack = parse_validate_args(['--adv-attack', 'pgd']).attack.attack
    assert (attack.target, attack.random_start, attack.eps_px) == ('none', 1., 4.)


@pytest.mark.parametrize('create', [create_parser, create_validate_parser])
def test_every_flag_has_help_that_can_be_shown(create):
    parser = create()
    for action in parser._actions:
        assert action.help
    assert '--adv-eps' in parser.format_help()


def test_help_tells_defaults():
    text = ' '.join(create_parser().format_help().split())
    for words in ('batch, for each process (default: 128)', 'weight decay (default: 2e-5)',
                  'attack steps (default: eps + 1, and 1 where eps is at most 1',
                  'random crop scale (default: 0.08 1)'):
        assert words in text


def test_the_positional_form_of_the_data_folder():
    assert parse_args(['folder']).data.data_dir == 'folder'
    assert parse_args(['folder', '--data-dir', 'other']).data.data_dir == 'other'
    assert 'data' not in parse_args(['folder']).given


def test_a_backend_need_not_be_named():
    assert parse_args(['--torchcompile']).model.torchcompile == 'inductor'
    assert parse_args(['--torchcompile', 'eager']).model.torchcompile == 'eager'
    assert parse_args([]).model.torchcompile is None


def test_scalar_that_looks_like_a_flag_survives_a_recipe(recipe):
    parser = ProgramParser()
    parser.add_argument('-c', '--config')
    parser.add_argument('--name')
    assert parse_recipe(parser, ['-c', recipe('name: "--odd"\n')]).name == '--odd'


def test_settings_become_flags():
    parser = ProgramParser()
    parser.add_settings('Group', {
        '--size': Setting('size', kind=int, default=3, flags=('-s',), low=1),
        '--parts': Setting('parts', kind=float, nargs='+', default=(1., 2.)),
        '--open': Setting('open', kind=bool, default=False),
        '--more': Setting('more', kind=dict, default={}),
        '--kind': Setting('kind', kind=int, choices=(1, 2), default=1),
    })
    assert vars(parser.parse_args([])) == dict(size=3, parts=[1., 2.], open=False, more={}, kind=1)
    given = parser.parse_args(['-s', '4', '--parts', '5', '--open', '--more', 'a=1', 'b=x', '--kind', '2'])
    assert vars(given) == dict(size=4, parts=[5.], open=True, more=dict(a=1, b='x'), kind=2)


def test_debug_is_a_flag_of_every_program_and_no_setting(recipe, capsys):
    assert 'debug' not in parse_args(['--debug']).given
    assert 'debug' not in parse_validate_args(['--debug']).given
    with pytest.raises(SystemExit) as error:
        train_main(['-c', 'nowhere.yaml', '--debug'])
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (error.value.code, first) == (2, 'Traceback (most recent call last):')
    assert last.startswith('error: Cannot read the recipe nowhere.yaml')


@pytest.mark.parametrize('main', [train_main, validate_main, hub_main])
def test_every_program_prints_the_version(main, capsys):
    with pytest.raises(SystemExit) as error:
        main(['--version'])
    assert error.value.code == 0 and capsys.readouterr().out == f'timm-advprop {__version__}\n'


def test_a_flag_is_in_its_range(capsys):
    parser = ProgramParser()
    parser.add_settings('Group', {
        '--size': Setting('', kind=int, low=1, high=3),
        '--scale': Setting('', kind=float, above=0, ordered=True, nargs=2),
    })
    assert [parser.parse_args(['--size', text]).size for text in ('1', '3')] == [1, 3]
    assert parser.parse_args(['--scale', '0.5', '1']).scale == [0.5, 1.]
    for argv, message in (
            (['--size', '4'], 'error: argument --size: must be from 1 to 3, got 4\n'),
            (['--scale', '1', '0.5'], 'error: argument --scale: must rise, got 1.0 0.5\n'),
            (['--scale', '0', 'nan'], 'error: argument --scale: must be above 0, got 0.0 nan\n'),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(argv)
        assert capsys.readouterr().err == message
