"""`python -m timm_advprop.data`: writes small real data sets, see `cli/data.py`."""
from .cli.data import main

if __name__ == '__main__':
    main()
