"""Names of pictures and names of cameras."""

import numpy as np
import pytest

from xfactor.data.formats import colmap, lens
from xfactor.data.sources import captures


@pytest.mark.parametrize(
  ('pictures', 'cameras', 'expected'),
  [
    (['a.jpg'], ['a.jpg', 'b.jpg'], {'a.jpg': 'a.jpg'}),
    (['a.jpg'], ['A.PNG'], {'a.jpg': 'A.PNG'}),
    (['a.jpg', 'a.png'], ['a.png'], {'a.png': 'a.png'}),
    (['f.png'], ['images/f.png'], {'f.png': 'images/f.png'}),
    (['f.png'], ['./train/f'], {'f.png': './train/f'}),
    (['l/f.png'], ['C:\\x\\l\\f.png'], {'l/f.png': 'C:\\x\\l\\f.png'}),
    (['l/f.png'], ['r/f.png'], {}),
    (['l/f.png', 'r/f.png'], ['r/f.png'], {'r/f.png': 'r/f.png'}),
    # Which of the two it is, nobody can say.
    (['f.png'], ['l/f.png', 'r/f.png'], {}),
    (['0.25.png', '0.5.png'], ['0.25', '0.5'], None),
    (['1.jpg'], ['11.jpg', '01.jpg'], {}),
  ],
)
def test_match(pictures, cameras, expected):
  camera = lens.make_camera('PINHOLE', 2, 2, [1.0] * 4)
  named = {n: colmap.Image(camera, np.zeros((3, 4))) for n in cameras}
  if expected is None:
    expected = dict(zip(pictures, cameras, strict=True))
  found = captures.match(pictures, named)
  assert {
    p: n for p in found for n in named if named[n] is found[p]
  } == expected
