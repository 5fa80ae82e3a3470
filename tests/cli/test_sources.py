"""`--adv-source` through the training program: several sources, recipes, what a run keeps of them, resuming."""
import pytest
import torch
import yaml

from tests.cli.programs import WITHOUT_ATTACK, run_train
from tests.engine.runs import load, read_summary
from timm_advprop.cli.train import parse_args
from timm_advprop.hub.card import render_card
from timm_advprop.hub.release import open_release

RECIPE = '''
regime: advprop
adv-steps: 1
adv-source:
  - pgd: {eps: 2}
  - augmix: {severity: 5, width: 2}
  - corruption:
      severities: [1, 2]
      names: [fog, contrast]
'''


def states(folder):
    return load(folder / 'last.pth.tar')['state_dict']


def test_two_sources_have_a_norm_each(few_digits, tmp_path, caplog):
    with caplog.at_level('INFO'):
        run = run_train(few_digits, tmp_path, '--adv-source', 'pgd', 'augmix', common=WITHOUT_ATTACK)
    assert 'advprop, PGD-5, eps 4/255, alpha 1/255, random target; AugMix, 3 chains' in caplog.text
    assert '6.3 × the arithmetic of vanilla' in caplog.text
    state = states(run)
    assert 'bn1.aux_bn.1.weight' in state and 'bn1.aux_bn.2.weight' not in state
    assert not torch.equal(state['bn1.aux_bn.0.running_mean'], state['bn1.aux_bn.1.running_mean'])
    assert float(read_summary(run)[0]['train_adv_loss']) > 0


def test_a_recipes_sources_reach_the_run_its_args_its_card_and_what_continues_it(few_digits, tmp_path):
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(RECIPE)
    whole = run_train(few_digits, tmp_path / 'whole', '-c', str(recipe), '--epochs', '2', common=WITHOUT_ATTACK)
    given = ['pgd eps=2', 'augmix severity=5 width=2', 'corruption severities=[1,2] names=[fog,contrast]']
    assert yaml.safe_load((whole / 'args.yaml').read_text())['adv_source'] == given

    again = parse_args(['-c', str(whole / 'args.yaml')]).regime
    assert again.named == tuple(given) and again.attack == dict(steps=1)
    release = open_release(whole / 'last.pth.tar')
    card = render_card(release, 'user/name', [])
    for line in ('| 1 | adversarial images | PGD | 2/255 | 1/255 | 1 | random | 0.8 |',
                 '| 2 | augmix (width 2; depth -1; severity 5; alpha 1) |',
                 '| 3 | corruption (severities 1, 2; names fog, contrast) |'):
        assert line in card
    assert release.published_recipe['adv_source'] == given

    resumed = run_train(
        few_digits, tmp_path / 'resumed', '-c', str(whole / 'args.yaml'), '--epochs', '2', '--resume',
        str(whole / 'checkpoint-0.pth.tar'), common=WITHOUT_ATTACK)
    one, other = states(whole), states(resumed)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize('regime', ['joint', 'madry'])
def test_one_norm_regimes_take_a_source(few_digits, tmp_path, caplog, regime):
    with caplog.at_level('INFO'):
        run = run_train(
            few_digits, tmp_path, '--regime', regime, '--adv-source', 'augmix severity=2', '--model', 'test_resnet',
            common=WITHOUT_ATTACK)
    assert f'{regime}, AugMix, 3 chains of depth 1–3, severity 2' in caplog.text
    assert not any('aux_bn' in key for key in states(run)) and float(read_summary(run)[0]['train_adv_loss']) > 0


def test_corruptions_without_opencv_are_one_line_before_anything_is_written(
        few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('timm_advprop.corruptions.corruptions._MODULES', ('no_such_module',))
    from timm_advprop.corruptions import corruptions
    corruptions._functions.cache_clear()
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path / 'output', '--adv-source', 'corruption', common=WITHOUT_ATTACK)
    corruptions._functions.cache_clear()
    assert error.value.code == 2 and not (tmp_path / 'output').exists()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert len(said) == 1 and "pip install 'timm-advprop[robustness]'" in said[0]


def test_grey_images_train_with_every_source(few_digits, tmp_path):
    run = run_train(
        few_digits, tmp_path, '--in-chans', '1', '--adv-source', 'augmix', 'augmax steps=1', 'corruption',
        'amplitude-mix', 'gaussian-noise eps=8', common=WITHOUT_ATTACK)
    assert 'bn1.aux_bn.4.weight' in states(run)
