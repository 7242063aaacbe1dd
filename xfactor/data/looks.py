"""Describes pictures by bits that hardly depend on size and compression."""

import functools

import numpy as np

EVERY = 4  # Frames of a clip of which one is compared.
_ROWS, _COLUMNS = 8, 9
_STEP = 1.5  # Levels between neighbouring cells that count as different.
_CONTRAST = 12  # Levels; pictures with less have no features.
BLOCKS, BITS = 4, 16


@functools.cache
def _means(cells: int, count: int) -> np.ndarray:
  """Returns the [cells, count] matrix that averages the values of each cell."""
  edges = np.arange(cells + 1) * count // cells
  at = np.arange(count)
  inside = (edges[:-1, None] <= at) & (at < edges[1:, None])
  return (inside / np.diff(edges)[:, None]).astype(np.float32)


def look(rgb: np.ndarray) -> int:
  """Returns 64 bits that hardly depend on size and compression; 0 if flat.

  Each bit says whether a cell of the picture is darker than that to its right.
  """
  height, width = rgb.shape[:2]
  if height < _ROWS or width < _COLUMNS:
    return 0
  # A few rows are enough.
  rows = rgb[:: max(height // 64, 1), :, 1].astype(np.float32)
  cells = _means(_ROWS, len(rows)) @ rows @ _means(_COLUMNS, width).T
  if np.ptp(cells) < _CONTRAST:
    return 0
  bits = cells[:, :-1] + _STEP < cells[:, 1:]
  # Each block of bits has some from everywhere: much of a picture can be flat.
  mixed = bits.reshape(BITS, BLOCKS).T
  return int.from_bytes(np.packbits(mixed).tobytes(), 'big')
