import re
import runpy
import subprocess
import sys

import pytest
import timm
import timm.data
import timm.layers
import timm.models
import timm.task
import torch
import yaml

import timm_advprop
from timm_advprop.cli.wrap import _parse, main, run_script
from timm_advprop.regimes import RegimeSettings

# A script of the shape of timm's train.py: what it imports, how it builds, trains and validates.
SCRIPT = '''
import argparse
import os
import sys

import timm
import torch
import yaml
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, LogitDistillationTask

config_parser = argparse.ArgumentParser(add_help=False)
config_parser.add_argument('-c', '--config', default='')
parser = argparse.ArgumentParser()
parser.add_argument('data', nargs='?')
parser.add_argument('--model', default='test_resnet_ap')
parser.add_argument('--mean', type=float, nargs='+')
parser.add_argument('--std', type=float, nargs='+')
parser.add_argument('--in-chans', type=int)
parser.add_argument('--img-size', type=int, default=32)
parser.add_argument('--head-init-bias', type=float)
parser.add_argument('--sync-bn', action='store_true')
parser.add_argument('--split-bn', action='store_true')
parser.add_argument('--optimizer-first', action='store_true')  # as timm's script did from 1.0.23 to 1.0.26
parser.add_argument('--torchscript', action='store_true')
parser.add_argument('--kd-model-name')
parser.add_argument('--output')


def parse_args():
    args_config, remaining = config_parser.parse_known_args()
    if args_config.config:
        with open(args_config.config) as file:
            parser.set_defaults(**yaml.safe_load(file))
    return parser.parse_args(remaining)


def main():
    args = parse_args()
    distributed = int(os.environ.get('WORLD_SIZE', 1)) > 1
    rank = int(os.environ.get('RANK', 0))
    if distributed:
        torch.distributed.init_process_group('gloo')
    torch.manual_seed(0)
    model = create_model(args.model, num_classes=4, in_chans=args.in_chans or 3)
    resolve_data_config(vars(args), model=model)
    if args.sync_bn:
        model = convert_sync_batchnorm(model)
    if args.split_bn:
        model = convert_splitbn_model(model, 2)
    optimizer = create_optimizer_v2(model, 'momentum', lr=0.1, momentum=0.) if args.optimizer_first else None
    if args.torchscript:
        model = torch.jit.script(model)
    criterion = torch.nn.CrossEntropyLoss()
    if args.kd_model_name:
        task = LogitDistillationTask(student_model=model, teacher_model=args.kd_model_name, criterion=criterion)
    else:
        task = ClassificationTask(model=model, criterion=criterion, device=torch.device('cpu'), dtype=None)
    assert isinstance(task, ClassificationTask)
    assert not isinstance(torch.nn.Identity(), ClassificationTask)
    optimizer = optimizer or torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1)
    if distributed:
        task.prepare_distributed()
    units = [dict(eps=source.normalised(source.eps_px), low=source.bounds[0])
             for source in getattr(task, 'sources', ())]
    state = dict(units=units, argv=sys.argv, task_type=type(task).__name__)
    state['norms'] = {type(module).__name__ for module in model.modules() if hasattr(module, 'running_var')}
    if not args.sync_bn:
        torch.manual_seed(1 + rank)
        images, target = torch.rand(8, args.in_chans or 3, args.img_size, args.img_size), torch.arange(8) % 4
        task.get_trainable_module().train()
        loss = task(images, target)['loss']
        loss /= 1
        loss.backward()
        optimizer.step()
        eval_model = task.get_eval_model()
        eval_model.eval()
        with torch.inference_mode():
            logits = eval_model(images)
        state.update(
            loss=loss.item(), images=images, logits=logits,
            state_dict=timm.utils.get_state_dict(task.get_trainable_module()))
    torch.save(state, f'{args.output}.{rank}' if distributed else args.output)


if __name__ == '__main__':
    main()
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'train.py'
    path.write_text(SCRIPT)
    return str(path)


@pytest.fixture
def run(script, tmp_path):
    # Runs the script under AdvProp and returns what it saved.
    def run_and_load(*argv):
        output = str(tmp_path / 'saved.pth')
        run_script(script, [*argv, '--output', output])
        return torch.load(output, weights_only=False)
    return run_and_load


@pytest.fixture
def error_line(capsys):
    # The one line on stderr of a program that ends with status 2.
    def run_main(*argv):
        with pytest.raises(SystemExit) as exit:
            main(list(argv))
        assert exit.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith('error: ')
        return lines[0]
    return run_main


def write_script(tmp_path, text):
    path = tmp_path / 'script.py'
    path.write_text(text)
    return str(path)


def write_recipe(tmp_path, **entries):
    path = tmp_path / 'recipe.yaml'
    path.write_text(yaml.safe_dump(entries))
    return str(path)


def reference_step(model_name='test_resnet_ap', **task_kwargs):
    # What the script does, with the task built by hand.
    torch.manual_seed(0)
    model = timm.create_model(model_name, num_classes=4)
    if model_name == 'test_resnet':
        timm_advprop.convert_split_norm(model)
    weight = task_kwargs.pop('weight', None)
    attack = timm_advprop.Attack(**task_kwargs)
    task = timm_advprop.AdvPropTask(model, torch.nn.CrossEntropyLoss(), attack, weight=weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    model.train()
    loss = task(torch.rand(8, 3, 32, 32), torch.arange(8) % 4)['loss']
    loss.backward()
    optimizer.step()
    return loss.item(), model.state_dict()


def as_flags(entries):
    flags = []
    for key, value in entries.items():
        flags += ['--' + key.replace('_', '-'), *map(str, value if isinstance(value, list) else [value])]
    return flags


def assert_equal_states(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0, msg=key)


FLAGS = ['--adv-attack', 'ifgsm', '--adv-eps', '2', '--adv-alpha', '0.5', '--adv-steps', '2', '--adv-target', 'none',
         '--adv-weight', '0.5', '--adv-norm-stats', 'train', '--mean', '.5', '.5', '.5', '--std', '.25', '.25', '.25']
TASK_KWARGS = dict(kind='ifgsm', eps_px=2, alpha_px=0.5, steps=2, target='none', weight=0.5, norm_stats='train',
                   mean=(.5,) * 3, std=(.25,) * 3)


@pytest.mark.parametrize('order', [[], ['--optimizer-first']], ids=['task-first', 'optimizer-first'])
@pytest.mark.parametrize('model', ['test_resnet_ap', 'test_resnet'])
def test_step_is_that_of_the_task(run, model, order):
    saved = run('--model', model, '--regime', 'advprop', *FLAGS, *order)
    loss, state_dict = reference_step(model, **TASK_KWARGS)
    assert saved['loss'] == loss
    assert_equal_states(saved['state_dict'], state_dict)


def test_auxiliary_norms_are_trained_and_plain_timm_loads_the_rest(run):
    saved = run()
    clean, aux = timm_advprop.split_state_dict(saved['state_dict'])
    means = [key for key in aux if key.endswith('running_mean')]
    assert means
    for key in means:
        assert not torch.equal(aux[key], clean[key.replace('aux_bn.0.', '')])
    assert all(value == 1 for key, value in saved['state_dict'].items() if key.endswith('num_batches_tracked'))
    plain = timm.create_model('test_resnet', num_classes=4)
    plain.load_state_dict(clean, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(saved['images']), saved['logits'])


@pytest.mark.parametrize('model', ['test_resnet_ap', 'test_resnet'])
def test_norms_share_statistics_where_that_is_asked_for(run, model):
    saved = run('--model', model, '--regime', 'advprop', '--adv-eps', '1', '--adv-share', 'statistics')
    aux = timm_advprop.split_state_dict(saved['state_dict'])[1]
    assert {key.rpartition('.')[2] for key in aux} == {'weight', 'bias'}


def test_auxiliary_statistics_have_a_momentum_of_their_own(run):
    states = [run('--adv-eps', '1', '--adv-bn-momentum', momentum)['state_dict'] for momentum in ('0', '0.5')]
    assert [state['bn1.aux_bn.0.running_mean'].any().item() for state in states] == [False, True]
    assert torch.equal(*(state['bn1.running_mean'] for state in states))


def test_plain_model_trains_as_without_the_wrapper(run, script, tmp_path, monkeypatch, caplog):
    saved = run('--model', 'test_resnet')
    monkeypatch.setattr(sys, 'argv', [script, '--model', 'test_resnet', '--output', str(tmp_path / 'own.pth')])
    runpy.run_path(script, run_name='__main__')
    own = torch.load(tmp_path / 'own.pth', weights_only=False)
    assert (saved['task_type'], own['task_type']) == ('VanillaTask', 'ClassificationTask')
    assert saved['loss'] == own['loss']
    assert_equal_states(saved['state_dict'], own['state_dict'])
    assert 'vanilla, as the model has no split norms' in caplog.text


def test_vanilla_regime_leaves_auxiliary_norms_alone(run, caplog):
    saved = run('--regime', 'vanilla')
    aux = timm_advprop.split_state_dict(saved['state_dict'])[1]
    assert saved['task_type'] == 'VanillaTask'
    assert not any(value.any() for key, value in aux.items() if key.endswith(('num_batches_tracked', 'running_mean')))
    assert 'no split norms' not in caplog.text


@pytest.mark.parametrize('given, mean, std', [
    (dict(), (.5, .5, .5), (.5, .5, .5)),  # the model's own
    (dict(mean=[.1, .2, .3], std=[.4, .5, .6]), (.1, .2, .3), (.4, .5, .6)),
    (dict(mean=[.4]), (.4, .4, .4), (.5, .5, .5)),
    (dict(in_chans=1, mean=[.4], std=[.25]), (.4,), (.25,)),
    (dict(in_chans=1, mean=[.4]), (.4,), (.5,)),
])
@pytest.mark.parametrize('in_recipe', [False, True])
def test_attack_knows_the_normalisation(run, tmp_path, given, mean, std, in_recipe):
    argv = ['-c', write_recipe(tmp_path, **given)] if in_recipe else as_flags(given)
    units = run(*argv, '--adv-eps', '1')['units'][0]
    assert units['eps'] == pytest.approx([1 / 255 / s for s in std])
    assert units['low'] == pytest.approx([-m / s for m, s in zip(mean, std)])


@pytest.mark.parametrize('in_recipe', [False, True])
def test_attack_knows_the_normalisation_of_a_script_that_resolves_it_by_itself(tmp_path, in_recipe):
    script = write_script(tmp_path, """
import timm, torch
from timm.task import ClassificationTask
task = ClassificationTask(model=timm.create_model('test_resnet_ap'), criterion=torch.nn.CrossEntropyLoss())
attack = task.sources[0]
torch.testing.assert_close(attack.normalised(attack.eps_px), (2 / 255,) * 3)
torch.testing.assert_close(attack.bounds[0], (-.2, -.4, -.6))
""")
    given = dict(mean=[.1, .2, .3], std=[.5, .5, .5])
    argv = ['-c', write_recipe(tmp_path, **given)] if in_recipe else as_flags(given)
    run_script(script, [*argv, '--adv-eps', '1'])


def test_script_gets_its_own_flags_alone(run, tmp_path, script):
    saved = run('somewhere', '--adv-eps', '1', '--head-init-bias', '-1', '--regime=advprop', '--mean', '.5', '--std',
                '.5', '--adv-weight', '2')
    assert saved['argv'] == [script, 'somewhere', '--head-init-bias', '-1', '--mean', '.5', '--std', '.5',
                             '--output', str(tmp_path / 'saved.pth')]


@pytest.mark.parametrize('flag', ['-c', '--config', '--conf'])
def test_recipe(run, tmp_path, flag):
    recipe = write_recipe(tmp_path, model='test_resnet', regime='advprop', adv_eps=[1, 2], adv_steps=None)
    units = run(flag, recipe)['units']
    assert units[1]['eps'] == pytest.approx([2 * eps for eps in units[0]['eps']])


@pytest.mark.parametrize('entries, num_parts', [(dict(adv_match_masks=True), 2), (dict(adv_match_masks=False), None)])
def test_a_switch_in_a_recipe_has_no_value(tmp_path, entries, num_parts):
    script = write_script(tmp_path, f"""
import timm, torch
from timm.task import ClassificationTask
model = timm.create_model('test_vit_ap', img_size=32)
task = ClassificationTask(model=model, criterion=torch.nn.CrossEntropyLoss())
assert getattr(model.head_drop, 'num_parts', None) == {num_parts}
""")
    run_script(script, ['-c', write_recipe(tmp_path, **entries), '--regime', 'trades'])


def test_command_line_overrides_the_recipe(run, tmp_path):
    recipe = write_recipe(tmp_path, adv_eps=1, adv_weight=0.25, adv_steps=1)
    saved = run('-c', recipe, '--adv-eps', '2', '--adv-weight', '0.5')
    assert saved['loss'] == reference_step(eps_px=2, weight=0.5, steps=1)[0]


@pytest.mark.parametrize('entries, message', [
    (dict(adv_epz=2), "unknown key 'adv_epz' .did you mean adv_eps"),
    ({'adv-eps': 2}, "unknown key 'adv-eps' .did you mean adv_eps"),
    (dict(regime='madly'), '--regime: invalid choice'),
    (dict(adv_eps='large'), '--adv-eps: invalid float value'),
    (dict(adv_steps=[1, 2]), 'adv_steps takes one value, not .1, 2'),
])
def test_wrong_recipe(script, tmp_path, error_line, entries, message):
    assert re.search(message, error_line(script, '-c', write_recipe(tmp_path, **entries)))


def test_sources_of_a_recipe_are_as_those_of_the_training_program(tmp_path):
    path = write_recipe(tmp_path, adv_source=[{'pgd': {'eps': 2}}, 'augmix', {'corruption': {'severities': [1, 2]}}])
    settings, script_argv, _ = _parse(['-c', path, '--lr', '1'])
    assert settings.named == ('pgd eps=2', 'augmix', 'corruption severities=[1,2]')
    assert script_argv == ['-c', path, '--lr', '1']


def test_what_another_regime_has_no_use_for_is_passed_over(tmp_path, caplog):
    path = write_recipe(tmp_path, regime='advprop', adv_eps=2, adv_weight=0.5)
    with caplog.at_level('INFO'):
        settings, _, _ = _parse(['-c', path, '--regime', 'madry'])
    assert (settings.regime, settings.strengths, settings.weight) == ('madry', (2,), RegimeSettings().weight)
    assert re.search('--adv-weight of .*recipe.yaml: passed over', caplog.text)


def test_recipe_that_is_not_yaml(script, tmp_path, error_line):
    (tmp_path / 'recipe.yaml').write_text('lr: [1')
    assert 'recipe.yaml' in error_line(script, '-c', str(tmp_path / 'recipe.yaml'))


def test_sync_batchnorm_is_split_too(run):
    assert run('--sync-bn')['norms'] == {'SplitSyncBatchNorm', 'SyncBatchNorm'}
    assert run('--sync-bn', '--model', 'test_resnet', '--regime', 'vanilla')['norms'] == {'SyncBatchNorm'}


def test_a_plain_model_may_have_timms_split_batchnorm(run):
    assert run('--split-bn', '--model', 'test_resnet')['norms'] == {'SplitBatchNorm2d', 'BatchNorm2d'}


def test_a_plain_model_that_the_script_makes_by_itself_is_refused(tmp_path, error_line):
    script = write_script(tmp_path, """
import timm, torch
model = timm.models.resnet.test_resnet()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
timm.task.ClassificationTask(model)
""")
    assert re.search('ResNet has no split norms.*convert_split_norm', error_line(script, '--regime', 'advprop'))


def test_stand_in_is_still_the_class_it_stands_for(tmp_path):
    run_script(write_script(tmp_path, """
import timm, torch
from timm.task import ClassificationTask, TrainingTask

class OwnTask(ClassificationTask):
    def __init__(self, model, criterion):
        super().__init__(model, criterion)

model, criterion = timm.create_model('test_resnet_ap'), torch.nn.CrossEntropyLoss()
assert issubclass(ClassificationTask, TrainingTask)
assert ClassificationTask.__name__ == 'ClassificationTask'
assert ClassificationTask.prepare_distributed
own = OwnTask(model, criterion)
assert type(own) is OwnTask and isinstance(own, ClassificationTask)
task = ClassificationTask(model, criterion, verbose=False)
assert type(task).__name__ == 'AdvPropTask'
assert isinstance(task, ClassificationTask) and isinstance(task, TrainingTask)
assert not isinstance(task, OwnTask) and not isinstance(criterion, ClassificationTask)
"""), [])


@pytest.mark.parametrize('ending', ['', '\nraise RuntimeError("on purpose")', '\nraise KeyboardInterrupt'])
def test_everything_is_restored(tmp_path, ending):
    def snapshot():
        modules = timm, timm.data, timm.layers, timm.models, timm.task
        return [dict(vars(module)) for module in modules], sys.argv, list(sys.path)

    script = write_script(tmp_path, f"""
import sys, timm, timm.task
assert timm.task.ClassificationTask.__module__ == 'timm_advprop.cli.wrap'
sys.path.append('somewhere')
timm.task.ClassificationTask(timm.create_model('test_resnet_ap')){ending}
""")
    before = snapshot()
    try:
        run_script(script, ['--adv-eps', '1'])
    except (RuntimeError, KeyboardInterrupt):
        assert ending
    else:
        assert not ending
    assert snapshot() == before


def test_script_finds_modules_of_its_own_folder(tmp_path):
    (tmp_path / 'beside_the_script.py').write_text('NAME = "test_resnet_ap"')
    run_script(write_script(tmp_path, """
import sys, timm, timm.task
from beside_the_script import NAME
assert __name__ == '__main__' and sys.modules['__main__'].NAME is NAME
timm.task.ClassificationTask(timm.create_model(NAME))
"""), [])


@pytest.mark.parametrize('argv, message', [
    (['--model', 'test_nfnet', '--regime', 'advprop'], 'no batch norms'),
    (['--adv-eps', '1', '2'], 'num_aux=2'),
    (['--kd-model-name', 'test_resnet'], 'LogitDistillationTask.*--kd-model-name'),
    (['--torchscript'], '--torchcompile'),
    (['--split-bn'], '--split-bn.*Leave it out.*--aug-splits'),
    (['--split-bn', '--model', 'test_resnet', '--regime', 'advprop'], '--split-bn.*Leave it out'),
    (['--adv-steps', '0'], '--adv-steps.*at least 1'),
    (['--regime', 'madly'], '--regime: invalid choice'),
    (['--mean', 'grey'], '--mean: invalid float value'),
])
def test_wrong_flags(script, error_line, argv, message):
    assert re.search(message, error_line(script, *argv))


@pytest.mark.parametrize('text', ['x = 1', 'import sys; sys.exit()', 'import sys; sys.exit(0)'])
def test_script_that_builds_no_task(tmp_path, error_line, text):
    assert 'AdvProp was not used' in error_line(write_script(tmp_path, text))


def test_missing_script(tmp_path, error_line):
    assert 'No script' in error_line(str(tmp_path / 'nowhere.py'))
    assert 'No script' in error_line(str(tmp_path))


@pytest.mark.parametrize('argv', [[], ['--adv-eps', '2', 'train.py']])
def test_script_must_come_first(error_line, argv):
    assert 'the script first' in error_line(*argv)


def test_exit_status_of_the_script_is_kept(tmp_path):
    with pytest.raises(SystemExit) as exit:
        run_script(write_script(tmp_path, 'import sys; sys.exit(3)'), [])
    assert exit.value.code == 3


def test_help(script, capsys):
    main(['--help'])
    assert '--adv-eps' in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        main([script, '--help'])
    assert not exit.value.code
    assert '--kd-model-name' in capsys.readouterr().out


@pytest.mark.slow
def test_program(script, tmp_path):
    output = str(tmp_path / 'saved.pth')
    argv = [sys.executable, '-m', 'timm_advprop.wrap', script, '--adv-eps', '1', '--output', output]
    subprocess.run(argv, check=True)
    assert torch.load(output, weights_only=False)['task_type'] == 'AdvPropTask'


@pytest.mark.slow
def test_two_processes(script, tmp_path):
    output = str(tmp_path / 'saved.pth')
    argv = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m',
            'timm_advprop.wrap', script, '--adv-eps', '1', '--output', output]
    subprocess.run(argv, check=True)
    first, second = (torch.load(f'{output}.{rank}', weights_only=False) for rank in range(2))
    assert first['task_type'] == 'AdvPropTask'
    assert first['loss'] != second['loss']
    parameters = [key for key in first['state_dict'] if key.endswith(('weight', 'bias'))]
    assert any('aux_bn' in key for key in parameters)
    assert_equal_states(*({key: state['state_dict'][key] for key in parameters} for state in (first, second)))
