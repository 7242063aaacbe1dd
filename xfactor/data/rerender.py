"""True pictures of a converted scene from cameras of one's choice.

What the transfer test has no truth for elsewhere: B's scene after A's motion.
How they are drawn is a matter of the sources; rooms and Freedoom can be.
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
  """Which cameras are in free space, and such that the source can draw them.

  Arguments and errors are those of `rerender`.
  """
  return _renderer(store).is_free(store.clip(clip), world_to_camera[:, :3])


def is_possible(store: store_lib.FrameStore) -> bool:
  """Whether a source made the data that can draw anew, in this version."""
  return _source(store) is not None


class _Renderer(Protocol):
  """Who draws the scenes of a data set anew."""

  def is_free(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> Bool[np.ndarray, ' n']:
    """Which cameras see something that can be drawn."""

  def rerender(
    self, clip: codec.Clip, world_to_camera: Float[np.ndarray, 'n 3 4']
  ) -> UInt8[np.ndarray, 'n s s 3']:
    """Draws the clip's scene from free cameras, at the size of its frames."""


def _renderer(store: store_lib.FrameStore) -> _Renderer:
  drawer = _source(store)
  if drawer is None:
    raise ValueError(f'{store.name} cannot be drawn anew')
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
