"""The *_ap models for torch.hub: `torch.hub.load('owner/repository', 'efficientnet_b3_ap', pretrained=True)`."""
from timm.models import model_entrypoint as _model_entrypoint

from timm_advprop.models import split_models as _split_models

dependencies = ['torch', 'torchvision', 'timm', 'safetensors', 'huggingface_hub', 'yaml', 'tqdm']

globals().update({name: _model_entrypoint(name) for name in _split_models()})
