"""Pose oracles: what recovers the path of the camera from pictures.

To add one, write `xfactor/evaluation/oracles/NAME.py` with a class `Oracle`
whose arguments are its options and add NAME to `NAMES`. Scores of different
oracles are not comparable.
"""

import abc
import ast
import dataclasses
import hashlib
import importlib
import inspect
import io
import json
import os
import threading
import zipfile
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, UInt8

from xfactor.data import records
from xfactor.errors import UserError

NAMES = (
  'none',
  'file',
  'known_scene',
  'rerender',
  'learned',
  'colmap',
  'vggt',
)
Images = UInt8[np.ndarray, 'v h w 3']
# Largest entry of R R^T - 1 that rounded files and float32 leave behind.
_ORTHOGONAL = 1e-3
_CACHE_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class PoseResult:
  """The cameras of a clip of V pictures, as far as they could be told.

  Attributes:
    world_to_camera: float64 [V, 4, 4], OpenCV, frame 0 the identity; of
      arbitrary scale unless the oracle says otherwise. Without meaning, and
      perhaps not finite, where not `ok`.
    ok: Whether the poses of the whole clip count.
    frame_ok: bool [V], whether that of each frame does.
    intrinsics: float64 [V, 4] normalised (fx, fy, cx, cy), or None.
    info: What JSON can hold: `reasons` for what is not ok, and numbers.
  """

  world_to_camera: np.ndarray
  ok: bool
  frame_ok: np.ndarray
  intrinsics: np.ndarray | None = None
  info: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scene:
  """The converted clip whose scene pictures show.

  Attributes:
    store: Split that has the clip.
    clip: Its row there.
    frames: int [n], which of its frames the pictures are or claim to be, one a
      picture; else empty.
  """

  store: records.FrameStore
  clip: int
  frames: np.ndarray


class PoseOracle(abc.ABC):
  """What recovers poses.

  Class attributes:
    name: As in `NAMES`.
    version: To be raised with every change of what it gives.
    cacheable: Whether its results depend on nothing but its arguments and
      `settings`.
  """

  name: ClassVar[str]
  version: ClassVar[str]
  cacheable: ClassVar[bool] = True

  @abc.abstractmethod
  def settings(self) -> dict[str, Any]:
    """Returns all that its results depend on, weights too, as JSON can hold."""

  @abc.abstractmethod
  def __call__(self, images: Images, scene: Scene | None = None) -> PoseResult:
    """Returns the poses of a clip.

    Args:
      images: At least two pictures, in order of time.
      scene: What they show, where known; some oracles need it.

    Raises:
      UserError: If there is one picture alone or something is missing. Where
        merely the poses cannot be told, the result is not `ok`.
    """

  def batch(
    self, clips: Sequence[tuple[Images, Scene | None]]
  ) -> list[PoseResult]:
    """Returns the poses of several clips, in order; the same as one by one."""
    return [self(images, scene) for images, scene in clips]


class SceneOracle(PoseOracle):
  """An oracle that prepares each scene, which takes long: one after another."""

  def batch(
    self, clips: Sequence[tuple[Images, Scene | None]]
  ) -> list[PoseResult]:
    def row(i: int) -> int:
      scene = clips[i][1]
      return -1 if scene is None else int(scene.clip)

    out = {i: self(*clips[i]) for i in sorted(range(len(clips)), key=row)}
    return [out[i] for i in range(len(clips))]


def make(name: str, **options: Any) -> PoseOracle:
  """Returns the oracle called `name` with the given options.

  Raises:
    UserError: If there is no such oracle, it has no such option, or what it
      needs is missing.
  """
  if name not in NAMES:
    raise UserError(
      f'there is no pose oracle {name!r}; choose one of {", ".join(NAMES)}'
    )
  cls = importlib.import_module(f'{__name__}.{name}').Oracle
  parameters = inspect.signature(cls).parameters
  for key in options:
    if key not in parameters:
      raise UserError(
        f'the {name} oracle has no option {key!r}; it takes '
        f'{", ".join(sorted(parameters)) or "none"}'
      )
  for key, parameter in parameters.items():
    if parameter.default is parameter.empty and key not in options:
      raise UserError(f'the {name} oracle needs the option {key!r}')
  return cls(**options)


def parse_options(text: str) -> dict[str, Any]:
  """Parses `weights=model.pt,size=518`; numbers, booleans and None as such.

  Raises:
    UserError: If a part is not KEY=VALUE.
  """
  options = {}
  for part in filter(None, text.split(',')):
    key, equals, value = part.partition('=')
    if not equals:
      raise UserError(f'an oracle takes options as KEY=VALUE, not {part!r}')
    try:
      options[key.strip()] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      options[key.strip()] = value
  return options


def check_images(images: Images) -> None:
  """Refuses what has no relative pose.

  Raises:
    UserError: If there are fewer than two pictures.
  """
  if len(images) < 2:
    raise UserError(
      f'a pose oracle was given a clip of {len(images)} frame; poses are '
      'relative, so evaluate at least 2 frames a clip'
    )


def rigid(world_to_camera: Float[np.ndarray, 'v m 4']) -> np.ndarray:
  """Returns bool [V]: which [R|t] are finite and have a rotation for R."""
  rotation = world_to_camera[:, :3, :3].astype(np.float64)
  finite = np.isfinite(world_to_camera).all((1, 2))
  rotation = np.where(finite[:, None, None], rotation, 0.0)
  off = rotation @ rotation.mT - np.eye(3)
  close = np.abs(off).max((1, 2)) < _ORTHOGONAL
  return finite & close & (np.linalg.det(rotation) > 0)


