"""Pictures as bytes and as arrays: uint8 [H, W, 3] RGB throughout."""

import io
import os
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

_JPEG, _PNG = b'\xff\xd8', b'\x89PNG'
# A JPEG is decoded at the scale that leaves so many times the wanted pixels:
# twice as fast for 720p to 256, within half a grey level of the full decoding.
_MARGIN = 1.25
_EXIF_ORIENTATION = 0x0112


class ImageError(Exception):
  """A picture that cannot be read; the message names the reason."""


def encode_jpeg(rgb: np.ndarray, quality: int = 95) -> bytes:
  """Encodes uint8 [H, W, 3] RGB as a JPEG with full-resolution colour."""
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(rgb), quality, 'RGB', '444'
  )


def encode_png(rgb: np.ndarray) -> bytes:
  """Encodes uint8 [H, W, 3] RGB as a PNG, without loss."""
  out = io.BytesIO()
  Image.fromarray(rgb).save(out, 'PNG')
  return out.getvalue()


def header(data: bytes) -> tuple[int, int]:
  """Returns (height, width) of an encoded frame, a JPEG or a PNG.

  Raises:
    ImageError: If the data is neither.
  """
  try:
    if data.startswith(_JPEG):
      return simplejpeg.decode_jpeg_header(data)[:2]
    with Image.open(io.BytesIO(data), formats=('PNG',)) as image:
      return image.height, image.width
  except (ValueError, OSError) as error:
    raise ImageError(
      f'{len(data)} bytes are no JPEG or PNG: {error}'
    ) from error


def decode(data: bytes) -> np.ndarray:
  """Decodes a frame of a data set, a JPEG or a PNG, to uint8 [H, W, 3] RGB.

  Raises:
    ImageError: If the data is neither, is cut short or damaged.
  """
  if data.startswith(_PNG):
    return read_image(io.BytesIO(data))
  return decode_jpeg(data)


def decode_jpeg(data: bytes) -> np.ndarray:
  """Decodes a JPEG, grey ones too, to uint8 [H, W, 3] RGB.

  Raises:
    ImageError: If the data is not a JPEG, is cut short or damaged.
  """
  try:
    # Strict, or else a picture cut in half comes back half grey.
    return simplejpeg.decode_jpeg(data, 'RGB', strict=True)
  except ValueError as error:
    raise ImageError(f'{len(data)} bytes are no good JPEG: {error}') from error


def read_image(path: str | os.PathLike[str] | io.BytesIO) -> np.ndarray:
  """Reads a picture, file or bytes, as uint8 [H, W, 3] RGB, the right way up.

  Honours the orientation that cameras note in EXIF; shows what is transparent
  as white; keeps the upper 8 of 16 bits; converts grey, palette and CMYK.

  Raises:
    ImageError: If there is no such file, or it is no picture or cut short.
  """
  try:
    with Image.open(path) as image:
      image.load()
      return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
  except (
    *(OSError, SyntaxError, ValueError, EOFError),
    Image.DecompressionBombError,
  ) as error:
    name = 'the picture' if isinstance(path, io.BytesIO) else path
    raise ImageError(f'{name} cannot be read: {error}') from error


class Fitted(NamedTuple):
  """A frame ready for the records.

  Attributes:
    data: A JPEG or PNG.
    height: Pixels of it.
    width: Pixels of it.
    source_height: Pixels of the picture that it was made from, upright.
    source_width: Pixels of the picture that it was made from, upright.
  """

  data: bytes
  height: int
  width: int
  source_height: int
  source_width: int


def fit(data: bytes, size: int | None, quality: int = 95) -> Fitted:
  """Turns an encoded picture of any kind into a frame for the records.

  With a size, the central square of the picture at `size` pixels as a JPEG; a
  JPEG that is so already is copied. Without, the whole picture: JPEGs and 8-bit
  RGB PNGs are copied, others become PNGs, so that nothing is lost.

  Args:
    data: JPEG, PNG or whatever Pillow reads; upright or turned by EXIF.
    size: Width and height of the result, or None.
    quality: Of a JPEG that is made.

  Raises:
    ImageError: If the data is no picture, is cut short or damaged.
  """
  if plain := _plain_jpeg(data):
    height, width = plain
    if size is None or (height, width) == (size, size):
      decode_jpeg(data)  # Damaged ones must not get into the records.
      return Fitted(data, height, width, height, width)
    least = int(_MARGIN * size)
    try:
      rgb = simplejpeg.decode_jpeg(
        data, 'RGB', min_height=least, min_width=least
      )
    except ValueError as error:
      raise ImageError(f'no good JPEG: {error}') from error
  else:
    rgb = read_image(io.BytesIO(data))
    height, width = rgb.shape[:2]
  if size is not None:
    square = centre_crop_resize(rgb, size)
    return Fitted(encode_jpeg(square, quality), size, size, height, width)
  if not (data.startswith(_PNG) and _mode(data) == 'RGB'):
    data = encode_png(rgb)
  return Fitted(data, height, width, height, width)


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
  """Returns (height, width) of an upright JPEG in RGB or grey, else None."""
  if not data.startswith(_JPEG):
    return None
  try:
    with Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
      # Pillow reads no more than the header here.
      turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
      if turned or image.mode not in ('RGB', 'L'):
        return None
      return image.height, image.width
  except (OSError, SyntaxError, ValueError):
    return None


def _mode(png: bytes) -> str:
  with Image.open(io.BytesIO(png)) as image:
    return image.mode if not image.getexif() else 'turned'


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I'):
    # Pillow would clip 16-bit grey at 255.
    high = np.asarray(image).astype(np.int64) >> 8
    return Image.fromarray(high.astype(np.uint8)).convert('RGB')
  if image.has_transparency_data:
    rgba = image.convert('RGBA')
    white = Image.new('RGBA', rgba.size, 'white')
    return Image.alpha_composite(white, rgba).convert('RGB')
  return image.convert('RGB')


def _centre_crop(image: np.ndarray) -> np.ndarray:
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return image[top : top + side, left : left + side]


def centre_crop_resize(image: np.ndarray, size: int) -> np.ndarray:
  """Returns the central square of a picture, antialiased, at `size` pixels.

  Args:
    image: uint8 [H, W, 3].
    size: Width and height of the result.

  Returns:
    uint8 [size, size, 3]; the pixels of `image` themselves where its central
    square has that size already.
  """
  crop = _centre_crop(image)
  if crop.shape[0] == size:
    return crop
  picture = Image.fromarray(np.ascontiguousarray(crop)).resize(
    # Whole-number reduction first: several times faster, not visibly worse.
    (size, size),
    Image.Resampling.LANCZOS,
    reducing_gap=3.0,
  )
  return np.asarray(picture)


def reference_crop_resize(image: np.ndarray, size: int) -> np.ndarray:
  """`center_crop_resize` of XFactor's public code, bit for bit.

  Bilinear between corner-aligned positions without antialiasing, and truncated
  instead of rounded: it aliases and darkens by half a level. For comparisons
  with the public code only.

  Args:
    image: uint8 [H, W, 3].
    size: Width and height of the result.

  Returns:
    uint8 [size, size, 3].
  """
  crop = _centre_crop(image)
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
