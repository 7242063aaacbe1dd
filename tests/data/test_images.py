"""Reading, writing and resizing pictures."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms, ImageOps, features

from xfactor.data import images

GOLDEN = os.path.join(os.path.dirname(__file__), '..', 'golden')


def reference_crop_resize(image: np.ndarray, size: int) -> np.ndarray:
  """Reproduces `center_crop_resize` of XFactor's public code bit for bit.

  Bilinear between corner-aligned positions without antialiasing, and truncated
  instead of rounded: it aliases and darkens by half a level. For comparisons
  with the public code only.

  Args:
    image: uint8 [H, W, 3].
    size: Width and height of the result.

  Returns:
    uint8 [size, size, 3].
  """
  crop = images._centre_crop(image)
  side = crop.shape[0]
  if side == size:
    return crop
  at = np.linspace(0, side - 1, size)
  low = np.floor(at).astype(int).clip(0, max(side - 2, 0))
  high = np.minimum(low + 1, side - 1)
  weight = at - low
  x, y = weight[:, None], weight[:, None, None]
  rows = crop.astype(np.float64)
  columns = rows[:, low] * (1 - x) + rows[:, high] * x
  return (columns[low] * (1 - y) + columns[high] * y).astype(np.uint8)


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
    result = reference_crop_resize(source, int(size))
    np.testing.assert_array_equal(result, golden[name], err_msg=name)


def test_crop_keeps_the_centre():
  wide = np.zeros((30, 50, 3), np.uint8)
  wide[:, 10:40] = smooth(30, 30)
  for crop in (images.centre_crop_resize, reference_crop_resize):
    np.testing.assert_array_equal(crop(wide, 30), smooth(30, 30))
    tall = crop(wide.swapaxes(0, 1), 30)
    np.testing.assert_array_equal(tall, smooth(30, 30).swapaxes(0, 1))


@pytest.mark.parametrize('shape', [(30, 50), (50, 30), (37, 37), (24, 25)])
@pytest.mark.parametrize('size', [16, 24, 30, 64])
def test_squares_are_what_they_were(shape, size):
  """Recipes and converted data depend on every bit."""
  rgb = smooth(*shape)
  side = min(shape)
  top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
  square = Image.fromarray(rgb[top : top + side, left : left + side])
  want = square.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
  for got in (
    images.centre_crop_resize(rgb, size),
    images.centre_crop_resize(rgb, size, size),
  ):
    np.testing.assert_array_equal(got, np.asarray(want))


@pytest.mark.parametrize(
  ('shape', 'target'),
  [((40, 90), (20, 30)), ((90, 42), (20, 30)), ((90, 40), (60, 20))],
)
def test_rectangles_are_central_and_undistorted(shape, target):
  """The margins are dark; what is left has the wanted aspect ratio."""
  rows = min(shape[0], shape[1] * target[0] // target[1])
  columns = min(shape[1], shape[0] * target[1] // target[0])
  top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
  rgb = np.zeros((*shape, 3), np.uint8)
  part = smooth(rows, columns)
  rgb[top : top + rows, left : left + columns] = part
  np.testing.assert_array_equal(
    images.centre_crop_resize(rgb, rows, columns), part
  )
  want = Image.fromarray(part).resize(target[::-1], Image.Resampling.LANCZOS)
  assert_close(images.centre_crop_resize(rgb, *target), np.asarray(want), 2)


def test_resize_is_antialiased():
  stripes = np.zeros((256, 300, 3), np.uint8)
  stripes[:, ::2] = 255
  result = images.centre_crop_resize(stripes, 32)
  assert np.abs(result.astype(int) - 127).max() < 8
  aliased = reference_crop_resize(stripes, 32)
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


@pytest.mark.parametrize('orientation', range(1, 9))
def test_honours_exif_orientation(orientation):
  file, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(smooth(24, 32)).save(file, 'PNG', exif=exif)
  with Image.open(file) as image:
    expected = np.asarray(ImageOps.exif_transpose(image))
  np.testing.assert_array_equal(images.read_image(file), expected)


# Columns are red, green and blue in XYZ under D50, as ICC profiles have them.
SRGB = [
  [0.4360747, 0.3850649, 0.1430804],
  [0.2225045, 0.7168786, 0.0606169],
  [0.0139322, 0.0971045, 0.7141733],
]
DISPLAY_P3 = [
  [0.51512, 0.29198, 0.15710],
  [0.24120, 0.69225, 0.06657],
  [-0.00105, 0.04189, 0.78407],
]
ADOBE_RGB = [
  [0.60974, 0.20528, 0.14919],
  [0.31111, 0.62567, 0.06322],
  [0.01947, 0.06087, 0.74457],
]


def icc(primaries, gamma):
  """A minimal ICC profile; sRGB's curve where gamma is None."""

  def fixed(*values):
    return struct.pack(f'>{len(values)}i', *(round(x * 65536) for x in values))

  if gamma is None:
    curve = b'para' + bytes(4) + struct.pack('>HH', 3, 0)
    curve += fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
  else:
    curve = b'curv' + bytes(4) + struct.pack('>IH', 1, round(gamma * 256))
    curve += bytes(2)
  white = (0.9642, 1.0, 0.8249)
  points = dict(zip('rgb', np.transpose(primaries).tolist(), strict=True))
  tags = {b'wtpt': b'XYZ ' + bytes(4) + fixed(*white)}
  for name, point in points.items():
    tags[f'{name}XYZ'.encode()] = b'XYZ ' + bytes(4) + fixed(*point)
    tags[f'{name}TRC'.encode()] = curve
  offset = 128 + 4 + 12 * len(tags)
  table, body = struct.pack('>I', len(tags)), b''
  for name, data in tags.items():
    table += name + struct.pack('>II', offset + len(body), len(data))
    body += data
  header = struct.pack('>I4sI', offset + len(body), b'test', 0x04000000)
  header += b'mntrRGB XYZ ' + bytes(12) + b'acsp' + bytes(28) + fixed(*white)
  return header.ljust(128, b'\0') + table + body


