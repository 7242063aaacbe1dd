"""Depth maps as 16-bit PNGs in thousandths of a scene unit."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_PER_UNIT = 1000


def decode_depth(data: bytes) -> np.ndarray:
  """Decodes z-depth as float64 [H, W] in scene units; 0 is unknown."""
  with Image.open(io.BytesIO(data), formats=('PNG',)) as file:
    return np.asarray(file).astype(np.float64) / _PER_UNIT


def encode_depth(depth: np.ndarray) -> bytes:
  """Encodes depth in metres [H, W] as a 16-bit grey PNG in millimetres.

  Several times faster than Pillow.
  """
  millimetres = np.clip(np.rint(depth * _PER_UNIT), 0, 65535).astype('>u2')
  height, width = millimetres.shape
  rows = millimetres.view(np.uint8).reshape(height, 2 * width)
  # Filter 2, the difference to the row above, halves the size.
  body = np.full((height, 2 * width + 1), 2, np.uint8)
  body[:, 1:] = rows
  body[1:, 1:] -= rows[:-1]

  def chunk(name: bytes, data: bytes) -> bytes:
    crc = struct.pack('>I', zlib.crc32(name + data))
    return struct.pack('>I', len(data)) + name + data + crc

  header = struct.pack('>IIBBBBB', width, height, 16, 0, 0, 0, 0)
  return b''.join(
    [
      b'\x89PNG\r\n\x1a\n',
      chunk(b'IHDR', header),
      chunk(b'IDAT', zlib.compress(body.tobytes(), 1)),
      chunk(b'IEND', b''),
    ]
  )


def encode_game_depth(z: np.ndarray) -> bytes:
  """Encodes z-depth in scene units as a 16-bit PNG in thousandths."""
  thousandths = np.rint(z * _PER_UNIT)
  thousandths[thousandths > 65535] = 0
  out = io.BytesIO()
  Image.fromarray(thousandths.astype(np.uint16)).save(out, 'png')
  return out.getvalue()
