"""Bad input to the programs is one line and exit status 2, and nothing is written."""

import pytest

from tests.cli.programs import run_train, run_validate
from timm_advprop.cli import train, validate

# What is wrong with a value is said where a flag is declared, in the words of its range: nothing is loaded or written.
OUT_OF_RANGE = [
    (['--lr', 'nan'], '--lr: must be above 0: leave it out to take --lr-base, got nan'),
    (['--lr', 'inf'], '--lr: must be above 0: leave it out to take --lr-base, got inf'),
    (['--lr', '0'], '--lr: must be above 0: leave it out to take --lr-base, got 0.0'),
    (['--lr-noise-pct', '0'], '--lr-noise-pct: must be above 0, got 0.0'),
    (['--lr-base', '0'], '--lr-base: must be above 0, got 0.0'),
    (['--weight-decay', 'nan'], '--weight-decay: must be at least 0, got nan'),
    (['--weight-decay', '-1'], '--weight-decay: must be at least 0, got -1.0'),
    (['--clip-grad', '-1'], '--clip-grad: must be above 0: leave it out for no clipping, got -1.0'),
    (['--clip-grad', 'nan'], '--clip-grad: must be above 0: leave it out for no clipping, got nan'),
    (['--momentum', '5'], '--momentum: must be from 0 to 1, got 5.0'),
    (['--opt-eps', '-1'], '--opt-eps: must be at least 0, got -1.0'),
    (['--opt-betas', '0.9', '1'], '--opt-betas: must be at least 0, below 1, got 0.9 1.0'),
    (['--layer-decay', '0'], '--layer-decay: must be above 0, got 0.0'),
    (['--mean', 'nan'], '--mean: must be from 0 to 1, got nan'),
    (['--mean', '0.5', '124', '0.5'], '--mean: must be from 0 to 1, got 0.5 124.0 0.5'),
    (['--std', '0'], '--std: must be above 0, got 0.0'),
    (['--crop-pct', '0'], '--crop-pct: must be above 0, at most 10, got 0.0'),
    (['--input-size', '3', '0', '32'], '--input-size: must be at least 1, got 3 0 32'),
    (['--smoothing', '2'], '--smoothing: must be at least 0, below 1, got 2.0'),
    (['--hflip', '7'], '--hflip: must be from 0 to 1, got 7.0'),
    (['--vflip', 'nan'], '--vflip: must be from 0 to 1, got nan'),
    (['--color-jitter', '-1'], '--color-jitter: must be at least 0, got -1.0'),
    (['--grayscale-prob', '2'], '--grayscale-prob: must be from 0 to 1, got 2.0'),
    (['--reprob', '3'], '--reprob: must be from 0 to 1, got 3.0'),
    (['--recount', '0'], '--recount: must be at least 1, got 0'),
    (['--drop', '2'], '--drop: must be from 0 to 1, got 2.0'),
    (['--drop-path', '2'], '--drop-path: must be from 0 to 1, got 2.0'),
    (['--scale', '1', '0.5'], '--scale: must rise, got 1.0 0.5'),
    (['--scale', '0', '1'], '--scale: must be above 0, got 0.0 1.0'),
    (['--ratio', '2', '1'], '--ratio: must rise, got 2.0 1.0'),
    (['--cutmix-minmax', '0.5', '2'], '--cutmix-minmax: must be from 0 to 1, got 0.5 2.0'),
    (['--mixup', '-1'], '--mixup: must be at least 0, got -1.0'),
    (['--mixup', 'nan'], '--mixup: must be at least 0, got nan'),
    (['--mixup-prob', '2'], '--mixup-prob: must be from 0 to 1, got 2.0'),
    (['--aug-splits', '1'], '--aug-splits: must be 0 or at least 2, got 1'),
    (['--bce-target-thresh', '3'], '--bce-target-thresh: must be from 0 to 1, got 3.0'),
    (['--model-ema-decay', '2'], '--model-ema-decay: must be from 0 to 1, got 2.0'),
    (['--model-ema-decay', 'nan'], '--model-ema-decay: must be from 0 to 1, got nan'),
    (['--warmup-epochs', '-1'], '--warmup-epochs: must be at least 0, got -1'),
    (['--warmup-lr', '-1'], '--warmup-lr: must be at least 0, got -1.0'),
    (['--decay-epochs', '0'], '--decay-epochs: must be above 0, got 0.0'),
    (['--decay-milestones', '9', '3'], '--decay-milestones: must rise, got 9 3'),
    (['--lr-cycle-limit', '0'], '--lr-cycle-limit: must be at least 1, got 0'),
    (['--bn-momentum', '2'], '--bn-momentum: must be from 0 to 1, got 2.0'),
    (['--bn-eps', '0'], '--bn-eps: must be above 0, got 0.0'),
    (['--head-init-scale', 'nan'], '--head-init-scale: must be finite, got nan'),
    (['--seed', '-1'], '--seed: must be from 0 to 4294967295, got -1'),
    (['--epochs', 'nan'], "--epochs: invalid int value: 'nan'"),
    (['--recovery-interval', '-1'], '--recovery-interval: must be at least 0, got -1'),
    (['--skip-bad-images', '-1'], '--skip-bad-images: must be at least 0, got -1'),
    (['--adv-alpha', 'nan'], '--adv-alpha: must be at least 0 (in 0–255 pixels), got nan'),
    (['--adv-weight', 'nan'], '--adv-weight: must be at least 0, got nan'),
    (['--adv-bn-momentum', '1.5'], '--adv-bn-momentum: must be from 0 to 1, got 1.5'),
    *((['--aa', policy], f'--aa: must be a policy such as original, v0, 3a, rand-m9-mstd0.5-inc1 or augmix-m5-w4-d2 '
       f'({why}), got {policy}') for policy, why in (
        ('rand-m', "'m' is no option of one"), ('rand-p2', "'p2' is no option of one"),
        ('rand-m9-tnope', "'tnope' is no option of one"), ('rand-', "'' is no option of one"),
        ('rand-m9.5', "invalid literal for int() with base 10: '9.5'"), ('randm9', 'Unknown AA policy randm9'),
        ('rand-q3', 'Unknown RandAugment config section'))),
]
# So is what does not go together, as far as it can be said before the data are read.
UNFIT = [
    (['--start-epoch', '7'], '--start-epoch 7 is beyond the end: the run has 1 epoch, from 0.'),
    (['--adv-eps', '1e9'], 'eps_px (--adv-eps) must be at most 255 in the L∞ norm, got 1e+09.'),
    (['--regime', 'joint', '--adv-eps', '300'], 'eps_px (--adv-eps) must be at most 255 in the L∞ norm, got 300.'),
    (['--adv-eps', '1e9', '--adv-norm', 'l2'],
     'eps_px (--adv-eps) above 255 has no usual number of steps, got 1e+09: give steps (--adv-steps).'),
    (['--adv-source', 'os:getcwd'],
     'The source os:getcwd must take (model, images, target): too many positional arguments.'),
    (['--adv-source', 'pgd', 'augmx'],
     "Unknown source 'augmx' (--adv-source) (did you mean augmix or augmax?): give one of pgd, ifgsm, gd, "
     'pyramid, gaussian-noise, augmix, augmax, corruption, amplitude-mix, or package.module:name of a callable from '
     '(model, images, target) to (images, target).'),
    (['--adv-source', 'pgd', 'eps=2'],
     '--adv-source eps=2: a source and its settings are one word of the command line: put them in quotes, as in '
     "'pgd eps=2 steps=1'."),
    (['--adv-source', 'pgd', 'augmix sevrity=3'],
     "--adv-source augmix: unknown setting 'sevrity' (did you mean severity?): it has width, depth, severity, alpha."),
    (['--adv-source', 'pgd', 'corruption severities=[1,6]'],
     '--adv-source corruption: severities must be from 1 to 5, got [1,6].'),
    (['--adv-source', 'augmix'], '--adv-source augmix has no use for --adv-eps: leave it out.'),
    (['--adv-source', 'augmix', '--adv-steps', '2'],
     '--adv-source augmix has no use for --adv-steps, --adv-eps: leave them out.'),
    (['--adv-source', 'pgd', '--adv-attack', 'gd'], '--adv-source pgd has no use for --adv-attack: leave it out.'),
    (['--adv-source', 'pgd', 'augmix', '--adv-eps', '1', '2'],
     '--adv-eps gives several strengths to one source, there are 2: write them as settings, --adv-source '
     "'pgd eps=1' 'pgd eps=2'."),
    (['--regime', 'joint', '--adv-source', 'pgd', 'amplitude-mix'],
     'Regime joint takes the images of one source, got PGD-1, eps 1/255, alpha 1/255, random target; amplitude mix '
     'with another image, up to 1 (--adv-source, --adv-eps).'),
    (['--regime', 'fast-advprop', '--adv-source', 'augmix'],
     'Regime fast-advprop has no use for --adv-source (its images are made by the pass that trains): leave it out.'),
    (['--adv-share', 'statistics', '--adv-bn-momentum', '0.01'],
     '--adv-share statistics leaves no statistics to the auxiliary norms that --adv-bn-momentum could be of: leave one '
     'of them out.'),
    (['--model', 'test_resnet', '--adv-share', 'statistics'],
     'Regime vanilla has no use for --adv-share (it has no auxiliary norms): leave it out, or name another regime with '
     '--regime.'),
    (['--model', 'test_convnext_ap', '--adv-share', 'statistics'],
     '--adv-share: test_convnext_ap has no batch norms: there are no statistics to share.'),
    (['--model', 'test_resnet'],
     'test_resnet has no split norms: say which regime the attack is for (--regime), or take --model test_resnet_ap.'),
    (['--model', 'tf_efficientnet_b0'], 'tf_efficientnet_b0 has no split norms: say which regime the attack is for '
     '(--regime), or take --model efficientnet_b0_ap.'),
    (['--model', 'resnet50_ap.a1_in1k'],
     "Invalid pretrained tag (a1_in1k) for resnet50_ap: timm's plain weights are resnet50_ap.plain_a1_in1k."),
    (['--regime', 'joint', '--adv-bn-momentum', '0.01'],
     'Regime joint has no use for --adv-bn-momentum (it has no auxiliary norms): leave it out.'),
    (['--input-size', '1', '32', '32', '--in-chans', '3'],
     '--in-chans 3 and --input-size 1 32 32 differ in the number of channels.'),
    (['--model', 'test_convnext', '--img-size', '2', '--regime', 'vanilla'],
     'The model does not take images of 3x2x2 (--img-size, --input-size, --in-chans) in batches of 16: Calculated '
     "padded input size per channel: (2 x 2). Kernel size: (4 x 4). Kernel size can't be greater than actual input "
     'size.'),
    (['--batch-size', '1'],
     'The model does not take images of 3x32x32 (--img-size, --input-size, --in-chans) in batches of 1: Expected more '
     'than 1 value per channel when training, got input size torch.Size([1, 96, 1, 1]).'),
    (['--in-chans', '2'],
     'Images of mode L (--input-img-mode) have 1 channels, the model takes 2 (--in-chans): give another mode.'),
    (['--device', 'meta'], "There is no device 'meta' (--device): give cuda, cuda:N or cpu."),
    (['--device', 'xpu'], "There is no device 'xpu' (--device): give cuda, cuda:N or cpu."),
    (['--opt', 'adamw', '--opt-betas', '0.9'],
     '--opt adamw does not take its --opt-kwargs or --opt-betas: tuple index out of range.'),
    (['--opt-kwargs', 'nope=1'], "--opt sgd does not take its --opt-kwargs or --opt-betas: SGD.__init__() got an "
     "unexpected keyword argument 'nope'."),
    (['--dataset', 'torch/image_folder', '--input-key', 'x'], "Cannot read split 'train' of torch/image_folder: "
     "ImageFolder.__init__() got an unexpected keyword argument 'input_key'"),
]
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
    (['--regime', 'fast-advprop', '--batch-size', '8', '--mixup', '0.2', '--mixup-mode', 'half'],
     ('at least 10 images', '--mixup-mode half', 'got --batch-size 8')),
    (['--img-size', '1000000'], ('does not take images of 3x1000000x1000000', '--img-size')),
    (['--interpolation', 'random'], ('--interpolation', 'bicubic')),
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


