"""A published model in transformers. Needs `pip install transformers`.

    python examples/transformers_pipeline.py

A folder as `hub push --dry-run` writes it stands for a repository here; give `user/name` for one on the Hub.
"""
import tempfile

import timm
import torch
from digits import digit_loaders
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from timm_advprop.hub.layout import write_publication
from timm_advprop.hub.release import release_model

NAMES = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']


def main():
    """Publish into a folder, load it with both libraries, and return the difference of logits and the answers."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet_ap', num_classes=10).eval()
    images, _ = next(iter(digit_loaders(model)[1]))
    with tempfile.TemporaryDirectory() as folder:
        write_publication(release_model(model, label_names=NAMES), folder, 'user/name', images=False)
        plain = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
        with torch.inference_mode():
            difference = (classifier(images).logits - plain(images)).abs().max().item()
        processor = AutoImageProcessor.from_pretrained(folder)  # timm's transform of validation images
        size = processor(Image.new('RGB', (40, 30)))['pixel_values'].shape
        answers = pipeline('image-classification', model=folder)(Image.new('RGB', (40, 30)), top_k=3)
    print(f'difference of logits {difference}, images {tuple(size)}, answers {answers}')
    return difference, answers


if __name__ == '__main__':
    main()
