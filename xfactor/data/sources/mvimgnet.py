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
from xfactor.data.sources import posed
from xfactor.errors import UserError

_LAYOUT = 'CATEGORY/ID/images/NNN.jpg as in MVImgNet'
_LEVELS = 2  # Maximum folders between the source and its categories.
_FRAMES = 30  # Length of a typical sequence.
_PICTURE = re.compile(r'[^.].*\.(jpe?g|png)', re.IGNORECASE)
_OFFICIAL = re.compile(r'\d{3}\.jpg')


@dataclasses.dataclass(frozen=True)
class Source(posed.Source):
  """One clip per sequence of MVImgNet, named CATEGORY/ID.

  Attributes: those of `posed.Source`.
  """

  name: ClassVar[str] = 'mvimgnet'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'Walks around everyday objects (MVImgNet).'

  def items(self) -> list[sources.Item]:
    """Lists one item per sequence; see the base class."""
    root = posed.folder(self.source, _LAYOUT)
    categories: dict[str, dict[str, str]] = {}
    for category in _categories(root):
      sequences = categories.setdefault(category.name, {})
      for path in _subfolders(category):
        place = str(path.relative_to(root))
        if (other := sequences.setdefault(path.name, place)) != place:
          raise UserError(
            f'{other} and {place} in {root} are the same sequence; remove one'
          )
    if not categories:
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
    ]

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clip of a sequence; see the base class."""
    path = posed.folder(self.source, _LAYOUT) / item.payload
    pictures = _pictures(posed.folder(str(path / 'images'), _LAYOUT))
    registered = _registered(path / 'sparse' / '0')
    yield self._clip(
      item.id,
      (_view(picture, registered.get(picture.name)) for picture in pictures),
    )


def _subfolders(folder: epath.Path) -> list[epath.Path]:
  # Calling is_dir on each path would take hours on gs://.
  return sorted(path for path in folder.iterdir() if '.' not in path.name)


def _categories(folder: epath.Path, levels: int = _LEVELS) -> list[epath.Path]:
  """Returns the folders below whose subfolders are sequences."""
  found = []
  for path in _subfolders(folder):
    if path.is_dir():
      if any((child / 'images').is_dir() for child in _subfolders(path)):
        found.append(path)
      elif levels:
        found += _categories(path, levels - 1)
  return found


def _pictures(folder: epath.Path) -> list[epath.Path]:
  found = [path for path in folder.iterdir() if _PICTURE.fullmatch(path.name)]
  official = [path for path in found if _OFFICIAL.fullmatch(path.name)]
  return sorted(official or found, key=lambda path: naming.natural(path.name))


def _registered(folder: epath.Path) -> dict[str, colmap.Image]:
  """Returns the images registered by COLMAP, by picture file name."""
  try:
    images = colmap.read_model(folder) or {}
  except UserError as error:
    logging.warning('No cameras: %s', error)
    return {}
  return {name.rpartition('/')[2]: image for name, image in images.items()}


def _view(picture: epath.Path, image: colmap.Image | None) -> posed.View:
  if image is None:
    return posed.View(picture, picture.name)
  return posed.View(
    picture, picture.name, image.camera.intrinsics, image.world_to_camera
  )
