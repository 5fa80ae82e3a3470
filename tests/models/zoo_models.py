"""The models of the zoo that tests try, and what they feed them."""
import pytest
import torch
from timm.models import get_pretrained_cfg, model_entrypoint

from timm_advprop.models import split_models

ZOO = split_models()

# The smallest model of each family is tried with values. The slow tier has the large ones among them, and all others.
SMALL = [name for name in (
    'test_byobnet', 'cpubone_nano', 'cs3darknet_focus_s', 'cspnext_tiny', 'test_convnext', 'deit_tiny_patch16_224',
    'densenet121', 'dla46x_c', 'dpn48b', 'efficientformerv2_s0', 'test_efficientnet',
    'efficientvim_m1', 'efficientvit_b0', 'efficientvit_m0', 'fasternet_t0', 'fastvit_t8', 'ghostnet_050',
    'hardcorenas_b', 'hgnetv2_b0', 'hrnet_w18_small', 'iformer_t', 'inception_next_atto', 'lcnetv2_small', 'levit_128s',
    'lowformer_b0', 'test_coatnet', 'mobilenetv3_small_050', 'mobilevit_xxs', 'regnetx_002', 'repghostnet_050',
    'repvit_m1', 'resnest14d', 'test_resnet', 'resnetv2_18', 'rexnet_100', 'legacy_seresnet18', 'shvit_s1',
    'skresnet18', 'starnet_s050', 'swiftformer_xs', 'tiny_vit_5m_224', 'visformer_tiny', 'test_vit',
    'vit_tiny_r_s16_p8_224', 'ese_vovnet19b_slim_dw',
    *([] if 'test_coatnet_ap' in ZOO else ['coatnet_nano_rw_224']),  # of an older timm
) if f'{name}_ap' in ZOO]
LARGE = [name for name in (
    'halonet_h1', 'convmixer_768_32', 'efficientformer_l1', 'inception_resnet_v2', 'inception_v3', 'inception_v4',
    'nasnetalarge', 'nextvit_small', 'pnasnet5large', 'res2next50', 'selecsls42', 'swin_tiny_patch4_window7_224',
    'tresnet_m', 'vgg11_bn', 'volo_d1_224', 'legacy_xception', 'xception41p', 'xcit_nano_12_p8_224',
) if f'{name}_ap' in ZOO]
SMALLEST = [f'{name}_ap' for name in SMALL] + [pytest.param(f'{name}_ap', marks=pytest.mark.slow) for name in LARGE]
# All of them are built; by default a third, with those above among them.
BUILT = [name if name.removesuffix('_ap') in (*SMALL, *LARGE) or place % 3 == 0 else
         pytest.param(name, marks=pytest.mark.slow) for place, name in enumerate(ZOO)]
OTHERS = sorted(set(ZOO) - {f'{name}_ap' for name in (*SMALL, *LARGE)})


def family_of(variant):
    return model_entrypoint(variant).__module__.rpartition('.')[2]


def make_images(variant, size=4):
    cfg = get_pretrained_cfg(variant)
    fixed = cfg.fixed_input_size or family_of(variant) == 'byoanet' or variant.startswith('bat_')
    return torch.randn(size, 3, *(cfg.input_size[1:] if fixed else (96, 96)))
