"""What the main job says of motion: by degree of freedom, and transferred."""

import math

import numpy as np
import pytest

from xfactor.evaluation import motion
from xfactor.geometry import wander


def camera(yaw=0.0, pitch=0.0, roll=0.0, eye=(0.0, 0.0, 0.0)):
  path = wander.Path(
    np.array([eye]), np.array([yaw]), np.array([pitch]), np.array([roll])
  )
  return path.world_to_camera()[0]


@pytest.mark.parametrize('yaw', [0.0, 0.7, -2.5])
def test_each_freedom_is_told_from_the_others(yaw):
  """A camera that looks along `yaw` and then moves in one way."""
  start = camera(yaw)
  ahead = np.array([math.cos(yaw), math.sin(yaw), 0.0])
  right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
  moved = {
    'pan': camera(yaw - 0.2),  # To the right.
    'tilt': camera(yaw, 0.2),
    'roll': camera(yaw, 0.0, 0.2),
    'slide': camera(yaw, eye=0.2 * right),
    'rise': camera(yaw, eye=(0.0, 0.0, 0.2)),
    'push': camera(yaw, eye=0.2 * ahead),
  }
  assert list(moved) == list(wander.FREEDOMS)
  got = [motion.freedoms(start, pose) for pose in moved.values()]
  np.testing.assert_allclose(got, 0.2 * np.eye(6), atol=1e-12)


def test_explained_variance_is_of_what_the_latents_hold():
  rng = np.random.default_rng(0)
  motions = rng.normal(size=(600, 6)) * [0.2, 0.1, 0.001, 0.3, 0.3, 0.0]
  latents = np.stack(
    [
      3 * motions[:, 0] + motions[:, 3] + 5,
      motions[:, 0] - motions[:, 3],
      rng.normal(size=600),
    ],
    1,
  )
  explained = motion.explained_variance(
    latents[:400], motions[:400], latents[400:], motions[400:]
  )
  # Roll is a hundredth of the pan, and nothing pushes.
  assert list(explained) == ['pan', 'tilt', 'slide', 'rise']
  assert explained['pan'] > 0.99
  assert explained['slide'] > 0.99
  assert abs(explained['tilt']) < 0.1
  assert abs(explained['rise']) < 0.1


def test_the_line_has_all_freedoms():
  line = motion.explained_line('rooms', {'pan': 0.914, 'tilt': -0.02})
  assert line.endswith('pan 0.91, tilt -0.02')
