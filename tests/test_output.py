"""Files that are whole or not there, Markdown tables, numbers, durations, names without folders."""
import os
import stat

import pytest

from timm_advprop.output import counted, duration, markdown_table, replacing, without_folders


@pytest.fixture(params=['new', 'replaced'])
def path(request, tmp_path):
    path = tmp_path / 'file.txt'
    if request.param == 'replaced':
        path.write_text('old')
    return path


def content_of(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def write(path, text):
    with open(path, 'w') as file:
        file.write(text)


def test_a_file_appears_when_the_block_ends(path):
    before = content_of(path.parent)
    with replacing(str(path)) as temporary:
        assert os.path.dirname(temporary) == str(path.parent)  # so that the move is a rename
        write(temporary, 'half')
        assert content_of(path.parent) == {**before, os.path.basename(temporary): 'half'}
        write(temporary, 'whole')
    assert content_of(path.parent) == {'file.txt': 'whole'}


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('writes', [True, False])
def test_an_exception_leaves_the_old_file_and_no_other(path, error, writes):
    before = content_of(path.parent)
    with pytest.raises(error):
        with replacing(str(path)) as temporary:
            if writes:
                write(temporary, 'half')
            raise error
    assert content_of(path.parent) == before


def test_a_kill_leaves_the_old_file_and_the_next_writer_cleans_up(path):
    before = content_of(path.parent)
    if os.fork() == 0:
        try:
            with replacing(str(path)) as temporary:
                write(temporary, 'half')
                os._exit(9)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 9
    left = content_of(path.parent)
    (of_the_killed,) = left.keys() - before.keys() - {'file.txt'}
    assert {name: text for name, text in left.items() if name != of_the_killed} == before
    with replacing(str(path)) as temporary:
        assert not os.path.lexists(temporary)  # os.link, for one, replaces nothing
        write(temporary, 'whole')
    assert content_of(path.parent) == {'file.txt': 'whole'}


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_file(path):
    before = content_of(path.parent)
    with pytest.raises(FileNotFoundError):
        with replacing(str(path)):
            pass
    assert content_of(path.parent) == before


def test_a_markdown_table_has_a_head_and_rows():
    assert markdown_table([['model', 'top1'], ['a', 1.5], ['b', None]]) == (
        '| model | top1 |\n|---|---|\n| a | 1.5 |\n| b | None |')
    assert markdown_table([['alone']]) == '| alone |\n|---|'
    assert markdown_table([['a|b']]) == '| a\\|b |\n|---|'


@pytest.mark.parametrize('number, text', [(0, '0 images'), (1, '1 image'), (2000, '2,000 images')])
def test_numbers_of_things(number, text):
    assert counted(number, 'image') == text


@pytest.mark.parametrize('seconds, text', [
    (0, '0:00'), (0.4, '0:00'), (59.6, '1:00'), (61, '1:01'), (3599, '59:59'), (3600, '1:00:00'), (7384, '2:03:04'),
    (360000, '100:00:00'),
])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(str(pipe)) as path, open(path, 'w') as file:
        file.write('text')
    assert os.read(reader, 100) == b'text' and stat.S_ISFIFO(os.stat(pipe).st_mode)
    os.close(reader)
    assert os.listdir(tmp_path) == ['pipe']


def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path):
    (tmp_path / 'file').write_text('old')
    (tmp_path / 'link').symlink_to('file')
    with replacing(str(tmp_path / 'link')) as path, open(path, 'w') as file:
        file.write('new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'file').read_text() == 'new'


def test_a_device_is_written_to(monkeypatch):
    with replacing('/dev/stdout') as path:
        assert path == '/dev/stdout'
    assert os.path.lexists('/dev/stdout')


def test_what_is_in_a_file_is_on_the_disk_before_its_name(path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace

    def fsync(descriptor):
        done.append(('sync', os.fstat(descriptor).st_size))
        sync(descriptor)

    def move(source, target):
        done.append(('move', os.stat(source).st_size))
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(os, 'replace', move)
    with replacing(str(path)) as temporary:
        write(temporary, 'whole')
    assert done == [('sync', 5), ('move', 5)]


def test_an_error_of_the_disk_names_the_file(path):
    with pytest.raises(OSError) as error:
        with replacing(str(path)):
            raise OSError(28, 'No space left on device')
    assert error.value.filename == str(path)


@pytest.mark.parametrize('text, expected', [
    ('/home/me/labels.txt', 'labels.txt'),
    ('hfds//home/me/my data/digits/', 'hfds/digits'),
    ('HFIDS//digits', 'HFIDS/digits'),
    ('hfds/../data/digits', 'hfds/digits'),
    ('local-dir:/home/me/model/', 'local-dir:model'),
    ('wds/file:///data/digits', 'wds/file://digits'),
    ('wds/pipe:cat /data/{0..3}.tar', 'wds/pipe:cat {0..3}.tar'),
    ('/data/train-{0..3}.tar|100', 'train-{0..3}.tar|100'),
    ('corruption frost=/home/me/frost severities=[1,2]', 'corruption frost=frost severities=[1,2]'),
    ('~/labels.txt', 'labels.txt'),
    *((same, same) for same in (
        'hfds/user/name', 'hf-hub:user/name@v2', 'wds/https://host/a/b', 'https://host/a/b', 'output/run/last.pth.tar',
        'torch/cifar10', 'PGD-10, eps 4/255', 'package.module:name', '')),
], ids=str)
def test_of_a_path_of_this_machine_its_last_name_is_left(text, expected):
    assert without_folders(text) == expected
