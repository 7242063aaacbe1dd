"""The camera path of a film through a scene's views."""

import numpy as np
from jaxtyping import Float

from xfactor.errors import UserError
from xfactor.geometry import cameras, motions
from xfactor.inference import scene_views

# Views whose lines of sight are closer to parallel, by the mean squared sine of
# the angles to the first, do not say what they look at.
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
  """Cameras of a motion that starts where the first view's camera is.

  Args:
    views: Of the scene.
    motion: A key of `motions.MOTIONS`.
    height: Pixels of a picture.
    width: Pixels of a picture.
    frames: Pictures.
    faded: Whether speed is gained and lost evenly, see `motions.fade`.
    look_at: See `middle`.
    keep_lens: Whether the pictures' height shows as much as that of the first
      view, and not what the public code's lens shows.

  Returns:
    Normalised intrinsics and world-to-camera poses.

  Raises:
    UserError: If there is no such motion, or nothing to look at.
  """
  check_motion(motion)
  world_to_stage = stage(views, look_at)
  start = cameras.transform(
    world_to_stage, cameras.camera_centre(views.world_to_camera[0])
  )
  if np.linalg.norm(start[:2]) <= 1e-3 * np.linalg.norm(start):
    raise UserError(
      f'the first view of {views.name} is right above or below what the motion '
      'goes round; choose another point, --look_at=X,Y,Z'
    )
  lens = motions.public_lens(height, width)
  if keep_lens:
    fx, fy, cx, cy = views.intrinsics[0]
    rows, columns = views.images.shape[1:3]
    # Pictures of another shape show more or less at the sides.
    lens = np.array([fx * columns / rows * height / width, fy, cx, cy])
  t = motions.frame_times(motion, frames, faded=faded)
  lenses, poses = motions.fly(motion, t, start, lens)
  stages = np.broadcast_to(world_to_stage, poses.shape)
  return lenses, cameras.compose(poses, stages)


def check_motion(name: str) -> None:
  """Raises UserError if there is no camera motion of this name."""
  if name not in motions.MOTIONS:
    raise UserError(
      f'--motion={name} is no camera motion, and this model follows no other; '
      f'choose one of {", ".join(motions.MOTIONS)}'
    )


def stage(
  views: scene_views.Views, look_at: str | None
) -> Float[np.ndarray, '3 4']:
  """Pose that brings what a motion goes round to the origin, and z upwards.

  z stays as it is unless the clip's cameras are far from upright in it.
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
  """The point of the world that a motion goes round.

  Args:
    views: Of the scene.
    look_at: 'X,Y,Z', or a distance ahead of the first view. If None it is the
      world's origin, where all cameras of the clip have it in sight: as in the
      data sets of SRT, and as in its public code. Else the point on the first
      view's optical axis that is nearest to those of the clip's others.

  Raises:
    UserError: If there is no such point, or `look_at` is neither.
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
      f'--look_at={look_at} is no point X,Y,Z and no distance above 0'
    )
  # The translation of a pose is where the world's origin is for the camera.
  if (views.all_poses[:, 2, 3] > 0).all():
    origin = np.zeros((len(views.all_poses), 3))
    uv, _ = cameras.project(origin, views.all_intrinsics, views.all_poses)
    if ((uv > 0) & (uv < 1)).all():
      return origin[0]
  eyes, axes = cameras.camera_centre(views.all_poses), views.all_poses[:, 2, :3]
  # What of the first axis, and of the way to each eye, is across each axis.
  across = ahead - (axes @ ahead)[:, None] * axes
  angles = np.sum(across**2, axis=1)
  distance = np.sum(across * (eyes - eye)) / max(np.sum(angles), 1e-12)
  if angles.mean() < _PARALLEL or distance <= 0:
    raise UserError(
      f'the views of {views.name} have no common middle to go round; give '
      '--look_at=X,Y,Z or a distance ahead of the first view'
    )
  return eye + distance * ahead
