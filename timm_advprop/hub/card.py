"""The model card of a publication, its `README.md`: what it is, measured results, recipe, how to load it."""
from typing import Any, Dict, List, Optional, Sequence

from huggingface_hub import EvalResult, ModelCardData

from ..norms import split_state_dict
from ..output import markdown_table
from ..version import __version__
from .recipe import starting_point, training_command
from .release import Release
from .results import Result

__all__ = ['render_card']

_CITATION = '''```bibtex
@inproceedings{xie2020adversarial,
  title     = {Adversarial Examples Improve Image Recognition},
  author    = {Xie, Cihang and Tan, Mingxing and Gong, Boqing and Wang, Jiang and Yuille, Alan and Le, Quoc V.},
  booktitle = {CVPR},
  year      = {2020}
}
@misc{rw2019timm,
  author       = {Ross Wightman},
  title        = {PyTorch Image Models},
  year         = {2019},
  publisher    = {GitHub},
  doi          = {10.5281/zenodo.4414861},
  howpublished = {\\url{https://github.com/huggingface/pytorch-image-models}}
}
```'''


def render_card(
        release: Release,
        repo_id: str,
        results: Sequence[Result],
        dataset: str,
        license: str,
        files: Sequence[str],
) -> str:
    """Write a model card. What is not known or was not measured is left out."""
    name = repo_id.split('/')[-1]
    sections = [
        f'---\n{_metadata(release, name, results, dataset, license).to_yaml()}\n---',
        f'# {name}',
        _introduction(release, dataset),
        _details(release, dataset),
        _aux_norms(release),
        _results(results),
        _usage(release, repo_id),
        _training(release, repo_id, files),
        _pictures(release, files),
        f'## Licence and citation\n\n{license}. Made with timm-advprop {__version__}.\n\n{_CITATION}',
    ]
    return '\n\n'.join(section for section in sections if section) + '\n'


def _metadata(release: Release, name: str, results: Sequence[Result], dataset: str, license: str) -> ModelCardData:
    datasets = list(dict.fromkeys(filter(None, [dataset, *(result.dataset for result in results)])))
    return ModelCardData(
        library_name='timm', pipeline_tag='image-classification', license=license,
        tags=['image-classification', 'timm', 'timm-advprop', *(['advprop'] if release.num_aux else [])],
        datasets=datasets or None, model_name=name if results else None,
        eval_results=[entry for result in results for entry in _eval_results(result)] or None)


def _eval_results(result: Result) -> List[EvalResult]:
    values = {'Top-1': result.top1, 'Top-5': result.top5}
    return [EvalResult(
        task_type='image-classification', dataset_type=result.dataset or 'unknown',
        dataset_name=result.dataset or 'unknown', dataset_split=result.split, metric_type='accuracy',
        metric_name=f'{metric}, {_images(result)}, {result.norms} norms (percent)',
        metric_value=round(value, 4)) for metric, value in values.items() if value is not None]


def _introduction(release: Release, dataset: str) -> str:
    trained = f' trained on {dataset}' if dataset else ''
    paper = '[AdvProp](https://arxiv.org/abs/1911.09665) (Xie et al., CVPR 2020)'
    text = f'`{release.architecture}`, an image classifier of timm{trained}'
    if not release.num_aux:
        return f'{text}.'
    text += (f', and its auxiliary norms. In {paper}, adversarial examples are extra training data that pass norms of '
             'their own; clean images pass the main norms')
    return (f'{text}. `model.safetensors` is the plain model with the main norms, which stock timm loads; '
            '`aux.safetensors` holds the auxiliary norms, for further training and for tests under attack.')


