"""Measures what AdvProp costs: `python -m timm_advprop.benchmark --model resnet18_ap --img-size 96 --channels-last`.

A training step of a regime is compared with a vanilla step of the plain model on the same batch, and with its floor,
its arithmetic: for AdvProp k attack steps of a forward and half a backward each, then a step on twice the images,
(2k/3 + 2) × vanilla; for Fast AdvProp, which attacks a fifth of the batch, 1.2 × vanilla. In eval mode the model with
split norms is compared with the plain one. Cases are timed in turn, round by round, and ratios are taken within a
round, so that a machine that slows down slows all of them.
"""
import argparse
import statistics
import time
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Callable, Dict, List, Optional, Sequence

import torch
import torch.nn as nn
from timm.task import ClassificationTask, TrainingTask

from .arguments import ProgramParser
from .errors import exits_on_input_error
from .inputs import as_input_error, available_device, open_model
from .norms import convert_split_norm, has_split_norm, strip_aux
from .regimes import REGIMES, attack_settings, create_task, num_aux_of_regime
from .regimes.arguments import number

__all__ = ['main', 'time_in_turn']


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print the cost of training steps, or of eval passes, relative to the plain model.

    Args:
        argv: Command line, `sys.argv[1:]` by default.
    """
    args = _parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(available_device(args.device))
    torch.backends.cudnn.benchmark = True
    cases = _eval_cases(args, device) if args.eval else _training_cases(args, device)
    seconds = time_in_turn({name: case for name, (case, _) in cases.items()}, args.rounds, device)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    print(f'{args.model}, {"eval" if args.eval else "training"}, {args.img_size} px, batch {args.batch_size}, '
          f'{args.amp_dtype or "float32"}{", channels-last" if args.channels_last else ""}'
          f'{", compiled" if args.torchcompile else ""}, {name}')
    baseline = next(iter(seconds.values()))
    print(f'{"":20}{"ms":>10}{"× first":>10}{"floor":>8}{"× floor":>10}')
    for case, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, baseline))
        floor = cases[case][1]
        print(f'{case:20}{1e3 * statistics.median(times):>10.1f}{ratio:>10.3f}{floor:>8.3f}{ratio / floor:>10.3f}')


def time_in_turn(
        cases: Dict[str, Callable[[], None]],
        rounds: int,
        device: torch.device,
) -> Dict[str, List[float]]:
    """Time functions in turn.

    Args:
        cases: The functions, by name.
        rounds: How often each is timed, after one call that is not.
        device: Device to wait for.

    Returns:
        Seconds of each call, by name.
    """
    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    seconds: Dict[str, List[float]] = {name: [] for name in cases}
    for round_idx in range(rounds + 1):
        for name, case in cases.items():
            synchronize()
            start = time.perf_counter()
            case()
            synchronize()
            if round_idx > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = ProgramParser(description='Measure the cost of AdvProp.')
    add = parser.add_argument
    add('--model', default='resnet18_ap', help='model (default: resnet18_ap)')
    add('--img-size', type=number(1, kind=int), default=96, metavar='N', help='image size (default: 96)')
    add('-b', '--batch-size', type=number(2, kind=int), default=32, metavar='N', help='clean images (default: 32)')
    add('--regime', choices=tuple(REGIMES), nargs='+', default=['advprop'], help='regimes (default: advprop)')
    add('--adv-steps', type=number(1, kind=int), nargs='+', default=[1, 5], metavar='K', help='PGD steps to measure')
    add('--adv-amp-dtype', default=None, choices=('float16', 'bfloat16', 'float32'), help='precision of the attack')
    add('--amp-dtype', default=None, choices=('float16', 'bfloat16'), help='mixed precision of the step')
    add('--channels-last', action='store_true', help='channels-last memory format')
    add('--torchcompile', action='store_true', help='compile the models')
    add('--eval', action='store_true', help='measure eval passes instead of training steps')
    add('--threads', type=number(1, kind=int), default=None, metavar='N', help='CPU threads')
    add('--device', default='cuda', help='device; the CPU is taken where there is no accelerator (default: cuda)')
    add('--rounds', type=number(1, kind=int), default=7, metavar='N', help='timed rounds (default: 7)')
    return parser.parse_args(argv)


def _training_cases(args, device):
    split, plain = _models(args, device)
    images, target = _batch(args, device, split.num_classes)
    cases = {'vanilla': (_step(args, ClassificationTask(plain, nn.CrossEntropyLoss()), images, target, device), 1.)}
    attacks = {f'PGD-{steps}': dict(eps=steps, steps=steps, amp_dtype=args.adv_amp_dtype) for steps in args.adv_steps}
    for regime in args.regime:
        model = split if num_aux_of_regime(regime, {}) else plain
        for name, attack in attacks.items() if 'steps' in attack_settings(regime, {}) else [('', {})]:
            task = create_task(regime, deepcopy(model), attack=attack, device=device, verbose=False)
            cases[f'{regime} {name}'] = _step(args, task, images, target, device), task.relative_cost()
    return cases


def _eval_cases(args, device):
    split, plain = (model.eval() for model in _models(args, device))
    images, _ = _batch(args, device, 2)

    def passes(model: nn.Module) -> Callable[[], None]:
        model = torch.compile(model) if args.torchcompile else model

        def run() -> None:
            with torch.inference_mode(), _autocast(args, device):
                for _ in range(5):  # a pass alone is short for a clock on a busy machine
                    model(images)
        return run
    return {'plain': (passes(plain), 1.), 'split norms': (passes(split), 1.)}


def _models(args, device):
    split = open_model(args.model)
    if not has_split_norm(split):
        as_input_error(convert_split_norm, split)
    plain = strip_aux(split)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    return tuple(model.to(device=device, memory_format=memory_format) for model in (split, plain))


def _batch(args, device, num_classes):
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    target = torch.randint(num_classes, (args.batch_size,), device=device)
    return images.contiguous(memory_format=torch.channels_last) if args.channels_last else images, target


def _step(args, task: TrainingTask, images, target, device) -> Callable[[], None]:
    if args.torchcompile:
        task.compile()
    module = task.get_trainable_module().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(args, device):
            loss = task(images, target)['loss']
        loss.backward()
        optimizer.step()
    return step


def _autocast(args, device):
    if args.amp_dtype is None:
        return nullcontext()
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))()


if __name__ == '__main__':
    main()
