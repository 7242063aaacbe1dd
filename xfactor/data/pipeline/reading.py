"""Reads the frames of one example and skips unreadable clips."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from xfactor.data import images
from xfactor.data.pipeline import parts as parts_lib
from xfactor.data.records import codec
from xfactor.data.records import store as store_lib
from xfactor.data.views import frame_rng
from xfactor.errors import UserError
from xfactor.geometry.cameras import crop_intrinsics

# Clips tried in place of an unreadable one before giving up.
_MAX_ATTEMPTS = 20
_LOGGED = 20
# Errors raised when the bytes of an example are damaged on disk.
UNREADABLE = (RuntimeError, ValueError, OSError, images.ImageError)


def read_views(
  store: store_lib.FrameStore, clip: int, frames: np.ndarray, out: np.ndarray
) -> None:
  """Decodes frames into uint8 [views, H, W, 3]; may raise `UNREADABLE`."""
  stored = int(store.height[clip]), int(store.width[clip])
  for data, view in zip(store.clip_frames(clip, frames), out, strict=True):
    if stored == view.shape[:2]:
      images.decode(data, view)
    else:
      view[:] = images.centre_crop_resize(images.decode(data), *view.shape[:2])


def cameras_of(
  clip: codec.Clip, frames: np.ndarray, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
  """Returns the cameras of frames that `read_views` resizes to (H, W)."""
  return {
    'intrinsics': crop_intrinsics(
      clip.intrinsics[frames], clip.height, clip.width, shape=shape
    ),
    'world_to_camera': clip.world_to_camera[frames],
  }


class Load:
  """Turns stream indices and their (part, row) into a batch; picklable."""

  def __init__(
    self, config: parts_lib.DataConfig, parts: Sequence[parts_lib.OpenEntry]
  ):
    self._config = config
    self._parts = parts
    self._logged = 0
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_lock': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock())

  def __call__(
    self, elements: Sequence[tuple[int, tuple[int, int]]]
  ) -> dict[str, np.ndarray]:
    views = self._config.parts[0].views.num_views
    shape = len(elements), views, *self._config.image_shape, 3
    # Decode in place: stacking views and then examples would copy twice.
    pixels = np.empty(shape, np.uint8)
    rest = [self._fill(*pair) for pair in zip(elements, pixels, strict=True)]
    return {'images': pixels} | {
      key: np.stack([example[key] for example in rest]) for key in rest[0]
    }

  def _fill(
    self, element: tuple[int, tuple[int, int]], out: np.ndarray
  ) -> dict[str, Any]:
    """Reads one example's images into `out`; returns its other fields."""
    index, (number, row) = element
    opened = self._parts[number]
    rng = frame_rng(self._config.seed, index)
    for attempt in range(_MAX_ATTEMPTS):
      if attempt:
        rng = _retry_rng(self._config.seed, index, attempt)
        row = int(rng.integers(len(opened.rows)))
      clip = int(opened.rows[row])
      frames = opened.part.views(
        rng,
        int(opened.store.num_frames[clip]),
        index // self._config.batch_size,
      )
      try:
        read_views(opened.store, clip, frames, out)
        cameras = self._cameras(opened.store, clip, frames)
      except UNREADABLE as e:
        self._log(opened, clip, frames, e)
        continue
      # Sampled last, so that other samples do not depend on it.
      if rng.random() < self._config.mirror_prob:
        out[:] = out[:, :, ::-1].copy()
      return cameras | {
        'frames': np.asarray(frames, np.int32),
        'clip': np.int64(clip),
        'part': np.int32(number),
        'index': np.int64(index),
        'bad': np.int32(attempt),
      }
    raise UserError(
      f'{_MAX_ATTEMPTS} clips of {opened.store} in a row could not be read '
      '(see the log); copy or convert the data set again'
    )

  def _cameras(
    self, store: store_lib.FrameStore, clip: int, frames: np.ndarray
  ) -> dict[str, np.ndarray]:
    if not self._config.cameras:
      return {}
    return cameras_of(store.clip(clip), frames, self._config.image_shape)

  def _log(
    self,
    opened: parts_lib.OpenEntry,
    clip: int,
    frames: np.ndarray,
    error: Exception,
  ) -> None:
    with self._lock:
      self._logged += 1
      if self._logged > _LOGGED:
        return
    logging.warning(
      'Cannot read %s/%s clip %s (number %d) frames %s: %s; another clip '
      'takes its place.',
      opened.part.name,
      opened.part.split,
      opened.store.clip_id(clip),
      clip,
      np.asarray(frames).tolist(),
      error,
    )


def _retry_rng(seed: int, index: int, attempt: int) -> np.random.Generator:
  # Uses another counter word than frame_rng, so the streams never overlap.
  return np.random.Generator(
    np.random.Philox(seed, counter=[0, 0, attempt, index])
  )
