"""Names of classes: from the data set into the checkpoint and `config.json`; and what transformers reads there."""
import json

import pytest
import timm
import torch
import torch.nn as nn
from PIL import Image
from timm.data import ImageNetInfo

from tests.hub.publishing import REPO, RUN, published
from tests.stock_timm import REMEMBERS
from timm_advprop import InputError, create_model, push_to_hub
from timm_advprop.cli.hub import main as hub_main
from timm_advprop.cli.train import main as train
from timm_advprop.engine.datasets import class_count, label_names
from timm_advprop.hub.label_names import names_of_labels
from timm_advprop.hub.layout import write_publication
from timm_advprop.hub.release import release_model
from timm_advprop.weights import open_checkpoint

DIGITS = [str(digit) for digit in range(10)]
FRUIT = ['pear', 'apple', 'plum']


class DataSet:
    def __init__(self, **attributes):
        vars(self).update(attributes)


@pytest.mark.parametrize('dataset, expected, count', [
    (DataSet(reader=DataSet(class_to_idx=dict(plum=2, pear=0, apple=1))), FRUIT, 3),
    (DataSet(classes=FRUIT), FRUIT, 3),
    (DataSet(reader=DataSet(class_to_idx={0: 0, 1: 1, 2: 2})), ['0', '1', '2'], 3),
    (DataSet(), None, None),
    (DataSet(classes=FRUIT[:2]), None, 2),
    (DataSet(class_to_idx=dict(pear=0, apple=1, plum=3)), None, 4),  # a class map with a gap
    (DataSet(class_to_idx=dict(pear=0, apple=1, plum=2, prune=2)), None, 3),  # two names of one class
], ids=['folder', 'list', 'numbers', 'unknown', 'too few', 'gap', 'synonyms'])
def test_names_in_the_order_of_labels(dataset, expected, count):
    assert label_names(dataset, 3) == expected
    assert class_count(dataset) == count


def config_of(hub):
    return json.loads(published(hub)['config.json'])


def test_names_go_from_the_folders_of_a_run_to_its_publication(hub, few_digits, tmp_path):
    train([*RUN, '--data-dir', few_digits, '--output', str(tmp_path), '--experiment', 'run'])
    checkpoint = tmp_path / 'run' / 'last.pth.tar'
    assert open_checkpoint(str(checkpoint)).raw['label_names'] == DIGITS
    assert 'label_names' not in (tmp_path / 'run' / 'args.yaml').read_text()
    push_to_hub(checkpoint, REPO)
    assert config_of(hub)['label_names'] == DIGITS
    assert b'- Classes: 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9' in published(hub)['README.md']
    plain = timm.create_model(f'hf-hub:{REPO}', pretrained=True)
    assert list(plain.pretrained_cfg['label_names']) == DIGITS
    push_to_hub(create_model(f'hf-hub:{REPO}'), 'user/again')
    assert json.loads(published(hub, 'user/again')['config.json'])['label_names'] == DIGITS


def test_a_run_that_began_elsewhere_has_no_names_of_there(hub, checkpoint, split_model):
    push_to_hub(timm.create_model('test_resnet_ap', num_classes=10), REPO, label_names=DIGITS)
    path, _ = checkpoint()
    raw = torch.load(path, weights_only=False)
    raw['args'].model = f'hf-hub:{REPO}'
    torch.save(raw, path)
    push_to_hub(path, 'user/tuned')
    config = json.loads(published(hub, 'user/tuned')['config.json'])
    assert 'label_names' not in config and 'label_names' not in config['pretrained_cfg']


def test_names_can_be_given(hub, checkpoint):
    push_to_hub(timm.create_model('test_resnet_ap', num_classes=3), REPO, label_names=FRUIT)
    assert config_of(hub)['label_names'] == FRUIT
    path, _ = checkpoint()
    push_to_hub(path, 'user/digits', label_names=DIGITS[::-1])
    assert json.loads(published(hub, 'user/digits')['config.json'])['label_names'] == DIGITS[::-1]
    with pytest.raises(InputError, match='one name for each of the 10 classes'):
        push_to_hub(path, 'user/digits', label_names=FRUIT)


