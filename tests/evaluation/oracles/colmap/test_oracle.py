"""The COLMAP oracle: its judgement, its failures, and its poses."""

import dataclasses
import importlib.util
import json
from importlib import metadata

import numpy as np
import pytest

from tests.metrics.test_poses import path
from xfactor.data import images as images_lib
from xfactor.data import sources
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.data.worlds.raycaster import lighting, render
from xfactor.data.worlds.rooms import room as room_lib
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation.oracles import base
from xfactor.evaluation.oracles.colmap import oracle as oracle_lib
from xfactor.geometry import cameras
from xfactor.metrics import poses

WIDTH, HEIGHT, FOCAL = 200, 100, 150.0
FRAMES = 6
LIMITS = oracle_lib.Limits(
  max_rotation=0.5,
  max_translation=1.5,
  max_reprojection=1.0,
  min_angle=1.5,
  min_points=20,
)
needs_pycolmap = pytest.mark.skipif(
  importlib.util.find_spec('pycolmap') is None, reason='pycolmap is missing'
)


def exact_run():
  """What COLMAP would say of points before a camera that moves sideways."""
  rng = np.random.default_rng(0)
  points = rng.uniform([-2, -1, 4], [2, 1, 8], (40, 3))
  world_to_camera = np.tile(np.eye(4)[:3], (FRAMES, 1, 1))
  world_to_camera[:, 0, 3] = -0.3 * np.arange(FRAMES)
  frame, point = (x.ravel() for x in np.indices((FRAMES, len(points))))
  intrinsics = np.array([FOCAL / WIDTH, FOCAL / HEIGHT, 0.5, 0.5])
  pixels, _ = cameras.project(
    points[point],
    np.tile(intrinsics, (len(frame), 1)),
    world_to_camera[frame],
  )
  return oracle_lib.Run(
    frames=np.arange(FRAMES),
    world_to_camera=world_to_camera,
    focal=np.array([FOCAL, FOCAL]),
    principal=np.array([WIDTH, HEIGHT]) / 2,
    points=points,
    observations=np.stack([frame, point], 1),
    pixels=pixels * [WIDTH, HEIGHT],
  )


def in_another_world(run):
  """The same model turned, shifted and scaled."""
  other = path(np.random.default_rng(1), 1)[0]
  moved = run.world_to_camera @ other
  moved[..., 3] *= 3
  return dataclasses.replace(run, world_to_camera=moved)


def turned(run, degrees, frames):
  """The model with some cameras turned about their own axis."""
  angle = np.radians(degrees)
  turn = np.array(
    [
      [np.cos(angle), -np.sin(angle), 0],
      [np.sin(angle), np.cos(angle), 0],
      [0, 0, 1],
    ]
  )
  moved = run.world_to_camera.copy()
  moved[frames] = turn @ moved[frames]
  return dataclasses.replace(run, world_to_camera=moved)


def test_runs_that_agree_are_ok():
  run = exact_run()
  result = oracle_lib.judge([run, in_another_world(run)], FRAMES, LIMITS)
  assert result.ok
  assert result.frame_ok.all()
  assert result.info['reasons'] == []
  np.testing.assert_array_equal(result.world_to_camera[0], np.eye(4))
  want = run.world_to_camera  # Its first camera is the world.
  np.testing.assert_allclose(result.world_to_camera[:, :3], want, atol=1e-12)
  medians = result.info['medians']
  assert medians['rotation_difference'] < 1e-4
  assert medians['translation_difference'] < 1e-4
  assert medians['reprojection_error'] < 1e-9
  assert medians['points'] == 40
  json.dumps(result.info, allow_nan=False)
  # Of a point straight ahead between the ends of 1.5 metres, at 4 to 8 metres.
  assert 9 < medians['triangulation_angle'] < 22


