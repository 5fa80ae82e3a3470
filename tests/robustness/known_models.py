"""Models whose robust accuracy is known, and images for them."""
import torch
import torch.nn as nn

DUAL = {'linf': 1, 'l2': 2}


def linear(num_classes=5, size=6):
    """A linear model of images whose pixels are about 0.5."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, num_classes))
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
    return model.eval()


def grey_images(num_images, size=6):
    return torch.empty(num_images, 3, size, size).uniform_(.4, .6)


@torch.no_grad()
def margins(model, images, norm):
    """Labels, and the size of the smallest perturbation that changes them, by the dual norm of the weights."""
    logits, weight = model(images), model[1].weight
    labels = logits.argmax(1)
    distances = (logits.gather(1, labels.unsqueeze(1)) - logits) / (
        weight[labels].unsqueeze(1) - weight).norm(dim=2, p=DUAL[norm])
    return labels, distances.nan_to_num(torch.inf).amin(1)


def eps_between(distances):
    """A strength that some images withstand and others do not, at least 2% away from each of them."""
    ordered = distances.sort().values
    lower, upper = ordered[:-1], ordered[1:]
    gaps = torch.where(torch.arange(len(lower)) < len(lower) // 3, 0., upper / lower)
    index = gaps.argmax()
    assert gaps[index] > 1.04
    return (lower[index] * upper[index]).sqrt().item()


def one_pixel_changes(images, size):
    adv = images.clone()
    adv[:, 0, 0, 0] += size
    return adv


def first_pixel_decides(threshold):
    """A model of 4 classes that says 1 where the first pixel is above a threshold, and 0 elsewhere."""
    class Model(nn.Flatten):
        def forward(self, images):
            score = (images[:, 0, 0, 0] - threshold).unsqueeze(1)
            return torch.cat([-score, score, torch.full_like(score, -2), torch.full_like(score, -3)], 1)
    return Model()


class Stairs(nn.Module):
    """A linear model of rounded pixels: its gradient is 0 nearly everywhere."""
    def __init__(self):
        super().__init__()
        self.linear = linear()

    def forward(self, images):
        return self.linear((images * 40).round() / 40)


class Mirrored(nn.Module):
    """Swaps black and white, or does not."""
    def __init__(self, mirrored):
        super().__init__()
        self.mirrored = mirrored

    def forward(self, images):
        return 1 - images if self.mirrored else images