def linear(x, gamma):
  curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  return curve if gamma is None else x**gamma


def as_srgb(rgb, primaries, gamma):
  """What a profile's numbers are in sRGB: the textbook's formulas."""
  light = linear(rgb / 255, gamma) @ np.transpose(primaries)
  light = (light @ np.linalg.inv(np.transpose(SRGB))).clip(0, 1)
  curve = np.where(
    light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
  )
  return np.round(255 * curve).astype(np.uint8)


@pytest.mark.parametrize(
  ('primaries', 'gamma'), [(DISPLAY_P3, None), (ADOBE_RGB, 563 / 256)]
)
def test_other_colour_spaces_become_srgb(tmp_path, primaries, gamma):
  rgb = smooth(64, 64)
  expected = as_srgb(rgb, primaries, gamma)
  assert np.abs(expected.astype(float) - rgb).mean() > 5
  for suffix in ('png', 'jpg'):
    path = tmp_path / f'a.{suffix}'
    Image.fromarray(rgb).save(
      path, icc_profile=icc(primaries, gamma), quality=99, subsampling=0
    )
    data = path.read_bytes()
    frames = [images.fit(data, size).data for size in (None, 64)]
    for frame in frames:  # No reader of records needs to know of profiles.
      with Image.open(io.BytesIO(frame)) as image:
        assert 'icc_profile' not in image.info
    read = [images.read_image(path), images.read_square(data, 64)]
    for picture in read + [images.decode(frame) for frame in frames]:
      # Single dark pixels of JPEGs are further off than most.
      error = np.abs(picture.astype(int) - expected)
      assert error.mean() < 1.5
  assert_close(images.read_image(tmp_path / 'a.png'), expected, 2)


