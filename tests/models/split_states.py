"""Comparisons of state dicts of split models."""
import re

import torch

from timm_advprop import split_state_dict

SMALL_VARIANTS = ['test_resnet_ap', 'test_efficientnet_ap', 'test_convnext_ap']


def equal_states(left, right):
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def aux_equals_main(model):
    main, aux = split_state_dict(model.state_dict())
    return bool(aux) and all(
        torch.equal(value, main[re.sub(r'aux_bn\.\d+\.', '', key)]) for key, value in aux.items())
