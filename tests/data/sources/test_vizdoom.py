"""Flights through Freedoom: frozen levels, exact cameras, exact depth."""

import io
import multiprocessing
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

from xfactor import errors
from xfactor.data import images, sources
from xfactor.data.sources import vizdoom
from xfactor.data.worlds.doom import engine, flight_path
from xfactor.data.worlds.doom import level as level_lib
from xfactor.geometry import wander

pytest.importorskip('vizdoom')

SIZE, FRAMES = 48, 10


@pytest.fixture(scope='module')
def source():
  return vizdoom.Source(walks=16, frames=FRAMES, size=SIZE)


@pytest.fixture(scope='module')
def clips(source):
  """A walk in a training level and one in a test level."""
  items = source.items()
  chosen = [
    next(item for item in items if item.split == split)
    for split in ('train', 'test')
  ]
  return [next(iter(source.clips(item))) for item in chosen]


def depth_of(clip, i):
  with Image.open(io.BytesIO(clip.depth[i])) as image:
    assert image.mode == 'I;16'
    return np.asarray(image).astype(np.float64) / 1000


def rgb_of(clip, i):
  return images.decode_jpeg(clip.frames[i]).astype(np.float64)


def test_items(source):
  items = source.items()
  assert len(items) == 16
  assert len({item.id for item in items}) == 16
  assert [item.split for item in items].count('test') == 2
  for item in items:
    assert re.fullmatch(r'freedoom[12]_(e\dm\d|map\d\d)/\d{4}', item.id)
  many = vizdoom.Source(walks=1024).items()
  assert len({item.id for item in many}) == 1024
  levels = {
    split: {item.payload[:2] for item in many if item.split == split}
    for split in ('train', 'test')
  }
  assert levels['train'].isdisjoint(levels['test'])
  assert levels['test'] == set(vizdoom.TEST_LEVELS)
  assert len(levels['train'] | levels['test']) == 36 + 32
  # More walks keep the walks there are.
  assert {item.id for item in items} <= {item.id for item in many}


def test_clip_is_complete(clips, source):
  for clip in clips:
    assert (clip.height, clip.width) == (SIZE, SIZE)
    assert len(clip.frames) == len(clip.depth) == FRAMES
    assert clip.world_to_camera.shape == (FRAMES, 3, 4)
    assert clip.world_to_camera.dtype == np.float32
    assert clip.intrinsics.shape == (FRAMES, 4)
    assert clip.timestamps.shape == (FRAMES,)
    assert rgb_of(clip, 0).shape == (SIZE, SIZE, 3)
    assert depth_of(clip, 0).shape == (SIZE, SIZE)


def test_cameras_are_rigid_and_upright(clips):
  for clip in clips:
    rotation = clip.world_to_camera[:, :, :3].astype(np.float64)
    product = rotation @ rotation.swapaxes(1, 2)
    np.testing.assert_allclose(
      product, np.broadcast_to(np.eye(3), product.shape), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
    # Down in the picture is down in the world.
    assert (rotation[:, 1, 2] < -0.97).all()


def test_frames_off_the_curve_points_clear_steps():
  """This walk's 12th frame of 20 once stood a hair inside a stair."""
  source = vizdoom.Source(walks=8, frames=20, size=16, with_depth=False)
  (item,) = (i for i in source.items() if i.id == 'freedoom1_e1m3/0000')
  (clip,) = source.clips(item)
  assert len(clip.frames) == 20


def test_rotation_axes():
  # Facing east, right is south and down is down.
  np.testing.assert_allclose(
    level_lib.rotation_of(0, 0, 0),
    [[0, -1, 0], [0, 0, -1], [1, 0, 0]],
    atol=1e-9,
  )
  up = level_lib.rotation_of(0, 0.1, 0)[2]
  assert up[2] == pytest.approx(np.sin(0.1))
  north = level_lib.rotation_of(np.pi / 2, 0, 0)[2]
  np.testing.assert_allclose(north, [0, 1, 0], atol=1e-9)


def test_the_camera_moves_smoothly(clips):
  for clip in clips:
    rotation = clip.world_to_camera[:, :, :3]
    centre = -np.einsum('nij,ni->nj', rotation, clip.world_to_camera[:, :, 3])
    steps = np.linalg.norm(np.diff(centre, axis=0), axis=1)
    assert 1.5 < steps.sum() < 10
    assert steps.min() > 0.02
    assert steps.max() < 2 * np.median(steps)
    turns = np.einsum('nij,nij->n', rotation[1:], rotation[:-1])
    assert (np.arccos(((turns - 1) / 2).clip(-1, 1)) < 0.4).all()


def reproject(clip, a, b):
  """Looks up frame b where the points seen in frame a come to lie.

  Returns:
    The points' depth in b, frame b's own depth there, the colours in a and in
    b there, and the colours in b at the same pixels, for points inside b.
  """
  fx, fy, cx, cy = clip.intrinsics[a].astype(np.float64)
  depth = depth_of(clip, a)
  y, x = (np.mgrid[:SIZE, :SIZE] + 0.5) / SIZE
  points = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1)
  points = (points * depth[..., None])[depth > 0]
  first, second = clip.world_to_camera[[a, b]].astype(np.float64)
  world = (points - first[:, 3]) @ first[:, :3]
  seen = world @ second[:, :3].T + second[:, 3]
  z = seen[:, 2]
  ahead = z > 0.1
  z = np.where(ahead, z, 1)
  u = np.floor((seen[:, 0] / z * fx + cx) * SIZE).astype(int)
  v = np.floor((seen[:, 1] / z * fy + cy) * SIZE).astype(int)
  inside = ahead & (u >= 0) & (u < SIZE) & (v >= 0) & (v < SIZE)
  u, v, z = u[inside], v[inside], z[inside]
  assert inside.mean() > 0.2
  return (
    z,
    depth_of(clip, b)[v, u],
    rgb_of(clip, a)[depth > 0][inside],
    rgb_of(clip, b)[v, u],
    rgb_of(clip, b)[depth > 0][inside],
  )


