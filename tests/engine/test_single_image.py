"""Single images: what can be read is read, all else is refused in one line."""
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from timm_advprop.engine.single_image import image_of, pixels_of, read_image
from timm_advprop.errors import InputError

CONFIG = dict(interpolation='bicubic', crop_pct=1., crop_mode='center', mean=(.5,) * 3, std=(.2,) * 3)


def config_of(*input_size):
    return dict(CONFIG, input_size=input_size)


def png_header(width, height):
    """A PNG that says how large it is, and has no pixels."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


@pytest.mark.parametrize('ending', ['png', 'jpg', 'webp', 'gif', 'bmp', 'tiff'])
def test_usual_formats_are_read(tmp_path, ending):
    image = Image.fromarray(np.full((8, 12, 3), 128, np.uint8))
    image.save(tmp_path / f'image.{ending}')
    read = read_image(str(tmp_path / f'image.{ending}'))
    assert read.size == (12, 8)
    assert abs(int(np.asarray(read.convert('RGB'))[3, 3, 0]) - 128) < 3


def test_a_photograph_is_upright(tmp_path):
    image, exif = Image.new('RGB', (12, 8)), Image.Exif()
    exif[274] = 6  # the camera was turned
    image.save(tmp_path / 'turned.jpg', exif=exif)
    assert read_image(str(tmp_path / 'turned.jpg')).size == (8, 12)


def write_bad(folder, kind):
    path = folder / 'x.png'
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8))
    if kind == 'cut short':
        noise.save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif isinstance(kind, tuple):
        path.write_bytes(png_header(*kind))
    elif kind == 'postscript':  # which Pillow would run a program for
        path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n')
    else:
        path.write_bytes({'text': b'hello', 'empty': b'', 'no pixels': png_header(64, 64)}[kind])
    return str(path)


@pytest.mark.parametrize('kind, said', [
    *((kind, 'x.png is not an image that can be read: give a whole file of one of BMP, GIF')
      for kind in ('text', 'empty', 'cut short', 'no pixels', 'postscript')),
    ((1, 1), 'x.png is too small, 1 × 1 pixels: give an image of at least 4 × 4.'),
    ((300, 3), 'x.png is too small, 300 × 3 pixels'),
    ((9000, 9000), 'x.png is too large: give an image of at most 50 million pixels.'),
    ((60000, 60000), 'x.png is too large'),  # which Pillow refuses itself
    ((5000, 100), 'x.png is too narrow, 5000 × 100 pixels: give an image whose longer side is at most 20 times'),
], ids=str)
def test_all_else_is_refused(tmp_path, kind, said):
    with pytest.raises(InputError) as error:
        read_image(write_bad(tmp_path, kind))
    assert str(error.value).startswith(said)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize('name, dtype', [('x.png', np.uint16), ('x.tif', np.uint16), ('x.tif', np.int32),
                                         ('x.tif', np.float32)], ids=str)
def test_an_image_of_more_bits_is_refused_before_it_turns_white(tmp_path, name, dtype):
    Image.fromarray(np.full((8, 8), 1000, dtype)).save(tmp_path / name)
    with pytest.raises(InputError, match=f'{name} has more than 8 bits a channel: save it with 8'):
        read_image(str(tmp_path / name))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match='nowhere.png is not an image'):
        read_image(str(tmp_path / 'nowhere.png'))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK'])
@pytest.mark.parametrize('channels', [1, 3])
def test_pixels_are_those_that_the_model_sees(mode, channels):
    pixels = pixels_of(Image.new('RGB', (20, 14), (255, 255, 255)).convert(mode), config_of(channels, 8, 10))
    assert pixels.shape == (channels, 8, 10)
    assert torch.equal(pixels, torch.ones_like(pixels))  # not normalised


@pytest.mark.parametrize('channels, mode', [(1, 'L'), (3, 'RGB')])
def test_pixels_become_an_image_and_the_same_pixels_again(channels, mode):
    pixels = torch.randint(256, (channels, 8, 8)) / 255
    image = image_of(pixels)
    assert image.mode == mode
    assert torch.equal(pixels_of(image, config_of(channels, 8, 8)), pixels)
    assert torch.equal(pixels_of(image_of(pixels * 3 - 1), config_of(channels, 8, 8)).amax(), torch.tensor(1.))
