"""MVImgNet: videos around single objects, about 30 frames each.

The layout (https://github.com/GAP-LAB-CUHK-SZ/MVImgNet, also MVImgNet 2.0):

  CATEGORY/ID/images/NNN.jpg
  CATEGORY/ID/sparse/0/{cameras,images}.{bin,txt}    an optional COLMAP model

CATEGORY may also be deeper, as in `mvi_07/CATEGORY/ID`, if each archive was
unpacked into its own folder. Names with a dot are treated as files.

As in XFactor's public code, the first 90 % of a category's sorted sequences are
for training and the rest for testing, and if a folder has pictures named
NNN.jpg, its other pictures are ignored. Sequences for which COLMAP failed have
no cameras. The lens distortion estimated by COLMAP is not undone.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import ClassVar

from absl import logging
from etils import epath

from xfactor.data import naming, sources
from xfactor.data.formats import colmap
from xfactor.data.sources import captures, listing, posed, pyramid
from xfactor.errors import UserError

_LAYOUT = 'CATEGORY/ID/images/NNN.jpg as in MVImgNet'
_LEVELS = 2  # Maximum folders between the source and its categories.
_FRAMES = 30  # Length of a typical sequence.
# Not masks and the like. A sequence can have more than 999 frames.
_OFFICIAL = re.compile(r'\d{3,}\.jpg')


@dataclasses.dataclass(frozen=True)
class Source(posed.Source):
  """One clip per sequence of MVImgNet, named CATEGORY/ID.

  Attributes: those of `posed.Source`.
  """

  name: ClassVar[str] = 'mvimgnet'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'Walks around everyday objects (MVImgNet).'
  reads: ClassVar[str] = (
    r'.*/(images/[^/]*\.(jpe?g|png)|sparse/0/(cameras|images)\.(bin|txt))'
  )

  def items(self) -> list[sources.Item]:
    """Lists one item per sequence; see the base class."""
    root = posed.folder(self.source, _LAYOUT)
    categories: dict[str, dict[str, str]] = {}
    problems: list[sources.Item] = []
    for category in _categories(root, problems):
      sequences = categories.setdefault(category.name, {})
      for path in _subfolders(category, problems):
        place = str(path.relative_to(root))
        if (other := sequences.setdefault(path.name, place)) != place:
          id = naming.clip_id(place)
          problem = f'{other} in {root} is the same sequence'
          problems.append(sources.Item(id, problem=problem))
    if not (categories or problems):
      raise posed.wrong_layout(root, _LAYOUT)
    return [
      sources.Item(
        id=naming.clip_id(f'{category}/{name}'),
        payload=payload,
        split='train' if i < int(0.9 * len(sequences)) else 'test',
        size=int(_FRAMES * 30_000 * ((self.size or 1024) / 256) ** 2),
      )
      for category, sequences in sorted(
        categories.items(), key=lambda entry: naming.natural(entry[0])
      )
      for i, (name, payload) in enumerate(sorted(sequences.items()))
    ] + problems

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clip of a sequence; see the base class."""
    path = posed.folder(self.source, _LAYOUT) / item.payload
    level, others = _pictures(posed.folder(str(path / 'images'), _LAYOUT))
    cameras, own, unposed = {}, {}, 'no COLMAP model'
    try:
      cameras = colmap.read_model(path / 'sparse' / '0') or {}
      if cameras:
        own = captures.match_some(level, cameras, path / 'sparse' / '0')
    except UserError as error:
      logging.warning('%s: no cameras: %s', item.id, error)
      unposed = 'a COLMAP model that does not fit'
    lost = len(cameras) - len(own)
    clip = captures.make_clip(self, item.id, level, own, unposed, lost)
    if others:
      clip.notes['pictures ignored next to NNN.jpg'] = others
    yield clip


def _subfolders(
  folder: epath.Path, problems: list[sources.Item]
) -> list[epath.Path]:
  # Calling is_dir on each path would take hours on gs://.
  below = posed.listed(folder, problems)
  return [path for path in below if '.' not in path.name]


def _categories(
  folder: epath.Path, problems: list[sources.Item], levels: int = _LEVELS
) -> list[epath.Path]:
  """Returns the folders below whose subfolders are sequences."""
  found = []
  for path in _subfolders(folder, problems):
    if path.is_dir():
      # What cannot be listed is named by the level that is a category.
      below = _subfolders(path, problems)
      if any((child / 'images').is_dir() for child in below):
        found.append(path)
      elif levels:
        found += _categories(path, problems, levels - 1)
  return found


def _pictures(folder: epath.Path) -> tuple[pyramid.Level, int]:
  """Returns the pictures of a sequence, and the number of other ones."""
  names = listing.pictures(
    (path.name for path in folder.iterdir()), captures.SUFFIXES
  )
  official = [name for name in names if _OFFICIAL.fullmatch(name)]
  own = official or names
  return (folder, own), len(names) - len(own)
