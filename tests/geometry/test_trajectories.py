"""Camera paths: exact curves, and what every kind promises."""

import numpy as np
import pytest

from xfactor.geometry import trajectories

START, FOCUS = np.array([2.0, 0.5, 1.4]), np.array([-0.3, 0.2, 0.8])
TIMES = np.linspace(0, 1, 101)


def test_arc_keeps_height_and_radius():
  eyes = trajectories.arc(TIMES, START, FOCUS, 1.5)
  np.testing.assert_allclose(eyes[0], START)
  np.testing.assert_allclose(eyes[:, 2], START[2])
  radius = np.linalg.norm((eyes - FOCUS)[:, :2], axis=-1)
  np.testing.assert_allclose(radius, radius[0])
  a, b = (eyes[[0, -1]] - FOCUS)[:, :2] / radius[0]
  np.testing.assert_allclose(np.arccos(a @ b), 1.5)


def test_spline_passes_through_its_points():
  points = np.random.default_rng(0).normal(size=(5, 3))
  curve = trajectories.spline(np.linspace(0, 1, 5), points)
  np.testing.assert_allclose(curve, points, atol=1e-12)


def test_spline_of_two_points_is_a_line():
  np.testing.assert_allclose(
    trajectories.spline(TIMES, np.stack([START, FOCUS])),
    trajectories.line(TIMES, START, FOCUS),
    atol=1e-12,
  )


@pytest.mark.parametrize('kind', trajectories.KINDS)
@pytest.mark.parametrize('seed', range(5))
def test_kinds(kind, seed):
  path = trajectories.random_path(
    kind, np.random.default_rng(seed), START, FOCUS, 2.0
  )
  eyes, targets = path(TIMES)
  assert eyes.shape == targets.shape == (101, 3)
  # Enough parallax, not much farther than asked.
  travelled = np.linalg.norm(np.diff(eyes, axis=0), axis=-1).sum()
  assert 0.4 < travelled < 3.5
  # Smooth: the velocity changes little from one step to the next.
  speed = np.diff(eyes, axis=0) / 0.01
  assert np.linalg.norm(np.diff(speed, axis=0), axis=-1).max() < 0.5
  # Pure, and the same at each moment however finely it is sampled.
  again = path(TIMES[::10])
  np.testing.assert_array_equal(again[0], eyes[::10])
  np.testing.assert_array_equal(again[1], targets[::10])
