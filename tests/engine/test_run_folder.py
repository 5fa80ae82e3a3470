"""The folder of a run: a new run replaces no other one's checkpoints."""
import pytest

from tests.engine.runs import run, train_settings
from timm_advprop.engine.plan import plan_run
from timm_advprop.errors import InputError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('start', [run, lambda data, output, **values: plan_run(
    train_settings(data_dir=data, output=str(output), experiment='run', **values))], ids=['run', 'plan'])
@pytest.mark.parametrize('kept', ['model_best', 'recovery-0-1'])
def test_a_folder_that_holds_a_run_is_left_as_it_is(few_digits, tmp_path, start, kept):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / f'{kept}.pth.tar').write_text('of another run')
    with pytest.raises(InputError) as error:
        start(few_digits, tmp_path)
    assert str(error.value) == (f'{folder} holds a run already: go on with --resume auto, give another --experiment, '
                                'or move it away.')
    assert contents(folder) == {f'{kept}.pth.tar': b'of another run'}


def test_a_folder_without_checkpoints_is_used_again(few_digits, tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'args.yaml').write_text('of: a run that died before its first checkpoint\n')
    run(few_digits, tmp_path)
    assert {'last.pth.tar', 'args.yaml'} <= contents(folder).keys()
    assert 'died' not in (folder / 'args.yaml').read_text()


def test_a_run_may_go_on_in_the_folder_of_another(few_digits, tmp_path):
    checkpoint = run(few_digits, tmp_path / 'one') / 'last.pth.tar'
    other = run(few_digits, tmp_path / 'other')
    run(few_digits, tmp_path / 'other', resume=str(checkpoint), epochs=2)
    assert (other / 'checkpoint-1.pth.tar').exists()
