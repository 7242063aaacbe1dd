"""Encodes, decodes and crops pictures; arrays are uint8 [H, W, 3] RGB."""

import functools
import io
import os
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageCms, UnidentifiedImageError

from xfactor.geometry import cameras

# What phones write; Pillow itself reads only the last.
HEIF_SUFFIXES = ('.heic', '.heif')
HEIF_INSTALL = "pip install -e '.[heif]'"
SUFFIXES = ('.jpg', '.jpeg', '.png', *HEIF_SUFFIXES, '.avif')
_JPEG, _PNG = b'\xff\xd8', b'\x89PNG'
# What Pillow may open: other decoders run programs (EPS) or are rarely tested.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'AVIF')
# JPEGs are decoded at a reduced scale that leaves this many times the pixels of
# the result: twice as fast for 720p to 256, about one grey level off.
_MARGIN = 1.25
_EXIF_ORIENTATION = 0x0112
# Anticlockwise quarter turns that make a picture upright, by EXIF orientation;
# the mirrored ones are then flipped left to right.
TURNS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
MIRRORED = (2, 4, 5, 7)
# Pictures of the largest phones have 200 million pixels.
MAX_MEGAPIXELS = 256
# Pillow's limit is lower, and `_open` has its own.
Image.MAX_IMAGE_PIXELS = None
# Maximum difference in levels for a profile to count as sRGB: there are many
# rounded and approximated variants.
_SAME_COLOUR = 3


class ImageError(Exception):
  """Raised if a picture cannot be read; the message names the reason."""


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
  """Writes a picture as a PNG; creates its folder if needed."""
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
  except Exception as error:  # Decoders raise anything on damaged data.
    raise ImageError(
      f'{len(data)} bytes are not a JPEG or PNG: {error}'
    ) from error


def decode(data: bytes, out: np.ndarray | None = None) -> np.ndarray:
  """Decodes a frame of a data set, a JPEG or a PNG, to uint8 [H, W, 3] RGB.

  Args:
    data: The frame.
    out: Contiguous uint8 [H, W, 3] to decode into; by default a new array.

  Raises:
    ImageError: If the data is neither, is truncated or damaged, or does not
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
  """Decodes a colour or grey JPEG to uint8 [H, W, 3] RGB; see `decode`.

  Raises:
    ImageError: If the data is not a JPEG, is truncated or damaged, or does not
      have the shape of `out`.
  """
  try:
    _check_size(*simplejpeg.decode_jpeg_header(data)[:2])
    # Strict: otherwise a truncated picture is returned half grey.
    rgb = simplejpeg.decode_jpeg(data, 'RGB', strict=True, buffer=out)
  except ValueError as error:
    rgb = _despite_stray_bytes(data, error)
    if out is not None and rgb.shape == out.shape:
      out[:] = rgb
  if out is not None:
    _check_shape(rgb, out)
  return rgb


def _check_size(height: int, width: int) -> None:
  if height * width > MAX_MEGAPIXELS * 10**6:
    raise ImageError(
      f'a picture of {width} x {height} pixels is too large; make it smaller'
    )


def _despite_stray_bytes(data: bytes, error: ValueError) -> np.ndarray:
  """Decodes a JPEG that is whole but has bytes between its markers.

  Args:
    data: JPEG.
    error: What simplejpeg raised, which takes any warning for an error.

  Raises:
    ImageError: If the JPEG has another fault.
  """
  try:
    if 'extraneous bytes' in str(error):
      # A warning for Pillow, which raises if pixels are missing.
      with Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
        return np.asarray(image.convert('RGB'))
  except Exception as second:  # Decoders of damaged files raise anything.
    error = second
  raise ImageError(f'{len(data)} bytes are not a valid JPEG: {error}')


def _check_shape(rgb: np.ndarray, out: np.ndarray) -> None:
  if rgb.shape != out.shape:
    raise ImageError(
      f'the picture has {rgb.shape[0]} x {rgb.shape[1]} pixels instead of '
      f'{out.shape[0]} x {out.shape[1]}'
    )


def _open(
  file: str | os.PathLike[str] | io.BytesIO,
  max_megapixels: int,
  formats: tuple[str, ...] = _FORMATS,
) -> Image.Image:
  """Opens a picture; raises ImageError if it is too large."""
  try:
    image = Image.open(file, formats=formats)
  except UnidentifiedImageError:
    if formats != _FORMATS or not _is_heif(file):
      raise
    if not _knows_heif():
      raise ImageError(f'HEIC needs {HEIF_INSTALL}') from None
    if isinstance(file, io.BytesIO):
      file.seek(0)
    image = Image.open(file, formats=('HEIF',))
  if image.width * image.height > max_megapixels * 10**6:
    raise ImageError(
      f'it has {image.width} x {image.height} pixels, more than '
      f'max_megapixels={max_megapixels}; raise that'
    )
  return image


def _is_heif(file: str | os.PathLike[str] | io.BytesIO) -> bool:
  if isinstance(file, io.BytesIO):
    return file.getvalue()[4:8] == b'ftyp'
  with open(file, 'rb') as f:
    return f.read(8)[4:] == b'ftyp'


@functools.cache
def _knows_heif() -> bool:
  """Makes Pillow read HEIC; returns whether it does."""
  try:
    import pillow_heif
  except ImportError:
    return False
  pillow_heif.register_heif_opener()
  return True


def readable(suffixes: Iterable[str]) -> tuple[str, ...]:
  """Returns the suffixes whose pictures can be read with what is installed."""
  missing = () if _knows_heif() else HEIF_SUFFIXES
  return tuple(suffix for suffix in suffixes if suffix not in missing)


def stored_form(file: BinaryIO) -> tuple[int, int, int]:
  """Returns height, width and EXIF orientation of a picture as it is stored.

  The orientation is 1 for a picture that is upright, 2 to 8 for others.

  Raises:
    ImageError: If the file is not a picture.
  """
  try:
    with Image.open(file, formats=_FORMATS) as image:
      return image.height, image.width, _orientation(image)
  except Exception as error:  # As in `read_image`.
    raise ImageError(f'no picture: {error}') from error


def _orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation, 1 (upright) if there is none."""
  try:
    found = image.getexif().get(_EXIF_ORIENTATION, 1)
  except Exception:  # Damaged EXIF data raise anything.
    return 1
  return found if found in TURNS else 1


