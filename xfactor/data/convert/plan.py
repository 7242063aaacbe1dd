"""Deals a source's items to parts, independently of workers."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

from absl import logging
from etils import epath

from xfactor.data import files, naming, sources
from xfactor.data.convert import splits as splits_lib
from xfactor.data.records import store
from xfactor.errors import UserError

SHARD_BYTES = 512 * 2**20
MIN_PARTS = 32
_NAME = re.compile(r'[a-z][a-z0-9_]*')


@dataclasses.dataclass(frozen=True)
class Plan:
  """Plan of a conversion, made before data are read or written."""

  name: str
  root: epath.Path
  version: str
  test_fraction: float
  lists: splits_lib.Lists | None
  only: tuple[str, ...] | None
  parts: list[list[sources.Item]]
  options: dict[str, Any]
  ignored: dict[str, int]

  @property
  def work(self) -> epath.Path:
    """Folder of unfinished work."""
    return self.root / f'.incomplete-{self.version}'

  @property
  def bytes(self) -> int:
    """Estimated size."""
    return sum(item.size for part in self.parts for item in part)

  def split_of(
    self, clip_id: str, item: sources.Item
  ) -> tuple[str | None, str | None]:
    """Returns a clip's split, None if excluded, and its id in the lists."""
    listed = None
    if self.lists:
      split, listed = self.lists.find(clip_id)
    else:
      split = item.split or splits_lib.by_hash(
        clip_id if item.group is None else item.group, self.test_fraction
      )
    if self.only and split not in self.only:
      split = None
    return split, listed

  @property
  def by_hash(self) -> bool:
    """Whether only the hash determines the splits."""
    return not self.lists and all(
      item.split is None for part in self.parts for item in part
    )


def deal(items: Sequence[sources.Item]) -> list[list[sources.Item]]:
  """Deals items to parts: consecutive, of about equal size, none empty.

  Their number depends only on the items: about 512 MiB each, but at least
  `MIN_PARTS` (or one per item), to keep the workers busy.
  """
  sizes = [max(item.size, 1) for item in items]
  total = sum(sizes)
  count = max(-(-total // SHARD_BYTES), min(len(items), MIN_PARTS))
  parts = [[] for _ in range(count)]
  before = 0
  for item, size in zip(items, sizes, strict=True):
    # By the item's middle, so that a large one does not end up in a late part.
    parts[(2 * before + size) * count // (2 * total)].append(item)
    before += size
  return [part for part in parts if part]


def make_plan(
  source: sources.Source,
  data_dir: str | os.PathLike[str],
  name: str | None = None,
  test_fraction: float = 0.1,
  lists: splits_lib.Lists | None = None,
  only: Sequence[str] | None = None,
) -> Plan:
  """Lists the items and deals them to parts; reads no footage.

  See `run.convert` for the arguments.

  Raises:
    UserError: If a name or number is not valid, or the source lists nothing.
  """
  name = name or source.name
  if not _NAME.fullmatch(name):
    raise UserError(
      f'the name {name!r} of a data set must be lower-case letters, digits '
      'and underscores, and start with a letter'
    )
  if not 0 <= test_fraction <= 1:
    raise UserError(f'--test_fraction is {test_fraction}; give it 0 to 1')
  try:
    items = source.items()
  except OSError as e:
    raise UserError(f'the {source.name} source cannot be listed: {e}') from e
  if not items:
    raise UserError(f'the {source.name} source lists nothing to convert')
  items = _rename_repeated(items)
  only = tuple(only) if only else None
  wanted = [item for item in items if _may_be_wanted(item, lists, only)]
  if not wanted:
    raise UserError(
      f'none of the {len(items)} items of the {source.name} source is '
      f'selected (for instance {items[0].id} is not): check --splits and '
      '--split'
    )
  parts = deal(wanted)
  return Plan(
    name=name,
    root=files.data_folder(data_dir) / name,
    version=source.version,
    test_fraction=test_fraction,
    lists=lists,
    only=only,
    parts=parts,
    ignored=source.ignored(),
    options={
      'format': store.FORMAT,
      'source': source.name,
      'source_version': source.version,
      'options': {
        f.name: plain(getattr(source, f.name))
        for f in dataclasses.fields(source)
      },
      'test_fraction': test_fraction,
      'lists': files.digest(lists.by_id) if lists else None,
      'only': plain(only),
      'items': files.digest(
        [(i.id, i.split, i.size) for part in parts for i in part]
      ),
    },
  )


def _rename_repeated(items: Sequence[sources.Item]) -> list[sources.Item]:
  """Returns the items with unique ids."""
  out = []
  new_ids = naming.number_repeated(item.id for item in items)
  for item, id in zip(items, new_ids, strict=True):
    if id != item.id:
      logging.warning('There are several %s; one becomes %s.', item.id, id)
      # They are likely to show the same.
      group = item.id if item.group is None else item.group
      item = dataclasses.replace(item, id=id, group=group)
    out.append(item)
  return out


def _may_be_wanted(
  item: sources.Item,
  lists: splits_lib.Lists | None,
  only: Sequence[str] | None,
) -> bool:
  if lists:
    return item.bundle or lists.may_hold(item.id)
  return not (only and item.split and item.split not in only)


def plain(value: Any) -> Any:
  """Returns a value as it is after a round trip through JSON."""
  if isinstance(value, tuple | list):
    return [plain(v) for v in value]
  if isinstance(value, bool | int | float | str | None):
    return value
  return str(value)
