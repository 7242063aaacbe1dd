"""Caches an oracle's results in files."""

import hashlib
import io
import json
import os
import threading
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from xfactor.data import files
from xfactor.evaluation.oracles import base

_CACHE_FORMAT = 1


class Cached(base.PoseOracle):
  """An oracle that caches its results in a folder, local or in a bucket.

  The key is a digest of the pictures' sha256, the scene, and the oracle's name,
  version and settings. Damaged files are computed again.
  """

  def __init__(self, oracle: base.PoseOracle, folder: str | os.PathLike[str]):
    self._oracle = oracle
    self._folder = files.data_folder(folder)
    self.name = oracle.name
    self.version = oracle.version
    self.cacheable = oracle.cacheable

  def settings(self) -> dict[str, Any]:
    return self._oracle.settings()

  def __call__(
    self, images: base.Images, scene: base.Scene | None = None
  ) -> base.PoseResult:
    return self.batch([(images, scene)])[0]

  def batch(
    self, clips: Sequence[tuple[base.Images, base.Scene | None]]
  ) -> list[base.PoseResult]:
    for images, _ in clips:
      base.check_images(images)
    if not self.cacheable:
      return [base.guarded(result) for result in self._oracle.batch(clips)]
    keys = [self._key(*clip) for clip in clips]
    known = {}
    missing = {}
    for key, clip in zip(keys, clips, strict=True):
      if key in known or key in missing:
        continue
      if result := _load(self._path(key), len(clip[0])):
        known[key] = result
      else:
        missing[key] = clip
    if missing:
      self._folder.mkdir(parents=True, exist_ok=True)
      made = self._oracle.batch(list(missing.values()))
      for key, result in zip(missing, made, strict=True):
        known[key] = base.guarded(result)
        _save(self._path(key), known[key])
    return [known[key] for key in keys]

  def _path(self, key: str) -> epath.Path:
    return self._folder / f'{self.name}-{key}.npz'

  def _key(self, images: base.Images, scene: base.Scene | None) -> str:
    shown = None
    if scene is not None:
      frames = np.asarray(scene.frames, np.int64).tolist()
      shown = [scene.store.digest, int(scene.clip), frames]
    pixels = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
    return files.digest(
      *(_CACHE_FORMAT, self.name, self.version, self.settings()),
      *(images.shape, pixels, shown),
    )


def _save(path: epath.Path, result: base.PoseResult) -> None:
  arrays = {
    'world_to_camera': result.world_to_camera,
    'ok': np.bool_(result.ok),
    'frame_ok': result.frame_ok,
    'info': np.array(json.dumps(result.info)),
  }
  if result.intrinsics is not None:
    arrays['intrinsics'] = result.intrinsics
  data = io.BytesIO()
  np.savez(data, **arrays)
  if files.is_remote(path):  # Writes to buckets are atomic.
    path.write_bytes(data.getvalue())
    return
  own = f'{files.partial_suffix()}-{threading.get_ident()}'
  partial = path.with_name(path.name + own)
  partial.write_bytes(data.getvalue())
  partial.replace(path)


def _load(path: epath.Path, num_views: int) -> base.PoseResult | None:
  """Reads a file of `_save`; returns None if it is missing or damaged."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return None
  try:
    with np.load(io.BytesIO(data)) as file:
      arrays = dict(file)
    poses, frame_ok = arrays['world_to_camera'], arrays['frame_ok']
    if poses.shape != (num_views, 4, 4) or frame_ok.shape != (num_views,):
      raise ValueError(f'poses of shape {poses.shape}')
    return base.PoseResult(
      world_to_camera=poses,
      ok=bool(arrays['ok']),
      frame_ok=frame_ok,
      intrinsics=arrays.get('intrinsics'),
      info=json.loads(str(arrays['info'])),
    )
  except (
    *(ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile),
    RuntimeError,  # Unknown compression or encryption.
  ) as error:
    logging.warning('%s is damaged (%s); computing it again', path, error)
    return None