@pytest.mark.parametrize(
  'profile',
  [
    icc(SRGB, None),
    ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),
    b'broken',
    ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB')).tobytes(),
  ],
)
@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_srgb_and_bad_profiles_change_nothing(tmp_path, suffix, profile):
  """Frames that show sRGB are copied, whichever its profile."""
  path = tmp_path / f'a.{suffix}'
  Image.fromarray(smooth(32, 32)).save(path, icc_profile=profile)
  with Image.open(path) as image:
    np.testing.assert_array_equal(images.read_image(path), np.asarray(image))
  assert images.fit(path.read_bytes(), None).data == path.read_bytes()


def png16(rgb):
  """A PNG of 16 bits a channel, which Pillow cannot write."""

  def chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

  height, width, channels = rgb.shape
  kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
  rows = rgb.astype('>u2').reshape(height, -1).view(np.uint8)
  rows = np.pad(rows, ((0, 0), (1, 0)))  # Each row's filter: none.
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, kind, 0, 0, 0))
    + chunk(b'IDAT', zlib.compress(rows.tobytes()))
    + chunk(b'IEND', b'')
  )


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_sixteen_bits(tmp_path, channels):
  """Of every kind of PNG, the upper eight; frames have no more."""
  rgb = smooth(24, 32)
  deep = rgb.astype(np.uint16) * 256 + 200
  opaque = np.full((24, 32, 1), 65535, np.uint16)
  deep = {
    1: deep[..., :1],
    2: np.dstack([deep[..., :1], opaque]),
    3: deep,
    4: np.dstack([deep, opaque]),
  }[channels]
  expected = rgb if channels > 2 else np.repeat(rgb[..., :1], 3, -1)
  data = png16(deep)
  (tmp_path / 'a.png').write_bytes(data)
  np.testing.assert_array_equal(images.read_image(tmp_path / 'a.png'), expected)
  frame = images.fit(data, None).data
  assert frame != data
  assert frame[24] == 8  # Bits.
  np.testing.assert_array_equal(images.decode(frame), expected)


