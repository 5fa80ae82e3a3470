"""What pyproject.toml cannot say: the recipes of hparams/ stand inside the package, as timm_advprop/hparams."""
from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['timm_advprop*']), 'timm_advprop.hparams'],
    package_dir={'timm_advprop.hparams': 'hparams'},
    package_data={'timm_advprop': ['py.typed'], 'timm_advprop.hparams': ['*.yaml']},
)
