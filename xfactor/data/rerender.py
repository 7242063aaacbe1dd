"""Renders ground-truth pictures of converted scenes from any cameras.

They are the ground truth of the transfer test: B's scene after A's motion.
Sources implement the rendering; those of the rooms and of Freedoom support it.
"""

import functools
from typing import Protocol

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, UInt8

from xfactor.data import images, sources
from xfactor.data.records import codec
from xfactor.data.records import store as store_lib


def rerender(
  store: store_lib.FrameStore,
  clip: int,
  world_to_camera: Float[np.ndarray, 'n 4 4'],
  size: int,
) -> tuple[UInt8[np.ndarray, 'n s s 3'], Bool[np.ndarray, ' n']]:
  """Renders the scene of a clip again, with the clip's own intrinsics.

  The clip's own cameras reproduce its frames, except for JPEG loss.

  Args:
    store: Split of a converted data set; see `is_possible`.
    clip: Index of the clip within the split.
    world_to_camera: Cameras in the clip's world and units.
    size: Width and height of the result, resized from that of the frames.

  Returns:
    Pictures, and whether each camera is in free space. The pictures of other
    cameras (inside a wall, for instance) are black.

  Raises:
    ValueError: If the scene cannot be rendered again.
  """
  drawer, about = _renderer(store), store.clip(clip)
  free = drawer.is_free(about, world_to_camera[:, :3])
  pictures = np.zeros((len(free), size, size, 3), np.uint8)
  drawn = drawer.rerender(about, world_to_camera[free, :3])
  for i, picture in zip(np.flatnonzero(free), drawn, strict=True):
    pictures[i] = images.centre_crop_resize(picture, size)
  return pictures, free


def is_free(
  store: store_lib.FrameStore,
  clip: int,
  world_to_camera: Float[np.ndarray, 'n 4 4'],
) -> Bool[np.ndarray, ' n']:
  """Returns which cameras are in free space and can be rendered.

  See `rerender` for arguments and errors.
  """
  return _renderer(store).is_free(store.clip(clip), world_to_camera[:, :3])


def is_possible(store: store_lib.FrameStore) -> bool:
  """Returns whether the data's source, in this version, can render scenes."""
  return _source(store) is not None


class _Renderer(Protocol):
  """Renders the scenes of a data set again."""

  def is_free(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> Bool[np.ndarray, ' n']:
    """Returns which cameras can be rendered."""

  def rerender(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> UInt8[np.ndarray, 'n s s 3']:
    """Renders the clip's scene from free cameras, at the size of its frames."""


def _renderer(store: store_lib.FrameStore) -> _Renderer:
  drawer = _source(store)
  if drawer is None:
    raise ValueError(f'{store.name} cannot be rendered again')
  return drawer


@functools.lru_cache(maxsize=8)
def _source(store: store_lib.FrameStore) -> _Renderer | None:
  """Returns the source of a data set if it can render here, else None."""
  made = store.manifest()
  if made.get('source') not in sources.RERENDERED:
    return None
  source = sources.find(made['source'])
  if made['source_version'] != source.version:
    logging.warning(
      '%s was made by version %s of the %s source, not by this one, %s: '
      'its scenes cannot be rendered again',
      *(store.name, made['source_version'], source.name, source.version),
    )
    return None
  if not source.is_installed():
    logging.warning(
      'the scenes of %s cannot be rendered again without the ViZDoom package; '
      "install it with `pip install -e '.[vizdoom]'`",
      store.name,
    )
    return None
  return source(**made['options'])
