"""ResNet with split norms. No AdvProp weights are published."""
from ._builder import register_split_models

__all__ = []

register_split_models(
    __name__,
    bases={
        f'{base}_ap': base
        for base in ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnet200', 'test_resnet')
    },
    weights={},
)
