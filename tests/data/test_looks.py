"""The same footage in two splits is found, whatever its size and bytes."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.data.convert import test_run
from xfactor.data import duplicates, findings, images, looks, sources, verify
from xfactor.data.records import codec


def footage(seed, count=12, side=96):
  """A pan over something that is like no other seed's."""
  rng = np.random.default_rng(seed)
  wide = ndimage.gaussian_filter(
    rng.random((side, side + 2 * count, 3)), (5, 5, 0)
  )
  wide = 255 * (wide - wide.min()) / np.ptp(wide)
  return [wide[:, 2 * i : 2 * i + side].astype(np.uint8) for i in range(count)]


def resized(rgb, side):
  return np.asarray(Image.fromarray(rgb).resize((side, side)))


def test_looks_hardly_depend_on_size_and_bytes():
  distances = []
  for rgb in footage(0):
    first = looks.look(rgb)
    distances += [
      (first ^ looks.look(other)).bit_count()
      for other in (
        resized(rgb, 64),
        resized(rgb, 200),
        images.decode(images.encode_jpeg(rgb, 75)),
        (0.95 * rgb).astype(np.uint8),
      )
    ]
  assert np.median(distances) <= 3
  assert (looks.look(footage(1)[0]) ^ first).bit_count() > 15
  assert looks.look(np.full((64, 64, 3), 128, np.uint8)) == 0
  assert looks.look(footage(1)[0][:4, :4]) == 0


@dataclasses.dataclass(frozen=True)
class Films(test_run.Fake):
  """Clips of given (seed, side, first frame, split)."""

  films: tuple = ()

  def items(self):
    return [
      sources.Item(f'film-{i}', film, split=film[3], size=1000)
      for i, film in enumerate(self.films)
    ]

  def clips(self, item):
    seed, side, first, _ = item.payload
    frames = [
      images.encode_jpeg(resized(rgb, side)) for rgb in footage(seed)[first:]
    ]
    yield sources.Clip(item.id, frames, side, side)


@pytest.mark.parametrize(
  ('films', 'expected'),
  [
    # At another size, and without its beginning.
    (
      [(0, 96, 0, 'train'), (1, 96, 0, 'train'), (0, 64, 0, 'test')],
      ['0', '2'],
    ),
    ([(0, 96, 0, 'train'), (0, 80, 4, 'test'), (2, 80, 0, 'test')], ['0', '1']),
    ([(0, 96, 0, 'train'), (0, 64, 0, 'train'), (1, 64, 0, 'test')], []),
    # No picture is large enough to be compared.
    ([(0, 6, 0, 'train'), (1, 6, 0, 'test')], []),
  ],
)
def test_films_in_two_splits(tmp_path, films, expected):
  test_run.run(Films(films=tuple(films)), tmp_path)
  report = verify.verify(tmp_path, 0, quiet=True)
  assert dict(report.problems.counts) == (
    {'similar in two splits': 1} if expected else {}
  )
  text = findings.table(report)
  for number in expected:
    assert f"clip 'film-{number}'" in text


def test_flat_scenes_are_not_confused():
  """Two objects on white have nearly the same bits."""
  frames = []
  for shift in (0, 6):
    rgb = np.full((64, 64, 3), 255, np.uint8)
    rgb[28 + shift : 40, 24:44] = (40, 90, 60) if shift else (90, 10, 10)
    frames.append(rgb)
  first, second = map(looks.look, frames)
  assert (first ^ second).bit_count() <= 6

  def content(split, rgb):
    clip = codec.Clip('a', 0, 8, 64, 64)
    bits = np.array([looks.look(rgb)] * 8, np.uint64)
    row = findings.Row('x', '1.0.0', split)
    return findings.Found(row, [clip], np.zeros(8, np.uint64), bits)

  found = [content('train', frames[0]), content('test', frames[1])]
  assert list(duplicates._pairs(found))
  data = {'train': frames[0], 'test': frames[1]}
  duplicates.check_looks(
    found, lambda split, *_: images.encode_jpeg(data[split]), set()
  )
  assert not any(out.row.problems for out in found)
