"""Camera paths relative to the first view."""

import numpy as np
import pytest

from xfactor.geometry import cameras, flights

DISTANCE = 2.0


def fly(name, amount, frames=8):
  return flights.fly(name, frames, amount, DISTANCE)


@pytest.mark.parametrize('name', flights.FLIGHTS)
def test_all_start_at_the_reference_and_grow_with_the_amount(name):
  small, large = fly(name, 0.1), fly(name, 0.5)
  for path in (small, large):
    np.testing.assert_allclose(path[0], np.eye(3, 4), atol=1e-12)
    rotations = path[:, :, :3]
    np.testing.assert_allclose(
      rotations @ rotations.swapaxes(1, 2),
      np.broadcast_to(np.eye(3), rotations.shape),
      atol=1e-12,
    )
  still = np.eye(3, 4)
  ratio = np.linalg.norm(large - still) / np.linalg.norm(small - still)
  assert ratio == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize(
  ('name', 'ahead'),
  [('pan', [1, 0, 0]), ('tilt', [0, -1, 0])],
)
def test_turns_are_to_the_right_and_up(name, ahead):
  # A quarter of the path is the largest turn.
  sight = fly(name, 90)[2, 2, :3]
  np.testing.assert_allclose(sight, ahead, atol=1e-12)


@pytest.mark.parametrize(
  ('name', 'eye'),
  [('slide', [1, 0, 0]), ('rise', [0, -1, 0]), ('dolly', [0, 0, 1])],
)
def test_moves_are_right_up_and_ahead(name, eye):
  centres = cameras.camera_centre(fly(name, 0.3))
  np.testing.assert_allclose(centres[2], 0.3 * np.array(eye), atol=1e-12)
  np.testing.assert_allclose(centres[6], -0.3 * np.array(eye), atol=1e-12)


@pytest.mark.parametrize('name', ['orbit', 'spiral'])
def test_orbits_look_at_their_point(name):
  path = fly(name, 0.4 if name == 'spiral' else 25)
  point = np.broadcast_to([0, 0, DISTANCE], (8, 3))
  seen = cameras.transform(path, point)
  np.testing.assert_allclose(seen[:, :2], 0, atol=1e-12)
  if name == 'orbit':
    np.testing.assert_allclose(seen[:, 2], DISTANCE)
