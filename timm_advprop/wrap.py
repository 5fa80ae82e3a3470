"""`python -m timm_advprop.wrap`, see `cli.wrap`."""
from .cli.wrap import main

__all__ = ['main']

if __name__ == '__main__':
    main()