def test_names_can_be_given_on_the_command_line(checkpoint, tmp_path):
    path, _ = checkpoint()
    folder = tmp_path / 'folder'
    hub_main(['push', str(path), REPO, '--dry-run', '--to', str(folder), '--label-names', *DIGITS[::-1]])
    assert json.loads((folder / 'config.json').read_text())['label_names'] == DIGITS[::-1]


def test_another_number_of_classes_drops_the_names(hub):
    push_to_hub(timm.create_model('test_resnet_ap', num_classes=3), REPO, label_names=FRUIT)
    push_to_hub(create_model(f'hf-hub:{REPO}', num_classes=4), 'user/four')
    config = json.loads(published(hub, 'user/four')['config.json'])
    assert 'label_names' not in config and 'label_names' not in config['pretrained_cfg']


def test_imagenets_names_are_left_to_timm():
    names = list(ImageNetInfo().label_names())
    assert names_of_labels(names, 1000) is None and names_of_labels(names, 1000, given=True) is None
    assert names_of_labels(names[::-1], 1000) == names[::-1]


@pytest.mark.parametrize('names', [None, 7, 'abc', FRUIT[:2], [1, 2, 3], ['', 'a', 'b']], ids=str)
def test_what_are_no_names_is_left_out(names):
    assert names_of_labels(names, 3) is None


@pytest.mark.parametrize('key', [int, str])
def test_names_by_label(key):
    assert names_of_labels({key(label): name for label, name in enumerate(FRUIT)}, 3) == FRUIT


@pytest.mark.parametrize('kwargs', [dict(num_classes=7), dict(), *(
    pytest.param(kwargs, marks=pytest.mark.skipif(not REMEMBERS, reason='timm before 1.0.31 forgets arguments'))
    for kwargs in (dict(num_classes=3, in_chans=1), dict(num_classes=3, global_pool='max')))], ids=str)
def test_number_of_classes_stands_once(kwargs, tmp_path):
    """transformers gives `model_args` and the number of classes to timm, which must not be among them."""
    model = timm.create_model('test_resnet_ap', **kwargs).eval()
    write_publication(release_model(model), str(tmp_path), REPO)
    config = json.loads((tmp_path / 'config.json').read_bytes())
    assert 'num_classes' not in config.get('model_args', {})
    assert config['num_classes'] == config['pretrained_cfg']['num_classes'] == model.num_classes
    as_transformers = timm.create_model(
        config['architecture'], num_classes=config['num_classes'], **config.get('model_args', {}))
    for key in ('in_chans', 'num_classes'):
        assert getattr(as_transformers, key, None) == getattr(model, key, None)
    assert repr(as_transformers.global_pool) == repr(model.global_pool)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['test_resnet_ap', 'test_efficientnet_ap', 'test_vit_ap', 'test_convnext_ap'])
def test_transformers_computes_what_timm_does(name, tmp_path, randomize_norms):
    transformers = pytest.importorskip('transformers')
    model = randomize_norms(timm.create_model(name, num_classes=3)).eval()
    write_publication(release_model(model, label_names=FRUIT), str(tmp_path), REPO, images=False)
    plain = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    config = timm.data.resolve_model_data_config(plain)
    image = torch.randint(256, (50, 60, 3), dtype=torch.uint8).numpy()
    image = Image.fromarray(image)
    images = timm.data.create_transform(**config)(image).unsqueeze(0)
    read = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors='pt')['pixel_values']
    assert torch.equal(read, images)
    classifier = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        logits = plain(images)
        assert torch.equal(classifier(read).logits, logits)
    assert classifier.config.id2label == dict(enumerate(FRUIT))
    answers = transformers.pipeline('image-classification', model=str(tmp_path))(image)
    scores = nn.functional.softmax(logits[0], dim=0)
    assert {answer['label'] for answer in answers} == set(FRUIT)
    for answer in answers:
        assert answer['score'] == pytest.approx(scores[FRUIT.index(answer['label'])].item(), rel=1e-4)