@pytest.mark.parametrize('size', [16, 32, 64, 100, 150, 256, 300, 500])
@pytest.mark.parametrize('shape', [(360, 640), (480, 641), (483, 360)])
def test_square_of_a_jpeg_is_in_place(shape, size):
  """At whichever scale it is decoded: cameras depend on it."""
  rgb = smooth(*shape)
  jpeg = images.encode_jpeg(rgb, 97)
  want = images.centre_crop_resize(rgb, size).astype(int)
  inner = slice(size // 8, -size // 8)
  got = images.read_square(jpeg, size)
  error = np.abs(got - want)[inner, inner].mean()
  off = np.abs(np.roll(want, 1, 1) - want)[inner, inner].mean()
  assert error < 2
  assert error < 0.25 * off or size > min(shape)  # Of a pixel, that is.
  np.testing.assert_array_equal(
    images.decode(images.fit(jpeg, size).data),
    images.decode(images.encode_jpeg(got)),
  )


def test_squares_are_upright_and_whole():
  rgb = smooth(480, 640)
  out, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(rgb).save(out, 'JPEG', quality=97, exif=exif)
  expected = images.centre_crop_resize(np.rot90(rgb, -1), 64)
  assert_close(images.read_square(out.getvalue(), 64), expected, 12)
  jpeg = images.encode_jpeg(rgb, 97)
  for data in (jpeg[: len(jpeg) // 2], b'hello'):
    with pytest.raises(images.ImageError):
      images.read_square(data, 64)


@pytest.mark.parametrize('encode', [images.encode_jpeg, images.encode_png])
def test_decodes_into_a_given_array(encode):
  data = encode(smooth(24, 32))
  out = np.zeros((2, 24, 32, 3), np.uint8)
  images.decode(data, out[1])
  np.testing.assert_array_equal(out[1], images.decode(data))
  assert not out[0].any()
  for shape in ((24, 31, 3), (32, 24, 3), (24, 40, 3), (8, 8, 3)):
    with pytest.raises(images.ImageError):
      images.decode(data, np.zeros(shape, np.uint8))


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


def test_damaged_exif_beside_an_orientation():
  """A resolution of -1/0, which Pillow cannot write back."""
  rgb = smooth(48, 64)
  tiff = b'MM\0*' + struct.pack('>I', 8) + struct.pack('>H', 2)
  tiff += struct.pack('>HHIHH', 0x0112, 3, 1, 6, 0)
  tiff += struct.pack('>HHII', 0x011A, 10, 1, 38) + struct.pack('>I', 0)
  tiff += struct.pack('>ii', -1, 0)
  out = io.BytesIO()
  Image.fromarray(rgb).save(out, 'JPEG', quality=97, exif=b'Exif\0\0' + tiff)
  expected = images.centre_crop_resize(np.rot90(rgb, -1), 32)
  assert_close(images.read_square(out.getvalue(), 32), expected, 12)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_limit_of_the_size(suffix, tmp_path):
  data = images.encode_jpeg if suffix == 'jpg' else images.encode_png
  data = data(smooth(1000, 1100))
  assert images.read_square(data, 32, max_megapixels=2).shape == (32, 32, 3)
  for read in (images.read_square, images.fit):
    with pytest.raises(
      images.ImageError, match='1100 x 1000 .*max_megapixels=1; raise that'
    ):
      read(data, 32, max_megapixels=1)


def test_pictures_above_the_limit_of_pillow():
  """The size of a large phone's; only the header is of it."""
  data = bytearray(images.encode_jpeg(smooth(16, 16)))
  at = data.index(b'\xff\xc0') + 5
  data[at : at + 4] = struct.pack('>HH', 12240, 16320)
  assert images.stored_form(io.BytesIO(data)) == (12240, 16320, 1)


@pytest.mark.parametrize('before', [b'\xff\xda', b'\xff\xd9'])
def test_stray_bytes_between_markers(before):
  whole = images.encode_jpeg(smooth(96, 96))
  at = whole.rindex(before)
  data = whole[:at] + b'\x01\x02\x03' + whole[at:]
  with pytest.raises(ValueError, match='extraneous'):
    simplejpeg.decode_jpeg(data, strict=True)
  assert_close(images.decode_jpeg(data), images.decode_jpeg(whole), 1)
  out = np.zeros((96, 96, 3), np.uint8)
  images.decode_jpeg(data, out)
  assert_close(out, smooth(96, 96), 6)
  want = images.read_square(whole, 32)
  assert_close(images.read_square(data, 32), want, 8)
  # Half a picture stays damaged.
  with pytest.raises(images.ImageError):
    images.decode_jpeg(data[: at // 2])


@pytest.mark.skipif(not features.check('avif'), reason='Pillow without AVIF')
def test_avif():
  out = io.BytesIO()
  Image.fromarray(smooth(64, 96)).save(out, 'AVIF', quality=95)
  assert_close(
    images.read_square(out.getvalue(), 64), smooth(64, 96)[:, 16:80], 8
  )


def test_heic_is_read_upright(tmp_path):
  heif = pytest.importorskip('pillow_heif')
  rgb = smooth(64, 96)
  exif = Image.Exif()
  exif[0x0112] = 6
  picture = heif.from_pillow(Image.fromarray(rgb))
  picture.save(tmp_path / 'a.heic', quality=95, exif=exif.tobytes())
  data = io.BytesIO((tmp_path / 'a.heic').read_bytes())
  for file in (tmp_path / 'a.heic', data):
    assert_close(images.read_image(file), np.rot90(rgb, -1), 12)


def test_heic_without_a_reader(monkeypatch):
  monkeypatch.setattr(images, '_knows_heif', lambda: False)
  data = io.BytesIO(bytes([0, 0, 0, 24]) + b'ftypheic' + bytes(100))
  with pytest.raises(images.ImageError, match='heif'):
    images.read_image(data)
  assert images.readable(images.SUFFIXES) == ('.jpg', '.jpeg', '.png', '.avif')
