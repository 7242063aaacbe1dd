"""CLEVR3D: scenes of simple solids, three views of 320 x 240 pixels.

The data set of ObSuRF (Stelzner et al., 2021), stelzner.github.io/obsurf:

  SOURCE/metadata.npz            camera_pos [scenes, 3, 3], shape [scenes, max]
  SOURCE/images/img_S_V.png      view V of scene S

Cameras, splits and the selection of scenes match SRT's public code
(stelzner/srt, `srt/data/obsurf.py`): the cameras look at the origin without
roll, and scenes with more than `max_objects` objects are skipped.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from xfactor.data import sources
from xfactor.data.formats import npz
from xfactor.data.sources import posed
from xfactor.errors import UserError
from xfactor.geometry import cameras

EXPECTED = 'metadata.npz and images/img_SCENE_VIEW.png'
VIEWS = 3

_BLOCK = 100  # Scenes per item.
_SCENE_BYTES = VIEWS * 60_000
_FOCAL_LENGTH, _SENSOR_WIDTH, _SENSOR_HEIGHT = 0.035, 0.032, 0.024
_INTRINSICS = np.array(
  [_FOCAL_LENGTH / _SENSOR_WIDTH, _FOCAL_LENGTH / _SENSOR_HEIGHT, 0.5, 0.5]
)


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """One clip per scene, named by its number, in the published splits.

  Attributes:
    source: Folder with metadata.npz.
    size: Width and height of the centre-cropped frames, or None for whole
      pictures.
    quality: JPEG quality, used if `size` is given.
    max_objects: Maximum number of objects; scenes with more are skipped.
  """

  name: ClassVar[str] = 'clevr3d'
  version: ClassVar[str] = '1.0.0'
  description: ClassVar[str] = 'CLEVR3D: solids on a plane, three views each.'
  reads: ClassVar[str] = r'metadata\.npz|images/img_\d+_\d+\.png'
  splits: ClassVar[dict[str, tuple[int, int]]] = {
    'train': (0, 70_000),
    'val': (70_000, 75_000),
    'test': (85_000, 100_000),
  }

  source: str
  size: int | None = None
  quality: int = 95
  max_objects: int = 6

  def items(self) -> list[sources.Item]:
    """Lists one item per hundred scenes; see the base class."""
    root = posed.folder(self.source, EXPECTED)
    if not (root / 'metadata.npz').exists():
      raise posed.wrong_layout(root, EXPECTED)
    positions, objects = _metadata(root / 'metadata.npz')
    items = []
    for split, (begin, end) in self.splits.items():
      for first in range(begin, min(end, len(objects)), _BLOCK):
        block = np.arange(first, min(first + _BLOCK, end, len(objects)))
        block = block[objects[block] <= self.max_objects]
        if block.size:
          items.append(
            sources.Item(
              f'{first:06d}',
              [(int(scene), positions[scene].tolist()) for scene in block],
              split=split,
              size=len(block) * _SCENE_BYTES,
              bundle=True,
            )
          )
    return items

  def clips(self, item: sources.Item) -> Iterator[sources.Clip]:
    """Yields the clips of a block of scenes; see the base class.

    Raises:
      UserError: After all other clips, if some scenes are unusable.
    """
    yield from posed.bundle(
      f'the block {item.id}',
      (
        functools.partial(self._clip, scene, np.array(positions))
        for scene, positions in item.payload
      ),
    )

  def _clip(self, scene: int, positions: np.ndarray) -> sources.Clip:
    """Returns the clip of a scene from its camera positions [views, 3]."""
    folder = epath.Path(self.source).expanduser() / 'images'
    if not (np.abs(positions[:, :2]).max(axis=-1) > 0).all():
      raise UserError(f'scene {scene} has a camera on the z axis')
    poses = cameras.look_at(
      positions, np.zeros_like(positions), np.array([0.0, 0.0, 1.0])
    )
    views = []
    for i, pose in enumerate(poses):
      name = f'img_{scene}_{i}.png'
      views.append(posed.View(folder / name, name, _INTRINSICS, pose))
    # Experiments require all views.
    return posed.make_clip(
      f'{scene:06d}',
      views,
      size=self.size,
      quality=self.quality,
      min_length=VIEWS,
    )


def _metadata(path: epath.Path) -> tuple[np.ndarray, np.ndarray]:
  """Returns the camera positions [scenes, views, 3] and object counts."""
  try:
    arrays = npz.read(path)
    positions = arrays['camera_pos'][:, :VIEWS].astype(np.float64)
    objects = (arrays['shape'] > 0).sum(axis=1)
  except (ValueError, KeyError, IndexError) as error:
    raise UserError(
      f'{path} cannot be read: {error}; download it again'
    ) from error
  return positions, objects