def read_image(
  path: str | os.PathLike[str] | io.BytesIO,
  max_megapixels: int = MAX_MEGAPIXELS,
  upright: bool = True,
) -> np.ndarray:
  """Reads a picture, file or bytes, as upright uint8 [H, W, 3] RGB.

  Applies the EXIF orientation; makes transparent areas white; keeps the upper 8
  of 16 bits; converts grey, palette and CMYK, and colours with an RGB profile
  (Display P3, Adobe RGB) to sRGB.

  Args:
    path: File, or its content.
    max_megapixels: Maximum size, millions of pixels.
    upright: Whether to apply the EXIF orientation.

  Raises:
    ImageError: If the file is missing, not a picture, truncated or too large.
  """
  try:
    with _open(path, max_megapixels) as image:
      image.load()
      rgb = _to_rgb(image)
      if to_srgb := _to_srgb(image.info.get('icc_profile', b'')):
        rgb = to_srgb.apply(rgb)
      rgb = np.asarray(rgb)
      # Not exif_transpose: it fails if any other entry is damaged.
      orientation = _orientation(image) if upright else 1
    rgb = np.rot90(rgb, TURNS[orientation])
    flip = -1 if orientation in MIRRORED else 1
    return np.ascontiguousarray(rgb[:, ::flip])
  except Exception as error:  # Decoders of damaged files raise anything.
    name = 'the picture' if isinstance(path, io.BytesIO) else path
    raise ImageError(f'{name} cannot be read: {error}') from error


def read_square(
  data: bytes, size: int, max_megapixels: int = MAX_MEGAPIXELS
) -> np.ndarray:
  """Reads a picture like `read_image` and applies `centre_crop_resize`.

  Plain JPEGs are decoded at the smallest scale that leaves somewhat more than
  `size` pixels per side: several times faster, with hardly any difference.

  Args:
    data: Content of the file.
    size: Width and height of the result.
    max_megapixels: Maximum size of the picture, millions of pixels.

  Raises:
    ImageError: If the data is not a picture, is truncated, damaged or too
      large.
  """
  if plain := _plain_jpeg(data, max_megapixels):
    return _square_of_jpeg(data, *plain, size)
  rgb = read_image(io.BytesIO(data), max_megapixels)
  return centre_crop_resize(rgb, size)


