"""Pictures as bytes and as arrays: uint8 [H, W, 3] RGB throughout."""

import os

import numpy as np
import simplejpeg
from PIL import Image, ImageOps


class ImageError(Exception):
  """A picture that cannot be read; the message names the reason."""


def encode_jpeg(rgb: np.ndarray, quality: int = 95) -> bytes:
  """Encodes uint8 [H, W, 3] RGB as a JPEG with full-resolution colour."""
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(rgb), quality, 'RGB', '444'
  )


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


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
  """Reads a picture file as uint8 [H, W, 3] RGB, the right way up.

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
    raise ImageError(f'{path} cannot be read: {error}') from error


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
