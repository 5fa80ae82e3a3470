"""AdvProp in a training loop of one's own: `AdvPropTask` makes the loss, everything else is plain PyTorch.

    python examples/own_loop.py
"""
import timm
import torch
from digits import digit_loaders

import timm_advprop


def train(epochs=3):
    """Train a small network on digits, and return it with a loader of test images."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet_ap', num_classes=10)
    loader, test = digit_loaders(model)
    task = timm_advprop.AdvPropTask(model, sources=timm_advprop.Attack(eps_px=4, steps=1), verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        model.train()
        for images, target in loader:
            result = task(images, target)
            optimizer.zero_grad()
            result['loss'].backward()
            optimizer.step()
        print(f'epoch {epoch}: clean loss {result["clean_loss"]:.3f}, adversarial loss {result["adv_loss"]:.3f}')
    return model.eval(), test


def main(epochs=3):
    """Train, and evaluate both routes, clean and under attack."""
    model, test = train(epochs)
    attack = timm_advprop.Attack(eps_px=8, alpha_px=2, steps=5, target='none')
    results = {route: timm_advprop.evaluate(model, test, route, attack) for route in ('main', 'aux')}
    for route, metrics in results.items():
        print(f'{route} norms: top-1 {metrics["top1"]:.1f} %, under attack {metrics["adv_top1"]:.1f} %')
    return results


if __name__ == '__main__':
    main()