def _details(release: Release, dataset: str) -> str:
    main, aux = split_state_dict(dict(release.model.named_parameters()))
    size = 'x'.join(map(str, release.data_config['input_size']))
    rows: Dict[str, Optional[str]] = {
        'Architecture': f'`{release.architecture}`',
        'Parameters': f'{_count(main):,}' + (f', and {_count(aux):,} in auxiliary norms' if aux else ''),
        'Input': f'{size}, mean {_numbers(release.data_config["mean"])}, std {_numbers(release.data_config["std"])}',
        'Classes': str(release.model.num_classes),
        'Data set': dataset,
        'Regime': f'`{release.regime}`' if release.regime else None,
        'Epoch': _epoch(release),
        'Weights': 'exponential moving average' if release.averaged else None,
    }
    return '## Model\n\n' + '\n'.join(f'- {name}: {value}' for name, value in rows.items() if value)


def _aux_norms(release: Release) -> str:
    if not any(release.aux_norms):
        return ''
    rows = [['aux norm', 'trained on', 'attack', 'eps', 'step size', 'steps', 'target', 'random start']]
    for i, norm in enumerate(release.aux_norms):
        pixels = [f'{norm[key]:g}/255' if key in norm else '–' for key in ('eps_px', 'alpha_px')]
        others = [norm.get(key, '–') for key in ('steps', 'target', 'random_start')]
        rows.append([i + 1, norm['trained_on'], norm.get('attack', '–').upper(), *pixels, *others])
    return markdown_table(rows)


def _results(results: Sequence[Result]) -> str:
    if not results:
        return ''
    rows = [['images', 'norms', 'top-1', 'top-5', 'data set', 'split', 'measured by']]
    for result in results:
        top5 = '–' if result.top5 is None else f'{result.top5:.2f}'
        rows.append([_images(result), result.norms, f'{result.top1:.2f}', top5, result.dataset or '–', result.split,
                     result.source])
    note = 'Accuracy in percent.'
    if any(result.images != 'clean' for result in results):
        note += ' An attack sees the norms that its images pass.'
    return f'## Measured results\n\n{markdown_table(rows)}\n\n{note}'


def _usage(release: Release, repo_id: str) -> str:
    text = f'''## Use

The plain model, with timm alone:

```python
import timm

model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()
```'''
    if release.num_aux:
        text += f'''

Main and auxiliary norms, with timm-advprop:

```python
import timm_advprop

model = timm_advprop.create_model('hf-hub:{repo_id}')
with timm_advprop.norm_route(model, 'aux'):
    logits = model(images)
```

On the command line: `timm-advprop-validate --model hf-hub:{repo_id} --route aux --data-dir DATA`, and
`timm-advprop-train --model hf-hub:{repo_id} --pretrained --data-dir DATA` trains on.'''
    return text


def _training(release: Release, repo_id: str, files: Sequence[str]) -> str:
    command = training_command(release.recipe)
    if 'args.yaml' not in files or not command:
        return ''
    text = f'''## Training

```bash
hf download {repo_id} args.yaml --local-dir .
{command}
```'''
    start = starting_point(release.recipe)
    if start:
        text += f'\n\nThe run began with `{start}`, which is not part of this repository.'
    return text + ('\n\n`summary.csv` has the metrics of every epoch.' if 'summary.csv' in files else '')


def _pictures(release: Release, files: Sequence[str]) -> str:
    text = ''
    if 'adversarial.png' in files:
        text += ('\n\nValidation images under their class, the same attacked through the auxiliary norms as strongly '
                 'as in training (untargeted, without a random start), and the difference:\n\n'
                 '![Clean and adversarial images](adversarial.png)')
    if 'norms.png' in files:
        text += ('\n\nEach point is a channel: its parameter or statistic in the main norm and in the auxiliary norm.'
                 '\n\n![Main and auxiliary norms](norms.png)')
    return f'## Pictures{text}' if text else ''


def _images(result: Result) -> str:
    return 'clean' if result.images == 'clean' else f'under {result.images}'


def _epoch(release: Release) -> Optional[str]:
    if release.epoch is None:
        return None
    epochs = release.recipe.get('epochs')
    return f'{release.epoch + 1} of {epochs}' if epochs else f'{release.epoch + 1}'


def _count(parameters: Dict[str, Any]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _numbers(values: Sequence[float]) -> str:
    return f'({", ".join(f"{value:g}" for value in values)})'
