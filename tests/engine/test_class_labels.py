"""Names of classes: the published ones, the data set's, ImageNet's, or numbers."""
from types import SimpleNamespace

import pytest

from timm_advprop.engine.class_labels import class_labels


def model(num_classes, **cfg):
    return SimpleNamespace(num_classes=num_classes, pretrained_cfg=cfg)


DATA = SimpleNamespace(reader=SimpleNamespace(class_to_idx={'dog': 1, 'cat': 0}))


@pytest.mark.parametrize('names', [['a', 'b'], ('a', 'b'), {'1': 'b', '0': 'a'}, {0: 'a', 1: 'b'}], ids=str)
def test_published_names_come_first(names):
    assert class_labels(model(2, label_names=names), DATA) == ('a', 'b')


def test_descriptions_stand_for_published_names():
    cfg = dict(label_names=['n1', 'n2'], label_descriptions={'n1': 'a tench'})
    assert class_labels(model(2, **cfg)) == ('a tench', 'n2')


def test_those_of_a_data_set_are_in_the_order_of_its_labels():
    assert class_labels(model(2), DATA) == ('cat', 'dog')
    assert class_labels(model(2), SimpleNamespace(classes=['dog', 'cat'])) == ('dog', 'cat')


def test_a_thousand_classes_are_those_of_imagenet():
    labels = class_labels(model(1000))
    assert (labels[0], labels[2], labels[999]) == ('tench', 'great white shark', 'toilet tissue')


@pytest.mark.parametrize('cfg, dataset', [
    ({}, None), (dict(label_names=['a', 'b']), None), ({}, DATA), (dict(label_names=7), SimpleNamespace())], ids=str)
def test_names_of_other_classes_are_none(cfg, dataset):
    assert class_labels(model(3, **cfg), dataset) == ('0', '1', '2')
    assert class_labels(SimpleNamespace(num_classes=3, pretrained_cfg=None)) == ('0', '1', '2')
