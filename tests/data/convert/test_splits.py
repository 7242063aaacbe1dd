"""Split lists: their forms, how ids match, and what is wrong with bad ones."""

import json

import pytest

from xfactor.data.convert import splits
from xfactor.errors import UserError


def read(tmp_path, content, prefix=''):
  path = tmp_path / 'lists.json'
  path.write_text(json.dumps(content))
  return splits.read(f'{prefix}{path}')


@pytest.mark.parametrize(
  'content',
  [
    {'train': ['a', 'b/c'], 'test': ['d']},
    {'train': {'a': [0, 5], 'b/c': {}}, 'test': {'d': []}},
    {'a': 'train', 'b/c': 'train', 'd': 'test'},
  ],
)
def test_forms(tmp_path, content):
  lists = read(tmp_path, content)
  assert lists.by_id == {'a': 'train', 'b/c': 'train', 'd': 'test'}
  assert lists.by_split() == {'train': ['a', 'b/c'], 'test': ['d']}


@pytest.mark.parametrize('content', [{'a': [1], 'b': [2]}, ['a', 'b']])
def test_the_list_of_one_split(tmp_path, content):
  lists = read(tmp_path, content, 'test=')
  assert lists.by_id == {'a': 'test', 'b': 'test'}
  # The rest is left for training.
  assert lists.find('c') == ('train', None)
  with pytest.raises(UserError, match='--splits=test=lists.json'):
    read(tmp_path, ['a', 'b'])


def test_two_files(tmp_path):
  files = []
  for split in ('train', 'test'):
    path = tmp_path / f'{split}.json'
    path.write_text(json.dumps({f'{split}-id': []}))
    files.append(f'{split}={path}')
  lists = splits.read(','.join(files))
  assert lists.by_id == {'train-id': 'train', 'test-id': 'test'}


@pytest.mark.parametrize(
  ('clip', 'expected'),
  [
    ('chair/001', ('train', 'chair/001')),
    ('table/001', ('test', '001')),  # The last part alone.
    ('video/003', ('val', 'video')),  # A clip of a listed video.
    ('folder/film/000', ('val', 'film')),
    ('other/002', (None, None)),
  ],
)
def test_matching(clip, expected):
  lists = splits.Lists(
    {'chair/001': 'train', '001': 'test', 'video': 'val', 'film': 'val'}
  )
  assert lists.find(clip) == expected


def test_items_above_a_listed_clip_are_wanted():
  lists = splits.Lists({'film/003': 'train'})
  assert lists.may_hold('film')
  assert not lists.may_hold('other')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{', 'not a readable JSON file'),
    ('{"train": ["a"], "test": ["a"]}', 'a is listed for train and for test'),
    ('{"a": "Train Set"}', "'Train Set' is not a split name"),
    ('{"train": [1]}', 'must hold a list of ids'),
    ('{"A": [], "B": []}', 'looks like the list of one split'),
    ('{"a": [], "b": null}', 'looks like the list of one split'),
    ('{}', 'lists no ids'),
  ],
)
def test_bad_lists(tmp_path, content, message):
  path = tmp_path / 'lists.json'
  path.write_text(content)
  with pytest.raises(UserError, match=message):
    splits.read(str(path))


def test_missing_list(tmp_path):
  with pytest.raises(UserError, match='there is no file .*gone.json'):
    splits.read(str(tmp_path / 'gone.json'))


def test_null_entries_are_left_out(tmp_path):
  """As 720 of the 7,194 in pixelSplat's list for RealEstate10K."""
  path = tmp_path / 'list.json'
  path.write_text('{"a": {"context": [1, 2]}, "b": null, "c": null}')
  lists = splits.read(f'test={path}')
  assert lists.find('a') == ('test', 'a')
  assert lists.find('b')[0] is None
  assert lists.find('d')[0] == 'train'
  assert not lists.may_hold('c')
  assert lists.by_split() == {'test': ['a']}
