"""The model card of a publication, its `README.md`: what it is, measured results, recipe, how to load it."""
import shlex
from typing import Any, Dict, List, Mapping, Optional, Sequence

from huggingface_hub import EvalResult, ModelCardData

from ..engine.datasets import READERS_WITHOUT_FOLDER
from ..engine.route_names import is_blend, route_share
from ..norms import share_of, split_state_dict
from ..output import markdown_table, without_folders
from ..version import __version__
from .blending import Blend
from .card_pictures import IMAGES_PICTURE, NORMS_PICTURE
from .licences import licence_metadata
from .release import Release, Result

__all__ = ['render_card']

_WITH_AUX_NORMS = (
    ', and its auxiliary norms. In [AdvProp](https://arxiv.org/abs/1911.09665) (Xie et al., CVPR 2020), adversarial '
    'examples are extra training data that pass norms of their own; clean images pass the main norms. '
    '`model.safetensors` is the plain model with the main norms, which stock timm loads; `aux.safetensors` holds the '
    'auxiliary norms, for further training and for tests under attack')
_USE_OF_PLAIN_MODEL = '''## Use

The plain model, with timm alone:

```python
import timm

model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()
```
'''
# whose pipeline reads images of three channels
_USE_IN_TRANSFORMERS = '''The same, with transformers:

```python
from transformers import pipeline

classify = pipeline('image-classification', model='{repo_id}')
```'''
_USE_OF_AUX_NORMS = '''Main and auxiliary norms, with timm-advprop:

```python
import timm_advprop

model = timm_advprop.create_model('hf-hub:{repo_id}').eval()
with timm_advprop.norm_route(model, 'aux'):
    logits = model(images)
```

On the command line: `timm-advprop-validate --model hf-hub:{repo_id} --route aux --data-dir DATA`, and
`timm-advprop-train --model hf-hub:{repo_id} --pretrained --data-dir DATA` trains on.'''
_TRAINING = '''## Training

```bash
hf download {repo_id} args.yaml --local-dir .
{program} --config args.yaml{data}
```'''
_PICTURES = {
    IMAGES_PICTURE: 'Validation images under their class, the same attacked through the auxiliary norms as strongly as '
                    'in training (untargeted, without a random start), and the difference:\n\n'
                    '![Clean and adversarial images](adversarial.png)',
    NORMS_PICTURE: 'Each point is a channel: its parameter or statistic in the main norm and in the auxiliary norm.\n\n'
                   '![Main and auxiliary norms](norms.png)',
}
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
_COLUMNS = ('trained_on', 'attack', 'eps_px', 'alpha_px', 'steps', 'target', 'random_start')  # of an auxiliary norm
_SHARES = {
    'statistics': 'weight and bias; the statistics are those of all images, shared with the main norms',
    'statistics-of-main': 'weight and bias; the running statistics are those of clean images, shared with the main '
                          'norms',
}
_LONGEST_NAMES = 200  # together


def render_card(release: Release, repo_id: str, files: Sequence[str]) -> str:
    """Write a model card. What is not known or was not measured is left out.

    Args:
        release: What is published.
        repo_id: Repository.
        files: Names of the files beside the card, of which it shows the pictures.
    """
    name = repo_id.split('/')[-1]
    pictures = [text for picture, text in _PICTURES.items() if picture in files]
    sections = [
        f'---\n{_metadata(release, name).to_yaml()}\n---',
        f'# {name}',
        f'`{release.architecture}`, an image classifier of timm{release.dataset and f" trained on {release.dataset}"}'
        f'{_WITH_AUX_NORMS if release.aux_norms else ""}.',
        _blend(release.blend) if release.blend else '',
        _details(release),
        _aux_norms(dict(enumerate(release.aux_norms, 1))) if any(release.aux_norms) else '',
        _measured(release.results) if release.results else '',
        _USE_OF_PLAIN_MODEL.format(repo_id=repo_id),
        _USE_IN_TRANSFORMERS.format(repo_id=repo_id) if release.data_config['input_size'][0] == 3 else '',
        _USE_OF_AUX_NORMS.format(repo_id=repo_id) if release.aux_norms else '',
        _training(release, repo_id) if release.regime else '',
        *(['## Pictures', *pictures] if pictures else []),
        f'## Licence and citation\n\n{release.license}. Made with timm-advprop {__version__}.\n\n{_CITATION}',
    ]
    return '\n\n'.join(section for section in sections if section) + '\n'


