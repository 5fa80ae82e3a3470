"""Waiting for the Hub: bounded, and told."""
import os
import threading

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from timm_advprop.errors import InputError
from timm_advprop.weights import downloads
from timm_advprop.weights.downloads import download_file, explain_hub_error, tells_wait


def test_the_tries_of_the_xet_library_have_a_bound():
    assert 0 < int(os.environ['HF_XET_CLIENT_RETRY_MAX_ATTEMPTS']) < 5


def test_a_long_wait_is_told_and_a_short_one_is_not(monkeypatch):
    lines, told = [], threading.Event()
    monkeypatch.setattr(downloads, '_SILENCE', 0.01)
    monkeypatch.setattr(downloads._logger, 'info', lambda text: (lines.append(text), told.set()))
    with tells_wait('the download of a file'):
        assert told.wait(5)
    assert lines[0].startswith('Waiting for the download of a file: ')
    monkeypatch.setattr(downloads, '_SILENCE', 5.)
    before = threading.active_count()
    with tells_wait('it'):
        assert threading.active_count() == before + 1
    assert len(lines) == 1


@pytest.mark.parametrize('error, of_weights, said', [
    (ConnectionRefusedError(), True, 'check the connection, or give the weights as a file (validate.py --checkpoint, '
                                     'train.py --pretrained-path).'),
    (ConnectionRefusedError(), False, 'check the connection, try again.'),
    (OfflineModeIsEnabled(), True, 'HF_HUB_OFFLINE is set, and user/name is not in the cache: unset it, or download it '
                                   'where there is a network.'),
    (OfflineModeIsEnabled(), False, 'HF_HUB_OFFLINE is set: unset it.'),
])
def test_a_hub_out_of_reach_names_the_way_out(error, of_weights, said):
    assert explain_hub_error(error, 'user/name@v2', of_weights).endswith(said)


def test_a_failed_download_of_the_xet_library_is_one_line(monkeypatch):
    def fail(**location):
        raise RuntimeError('Data processing error: CAS service error\nmore of it')

    monkeypatch.setattr(downloads, 'hf_hub_download', fail)
    with pytest.raises(InputError) as caught:
        download_file('user/name', 'model.safetensors')
    assert str(caught.value) == ('Cannot download model.safetensors of user/name: Data processing error: CAS service '
                                 'error.')
