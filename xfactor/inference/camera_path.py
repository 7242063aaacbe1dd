"""Camera paths through a scene, relative to its views."""

import numpy as np
from jaxtyping import Float

from xfactor.errors import UserError
from xfactor.geometry import cameras, motions
from xfactor.inference import scene_views

# Least mean squared sine of the angles between the first optical axis and the
# others: nearly parallel axes have no well-defined common point.
_PARALLEL = 1e-3


def path(
  views: scene_views.Views,
  motion: str,
  height: int,
  width: int,
  *,
  frames: int,
  faded: bool = False,
  look_at: str | None = None,
  keep_lens: bool = False,
) -> tuple[Float[np.ndarray, 'n 4'], Float[np.ndarray, 'n 3 4']]:
  """Returns the cameras of a motion that starts at the first view's camera.

  Args:
    views: Views of the scene.
    motion: Key of `motions.MOTIONS`.
    height: Height of the pictures in pixels.
    width: Width of the pictures in pixels.
    frames: Number of pictures.
    faded: Whether to accelerate and decelerate smoothly, see `motions.fade`.
    look_at: Centre of the motion, see `middle`.
    keep_lens: Whether to use the vertical field of view of the first view, not
      the lens of the public code.

  Returns:
    Normalised intrinsics and world-to-camera poses.

  Raises:
    UserError: If the motion is unknown or has no centre.
  """
  check_motion(motion)
  world_to_stage = stage(views, look_at)
  start = cameras.transform(
    world_to_stage, cameras.camera_centre(views.world_to_camera[0])
  )
  if np.linalg.norm(start[:2]) <= 1e-3 * np.linalg.norm(start):
    raise UserError(
      f'the first view of {views.name} is right above or below the centre of '
      'the motion; choose another one with --look_at=X,Y,Z'
    )
  lens = motions.public_lens(height, width)
  if keep_lens:
    fx, fy, cx, cy = views.intrinsics[0]
    rows, columns = views.images.shape[1:3]
    # Another aspect ratio changes the horizontal field of view only.
    lens = np.array([fx * columns / rows * height / width, fy, cx, cy])
  t = motions.frame_times(motion, frames, faded=faded)
  lenses, poses = motions.fly(motion, t, start, lens)
  stages = np.broadcast_to(world_to_stage, poses.shape)
  return lenses, cameras.compose(poses, stages)


def check_motion(name: str) -> None:
  """Raises UserError if there is no camera motion of this name."""
  if name not in motions.MOTIONS:
    raise UserError(
      f'--motion={name} is not a camera motion, and this model takes nothing '
      f'else; choose one of {", ".join(motions.MOTIONS)}'
    )


def stage(
  views: scene_views.Views, look_at: str | None
) -> Float[np.ndarray, '3 4']:
  """Returns the pose that moves the centre to the origin and up to +z.

  The rotation is the identity unless the clip's cameras are far from upright.
  """
  centre = middle(views, look_at)
  up = -views.all_poses[:, 1, :3].mean(0)
  rotation = np.eye(3)
  if up[2] < 0.5 * np.linalg.norm(up):
    up = cameras.normalize(up)
    right = cameras.normalize(np.cross(views.world_to_camera[0, 2, :3], up))
    rotation = np.stack([right, np.cross(up, right), up])
  return np.concatenate([rotation, -rotation @ centre[:, None]], axis=1)


def middle(
  views: scene_views.Views, look_at: str | None
) -> Float[np.ndarray, '3']:
  """Returns the world point that a motion is centred on.

  Args:
    views: Views of the scene.
    look_at: 'X,Y,Z', or a distance ahead of the first view. If None, the
      world's origin if all cameras of the clip see it, as in the data sets and
      the public code of SRT; otherwise the point on the first view's optical
      axis that is nearest to the other optical axes of the clip.

  Raises:
    UserError: If there is no such point, or `look_at` is invalid.
  """
  pose = views.world_to_camera[0]
  eye, ahead = cameras.camera_centre(pose), pose[2, :3]
  if look_at is not None:
    try:
      point = np.array([float(x) for x in look_at.split(',')])
    except ValueError:
      point = np.zeros(0)
    if point.shape == (3,) and np.isfinite(point).all():
      return point
    if point.shape == (1,) and 0 < point[0] < np.inf:
      return eye + point * ahead
    raise UserError(
      f'--look_at={look_at} is neither a point X,Y,Z nor a distance above 0'
    )
  # The translation of a pose is the world's origin in camera coordinates.
  if (views.all_poses[:, 2, 3] > 0).all():
    origin = np.zeros((len(views.all_poses), 3))
    uv, _ = cameras.project(origin, views.all_intrinsics, views.all_poses)
    if ((uv > 0) & (uv < 1)).all():
      return origin[0]
  eyes, axes = cameras.camera_centre(views.all_poses), views.all_poses[:, 2, :3]
  # Component of the first axis orthogonal to each other axis.
  across = ahead - (axes @ ahead)[:, None] * axes
  angles = np.sum(across**2, axis=1)
  distance = np.sum(across * (eyes - eye)) / max(np.sum(angles), 1e-12)
  if angles.mean() < _PARALLEL or distance <= 0:
    raise UserError(
      f'the views of {views.name} have no common centre to look at; pass '
      '--look_at=X,Y,Z or a distance ahead of the first view'
    )
  return eye + distance * ahead
