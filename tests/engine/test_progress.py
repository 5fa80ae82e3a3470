"""Progress: a bar on a terminal, lines elsewhere."""
import io
import logging
import sys

import pytest

from timm_advprop.engine.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=[Terminal, io.StringIO], ids=['terminal', 'file'])
def stream(request, monkeypatch):
    stream = request.param()
    handler = logging.StreamHandler(stream)
    monkeypatch.setattr(logging.getLogger(), 'handlers', [handler])
    logging.getLogger().setLevel(logging.INFO)
    return stream


def test_a_terminal_has_a_bar_and_a_file_lines(stream, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', stream)
    with show_progress('Train: 0', 4) as progress:
        for step in range(4):
            progress.advance()
            progress.tell(f'Train: 0 [{step}/4]', f'loss: {step}', 'ETA 0:00', last=step == 3)
            logging.getLogger('other').info(f'told {step}')
    lines = stream.getvalue().replace('\r', '\n').split('\n')
    said = [line for line in lines if line.startswith('Train: 0 [')]
    if stream.isatty():
        assert said == ['Train: 0 [3/4]  loss: 3  ETA 0:00']  # what stays
        assert any(line.startswith('Train: 0:') and '/4' in line for line in lines)
    else:
        assert said == [f'Train: 0 [{step}/4]  loss: {step}  ETA 0:00' for step in range(4)]
    assert [line for line in lines if line.startswith('told')] == [f'told {step}' for step in range(4)]  # whole lines


def test_another_process_shows_nothing(stream, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', stream)
    with show_progress('Test', 2, shown=False) as progress:
        progress.advance()
    assert not stream.getvalue()
