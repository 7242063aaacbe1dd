"""True pictures of a converted synthetic scene from cameras of one's choice.

What the transfer test has no truth for elsewhere: B's scene after A's motion.
"""

import functools

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, UInt8

from xfactor.data import images, records
from xfactor.data.sources import raycaster, synthetic

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
    store: Split of a converted synthetic data set.
    clip: Row of it.
    world_to_camera: In the clip's world, in metres.
    size: Of the pictures, which are drawn at the size of the frames.

  Returns:
    Pictures, and which of the eyes are in free space. Where one is not, inside
    a wall, say, its picture is black.

  Raises:
    ValueError: If it is not possible.
  """
  source, baked = _lit(store, clip)
  free = is_free(store, clip, world_to_camera)
  # One camera for all frames of a clip.
  intrinsics = np.repeat(store.clip(clip).intrinsics[:1], free.sum(), 0)
  poses = world_to_camera[free, :3].astype(np.float32)
  pictures = np.zeros((len(free), size, size, 3), np.uint8)
  drawn = raycaster.render(baked, intrinsics, poses, source.size)
  for i, (picture, _) in zip(np.flatnonzero(free), drawn, strict=True):
    pictures[i] = images.centre_crop_resize(picture, size)
  return pictures, free


def is_free(
  store: records.FrameStore,
  clip: int,
  world_to_camera: Float[np.ndarray, 'n 4 4'],
) -> Bool[np.ndarray, ' n']:
  """Which eyes are in free space; arguments and errors as of `rerender`."""
  _, baked = _lit(store, clip)
  eyes = np.linalg.inv(world_to_camera)[:, :3, 3]
  return raycaster.clearance(baked.scene, eyes) >= MIN_CLEARANCE


def is_possible(store: records.FrameStore) -> bool:
  """Whether this version of the synthetic source made the data."""
  return _source(store) is not None


@functools.lru_cache(maxsize=8)
def _source(store: records.FrameStore) -> synthetic.Source | None:
  """Returns the source that made a data set, None if it is another."""
  made = store.manifest()
  if made.get('source') != synthetic.Source.name:
    return None
  if made['source_version'] != synthetic.Source.version:
    logging.warning(
      '%s was made by version %s of the synthetic source, not by this one, %s: '
      'its scenes cannot be drawn anew',
      *(store.name, made['source_version'], synthetic.Source.version),
    )
    return None
  return synthetic.Source(**made['options'])


def _lit(
  store: records.FrameStore, clip: int
) -> tuple[synthetic.Source, raycaster.Baked]:
  source = _source(store)
  if source is None:
    raise ValueError(f'{store.name} cannot be drawn anew')
  return source, _baked(source, int(store.clip_id(clip)))


# A scene takes a second, a frame of 128 pixels a thirtieth.
@functools.lru_cache(maxsize=4)
def _baked(source: synthetic.Source, index: int) -> raycaster.Baked:
  return raycaster.bake(source.scene(index)[0])
