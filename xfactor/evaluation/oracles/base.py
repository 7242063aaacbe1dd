"""The interface of pose oracles and their results."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from xfactor.data.records import store
from xfactor.errors import UserError

Images = UInt8[np.ndarray, 'v h w 3']
# Largest entry of R R^T - 1 to accept as rounding error of files and float32.
_ORTHOGONAL = 1e-3


@dataclasses.dataclass(frozen=True)
class PoseResult:
  """Estimated cameras of a clip of V pictures.

  Attributes:
    world_to_camera: float64 [V, 4, 4], OpenCV, frame 0 the identity; of
      arbitrary scale unless the oracle says otherwise. Meaningless, and perhaps
      not finite, where not `ok`.
    ok: Whether the poses of the whole clip count.
    frame_ok: bool [V], whether the pose of each frame counts.
    intrinsics: float64 [V, 4] normalised (fx, fy, cx, cy), or None.
    info: JSON values: `reasons` why something is not ok, and numbers.
  """

  world_to_camera: np.ndarray
  ok: bool
  frame_ok: np.ndarray
  intrinsics: np.ndarray | None = None
  info: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scene:
  """The converted clip whose scene is in the pictures.

  Attributes:
    store: Split that has the clip.
    clip: Row of the clip in the split.
    frames: int [n], frames of the clip that the pictures are or claim to be,
      one per picture; else empty.
  """

  store: store.FrameStore
  clip: int
  frames: np.ndarray


class PoseOracle(abc.ABC):
  """Interface of pose oracles.

  Class attributes:
    name: Name from `NAMES`.
    version: Version; increase it with every change of the results.
    cacheable: Whether the results depend only on the arguments and `settings`.
  """

  name: ClassVar[str]
  version: ClassVar[str]
  cacheable: ClassVar[bool] = True

  @abc.abstractmethod
  def settings(self) -> dict[str, Any]:
    """Returns, as JSON values, all that results depend on, weights included."""

  @abc.abstractmethod
  def __call__(self, images: Images, scene: Scene | None = None) -> PoseResult:
    """Returns the poses of a clip.

    Args:
      images: At least two pictures, in order of time.
      scene: Scene that they show, if known; some oracles need it.

    Raises:
      UserError: If there is only one picture or something is missing. If only
        the poses cannot be found, the result is not `ok`.
    """

  def batch(
    self, clips: Sequence[tuple[Images, Scene | None]]
  ) -> list[PoseResult]:
    """Returns the poses of several clips in order, the same as one by one."""
    return [self(images, scene) for images, scene in clips]


def check_images(images: Images) -> None:
  """Checks that there are relative poses.

  Raises:
    UserError: If there are fewer than two pictures.
  """
  if len(images) < 2:
    raise UserError(
      f'a pose oracle was given a clip of {len(images)} frame; poses are '
      'relative, so evaluate at least 2 frames per clip'
    )


def rigid(world_to_camera: Float[np.ndarray, 'v m 4']) -> np.ndarray:
  """Returns bool [V]: whether [R|t] is finite and R a rotation."""
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

  Matrices are replaced by the nearest rotations, so that rounding in a file
  does not become an angle. Poses that are not `rigid` become NaN; all poses do
  if the first is not rigid.
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
  """Returns a result with these poses, `ok` if all of them are rigid."""
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
  """Returns the result of a clip without any known pose."""
  return PoseResult(
    world_to_camera=np.full((num_frames, 4, 4), np.nan),
    ok=False,
    frame_ok=np.zeros(num_frames, bool),
    info={'reasons': list(reasons), **info},
  )


def still(num_frames: int, min_change: float, **info: Any) -> PoseResult:
  """Returns the result of a clip whose pictures hardly differ.

  Args:
    num_frames: Number of frames of the clip.
    min_change: Grey levels by which the pictures should differ.
    **info: Info with `change`, the grey levels by which they do differ.
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
  """Returns the result, not `ok` where a pose is not `rigid`."""
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