def as_typed(value):
    return ' '.join(value) if isinstance(value, list) else ''


@pytest.mark.parametrize('flags, line', [
    *((flags, f'argument {line}') for flags, line in OUT_OF_RANGE), *UNFIT], ids=as_typed)
def test_the_line_says_what_is_wrong_with_a_value(few_digits, tmp_path, capsys, monkeypatch, flags, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        run_train(few_digits, tmp_path / 'output', *flags)
    assert error.value.code == 2
    assert [text for text in capsys.readouterr().err.splitlines() if text.startswith('error')] == [f'error: {line}']
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('flags, line', OUT_OF_RANGE, ids=as_typed)
def test_a_recipe_gives_the_same_line(tmp_path, capsys, flags, line):
    flag, *values = flags
    (tmp_path / 'recipe.yaml').write_text(f'{flag[2:]}: {values[0] if len(values) == 1 else values}\n'.replace("'", ''))
    with pytest.raises(SystemExit) as error:
        train.parse_args(['-c', str(tmp_path / 'recipe.yaml')])
    assert (error.value.code, capsys.readouterr().err) == (2, f'error: argument {line}\n')


@pytest.mark.parametrize('program', [train, validate])
def test_no_number_of_a_flag_is_infinite_or_none(program, capsys):
    parser = program.create_parser()
    numbers = [action for action in parser._actions if action.type is float]
    assert len(numbers) > (40 if program is train else 5)
    for action in numbers:
        count = action.nargs if isinstance(action.nargs, int) else 1
        for text in ('nan', 'inf'):
            with pytest.raises(SystemExit):
                parser.parse_args([action.option_strings[0], *[text] * count])
            assert f'argument {"/".join(action.option_strings)}: must be ' in capsys.readouterr().err


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
    (['--results-file', '/dev/null/where.csv'], ('where.csv', 'folder cannot be made')),
    (['--results-file', '{bad}/empty'], ('is a folder: give a file',)),
    (['--model', '{bad}/pickle.pth'], ('no file of names', '--checkpoint')),
    (['--mean', '0.5', '0.5'], ('--mean', '3')),
    (['--interpolation', 'nope'], ('--interpolation',)),
    (['--num-gpu', '99'], ('--num-gpu',)),
    (['--crop-pct', 'nan'], ('argument --crop-pct: must be above 0, at most 10, got nan',)),
    (['--std', '-1'], ('argument --std: must be above 0, got -1.0',)),
    (['--crop-border-pixels', '-1'], ('argument --crop-border-pixels: must be at least 0, got -1',)),
    (['--num-samples', '0'], ('argument --num-samples: must be at least 1, got 0',)),
    (['--adv-attack', 'pgd', '--adv-eps', '1e9'], ('eps_px (--adv-eps) must be at most 255 in the L∞ norm',)),
    (['--adv-attack', 'pgd', '--adv-norm', 'l2', '--adv-eps', '400'], ('give steps (--adv-steps)',)),
    (['--device', 'meta'], ("There is no device 'meta' (--device)",)),
    (['--torchcompile', 'nope'], ('--torchcompile nope', 'Invalid backend')),
    (['--adv-attack', 'pgd', '--adv-norm-stats', 'train', '--num-samples', '5', '--batch-size', '4'],
     ('--adv-norm-stats train', 'the last batch is of 1 image', '--batch-size')),
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
