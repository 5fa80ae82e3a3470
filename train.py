#!/usr/bin/env python3
"""Train a timm model, with AdvProp or without. See `train.py --help`."""
from timm_advprop.train import main

if __name__ == '__main__':
    main()
