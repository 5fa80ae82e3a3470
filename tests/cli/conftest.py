"""Fixtures of the tests of the programs."""
import os
import pickle

import pytest
import timm
import torch

from tests.cli.programs import run_train


@pytest.fixture(scope='module')
def trained(few_digits, tmp_path_factory):
    return run_train(few_digits, tmp_path_factory.mktemp('trained'), '--epochs', '2')


class _Code:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.fixture(scope='module')
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp('bad')
    (folder / 'text.pth').write_bytes(b'hello')
    (folder / 'text.safetensors').write_bytes(b'hello')
    torch.save({'a': 1}, folder / 'number.pth')
    torch.save(_Code(), folder / 'code.pth')
    (folder / 'pickle.pth').write_bytes(pickle.dumps(_Code()))
    torch.save(timm.create_model('test_vit', num_classes=10).state_dict(), folder / 'vit.pth')
    torch.save(timm.create_model('test_resnet_ap', num_classes=10, num_aux=2).state_dict(), folder / 'two.pth')
    (folder / 'empty').mkdir()
    (folder / 'empty_split' / 'train' / '0').mkdir(parents=True)
    return folder