def rebase(
  world_to_camera: Float[np.ndarray, 'v m 4'],
) -> Float[np.ndarray, 'v 4 4']:
  """Returns poses with the first camera as the world, in float64.

  Rotations are replaced by the nearest ones, lest rounding in a file show up as
  an angle. Poses that are not `rigid` become NaN, as do all if the first is.
  """
  good = rigid(world_to_camera)
  out = np.tile(np.eye(4), (len(good), 1, 1))
  u, _, vt = np.linalg.svd(world_to_camera[good, :3, :3].astype(np.float64))
  out[good, :3, :3] = u @ vt
  out[good, :3, 3] = world_to_camera[good, :3, 3]
  out[~good] = np.nan
  first = out[0].copy()
  # The inverse of a rigid pose, without rounding a rotation.
  first[:3, :3] = out[0, :3, :3].T
  first[:3, 3] = -first[:3, :3] @ out[0, :3, 3]
  out = out @ first
  if good[0]:
    out[0] = np.eye(4)
  return out


def from_poses(
  world_to_camera: Float[np.ndarray, 'v m 4'],
  intrinsics: Float[np.ndarray, 'v 4'] | None = None,
  **info: Any,
) -> PoseResult:
  """Returns the result that has these poses, `ok` if all of them are rigid."""
  frame_ok = rigid(world_to_camera)
  if lost := np.flatnonzero(~frame_ok).tolist():
    info['reasons'] = [*info.get('reasons', ()), _not_rigid(lost)]
  return PoseResult(
    world_to_camera=rebase(world_to_camera),
    ok=not lost,
    frame_ok=frame_ok,
    intrinsics=None if intrinsics is None else np.float64(intrinsics),
    info=info,
  )


def lost(num_frames: int, *reasons: str, **info: Any) -> PoseResult:
  """Returns the result of a clip of which no pose can be told."""
  return PoseResult(
    world_to_camera=np.full((num_frames, 4, 4), np.nan),
    ok=False,
    frame_ok=np.zeros(num_frames, bool),
    info={'reasons': list(reasons), **info},
  )


def still(num_frames: int, min_change: float, **info: Any) -> PoseResult:
  """Returns the result of a clip whose pictures hardly differ.

  Args:
    num_frames: Of the clip.
    min_change: Grey levels that they should differ by.
    **info: With `change`, what they do differ by.
  """
  reason = (
    f'the pictures differ by {info["change"]:.3g} grey levels at most, less '
    f'than {min_change:g}'
  )
  return dataclasses.replace(
    lost(num_frames, reason, **info),
    world_to_camera=np.tile(np.eye(4), (num_frames, 1, 1)),
  )


def guarded(result: PoseResult) -> PoseResult:
  """Returns a result that is not `ok` where a pose is not `rigid`."""
  good = rigid(result.world_to_camera)
  if good.all():
    return result
  reasons = list(result.info.get('reasons', ()))
  if result.ok:
    reasons.append(_not_rigid(np.flatnonzero(~good).tolist()))
  return dataclasses.replace(
    result,
    ok=False,
    frame_ok=result.frame_ok & good,
    info=result.info | {'reasons': reasons},
  )


def _not_rigid(frames: list[int]) -> str:
  return f'no finite, rigid pose for frames {", ".join(map(str, frames))}'


# ==============================================================================
# Results on disk
# ==============================================================================


class Cached(PoseOracle):
  """An oracle whose results are kept in a folder, local or in a bucket.

  They are found again by the sha256 of the pictures, the scene, and the
  oracle's name, version and settings. What is damaged is made again.
  """

  def __init__(self, oracle: PoseOracle, folder: str | os.PathLike[str]):
    self._oracle = oracle
    self._folder = records.data_folder(folder)
    self.name = oracle.name
    self.version = oracle.version
    self.cacheable = oracle.cacheable

  def settings(self) -> dict[str, Any]:
    return self._oracle.settings()

  def __call__(self, images: Images, scene: Scene | None = None) -> PoseResult:
    return self.batch([(images, scene)])[0]

  def batch(
    self, clips: Sequence[tuple[Images, Scene | None]]
  ) -> list[PoseResult]:
    for images, _ in clips:
      check_images(images)
    if not self.cacheable:
      return [guarded(result) for result in self._oracle.batch(clips)]
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
        known[key] = guarded(result)
        _save(self._path(key), known[key])
    return [known[key] for key in keys]

  def _path(self, key: str) -> epath.Path:
    return self._folder / f'{self.name}-{key}.npz'

  def _key(self, images: Images, scene: Scene | None) -> str:
    shown = None
    if scene is not None:
      frames = np.asarray(scene.frames, np.int64).tolist()
      shown = [scene.store.digest, int(scene.clip), frames]
    pixels = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
    return records.digest(
      *(_CACHE_FORMAT, self.name, self.version, self.settings()),
      *(images.shape, pixels, shown),
    )


def _save(path: epath.Path, result: PoseResult) -> None:
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
  if records.is_remote(path):  # Buckets show a file when it is whole.
    path.write_bytes(data.getvalue())
    return
  own = f'{records.partial_suffix()}-{threading.get_ident()}'
  partial = path.with_name(path.name + own)
  partial.write_bytes(data.getvalue())
  partial.replace(path)


def _load(path: epath.Path, num_views: int) -> PoseResult | None:
  """Returns what `_save` wrote, or None where it is missing or damaged."""
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
    return PoseResult(
      world_to_camera=poses,
      ok=bool(arrays['ok']),
      frame_ok=frame_ok,
      intrinsics=arrays.get('intrinsics'),
      info=json.loads(str(arrays['info'])),
    )
  except (
    *(ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile),
    RuntimeError,  # A method of compression or encryption that is none.
  ) as error:
    logging.warning('%s is damaged (%s): made again', path, error)
    return None
