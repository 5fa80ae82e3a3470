"""The validation program: `validate.py`, `timm-advprop-validate`, `python -m timm_advprop.evaluation`."""
import csv
import glob
import json
import logging
import os
from argparse import Namespace
from collections import OrderedDict
from contextlib import nullcontext
from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.data import RealLabelsImagenet, create_loader, resolve_data_config
from timm.layers import apply_test_time_pool, set_fast_norm
from timm.models import is_model, list_models
from timm.utils import (
    check_batch_size_retry,
    decay_batch_step,
    natural_key,
    random_seed,
    reparameterize_model,
)

from ..arguments import setup_logging
from ..checkpoints import load_read_checkpoint, read_checkpoint, weights_digest
from ..errors import InputError, exits_on_input_error
from ..inputs import (
    as_input_error,
    available_device,
    channel_normalisation,
    check_class_count,
    check_dataset_root,
    check_normalisation,
    dataset_name,
    open_dataset,
    open_model,
)
from ..models import split_models
from ..norms import has_split_norm, num_aux_in, set_norm_route, strip_aux
from ..regimes import Adversary
from ..regimes.arguments import attack_kwargs
from .accuracy import evaluate
from .args import parse_args

__all__ = ['main', 'validate']

_logger = logging.getLogger(__name__)

Results = Dict[str, Any]


@exits_on_input_error
def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the validation program.

    Args:
        argv: Command line, `sys.argv[1:]` by default.
    """
    setup_logging()
    args = parse_args(argv)
    if args.results_file and not os.path.isdir(os.path.dirname(os.path.abspath(args.results_file))):
        raise InputError(f'Cannot write {args.results_file}: there is no such folder.')
    runs = _list_runs(args)
    if runs is None:
        results: Union[Results, List[Results]] = _validate_retrying(args) if args.retry else validate(args)
    else:
        results = _validate_all(args, runs)
    print(f'--result\n{json.dumps(results, indent=4)}')
    if args.results_file:
        write_results(args.results_file, results, args.results_format)


def validate(args: Namespace) -> Results:
    """Validate one model.

    Args:
        args: Arguments of the validation program.

    Returns:
        timm's results (`model`, `top1`, `top5`, … in percent), `route`, what was validated on what, and `adv_top1`,
        `adv_top5` and the attack where one was asked for.
    """
    _check_arguments(args)
    device = torch.device(available_device(args.device))
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    autocast = nullcontext
    if args.amp:
        autocast = partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    random_seed(args.seed)
    if args.fast_norm:
        set_fast_norm()

    check_dataset_root(args.dataset, args.data_dir, args.split)
    check_normalisation(args.mean, args.std, args.input_size[0] if args.input_size else args.in_chans or 3)
    model = _load_model(args)
    weights = weights_digest(model.state_dict(), args.route)
    num_classes, param_count = model.num_classes, sum(parameter.numel() for parameter in model.parameters())
    data_config = resolve_data_config(vars(args), model=model, use_test_size=not args.use_train_size, verbose=True)
    adversary = _build_adversary(args, data_config, device)
    model, test_time_pool = apply_test_time_pool(model, data_config) if args.test_pool else (model, False)
    model = _prepare_model(model, args, device, dtype)
    crop_pct = 1.0 if test_time_pool else data_config['crop_pct']
    dataset, loader = _build_loader(args, data_config, num_classes, crop_pct, device, dtype)
    valid_labels = _read_valid_labels(args.valid_labels, device)
    real_labels = _read_real_labels(args.real_labels, dataset)
    predictions = _Predictions() if args.metrics_avg else None

    def record(output: torch.Tensor, target: torch.Tensor) -> None:
        if real_labels is not None:
            real_labels.add_result(output)
        if predictions is not None:
            predictions.add(output, target)

    metrics = evaluate(
        model,
        loader,
        nn.CrossEntropyLoss(),
        device,
        dtype=dtype,
        autocast=autocast,
        channels_last=args.channels_last,
        adversary=adversary,
        on_output=record,
        output_indices=valid_labels,
        log_interval=args.log_freq,
    )
    if real_labels is not None:
        metrics['top1'], metrics['top5'] = real_labels.get_accuracy(k=1), real_labels.get_accuracy(k=5)
    results = OrderedDict(
        model=args.model,
        top1=round(metrics['top1'], 4),
        top1_err=round(100 - metrics['top1'], 4),
        top5=round(metrics['top5'], 4),
        top5_err=round(100 - metrics['top5'], 4),
        **({} if predictions is None else predictions.scores(args.metrics_avg)),
        param_count=round(param_count / 1e6, 2),
        img_size=data_config['input_size'][-1],
        crop_pct=crop_pct,
        interpolation=data_config['interpolation'],
        route=args.route,
        dataset=dataset_name(args.dataset, args.data_dir),
        split=args.split,
        weights=weights,
    )
    if adversary is not None:
        results.update(
            adv_top1=round(metrics['adv_top1'], 4),
            adv_top5=round(metrics['adv_top5'], 4),
            adv_attack=adversary.attack.describe(),
        )
    _logger.info(' * ' + '  '.join(f'{name} {value:.3f}' for name, value in results.items() if 'top' in name))
    return results


def write_results(path: str, results: Union[Results, List[Results]], format: str = 'csv') -> None:
    """Write results as timm does.

    Args:
        path: File to write.
        results: Results of one model or of several.
        format: `'csv'` or `'json'`.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with open(path, 'w', newline='', encoding='utf-8') as file:
            if format == 'json':
                json.dump(results, file, indent=4)
                return
            rows = results if isinstance(results, list) else [results]
            columns = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f'Cannot write {path}: {error}.') from error


