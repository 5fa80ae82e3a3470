"""`python -m timm_advprop.benchmark`: measures what AdvProp costs, see `cli/benchmark.py`."""
from .cli.benchmark import main

if __name__ == '__main__':
    main()
