"""Sorts names as people do, and turns them into clip ids."""

import re
import unicodedata
from collections.abc import Iterable

_SUFFIX = re.compile(r'\.[A-Za-z]\w*$')
# Seconds or other numbers with a fraction, such as the names of TUM RGB-D.
_DECIMAL = re.compile(r'(\d+)(\.\d+)')


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
  """Returns a sort key: `frame_9` before `frame_10`, `0.25` before `0.5`."""
  stem = without_suffix(name)
  if decimal := _DECIMAL.fullmatch(stem):
    return [(-1, ''), (int(decimal[1]), ''), (-1, decimal[2])], name
  # Every other part is a number. Not by `isdigit`, which is true of '①'.
  parts = re.split(r'(\d+)', stem.lower())
  key = [(int(p), '') if i % 2 else (-1, p) for i, p in enumerate(parts)]
  return key, name


def without_suffix(name: str) -> str:
  """Returns a file name without its suffix; `0.25` has none."""
  return _SUFFIX.sub('', name)


def is_clip_id(name: str) -> bool:
  """Returns whether a name has letters, digits and `/._-` only."""
  return bool(name) and all(map(_is_allowed, name))


def clip_id(name: str) -> str:
  """Replaces each run of characters that clip ids may not have by `_`."""
  # Composed: some disks store letters and accents as separate characters.
  name = unicodedata.normalize('NFC', name)
  kept = ''.join(c if _is_allowed(c) else '\0' for c in name)
  return re.sub('\0+', '_', kept)


def _is_allowed(character: str) -> bool:
  return (
    character.isalnum()
    or character in '/._-'
    # Accents and vowel signs, for scripts that have no composed letters.
    or unicodedata.category(character).startswith('M')
  )


def number_repeated(ids: Iterable[str]) -> list[str]:
  """Returns ids of which the second equal one ends in `-2` and so on."""
  ids = list(ids)
  taken, seen, out = set(ids), set(), []
  for id in ids:
    new, count = id, 1
    while new in seen or (count > 1 and new in taken):
      count += 1
      new = f'{id}-{count}'
    seen.add(new)
    out.append(new)
  return out
