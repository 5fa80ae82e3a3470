"""`python -m timm_advprop.app` and the page of a Space, see `cli.app`."""
from .cli.app import create_app, main

__all__ = ['create_app', 'main']

if __name__ == '__main__':
    main()