def _metadata(release: Release, name: str) -> ModelCardData:
    results = release.results
    datasets = list(dict.fromkeys(filter(None, [release.dataset, *(result.dataset for result in results)])))
    entries = [EvalResult(
        task_type='image-classification', dataset_type=result.dataset or 'unknown',
        dataset_name=result.dataset or 'unknown', dataset_split=result.split, metric_type='accuracy',
        metric_name=f'{metric}, {result.images}, {result.norms} norms (percent)', metric_value=round(value, 4))
        for result in results for metric, value in (('Top-1', result.top1), ('Top-5', result.top5))
        if value is not None]
    advprop = ['advprop'] if release.aux_norms or release.blend else []
    return ModelCardData(
        library_name='timm', pipeline_tag='image-classification', **licence_metadata(release.license),
        tags=['image-classification', 'timm', 'transformers', 'timm-advprop', *advprop],
        datasets=datasets or None, model_name=name if results else None, eval_results=entries or None)


def _details(release: Release) -> str:
    main, aux = (sum(parameter.numel() for parameter in part.values())
                 for part in split_state_dict(dict(release.model.named_parameters())))
    config = release.data_config
    mean, std = (f'({", ".join(f"{value:g}" for value in config[entry])})' for entry in ('mean', 'std'))
    rows: Dict[str, Any] = {
        'Architecture': f'`{release.architecture}`',
        'Parameters': f'{main:,}' + (f', and {aux:,} in auxiliary norms' if aux else ''),
        'Auxiliary norms': _SHARES.get(share_of(release.model)),
        'Input': f'{"x".join(map(str, config["input_size"]))}, mean {mean}, std {std}',
        'Classes': _classes(release),
        'Data set': release.dataset,
        'Regime': release.regime and f'`{release.regime}`' + (
            f', given `{_flags(release)}`' if release.regime_flags else ''),
        'Epoch': _epoch(release),
        'Weights': 'exponential moving average' if release.averaged else None,
    }
    return '## Model\n\n' + '\n'.join(f'- {name}: {value}' for name, value in rows.items() if value)


def _epoch(release: Release) -> Optional[str]:
    if release.epoch is None:
        return None
    epochs = release.recipe.get('epochs')
    return (f'{release.epoch + 1}' + (f' of {epochs}' if epochs else '')
            + (', from within it: the run did not validate these weights' if release.within_epoch else ''))


def _classes(release: Release) -> str:
    names = ', '.join(release.label_names or ())
    return f'{release.model.num_classes}' + (f': {names}' if 0 < len(names) <= _LONGEST_NAMES else '')


def _flags(release: Release) -> str:
    # as on a command line; a switch has no value
    words = []
    for name in release.regime_flags:
        value = release.published_recipe[name]
        values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
        words += [f'--{name.replace("_", "-")}', *(
            f'{entry:g}' if isinstance(entry, float) else str(entry) for entry in values)]
    return shlex.join(words)


def _blend(blend: Blend) -> str:
    # What the norms are made of, and what the auxiliary norms among them were trained on.
    share: Any = route_share(blend.route)
    text = f'Its norms are the {"main" if share == 0 else "auxiliary"} norms of a training run'
    if is_blend(blend.route):
        text = (f'Its norms lie between those of a training run: {100 * (1 - share):.6g}% main norm and '
                f'{100 * share:.6g}% auxiliary norm, parameters and running statistics mixed linearly, as Rebuffi et '
                'al. ([ICLR 2023](https://arxiv.org/abs/2210.04886)) interpolate between adapters')
    if blend.recalibrated:
        text += f'; running statistics were then taken again from {blend.recalibrated}'
    text += '. It is a plain model of timm, without auxiliary norms.'
    used = {number: norm for number, norm in enumerate(blend.aux_norms, 1) if blend.uses_aux(number) and norm}
    return f'{text} Auxiliary norms of that run:\n\n{_aux_norms(used)}' if used else text


