"""AdvProp with Lightning: a module whose training step is the task. Needs `pip install lightning`.

    python examples/lightning_module.py
"""
import lightning
import timm
import torch
from digits import digit_loaders

import timm_advprop


class AdvPropModule(lightning.LightningModule):
    """Trains both routes of a model, and validates the main one, which is what will be used."""

    def __init__(self, model, attack):
        super().__init__()
        self.task = timm_advprop.AdvPropTask(model, sources=attack, verbose=False)

    def training_step(self, batch, batch_idx):
        result = self.task(*batch)
        self.log_dict({name: result[name] for name in ('clean_loss', 'adv_loss')}, prog_bar=True)
        return result['loss']

    def validation_step(self, batch, batch_idx):
        images, target = batch
        output = self.task.get_eval_model()(images)  # on its main norms, where a task leaves it
        self.log('top1', 100 * (output.argmax(dim=1) == target).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(epochs=1, folder=None):
    """Train a small network with Lightning's trainer."""
    lightning.seed_everything(0)
    model = timm.create_model('test_resnet_ap', num_classes=10)
    train, test = digit_loaders(model)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)
    trainer.fit(AdvPropModule(model, timm_advprop.Attack(eps_px=4, steps=1)), train, test)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
    return trainer.callback_metrics


if __name__ == '__main__':
    main()
