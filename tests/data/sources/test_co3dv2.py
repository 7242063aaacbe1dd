"""CO3Dv2 in miniature: real pictures and annotations of PyTorch3D's kind."""

import gzip
import json

import numpy as np
import pytest

from tests.data import pictures
from xfactor.data import images
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store
from xfactor.data.sources import co3dv2
from xfactor.errors import UserError
from xfactor.geometry import cameras

LANDSCAPE, PORTRAIT = (53, 91), (91, 53)
SIZE, FRAMES = 40, 12
POINT = np.array([0.4, 0.3, -0.2])
FOCAL, PRINCIPAL = np.array([2.6, 2.7]), np.array([0.05, -0.08])


def viewpoint(frame, kind='ndc_isotropic'):
  """A PyTorch3D camera: x left, y up, z forward; points are rows."""
  a, b = 0.1 + 0.03 * frame, 0.2
  about_y = np.array(
    [[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]]
  )
  about_z = np.array(
    [[np.cos(b), np.sin(b), 0], [-np.sin(b), np.cos(b), 0], [0, 0, 1]]
  )
  return {
    'R': (about_y @ about_z).tolist(),
    'T': [-0.7 + 0.12 * frame, 0.1, 6.0],
    'focal_length': FOCAL.tolist(),
    'principal_point': PRINCIPAL.tolist(),
    'intrinsics_format': kind,
  }


def pixel(frame, size, kind='ndc_isotropic'):
  """Where the camera sees the point, as PyTorch3D's documentation has it."""
  height, width = size
  camera = viewpoint(frame, kind)
  x, y, z = POINT @ np.array(camera['R']) + camera['T']
  ndc = FOCAL * [x / z, y / z] + PRINCIPAL
  if kind == 'ndc_isotropic':
    # The shorter side spans -1 to 1, from right to left.
    return np.array([width, height]) / 2 - ndc * min(height, width) / 2
  return np.array([width, height]) / 2 * (1 - ndc)


def picture(frame, size, kind='ndc_isotropic'):
  return pictures.spot(*size, pixel(frame, size, kind))


def image_path(category, sequence, frame):
  # The numbers of files are not those of frames, says CO3D.
  return f'{category}/{sequence}/images/frame{3 * frame + 1:06d}.jpg'


def annotation(category, sequence, frame, size=LANDSCAPE, **changes):
  return {
    'sequence_name': sequence,
    'frame_number': frame,
    'frame_timestamp': 0.25 * frame,
    'image': {
      'path': image_path(category, sequence, frame),
      'size': list(size),
    },
    'depth': {'path': '', 'scale_adjustment': 1.0, 'mask_path': ''},
    'mask': {'path': '', 'mass': 10.0},
    'viewpoint': viewpoint(frame),
    'meta': {'frame_type': 'train', 'frame_splits': ['singlesequence']},
  } | changes


def write_pictures(
  root, category, sequence, count=FRAMES, size=LANDSCAPE, kind='ndc_isotropic'
):
  (root / category / sequence / 'images').mkdir(parents=True)
  for frame in range(count):
    path = root / image_path(category, sequence, frame)
    path.write_bytes(images.encode_jpeg(picture(frame, size, kind)))


def write_annotations(root, category, frames):
  path = root / category / 'frame_annotations.jgz'
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(gzip.compress(json.dumps(frames).encode()))
  # A test's folders are new, but not all of its files.
  co3dv2._read_annotations.cache_clear()


def write_sequence(root, changes=lambda frame: {}, count=FRAMES):
  write_pictures(root, 'apple', '1_2_3', count)
  write_annotations(
    root,
    'apple',
    [annotation('apple', '1_2_3', i, **changes(i)) for i in range(count)],
  )


def clip_of(root, id='apple/1_2_3', **options):
  source = co3dv2.Source(source=str(root), **{'size': SIZE, **options})
  (item,) = (item for item in source.items() if item.id == id)
  (clip,) = source.clips(item)
  assert clip.id == id
  return clip


