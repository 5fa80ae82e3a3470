"""What the tests of the page share: a published folder, and the program's settings for it."""
import timm

from timm_advprop.cli.app import parse_args
from timm_advprop.cli.looked_at_model import open_looked_at_model

TINY = ['--num-classes', '10', '--img-size', '32', '--device', 'cpu']


def looked_at(*flags):
    return open_looked_at_model(parse_args(list(flags)))


def plain_folder(folder, label_names=None, **kwargs):
    """A plain timm model as a publication."""
    model = timm.create_model('test_resnet', **{'num_classes': 10, **kwargs})
    timm.models.save_for_hf(model, folder, model_config=dict(label_names=label_names), safe_serialization=True)
    return f'local-dir:{folder}'