def test_frames_agree_on_depth_and_colour(clips):
  for clip in clips:
    for a, b in ((0, 2), (5, 3), (7, 9)):
      z, there, colour, moved, still = reproject(clip, a, b)
      same = np.abs(z - there) < 0.05 * z
      assert same.mean() > 0.8
      error = np.abs(colour - moved)[same].mean()
      assert error < 0.75 * np.abs(colour - still)[same].mean()


def test_views_show_something(clips):
  for clip in clips:
    for i in range(FRAMES):
      depth = depth_of(clip, i)
      assert (depth > 0).mean() > 0.5
      assert np.median(depth[depth > 0]) > 1
      rgb = rgb_of(clip, i)
      assert rgb.mean() > 20
      assert rgb.std() > 8


@pytest.mark.parametrize(
  'paths', ['tilt+roll', 'pan+tilt+roll+slide+rise+push']
)
def test_wandering_views_agree_on_depth_and_colour(paths):
  """Steep ones too, for which the engine looks up or down."""
  source = vizdoom.Source(
    walks=8, frames=FRAMES, size=SIZE, paths=paths, turn=8, move=0.1
  )
  (clip,) = source.clips(source.items()[0])
  rotation = clip.world_to_camera[:, :, :3].astype(np.float64)
  yaw, pitch, _ = wander.angles(rotation)
  looks = [engine.look_of(*view) for view in zip(yaw, rotation, strict=True)]
  assert np.degrees(np.abs(pitch)).max() > 15
  assert np.any(looks)
  for a in range(0, FRAMES - 2, 2):
    z, there, colour, moved, still = reproject(clip, a, a + 2)
    same = np.abs(z - there) < 0.05 * z
    assert same.mean() > 0.8
    error = np.abs(colour - moved)[same].mean()
    assert error < 0.75 * np.abs(colour - still)[same].mean()


def test_each_walk_wanders_in_one_of_the_kinds():
  lumps = level_lib.read_level(
    os.path.join(level_lib.game_folder(), 'freedoom2.wad'), 'MAP02'
  )
  level = level_lib.parse_level(lumps)
  source = vizdoom.Source(frames=24, paths='pan,slide+rise', move=0.1)
  seen = set()
  for seed in range(8):
    path = source._plan(level, np.random.default_rng(seed))
    turns, moves = np.ptp(path.yaw) > 0, np.ptp(path.position, 0).max() > 0
    assert turns != moves
    seen.add(turns)
    assert not np.ptp(path.pitch)
    assert (
      level_lib.clearance(level, path.position).min() >= flight_path._CLEARANCE
    )
    assert flight_path._has_room(level, path.position)
    again = source._plan(level, np.random.default_rng(seed))
    np.testing.assert_array_equal(path.position, again.position)
  assert len(seen) == 2


def test_paths_keep_the_items():
  assert (
    vizdoom.Source(walks=16, paths='pan', turn=1).items()
    == vizdoom.Source(walks=16).items()
  )


def test_the_engine_looks_no_further_than_it_must():
  def look(pitch, roll=0.0, yaw=1.0):
    angles = (*np.radians([pitch, roll]),)
    return engine.look_of(yaw, level_lib.rotation_of(yaw, *angles))

  # As far as the walks without `paths` tilt.
  assert look(8, 4) == look(-8, -4) == 0
  assert look(20, 10) < 0 < look(-20, 10)
  assert look(-20) < look(-20, 10)
  assert look(35, 0) is None
  assert look(-70, 0) is None
  assert look(0, 90) == 0
  turned = level_lib.rotation_of(2.5, 0, 0)
  assert engine.look_of(1.0, turned) is None


