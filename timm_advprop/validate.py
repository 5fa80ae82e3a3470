"""`python -m timm_advprop.validate`, see `cli.validate`."""
from .cli.validate import main

__all__ = ['main']

if __name__ == '__main__':
    main()
