"""The blocks of docs/python.md run one after the other, on a smaller network."""
import re
from pathlib import Path

import pytest
import timm

import timm_advprop

PAGE = Path(__file__).parents[1] / 'docs' / 'python.md'
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE.read_text(), flags=re.DOTALL)


def runs(block, available):
    return 'import torchattacks' not in block or available


@pytest.mark.usefixtures('one_thread')
@pytest.mark.parametrize('others', [False, True], ids=['alone', 'torchattacks'])
def test_the_page_runs(others):
    if others:
        pytest.importorskip('torchattacks')
    names = {}
    for block in BLOCKS[:-1]:  # the last is of files and repositories
        if runs(block, others):
            exec(re.sub(r'resnet(18_ap|10t)', lambda found: 'test_resnet' + '_ap' * ('ap' in found[0]), block), names)
    assert names['results'].keys() == {'loss', 'top1', 'top5', 'adv_loss', 'adv_top1', 'adv_top5'}
    assert not timm_advprop.has_split_norm(names['plain']) and not timm_advprop.has_split_norm(names['between'])
    assert all(value.requires_grad for value in names['model'].parameters())
    assert timm_advprop.has_split_norm(names['other']) and names['loss'].requires_grad
    if others:
        assert 0 <= names['adversarial'].min() and (names['adversarial'] - names['pixels']).abs().max() <= 8.001 / 255


def test_the_last_block_names_what_there_is():
    called = set(re.findall(r'timm_advprop\.(\w+)\(', BLOCKS[-1]))
    assert called == {'load_checkpoint', 'create_model', 'push_to_hub'} <= set(timm_advprop.__all__)


def test_models_of_the_page_exist():
    assert {'resnet18_ap', 'resnet10t'} <= set(timm.list_models('*'))
