"""Stock timm: what its versions differ in, and its reading of published folders."""
import shutil
from pathlib import Path

import timm

# What a model was created with, and what its saver kept: neither is remembered by timm before 1.0.31.
REMEMBERS = tuple(map(int, timm.__version__.split('.')[:3])) >= (1, 0, 31)


def read_folder(folder, **kwargs):
    """The plain model of a published folder, as stock timm loads it.

    Before 1.0.31 it stops at two files of weights in a folder: there it reads the plain ones alone.
    """
    if not REMEMBERS:
        others = shutil.ignore_patterns('aux.*', '*.tar', 'plain')
        folder = shutil.copytree(folder, Path(folder, 'plain'), ignore=others)
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs)
