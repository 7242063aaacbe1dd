"""Rays of converted clips against the golden ones of SRT's public loaders."""

import numpy as np

from tests.golden_tolerance import assert_close
from xfactor.data.records import codec
from xfactor.geometry import cameras


def check_rays(
  arrays: dict[str, np.ndarray],
  name: str,
  clip: codec.Clip,
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
  assert_close(transform, arrays[f'{name}_canon/transform'][:3])
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
      # Canonical places are differences of places of this size.
      scale = np.abs(pose[..., 3]).max() if key.endswith('_pos') else None
      assert_close(ours, golden, scale=scale, err_msg=key)
