"""Pictures as bytes and as arrays: uint8 [H, W, 3] RGB throughout."""

import functools
import io
import os
from typing import NamedTuple

import numpy as np
import simplejpeg
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps

from xfactor.geometry import cameras

_JPEG, _PNG = b'\xff\xd8', b'\x89PNG'
# A JPEG is decoded at the scale that leaves so many times the wanted pixels:
# twice as fast for 720p to 256, about a grey level from the full decoding.
_MARGIN = 1.25
_EXIF_ORIENTATION = 0x0112
# Levels by which colours may be off for a profile to pass as sRGB: there are
# many, rounded and approximated in different ways.
_SAME_COLOUR = 3


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


def write_png(path: epath.Path, image: UInt8[np.ndarray, 'h w 3']) -> None:
  """Writes a picture, and its folder where it is missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encode_png(image))


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


def decode(data: bytes, out: np.ndarray | None = None) -> np.ndarray:
  """Decodes a frame of a data set, a JPEG or a PNG, to uint8 [H, W, 3] RGB.

  Args:
    data: The frame.
    out: Where to, contiguous uint8 [H, W, 3]; by default a new array.

  Raises:
    ImageError: If the data is neither, is cut short or damaged, or does not
      have the shape of `out`.
  """
  if not data.startswith(_PNG):
    return decode_jpeg(data, out)
  rgb = read_image(io.BytesIO(data))
  if out is None:
    return rgb
  _check_shape(rgb, out)
  out[:] = rgb
  return out


def decode_jpeg(data: bytes, out: np.ndarray | None = None) -> np.ndarray:
  """Decodes a JPEG, grey ones too, to uint8 [H, W, 3] RGB; see `decode`.

  Raises:
    ImageError: If the data is not a JPEG, is cut short or damaged, or does not
      have the shape of `out`.
  """
  try:
    # Strict, or else a picture cut in half comes back half grey.
    rgb = simplejpeg.decode_jpeg(data, 'RGB', strict=True, buffer=out)
  except ValueError as error:
    raise ImageError(f'{len(data)} bytes are no good JPEG: {error}') from error
  if out is not None:
    _check_shape(rgb, out)
  return rgb


def _check_shape(rgb: np.ndarray, out: np.ndarray) -> None:
  if rgb.shape != out.shape:
    raise ImageError(
      f'the picture has {rgb.shape[0]} x {rgb.shape[1]} pixels instead of '
      f'{out.shape[0]} x {out.shape[1]}'
    )


def read_image(path: str | os.PathLike[str] | io.BytesIO) -> np.ndarray:
  """Reads a picture, file or bytes, as uint8 [H, W, 3] RGB, the right way up.

  Honours the orientation that cameras note in EXIF; shows what is transparent
  as white; keeps the upper 8 of 16 bits; converts grey, palette and CMYK, and
  colours with an RGB profile (Display P3, Adobe RGB) to sRGB.

  Raises:
    ImageError: If there is no such file, or it is no picture or cut short.
  """
  try:
    with Image.open(path) as image:
      image.load()
      rgb = _to_rgb(ImageOps.exif_transpose(image))
      if to_srgb := _to_srgb(image.info.get('icc_profile', b'')):
        rgb = to_srgb.apply(rgb)
      return np.asarray(rgb)
  except (
    *(OSError, SyntaxError, ValueError, EOFError),
    Image.DecompressionBombError,
  ) as error:
    name = 'the picture' if isinstance(path, io.BytesIO) else path
    raise ImageError(f'{name} cannot be read: {error}') from error


def read_square(data: bytes, size: int) -> np.ndarray:
  """Returns `centre_crop_resize` of an encoded picture, read as `read_image`.

  Plain JPEGs are decoded at the least scale that leaves somewhat more than
  `size` pixels a side: several times faster, and hardly different.

  Args:
    data: The file's content.
    size: Width and height of the result.

  Raises:
    ImageError: If the data is no picture, is cut short or damaged.
  """
  if plain := _plain_jpeg(data):
    return _square_of_jpeg(data, *plain, size)
  return centre_crop_resize(read_image(io.BytesIO(data)), size)


def _square_of_jpeg(
  data: bytes, height: int, width: int, size: int
) -> np.ndarray:
  least = int(_MARGIN * size)
  try:
    rgb = simplejpeg.decode_jpeg(data, 'RGB', min_height=least, min_width=least)
  except ValueError as error:
    raise ImageError(f'no good JPEG: {error}') from error
  if rgb.shape[:2] == (height, width):
    return centre_crop_resize(rgb, size)
  # The square of the whole picture, or else cameras would not fit any more: at
  # this scale, which is in eighths, its edges may lie within pixels.
  scale = 8 * rgb.shape[0] // height / 8
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  box = tuple(scale * x for x in (left, top, left + side, top + side))
  square = Image.fromarray(rgb).resize(
    (size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0
  )
  return np.asarray(square)


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
    square = _square_of_jpeg(data, height, width, size)
  else:
    rgb = read_image(io.BytesIO(data))
    height, width = rgb.shape[:2]
    if size is None:
      data = data if _is_plain_png(data) else encode_png(rgb)
      return Fitted(data, height, width, height, width)
    square = centre_crop_resize(rgb, size)
  return Fitted(encode_jpeg(square, quality), size, size, height, width)


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
  """Returns (height, width) of an upright JPEG in sRGB or grey, else None."""
  if not data.startswith(_JPEG):
    return None
  try:
    with Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
      # Pillow reads no more than the header here.
      if image.mode not in ('RGB', 'L') or not _is_plain(image):
        return None
      return image.height, image.width
  except (OSError, SyntaxError, ValueError):
    return None


def _is_plain_png(data: bytes) -> bool:
  """Whether this is a PNG that shows sRGB of 8 bits as it is."""
  # The header's bit depth and colour type: Pillow hides 16 bits.
  if not (data.startswith(_PNG) and data[24:26] == b'\x08\x02'):
    return False
  with Image.open(io.BytesIO(data), formats=('PNG',)) as image:
    return _is_plain(image) and not image.has_transparency_data


def _is_plain(image: Image.Image) -> bool:
  """Whether a picture is upright and its colours need no conversion."""
  turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
  return not turned and not _to_srgb(image.info.get('icc_profile', b''))


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
  """Returns what turns RGB of an ICC profile into sRGB; None for nothing.

  That is: for no profile, sRGB itself, one that is damaged or not for RGB.
  """
  if not profile:
    return None
  try:
    transform = ImageCms.buildTransform(
      ImageCms.ImageCmsProfile(io.BytesIO(profile)),
      ImageCms.createProfile('sRGB'),
      'RGB',
      'RGB',
      ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
  except (ImageCms.PyCMSError, OSError):
    return None
  levels = np.arange(0, 256, 51, np.uint8)
  colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
  changed = np.asarray(transform.apply(Image.fromarray(colours)))
  off = np.abs(changed.astype(int) - colours).max()
  return transform if off > _SAME_COLOUR else None


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


def _centre_crop(
  image: np.ndarray, shape: tuple[int, int] = (1, 1)
) -> np.ndarray:
  top, left, rows, columns = cameras.centre_crop(*image.shape[:2], shape)
  return image[top : top + rows, left : left + columns]


def centre_crop_resize(
  image: np.ndarray, height: int, width: int | None = None
) -> np.ndarray:
  """Returns a picture's central part, antialiased, at a given size.

  That is all of it that has the aspect ratio wanted, `cameras.centre_crop`.

  Args:
    image: uint8 [H, W, 3].
    height: Pixels of the result.
    width: Pixels of the result; `height` by default.

  Returns:
    uint8 [height, width, 3]; the pixels of `image` themselves where its central
    part has that size already.
  """
  shape = height, height if width is None else width
  crop = _centre_crop(image, shape)
  if crop.shape[:2] == shape:
    return crop
  picture = Image.fromarray(np.ascontiguousarray(crop)).resize(
    # Whole-number reduction first: several times faster, not visibly worse.
    shape[::-1],
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
