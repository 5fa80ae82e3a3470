"""Two processes on two GPUs, by NCCL. What they do to gradients, tests/regimes/test_distributed.py tells."""
import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.cli.programs import FAST, ROOT
from tests.engine.runs import load, read_summary
from tests.regimes.regime_models import assert_all_close, gradients_of, make_batch, split_model, task_of
from timm_advprop import convert_sync_batchnorm
from timm_advprop.regimes import REGIMES

RANKS = 2
# Fast AdvProp's attack sees its own batch's statistics, and TRADES starts it at random.
REGIMES_OF_STILL_IMAGES = [
    name for name in REGIMES if {'adv_norm_stats', 'adv_target'}.isdisjoint(REGIMES[name].no_use_for)]
STILL = dict(adv_target='none', adv_random_start=0.)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(
    torch.cuda.device_count() < RANKS, reason=f'needs {RANKS} CUDA devices, there are {torch.cuda.device_count()}')]


def _step(regime, images, target, device, prepare=lambda task: task, change=lambda model: model):
    """Gradients and statistics of a step in float64, on the CPU."""
    model = change(split_model().train()).to(device)
    task = prepare(task_of(regime, model, **STILL))
    task(images.to(device), target.to(device))['loss'].backward()
    found = {**gradients_of(model), **dict(model.named_buffers())}
    return {name: value.detach().cpu() for name, value in found.items()}


def _work(rank, folder, backend, change):
    torch.set_num_threads(1)
    device = torch.device('cuda', rank) if backend == 'nccl' else torch.device('cpu')
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f'file://{folder}/rendezvous', rank=rank, world_size=RANKS, timeout=timedelta(seconds=90))
    images, target = (values.chunk(RANKS)[rank] for values in make_batch(8))
    found = {regime: _step(regime, images, target, device, lambda task: task.prepare_distributed(), change)
             for regime in REGIMES_OF_STILL_IMAGES}
    torch.save(found, f'{folder}/rank{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_synchronised_norms_see_the_batches_of_both(tmp_path):
    mp.spawn(_work, args=(str(tmp_path), 'nccl', convert_sync_batchnorm), nprocs=RANKS)
    found = [torch.load(tmp_path / f'rank{rank}.pt') for rank in range(RANKS)]
    for regime in REGIMES_OF_STILL_IMAGES:
        expected = _step(regime, *make_batch(8), torch.device('cpu'))
        for of_rank in found:
            assert_all_close(of_rank[regime], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('flags', [
    [], ['--sync-bn', '--amp'], ['--amp', '--amp-dtype', 'bfloat16', '--channels-last', '--model-ema'],
    ['--torchcompile'],
], ids=' '.join)
@pytest.mark.parametrize('regime', REGIMES)
def test_two_processes_train_as_a_user_starts_them(regime, flags, few_digits, tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(RANKS),
         str(ROOT / 'train.py'), '--data-dir', few_digits, '--output', str(tmp_path), '--experiment', 'run', *FAST,
         '--regime', regime, '--grad-accum-steps', '2', '--device', 'cuda', *flags],
        capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'on cuda' in result.stderr
    row, = read_summary(tmp_path / 'run')
    assert float(row['train_loss']) < 10
    assert load(tmp_path / 'run/last.pth.tar')['state_dict']['bn1.num_batches_tracked'] == 2
