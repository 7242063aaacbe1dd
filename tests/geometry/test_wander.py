"""Wandering paths: angles, freedoms, bounds, speeds."""

import numpy as np
import pytest

from xfactor.geometry import wander

EYE = np.array([1.0, -2.0, 3.0])


def _draw(freedoms, seed=0, frames=200, turn=0.1, move=0.5):
  return wander.wander(
    np.random.default_rng(seed),
    frames,
    freedoms,
    eye=EYE,
    yaw=0.7,
    turn=turn,
    move=move,
  )


def test_angles_invert_rotations():
  rng = np.random.default_rng(0)
  yaw, roll = rng.uniform(-np.pi, np.pi, (2, 50))
  pitch = rng.uniform(-1.5, 1.5, 50)
  rotation = wander.rotations(yaw, pitch, roll)
  identity = np.broadcast_to(np.eye(3), rotation.shape)
  np.testing.assert_allclose(
    rotation @ rotation.swapaxes(1, 2), identity, atol=1e-12
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1)
  np.testing.assert_allclose(
    wander.angles(rotation), [yaw, pitch, roll], atol=1e-9
  )


def test_directions_of_angles():
  # North, up, and rolled clockwise.
  yaw = np.array([np.pi / 2, 0.0, 0.0])
  pitch, roll = np.array([[0.0, 0.1, 0.0], [0.0, 0.0, 0.1]])
  north, up, rolled = wander.rotations(yaw, pitch, roll)
  np.testing.assert_allclose(
    north, [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-12
  )
  assert up[2, 2] == pytest.approx(np.sin(0.1))
  # The right side of the camera is the lower one.
  assert rolled[0, 2] == pytest.approx(-np.sin(0.1))


@pytest.mark.parametrize('name', wander.FREEDOMS)
def test_only_the_named_freedom_moves(name):
  path = _draw((name,))
  assert (np.ptp(path.yaw) > 0) == (name == 'pan')
  assert (np.ptp(path.pitch) > 0) == (name == 'tilt')
  assert (np.ptp(path.roll) > 0) == (name == 'roll')
  assert path.roll.any() == (name == 'roll')
  ahead = np.array([np.cos(0.7), np.sin(0.7), 0])
  right = np.array([np.sin(0.7), -np.cos(0.7), 0])
  moved = (path.eyes - EYE) @ np.stack([right, [0, 0, 1], ahead]).T
  for i, axis in enumerate(('slide', 'rise', 'push')):
    assert (np.ptp(moved[:, i]) > 1) == (name == axis)
  np.testing.assert_array_equal(path.eyes[0], EYE)
  assert path.yaw[0] == 0.7


def test_a_freedom_does_not_change_another():
  alone, both = _draw(('pan',)), _draw(('pan', 'tilt', 'push'))
  np.testing.assert_array_equal(alone.yaw, both.yaw)


def test_tilt_and_roll_stay_in_bounds():
  paths = [_draw(('tilt', 'roll'), seed, turn=0.3) for seed in range(8)]
  pitch = np.degrees([np.abs(path.pitch).max() for path in paths])
  roll = np.degrees([np.abs(path.roll).max() for path in paths])
  assert 19 < pitch.max() <= 20
  assert 14 < roll.max() <= 15


def test_speeds():
  paths = [_draw(wander.FREEDOMS, seed) for seed in range(16)]
  turns = np.stack([np.diff(path.yaw) for path in paths])
  steps = np.stack([np.diff(path.eyes, axis=0) for path in paths])
  assert np.sqrt(np.square(turns).mean()) == pytest.approx(0.1, rel=0.1)
  speed = np.sqrt(np.square(steps).sum(-1).mean())
  assert speed == pytest.approx(0.5 * np.sqrt(3), rel=0.1)
  # Smooth: neighbouring steps are alike.
  assert np.abs(np.diff(turns[:, 1:])).mean() < 0.5 * np.abs(turns).mean()


def test_the_draw_is_deterministic():
  paths = [_draw(wander.FREEDOMS, seed) for seed in (1, 1, 2)]
  poses = [path.world_to_camera() for path in paths]
  np.testing.assert_array_equal(poses[0], poses[1])
  assert np.abs(poses[0] - poses[2]).max() > 0.1


def test_world_to_camera_puts_the_eye_at_the_origin():
  path = _draw(wander.FREEDOMS, frames=5)
  pose = path.world_to_camera()
  assert pose.shape == (5, 3, 4)
  at = np.einsum('nij,nj->ni', pose[:, :, :3], path.eyes) + pose[:, :, 3]
  np.testing.assert_allclose(at, 0, atol=1e-12)
  np.testing.assert_allclose(
    wander.angles(pose[:, :, :3])[1], path.pitch, atol=1e-12
  )


def test_parse():
  assert wander.parse('tilt+pan') == ('pan', 'tilt')
  assert wander.parse('push') == ('push',)
  for kind in ('', 'pan+', 'pan tilt', 'zoom', 'pan+zoom'):
    assert wander.parse(kind) is None
  with pytest.raises(ValueError, match="'zoom' is not a degree of free"):
    _draw(('zoom',))
