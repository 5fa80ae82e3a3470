"""What a user gave is wrong: one line, status 2."""
import signal
import subprocess
import sys
import weakref

import pytest

from timm_advprop.errors import (
    InputError,
    RunError,
    as_input_error,
    exits_on_input_error,
    near_matches,
    one_line,
)


def test_an_input_error_ends_a_program_with_one_line_and_status_2(capsys):
    @exits_on_input_error
    def main(argv=None):
        """What it does."""
        raise InputError(f'No file {argv[0]}.')

    with pytest.raises(SystemExit) as exit:
        main(['x'])
    assert exit.value.code == 2
    assert exit.value.__context__ is None
    assert capsys.readouterr() == ('', 'error: No file x.\n')
    assert (main.__name__, main.__doc__) == ('main', 'What it does.')


def test_other_errors_of_a_program_keep_their_traceback():
    @exits_on_input_error
    def main(argv=None):
        raise ValueError('a bug')

    with pytest.raises(ValueError, match='a bug'):
        main()


def test_what_the_failed_program_held_is_gone_when_its_error_is_printed(monkeypatch):
    class Bar:
        pass

    bars, alive = [], []

    @exits_on_input_error
    def main(argv=None):
        bar = Bar()
        bars.append(weakref.ref(bar))
        raise InputError('wrong')

    monkeypatch.setattr('builtins.print', lambda *args, **kwargs: alive.append(bars[0]() is not None))
    with pytest.raises(SystemExit):
        main()
    assert alive == [False]


@pytest.mark.parametrize('argv, variable, shown', [
    ([], '', False), ([], '0', False), (['--debug'], '', True), ([], '1', True), (['-b', '3', '--debug'], '0', True),
])
def test_debug_shows_the_traceback(argv, variable, shown, monkeypatch, capsys):
    @exits_on_input_error
    def main(argv=None):
        raise InputError('wrong') from KeyError('cause')

    monkeypatch.setenv('TIMM_ADVPROP_DEBUG', variable or '0')
    with pytest.raises(SystemExit) as exit:
        main(argv)
    *before, last = capsys.readouterr().err.splitlines()
    assert (exit.value.code, last) == (2, 'error: wrong')
    assert ('Traceback' in ''.join(before) and "KeyError: 'cause'" in before) == shown == bool(before)


@pytest.mark.parametrize('error', [AttributeError, KeyError, TypeError])
def test_a_mistake_of_the_program_is_no_input_error(error):
    def fail():
        raise error('a bug')

    with pytest.raises(error):
        as_input_error(fail)


@pytest.mark.parametrize('error', [AssertionError, ValueError, InputError])
def test_errors_about_what_a_user_gave_become_input_errors(error):
    def fail(word, *, end):
        raise error(f'wrong\n  {word}{end}')

    with pytest.raises(InputError) as raised:
        as_input_error(fail, 'value', end='!')
    assert 'wrong' in str(raised.value) and 'value!' in str(raised.value) and '\n' not in str(raised.value)
    assert isinstance(raised.value.__cause__, error)


def test_results_and_other_errors_pass():
    assert as_input_error(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        as_input_error(divmod, 7, 0)


def test_one_line_is_short_and_never_empty():
    assert one_line(ValueError('a\n\n b\tc  ')) == 'a b c'
    assert one_line(ValueError()) == 'ValueError'
    assert one_line(ValueError('x' * 600)) == 'x' * 600
    assert one_line(ValueError('x' * 601)) == 'x' * 600 + ' …'
    assert one_line(ValueError('x' * 9), limit=4) == 'xxxx …'


def test_near_matches_hint_at_known_words_alone():
    known = ['--model', '--mean', '--epochs', '--mode']
    assert near_matches('--mdoel', known).startswith(' (did you mean --model')
    assert near_matches('--epoch', known) == ' (did you mean --epochs?)'
    assert near_matches('--zzz', known) == ''


@pytest.mark.parametrize('raised, status, line', [
    (RunError('The disk is full.'), 1, 'error: The disk is full.'),
    (OSError(28, 'No space left', 'run/last.pth.tar'), 1, 'error: run/last.pth.tar: No space left.'),
    (KeyboardInterrupt(), 130, 'Interrupted.'),
], ids=str)
def test_what_ends_a_program_is_one_line_and_a_status(capsys, raised, status, line):
    @exits_on_input_error
    def main(argv=None):
        raise raised

    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == status
    assert capsys.readouterr().err == f'{line}\n'


def test_sigterm_ends_a_program_as_an_exit_does():
    closed, handler = [], signal.getsignal(signal.SIGTERM)

    @exits_on_input_error
    def main(argv=None):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            closed.append(True)

    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 143 and closed == [True]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_reader_that_goes_away_ends_a_program_without_a_word():
    program = ('from timm_advprop.errors import exits_on_input_error\n'
               'exits_on_input_error(lambda argv: [print("line" * 1000) for _ in range(1000)])()')
    process = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b'' and process.wait() == 141
