"""DL3DV-10K: walks through places, with cameras from COLMAP.

  SOURCE/PART/ID/            PART is 1K, 2K, ...; or IDs without PART
    images_4/*.png           one of images_8 (480 x 270), images_4 (960 x 540),
    images_8/*.png           images_2, images, or several
    transforms.json          the cameras

The pictures and transforms.json of a sequence may be in its folder (the 10K
release), in `nerfstudio/` (the benchmark) or in `colmap/` (the sample); a
`gaussian_splat/` next to them is ignored. IDs have 64 hexadecimal digits.

The pictures keep the lens distortion, a few pixels at the edges: the cameras
are only the pinhole part of COLMAP's OPENCV model. Poses are in the world of
transforms.json.

The sequences of the benchmark are the test split, as in XFactor's public code.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

from absl import logging
from etils import epath

from xfactor.data import naming, sources
from xfactor.data.formats import camera_files
from xfactor.data.sources import posed
from xfactor.errors import UserError

_EXPECTED = (
  "DL3DV's PART/ID folders (such as 1K/0a1b...), where an ID has 64 "
  'hexadecimal digits'
)
_ID = re.compile(r'[0-9a-f]{64}')
_PART = re.compile(r'\d+K')
_BENCHMARKS = ('benchmark-meta.csv', 'benchmark')
# Pixels of the shorter side.
_FOLDERS = {'images_8': 270, 'images_4': 540, 'images_2': 1080, 'images': 2160}
_BASES = ('.', 'nerfstudio', 'colmap')
_SUFFIXES = ('.png', '.jpg', '.jpeg')
_FRAMES = 300  # Length of a typical sequence.


@dataclasses.dataclass(frozen=True)
class Source(posed.Source):
  """Sequences of DL3DV-10K.

  Attributes: those of `posed.Source` and
    resolution: Reduction factor of the pictures to read: 8 for images_8 and so
      on. By default the smallest pictures of a sequence that cover `size`
      (images_8 for 256), or the largest if none do or `size` is None.
    benchmark: Folder of IDs, or file with IDs, that lists the test sequences.
      By default benchmark-meta.csv or the folder benchmark in `source`.
      Sequences that only this folder has are read from it.
  """

  name: ClassVar[str] = 'dl3dv'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = (
    'DL3DV-10K with COLMAP cameras; lens distortion is not undone.'
  )

  resolution: int | None = None
  benchmark: str | None = None

  def items(self) -> list[sources.Item]:
    """Lists one item per sequence; see the base class."""
    if self.resolution not in (None, 1, 2, 4, 8):
      raise UserError(f'resolution={self.resolution} is none of 1, 2, 4 and 8')
    root = posed.folder(self.source, _EXPECTED)
    paths = {path.name: path for path in _sequences(root)}
    test = self._test_sequences(root)
    if not (paths or test):
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
    if not paths:
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
    ]

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the one clip of a sequence; see the base class."""
    path = epath.Path(item.payload)
    pictures = self._pictures(path)
    frames = _cameras(path)
    if any(frame.distortion for frame in frames.values()):
      logging.log_first_n(
        logging.INFO, 'the pictures keep the distortion of the lens', 1
      )
    views = []
    for picture in pictures:
      frame = frames.pop(picture.stem, None)
      views.append(
        posed.View(
          picture,
          picture.name,
          frame.intrinsics if frame else None,
          frame.world_to_camera if frame else None,
        )
      )
    if frames:
      logging.warning('%s: %d cameras have no picture', item.id, len(frames))
    yield self._clip(item.id, views)

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
        ids = {path.name: path for path in _sequences(place)}
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

  def _folders(self) -> list[str]:
    """Returns the names of picture folders, in order of preference."""
    if self.resolution is not None:
      return ['images' if self.resolution == 1 else f'images_{self.resolution}']
    small = [
      name
      for name, side in _FOLDERS.items()
      if self.size is None or side < self.size
    ]
    large = [name for name in _FOLDERS if name not in small]
    return large + small[::-1]

  def _pictures(self, path: epath.Path) -> list[epath.Path]:
    """Returns the pictures of a sequence in order."""
    names = self._folders()
    for name in names:
      for base in _BASES:
        folder = path / base / name
        if folder.is_dir():
          pictures = [
            p
            for p in folder.iterdir()
            # Hidden files are not pictures of the data set.
            if p.suffix.lower() in _SUFFIXES and not p.name.startswith('.')
          ]
          return sorted(pictures, key=lambda p: naming.natural(p.name))
    raise UserError(
      f'{path} has no {" or ".join(names)}, neither itself nor in nerfstudio/ '
      'or colmap/; download the sequence again'
    )


def _sequences(folder: epath.Path) -> Iterator[epath.Path]:
  """Yields the folders of sequences in a folder and its PARTs."""
  # Sorted, because an ID may be in two PARTs.
  for path in sorted(folder.iterdir()):
    if _ID.fullmatch(path.name):
      yield path
    elif _PART.fullmatch(path.name):
      yield from (p for p in path.iterdir() if _ID.fullmatch(p.name))


def _cameras(path: epath.Path) -> dict[str, camera_files.Frame]:
  """Returns the cameras of a sequence by picture name."""
  for base in _BASES:
    file = path / base / 'transforms.json'
    if file.exists():
      frames = camera_files.read_transforms(file)
      # The suffix may differ from the suffix of the reduced pictures.
      return {pathlib.PurePath(frame.path).stem: frame for frame in frames}
  logging.warning('%s has no transforms.json: no cameras', path)
  return {}
