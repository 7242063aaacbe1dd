"""The oracles' interface, their cache, and cameras from data sets and files."""

import dataclasses
import json
import sys
import types

import numpy as np
import pytest

from tests.metrics.test_poses import path, scaled
from xfactor.data import images as images_lib
from xfactor.data import sources
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles import base as base_lib
from xfactor.evaluation.oracles import cache, file
from xfactor.metrics import poses

SIZE = (12, 20)
LENGTH = 7


def picture(seed):
  return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def cameras(clip):
  return path(np.random.default_rng(clip), LENGTH)[:, :3].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Walks(sources.Source):
  """Wide pictures of noise: a clip, one with a camera lost, one with none."""

  name = 'walks'
  description = 'Noise.'

  def items(self):
    return [sources.Item(f'walk/{i}', i, 'test') for i in range(3)]

  def clips(self, item):
    i = item.payload
    known = cameras(i)
    if i == 1:
      known[3, 0, 3] = np.nan
    yield sources.Clip(
      id=item.id,
      frames=[
        images_lib.encode_png(picture(100 * i + j)) for j in range(LENGTH)
      ],
      height=SIZE[0],
      width=SIZE[1],
      intrinsics=np.tile(np.float32([0.6, 1.0, 0.5, 0.5]), (LENGTH, 1)),
      world_to_camera=None if i == 2 else known,
    )


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  convert_run.convert(Walks(), folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'walks', 'test')


def scene(store, name='walk/0', frames=(1, 4, 6)):
  return base_lib.Scene(store, store.clip_ids().index(name), np.array(frames))


def shown(where, size=None):
  """The frames of a scene; with a size, as the model sees them."""
  data = where.store.clip_frames(where.clip, where.frames)
  frames = [images_lib.decode(x) for x in data]
  if size:
    frames = [images_lib.centre_crop_resize(x, size) for x in frames]
  return np.stack(frames)


def assert_path(result, world_to_camera):
  """The result is this path as seen by its first camera."""
  assert result.ok
  assert result.frame_ok.all()
  assert result.world_to_camera.dtype == np.float64
  np.testing.assert_array_equal(result.world_to_camera[0], np.eye(4))
  want = np.tile(np.eye(4), (len(world_to_camera), 1, 1))
  want[:, :3] = world_to_camera[:, :3]
  want = want @ np.linalg.inv(want[0])
  np.testing.assert_allclose(result.world_to_camera, want, atol=1e-6)


def test_make():
  assert oracles.make('file', path='cameras.npz').path == 'cameras.npz'
  with pytest.raises(
    UserError, match="no pose oracle 'magic'; choose one of none"
  ):
    oracles.make('magic')
  with pytest.raises(UserError, match="no option 'seed'; it takes path"):
    oracles.make('file', seed=1)


def test_make_says_what_is_missing(monkeypatch):
  @dataclasses.dataclass(frozen=True)
  class Oracle(file.Oracle):
    weights: str = dataclasses.field(kw_only=True)

  module = types.SimpleNamespace(Oracle=Oracle)
  monkeypatch.setitem(sys.modules, 'xfactor.evaluation.oracles.vggt', module)
  with pytest.raises(UserError, match="vggt oracle needs the option 'weights'"):
    oracles.make('vggt')
  assert oracles.make('vggt', weights='a').weights == 'a'


def test_without_an_oracle_no_path_is_trusted():
  images = np.zeros((3, 8, 8, 3), np.uint8)
  result = oracles.make('none')(images)
  assert not result.ok
  assert np.isnan(result.world_to_camera).all()


def test_rebase():
  rng = np.random.default_rng(0)
  world_to_camera = path(rng, 5, angle=180.0, moves=5.0)
  got = base_lib.rebase(world_to_camera)
  want = world_to_camera @ np.linalg.inv(world_to_camera[0])
  np.testing.assert_allclose(got, want, atol=1e-12)
  # Rounded rotations become rotations; the public code's inverse of float32
  # ones would show up to 0.03 degrees.
  rounded = base_lib.rebase(np.round(world_to_camera[:, :3], 4))
  product = rounded[:, :3, :3] @ rounded[:, :3, :3].mT
  np.testing.assert_allclose(product, np.tile(np.eye(3), (5, 1, 1)), atol=1e-12)
  np.testing.assert_allclose(rounded, want, atol=5e-3)


