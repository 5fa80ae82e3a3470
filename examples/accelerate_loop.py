"""AdvProp with Hugging Face Accelerate: prepare the task, not the model, and call it. Needs `pip install accelerate`.

    python examples/accelerate_loop.py
    torchrun --nproc_per_node 2 examples/accelerate_loop.py    # DDP; on GPUs `accelerate launch` does it, too
"""
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import digit_loaders

import timm_advprop


def main(epochs=1):
    """Train a small network; several processes share the batches."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(0)
    model = timm.create_model('test_resnet_ap', num_classes=10)
    train, test = digit_loaders(model)
    task = timm_advprop.AdvPropTask(model, sources=timm_advprop.Attack(eps_px=4, steps=1), verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    # DDP wraps the whole task then: one forward pass of it is one of the model, the attack stays inside
    task, optimizer, train = accelerator.prepare(task, optimizer, train)
    for epoch in range(epochs):
        task.train()
        for images, target in train:
            loss = task(images, target)['loss']
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f'epoch {epoch}: loss {loss.item():.3f}')
    results = timm_advprop.evaluate(model, test)
    accelerator.print(f'top-1 {results["top1"]:.1f} % after training in {accelerator.num_processes} process(es)')
    accelerator.end_training()
    return results


if __name__ == '__main__':
    main()
