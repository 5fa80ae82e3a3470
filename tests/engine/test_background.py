"""Work in the background: one thing at a time, its errors, and copies that training does not change."""
import copy
import os
import threading
import time

import pytest
import torch

from timm_advprop.engine.background import Background, copy_to_host

SECONDS = 30


def test_a_block_goes_on_while_something_is_done():
    goes_on, done = threading.Event(), []

    def work():
        assert goes_on.wait(SECONDS)
        done.append(threading.current_thread())
    with Background() as background:
        background.do(work)
        assert not done
        goes_on.set()
    assert done and done[0] is not threading.current_thread()
    assert background.seconds > 0


def test_one_thing_is_done_at_a_time_and_in_order():
    order, first_goes_on = [], threading.Timer(0.05, lambda: event.set())
    event = threading.Event()
    first_goes_on.start()
    with Background() as background:
        background.do(lambda: (event.wait(SECONDS), order.append(1)))
        background.do(lambda: order.append(2))
        background.wait()
        assert order == [1, 2]


def test_outside_of_a_block_it_is_done_at_once():
    threads, background = [], Background()
    background.do(lambda: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]
    with pytest.raises(OSError):
        background.do(_full_disk)


@pytest.mark.parametrize('then', [lambda background: background.do(list), Background.wait, lambda background: None])
def test_what_was_raised_is_raised_once_at_the_next_occasion(then):
    background = Background()
    with pytest.raises(OSError, match='full'), background:
        background.do(_full_disk)
        then(background)
        pytest.fail('nothing was raised') if then is Background.wait else None
    background.wait()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
def test_a_fork_waits_for_what_is_done_and_its_error_comes_later():
    done = []

    def work():
        time.sleep(0.1)
        done.append(1)
        _full_disk()
    with pytest.raises(OSError, match='full'), Background() as background:
        background.do(work)
        child = os.fork()
        if child == 0:
            os._exit(len(done) + 2 * threading.active_count())
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 3
        assert 0.05 < background.seconds_of_forks < SECONDS
        background.wait()


def _full_disk():
    raise OSError('full')


def test_a_copy_is_equal_and_of_its_own():
    module = torch.nn.Linear(2, 2)
    state = module.state_dict()
    value = dict(state=state, tied=state['weight'], groups=[dict(lr=0.1, names=('a', state['bias']))], none=None)
    expected, copied = copy.deepcopy(value), copy_to_host(value)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(9)
    value['groups'][0]['lr'] = 9
    assert copied['state'].keys() == expected['state'].keys()
    assert all(torch.equal(copied['state'][name], value) for name, value in expected['state'].items())
    assert copied['groups'][0]['lr'] == 0.1 and torch.equal(copied['groups'][0]['names'][1], expected['state']['bias'])
    assert copied['state']._metadata == state._metadata  # torch's, of versions of modules
    assert copied['tied'] is copied['state']['weight']  # one tensor in a file, as before
    assert copied['none'] is None


def test_a_copy_keeps_the_memory_format():
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert copy_to_host([images])[0].is_contiguous(memory_format=torch.channels_last)