@pytest.mark.parametrize('kind', ['nan', 'scale', 'mirror'])
@pytest.mark.parametrize('frame', [0, 2])
def test_what_is_not_rigid_is_not_ok(kind, frame):
  world_to_camera = path(np.random.default_rng(1), 4)
  if kind == 'nan':
    world_to_camera[frame, 1, 3] = np.nan
  elif kind == 'scale':
    world_to_camera[frame, :3, :3] *= 1.01
  else:
    world_to_camera[frame, 0, :3] *= -1
  got = base_lib.from_poses(world_to_camera, reasons=['dark'], seconds=2)
  reason = f'no finite, rigid pose for frames {frame}'
  assert not got.ok
  assert got.frame_ok.tolist() == [i != frame for i in range(4)]
  assert got.info == {'reasons': ['dark', reason], 'seconds': 2}
  raw = base_lib.PoseResult(world_to_camera, True, np.ones(4, bool))
  guarded = base_lib.guarded(raw)
  assert not guarded.ok
  assert guarded.frame_ok.tolist() == got.frame_ok.tolist()
  assert guarded.info == {'reasons': [reason]}
  known = dataclasses.replace(raw, ok=False, info={'reasons': ['dark']})
  assert base_lib.guarded(known).info == {'reasons': ['dark']}


def test_good_results_pass_the_guard():
  result = base_lib.from_poses(path(np.random.default_rng(2), 3))
  assert base_lib.guarded(result) is result


class Counting(base_lib.PoseOracle):
  """Makes up poses from the pictures; counts the clips that it was given."""

  name = 'counting'
  version = '1'

  def __init__(self, noise=0.0):
    self.noise = noise
    self.clips = 0

  def settings(self):
    return {'noise': self.noise}

  def __call__(self, images, scene=None):
    self.clips += 1
    rng = np.random.default_rng(int(images.astype(int).sum()))
    intrinsics = None if scene is None else np.full((len(images), 4), 0.5)
    return base_lib.from_poses(
      path(rng, len(images)), intrinsics, inliers=self.clips, reasons=[]
    )


def clip(seed, views=3):
  return np.stack([picture(seed + i) for i in range(views)])


def assert_equal(a, b):
  np.testing.assert_array_equal(a.world_to_camera, b.world_to_camera)
  np.testing.assert_array_equal(a.frame_ok, b.frame_ok)
  assert (a.ok, a.info) == (b.ok, b.info)
  assert (a.intrinsics is None) == (b.intrinsics is None)
  if a.intrinsics is not None:
    np.testing.assert_array_equal(a.intrinsics, b.intrinsics)


def test_results_are_kept(tmp_path, store):
  oracle = Counting()
  cached = cache.Cached(oracle, tmp_path / 'poses')
  assert (cached.name, cached.version) == ('counting', '1')
  assert cached.settings() == {'noise': 0.0}
  first = cached(clip(0))
  posed = cached(clip(0), scene(store))
  assert oracle.clips == 2
  # Another process.
  again = cache.Cached(oracle, tmp_path / 'poses')
  assert_equal(again(clip(0)), first)
  assert_equal(again(clip(0), scene(store)), posed)
  assert oracle.clips == 2
  assert posed.intrinsics is not None
  assert len(list((tmp_path / 'poses').iterdir())) == 2


def test_whatever_matters_is_in_the_key(tmp_path, store, monkeypatch):
  oracle = Counting()
  cached = cache.Cached(oracle, tmp_path)
  base = clip(0)
  brighter = base.copy()
  brighter[1, 2, 3, 0] ^= 1
  for images_, where in (
    (base, None),
    (brighter, None),
    (base[::-1], None),
    (base.transpose(0, 2, 1, 3), None),
    (base.reshape(3, SIZE[1], SIZE[0], 3), None),
    (base, scene(store)),
    (base, scene(store, frames=(1, 4, 5))),
    (base, scene(store, frames=())),
    (base, scene(store, 'walk/1')),
  ):
    before = oracle.clips
    cached(images_, where)
    assert oracle.clips == before + 1
    cached(images_.copy(), where)
    assert oracle.clips == before + 1
  before = oracle.clips
  oracle.noise = 0.5
  cached(base)
  monkeypatch.setattr(Counting, 'version', '2')
  cache.Cached(oracle, tmp_path)(base)
  monkeypatch.setattr(Counting, 'name', 'other')
  cache.Cached(oracle, tmp_path)(base)
  assert oracle.clips == before + 3


