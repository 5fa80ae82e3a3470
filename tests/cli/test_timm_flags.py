"""Our flags are those of timm's scripts, recorded in timm_flags.json by record_timm_flags.py."""
import json
import os

import pytest
import yaml

from tests.cli.record_timm_flags import RECORD, record
from timm_advprop.cli import train, validate
from timm_advprop.regimes import Attack, regime_flags

TIMM = json.loads(RECORD.read_text())
PROGRAMS = {'train': train, 'validate': validate}
EVERY_FLAG = [(program, flag) for program in PROGRAMS for flag in TIMM[program]]
OWN_FLAGS = {
    'train': {*regime_flags(), '--dry-run', '--push-to-hub', '--hub-private', '--list-recipes', '--local-rank',
              '--log-to', '--skip-bad-images', '--val-routes', '--val-adv-eps', '--val-extra-interval'},
    'validate': {*(about.flags[0] for about in Attack.declared().values()), '--recalibrate',
                 '--recalibrate-split', '--route', '--skip-bad-images', '--suite'},
}
TAKE_SEVERAL = ('--model', '--checkpoint')  # of validate.py, one in timm's script


def actions_of(program):
    return {flag: action for action in PROGRAMS[program].create_parser()._actions
            for flag in action.option_strings or [action.dest]}


def is_default(ours, theirs):
    """Whether a default is timm's, or a list of that where ours takes several."""
    if theirs['dest'] == 'model' and ours == []:  # `test_without_a_checkpoint_the_model_is_timms_default`
        return True
    if '--' + theirs['dest'] in TAKE_SEVERAL and isinstance(ours, list):
        return ours == [theirs['default']] or not ours and not theirs['default']
    return as_json(ours) == theirs['default']


def is_refused(action):
    return type(action).__name__ == '_Refused'


def as_json(value):
    return json.loads(json.dumps(value))


def test_the_record_is_of_both_scripts():
    assert len(TIMM['train']) > 150 and len(TIMM['validate']) > 50
    assert TIMM['train']['--batch-size'] == dict(
        flags=['-b', '--batch-size'], dest='batch_size', default=128, nargs=None, type='int', choices=None)


@pytest.mark.parametrize('program, flag', EVERY_FLAG, ids=lambda value: value)
def test_a_flag_of_timms_is_ours_or_refused_with_a_reason(program, flag, capsys):
    theirs = TIMM[program][flag]
    action = actions_of(program)[flag]
    if is_refused(action):
        for spelling in theirs['flags']:
            with pytest.raises(SystemExit) as error:
                PROGRAMS[program].parse_args([spelling])
            assert error.value.code == 2
            assert f'error: {spelling} is not supported: {action.const}.' == capsys.readouterr().err.strip()
        assert len(action.const) > 10
        return
    assert {*theirs['flags']} <= {*action.option_strings}
    assert action.dest == theirs['dest']
    assert is_default(action.default, theirs)
    assert (action.type or str).__name__ == theirs['type']
    # ours may be stricter: timm documents the two values of --scale and the names of --clip-mode in the help
    assert action.nargs == theirs['nargs'] or theirs['nargs'] == '+' and action.nargs == 2 or flag in TAKE_SEVERAL
    assert theirs['choices'] is None or as_json(action.choices) == theirs['choices']


def test_a_recipe_that_timms_script_wrote_is_taken(tmp_path):
    path = tmp_path / 'args.yaml'
    written = {flag['dest']: flag['default'] for flag in TIMM['train'].values()}
    path.write_text(yaml.safe_dump({**written, 'data': 'images', 'epochs': 7}))
    given = PROGRAMS['train'].parse_args(['-c', str(path)]).given
    assert (given['data_dir'], given['epochs']) == ('images', 7)


@pytest.mark.parametrize('program', PROGRAMS)
def test_what_is_parsed_has_timms_names_and_defaults(program):
    given = PROGRAMS[program].parse_args([]).given
    for theirs in TIMM[program].values():
        if theirs['dest'] in given:
            assert is_default(given[theirs['dest']], theirs), theirs['dest']
        else:  # the positional form is merged, and a refused flag has no value
            assert theirs['dest'] == 'data' or is_refused(actions_of(program)[max(theirs['flags'], key=len)])


def test_without_a_checkpoint_the_model_is_timms_default():
    assert validate.parse_args([]).model.model == (TIMM['validate']['--model']['default'],)
    assert validate.parse_args(['--checkpoint', 'last.pth.tar']).model.model == ('',)  # which names it


@pytest.mark.parametrize('program', PROGRAMS)
def test_our_own_flags_are_few(program):
    of_timm = {flag for theirs in TIMM[program].values() for flag in theirs['flags'] or [theirs['dest']]}
    actions = actions_of(program)
    assert actions.keys() - of_timm - {'-h', '--help', '--debug', '--version'} == OWN_FLAGS[program]
    assert {flag for flag, action in actions.items() if is_refused(action)} <= of_timm  # no longer there, no reason


@pytest.mark.slow
@pytest.mark.skipif('TIMM_CHECKOUT' not in os.environ, reason='TIMM_CHECKOUT names no checkout of timm')
def test_the_record_is_what_the_scripts_say():
    assert record(os.environ['TIMM_CHECKOUT']) == TIMM
