"""Your own captures with cameras from COLMAP.

Reads all projects below one folder:

  PROJECT/sparse/0/{cameras,images}.{bin,txt}   or in sparse, or in PROJECT
  PROJECT/images/*.jpg                          or images_2, images_4, ...

3D Gaussian splatting's `input` with `distorted/sparse/0`, and nerfstudio's
`colmap/sparse/0`, are found as well. Of several models of a project, the one
closest to it is read, and of sparse/0, sparse/1, ... the largest. Folders below
a project are parts of it, for example COLMAP's `dense`.

The pictures of each folder below `images` (the cameras of a rig) are a clip, in
natural order. All clips of a project are in one split.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import ClassVar

from etils import epath

from xfactor.data import naming, sources
from xfactor.data.formats import colmap as colmap_lib
from xfactor.data.sources import captures, listing, posed
from xfactor.errors import UserError

_EXPECTED = 'COLMAP projects: PROJECT/sparse/0 with PROJECT/images'
_FILES = ('cameras', 'images')
_KINDS = ('.bin', '.txt')
# Files of an incomplete model.
_PARTS = {'cameras.bin', 'images.bin', 'cameras.txt'}
# Folders of pictures besides images, images_2 and so on.
_OTHERS = ('input', 'rgb', 'color')


@dataclasses.dataclass(frozen=True)
class Source(posed.Source):
  """Clips of COLMAP projects, named by their folders.

  Attributes: those of `posed.Source`; all frames without a camera are skipped,
  unless `min_posed` is larger than 0.
  """

  name: ClassVar[str] = 'colmap'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'Captures with cameras from COLMAP.'
  reads: ClassVar[str] = (
    r'(.*/)?((images(_\d+)?|input|rgb|color)/.*\.(jpe?g|png)'
    r'|(cameras|images)\.(bin|txt))'
  )

  min_posed: float = 0.0

  def items(self) -> list[sources.Item]:
    """Lists one item per project; see the base class."""
    root = posed.folder(self.source, _EXPECTED)
    models: dict[str, list[str]] = collections.defaultdict(list)
    problems: dict[str, str] = {}
    for folder in listing.walk(root):
      if folder.error is not None:
        problems[folder.path] = folder.error
        continue
      project = _project(folder.path)
      if _has_model(folder.names):
        models[project].append(folder.path)
      elif pathlib.PurePath(folder.path).name == 'sparse' or not (
        _PARTS.isdisjoint(folder.names)
      ):
        problems[project] = (
          f'{root / folder.path} has no model: it needs cameras and images, '
          'both .bin or both .txt'
        )
    models = {
      path: models[path] for path in models if not _is_inside(path, models)
    }
    problems = {
      path: why
      for path, why in problems.items()
      if path not in models and not _is_inside(path, models)
    }
    if not (models or problems):
      raise posed.wrong_layout(root, _EXPECTED)
    make = functools.partial(
      sources.Item, size=captures.typical_size(self.size)
    )
    ids = {
      path: captures.folder_id(root, path) for path in (*models, *problems)
    }
    items = [
      make(ids[path], (path, _best(root, found)), group=ids[path])
      for path, found in models.items()
    ]
    items += [make(ids[path], problem=why) for path, why in problems.items()]
    return sorted(items, key=lambda item: naming.natural(item.id))

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clips of a project; see the base class."""
    root = posed.folder(self.source, _EXPECTED)
    project, model = (root / path for path in item.payload)
    cameras = colmap_lib.read_model(model) or {}
    found = captures.level([project], self.size) or captures.level(
      [project], self.size, _OTHERS
    )
    if found is None:
      raise UserError(
        f'{project} has no folder images of pictures for the model in {model}'
      )
    own = captures.match_some(found, cameras, model)
    lost = len(cameras) - len(own)
    yield from captures.clips(self, item.id, found, own, lost)


def _has_model(names: list[str]) -> bool:
  return any(
    all(f'{name}{kind}' in names for name in _FILES) for kind in _KINDS
  )


def _project(model: str) -> str:
  """Returns the project of a model; both relative to the source."""
  parts = list(pathlib.PurePath(model).parts)
  if parts and parts[-1].isdecimal() and parts[-2:-1] == ['sparse']:
    parts.pop()
  if parts and parts[-1] == 'sparse':
    parts.pop()
    if parts and parts[-1] in ('distorted', 'colmap'):
      parts.pop()
  return '/'.join(parts) or '.'


def _is_inside(path: str, projects: Iterable[str]) -> bool:
  """Returns whether a folder is below one of the projects."""
  return any(str(p) in projects for p in pathlib.PurePath(path).parents)


def _best(root: epath.Path, models: list[str]) -> str:
  """Returns the model to read of a project's."""

  def rank(model: str) -> tuple[int, int, str]:
    depth = len(pathlib.PurePath(model).parts)
    sizes = [
      path.stat().length
      for kind in _KINDS
      if (path := root / model / f'images{kind}').exists()
    ]
    numbered = pathlib.PurePath(model).name.isdecimal()
    return depth - numbered, -max(sizes), model

  return min(models, key=rank)
