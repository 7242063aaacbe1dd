"""Folders of the same pictures at several sizes: images, images_2, images_4."""

import pathlib
import re
from collections.abc import Sequence

from etils import epath

from xfactor.data import images

_LEVEL = re.compile(r'images(_\d+)?', re.IGNORECASE)
_RATIO = 0.03  # Maximum relative difference of equal aspect ratios.

# A folder and the names of the pictures in it.
Level = tuple[epath.Path | pathlib.Path, Sequence[str]]


def is_level(name: str) -> bool:
  """Returns whether a folder is called as one of a pyramid."""
  return bool(_LEVEL.fullmatch(name))


def same_pictures(levels: Sequence[Level]) -> bool:
  """Returns whether the pictures have the same names, up to suffixes."""
  stems = [
    {pathlib.PurePath(name).stem for name in names} for _, names in levels
  ]
  return all(own == stems[0] for own in stems)


def is_pyramid(levels: Sequence[Level]) -> bool:
  """Returns whether folders hold the same pictures at different sizes."""
  if not same_pictures(levels):
    return False
  sizes = [_size(level) for level in levels]
  if None in sizes or len(set(sizes)) < len(sizes):
    return False
  ratios = [width / height for height, width in sizes]
  return max(ratios) - min(ratios) <= _RATIO * min(ratios)


def choose(levels: Sequence[Level], size: int | None) -> Level:
  """Returns the smallest level that covers `size` on its short side.

  The sizes are those of the first readable picture; names of folders may be
  wrong.

  Args:
    levels: Folders of a pyramid, at least one.
    size: Pixels of the frames, or None for the largest level.

  Returns:
    The level, or the largest if none covers `size`.
  """
  if len(levels) == 1:
    return levels[0]
  sides = [min(_size(level) or (0, 0)) for level in levels]
  covering = [side for side in sides if size is not None and side >= size]
  return levels[sides.index(min(covering) if covering else max(sides))]


def _size(level: Level) -> tuple[int, int] | None:
  """Returns (height, width) of the first readable picture."""
  folder, names = level
  for name in sorted(names)[:3]:
    try:
      with (folder / name).open('rb') as file:
        return images.stored_form(file)[:2]
    except (images.ImageError, OSError):
      continue
  return None
