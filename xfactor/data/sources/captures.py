"""Captures: folders of pictures, and cameras that name the pictures.

What the sources `colmap`, `transforms`, `dl3dv` and `mvimgnet` share.
"""

import collections
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import logging
from etils import epath

from xfactor.data import naming, sources
from xfactor.data.formats import colmap
from xfactor.data.sources import listing, posed, pyramid
from xfactor.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png')
_FRAMES = 100  # Length of a typical capture.


def folder_id(root: epath.Path, path: str) -> str:
  """Returns the id of a capture in a folder, which is relative to `root`."""
  return naming.clip_id(root.resolve().name if path == '.' else path)


def typical_size(size: int | None) -> int:
  """Returns the bytes of a typical capture's frames of `size` pixels."""
  return int(_FRAMES * 30_000 * ((size or 1024) / 256) ** 2)


def level(
  bases: Iterable[epath.Path], size: int | None, names: Sequence[str] = ()
) -> pyramid.Level | None:
  """Returns the best folder of pictures of a capture.

  Args:
    bases: Folders that may have folders images, images_2, ... of pictures.
    size: Pixels of the frames; see `pyramid.choose`.
    names: Names of the folders to choose from; by default all of these.

  Returns:
    The folder and its pictures in order, or None if there is none.
  """
  found = []
  for base in bases:
    for path in sorted(base.iterdir()) if base.is_dir() else ():
      known = path.name in names if names else pyramid.is_level(path.name)
      if known and path.is_dir() and (own := pictures(path)):
        found.append((path, own))
  return pyramid.choose(found, size) if found else None


def pictures(folder: epath.Path) -> list[str]:
  """Returns the pictures below a folder, relative to it, in natural order."""
  found = []
  for below in listing.walk(folder):
    own = listing.pictures(below.names, SUFFIXES)
    found += [str(pathlib.PurePath(below.path, name)) for name in own]
  return sorted(
    found, key=lambda name: list(map(naming.natural, name.split('/')))
  )


def match(
  names: Iterable[str], cameras: Mapping[str, colmap.Image]
) -> dict[str, colmap.Image]:
  """Returns the cameras of pictures.

  The names of a picture and its camera may have different suffixes, and one may
  begin with folders that the other lacks. If several fit, that with the most
  folders and the suffix in common is taken, if it is the only one.

  Args:
    names: Pictures, relative to their folder.
    cameras: Cameras by the names that another program gave to the pictures.
  """
  by_stem = collections.defaultdict(list)
  for name in cameras:
    by_stem[_stem(name)].append(name)
  fitting: dict[str, list[tuple[int, bool, str]]] = collections.defaultdict(
    list
  )
  for name in names:
    for other in by_stem.get(_stem(name), ()):
      if (common := _common(name, other)) is not None:
        same = name.lower().endswith(pathlib.PurePath(other).name.lower())
        fitting[name].append((common, same, other))
  chosen: dict[str, list[tuple[int, bool, str]]] = collections.defaultdict(list)
  for name, found in fitting.items():
    best = max(entry[:2] for entry in found)
    others = [entry[2] for entry in found if entry[:2] == best]
    if len(others) == 1:
      chosen[others[0]].append((*best, name))
  # A camera has one picture: a.jpg, not a.png of the same name.
  out = {}
  for other, found in chosen.items():
    best = max(entry[:2] for entry in found)
    own = [entry[2] for entry in found if entry[:2] == best]
    if len(own) == 1:
      out[own[0]] = cameras[other]
  return out


def _stem(name: str) -> str:
  file = name.replace('\\', '/').rpartition('/')[2]
  return naming.without_suffix(file).lower()


def _common(name: str, other: str) -> int | None:
  """Returns how many folders two names share at their ends.

  Returns None if they differ before one of them ends.
  """
  first, second = (
    pathlib.PurePath(n.replace('\\', '/').lower()).parts[-2::-1]
    for n in (name, other)
  )
  first, second = ([p for p in parts if p != '/'] for parts in (first, second))
  same = sum(a == b for a, b in zip(first, second, strict=False))
  return same if same == min(len(first), len(second)) else None


def make_clip(
  source: posed.Source,
  id: str,
  found: pyramid.Level,
  own: Mapping[str, colmap.Image],
  unposed: str = 'no camera is known',
  lost: int = 0,
) -> sources.Clip:
  """Returns the clip of the pictures of a folder and their cameras.

  If fewer of the pictures than `source.min_posed` have one, none has one here:
  frames of lenses whose distortion is undone must not be mixed with others.

  Args:
    source: Source with the options.
    id: Id of the clip.
    found: Folder and names of the pictures.
    own: Cameras by picture, see `match`.
    unposed: Why there are no cameras, if there are none.
    lost: Number of cameras without a picture.
  """
  folder, names = found
  notes = {}
  if lost:
    logging.warning('%s: %d cameras have no picture', id, lost)
    notes['cameras without a picture'] = lost
  if own and len(own) < source.min_posed * len(names):
    logging.warning(
      '%s: only %d of %d pictures have a camera, fewer than min_posed=%g: the '
      'clip has no cameras',
      *(id, len(own), len(names), source.min_posed),
    )
    own, unposed = {}, posed.TOO_FEW
  views = []
  for name in names:
    camera, pose = own.get(name, (None, None))
    views.append(
      posed.View(folder / name, name, world_to_camera=pose, camera=camera)
    )
  return source._clip(id, views, unposed=unposed, notes=notes)


def match_some(
  found: pyramid.Level, cameras: Mapping[str, colmap.Image], file: object
) -> dict[str, colmap.Image]:
  """Calls `match`; raises UserError if no picture of a capture has a camera."""
  folder, names = found
  own = match(names, cameras)
  if not own:
    first = next(iter(cameras), 'nothing')
    raise UserError(
      f'{file} has no camera for any of the {len(names)} pictures in {folder}: '
      f'it names {first}, and the first picture is {names[0]}; rename them or '
      'restore the model'
    )
  return own


def clips(
  source: posed.Source,
  id: str,
  found: pyramid.Level,
  own: Mapping[str, colmap.Image],
  lost: int,
) -> Iterator[sources.Clip]:
  """Yields a clip for each folder of pictures of a capture.

  The arguments are those of `make_clip`; the first clip counts lost cameras.
  """
  folders = list(_by_folder(found))

  def make(number: int, name: str, level: pyramid.Level) -> sources.Clip:
    below = f'/{naming.clip_id(name or "images")}' if len(folders) > 1 else ''
    full = {f'{name}/{x}' if name else x: x for x in level[1]}
    here = {full[key]: own[key] for key in full if key in own}
    return make_clip(
      source, id + below, level, here, lost=0 if number else lost
    )

  yield from posed.bundle(
    id, (functools.partial(make, i, *x) for i, x in enumerate(folders))
  )


def _by_folder(found: pyramid.Level) -> Iterator[tuple[str, pyramid.Level]]:
  """Yields (name, folder with its own pictures): the cameras of a rig."""
  folder, names = found
  groups = collections.defaultdict(list)
  for name in names:
    parent, _, own = name.rpartition('/')
    groups[parent].append(own)
  for parent, own in groups.items():
    yield parent, (folder / parent if parent else folder, own)
