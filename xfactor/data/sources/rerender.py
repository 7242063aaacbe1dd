"""True pictures of a converted scene from cameras of one's choice.

What the transfer test has no truth for elsewhere: B's scene after A's motion.
How they are drawn is a matter of the sources; rooms and Freedoom can be.
"""

import dataclasses
import functools
from typing import Protocol

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, UInt8

from xfactor.data import images, records
from xfactor.data.sources import raycaster, synthetic, vizdoom

# Metres between the eye and the nearest surface, less than which shows little.
MIN_CLEARANCE = 0.1


def rerender(
  store: records.FrameStore,
  clip: int,
  world_to_camera: Float[np.ndarray, 'n 4 4'],
  size: int,
) -> tuple[UInt8[np.ndarray, 'n s s 3'], Bool[np.ndarray, ' n']]:
  """Draws the scene of a clip anew, with the clip's own intrinsics.

  From the clip's own cameras come its frames, but for the loss of JPEG.

  Args:
    store: Split of a converted data set for which it `is_possible`.
    clip: Row of it.
    world_to_camera: In the clip's world, in its units.
    size: Of the pictures, which are drawn at the size of the frames.

  Returns:
    Pictures, and which of the cameras are free. Where one is not, inside a
    wall, say, its picture is black.

  Raises:
    ValueError: If it is not possible.
  """
  drawer, about = _drawer(store), store.clip(clip)
  free = drawer.is_free(about, world_to_camera[:, :3])
  pictures = np.zeros((len(free), size, size, 3), np.uint8)
  drawn = drawer.redraw(about, world_to_camera[free, :3])
  for i, picture in zip(np.flatnonzero(free), drawn, strict=True):
    pictures[i] = images.centre_crop_resize(picture, size)
  return pictures, free


def is_free(
  store: records.FrameStore,
  clip: int,
  world_to_camera: Float[np.ndarray, 'n 4 4'],
) -> Bool[np.ndarray, ' n']:
  """Which cameras are in free space, and such that the source can draw them.

  Arguments and errors are those of `rerender`.
  """
  return _drawer(store).is_free(store.clip(clip), world_to_camera[:, :3])


def is_possible(store: records.FrameStore) -> bool:
  """Whether a source made the data that can draw anew, in this version."""
  return _source(store) is not None


class _Drawer(Protocol):
  """Who draws the scenes of a data set anew."""

  def is_free(
    self, clip: records.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> Bool[np.ndarray, ' n']:
    """Which cameras see something that can be drawn."""

  def redraw(
    self, clip: records.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> UInt8[np.ndarray, 'n s s 3']:
    """Draws the clip's scene from free cameras, at the size of its frames."""


def _drawer(store: records.FrameStore) -> _Drawer:
  drawer = _source(store)
  if drawer is None:
    raise ValueError(f'{store.name} cannot be drawn anew')
  return drawer


@functools.lru_cache(maxsize=8)
def _source(store: records.FrameStore) -> _Drawer | None:
  """Returns who draws a data set anew, None if nobody does."""
  made = store.manifest()
  classes = {x.name: x for x in (synthetic.Source, vizdoom.Source)}
  source = classes.get(made.get('source'))
  if source is None:
    return None
  if made['source_version'] != source.version:
    logging.warning(
      '%s was made by version %s of the %s source, not by this one, %s: '
      'its scenes cannot be drawn anew',
      *(store.name, made['source_version'], source.name, source.version),
    )
    return None
  if source is vizdoom.Source and not vizdoom.is_installed():
    logging.warning(
      'the scenes of %s cannot be drawn anew without the ViZDoom package; '
      "install it with `pip install -e '.[vizdoom]'`",
      store.name,
    )
    return None
  made = source(**made['options'])
  return _Rooms(made) if isinstance(made, synthetic.Source) else made


@dataclasses.dataclass(frozen=True)
class _Rooms:
  """Draws the rooms of the synthetic source; see `_Drawer`."""

  source: synthetic.Source

  def is_free(self, clip, world_to_camera):
    rotation, translation = world_to_camera[..., :3], world_to_camera[..., 3]
    eyes = -np.linalg.solve(rotation, translation[..., None])[..., 0]
    return raycaster.clearance(self._lit(clip).scene, eyes) >= MIN_CLEARANCE

  def redraw(self, clip, world_to_camera):
    # One camera for all frames of a clip.
    intrinsics = np.repeat(clip.intrinsics[:1], len(world_to_camera), 0)
    poses = world_to_camera.astype(np.float32)
    size = self.source.size
    drawn = raycaster.render(self._lit(clip), intrinsics, poses, size)
    pictures = np.zeros((len(poses), size, size, 3), np.uint8)
    for i, (picture, _) in enumerate(drawn):
      pictures[i] = picture
    return pictures

  def _lit(self, clip: records.Clip) -> raycaster.Baked:
    # The walks of a room are called 000003, 000003-1 and so on.
    return _baked(self.source, int(clip.id.partition('-')[0]))


# A scene takes a second, a frame of 128 pixels a thirtieth.
@functools.lru_cache(maxsize=4)
def _baked(source: synthetic.Source, index: int) -> raycaster.Baked:
  return raycaster.bake(source.scene(index)[0])
