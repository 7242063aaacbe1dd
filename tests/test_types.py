"""Annotations are checked in the tests, though `conftest` makes that quick."""

import jaxtyping
import numpy as np
import pytest

from xfactor.data import images, views
from xfactor.geometry import cameras

POSES, POINTS = np.zeros((2, 3, 4)), np.zeros((2, 3))


def test_what_fits_passes():
  cameras.transform(cameras.invert_pose(POSES), POINTS)
  images.decode(images.encode_png(np.zeros((4, 4, 3), np.uint8)))


@pytest.mark.parametrize(
  ('function', 'bad'),
  [
    (cameras.invert_pose, (POSES[..., :3],)),
    (cameras.invert_pose, (POSES.astype(int),)),
    (cameras.invert_pose, (POSES.tolist(),)),
    (cameras.transform, (POSES, POINTS[:1])),  # Of different sizes.
    (views.window_at, (1, 2, 3, '4')),
    (images.decode, (b'', 3)),  # Of a union.
  ],
)
def test_what_does_not_fit_its_annotation_is_refused(function, bad):
  with pytest.raises(jaxtyping.TypeCheckError):
    function(*bad)


def test_what_is_returned_is_checked():
  class Swapped:
    """Stands in for NumPy and gives arrays of another shape."""

    def __getattr__(self, name):
      return getattr(np, name)

    def concatenate(self, *args, **kwargs):
      return np.concatenate(*args, **kwargs)[:1]

  with pytest.raises(jaxtyping.TypeCheckError, match='return'):
    cameras.invert_pose(POSES, Swapped())
