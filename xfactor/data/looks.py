"""Describes pictures by bits that hardly depend on size and compression."""

import numpy as np

EVERY = 4  # Frames of a clip of which one is compared.
_ROWS, _COLUMNS = 8, 9
_STEP = 1.5  # Levels between neighbouring cells that count as different.
_CONTRAST = 12  # Levels; pictures with less have no features.
BLOCKS, BITS = 4, 16


def look(rgb: np.ndarray) -> int:
  """Returns 64 bits that hardly depend on size and compression; 0 if flat.

  Each bit says whether a cell of the picture is darker than that to its right.
  """
  height, width = rgb.shape[:2]
  if height < _ROWS or width < _COLUMNS:
    return 0
  # A few rows are enough.
  rows = rgb[:: max(height // 64, 1), :, 1]
  edges = (np.arange(_ROWS) * len(rows)) // _ROWS
  cells = np.add.reduceat(rows, edges, 0, dtype=np.float32)
  cells /= np.diff(edges, append=len(rows))[:, None]
  edges = (np.arange(_COLUMNS) * width) // _COLUMNS
  cells = np.add.reduceat(cells, edges, 1)
  cells /= np.diff(edges, append=width)
  if np.ptp(cells) < _CONTRAST:
    return 0
  bits = cells[:, :-1] + _STEP < cells[:, 1:]
  # Each block of bits has some from everywhere: much of a picture can be flat.
  mixed = bits.reshape(BITS, BLOCKS).T
  return int.from_bytes(np.packbits(mixed).tobytes(), 'big')
