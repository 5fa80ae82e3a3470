#!/usr/bin/env python3
"""Validate a timm model, clean and under attack. See `validate.py --help`."""
from timm_advprop.validate import main

if __name__ == '__main__':
    main()
