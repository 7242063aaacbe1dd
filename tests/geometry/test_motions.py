"""Camera motions and rays against those of SRT's public code."""

import numpy as np
import pytest

from tests.golden_tolerance import assert_close
from xfactor.geometry import cameras, motions

START = np.array([3.0, 1.0, 2.0])  # The first camera of the golden motions.
HEIGHT, WIDTH, FRAMES = 4, 6, 8


@pytest.mark.parametrize('name', motions.MOTIONS)
@pytest.mark.parametrize('faded', [False, True])
def test_public_motions(golden, name, faded):
  arrays = golden('srt_render_motions')
  name_there = f'motion/{name}' + '_fade' * faded
  t = motions.frame_times(name, FRAMES, faded=faded)
  lens = motions.public_lens(HEIGHT, WIDTH)
  intrinsics, poses = motions.fly(name, t, START, lens)
  inverse = cameras.invert_pose(arrays['canon/extrinsic'][:3].astype(float))
  for there, world_to_camera in (
    (name_there, poses),
    (
      f'{name_there}_canon',
      cameras.compose(poses, np.broadcast_to(inverse, poses.shape)),
    ),
  ):
    origins, rays = cameras.pixel_rays(
      intrinsics, world_to_camera, HEIGHT, WIDTH
    )
    # Near the canonical origin, they are differences of places of this size.
    scale = np.abs(START).max()
    places = arrays[f'{there}_pos']
    assert_close(origins[:, 0, 0], places, scale=scale, err_msg=there)
    assert_close(rays, arrays[f'{there}_rays'], err_msg=there)


def test_fade(golden):
  arrays = golden('srt_render_motions')
  assert_close(motions.fade(arrays['fade/t']), arrays['fade/value'])


@pytest.fixture(scope='module')
def utils(golden):
  return golden('srt_nerf_utils')


@pytest.mark.parametrize(
  ('camera', 'target', 'focal'),
  [
    (0, (0, 0, 0), 1),
    (1, (0.5, -0.2, 0.3), 1),
    (2, (0, 0, 0), 3.125 / 1.09375),
  ],
)
def test_public_cameras(utils, camera, target, focal):
  position = utils[f'rays/{camera}_pos']
  up = np.array([0.0, 0.0, 1.0])
  pose = cameras.look_at(position, np.array(target, float), up)
  for kind in ('from_rays', 'from_track', '3x4'):
    assert_close(pose, utils[f'ext/{camera}_{kind}'][:3], err_msg=kind)
  lens = motions.public_lens(6, 10) * [focal, focal, 1, 1]
  origins, rays = cameras.pixel_rays(lens, pose, 6, 10)
  assert_close(origins[0, 0], position)
  assert_close(rays, utils[f'rays/{camera}_rays'])
  _, rays = cameras.pixel_rays(lens, np.eye(3, 4), 6, 10)
  assert_close(rays, utils[f'ext/{camera}_rays_in_cam'])
  moved = cameras.transform(pose, position)
  assert_close(moved, utils[f'ext/{camera}_pos_in_cam'])


def test_public_turn(utils):
  points = utils['rotz/in']
  for point, turned in zip(points, utils['rotz/theta0.7'], strict=True):
    eyes, _, _ = motions.rotate(np.array([0.7 / (2 * np.pi)]), point)
    assert_close(eyes[0], turned)
