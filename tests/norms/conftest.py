"""Fixtures that the tests of norms share."""
import pytest

from tests.norms.norm_models import NETS


@pytest.fixture(params=NETS)
def plain(request, randomize_norms):
    """A plain model whose norms are not at their default initialisation."""
    return randomize_norms(NETS[request.param]())


@pytest.fixture
def resnet(randomize_norms):
    return randomize_norms(NETS['test_resnet']())
