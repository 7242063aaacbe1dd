"""Your own captures with cameras in transforms.json.

Reads all files transforms*.json below one folder: those of nerfstudio,
instant-ngp and Blender's NeRF scenes. The paths of their pictures are relative
to the file, may lack a suffix (`./train/r_0`), and may be of another machine:
then the folder of that name next to the file is read. Folders images_2,
images_4, ... next to `images` are the same pictures at other sizes.

Each folder of pictures of a file is a clip, in natural order. All clips of the
files in one folder are in one split. `train_filenames` and the like, which
divide the pictures of one scene, are not used.
"""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

from etils import epath

from xfactor.data import images, naming, sources
from xfactor.data.formats import camera_files, colmap
from xfactor.data.sources import captures, listing, posed, pyramid
from xfactor.errors import UserError

_EXPECTED = 'captures: CAPTURE/transforms.json with the pictures that it names'
_FILE = re.compile(r'transforms.*\.json')


@dataclasses.dataclass(frozen=True)
class Source(posed.Source):
  """Clips of captures, named by their folders.

  Attributes: those of `posed.Source`; all frames without a camera are skipped,
  unless `min_posed` is larger than 0.
  """

  name: ClassVar[str] = 'transforms'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'Captures with cameras in transforms.json.'
  reads: ClassVar[str] = r'(.*/)?(transforms[^/]*\.json|.*\.(jpe?g|png))'

  min_posed: float = 0.0

  def items(self) -> list[sources.Item]:
    """Lists one item per file; see the base class."""
    root = posed.folder(self.source, _EXPECTED)
    items = []
    for folder in listing.walk(root):
      id = captures.folder_id(root, folder.path)
      if folder.error is not None:
        items.append(sources.Item(id, problem=folder.error))
      found = [name for name in folder.names if _FILE.fullmatch(name)]
      for name in found:
        stem = naming.clip_id(name.removesuffix('.json'))
        items.append(
          sources.Item(
            id=id if found == ['transforms.json'] else f'{id}/{stem}',
            payload=str(pathlib.PurePath(folder.path, name)),
            size=captures.typical_size(self.size),
            group=id,
          )
        )
    if not items:
      raise posed.wrong_layout(root, _EXPECTED)
    return sorted(items, key=lambda item: naming.natural(item.id))

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clips of a file; see the base class."""
    file = posed.folder(self.source, _EXPECTED) / item.payload
    frames = camera_files.read_transforms(
      file, lambda name: _size(file.parent, name)
    )
    folders = collections.defaultdict(dict)
    for frame in frames:
      path = pathlib.PurePath(frame.path.replace('\\', '/'))
      camera = colmap.Image(frame.camera, frame.world_to_camera)
      folders[path.parent][path.name] = camera

    def make(
      folder: pathlib.PurePath, cameras: dict[str, colmap.Image]
    ) -> sources.Clip:
      level = _level(file.parent, folder, self.size)
      if level is None:
        raise UserError(
          f'{file} names pictures in {folder}, and there are none in '
          f'{file.parent / folder}; put them there'
        )
      own = captures.match_some(level, cameras, file)
      id = item.id
      if len(folders) > 1:
        id = f'{id}/{naming.clip_id(folder.name)}'
      lost = len(cameras) - len(own)
      return captures.make_clip(self, id, level, own, lost=lost)

    yield from posed.bundle(
      str(file), (functools.partial(make, *entry) for entry in folders.items())
    )


def _level(
  base: epath.Path, folder: pathlib.PurePath, size: int | None
) -> pyramid.Level | None:
  """Returns the folder of pictures that a file in `base` means."""
  if not folder.name or folder.name == '..':
    own = listing.pictures((p.name for p in base.iterdir()), captures.SUFFIXES)
    return (base, own) if own else None
  for place in (base / folder, base / folder.name):
    names = [] if pyramid.is_level(folder.name) else [folder.name]
    if found := captures.level([place.parent], size, names):
      return found
  return None


def _size(base: epath.Path, name: str) -> tuple[int, int]:
  """Returns height and width of a picture that a file names."""
  path = pathlib.PurePath(name.replace('\\', '/'))
  for place in (base / path, base / path.parent.name / path.name):
    for suffix in ('', *captures.SUFFIXES):
      file = place.with_name(place.name + suffix)
      if file.exists() and not file.is_dir():
        with file.open('rb') as opened:
          return images.stored_form(opened)[:2]
  raise ValueError(f'there is no picture {name}, and its size is not given')