def test_same_walk_in_another_process(source, clips, tmp_path, monkeypatch):
  # Also shows that a walk does not depend on those before it, that it works in
  # a worker, and that nothing is left where that worker was started.
  monkeypatch.chdir(tmp_path)
  item = next(item for item in source.items() if item.split == 'test')
  context = multiprocessing.get_context('spawn')
  with context.Pool(1) as pool:
    again = pool.apply(only_clip, (source, item))
  assert os.listdir(tmp_path) == []
  assert again.frames == clips[1].frames
  assert again.depth == clips[1].depth
  np.testing.assert_array_equal(again.world_to_camera, clips[1].world_to_camera)


def only_clip(source, item):
  return next(iter(source.clips(item)))


def test_seed_and_number_change_the_path():
  folder = level_lib.game_folder()
  lumps = level_lib.read_level(os.path.join(folder, 'freedoom2.wad'), 'MAP02')
  level = level_lib.parse_level(lumps)
  paths = [
    flight_path.plan_path(level, np.random.default_rng(seed), FRAMES).position
    for seed in (1, 1, 2)
  ]
  np.testing.assert_array_equal(paths[0], paths[1])
  assert np.abs(paths[0] - paths[2]).max() > 1


def test_frozen_level_has_nothing_that_moves():
  path = os.path.join(level_lib.game_folder(), 'freedoom1.wad')
  lumps = level_lib.freeze_level(level_lib.read_level(path, 'E1M1'))
  assert len(lumps['THINGS']) == 10  # One record: where the player starts.
  lines = np.frombuffer(lumps['LINEDEFS'], level_lib._LINE)
  sectors = np.frombuffer(lumps['SECTORS'], level_lib._SECTOR)
  assert not lines['special'].any()
  assert not sectors['special'].any()
  assert sectors['light'].min() >= 144


def box_level():
  """A room of 200 x 100 with a step of 20 in its eastern half."""
  corners = np.array(
    [
      *([0, 0], [0, 100], [100, 100], [200, 100], [200, 0], [100, 0]),
    ],
    float,
  )
  walls = [(0, 1, 0), (1, 2, 0), (2, 3, 1), (3, 4, 1), (4, 5, 1), (5, 0, 0)]
  lines = [(a, b, front, -1) for a, b, front in walls] + [(2, 5, 0, 1)]
  # Seen from its start, a line's front is on its right; the step's is west.
  lines[-1] = (5, 2, 1, 0)
  first, second, front, back = np.array(lines).T
  return level_lib.Level(
    start=corners[first],
    edge=corners[second] - corners[first],
    front=front,
    back=back,
    floor=np.array([0.0, 20.0]),
    ceiling=np.array([90.0, 90.0]),
    sky=np.array([[False, False], [False, True]]),
  )


def test_cast_in_a_room_of_known_size():
  level = box_level()
  origin = np.array([50.0, 50.0, 30.0])
  rays = np.array(
    [
      [1.0, 0.0, 0.0],  # Over the step to the far wall.
      [1.0, 0.0, -0.5],  # Into the riser of the step.
      [1.0, 0.0, -0.9],  # Onto the floor before it.
      [1.0, 0.0, -0.1],  # Onto the tread of the step.
      [1.0, 0.0, 0.9],  # Under the western ceiling to the sky beyond,
      [1.0, 0.0, 3.0],  # to that ceiling,
      [1.0, 0.0, 0.5],  # and lower, to the sky again.
      [1.0, 0.5, 0.0],  # To the northern wall.
    ]
  )
  expected = [150, 50, 30 / 0.9, 100, 0, 20, 0, 100]
  result = level_lib.cast(level, origin, rays, 64)
  np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_sectors_and_clearance():
  level = box_level()
  points = np.array([[50.0, 50.0], [150.0, 50.0], [250.0, 50.0], [-9.0, 50.0]])
  np.testing.assert_array_equal(
    level_lib.sector_of(level, points), [0, 1, -1, -1]
  )
  # High enough, the step is no obstacle; below its tread it is.
  at = np.array([[90.0, 50.0, 60.0], [90.0, 50.0, 25.0], [190.0, 40.0, 60.0]])
  np.testing.assert_allclose(level_lib.clearance(level, at), [50, 10, 10])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'paths': 'pan,til'}, r"no paths of kind 'til'; .* pan, tilt, roll"),
    ({'paths': 'pan,'}, "no paths of kind ''"),
    ({'turn': 11}, 'turn between 0 and 10, not 11'),
    ({'move': -0.1}, 'move between 0 and 0.5, not -0.1'),
    ({'move': float('nan')}, 'move between 0 and 0.5, not nan'),
  ],
)
def test_unusable_paths(options, message):
  with pytest.raises(errors.UserError, match=message):
    sources.make('vizdoom', **options)


def test_options_and_missing_package(monkeypatch):
  with pytest.raises(errors.UserError, match='frames=0'):
    vizdoom.Source(frames=0).items()
  monkeypatch.setitem(sys.modules, 'vizdoom', None)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r"install -e '\.\[vizdoom\]'"):
    vizdoom.Source().items()