def test_frames_that_are_not_registered():
  run = exact_run()
  kept = np.array([0, 1, 2, 4, 5])
  less = dataclasses.replace(
    run,
    frames=kept,
    world_to_camera=run.world_to_camera[kept],
    observations=run.observations[run.observations[:, 0] != 3],
    pixels=run.pixels[run.observations[:, 0] != 3],
  )
  result = oracle_lib.judge([less, run], FRAMES, LIMITS)
  assert not result.ok
  assert result.frame_ok.tolist() == [True] * 3 + [False] + [True] * 2
  assert result.info['reasons'] == ['frames 3 are not registered']
  assert np.isfinite(result.world_to_camera[kept]).all()
  # The second run alone lacks it: nothing confirms where it is.
  result = oracle_lib.judge([run, less], FRAMES, LIMITS)
  assert not result.ok
  assert result.frame_ok.tolist() == [True] * 3 + [False] + [True] * 2


def test_frames_that_see_too_little():
  run = exact_run()
  keep = (run.observations[:, 0] != 2) | (run.observations[:, 1] < 19)
  less = dataclasses.replace(
    run, observations=run.observations[keep], pixels=run.pixels[keep]
  )
  result = oracle_lib.judge([less, run], FRAMES, LIMITS)
  assert result.info['reasons'] == ['frames 2 see fewer than 20 points']
  none = dataclasses.replace(
    run,
    points=np.zeros((0, 3)),
    observations=np.zeros((0, 2), int),
    pixels=np.zeros((0, 2)),
  )
  result = oracle_lib.judge([none, run], FRAMES, LIMITS)
  assert not result.frame_ok.any()
  assert result.info['medians']['reprojection_error'] is None


def test_reprojection_errors():
  run = exact_run()
  pixels = run.pixels + np.where(run.observations[:, :1] == 4, [0, 1.1], 0)
  off = dataclasses.replace(run, pixels=pixels)
  result = oracle_lib.judge([off, run], FRAMES, LIMITS)
  assert not result.ok
  assert result.frame_ok.tolist() == [True] * 4 + [False, True]
  (reason,) = result.info['reasons']
  assert reason == 'frames 4 have a mean reprojection error over 1 pixels'


def test_no_parallax():
  run = exact_run()
  moved = run.world_to_camera.copy()
  moved[..., 3] /= 20
  near = dataclasses.replace(run, world_to_camera=moved)
  loose = dataclasses.replace(LIMITS, max_reprojection=1e9)
  result = oracle_lib.judge([near, near], FRAMES, loose)
  assert not result.frame_ok.any()
  (reason,) = result.info['reasons']
  assert 'triangulation angle below 1.5 degrees' in reason


def test_runs_that_differ():
  run = exact_run()
  result = oracle_lib.judge([run, turned(run, 5, [3])], FRAMES, LIMITS)
  assert not result.ok
  assert result.frame_ok.tolist() == [True] * 3 + [False] + [True] * 2
  (reason,) = result.info['reasons']
  assert reason == 'frames 3 rotate by over 1 degrees between runs'
  # All a little: each frame may pass, the clip does not.
  bent = run
  for frame in range(FRAMES):
    bent = turned(bent, 0.3 * frame, [frame])
  result = oracle_lib.judge([run, bent], FRAMES, LIMITS)
  assert not result.ok
  assert 'the median rotation_difference is 0.6, over 0.5' in str(result.info)
  # Backwards along the same line: for the metrics' angles it is the same.
  back = run.world_to_camera.copy()
  back[..., 3] *= -1
  back = dataclasses.replace(run, world_to_camera=back)
  result = oracle_lib.judge([run, back], FRAMES, LIMITS)
  assert not result.frame_ok.any()
  assert result.info['medians']['translation_difference'] == pytest.approx(180)


@dataclasses.dataclass(frozen=True)
class Walks(sources.Source):
  """Wide pictures of noise: one camera, one that zooms, one unknown."""

  name = 'walks'
  description = 'Noise.'

  def items(self):
    return [sources.Item(f'walk/{i}', i, 'test') for i in range(3)]

  def clips(self, item):
    intrinsics = np.tile(np.float32([0.6, 1.2, 0.5, 0.5]), (3, 1))
    if item.payload == 1:
      intrinsics[2] *= 1.1
    yield sources.Clip(
      id=item.id,
      frames=[images_lib.encode_png(noise(1, HEIGHT, WIDTH)[0])] * 3,
      height=HEIGHT,
      width=WIDTH,
      intrinsics=None if item.payload == 2 else intrinsics,
    )


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  convert_run.convert(Walks(), folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'walks', 'test')


