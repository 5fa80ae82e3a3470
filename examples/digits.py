"""The data of the examples: scikit-learn's 8×8 digits, sized to 32×32 pixels, normalised for a model; no download."""
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


def digit_pixels():
    """All 1,797 digits as images [N, 3, 32, 32] in 0–1, and their labels [N]."""
    digits = load_digits()
    pixels = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1).expand(-1, 3, -1, -1)
    return torch.nn.functional.interpolate(pixels, size=32, mode='nearest'), torch.tensor(digits.target)


def normalised(pixels, model):
    """Images [N, 3, H, W] in 0–1 as the model takes them."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    return (pixels - mean) / std


def digit_loaders(model, batch_size=32, num_train=1280, num_test=320):
    """Loaders of a few training images and of test images, normalised as the model expects."""
    pixels, labels = digit_pixels()
    images = normalised(pixels, model)
    train = TensorDataset(images[:num_train], labels[:num_train])
    test = TensorDataset(images[-num_test:], labels[-num_test:])
    return DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(test, batch_size)
