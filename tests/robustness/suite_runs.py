"""A small network that knows digits, and runs of validate.py on it with suites."""
import csv
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from timm_advprop.cli.validate import main
from timm_advprop.norms import configure_batch_norm, norm_route

FLAGS = ['--model', 'test_resnet_ap', '--num-classes', '10', '--img-size', '32', '--crop-pct', '1', '--mean', '.5',
         '--std', '.5', '--interpolation', 'bicubic', '--workers', '0', '--device', 'cpu']


def digit_images(data, split):
    """Images as they are evaluated, but for the normalisation, and labels."""
    files = sorted(Path(data, split).glob('*/*'), key=lambda file: (file.parent.name, file.name))
    pixels = [np.asarray(Image.open(file).convert('RGB').resize((32, 32), Image.BICUBIC)) for file in files]
    images = torch.tensor(np.stack(pixels)).movedim(-1, 1).float() / 255
    return images, torch.tensor([int(file.parent.name) for file in files])


def train_digits(data, path, steps=60, seed=0):
    """Train main and auxiliary norms, these on noisy images, and save a checkpoint."""
    torch.manual_seed(seed)
    model = timm.create_model('test_resnet_ap', num_classes=10).train()
    configure_batch_norm(model, momentum=.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    images, labels = digit_images(data, 'train')
    for _ in range(steps):
        optimizer.zero_grad()
        batch = torch.randperm(len(labels))[:64]
        loss = F.cross_entropy(model((images[batch] - .5) / .5), labels[batch])
        with norm_route(model, 'aux'):
            noisy = images[batch] + .2 * torch.randn_like(images[batch])
            loss = loss + F.cross_entropy(model((noisy - .5) / .5), labels[batch])
        loss.backward()
        optimizer.step()
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def run_suites(data, checkpoint, path, *flags):
    """The rows that validate.py writes."""
    main(['--data-dir', str(data), *FLAGS, '--checkpoint', str(checkpoint), '--results-file', str(path), *flags])
    return read_rows(path)


def read_rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))
