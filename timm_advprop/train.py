"""`python -m timm_advprop.train`, see `cli.train`."""
from .cli.train import main

__all__ = ['main']

if __name__ == '__main__':
    main()
