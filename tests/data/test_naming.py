"""Natural order and clip ids of any names."""

import pytest

from xfactor.data import naming


@pytest.mark.parametrize(
  'names',
  [
    ['frame_9.jpg', 'frame_10.jpg', 'frame_100.jpg'],
    ['0.0.png', '0.25.png', '0.5.png', '1.png', '1.05.png', '1.5.png'],
    ['1305031102.175304.png', '1305031102.2.png', '1305031103.1.png'],
    ['1.jpg', '1①1.jpg', '2.jpg', '②.jpg'],
    ['v1.9.2', 'v1.10.0'],
    ['a1', 'A2', 'a3'],
    ['001.jpg', '001_mask.jpg', '002.jpg'],
  ],
)
def test_natural_order(names):
  shuffled = [*names[1::2], *names[::2]]
  assert sorted(shuffled, key=naming.natural) == names


@pytest.mark.parametrize(
  ('name', 'id'),
  [
    ('my film (2)', 'my_film_2_'),
    ('日本/東京', '日本/東京'),
    ('cafe\u0301', 'caf\xe9'),  # As macOS stores it.
    ('हिन्दी', 'हिन्दी'),  # Vowel signs are no letters.
    ('a\udce9b\0', 'a_b_'),  # Bytes that are not UTF-8.
  ],
)
def test_clip_ids(name, id):
  assert naming.clip_id(name) == id
  assert naming.is_clip_id(id)
  assert not naming.is_clip_id(name + ' ')
  id.encode()


def test_repeated_ids_are_numbered():
  ids = ['a', 'b', 'a', 'a-2', 'a']
  assert naming.number_repeated(ids) == ['a', 'b', 'a-3', 'a-2', 'a-4']