def _square_of_jpeg(
  data: bytes, height: int, width: int, size: int
) -> np.ndarray:
  least = int(_MARGIN * size)
  try:
    rgb = simplejpeg.decode_jpeg(data, 'RGB', min_height=least, min_width=least)
  except ValueError as error:
    rgb = _despite_stray_bytes(data, error)
  if rgb.shape[:2] == (height, width):
    return centre_crop_resize(rgb, size)
  # Crop exactly the square of the full picture, so that intrinsics stay valid:
  # at this scale, a multiple of 1/8, its edges may lie within pixels.
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
    height: Height in pixels.
    width: Width in pixels.
    source_height: Height in pixels of the original picture, turned as `data`.
    source_width: Width in pixels of the original picture, turned as `data`.
  """

  data: bytes
  height: int
  width: int
  source_height: int
  source_width: int


def fit(
  data: bytes,
  size: int | None,
  quality: int = 95,
  max_megapixels: int = MAX_MEGAPIXELS,
  upright: bool = True,
) -> Fitted:
  """Turns an encoded picture of any kind into a frame for the records.

  With a size, returns the central square at `size` pixels as a JPEG; a JPEG of
  that size is copied. Without, returns the whole picture: JPEGs and 8-bit RGB
  PNGs are copied, others are converted to PNG without loss.

  Args:
    data: JPEG, PNG or any format that Pillow reads, rotated by EXIF or not.
    size: Width and height of the result, or None.
    quality: JPEG quality of re-encoded pictures.
    max_megapixels: Maximum size of the picture, millions of pixels.
    upright: Whether to apply the EXIF orientation.

  Raises:
    ImageError: If the data is not a picture, is truncated, damaged or too
      large.
  """
  if plain := _plain_jpeg(data, max_megapixels):
    height, width = plain
    if size is None or (height, width) == (size, size):
      decode_jpeg(data)  # Damaged ones must not get into the records.
      return Fitted(data, height, width, height, width)
    square = _square_of_jpeg(data, height, width, size)
  else:
    rgb = read_image(io.BytesIO(data), max_megapixels, upright)
    height, width = rgb.shape[:2]
    if size is None:
      data = data if _is_plain_png(data) else encode_png(rgb)
      return Fitted(data, height, width, height, width)
    square = centre_crop_resize(rgb, size)
  return Fitted(encode_jpeg(square, quality), size, size, height, width)


def _plain_jpeg(data: bytes, max_megapixels: int) -> tuple[int, int] | None:
  """Returns (height, width) of an upright JPEG in sRGB or grey, else None."""
  if not data.startswith(_JPEG):
    return None
  try:
    with _open(io.BytesIO(data), max_megapixels, ('JPEG',)) as image:
      # Pillow reads only the header here.
      if image.mode not in ('RGB', 'L') or not _is_plain(image):
        return None
      return image.height, image.width
  except ImageError:
    raise
  except Exception:  # The reader of other pictures says what is wrong.
    return None


def _is_plain_png(data: bytes) -> bool:
  """Returns whether this is an opaque 8-bit sRGB PNG."""
  # Bit depth and colour type of the header: Pillow does not report 16 bits.
  if not (data.startswith(_PNG) and data[24:26] == b'\x08\x02'):
    return False
  with Image.open(io.BytesIO(data), formats=('PNG',)) as image:
    return _is_plain(image) and not image.has_transparency_data


def _is_plain(image: Image.Image) -> bool:
  """Returns whether a picture is upright and needs no colour conversion."""
  return _orientation(image) == 1 and not _to_srgb(
    image.info.get('icc_profile', b'')
  )


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
  """Returns the transform from an ICC profile's RGB to sRGB, or None.

  None means that the profile is missing, damaged, not for RGB, or sRGB itself.
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
  # Not copied: it may have hundreds of millions of pixels.
  return image if image.mode == 'RGB' else image.convert('RGB')


def _centre_crop(
  image: np.ndarray, shape: tuple[int, int] = (1, 1)
) -> np.ndarray:
  top, left, rows, columns = cameras.centre_crop(*image.shape[:2], shape)
  return image[top : top + rows, left : left + columns]


def centre_crop_resize(
  image: np.ndarray, height: int, width: int | None = None
) -> np.ndarray:
  """Crops a picture to the aspect ratio of a size and resizes it.

  The crop is `cameras.centre_crop`; resizing is antialiased.

  Args:
    image: uint8 [H, W, 3].
    height: Pixels of the result.
    width: Pixels of the result; `height` by default.

  Returns:
    uint8 [height, width, 3]; a view of `image` if its central part already has
    that size.
  """
  shape = height, height if width is None else width
  crop = _centre_crop(image, shape)
  if crop.shape[:2] == shape:
    return crop
  picture = Image.fromarray(np.ascontiguousarray(crop)).resize(
    # Integer reduction first: several times faster, not visibly worse.
    shape[::-1],
    Image.Resampling.LANCZOS,
    reducing_gap=3.0,
  )
  return np.asarray(picture)
