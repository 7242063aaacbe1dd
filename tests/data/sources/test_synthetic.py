"""The synthetic source: exact geometry, determinism, sane options."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from xfactor.data import files, rerender, sources
from xfactor.data import images as images_lib
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import synthetic
from xfactor.data.worlds.raycaster import lighting, render
from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.data.worlds.rooms import camera_path, movers, room
from xfactor.errors import UserError
from xfactor.geometry import cameras, trajectories, wander

SIZE = 64
SCENES = range(5)


def _clip(index=0, **options):
  options = {'scenes': 16, 'frames': 6, 'size': SIZE, **options}
  source = sources.make('synthetic', **options)
  (clip,) = source.clips(source.items()[index])
  return clip


@pytest.fixture(scope='module')
def clips():
  return [_clip(index) for index in SCENES]


def _images(clip):
  frames = [simplejpeg.decode_jpeg(frame) for frame in clip.frames]
  return np.stack(frames).astype(np.float32)


def _depths(clip):
  depths = [np.array(Image.open(io.BytesIO(png))) for png in clip.depth]
  return np.stack(depths).astype(np.float32) / 1000


def test_shapes_and_types(clips):
  clip = clips[0]
  assert clip.id == '000000'
  assert (clip.height, clip.width, len(clip.frames)) == (SIZE, SIZE, 6)
  assert _images(clip).shape == (6, SIZE, SIZE, 3)
  assert Image.open(io.BytesIO(clip.depth[0])).mode == 'I;16'
  assert _depths(clip).shape == (6, SIZE, SIZE)
  assert clip.intrinsics.shape == (6, 4)
  assert clip.intrinsics.dtype == np.float32
  assert clip.world_to_camera.shape == (6, 3, 4)
  assert clip.world_to_camera.dtype == np.float32
  np.testing.assert_allclose(clip.timestamps, np.arange(6) / 10)


def test_same_seed_same_bytes(clips):
  again = _clip(1)
  assert again.frames == clips[1].frames
  assert again.depth == clips[1].depth
  np.testing.assert_array_equal(again.world_to_camera, clips[1].world_to_camera)


def test_scenes_and_seeds_differ(clips):
  every = [*clips, _clip(0, seed=1)]
  first = np.stack([_images(clip)[0] for clip in every])
  for i in range(len(every)):
    for j in range(i):
      assert np.abs(first[i] - first[j]).mean() > 10


def test_the_size_changes_the_resolution_only(clips):
  large = _clip(0, size=2 * SIZE)
  np.testing.assert_array_equal(large.world_to_camera, clips[0].world_to_camera)
  shrunk = _images(large)[0].reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
  assert np.median(np.abs(shrunk - _images(clips[0])[0])) < 6


def test_cameras_are_rigid(clips):
  for clip in clips:
    rotation = clip.world_to_camera[:, :, :3]
    identity = np.broadcast_to(np.eye(3), rotation.shape)
    np.testing.assert_allclose(
      rotation @ rotation.swapaxes(1, 2), identity, atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    fov = 2 * np.degrees(np.arctan(0.5 / clip.intrinsics[:, 1]))
    assert ((fov >= 50) & (fov <= 75)).all()


def _reproject(clip, a, b):
  """Takes every pixel of frame `a` to frame `b` by its depth.

  Returns:
    Colours in a and in b and depths expected and found in b, where unoccluded.
  """
  images, depths = _images(clip), _depths(clip)
  k, pose = clip.intrinsics, clip.world_to_camera
  origins, rays = cameras.pixel_rays(k[a], pose[a], SIZE, SIZE)
  cosine = rays @ pose[a][2, :3]
  points = origins + rays * (depths[a] / cosine)[..., None]
  grid = (SIZE, SIZE)
  xy, depth = cameras.project(
    points,
    np.broadcast_to(k[b], (*grid, 4)),
    np.broadcast_to(pose[b], (*grid, 3, 4)),
  )
  # Bilinear lookup of frame b between the centres of its pixels.
  x, y = np.moveaxis(xy * SIZE - 0.5, -1, 0)
  seen = (x > 0) & (x < SIZE - 1.01) & (y > 0) & (y < SIZE - 1.01) & (depth > 0)
  x, y, depth = x[seen], y[seen], depth[seen]
  x0, y0 = x.astype(int), y.astype(int)
  fx, fy = x - x0, y - y0

  def lookup(image):
    corners = [image[y0 + j, x0 + i].T for j in (0, 1) for i in (0, 1)]
    top = corners[0] * (1 - fx) + corners[1] * fx
    return (top * (1 - fy) + (corners[2] * (1 - fx) + corners[3] * fx) * fy).T

  # A plane's inverse depth is linear in the image; its depth is not.
  found = 1 / lookup(1 / depths[b])
  visible = np.abs(found - depth) < 0.02 * depth
  return images[a][seen][visible], lookup(images[b])[visible], depth, found


def test_depth_and_cameras_reproject(clips):
  for clip in clips:
    for a, b in ((0, 1), (1, 0), (2, 3)):
      colour, expected, depth, found = _reproject(clip, a, b)
      assert len(colour) > 0.4 * SIZE**2
      assert np.median(np.abs(colour - expected)) < 6
      # The depth is stored to the millimetre.
      assert np.median(np.abs(depth - found)) < 2e-3


def test_frames_move(clips):
  for clip in clips:
    eyes = cameras.camera_centre(clip.world_to_camera)
    assert np.linalg.norm(np.diff(eyes, axis=0), axis=-1).sum() > 0.3
    images = _images(clip)
    assert np.abs(images[0] - images[-1]).mean() > 5


def test_nothing_touches_the_camera(clips):
  for index, clip in enumerate(clips):
    # The corner of the widest view sees a point at the margin at a z-depth of
    # margin times the cosine of its angle.
    assert _depths(clip).min() > camera_path.MARGIN * 0.6
    scene, _ = room.build_scene(0, index, 16)
    eyes = cameras.camera_centre(clip.world_to_camera)
    assert render.clearance(scene, eyes).min() > camera_path.MARGIN - 0.02


def test_images_are_well_exposed(clips):
  for clip in clips:
    images = _images(clip)
    assert 40 < images.mean() < 225
    assert images.std() > 15


def test_splits_stay_when_scenes_are_added():
  few = [i.split for i in sources.make('synthetic', scenes=50).items()]
  many = [i.split for i in sources.make('synthetic', scenes=2000).items()]
  assert few == many[:50]
  assert 'test' in many[:10]
  assert 0.07 < np.mean([split == 'test' for split in many]) < 0.13


def test_even_a_tiny_fraction_tests_one_in_ten_scenes():
  items = sources.make('synthetic', scenes=10, test_fraction=1e-6).items()
  assert [item.split for item in items].count('test') == 1
  items = sources.make('synthetic', scenes=10, test_fraction=0.0).items()
  assert {item.split for item in items} == {'train'}


def test_validation_scenes_are_neither_trained_nor_tested_on():
  options = {'scenes': 2000, 'test_fraction': 0.15}
  without = [i.split for i in sources.make('synthetic', **options).items()]
  source = sources.make('synthetic', val_fraction=0.1, **options)
  splits = [item.split for item in source.items()]
  assert 0.08 < np.mean([split == 'val' for split in splits]) < 0.12
  assert {'val', 'test'} < set(splits[:10])
  # They are taken from those to train on.
  for before, now in zip(without, splits, strict=True):
    assert now == before or (before, now) == ('train', 'val')
  with pytest.raises(UserError, match='sum is at most 1, not 0.6 and 0.5'):
    sources.make('synthetic', test_fraction=0.6, val_fraction=0.5)


def test_depth_is_optional():
  assert _clip(0, frames=2, size=16, with_depth=False).depth is None


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('frames', 1),
    ('size', 7),
    ('scenes', 0),
    ('seed', -1),
    ('quality', 0),
    ('quality', 101),
    ('test_fraction', 1.5),
    ('test_fraction', float('nan')),
  ],
)
def test_bad_options_are_explained(option, value):
  with pytest.raises(UserError, match=option):
    sources.make('synthetic', **{option: value})


def _kinds_of_paths(monkeypatch, paths):
  """Those that are tried until one is free."""
  tried, real = [], trajectories.random_path

  def random_path(kind, *args):
    tried.append(kind)
    return real(kind, *args)

  monkeypatch.setattr(trajectories, 'random_path', random_path)
  _clip(0, frames=2, size=16, paths=paths)
  return set(tried)


def test_paths_are_of_the_kinds_that_are_asked_for(monkeypatch):
  assert _kinds_of_paths(monkeypatch, 'look_around') == {'look_around'}
  assert _kinds_of_paths(monkeypatch, 'dolly,crane') <= {'dolly', 'crane'}


def test_all_kinds_of_paths_are_the_default(clips):
  every = _clip(0, frames=6, paths=','.join(trajectories.KINDS))
  np.testing.assert_array_equal(every.world_to_camera, clips[0].world_to_camera)
  assert every.frames == clips[0].frames


@pytest.mark.parametrize('paths', ['dolly,zoom', 'dolly,', 'Dolly'])
def test_unknown_kinds_of_paths(paths):
  with pytest.raises(UserError, match='no paths of kind .*choose from .*dolly'):
    sources.make('synthetic', paths=paths)


@pytest.mark.parametrize('paths', ['pan+fly', 'dolly+pan', 'pan+', 'pan,+'])
def test_unknown_degrees_of_freedom(paths):
  with pytest.raises(
    UserError, match='no paths of kind .*join some of pan, tilt, .*push by +'
  ):
    sources.make('synthetic', paths=paths)


def _wandering(paths, scenes=3, **options):
  """Yaw, pitch, roll [scenes, frames] and eyes of walks of a kind."""
  options = {'frames': 12, 'size': 8, 'with_depth': False, **options}
  clips = [_clip(i, paths=paths, **options) for i in range(scenes)]
  poses = np.stack([clip.world_to_camera for clip in clips])
  turns = [np.unwrap(x) for x in wander.angles(poses[..., :3])]
  return *turns, cameras.camera_centre(poses)


def _moved(x):
  """How far a number goes, by scene."""
  return np.ptp(x, axis=1)


def test_a_pan_moves_the_yaw_alone():
  yaw, pitch, roll, eyes = _wandering('pan', turn=3)
  assert (_moved(yaw) > 0.05).all()
  assert _moved(pitch).max() < 1e-5
  np.testing.assert_allclose(roll, 0, atol=1e-5)
  assert _moved(eyes).max() < 1e-5


def test_a_slide_moves_the_eye_alone():
  yaw, pitch, roll, eyes = _wandering('slide', move=0.05)
  for turn in (yaw, pitch, roll):
    assert _moved(turn).max() < 1e-5
  away = eyes - eyes[:, :1]
  assert (np.abs(away).max((1, 2)) > 0.05).all()
  # To the camera's left and right, and on a level.
  ahead = np.stack([np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)], -1)
  np.testing.assert_allclose((away * ahead).sum(-1), 0, atol=1e-5)
  np.testing.assert_allclose(away[..., 2], 0, atol=1e-5)


def test_speeds_are_as_told():
  """As far as a smooth draw of a dozen frames tells."""
  slow, *_ = _wandering('pan', turn=1)
  fast, *_ = _wandering('pan', turn=2)
  speed = np.diff(slow, axis=1)
  np.testing.assert_allclose(np.diff(fast, axis=1), 2 * speed, atol=1e-5)
  assert 0.4 < np.degrees(np.sqrt(np.square(speed).mean())) < 2


def test_the_field_of_view_is_kept():
  """Where it is given; else every walk has its own."""
  options = {'scenes': 2, 'walks': 2, 'frames': 2, 'size': 8}
  found = {}
  for given in (65.0, 0.0):
    source = sources.make('synthetic', field_of_view=given, **options)
    clips = [clip for item in source.items() for clip in source.clips(item)]
    focal = np.stack([clip.intrinsics[:, :2] for clip in clips])
    assert focal.shape == (4, 2, 2)
    found[given] = 2 * np.degrees(np.arctan(0.5 / focal))
  np.testing.assert_allclose(found[65.0], 65, rtol=1e-5)
  assert len(np.unique(found[0.0])) == 4


def test_solids_know_no_paths():
  with pytest.raises(UserError, match="no option 'paths'"):
    sources.make('solids', paths='dolly')


def _shapes():
  """A room with a box, a tube and a ball; nothing random."""
  eye = np.eye(3)
  return scene_lib.Scene(
    kind=np.array(
      [scene_lib.ROOM, scene_lib.BOX, scene_lib.TUBE, scene_lib.ELLIPSOID]
    ),
    centre=np.float32([[0, 0, 1.5], [0, 0, 0.5], [1.5, 0, 0.5], [0, 1.5, 1]]),
    half=np.float32(
      [[3, 3, 1.5], [0.5, 0.5, 0.5], [0.3, 0.3, 0.5], [0.4, 0.4, 0.4]]
    ),
    rotation=np.float32([eye] * 4),
    group=np.arange(4),
    glow=np.zeros(4, np.float32),
    tint=np.ones((4, 6, 3), np.float32),
    texture=np.zeros((4, 6), int),
    tile=np.zeros((4, 6), np.float32),
    albedo=np.full((1, 4, 4, 3), 0.5, np.float32),
    lights=(
      scene_lib.Light(
        np.float32([0, 0, 2.8]),
        np.float32([0.1, 0, 0]),
        np.float32([0, 0.1, 0]),
        np.float32([5, 5, 5]),
        np.zeros(3, np.float32),
      ),
    ),
    key=0.25,
  )


def test_clearance_is_the_distance_to_the_nearest_surface():
  points = np.float32(
    [
      [-1, 0, 0.5],
      [0, 0, 0.5],
      [1.5, -0.7, 0.5],
      [0, 1.5, 1.8],
      [-2.9, -2.5, 1],
      [0, 0, 2.7],
    ]
  )
  np.testing.assert_allclose(
    render.clearance(_shapes(), points),
    [0.5, -0.5, 0.4, 0.4, 0.1, 0.3],
    atol=1e-6,
  )


def test_depth_of_known_shapes():
  eyes = np.float32([[-2.5, 0, 0.5], [1.5, -2.5, 0.5], [0, 2.9, 1]])
  targets = np.float32([[0, 0, 0.5], [1.5, 0, 0.5], [0, 1.5, 1]])
  poses = cameras.look_at(eyes, targets, np.float32([0, 0, 1]))
  k = np.tile(np.float32([1, 1, 0.5, 0.5]), (3, 1))
  frames = render.render(lighting.bake(_shapes()), k, poses, 33)
  middles = [depth[16, 16] for _, depth in frames]
  np.testing.assert_allclose(middles, [2.0, 2.2, 1.0], atol=1e-5)


def test_a_box_casts_a_shadow():
  scene = _shapes()
  baked = lighting.bake(scene)
  pose = cameras.look_at(
    np.float32([[-2.5, -2.5, 2.5]]),
    np.float32([[0, 0, 0.5]]),
    np.float32([0, 0, 1]),
  )
  k = np.float32([[0.7, 0.7, 0.5, 0.5]])
  ((image, _),) = render.render(baked, k, pose, 64)

  def brightness(point):
    (xy,), _ = cameras.project(np.float32([point]), k, pose)
    x, y = (xy * 64).astype(int)
    return image[y, x].mean()

  # The floor beside the box, out of the lamp's sight, and farther out.
  assert brightness([-0.65, 0, 0]) < 0.85 * brightness([-1.8, 0, 0])


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  source = synthetic.Source(
    scenes=3, frames=4, size=48, seed=7, quality=90, test_fraction=0.0
  )
  convert_run.convert(source, folder, workers=0, quiet=True)
  return folder


@pytest.fixture(scope='module')
def store(converted):
  return store_lib.open_split(converted, 'synthetic', 'train')


def _cameras(store, clip):
  poses = np.tile(np.eye(4), (int(store.num_frames[clip]), 1, 1))
  poses[:, :3] = store.clip(clip).world_to_camera
  return poses


def test_own_cameras_draw_the_same_frames(store):
  for clip in range(len(store)):
    pictures, free = rerender.rerender(store, clip, _cameras(store, clip), 48)
    assert free.all()
    frames = store.clip_frames(clip, range(4))
    for picture, frame in zip(pictures, frames, strict=True):
      assert np.abs(picture - images_lib.decode(frame).astype(float)).mean() < 4
      again = simplejpeg.encode_jpeg(picture, 90, colorsubsampling='444')
      assert again == frame


def test_drawn_smaller_as_frames_are(store):
  poses = _cameras(store, 1)
  whole, _ = rerender.rerender(store, 1, poses, 48)
  small, _ = rerender.rerender(store, 1, poses, 16)
  for a, b in zip(whole, small, strict=True):
    np.testing.assert_array_equal(images_lib.centre_crop_resize(a, 16), b)


def test_another_motion_shows_the_same_room(store):
  """A step back from a frame shows its middle smaller."""
  poses = _cameras(store, 0)
  step = poses[:1].copy()
  step[0, 2, 3] += 0.2
  (near,), _ = rerender.rerender(store, 0, poses[:1], 48)
  (far,), free = rerender.rerender(store, 0, step, 48)
  assert free.all()
  with Image.open(io.BytesIO(store.depth(int(store.first_frame[0])))) as file:
    depth = np.asarray(file) / 1000
  fx, fy, cx, cy = store.clip(0).intrinsics[0]
  y, x = (np.mgrid[:48, :48] + 0.5) / 48
  u = (x - cx) * depth / (depth + 0.2) + cx
  v = (y - cy) * depth / (depth + 0.2) + cy
  moved = far[(v * 48).astype(int), (u * 48).astype(int)].astype(float)
  stayed = np.abs(near - far.astype(float)).mean()
  assert np.abs(near - moved).mean() < 0.6 * stayed


def test_eyes_in_walls_see_nothing(store):
  poses = _cameras(store, 2)
  poses[1, :3, 3] += 100
  pictures, free = rerender.rerender(store, 2, poses, 48)
  assert free.tolist() == [True, False, True, True]
  assert not pictures[1].any()
  assert pictures[[0, 2, 3]].any((1, 2, 3)).all()
  pictures, free = rerender.rerender(store, 2, poses[1:2], 48)
  assert not free.any()
  assert pictures.shape == (1, 48, 48, 3)


WALKS = {'paths': 'pan+slide', 'field_of_view': 65.0}


@pytest.fixture(scope='module')
def walks(tmp_path_factory):
  """Two walks in each of two rooms."""
  folder = tmp_path_factory.mktemp('walks')
  source = synthetic.Source(
    scenes=2, walks=2, frames=4, size=48, test_fraction=0.0, **WALKS
  )
  convert_run.convert(source, folder, workers=0, quiet=True)
  return store_lib.open_split(folder, 'synthetic', 'train')


def test_the_walks_of_a_room_have_paths_of_their_own(walks):
  assert [walks.clip_id(i) for i in range(4)] == [
    *('000000', '000000-1', '000001', '000001-1')
  ]
  poses = np.stack([_cameras(walks, i) for i in range(4)])
  for a in range(4):
    for b in range(a):
      assert np.abs(poses[a] - poses[b]).max() > 0.1
  # The first is that of a room with one walk.
  alone = _clip(0, frames=4, size=48, **WALKS)
  np.testing.assert_array_equal(poses[0, :, :3], alone.world_to_camera)
  assert list(walks.clip_frames(0, range(4))) == alone.frames


@pytest.mark.parametrize('clip', [1, 3])
def test_a_second_walk_is_drawn_anew(walks, clip):
  pictures, free = rerender.rerender(walks, clip, _cameras(walks, clip), 48)
  assert free.all()
  frames = walks.clip_frames(clip, range(4))
  for picture, frame in zip(pictures, frames, strict=True):
    again = simplejpeg.encode_jpeg(picture, 95, colorsubsampling='444')
    assert again == frame


def test_walks_share_their_room(walks):
  """What cameras of the first walk see is in the scene of the second."""
  poses = _cameras(walks, 0)
  here, there, elsewhere = (
    rerender.rerender(walks, clip, poses, 48)[0] for clip in range(3)
  )
  np.testing.assert_array_equal(here, there)
  assert np.abs(here - elsewhere.astype(float)).mean() > 10


@pytest.mark.parametrize(
  ('key', 'value'), [('source', 'video'), ('source_version', '0.9.0')]
)
def test_other_data_are_not_drawn_anew(converted, key, value, monkeypatch):
  read = files.read_json
  monkeypatch.setattr(files, 'read_json', lambda x: {**read(x), key: value})
  other = store_lib.open_split(converted, 'synthetic', 'train')
  assert not rerender.is_possible(other)
  with pytest.raises(ValueError, match='synthetic cannot be rendered again'):
    rerender.rerender(other, 0, _cameras(other, 0), 48)


@pytest.fixture(scope='module')
def moving(tmp_path_factory):
  """Two rooms, two walks each, in which solids move; and the same without."""
  folder = tmp_path_factory.mktemp('moving')
  stores = []
  for name, count in (('moving', 3), ('still', 0)):
    source = synthetic.Source(
      scenes=2,
      walks=2,
      frames=9,
      size=48,
      paths='pan',
      turn=1,
      test_fraction=0.0,
      movers=count,
    )
    convert_run.convert(source, folder, name=name, workers=0, quiet=True)
    stores.append(store_lib.open_split(folder, name, 'train'))
  return stores


def _frames(store, clip):
  found = store.clip_frames(clip, range(int(store.num_frames[clip])))
  return np.stack([images_lib.decode(frame) for frame in found]).astype(float)


def test_solids_move_and_the_camera_does_not_know(moving):
  seen = 0
  for clip in range(4):
    poses = [_cameras(store, clip) for store in moving]
    np.testing.assert_array_equal(*poses)
    apart = np.abs(np.subtract(*(_frames(x, clip) for x in moving))).mean(-1)
    changed = apart > 40
    # Most of a picture is the room, without shadows of the solids.
    assert changed.mean() < 0.5
    seen += changed.any((1, 2)).sum()
    # Which pixels they cover changes.
    if changed[0].any() and changed[-1].any():
      assert (changed[0] != changed[-1]).any()
  assert seen > 18


def test_rerendered_solids_are_as_in_the_middle_frame(moving):
  store, still = moving
  moved = 0
  for clip in range(4):
    frames, poses = _frames(store, clip), _cameras(store, clip)
    pictures, free = rerender.rerender(store, clip, poses, 48)
    assert free.all()
    assert np.abs(pictures[4] - frames[4]).mean() < 4
    moved += np.abs(pictures[0] - frames[0]).mean() > 4
    # Seen from its own camera at any time, the room itself is the same.
    room = np.abs(_frames(still, clip)[0] - frames[0]).max(-1) < 20
    room &= np.abs(_frames(still, clip)[0] - pictures[0]).max(-1) < 20
    assert np.abs(pictures[0] - frames[0])[room].mean() < 4
  assert moved


@pytest.mark.slow
def test_solids_keep_away_from_cameras_and_inside_rooms():
  source = synthetic.Source(scenes=20, movers=4)
  for index in range(20):
    scene, _ = source.scene(index)
    pose = np.eye(4)[None, :3].repeat(30, 0).astype(np.float32)
    eye = scene.centre[0] * [1, 1, 1.1]
    pose[:, :, 3] = -eye
    rng = np.random.default_rng(index)
    solids = movers.sample(rng, scene, pose, 4)
    gap = np.linalg.norm(solids.centres - eye, axis=-1)
    assert (gap > np.linalg.norm(solids.parts.half, axis=-1) + 0.2).all()
    inside = scene.half[0] - np.abs(solids.centres - scene.centre[0])
    assert (inside >= solids.parts.half - 1e-4).all()
