"""Waiting for the Hub: bounded, and told."""
import os
import threading

from timm_advprop.weights import downloads
from timm_advprop.weights.downloads import tells_wait


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
