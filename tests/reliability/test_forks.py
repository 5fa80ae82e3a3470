"""Processes that a loader forks while a checkpoint is being written."""
import os
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.engine.runs import equal_states, load
from tests.engine.test_saver import make_keeper, make_task

pytestmark = pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='reads Linux\'s /proc')
ROUNDS, WORKERS = 3, 2


class OpenFiles(Dataset):
    """Files of a folder that a worker has open, half-written ones among them."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __len__(self):
        return WORKERS

    def __getitem__(self, index):
        names = (os.path.join('/proc/self/fd', name) for name in os.listdir('/proc/self/fd'))
        paths = [os.readlink(name) for name in names if os.path.lexists(name)]
        return [path for path in paths if path.startswith(self.folder)]


class SlowFile:
    def __init__(self, file):
        self.file, self.flush = file, file.flush

    def write(self, data):
        time.sleep(0.0002)
        return self.file.write(data)


def test_workers_take_no_half_written_file_along_and_files_are_whole(tmp_path, monkeypatch):
    task, seen, save = make_task(), [], torch.save
    monkeypatch.setattr(torch, 'save', lambda content, file: save(content, SlowFile(file)))
    keeper = make_keeper(tmp_path, task)
    expected = {name: value.clone() for name, value in task.get_trainable_module().state_dict().items()}
    with keeper.in_background():
        for update in range(1, ROUNDS + 1):
            path = keeper.save_recovery(0, update, [])
            assert not os.path.exists(path)  # it is being written
            loader = DataLoader(
                OpenFiles(tmp_path), num_workers=WORKERS, multiprocessing_context='fork', batch_size=None)
            seen += list(loader)
    assert seen == [[]] * ROUNDS * WORKERS
    for update in (2, 3):
        assert equal_states(load(tmp_path / f'recovery-0-{update - 1}.pth.tar')['state_dict'], expected)
