"""What the zoo says of its models, and the program that prints it."""
import subprocess
import sys

import pytest
import timm

from timm_advprop import split_state_dict
from timm_advprop.cli.models import main as list_zoo
from timm_advprop.models import describe_model
from timm_advprop.norms import split_norms


def test_description_of_a_model_counts_what_the_model_has():
    for variant in ('test_resnet_ap', 'test_vit_ap'):
        model, entry = timm.create_model(variant), describe_model(variant)
        main, aux = split_state_dict(dict(model.named_parameters()))
        assert entry.main_parameters == sum(parameter.numel() for parameter in main.values())
        assert entry.aux_parameters == sum(parameter.numel() for parameter in aux.values())
        assert entry.batch_norms + entry.other_norms == sum(1 for _ in split_norms(model))
        assert bool(entry.batch_norms) == (variant == 'test_resnet_ap')
    assert describe_model('efficientnet_b0_ap').advprop_weights == ['ap_in1k']
    assert describe_model('resnet50_ap').main_parameters == 25_557_032  # as timm's table of results has it


def test_listing_prints_a_row_for_each_model(capsys):
    list_zoo(['test_resnet*', 'efficientnet_b0_ap'])
    printed = capsys.readouterr()
    header, *rows = printed.out.splitlines()
    assert header.split()[:3] == ['model', 'built', 'on']
    assert 'efficientnet_b0_ap is built on tf_efficientnet_b0: the architecture of the published' in printed.err
    assert 'test_resnet_ap' not in printed.err
    assert sorted(row.split()[0] for row in rows) == ['efficientnet_b0_ap', 'test_resnet_ap']
    (row,) = (row for row in rows if row.startswith('efficientnet'))
    assert row.split() == [
        'efficientnet_b0_ap', 'tf_efficientnet_b0', '5,288,548', '42,016', '49', 'batch', 'ap_in1k', '+', '3', 'plain',
        '3x224x224']


def test_listing_says_why_a_model_is_left_out(capsys):
    list_zoo(['--left-out', 'efficientnet_b0', 'vgg11', 'beit_*'])
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert 'AdvProp weights' in rows['efficientnet_b0']
    assert rows['vgg11'].startswith('no norms')
    assert 'convert_split_norm' in rows['beit_base_patch16_224']


def test_pattern_without_a_model_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        list_zoo(['test_resnet_ap', 'resnet18'])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: No model matches resnet18. Patterns are wildcards: '*resnet18*'.\n"


@pytest.mark.slow
def test_listing_ends_quietly_when_its_reader_has_enough():
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_advprop.models', 'test_*'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait() == 0