@pytest.fixture
def installed(monkeypatch):
  """Lets the oracle take pycolmap for installed."""
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(metadata, 'version', lambda name: '4.2.1')


@pytest.fixture
def worker(installed, monkeypatch, tmp_path):
  """Puts a program in the place of COLMAP's."""

  def replace(code):
    (tmp_path / 'worker.py').write_text(code)
    monkeypatch.setattr(oracle_lib, '_WORKER', tmp_path / 'worker.py')

  return replace


def test_camera(store, installed, monkeypatch):
  asked = []

  def reconstruct(images, camera, time_limit):
    asked.append(camera)
    raise oracle_lib.Failure('no more')

  monkeypatch.setattr(oracle_lib, 'reconstruct', reconstruct)

  def ask(shape, clip=0, **options):
    scene = None
    if clip is not None:
      scene = base.Scene(store, clip, np.arange(3))
    result = oracles.make('colmap', **options)(noise(3, *shape), scene)
    assert not result.ok
    assert result.info['reasons'] == ['no more']
    camera = asked.pop()
    assert (
      camera['model'] == 'PINHOLE' if camera['params'] else 'SIMPLE_PINHOLE'
    )
    return [float(x) for x in camera['params'].split(',') if x]

  # The whole frame, and the central square of half its height.
  assert ask((HEIGHT, WIDTH)) == pytest.approx([120, 120, 100, 50])
  assert ask((50, 50)) == pytest.approx([60, 60, 25, 25])
  assert ask((50, 50), focal=0.7) == pytest.approx([35, 35, 25, 25])
  assert ask((50, 40), None, focal=0.7) == pytest.approx([28, 28, 20, 25])
  assert ask((60, 50)) == []
  assert ask((50, 50), estimate_focal=True) == []
  assert [ask((50, 50), clip) for clip in (1, 2, None)] == [[], [], []]


def test_bad_options(installed, monkeypatch):
  for options in ({'focal': -1.0}, {'focal': 1.0, 'estimate_focal': True}):
    with pytest.raises(UserError, match='colmap oracle was given focal='):
      oracles.make('colmap', **options)
  with pytest.raises(UserError, match='2 frames'):
    oracles.make('colmap')(noise(1, 20, 20))
  result = oracles.make('colmap')(noise(2, 20, 20))
  assert not result.ok
  assert result.info['reasons'] == ['COLMAP needs 3 frames']
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"pip install -e '.\[colmap\]'"):
    oracles.make('colmap')


def test_settings(installed):
  settings = oracles.make('colmap', workers=1).settings()
  assert settings == oracles.make('colmap', workers=2).settings()
  assert settings['pycolmap'] == '4.2.1'
  json.dumps(settings)
  for options in (
    *({'focal': 0.8}, {'estimate_focal': True}, {'seed': 1}),
    *({'max_rotation': 1.0}, {'max_translation': 3.0}, {'min_angle': 1.0}),
    *({'max_reprojection': 2.0}, {'min_points': 9}, {'time_limit': 9.0}),
  ):
    assert oracles.make('colmap', **options).settings() != settings


@pytest.mark.parametrize(
  ('code', 'reason'),
  [
    ('import os; os.abort()', 'COLMAP failed with status -6: no message'),
    (
      'raise RuntimeError("Check failed: x")',
      'COLMAP failed with status 1: RuntimeError: Check failed: x',
    ),
    ('import time; time.sleep(60)', 'COLMAP took over 1 seconds'),
    ('pass', 'COLMAP found no cameras from the pictures'),
  ],
)
def test_failures(worker, code, reason):
  worker(code)
  result = oracles.make('colmap', time_limit=1.0)(noise(3, 20, 20))
  assert not result.ok
  assert not result.frame_ok.any()
  assert result.world_to_camera.shape == (3, 4, 4)
  assert result.info['reasons'] == [reason]


