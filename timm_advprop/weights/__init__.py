"""Weights in files: checkpoints, published weights on the Hub or in a folder, and what does not fit a model."""
from .checkpoints import (
    Checkpoint,
    allow_numpy_scalars,
    load_checkpoint,
    load_read_checkpoint,
    open_checkpoint,
    read_checkpoint,
    weights_digest,
)
from .misfits import explain_misfit, refuse_misfits
from .model_arguments import check_model_arguments
from .publication import (
    AUX_FILE,
    CONFIG_FILE,
    CONFIG_KEY,
    OF_SPLIT_MODELS,
    WEIGHTS_FILE,
    Publication,
    file_digest,
    open_publication,
    read_config,
)
from .soundness import check_kinds

__all__ = [
    'AUX_FILE', 'CONFIG_FILE', 'CONFIG_KEY', 'Checkpoint', 'OF_SPLIT_MODELS', 'Publication', 'WEIGHTS_FILE',
    'allow_numpy_scalars', 'check_kinds', 'check_model_arguments', 'explain_misfit', 'file_digest', 'load_checkpoint',
    'load_read_checkpoint', 'open_checkpoint', 'open_publication', 'read_checkpoint', 'read_config', 'refuse_misfits',
    'weights_digest',
]