def numbers(clip, size=LANDSCAPE):
  """Which frames these are, by the place of the spot."""
  side = min(size)
  corner = np.array([(size[1] - side) // 2, (size[0] - side) // 2])
  places = np.array([(pixel(i, size) - corner) / side for i in range(FRAMES)])
  found = []
  for jpeg in clip.frames:
    distances = abs(places - pictures.find_spot(jpeg)).max(-1)
    assert distances.min() < 0.3 / SIZE
    found.append(int(distances.argmin()))
  return found


@pytest.mark.parametrize('size', [LANDSCAPE, PORTRAIT])
@pytest.mark.parametrize('kind', ['ndc_isotropic', 'ndc_norm_image_bounds'])
@pytest.mark.parametrize('whole', [False, True])
def test_cameras(tmp_path, size, kind, whole):
  write_pictures(tmp_path, 'apple', '1_2_3', FRAMES, size, kind)
  frames = [annotation('apple', '1_2_3', i, size) for i in range(FRAMES)]
  for i, frame in enumerate(frames):
    frame['viewpoint'] = viewpoint(i, kind)
    if kind == 'ndc_norm_image_bounds':  # The default.
      del frame['viewpoint']['intrinsics_format']
  write_annotations(tmp_path, 'apple', frames)
  clip = clip_of(tmp_path, size=None if whole else SIZE)
  assert (clip.height, clip.width) == (size if whole else (SIZE, SIZE))
  pictures.assert_cameras_see(POINT, clip, FRAMES)
  rotation = clip.world_to_camera[3, :, :3]
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
  assert np.linalg.det(rotation) == pytest.approx(1)


def test_straight_ahead(tmp_path):
  ahead = {
    'R': np.eye(3).tolist(),
    'T': [1.0, 2.0, 3.0],
    'focal_length': [2.0, 2.0],
    'principal_point': [0.2, 0.1],
    'intrinsics_format': 'ndc_isotropic',
  }
  write_sequence(tmp_path, lambda i: {'viewpoint': ahead})
  clip = clip_of(tmp_path, size=None)
  np.testing.assert_allclose(
    clip.world_to_camera[0],
    [[-1, 0, 0, -1], [0, -1, 0, -2], [0, 0, 1, 3]],
  )
  np.testing.assert_allclose(
    clip.intrinsics[0],
    [53 / 91, 1.0, 0.5 - 0.1 * 53 / 91, 0.45],
    rtol=1e-6,
  )


def test_order_and_times(tmp_path):
  write_pictures(tmp_path, 'apple', '1_2_3')
  write_pictures(tmp_path, 'apple', '1_2_4')
  frames = [
    annotation('apple', name, i)
    for i in reversed(range(FRAMES))
    for name in ('1_2_4', '1_2_3')
  ]
  write_annotations(tmp_path, 'apple', frames)
  clip = clip_of(tmp_path)
  assert numbers(clip) == list(range(FRAMES))
  np.testing.assert_array_equal(clip.timestamps, 0.25 * np.arange(FRAMES))


@pytest.mark.parametrize('time', [-1.0, None])
def test_unknown_times(tmp_path, time):
  write_sequence(tmp_path, lambda i: {'frame_timestamp': time})
  assert clip_of(tmp_path).timestamps is None


def test_annotations_are_read_once_a_category(tmp_path, monkeypatch):
  names = [f'{i}_1_1' for i in range(3)]
  for category in ('apple', 'tv'):
    for name in names:
      write_pictures(tmp_path, category, name)
    frames = [annotation(category, n, i) for n in names for i in range(FRAMES)]
    write_annotations(tmp_path, category, frames)
  read = []
  decompress = gzip.decompress
  monkeypatch.setattr(
    gzip, 'decompress', lambda data: read.append(0) or decompress(data)
  )
  source = co3dv2.Source(source=str(tmp_path), size=SIZE)
  items = source.items()
  assert not read
  for item in items:
    (clip,) = source.clips(item)
    pictures.assert_cameras_see(POINT, clip, FRAMES)
  assert len(read) == 2


def test_items_and_splits(tmp_path, caplog):
  expected = []
  for category, count in (('apple', 11), ('tv', 1), ('vase', 20)):
    for i in range(count):
      (tmp_path / category / f'{i * 7 % 23}_5_{i}').mkdir(parents=True)
    for other in ('set_lists', 'eval_batches'):
      (tmp_path / category / other).mkdir()
    write_annotations(tmp_path, category, [])
    names = [p.name for p in (tmp_path / category).iterdir()]
    names = sorted(name for name in names if name.count('_') == 2)
    train = int(0.9 * count)
    expected += [
      (f'{category}/{name}', 'train' if i < train else 'test')
      for i, name in enumerate(names)
    ]
  (tmp_path / 'dragon' / '1_2_3').mkdir(parents=True)
  (tmp_path / 'category_to_subset_name_list.json').write_text('{}')
  with caplog.at_level('WARNING', 'absl'):
    items = co3dv2.Source(source=str(tmp_path)).items()
  assert [(item.id, item.split) for item in items] == expected
  assert sum(split == 'test' for _, split in expected) == 2 + 1 + 2
  assert 'not categories of CO3Dv2: dragon' in caplog.text
  assert 'apple' not in caplog.text


def test_all_categories():
  assert len(co3dv2.CATEGORIES) == 51
  assert list(co3dv2.CATEGORIES) == sorted(set(co3dv2.CATEGORIES))


def test_black_pictures_are_left_out(tmp_path):
  write_sequence(tmp_path)
  for frame in (2, 5):
    path = tmp_path / image_path('apple', '1_2_3', frame)
    path.write_bytes(images.encode_jpeg(np.zeros((*LANDSCAPE, 3), np.uint8)))
  clip = clip_of(tmp_path, min_length=5)
  assert numbers(clip) == [i for i in range(FRAMES) if i not in (2, 5)]
  assert clip.notes == {'frames skipped: are black': 2}


def test_missing_annotations(tmp_path):
  write_sequence(tmp_path)
  write_pictures(tmp_path, 'tv', '1_2_3', 1)
  *others, item = co3dv2.Source(source=str(tmp_path)).items()
  assert (item.id, len(others)) == ('tv', 1)
  assert 'tv/frame_annotations.jgz is missing' in item.problem


@pytest.mark.parametrize('data', [b'', b'no gzip', None])
def test_damaged_annotations(tmp_path, data):
  write_sequence(tmp_path)
  path = tmp_path / 'apple' / 'frame_annotations.jgz'
  path.write_bytes(path.read_bytes()[:-20] if data is None else data)
  with pytest.raises(UserError, match='frame_annotations.jgz cannot be read'):
    clip_of(tmp_path)


@pytest.mark.parametrize(
  'changes',
  [
    {'image': None},
    {'viewpoint': viewpoint(0, 'screen')},
    {'viewpoint': {'R': [[1]]}},
    {'frame_timestamp': 'noon'},
  ],
)
def test_unknown_annotations(tmp_path, changes):
  write_sequence(tmp_path, lambda i: changes)
  with pytest.raises(UserError, match='jgz describes 1_2_3 in an unknown form'):
    clip_of(tmp_path)


def test_sequence_without_annotations(tmp_path):
  write_sequence(tmp_path)
  write_pictures(tmp_path, 'apple', '9_9_9')
  clip = clip_of(tmp_path, 'apple/9_9_9')
  assert numbers(clip) == list(range(FRAMES))
  assert clip.intrinsics is None
  assert clip.timestamps is None


def test_unknown_and_broken_cameras(tmp_path):
  bad = [
    None,
    viewpoint(1) | {'T': [0.0, 0.0, 2e5]},
    viewpoint(2) | {'focal_length': [-1.0, 1.0]},
    viewpoint(3) | {'R': [[float('nan')] * 3] * 3},
  ]
  write_sequence(
    tmp_path, lambda i: {'viewpoint': bad[i]} if i < len(bad) else {}
  )
  clip = clip_of(tmp_path, min_length=8)
  assert numbers(clip) == list(range(4, FRAMES))
  pictures.assert_cameras_see(POINT, clip, FRAMES - 4)
  write_annotations(
    tmp_path,
    'apple',
    [annotation('apple', '1_2_3', i, viewpoint=None) for i in range(FRAMES)],
  )
  clip = clip_of(tmp_path)
  assert numbers(clip) == list(range(FRAMES))
  assert clip.intrinsics is None


def test_missing_and_damaged_pictures(tmp_path):
  write_sequence(tmp_path)
  (tmp_path / image_path('apple', '1_2_3', 0)).unlink()
  path = tmp_path / image_path('apple', '1_2_3', 7)
  path.write_bytes(path.read_bytes()[:400])
  clip = clip_of(tmp_path)
  rest = [i for i in range(FRAMES) if i not in (0, 7)]
  assert numbers(clip) == rest
  np.testing.assert_array_equal(clip.timestamps, 0.25 * np.array(rest))
  pictures.assert_cameras_see(POINT, clip, len(rest))
  with pytest.raises(UserError, match='has 10 usable frames and min_length=11'):
    clip_of(tmp_path, min_length=11)


def test_wrong_folders(tmp_path):
  with pytest.raises(UserError, match='no folder .*nowhere'):
    co3dv2.Source(source=str(tmp_path / 'nowhere')).items()
  (tmp_path / 'dragon').mkdir()
  with pytest.raises(UserError, match='holds dragon; expected CATEGORY/SEQ'):
    co3dv2.Source(source=str(tmp_path)).items()


def write_list(root, category, name, lists):
  path = root / category / 'set_lists' / f'set_lists_{name}.json'
  path.parent.mkdir(exist_ok=True)
  path.write_text(
    json.dumps(
      {
        split: [
          [sequence, i, image_path(category, sequence, i)]
          for sequence, frames in own.items()
          for i in frames
        ]
        for split, own in lists.items()
      }
    )
  )
  co3dv2._read_list.cache_clear()


def write_listed(root):
  """Sequences a to d of apples; d is in no list."""
  names = ['1_a_a', '1_b_b', '1_c_c', '1_d_d']
  for name in names:
    write_pictures(root, 'apple', name)
  frames = [annotation('apple', n, i) for n in names for i in range(FRAMES)]
  write_annotations(root, 'apple', frames)
  return names


def splits_of(root, name):
  items = co3dv2.Source(source=str(root), set_lists=name).items()
  return {item.id: item.split for item in items}


def test_set_lists(tmp_path, caplog):
  a, b, c, _ = write_listed(tmp_path)
  write_list(
    tmp_path,
    'apple',
    'fewview_dev',
    {
      'train': {a: range(0, 12, 2), '1_not_there': range(3)},
      'val': {b: range(3, 9)},
      'test': {c: range(11)},
    },
  )
  assert splits_of(tmp_path, 'fewview_dev') == {
    f'apple/{a}': 'train',
    f'apple/{b}': 'val',
    f'apple/{c}': 'test',
  }
  assert not caplog.text
  options = {'set_lists': 'fewview_dev', 'min_length': 6}
  clip = clip_of(tmp_path, f'apple/{a}', **options)
  assert numbers(clip) == list(range(0, 12, 2))
  pictures.assert_cameras_see(POINT, clip, 6)
  clip = clip_of(tmp_path, f'apple/{b}', **options)
  assert numbers(clip) == list(range(3, 9))


def test_sequence_in_several_splits(tmp_path, caplog):
  a, b, *_ = write_listed(tmp_path)
  write_list(
    tmp_path,
    'apple',
    'manyview_dev_0',
    {
      'train': {a: range(0, 12, 2), b: range(4)},
      'val': {b: range(4, 8)},
      'test': {a: [1, 3]},
    },
  )
  with caplog.at_level('WARNING', 'absl'):
    splits = splits_of(tmp_path, 'manyview_dev_0')
  assert splits == {f'apple/{a}': 'test', f'apple/{b}': 'val'}
  assert 'frames of 2 sequences in more than one split' in caplog.text
  clip = clip_of(
    tmp_path, f'apple/{a}', set_lists='manyview_dev_0', min_length=8
  )
  assert numbers(clip) == [0, 1, 2, 3, 4, 6, 8, 10]


def test_training_frames_that_are_listed_as_test(tmp_path, caplog):
  a, *_ = write_listed(tmp_path)
  own = {a: range(FRAMES)}
  write_list(tmp_path, 'apple', 'fewview_train', {'train': own, 'test': own})
  assert splits_of(tmp_path, 'fewview_train') == {f'apple/{a}': 'train'}
  assert not caplog.text


def test_unknown_and_damaged_lists(tmp_path, caplog):
  a, *_ = write_listed(tmp_path)
  write_list(tmp_path, 'apple', 'fewview_dev', {'train': {a: range(FRAMES)}})
  with pytest.raises(UserError, match=r'no .*lists_all.json.*: fewview_dev$'):
    splits_of(tmp_path, 'all')
  write_pictures(tmp_path, 'tv', '1_a_a', 1)
  write_annotations(tmp_path, 'tv', [])
  with pytest.raises(UserError, match='fewview_dev'):
    splits_of(tmp_path, 'all')
  with caplog.at_level('WARNING', 'absl'):
    assert splits_of(tmp_path, 'fewview_dev') == {f'apple/{a}': 'train'}
  assert 'No set_lists_fewview_dev.json, so these categories' in caplog.text
  assert 'skipped: tv' in caplog.text
  path = tmp_path / 'apple' / 'set_lists' / 'set_lists_fewview_dev.json'
  path.write_text('{"train": [["1_a_a", 3')
  co3dv2._read_list.cache_clear()
  source = co3dv2.Source(source=str(tmp_path), set_lists='fewview_dev')
  (item,) = source.items()
  assert item.id == 'apple'
  assert 'set_lists_fewview_dev.json cannot be' in item.problem


def test_conversion(tmp_path):
  raw = tmp_path / 'raw'
  names = [f'{i}_1_1' for i in range(5)]
  for category in ('apple', 'tv'):
    for name in names:
      write_pictures(raw, category, name)
    frames = [annotation(category, n, i) for n in names for i in range(FRAMES)]
    write_annotations(raw, category, frames)
  (raw / 'tv' / 'frame_annotations.jgz').write_bytes(b'broken')
  source = co3dv2.Source(source=str(raw), size=SIZE)
  summary = convert_run.convert(source, tmp_path, workers=0, quiet=True)
  assert [id for id, _ in summary.skipped] == [f'tv/{name}' for name in names]
  train = store.open_split(tmp_path, 'co3dv2', 'train')
  test = store.open_split(tmp_path, 'co3dv2', 'test')
  assert train.clip_ids() == [f'apple/{name}' for name in names[:4]]
  assert test.clip_ids() == [f'apple/{names[4]}']
  clip = test.clip(0)
  np.testing.assert_array_equal(clip.timestamps, 0.25 * np.arange(FRAMES))
  seen, _ = cameras.project(POINT, clip.intrinsics[9], clip.world_to_camera[9])
  (frame,) = test.clip_frames(0, [9])
  assert abs(seen - pictures.find_spot(frame)).max() < 0.3 / SIZE