def test_wrong_version_and_lack_of_memory(worker):
  worker('import math; math.global_mapping')
  with pytest.raises(
    UserError, match=r"pycolmap 4.2.1 is not the version .*'global_mapping'"
  ):
    oracles.make('colmap')(noise(3, 20, 20))
  worker('import os; os.kill(os.getpid(), 9)')
  with pytest.raises(UserError, match='COLMAP was killed, .* fewer workers'):
    oracles.make('colmap')(noise(3, 20, 20))


SIZE = 256
VIEWS = 6


@dataclasses.dataclass(frozen=True)
class Room(synthetic.Source):
  """One of the rooms."""

  def items(self):
    return [dataclasses.replace(super().items()[1], split='test')]


@pytest.fixture(scope='module')
def room(tmp_path_factory):
  """The clip's scene, its pictures and its cameras."""
  folder = tmp_path_factory.mktemp('room')
  source = Room(scenes=2, frames=VIEWS, size=SIZE, with_depth=False)
  convert_run.convert(source, folder, workers=0, quiet=True)
  store = store_lib.open_split(folder, 'synthetic', 'test')
  scene = base.Scene(store, 0, np.arange(VIEWS))
  frames = store.clip_frames(0, scene.frames)
  return scene, np.stack([images_lib.decode(x) for x in frames]), store.clip(0)


def assert_accurate(result, world_to_camera):
  true = base.rebase(world_to_camera)
  scores = poses.score(true, result.world_to_camera)
  assert np.median(scores.rotation_degrees) < 0.5
  assert np.median(scores.translation_degrees) < 2
  # With the sign that the metrics' angle lacks.
  step, found = (x[-1, :3, 3] for x in (true, result.world_to_camera))
  assert step @ found > 0


@pytest.mark.slow
@needs_pycolmap
def test_room(room):
  scene, shown, clip = room
  oracle = oracles.make('colmap', workers=2)
  result, again = oracle.batch([(shown, scene)] * 2)
  assert result.ok, result.info
  assert result.frame_ok.all()
  assert result.info['known_intrinsics']
  np.testing.assert_allclose(result.intrinsics, clip.intrinsics, rtol=1e-6)
  np.testing.assert_array_equal(result.world_to_camera[0], np.eye(4))
  assert_accurate(result, clip.world_to_camera)
  np.testing.assert_array_equal(result.world_to_camera, again.world_to_camera)
  # Without a camera that is known.
  result = oracle(shown)
  assert not result.info['known_intrinsics']
  if result.ok:
    assert_accurate(result, clip.world_to_camera)
    np.testing.assert_allclose(result.intrinsics, clip.intrinsics, rtol=0.1)


@pytest.mark.slow
@needs_pycolmap
def test_what_has_no_poses_is_not_ok(room):
  scene, shown, clip = room
  rng = np.random.default_rng(0)
  still = np.repeat(shown[:1], VIEWS, 0)
  grain = np.rint(rng.normal(0, 5, still.shape))
  clips = {
    'static': still,
    'static with noise': np.uint8(np.clip(still + grain, 0, 255)),
    'rotation': look_around(clip),
    'noise': noise(*shown.shape[:3]),
    'black': np.zeros_like(shown),
  }
  oracle = oracles.make('colmap', workers=2)
  results = oracle.batch([(x, scene) for x in clips.values()])
  for name, result in zip(clips, results, strict=True):
    assert not result.ok, name
    assert result.info['reasons'], name


def look_around(clip):
  """Pictures of a camera that turns where it stands."""
  room, _ = room_lib.build_scene(0, 1, 512)
  intrinsics = clip.intrinsics
  first = clip.world_to_camera[0].astype(np.float64)
  turned = []
  for angle in np.linspace(0, 0.5, VIEWS):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    turned.append(turn @ first)
  turned = np.stack(turned).astype(np.float32)
  baked = lighting.bake(room)
  drawn = render.render(baked, intrinsics, turned, SIZE)
  return np.stack([image for image, _ in drawn])
