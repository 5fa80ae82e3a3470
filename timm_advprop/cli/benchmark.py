"""Measures what AdvProp costs: `python -m timm_advprop.benchmark --model resnet18_ap --img-size 96 --channels-last`.

A training step of a regime is compared with a vanilla step of the plain model on the same batch, and with its floor,
its arithmetic: for AdvProp k attack steps of a forward and half a backward each, then a step on twice the images, (2k/3
+ 2) × vanilla; for Fast AdvProp, which attacks a fifth of the batch, 1.2 × vanilla. In evaluation the model with split
norms is compared with the plain one, and under an attack of k steps it makes a clean pass, k steps of a forward and as
much of a backward each, and a pass over what they made: (2k + 2) × a clean evaluation. Cases are timed in turn, round
by round, and ratios are taken within a round, so that a machine that slows down slows all of them. `--memory` measures
what a step needs of memory instead, and `--preset gpu` both for several models.
"""
import os
import statistics
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from timm.task import ClassificationTask, TrainingTask
from torch.profiler import ProfilerActivity, profile

from ..engine.evaluation import evaluate
from ..engine.open_model import open_architecture, size_arguments, try_images
from ..engine.placement import Placement, open_placement
from ..engine.run_settings import DeviceSettings
from ..errors import InputError, as_input_error, exits_on_input_error
from ..norms import convert_split_norm, has_split_norm, norm_route, strip_aux
from ..regimes import REGIMES, AdvPropTask, Attack, RegimeSettings, RegimeTask, Source, create_task
from ..settings import Settings, setting
from .benchmark_presets import PRESETS, run_preset
from .parser import ProgramParser
from .step_memory import StepMemory, print_memory, step_memory
from .timing import Case, device_name, time_in_turn
from .training_step import TrainingStep

__all__ = ['main']

_NONE, _SHOWN_OPERATIONS = (0., 0.), 14
_EVAL_PASSES = 5  # a pass alone is short for a clock on a busy machine


