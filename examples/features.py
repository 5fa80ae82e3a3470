"""Features of a split model: maps of several stages, and those before the classifier, through a chosen route.

    python examples/features.py
"""
import timm
import torch

import timm_advprop


def main():
    """Print the shapes of features; each route has its own."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 160, 160)
    backbone = timm.create_model('test_efficientnet_ap', features_only=True, out_indices=(1, 2, 3)).eval()
    print('features_only:', [tuple(maps.shape) for maps in backbone(images)])

    model = timm.create_model('test_efficientnet_ap')  # pretrained=True where there are weights
    timm_advprop.AdvPropTask(model, verbose=False)(images, torch.tensor([3, 8]))  # statistics of their own
    model.eval()
    features = {}
    with torch.inference_mode():
        for route in ('main', 'aux'):
            with timm_advprop.norm_route(model, route):
                maps = model.forward_features(images)                       # [N, C, H, W]
                features[route] = model.forward_head(maps, pre_logits=True)  # [N, C]
    print('forward_features:', tuple(maps.shape), 'pooled:', tuple(features['main'].shape))
    return backbone(images), features


if __name__ == '__main__':
    main()
