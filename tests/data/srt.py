"""Rays of converted clips against the golden ones of SRT's public loaders."""

import numpy as np

from xfactor.data import records
from xfactor.geometry import cameras


def check_rays(
  arrays: dict[str, np.ndarray],
  name: str,
  clip: records.Clip,
  first: int,
  select,
) -> None:
  """Compares a clip's rays in the world and in a view's coordinates.

  Args:
    arrays: The golden file.
    name: What its keys begin with.
    clip: The converted clip.
    first: The view of the canonical coordinates.
    select: Returns, from the origins and rays [views, height, width, 3], what
      the golden file has of them, by its keys.
  """
  pose = clip.world_to_camera
  transform = pose[first]
  np.testing.assert_allclose(
    transform, arrays[f'{name}_canon/transform'][:3], atol=1e-5
  )
  inverse = np.broadcast_to(cameras.invert_pose(transform), pose.shape)
  for kind, poses in (
    ('world', pose),
    ('canon', cameras.compose(pose, inverse)),
  ):
    origins, rays = cameras.pixel_rays(
      clip.intrinsics, poses, clip.height, clip.width
    )
    for key, ours in select(origins, rays).items():
      golden = arrays[f'{name}_{kind}/{key}']
      np.testing.assert_allclose(ours, golden, atol=1e-5, err_msg=key)
