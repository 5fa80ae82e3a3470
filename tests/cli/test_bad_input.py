"""Bad input to the programs is one line and exit status 2, and nothing is written."""

import pytest

from tests.cli.programs import run_train, run_validate

BAD_TRAINING = [
    (['--model', 'resnet18_app'], ('resnet18_app', 'resnet18_ap')),
    (['--model', 'test_resnet_ap', '--pretrained'], ('No AdvProp weights', 'plain weights')),
    (['--model', 'test_nfnet', '--regime', 'advprop'], ('no batch norms',)),
    (['--data-dir', 'nowhere'], ('nowhere',)),
    (['--data-dir', '{bad}/empty'], ('empty',)),
    (['--data-dir', '{bad}/empty_split'], ('empty_split',)),
    (['--data-dir', '{data}/train'], ('train', '--data-dir')),
    (['--val-split', 'nope'], ('nope', 'validation')),
    (['--num-classes', '11'], ('10 classes', '11', '--num-classes 10')),
    (['--initial-checkpoint', 'nowhere.pth'], ('nowhere.pth',)),
    (['--initial-checkpoint', '{bad}/text.pth'], ('text.pth',)),
    (['--initial-checkpoint', '{bad}/text.safetensors'], ('text.safetensors',)),
    (['--initial-checkpoint', '{bad}/number.pth'], ('number.pth',)),
    (['--initial-checkpoint', '{bad}/code.pth'], ('code.pth',)),
    (['--resume', '{bad}/pickle.pth'], ('pickle.pth',)),
    (['--pretrained-path', '{bad}/code.pth'], ('code.pth',)),
    (['--pretrained-path', '{bad}/vit.pth'], ('do not fit', 'conv1.1.weight', 'cls_token')),
    (['--pretrained-path', '{bad}/two.pth'], ('num_aux=2',)),
    (['--initial-checkpoint', '{bad}/vit.pth'], ('does not fit', 'cls_token')),
    (['--initial-checkpoint', '{bad}/two.pth'], ('num_aux=2',)),
    (['--model', 'test_resnet', '--pretrained-path', '{bad}/two.pth'], ('test_resnet would drop',)),
    (['--adv-eps', '-1'], ('--adv-eps', '-1')),
    (['--adv-steps', '0'], ('--adv-steps', '0')),
    (['--adv-eps', '1', '2', '--model-kwargs', 'num_aux=1'], ('num_aux=2',)),
    (['--batch-size', '5000'], ('5000', '--batch-size')),
    (['--batch-size', '15', '--mixup', '0.2'], ('even', '15')),
    (['--opt', 'sgdd'], ('sgdd',)),
    (['--sched', 'cosin'], ('cosin',)),
    (['--aa', 'nope'], ('nope',)),
    (['--mean', '0.5', '0.5'], ('--mean', '3')),
    (['--device', 'gpu'], ('gpu', 'cpu')),
    (['--model-kwargs', 'nope=1'], ('nope',)),
    (['--jsd-loss'], ('--aug-splits',)),
    (['--aug-splits', '2', '--no-prefetcher'], ('--no-prefetcher',)),
    (['--scale', '0.5'], ('--scale',)),
    (['--cutmix-minmax', '0.2'], ('--cutmix-minmax',)),
    (['--train-interpolation', 'nope'], ('--train-interpolation', 'bilinear')),
    (['--tta', '2'], ('--tta',)),
]


@pytest.mark.parametrize('flags, words', BAD_TRAINING, ids=[' '.join(flags) for flags, _ in BAD_TRAINING])
def test_bad_training_input_is_one_line_and_status_2(few_digits, bad, tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(bad=bad, data=few_digits) for flag in flags]
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path / 'output', *flags)
    assert error.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not list(tmp_path.iterdir())  # nothing half-written, nothing executed


def test_resume_of_another_architecture_is_refused(few_digits, trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path, '--model', 'test_efficientnet_ap', '--resume', str(trained / 'last.pth.tar'))
    assert error.value.code == 2
    assert 'does not fit' in capsys.readouterr().err


BAD_VALIDATION = [
    (['--model', 'test_resnet_app'], ('test_resnet_app', 'test_resnet_ap')),
    (['--checkpoint', 'nowhere.pth'], ('nowhere.pth',)),
    (['--checkpoint', '{bad}/code.pth'], ('code.pth',)),
    (['--checkpoint', '{bad}/empty'], ('empty',)),
    (['--model', 'test_efficientnet_ap'], ('does not fit',)),
    (['--checkpoint', '{bad}/vit.pth'], ('does not fit', 'cls_token')),
    (['--adv-eps', '8'], ('--adv-attack',)),
    (['--num-classes', '12'], ('does not fit', '12')),
    (['--data-dir', 'nowhere'], ('nowhere',)),
    (['--adv-attack', 'pgd', '--adv-eps', '-1'], ('--adv-eps',)),
    (['--adv-attack', 'pgd', '--adv-steps', '0'], ('--adv-steps',)),
    (['--torchscript', '--route', 'aux'], ('--torchscript',)),
    (['--results-file', 'no/where.csv'], ('where.csv',)),
    (['--mean', '0.5', '0.5'], ('--mean', '3')),
    (['--interpolation', 'nope'], ('--interpolation',)),
    (['--num-gpu', '99'], ('--num-gpu',)),
    (['--fuser', 'te'], ('--fuser',)),
]


@pytest.mark.parametrize('flags, words', BAD_VALIDATION, ids=[' '.join(flags) for flags, _ in BAD_VALIDATION])
def test_bad_validation_input_is_one_line_and_status_2(
        few_digits, trained, bad, tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [flag.format(bad=bad) for flag in flags]
    with pytest.raises(SystemExit) as error:
        run_validate(few_digits, capsys, '--checkpoint', str(trained / 'last.pth.tar'), *flags)
    assert error.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert not list(tmp_path.iterdir())
