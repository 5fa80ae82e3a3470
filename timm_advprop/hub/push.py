"""`push_to_hub`: one call, one commit, one repository for stock timm and for AdvProp."""
import os
import tempfile
from typing import Any, Mapping, Optional, Sequence, Union

import torch.nn as nn

from .layout import FILES, write_publication
from .release import open_release, release_model
from .upload import check_can_push, upload_folder

__all__ = ['push_to_hub']


def push_to_hub(
        model_or_checkpoint: Union[nn.Module, str, os.PathLike],
        repo_id: str,
        message: Optional[str] = None,
        revision: Optional[str] = None,
        private: Optional[bool] = None,
        token: Optional[str] = None,
        model: Optional[str] = None,
        model_kwargs: Optional[Mapping[str, Any]] = None,
        recipe: Optional[Mapping[str, Any]] = None,
        results: Sequence[Mapping[str, Any]] = (),
        dataset: Optional[str] = None,
        license: Optional[str] = None,
        images: bool = True,
) -> str:
    """Publish a model on the Hugging Face Hub, as one commit.

    `model.safetensors` and `config.json` are the plain model, for stock timm; `aux.safetensors` holds the auxiliary
    norms. A model card, and from a checkpoint of a training run its recipe and summary, come with them.

    Args:
        model_or_checkpoint: A timm model, with split norms or plain, or a checkpoint file. Of a checkpoint the averaged
            weights are published where there are any.
        repo_id: `user/name`. The repository is made where it is missing.
        message: Commit message.
        revision: Branch, which is made where it is missing; `main` by default.
        private: Make a new repository private.
        token: Hub token with write access; by default `HF_TOKEN` or the one of `hf auth login`.
        model: Model name, for a checkpoint file that does not say it.
        model_kwargs: Further arguments of the model, where neither the file nor timm remembers them.
        recipe: Arguments of the run, under the names of `args.yaml`; they replace or add to those in the checkpoint.
        results: Results of the validation program, which the card shows.
        dataset: Name of the data set on the card, by default that of the run.
        license: Licence, by default that of the weights the run began with, else `apache-2.0`.
        images: Put validation images on the card, where the run's data set is there.

    Returns:
        Address of the commit.

    Raises:
        InputError: It cannot be published. The repository is then as it was, or the message says otherwise.
    """
    check_can_push(repo_id, token)
    if isinstance(model_or_checkpoint, nn.Module):
        release = release_model(model_or_checkpoint, recipe, model_kwargs)
    else:
        release = open_release(model_or_checkpoint, model, model_kwargs, recipe)
    with tempfile.TemporaryDirectory() as folder:
        files = write_publication(release, folder, repo_id, results, dataset, license, images, token)
        return upload_folder(
            folder, files, repo_id, architecture=release.architecture,
            message=message or f'Publish {release.architecture}',
            stale=[name for name in (*FILES, 'pytorch_model.bin') if name not in files], revision=revision,
            private=private, token=token)