def test_batches_ask_only_for_what_is_missing(tmp_path, monkeypatch):
  oracle = Counting()
  sizes = []

  def batch(clips):
    sizes.append(len(clips))
    return base_lib.PoseOracle.batch(oracle, clips)

  monkeypatch.setattr(oracle, 'batch', batch)
  cached = cache.Cached(oracle, tmp_path)
  known = cached(clip(10))
  clips = [(clip(i), None) for i in (20, 10, 30, 20)]
  got = cached.batch(clips)
  assert sizes == [1, 2]
  assert_equal(got[1], known)
  assert_equal(got[0], got[3])
  for result, (pictures, _) in zip(got, clips, strict=True):
    want = Counting()(pictures)
    np.testing.assert_array_equal(result.world_to_camera, want.world_to_camera)
  assert [*map(len, (cached.batch(clips), cached.batch([])))] == [4, 0]
  assert sizes == [1, 2]


@pytest.mark.parametrize(
  'damage', ['cut', 'empty', 'flip', 'method', 'other', 'shape']
)
def test_damaged_entries_are_made_again(tmp_path, damage):
  oracle = Counting()
  cached = cache.Cached(oracle, tmp_path)
  first = cached(clip(0))
  (entry,) = tmp_path.iterdir()
  data = bytearray(entry.read_bytes())
  if damage == 'cut':
    entry.write_bytes(data[: len(data) // 2])
  elif damage == 'empty':
    entry.write_bytes(b'')
  elif damage == 'flip':
    data[250] ^= 1
    entry.write_bytes(data)
  elif damage == 'method':
    data[data.index(b'PK\x01\x02') + 10] ^= 1  # Of compression.
    entry.write_bytes(data)
  elif damage == 'other':
    np.savez(entry, world_to_camera=first.world_to_camera)
  else:
    cached(clip(0, 4))
    (other,) = set(tmp_path.iterdir()) - {entry}
    entry.write_bytes(other.read_bytes())
  again = cached(clip(0))
  assert oracle.clips == 2 + (damage == 'shape')
  np.testing.assert_array_equal(again.world_to_camera, first.world_to_camera)
  cached(clip(0))
  assert oracle.clips == 2 + (damage == 'shape')


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
  oracle = Counting()
  cached = cache.Cached(oracle, tmp_path)

  def fail(*args):
    raise OSError('the disk is full')

  with monkeypatch.context() as patch:
    patch.setattr(cache.epath.Path, 'replace', fail, raising=False)
    patch.setattr(type(tmp_path), 'replace', fail)
    patch.setattr(type(cached._folder), 'replace', fail)
    with pytest.raises(OSError, match='full'):
      cached(clip(0))
  assert not list(tmp_path.glob('*.npz'))
  assert cached(clip(0)).ok


def test_the_cache_guards_and_refuses_single_frames(tmp_path, monkeypatch):
  class Silent(Counting):
    def __call__(self, images, scene=None):
      bad = np.full((len(images), 4, 4), np.nan)
      return base_lib.PoseResult(bad, True, np.ones(len(images), bool))

  cached = cache.Cached(Silent(), tmp_path)
  for _ in range(2):
    got = cached(clip(0))
    assert not got.ok
    assert not got.frame_ok.any()
    assert got.info['reasons'] == ['no finite, rigid pose for frames 0, 1, 2']
  with pytest.raises(UserError, match='clip of 1 frame'):
    cached(clip(0, 1))


def test_cameras_of_the_data_set(store):
  where = scene(store)
  got = file.Oracle()(shown(where), where)
  assert_path(got, cameras(0)[where.frames])
  assert got.intrinsics is None  # Neither whole nor square.
  square = file.Oracle()(shown(where, SIZE[0]), where)
  assert_path(square, cameras(0)[where.frames])
  want = [0.6 * 20 / 12, 1.0, 0.5, 0.5]
  np.testing.assert_allclose(square.intrinsics, np.tile(want, (3, 1)), 1e-6)
  assert_path(file.Oracle()(shown(where, 8), where), cameras(0)[where.frames])
  score = poses.score(got.world_to_camera, got.world_to_camera)
  assert score.metrics['auc@20'] == 1


def test_lost_cameras_are_told(store):
  where = scene(store, 'walk/1')
  assert file.Oracle()(shown(where), where).ok
  where = scene(store, 'walk/1', (1, 3, 5))
  got = file.Oracle()(shown(where), where)
  assert not got.ok
  assert got.frame_ok.tolist() == [True, False, True]
  assert got.info['reasons'] == ['no finite, rigid pose for frames 1']


def test_renders_are_refused(store):
  where = scene(store)
  oracle = file.Oracle()
  message = 'poses only the frames of clip walk/0 of walks/test, but was given'
  with pytest.raises(UserError, match=message):
    oracle(shown(where), scene(store, frames=()))
  render = shown(where).copy()
  render[1] = np.clip(render[1].astype(int) + 3, 0, 255)
  with pytest.raises(UserError, match=message):
    oracle(render, where)
  with pytest.raises(UserError, match=message):
    oracle(shown(scene(store, frames=(1, 5, 6))), where)
  with pytest.raises(UserError, match=message):
    oracle(shown(where)[:, :, 1:], where)
  with pytest.raises(UserError, match='of data sets; give it a file'):
    oracle(shown(where))
  # What rounding does is forgiven.
  near = shown(where).astype(int)
  near[:, ::2] += 1
  oracle(np.clip(near, 0, 255).astype(np.uint8), where)


def test_bad_input(store):
  oracle = file.Oracle()
  where = scene(store, 'walk/2')
  with pytest.raises(UserError, match='walk/2 of walks/test has no cameras'):
    oracle(shown(where), where)
  where = scene(store, frames=(2,))
  with pytest.raises(UserError, match='clip of 1 frame'):
    oracle(shown(where), where)


def test_files_are_not_cached(store, tmp_path):
  cached = cache.Cached(file.Oracle(f'{tmp_path}/a.npz'), tmp_path / 'cache')
  for seed in range(2):
    known = path(np.random.default_rng(seed), 3)
    np.savez(tmp_path / 'a.npz', world_to_camera=known)
    assert_path(cached(clip(0)), known)
  assert not (tmp_path / 'cache').exists()


def quaternion(rotation):
  """(w, x, y, z) of a rotation."""
  w = np.sqrt(max(0.0, 1 + np.trace(rotation))) / 2
  axis = rotation - rotation.T
  return [w, *(np.array([axis[2, 1], axis[0, 2], axis[1, 0]]) / (4 * w))]


def write(folder, kind, world_to_camera):
  """Writes cameras, where their names matter in an order to be undone."""
  world_to_camera = world_to_camera[:, :3].astype(np.float64)
  numbers = list(range(len(world_to_camera)))[::-1]
  names = {i: f'frame_{i + 8}.png' for i in numbers}  # 9 before 10.
  if kind == 'npz3':
    np.savez(folder / 'a.npz', world_to_camera=world_to_camera)
    return folder / 'a.npz'
  if kind == 'npz4':
    square = np.tile(np.eye(4), (len(numbers), 1, 1))
    square[:, :3] = world_to_camera
    intrinsics = np.full((len(numbers), 4), 0.5, np.float32)
    np.savez(folder / 'a.npz', world_to_camera=square, intrinsics=intrinsics)
    return folder / 'a.npz'
  if kind == 'txt':
    lines = ['https://www.youtube.com/watch?v=a']
    for i, pose in enumerate(world_to_camera):
      values = [0.5, 0.9, 0.5, 0.5, 0, 0, *pose.flat]
      lines.append(' '.join([str(1000 * i), *map(repr, map(float, values))]))
    (folder / 'a.txt').write_text('\n'.join(lines) + '\n')
    return folder / 'a.txt'
  if kind == 'json':
    frames = []
    for i in numbers:
      pose = np.vstack([world_to_camera[i], [0, 0, 0, 1]])
      matrix = np.linalg.inv(pose) @ np.diag([1, -1, -1, 1])
      frames.append(
        {'file_path': names[i], 'transform_matrix': matrix.tolist()}
      )
    lens = {'w': 20, 'h': 12, 'fl_x': 9, 'fl_y': 9, 'cx': 10, 'cy': 6}
    (folder / 'transforms.json').write_text(
      json.dumps(lens | {'frames': frames})
    )
    return folder / 'transforms.json'
  (folder / 'cameras.txt').write_text('1 PINHOLE 20 12 9 9 10 6\n')
  lines = []
  for i in numbers:
    q, t = quaternion(world_to_camera[i, :, :3]), world_to_camera[i, :, 3]
    lines += [f'{i + 1} {" ".join(map(str, [*q, *t]))} 1 {names[i]}', '']
  (folder / 'images.txt').write_text('\n'.join(lines) + '\n')
  return folder


KINDS = ('npz3', 'npz4', 'txt', 'json', 'colmap')


@pytest.mark.parametrize('kind', KINDS)
def test_cameras_of_files(tmp_path, store, kind):
  known = path(np.random.default_rng(5), 3, angle=170.0)
  where = write(tmp_path, kind, known)
  got = file.Oracle(str(where))(clip(0))
  assert_path(got, known)
  assert (got.intrinsics is not None) == (kind == 'npz4')
  assert_path(file.Oracle(str(where))(shown(scene(store)), scene(store)), known)


@pytest.mark.parametrize('kind', KINDS)
def test_cameras_of_all_frames_of_each_clip(tmp_path, store, kind):
  known = path(np.random.default_rng(6), LENGTH, angle=170.0)
  folder = tmp_path / 'walk/2'
  folder.mkdir(parents=True)
  name = write(folder, kind, known)
  pattern = str(name).replace('walk/2', '{clip}')
  where = scene(store, 'walk/2', (1, 4, 6))
  got = file.Oracle(pattern)(shown(where), where)
  assert_path(got, known[[1, 4, 6]])
  with pytest.raises(UserError, match='these pictures are of none'):
    file.Oracle(pattern)(clip(0))
  with pytest.raises(UserError, match='walk/0'):
    file.Oracle(pattern)(shown(scene(store)), scene(store))
  with pytest.raises(UserError, match='poses only the frames of clip walk/2'):
    file.Oracle(pattern)(clip(0), where)


def test_files_that_do_not_fit(tmp_path):
  known = path(np.random.default_rng(7), 4)
  name = write(tmp_path, 'npz3', known)
  with pytest.raises(UserError, match='has 4 cameras for a clip of 3 pictures'):
    file.Oracle(str(name))(clip(0))
  np.savez(name, world_to_camera=scaled(known, 1.0)[:, :3] * 2)
  with pytest.raises(UserError, match=r'a.npz has matrices .* no rotation'):
    file.Oracle(str(name))(clip(0, 4))
  known[2] = np.nan
  np.savez(name, world_to_camera=known)
  got = file.Oracle(str(name))(clip(0, 4))
  assert not got.ok
  assert got.frame_ok.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'PK\x03\x04 not a zip',
    {'poses': np.zeros((3, 4, 4))},
    {'world_to_camera': np.zeros((4, 4))},
    {'world_to_camera': np.array([{}], object)},
    {'world_to_camera': np.array(['a'])},
    {'world_to_camera': np.zeros((3, 3, 4)), 'intrinsics': np.zeros((2, 4))},
  ],
)
def test_npz_that_is_none(tmp_path, content):
  name = tmp_path / 'cameras.npz'
  if isinstance(content, bytes):
    name.write_bytes(content)
  else:
    np.savez(name, **content)
  with pytest.raises(UserError, match=r'cameras.npz is no file of cameras'):
    file.Oracle(str(name))(clip(0))


def test_one_array_is_no_npz(tmp_path):
  with (tmp_path / 'a.npz').open('wb') as f:
    np.save(f, np.zeros((3, 3, 4)))
  with pytest.raises(UserError, match=r'a.npz is no file of cameras'):
    file.Oracle(str(tmp_path / 'a.npz'))(clip(0))


@pytest.mark.parametrize('name', ['a.npz', 'a.txt', 'a.json', 'a', 'a.ply'])
def test_files_that_are_not_there(tmp_path, name):
  with pytest.raises(UserError, match=name):
    file.Oracle(str(tmp_path / name))(clip(0))