@dataclass(frozen=True)
class MeasuredSettings(Settings):
    """What is measured, and where."""
    title = 'Benchmark parameters'
    model: str = setting('resnet18_ap', 'model')
    img_size: int = setting(96, 'image size', low=1, metavar='N')
    batch_size: int = setting(32, 'clean images', low=2, metavar='N', flags=('-b',))
    regime: Tuple[str, ...] = setting((AdvPropTask.name,), 'regimes', choices=tuple(REGIMES), nargs='+')
    adv_steps: Tuple[int, ...] = setting((1, 5), 'PGD steps to measure', low=1, nargs='+', metavar='K')
    adv_amp_dtype: Optional[str] = setting(
        None, 'precision of the attack', choices=Attack.declared()['amp_dtype'].choices)
    amp_dtype: Optional[str] = setting(None, 'mixed precision of the step', choices=('float16', 'bfloat16'))
    channels_last: bool = setting(False, 'channels-last memory format')
    torchcompile: bool = setting(False, 'compile the models')
    grad_checkpointing: bool = setting(False, 'recompute activations in the backward pass')
    eager: bool = setting(False, 'measure models that are not compiled beside those of --torchcompile')
    attack: bool = setting(False, 'measure the attack of a step alone, or with --eval evaluation under attack, too')
    eval: bool = setting(False, 'measure evaluation instead of training steps')
    threads: Optional[int] = setting(None, 'CPU threads', low=1, metavar='N')
    device: str = setting('cuda', 'device; the CPU is taken where there is no accelerator')
    rounds: int = setting(7, 'timed rounds', low=1, metavar='N')
    memory: bool = setting(False, 'measure the peak memory of training steps instead of their time')
    profile: bool = setting(False, 'show by kind of operation where the time goes, too')
    preset: Optional[str] = setting(
        None, 'measure time and memory of several models, eager and compiled; other flags narrow it',
        choices=tuple(PRESETS))
    output: Optional[str] = setting(None, 'write the rows of a preset to FILE, too, as CSV', metavar='FILE')


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Print the cost of training steps, or of evaluation, relative to the plain model."""
    variants = _parse(argv)
    settings = variants[0]
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler tells of each start and stop
    if settings.threads:
        torch.set_num_threads(settings.threads)
    placement = open_placement(DeviceSettings(
        device=settings.device, amp=settings.amp_dtype is not None,
        amp_dtype=settings.amp_dtype or DeviceSettings.amp_dtype, channels_last=settings.channels_last),
        attack_dtypes=[settings.adv_amp_dtype])
    if settings.preset:
        run_preset(variants, placement, _training_cases, settings.output)
        return
    cases = _cases(settings, placement)
    if settings.memory:
        measured = _measure_memory(cases, placement.device)
        print(_headline(settings, placement.device))
        print_memory(measured)
    else:
        seconds = time_in_turn({name: case.run for name, case in cases.items()}, settings.rounds, placement.device)
        print(_headline(settings, placement.device))
        _print_table(cases, seconds)
    if settings.profile:
        _print_operations(_profile(cases, settings.rounds, placement.device))


def _parse(argv: Optional[Sequence[str]]) -> List[MeasuredSettings]:
    # One, or those of a preset.
    parser = ProgramParser(description='Measure the cost of AdvProp.')
    parser.add_settings(MeasuredSettings.title, MeasuredSettings.flags())
    values = vars(parser.parse_args(argv))
    preset = PRESETS.get(values['preset'])
    if preset is None:
        if values['output']:
            raise InputError('--output is the file of a --preset.')
        return [MeasuredSettings.from_values(values)]
    parser.set_defaults(**preset.defaults())
    unused = [flag for flag in ('attack', 'eager', 'eval', 'memory', 'profile') if values[flag]]
    if unused:
        raise InputError(f'--preset measures time and memory of training steps: leave out --{unused[0]}.')
    return [MeasuredSettings.from_values(variant) for variant in preset.variants(vars(parser.parse_args(argv)))]


def _measure_memory(cases: Mapping[str, Case], device: torch.device) -> Dict[str, StepMemory]:
    steps = {name: case.run for name, case in cases.items() if isinstance(case.run, TrainingStep)}
    if len(steps) < len(cases):
        raise InputError('--memory measures training steps: leave out --eval and --attack.')
    return {name: as_input_error(step_memory, step, device) for name, step in steps.items()}


def _headline(settings: MeasuredSettings, device: torch.device) -> str:
    return (f'{settings.model}, {"eval" if settings.eval else "training"}, {settings.img_size} px, '
            f'batch {settings.batch_size}, {settings.amp_dtype or "float32"}'
            f'{", channels-last" if settings.channels_last else ""}'
            f'{", compiled" if settings.torchcompile else ""}'
            f'{", checkpointed" if settings.grad_checkpointing else ""}, {device_name(device)}')


def _print_table(cases: Mapping[str, Case], seconds: Mapping[str, List[float]]) -> None:
    baseline = next(iter(seconds.values()))
    print(f'{"":20}{"ms":>10}{"× first":>10}{"floor":>8}{"× floor":>10}')
    for name, times in seconds.items():
        ratio, floor = statistics.median(a / b for a, b in zip(times, baseline)), cases[name].floor
        print(f'{name:20}{1e3 * statistics.median(times):>10.1f}{ratio:>10.3f}{floor:>8.3f}{ratio / floor:>10.3f}')


def _profile(
        cases: Mapping[str, Case],
        rounds: int,
        device: torch.device,
) -> Dict[str, Dict[str, Tuple[float, float]]]:
    # For each case, ms of a call and number of calls of each operation, without those that it calls.
    activity, time_of = (ProfilerActivity.CPU, 'self_cpu_time_total')
    if device.type == 'cuda':
        activity, time_of = (ProfilerActivity.CUDA, 'self_device_time_total')
    found = {}
    for name, case in cases.items():
        with profile(activities=[activity]) as profiler:
            for _ in range(rounds):
                case.run()
        found[name] = {event.key: (getattr(event, time_of) / 1e3 / rounds, event.count / rounds)
                       for event in profiler.key_averages()}
    return found


def _print_operations(profiles: Mapping[str, Mapping[str, Tuple[float, float]]]) -> None:
    (baseline, first), *others = profiles.items()
    for name, operations in others:
        print(f'\nms and calls of operations{"":34}{baseline:>16}{name:>16}{"× first":>10}')
        keys = sorted({*first, *operations}, key=lambda key: -max(
            first.get(key, _NONE)[0], operations.get(key, _NONE)[0]))
        rows = [(key, first.get(key, _NONE), operations.get(key, _NONE)) for key in keys]
        all_of_them = ('all', *(tuple(map(sum, zip(*values))) for values in list(zip(*rows))[1:]))
        for key, *columns in [*rows[:_SHOWN_OPERATIONS], all_of_them]:
            cells = ''.join(f'{ms:>10.1f}{calls:>6.0f}' for ms, calls in columns)
            ratio = f'{columns[1][0] / columns[0][0]:>10.2f}' if columns[0][0] else ''
            print(f'{key[:60]:60}{cells}{ratio}')


def _cases(settings: MeasuredSettings, placement: Placement) -> Dict[str, Case]:
    build = _eval_cases if settings.eval else _training_cases
    cases = build(settings, placement)
    if settings.eager and settings.torchcompile:
        eager = build(replace(settings, torchcompile=False), placement)
        cases.update({f'eager {name}': case for name, case in eager.items()})
    return cases


def _training_cases(settings: MeasuredSettings, placement: Placement) -> Dict[str, Case]:
    split, plain = _models(settings, placement)
    batch = _batch(settings, placement, split.num_classes)

    def case(task: TrainingTask, floor: float) -> Case:
        return Case(TrainingStep(task, batch, placement, settings.torchcompile), floor)
    cases = {'vanilla': case(ClassificationTask(plain, nn.CrossEntropyLoss()), 1.)}
    for regime in settings.regime:
        smallest = REGIMES[regime].smallest_batch
        if settings.batch_size < smallest:
            raise InputError(f'--regime {regime} needs batches of at least {smallest} images, got --batch-size '
                             f'{settings.batch_size}.')
        for name, asked in _variants(regime, settings).items():
            model = split if REGIMES[regime].sources_of_aux_norms(asked) else plain
            task = as_input_error(create_task, asked, deepcopy(model), device=placement.device, verbose=False)
            cases[f'{regime} {name}'] = case(task, task.relative_cost())
            for source in getattr(task, 'sources', ()) if settings.attack else ():
                attack = partial(_attack, task, source, batch, placement)
                cases[f'attack {name}'] = Case(attack, source.relative_cost())
    if settings.attack and not any(name.startswith('attack') for name in cases):
        raise InputError('--attack measures the attacks of auxiliary norms, which --regime '
                         f'{" ".join(settings.regime)} has none of: leave it out, or ask for --regime advprop.')
    return cases


def _attack(
        task: RegimeTask,
        source: Source,
        batch: Tuple[torch.Tensor, torch.Tensor],
        placement: Placement,
) -> None:
    with placement.autocast(), norm_route(task.unwrapped_module, 'aux'):
        source(task.unwrapped_module, *batch)


def _variants(regime: str, settings: MeasuredSettings) -> Dict[str, RegimeSettings]:
    # The attacks to measure; one case where the regime makes no use of the number of steps.
    task_type, usual = REGIMES[regime], RegimeSettings(regime)
    if 'adv_steps' in task_type.no_use_for:
        return {'': usual}
    asked = {f'PGD-{steps}': RegimeSettings.from_values(dict(
        regime=regime, adv_eps=steps, adv_steps=steps, adv_amp_dtype=settings.adv_amp_dtype,
    )) for steps in settings.adv_steps}
    return {name: variant for name, variant in asked.items()
            if task_type.arguments(variant) != task_type.arguments(usual)} or {'': usual}


def _eval_cases(settings: MeasuredSettings, placement: Placement) -> Dict[str, Case]:
    split, plain = _models(settings, placement)
    batches = [_batch(settings, placement, split.num_classes)] * _EVAL_PASSES

    def case(model: nn.Module, steps: int = 0) -> Case:
        model = torch.compile(model) if settings.torchcompile else model  # pyright: ignore[reportAssignmentType]
        attack = Attack(eps_px=steps, steps=steps, target='none') if steps else None
        run = partial(evaluate, model, batches, placement, attack=attack, log_name=None)
        return Case(run, 2. + 2 * steps if steps else 1.)
    attacked = {f'under PGD-{steps}': case(split, steps) for steps in settings.adv_steps if settings.attack}
    return {'plain': case(plain), 'split norms': case(split), **attacked}


def _models(settings: MeasuredSettings, placement: Placement) -> Tuple[Any, nn.Module]:
    split: Any = open_architecture(settings.model, **size_arguments(settings.model, settings.img_size))
    if not has_split_norm(split):
        as_input_error(convert_split_norm, split)
    if settings.grad_checkpointing:
        as_input_error(split.set_grad_checkpointing)
    split = placement.place(split)
    if not settings.preset:  # whose rows tell of each case that fails
        try_images(split, (3, settings.img_size, settings.img_size), placement)
    return split, placement.place(strip_aux(split))


def _batch(settings: MeasuredSettings, placement: Placement, num_classes: int) -> Tuple[torch.Tensor, torch.Tensor]:
    size, device = settings.batch_size, placement.device
    images = torch.randn(size, 3, settings.img_size, settings.img_size, device=device)
    return placement.in_memory_format(images), torch.randint(num_classes, (size,), device=device)
