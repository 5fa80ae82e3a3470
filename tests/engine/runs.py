"""Settings and runs on few digits, for the tests of the engine and of the programs."""
import csv

import torch

from timm_advprop.engine.eval_settings import EvalSettings
from timm_advprop.engine.placement import Placement
from timm_advprop.engine.run_settings import TrainSettings
from timm_advprop.engine.training import train

CPU = Placement(torch.device('cpu'))
MODEL = dict(model='test_resnet_ap', num_classes=10, img_size=32, workers=0, device='cpu')
FAST = dict(MODEL, batch_size=16, epochs=1, warmup_epochs=0, lr=0.05, adv_eps=1., log_interval=100)
CONFIG = dict(input_size=(3, 32, 32), mean=(.5,) * 3, std=(.5,) * 3, interpolation='bicubic', crop_pct=1.,
              crop_mode='center')


def train_settings(**values):
    return TrainSettings.from_values({**FAST, **values})


def eval_settings(**values):
    return EvalSettings.from_values({**MODEL, **values})


def run(data, output, **values):
    """The folder of a training run."""
    settings = train_settings(data_dir=data, output=str(output), experiment='run', **values)
    train(settings)
    return output / 'run'


def load(path):
    return torch.load(path, weights_only=False)


def read_summary(folder):
    with open(folder / 'summary.csv', newline='') as file:
        return list(csv.DictReader(file))


def equal_states(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
