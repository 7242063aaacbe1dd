"""Assigns clips to splits by explicit lists or by a hash.

A list file is JSON in one of three forms. Where IDs are in an object, they are
its keys:

  {"train": [ID, ...], "test": [ID, ...]}     or {"train": {ID: ...}, ...}
  {ID: "train", ID: "test", ...}
  {ID: ..., ID: ...}  or  [ID, ...]           the list of one split

The last form, that of published lists, does not name its split, so the user
must: `test=FILE.json`. An ID whose value is null is excluded: in published
lists, these are sequences without suitable frames. An ID is the id of a clip,
the id of the sequence that it was cut from, or the last part of either (`001`
for `chair/001`).
"""

import collections
import json
import os
import re
from collections.abc import Iterable
from typing import Any

from etils import epath

from xfactor.data import files as files_lib
from xfactor.errors import UserError

_SPLIT = re.compile(r'[a-z][a-z0-9_]*')
_MANY = 10  # No data set has more splits: these are ids.


class Lists:
  """Explicit lists of ids.

  Attributes:
    by_id: Split of each listed id; None excludes it.
  """

  def __init__(self, by_id: dict[str, str | None]):
    self.by_id = by_id
    self._parents = {
      parent for key in by_id for parent in _parents(key) if parent != key
    }
    # A published test list leaves the rest for training.
    self._rest = None if 'train' in by_id.values() else 'train'

  def find(self, clip_id: str) -> tuple[str | None, str | None]:
    """Returns a clip's split and the listed id that determines it.

    (None, None) excludes the clip. Without an id, the clip is not listed, and
    its split is `train`, for which there is no list.
    """
    parents = _parents(clip_id)
    for key in [*parents, *(p.rpartition('/')[2] for p in parents)]:
      if key in self.by_id:
        return self.by_id[key], key
    return self._rest, None

  def may_hold(self, item_id: str) -> bool:
    """Returns whether clips of an item may be listed (their ids extend its)."""
    return item_id in self._parents or self.find(item_id)[0] is not None

  def by_split(self) -> dict[str, list[str]]:
    """Returns the lists in the first form, sorted."""
    out = collections.defaultdict(list)
    for key, split in sorted(self.by_id.items()):
      if split is not None:
        out[split].append(key)
    return dict(out)


def read(files: str) -> Lists:
  """Reads list files.

  Args:
    files: Comma-separated `FILE` or `SPLIT=FILE`, local or gs://.

  Raises:
    UserError: If a file is missing or has none of the forms, or an id is listed
      for two splits.
  """
  by_id: dict[str, str | None] = {}
  for entry in files.split(','):
    split, equals, path = entry.rpartition('=')
    path = path.strip()
    content = _load(path)
    for key, target in _pairs(path, content, split if equals else None):
      if by_id.setdefault(key, target) != target:
        raise UserError(
          f'{path}: {key} is listed for {by_id[key]} and for {target}; keep '
          'one of them'
        )
  if not by_id:
    raise UserError(f'{files} lists no ids')
  return Lists(by_id)


def by_hash(clip_id: str, test_fraction: float) -> str:
  """Returns `test` for about that share of the ids, else `train`."""
  return 'test' if files_lib.unit_hash(clip_id) < test_fraction else 'train'


def _parents(clip_id: str) -> list[str]:
  """Returns the id and the paths above it, longest first."""
  parts = clip_id.split('/')
  return ['/'.join(parts[:n]) for n in range(len(parts), 0, -1)]


def _load(path: str) -> Any:
  try:
    return json.loads(epath.Path(path).expanduser().read_text())
  except FileNotFoundError as e:
    raise UserError(f'there is no file {path} for --splits') from e
  except (OSError, ValueError) as e:
    raise UserError(f'{path} is not a readable JSON file: {e}') from e


def _pairs(
  path: str, content: Any, split: str | None
) -> Iterable[tuple[str, str | None]]:
  """Yields (id, split) of a list file's content."""
  if split is not None:
    if not _SPLIT.fullmatch(split):
      raise UserError(f'{split!r} is not a split name; use lower case')
    return _ids(path, content, split)
  if not isinstance(content, dict):
    raise _nameless(path)
  if all(isinstance(value, str) for value in content.values()):
    if bad := [s for s in content.values() if not _SPLIT.fullmatch(s)]:
      raise UserError(f'{path}: {bad[0]!r} is not a split name')
    return content.items()
  if (
    len(content) > _MANY
    or not all(map(_SPLIT.fullmatch, content))
    or not all(isinstance(ids, list | dict) for ids in content.values())
  ):
    raise _nameless(path)
  return [pair for s, ids in content.items() for pair in _ids(path, ids, s)]


def _ids(path: str, content: Any, split: str) -> list[tuple[str, str | None]]:
  if not isinstance(content, list | dict) or not all(
    isinstance(key, str) for key in content
  ):
    raise UserError(
      f'{path} must hold a list of ids or an object whose keys are ids'
    )
  if isinstance(content, dict):
    # Published lists have null for sequences without suitable frames.
    return [(k, None if v is None else split) for k, v in content.items()]
  return [(key, split) for key in content]


def _nameless(path: str) -> UserError:
  return UserError(
    f'{path} looks like the list of one split; name the split: '
    f'--splits=test={os.path.basename(path)}'
  )
