"""Reading, writing and resizing pictures."""

import os

import numpy as np
import pytest
from PIL import Image

from xfactor.data import images

GOLDEN = os.path.join(os.path.dirname(__file__), '..', 'golden')


def smooth(height, width):
  """A picture that survives JPEG and resizing almost unchanged."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(y / 9 + i) * np.cos(x / 11 - i) for i in range(3)]
  return (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def assert_close(actual, expected, tolerance):
  assert actual.dtype == np.uint8
  assert actual.shape == expected.shape
  difference = np.abs(actual.astype(int) - expected.astype(int))
  assert difference.max() <= tolerance


def test_jpeg_round_trip():
  rgb = smooth(48, 64)
  assert_close(images.decode_jpeg(images.encode_jpeg(rgb)), rgb, 6)
  # A view with strides of its own, as a crop is.
  half = rgb[::2, ::-2]
  assert_close(images.decode_jpeg(images.encode_jpeg(half, 99)), half, 4)


def test_grey_jpeg_becomes_rgb(tmp_path):
  grey = smooth(40, 40)[..., 0]
  Image.fromarray(grey).save(tmp_path / 'a.jpg', quality=97)
  decoded = images.decode_jpeg((tmp_path / 'a.jpg').read_bytes())
  assert_close(decoded, np.repeat(grey[..., None], 3, -1), 4)


@pytest.mark.parametrize('keep', [0, 10, 200, 0.5, -2])
def test_truncated_jpeg_is_an_error(keep):
  data = images.encode_jpeg(smooth(64, 64))
  end = int(len(data) * keep) if isinstance(keep, float) else keep
  with pytest.raises(images.ImageError, match='JPEG'):
    images.decode_jpeg(data[:end])


def test_damaged_jpeg_is_an_error():
  data = bytearray(images.encode_jpeg(smooth(64, 64)))
  data[len(data) // 2 : len(data) // 2 + 2] = b'\xff\xd9'
  with pytest.raises(images.ImageError):
    images.decode_jpeg(bytes(data))


def test_reference_crop_matches_the_public_code():
  with np.load(os.path.join(GOLDEN, 'xf_crop.npz')) as arrays:
    golden = dict(arrays)
  outputs = [name for name in golden if name.startswith('out/')]
  assert len(outputs) == 10
  for name in outputs:
    picture, size = name.removeprefix('out/').split('_to')
    # "_pil" marks the same picture passed in as a Pillow image.
    source = golden['in/' + picture.removesuffix('_pil')]
    result = images.reference_crop_resize(source, int(size))
    np.testing.assert_array_equal(result, golden[name], err_msg=name)


def test_crop_keeps_the_centre():
  wide = np.zeros((30, 50, 3), np.uint8)
  wide[:, 10:40] = smooth(30, 30)
  for crop in (images.centre_crop_resize, images.reference_crop_resize):
    np.testing.assert_array_equal(crop(wide, 30), smooth(30, 30))
    tall = crop(wide.swapaxes(0, 1), 30)
    np.testing.assert_array_equal(tall, smooth(30, 30).swapaxes(0, 1))


def test_resize_is_antialiased():
  stripes = np.zeros((256, 300, 3), np.uint8)
  stripes[:, ::2] = 255
  result = images.centre_crop_resize(stripes, 32)
  assert np.abs(result.astype(int) - 127).max() < 8
  aliased = images.reference_crop_resize(stripes, 32)
  assert aliased.astype(int).std() > 60


@pytest.mark.parametrize('size', [16, 90])
def test_resize_keeps_the_picture_in_place(size):
  y, x = np.mgrid[:64, :64]
  ramp = np.stack([4 * x, 4 * y, 252 - 4 * x], -1).astype(np.uint8)
  at = ((np.arange(size) + 0.5) * 64 / size - 0.5) * 4
  result = images.centre_crop_resize(ramp, size)[:, :, 0]
  inner = slice(size // 8, -size // 8)
  expected = np.broadcast_to(at[inner], (size, len(at[inner])))
  assert_close(result[:, inner], expected.astype(np.uint8), 3)


def test_reads_every_common_mode(tmp_path):
  rgb = smooth(24, 32)
  grey = rgb[..., 0]
  as_grey = np.repeat(grey[..., None], 3, -1)
  alpha = np.full((24, 32), 255, np.uint8)
  alpha[:12] = 0
  on_white = rgb.copy()
  on_white[:12] = 255
  palette = Image.fromarray(rgb).quantize(16)
  cases = {
    'rgb': (Image.fromarray(rgb), rgb),
    'grey': (Image.fromarray(grey), as_grey),
    'rgba': (Image.fromarray(np.dstack([rgb, alpha])), on_white),
    'sixteen': (Image.fromarray(grey.astype(np.uint16) * 257), as_grey),
    'palette': (palette, np.asarray(palette.convert('RGB'))),
  }
  for name, (picture, expected) in cases.items():
    path = tmp_path / f'{name}.png'
    picture.save(path)
    np.testing.assert_array_equal(images.read_image(path), expected, name)
  Image.fromarray(rgb).convert('CMYK').save(tmp_path / 'c.jpg', quality=97)
  assert_close(images.read_image(tmp_path / 'c.jpg'), rgb, 12)


def test_honours_exif_orientation(tmp_path):
  rgb = smooth(24, 32)
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn a quarter clockwise to see it upright.
  Image.fromarray(rgb).save(tmp_path / 'a.jpg', quality=97, exif=exif)
  assert_close(images.read_image(tmp_path / 'a.jpg'), np.rot90(rgb, -1), 12)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_truncated_file_is_an_error(tmp_path, suffix):
  path = tmp_path / f'a.{suffix}'
  Image.fromarray(smooth(64, 64)).save(path)
  data = path.read_bytes()
  for keep in (0, 30, len(data) // 2):
    path.write_bytes(data[:keep])
    with pytest.raises(images.ImageError, match=path.name):
      images.read_image(path)


def test_what_is_no_picture_is_an_error(tmp_path):
  (tmp_path / 'a.png').write_text('hello')
  for name in ('a.png', 'missing.png'):
    with pytest.raises(images.ImageError, match=name):
      images.read_image(tmp_path / name)
