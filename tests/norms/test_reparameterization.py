"""Models whose convolutions can take their norms, which would lose the auxiliary ones."""
import io
import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn as nn
from timm.models.byobnet import RepVggBlock
from timm.models.levit import ConvNorm
from timm.models.repghost import RepGhostModule
from timm.utils import reparameterize_model

from timm_advprop.norms import blend_routes, convert_split_norm, strip_aux

PARTS = {
    'fuse': lambda: ConvNorm(3, 8, 3),
    'reparameterize': lambda: RepVggBlock(3, 8),
    'switch_to_deploy': lambda: RepGhostModule(3, 8),
}


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def unchanged(model):
    return model


@pytest.fixture(params=PARTS)
def plain(request, randomize_norms):
    return randomize_norms(nn.Sequential(nn.Sequential(PARTS[request.param]()), nn.ReLU())).eval()


@pytest.mark.parametrize('copy', [
    unchanged, deepcopy, saved_and_loaded, lambda model: pickle.loads(pickle.dumps(model)),
    lambda model: torch.compile(model, backend='eager')], ids=['as it is', 'deepcopy', 'save', 'pickle', 'compile'])
@pytest.mark.parametrize('inplace', [False, True])
def test_split_norms_refuse_to_be_folded_and_stay(copy, inplace, plain):
    keys, images = plain.state_dict().keys(), torch.randn(2, 3, 8, 8)
    split = convert_split_norm(plain)
    assert set(split.state_dict()) > set(keys)
    model, expected = copy(split), split(images)
    with pytest.raises(TypeError, match=r'would drop the auxiliary ones: .*strip_aux\(model\)'):
        reparameterize_model(model, inplace)
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize('plain_copy', [strip_aux, lambda model: blend_routes(model, 0)], ids=['strip', 'blend'])
def test_plain_copies_are_folded_as_plain_models(plain_copy, plain):
    expected, images = reparameterize_model(plain).state_dict(), torch.randn(2, 3, 8, 8)
    output = plain(images)
    folded = reparameterize_model(plain_copy(convert_split_norm(plain)))
    assert folded.state_dict().keys() == expected.keys() != plain.state_dict().keys()
    assert all(torch.equal(value, folded.state_dict()[key]) for key, value in expected.items())
    torch.testing.assert_close(folded(images), output, rtol=1e-4, atol=1e-4)


def test_a_model_that_refuses_is_scripted(plain):
    split, images = convert_split_norm(plain), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.jit.script(split)(images), split(images))


class _FusesMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.reparameterize = nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x):
        return self.fuse(self.norm(x), self.reparameterize(x))

    def fuse(self, left, right):
        return left + right


def test_other_things_of_such_names_are_left_alone():
    plain, images = _FusesMaps().eval(), torch.randn(2, 3, 8, 8)
    expected = plain(images)
    assert torch.equal(convert_split_norm(plain)(images), expected)
    part = nn.Sequential(ConvNorm(3, 8, 3))
    part[0].bn = nn.Identity()
    whole = convert_split_norm(nn.Sequential(part, nn.BatchNorm2d(8)))
    assert whole[0][0].fuse.__func__ is ConvNorm.fuse
