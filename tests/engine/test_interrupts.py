"""Ctrl-C that waits for a good moment."""
import signal
import threading

import pytest

from timm_advprop.engine.interrupts import deferred_ctrl_c, stop_if_asked


def test_ctrl_c_waits_until_it_is_asked_for():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_ctrl_c():
        stop_if_asked()
        signal.raise_signal(signal.SIGINT)
        waited = True
        stop_if_asked()
    assert waited and signal.getsignal(signal.SIGINT) is handler
    stop_if_asked()  # that was another block's


def test_ctrl_c_comes_at_the_end_of_the_outer_block():
    reached = []
    with pytest.raises(KeyboardInterrupt), deferred_ctrl_c():
        with deferred_ctrl_c():
            signal.raise_signal(signal.SIGINT)
        reached.append(True)
    assert reached
    stop_if_asked()


def test_ctrl_c_pressed_again_comes_at_once():
    with pytest.raises(KeyboardInterrupt), deferred_ctrl_c():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_other_threads_leave_signals_alone():
    handlers = []

    def work():
        with deferred_ctrl_c():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
