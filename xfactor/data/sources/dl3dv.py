"""DL3DV-10K: walks through places, with cameras from COLMAP.

  SOURCE/PART/ID/            PART is 1K, 2K, ...; or IDs without PART
    images_4/*.png           one of images_8 (480 x 270), images_4 (960 x 540),
    images_8/*.png           images_2, images, or several
    transforms.json          the cameras

The pictures and transforms.json of a sequence may be in its folder (the 10K
release), in `nerfstudio/` (the benchmark) or in `colmap/` (the sample); a
`gaussian_splat/` next to them is ignored. IDs have 64 hexadecimal digits.

The pictures keep the lens distortion, a few pixels at the edges, unless
`undistort` is set. Poses are in the world of transforms.json.

The sequences of the benchmark are the test split, as in XFactor's public code.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from absl import logging
from etils import epath

from xfactor.data import sources
from xfactor.data.formats import camera_files, colmap
from xfactor.data.sources import captures, posed
from xfactor.errors import UserError

_EXPECTED = (
  "DL3DV's PART/ID folders (such as 1K/0a1b...), where an ID has 64 "
  'hexadecimal digits'
)
_ID = re.compile(r'[0-9a-f]{64}')
_PART = re.compile(r'\d+K')
_BENCHMARKS = ('benchmark-meta.csv', 'benchmark')
_BASES = ('.', 'nerfstudio', 'colmap')
_FRAMES = 300  # Length of a typical sequence.


@dataclasses.dataclass(frozen=True)
class Source(posed.Source):
  """Sequences of DL3DV-10K.

  Attributes: those of `posed.Source` and
    resolution: Reduction factor of the pictures to read: 8 for images_8 and so
      on. By default the smallest pictures of a sequence that cover `size`, by
      their pixels, or the largest if none do or `size` is None.
    benchmark: Folder of IDs, or file with IDs, that lists the test sequences.
      By default benchmark-meta.csv or the folder benchmark in `source`.
      Sequences that only this folder has are read from it.
  """

  name: ClassVar[str] = 'dl3dv'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'DL3DV-10K with COLMAP cameras.'
  reads: ClassVar[str] = (
    r'(.*/)?(images(_\d+)?/.*\.(jpe?g|png)|transforms\.json)'
    r'|benchmark-meta\.csv'
  )

  resolution: int | None = None
  benchmark: str | None = None

  def items(self) -> list[sources.Item]:
    """Lists one item per sequence; see the base class."""
    if self.resolution not in (None, 1, 2, 4, 8):
      raise UserError(f'resolution={self.resolution} is none of 1, 2, 4 and 8')
    root = posed.folder(self.source, _EXPECTED)
    problems: list[sources.Item] = []
    paths = {path.name: path for path in _sequences(root, problems)}
    test = self._test_sequences(root)
    if not (paths or test or problems):
      raise posed.wrong_layout(root, _EXPECTED)
    if test is None:
      logging.warning(
        '%s has no benchmark-meta.csv and no benchmark was given: the test '
        'split is chosen by hash and differs from the benchmark',
        root,
      )
    else:
      found = len(paths.keys() & test.keys())
      paths = {id: path for id, path in test.items() if path} | paths
      logging.info(
        '%s has %d of the %d sequences of the benchmark', root, found, len(test)
      )
    if not (paths or problems):
      raise posed.wrong_layout(root, _EXPECTED)
    side = self.size or 540
    return [
      sources.Item(
        id=id,
        payload=str(path),
        split=None if test is None else 'test' if id in test else 'train',
        size=int(_FRAMES * 30_000 * (side / 256) ** 2),
      )
      for id, path in sorted(paths.items())
    ] + problems

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the one clip of a sequence; see the base class."""
    path = epath.Path(item.payload)
    bases = [path / base for base in _BASES]
    names = {None: (), 1: ('images',)}.get(
      self.resolution, (f'images_{self.resolution}',)
    )
    level = captures.level(bases, self.size, names)
    if level is None:
      raise UserError(
        f'{path} has no {names[0] if names else "images_4 or images_8"} with '
        'pictures, neither itself nor in nerfstudio/ or colmap/; download the '
        'sequence again'
      )
    cameras = _cameras(bases)
    own = captures.match(level[1], cameras)
    lost = len(cameras) - len(own)
    yield captures.make_clip(
      self, item.id, level, own, 'no transforms.json', lost
    )

  def _test_sequences(
    self, root: epath.Path
  ) -> dict[str, epath.Path | None] | None:
    """Returns the benchmark's IDs with their paths if it is a folder."""
    if self.benchmark is not None:
      places = [epath.Path(self.benchmark).expanduser()]
    else:
      places = [root / name for name in _BENCHMARKS]
    for place in places:
      if place.is_dir():
        ids = {path.name: path for path in _sequences(place, [])}
      elif place.exists():
        ids = dict.fromkeys(_ID.findall(place.read_text()))
      else:
        continue
      if not ids:
        raise UserError(
          f'{place} names no sequence of the benchmark by its 64 hexadecimal '
          'digits; give benchmark-meta.csv of DL3DV-Benchmark'
        )
      return ids
    if self.benchmark is not None:
      raise UserError(f'there is no benchmark {self.benchmark}')
    return None


def _sequences(
  folder: epath.Path, problems: list[sources.Item]
) -> Iterator[epath.Path]:
  """Yields the folders of sequences in a folder and its PARTs.

  Adds an item to `problems` for each PART that cannot be listed.
  """
  # Sorted, because an ID may be in two PARTs.
  for path in sorted(folder.iterdir()):
    if _ID.fullmatch(path.name):
      yield path
    elif _PART.fullmatch(path.name):
      below = posed.listed(path, problems)
      yield from (p for p in below if _ID.fullmatch(p.name))


def _cameras(bases: Iterable[epath.Path]) -> dict[str, colmap.Image]:
  """Returns the cameras of a sequence by picture name."""
  for base in bases:
    if (file := base / 'transforms.json').exists():
      return {
        # The folder is another one for reduced pictures.
        pathlib.PurePath(frame.path).name: colmap.Image(
          frame.camera, frame.world_to_camera
        )
        for frame in camera_files.read_transforms(file)
      }
  return {}