class _RoutedAdversary:
    # An attack through the route the model is evaluated on.
    def __init__(self, attack: Adversary, route: str):
        self.attack, self.route = attack, route

    def __call__(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.attack(model, images, target, self.route).to(images.dtype)


class _Predictions:
    # Collects predicted and true labels for scores of the whole data set.
    def __init__(self):
        self._predicted, self._true = [], []

    def add(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self._predicted.append(output.argmax(dim=1).cpu())
        self._true.append(target.cpu())

    def scores(self, average: str) -> Dict[str, float]:
        from sklearn.metrics import precision_recall_fscore_support
        scores = precision_recall_fscore_support(
            torch.cat(self._true).numpy(), torch.cat(self._predicted).numpy(), average=average, zero_division=0)
        return {f'{average}_{name}': round(100 * score, 4)
                for name, score in zip(('precision', 'recall', 'f1_score'), scores)}


def _check_arguments(args: Namespace) -> None:
    attacked = args.adv_attack != 'none'
    for wrong, message in (
            (args.amp and args.model_dtype not in (None, 'float32'), '--amp needs --model-dtype float32'),
            (args.torchscript and (attacked or args.route != 'clean'),
             '--torchscript has only the clean route and takes no attack'),
            (args.torchscript and args.torchcompile, '--torchscript and --torchcompile exclude each other'),
            (args.reparam and args.route != 'clean', '--reparam folds the main norms only: use --route clean'),
            (args.num_gpu > torch.cuda.device_count() and args.num_gpu > 1,
             f'--num-gpu {args.num_gpu}, but {torch.cuda.device_count()} are available'),
            (args.num_gpu > 1 and attacked, 'an attack runs on one GPU: use --num-gpu 1'),
            (args.metrics_avg and not _has_sklearn(), '--metrics-avg needs scikit-learn: pip install scikit-learn'),
    ):
        if wrong:
            raise InputError(f'{message}.')


def _load_model(args: Namespace) -> nn.Module:
    state_dict = read_checkpoint(args.checkpoint, args.use_ema) if args.checkpoint else None
    num_aux = num_aux_in(state_dict or {})
    model_kwargs = dict(args.model_kwargs)
    if num_aux and args.model.split('.')[0] in split_models():
        model_kwargs.setdefault('num_aux', num_aux)
    flags = dict(
        pretrained=args.pretrained or not args.checkpoint,
        num_classes=args.num_classes,
        in_chans=args.in_chans or (args.input_size[0] if args.input_size else None),
        global_pool=args.gp,
        scriptable=args.torchscript or None,
    )
    model = open_model(args.model, **{**flags, **model_kwargs})
    if state_dict is not None:
        as_input_error(load_read_checkpoint, model, state_dict, args.checkpoint, convert=True)
    if args.route != 'clean' and not has_split_norm(model):
        raise InputError(f'--route {args.route} needs auxiliary norms, {args.model} has none: '
                         'give a *_ap model or a checkpoint with auxiliary norms.')
    return model


def _prepare_model(model: nn.Module, args: Namespace, device: torch.device, dtype: Optional[torch.dtype]) -> nn.Module:
    if has_split_norm(model):
        set_norm_route(model, args.route)
    if args.reparam:
        model = reparameterize_model(strip_aux(model))
    model = model.to(device=device, dtype=dtype).eval()
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.torchscript:
        model = torch.jit.script(model)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


def _build_adversary(args: Namespace, data_config: Dict[str, Any], device) -> Optional[_RoutedAdversary]:
    if args.adv_attack == 'none':
        if (args.adv_eps, args.adv_alpha, args.adv_steps) != (4., 1., None):
            raise InputError('--adv-eps, --adv-alpha and --adv-steps belong to an attack: give --adv-attack pgd.')
        return None
    mean, std = channel_normalisation(data_config)
    attack = as_input_error(Adversary, **attack_kwargs(args), mean=mean, std=std).to(device)
    _logger.info(f'Attack through the {args.route} route: {attack.describe()}')
    return _RoutedAdversary(attack, args.route)


def _build_loader(args, data_config, num_classes, crop_pct, device, dtype) -> Tuple[Any, Any]:
    dataset = open_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        download=args.dataset_download,
        class_map=args.class_map,
        num_samples=args.num_samples,
        input_key=args.input_key,
        input_img_mode=args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L'),
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
        seed=args.seed,
    )
    if not args.valid_labels and not args.real_labels:
        check_class_count(dataset, num_classes, f'split {args.split!r}')
    mean, std = channel_normalisation(data_config)
    loader = as_input_error(
        create_loader,
        dataset,
        input_size=data_config['input_size'],
        batch_size=args.batch_size * args.num_gpu,
        use_prefetcher=not args.no_prefetcher,
        interpolation=data_config['interpolation'],
        mean=mean,
        std=std,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        crop_pct=crop_pct,
        crop_mode=data_config['crop_mode'],
        crop_border_pixels=args.crop_border_pixels,
        pin_memory=args.pin_mem,
        device=device,
        img_dtype=dtype or torch.float32,
    )
    return dataset, loader


def _read_valid_labels(path: str, device: torch.device) -> Optional[torch.Tensor]:
    if not path:
        return None
    try:
        with open(path, encoding='utf-8') as file:
            return torch.tensor([int(line) for line in file if line.strip()], device=device)
    except (OSError, ValueError) as error:
        raise InputError(f'--valid-labels {path} is not a file with one class index a line: {error}.') from error


def _read_real_labels(path: str, dataset: Any) -> Optional[RealLabelsImagenet]:
    if not path:
        return None
    try:
        return RealLabelsImagenet(dataset.filenames(basename=True), real_json=path)
    except (OSError, ValueError) as error:
        raise InputError(f'Cannot read --real-labels {path}: {error}.') from error


def _list_runs(args: Namespace) -> Optional[List[Tuple[str, str]]]:
    # (model, checkpoint) pairs of a bulk validation, None for a single model.
    if args.checkpoint and os.path.isdir(args.checkpoint):
        files = [file for ending in ('pth.tar', 'pth', 'safetensors')
                 for file in glob.glob(os.path.join(args.checkpoint, f'*.{ending}'))]
        if not files:
            raise InputError(f'No checkpoints (*.pth.tar, *.pth, *.safetensors) in {args.checkpoint}.')
        return [(args.model, file) for file in sorted(files, key=natural_key)]
    if args.model == 'all':
        skip = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']
        return [(name, '') for name in list_models(pretrained=True, exclude_filters=skip)]
    if os.path.isfile(args.model):
        with open(args.model, encoding='utf-8') as file:
            return [(line.strip(), '') for line in file if line.strip()]
    if ':' not in args.model and not is_model(args.model) and any(sign in args.model for sign in '*?['):
        names = list_models(args.model, pretrained=True)
        if not names:
            raise InputError(f'No model with published weights matches {args.model!r}.')
        return [(name, '') for name in names]
    return None


def _validate_all(args: Namespace, runs: List[Tuple[str, str]]) -> List[Results]:
    _logger.info(f'Validating {len(runs)} models: {", ".join(checkpoint or model for model, checkpoint in runs)}')
    results = []
    for model, checkpoint in runs:
        run = Namespace(**{**vars(args), 'model': model, 'checkpoint': checkpoint})
        try:
            result = _validate_retrying(run)
        except (InputError, RuntimeError) as error:
            _logger.error(f'{checkpoint or model} left out: {error}')
            continue
        except KeyboardInterrupt:
            break
        results.append(OrderedDict(result, checkpoint=checkpoint) if checkpoint else result)
    return sorted(results, key=lambda result: result['top1'], reverse=True)


def _validate_retrying(args: Namespace) -> Results:
    run = Namespace(**vars(args))
    while True:
        try:
            return validate(run)
        except RuntimeError as error:
            run.batch_size = decay_batch_step(run.batch_size) if check_batch_size_retry(str(error)) else 0
            if not run.batch_size:
                raise
            _logger.warning(f'{error} Retrying with --batch-size {run.batch_size}.')


def _has_sklearn() -> bool:
    from importlib.util import find_spec
    return find_spec('sklearn') is not None
