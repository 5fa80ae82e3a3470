"""Routes as a command line names them."""
import pytest
import timm
import torch

from timm_advprop import has_split_norm, norm_route, strip_aux
from timm_advprop.engine.route_names import (
    canonical_route,
    is_blend,
    norm_route_of,
    plain_model_of,
    route_problem,
    route_share,
)


@pytest.mark.parametrize('route, canonical, share, of_norms', [
    ('main', 'main', 0, 'main'), ('clean', 'main', 0, 'main'), ('0', 'main', 0, 'main'), ('0.0', 'main', 0, 'main'),
    ('aux', 'aux', 1, 'aux'), ('1', 'aux', 1, 'aux'), ('1.00', 'aux', 1, 'aux'), ('2', '2', None, 2),
    ('0.3', '0.3', .3, 'main'), ('.30', '0.3', .3, 'main'), ('3e-1', '0.3', .3, 'main'),
    ('-0', 'main', 0, 'main'), ('00', 'main', 0, 'main'), ('01', 'aux', 1, 'aux'), ('02', '2', None, 2),
    ('aux2', '2', None, 2), ('aux10', '10', None, 10), ('aux1', 'aux', 1, 'aux'),
    ('0.12345678', '0.12345678', .12345678, 'main'),
])
def test_a_route_has_one_name(route, canonical, share, of_norms):
    assert route_problem(route) is None and canonical_route(route) == canonical_route(canonical) == canonical
    assert route_share(canonical) == share and norm_route_of(canonical) == of_norms
    assert is_blend(canonical) == (share not in (0, 1, None))


@pytest.mark.parametrize('route', ['1.5', '-0.2', 'nan', 'inf', '-1', 'split', '', '2.0', '0,3', 'aux0', 'aux0.3',
                                   'aux 2', 'xaux2', 'auxaux2'])
def test_what_is_no_route(route):
    assert 'a share of the first one such as 0.3' in route_problem(route)


def test_the_plain_model_of_a_route_says_what_the_route_says(randomize_norms):
    model = randomize_norms(timm.create_model('test_resnet_ap', num_aux=2, num_classes=4)).eval()
    images = torch.randn(2, 3, 32, 32)
    for route in ('main', 'aux', '2'):
        plain = plain_model_of(model, route)
        assert not has_split_norm(plain)
        with torch.no_grad(), norm_route(model, norm_route_of(route)):
            assert torch.equal(plain(images), model(images))
    with torch.no_grad():
        outputs = [plain_model_of(model, route)(images) for route in ('main', '0.5', 'aux')]
    assert not torch.equal(outputs[1], outputs[0]) and not torch.equal(outputs[1], outputs[2])
    with pytest.raises(ValueError, match='Route 3 needs 3 auxiliary norms, the model has 2'):
        plain_model_of(model, '3')


def test_a_plain_model_has_the_main_route_alone():
    plain = strip_aux(timm.create_model('test_resnet_ap', num_classes=4))
    assert plain_model_of(plain, 'main') is plain
    for route in ('aux', '0.3'):
        with pytest.raises(ValueError, match='no split norms'):
            plain_model_of(plain, route)