def _aux_norms(norms: Mapping[int, Mapping[str, Any]]) -> str:
    rows: List[Sequence[Any]] = [
        ('aux norm', 'trained on', 'attack', 'eps', 'step size', 'steps', 'target', 'random start')]
    for i, norm in norms.items():
        pixels = [f'{norm[key]:g}/255' if key in norm else '–' for key in ('eps_px', 'alpha_px')]
        others = [norm.get(key, '–') for key in ('steps', 'target', 'random_start')]
        rows.append([i, _images_of(norm), norm.get('attack', '–').upper(), *pixels, *others])
    return markdown_table(rows)


def _images_of(norm: Mapping[str, Any]) -> str:
    # with the settings that have no column
    others = [f'{name.replace("_", " ")} {_text(value)}' for name, value in norm.items() if name not in _COLUMNS]
    return f'{norm["trained_on"]} ({"; ".join(others)})' if others else norm['trained_on']


def _text(value: Any) -> str:
    return ', '.join(map(_text, value)) if isinstance(value, (list, tuple)) else (
        f'{value:g}' if isinstance(value, float) else str(value))


def _measured(results: Sequence[Result]) -> str:
    rows: List[Sequence[Any]] = [('images', 'norms', 'top-1', 'top-5', 'data set', 'split', 'measured by')]
    for result in results:
        top5 = '–' if result.top5 is None else f'{result.top5:.2f}'
        split = result.split + (f', {result.num_images} images' if result.num_images else '')
        rows.append([
            result.images, result.norms, f'{result.top1:.2f}', top5, result.dataset or '–', split, result.source])
    note = 'Accuracy in percent.'
    if any(result.images.startswith('under ') for result in results):
        note += ' An attack sees the norms that its images pass.'
    if any(result.images == 'corruptions' for result in results):
        note += (' Corruptions are those of ImageNet-C (Hendrycks & Dietterich, ICLR 2019), made on the fly: means '
                 'over 5 severities, and over 15 corruptions or a group of them.')
    return f'## Measured results\n\n{markdown_table(rows)}\n\n{note}'


def _training(release: Release, repo_id: str) -> str:
    recipe, processes = release.published_recipe, release.recipe.get('world_size') or 1
    program = 'timm-advprop-train'
    if processes > 1:
        program = f'torchrun --nproc_per_node {processes} -m timm_advprop.train'
    text = _TRAINING.format(repo_id=repo_id, program=program, data=_data_flag(release.recipe.get('dataset') or ''))
    model = str(recipe.get('model'))
    start = recipe.get('initial_checkpoint') or recipe.get('pretrained_path')
    start = start or (model if model.startswith('local-dir:') else None)
    if start:  # a file or folder of its own machine
        text += f'\n\nThe run began with `{start}`, which is not part of this repository.'
    of_blend = ''
    if release.blend:
        text += (f'\n\nThe recipe trains main and auxiliary norms. `timm-advprop-hub push CHECKPOINT {repo_id} '
                 f'{release.blend.flags}` makes this model of them.')
        of_blend = ', measured through the main norms'
    return text + (f'\n\n`summary.csv` has the metrics of every epoch{of_blend}.' if release.summary else '')


def _data_flag(dataset: str) -> str:
    # What a recipe does not say of its data set: where it is.
    reader = dataset.partition('/')[0].lower()
    if reader not in READERS_WITHOUT_FOLDER:
        return ' --data-dir DATA'
    return f' --dataset {reader}/DATA' if without_folders(dataset) != dataset else ''
