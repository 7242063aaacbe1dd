"""The solids source: exact geometry, independent views, determinism."""

import colorsys
import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from xfactor.data import sources
from xfactor.data.convert import run as convert_run
from xfactor.data.records import store as store_lib
from xfactor.data.sources import solids
from xfactor.data.worlds.raycaster import render
from xfactor.data.worlds.raycaster import scene as scene_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras

SIZE = 64
FRAMES = 5
SCENES = range(4)


def _clip(index=0, **options):
  options = {'scenes': 8, 'frames': FRAMES, 'size': SIZE, **options}
  source = sources.make('solids', **options)
  (clip,) = source.clips(source.items()[index])
  return clip


@pytest.fixture(scope='module')
def clips():
  return [_clip(index) for index in SCENES]


def _images(clip):
  return np.stack([simplejpeg.decode_jpeg(frame) for frame in clip.frames])


def _depths(clip):
  depths = [np.array(Image.open(io.BytesIO(png))) for png in clip.depth]
  return np.stack(depths).astype(np.float32) / 1000


def _hue(colour):
  return colorsys.rgb_to_hsv(*(float(c) for c in colour))[0]


def _hue_distance(a, b):
  return abs((a - b + 0.5) % 1 - 0.5)


def _hues(scene):
  """Of the solids, as seen in white light."""
  return [_hue(tint[0] ** (1 / 2.2)) for tint in scene.tint[1:]]


def test_shapes_and_types(clips):
  clip = clips[0]
  assert clip.id == '000000'
  assert _images(clip).shape == (FRAMES, SIZE, SIZE, 3)
  assert _depths(clip).shape == (FRAMES, SIZE, SIZE)
  assert (clip.height, clip.width) == (SIZE, SIZE)
  assert clip.timestamps is None
  assert clip.world_to_camera.dtype == np.float32
  assert len(_clip(frames=12, size=8).frames) == solids.Source.frames


def test_a_scene_depends_on_nothing_but_seed_and_index(clips):
  for index in reversed(SCENES):
    again = _clip(index, scenes=8 + index)
    assert again.frames == clips[index].frames
    assert again.depth == clips[index].depth
    np.testing.assert_array_equal(
      again.world_to_camera, clips[index].world_to_camera
    )


def test_scenes_and_seeds_differ(clips):
  every = [*clips, _clip(seed=1)]
  for i, a in enumerate(every):
    for b in every[:i]:
      assert np.abs(_images(a)[0] - _images(b)[0].astype(float)).mean() > 10
      assert not np.isclose(a.world_to_camera, b.world_to_camera).all()


@pytest.mark.parametrize('seed', [0, 5])
def test_solids_stand_apart_in_colours_of_their_own(seed):
  kinds = set()
  for index in range(40):
    scene, centres = solids.build_scene(seed, index)
    half, count = scene.half[1:], len(scene.half) - 1
    np.testing.assert_allclose(centres, scene.centre[1:], atol=1e-6)
    assert 2 <= count <= 4
    np.testing.assert_allclose(scene.centre[1:, 2], half[:, 2])
    box = scene.kind[1:] == scene_lib.BOX
    reach = np.where(box, np.hypot(*half[:, :2].T), half[:, :2].max(1))
    low, high = solids.SIZE
    assert ((reach > low - 1e-3) & (reach < high + 1e-3)).all()
    hues = _hues(scene)
    for i in range(count):
      for j in range(i):
        apart = np.linalg.norm((scene.centre[i + 1] - scene.centre[j + 1])[:2])
        assert apart > reach[i] + reach[j]
        assert _hue_distance(hues[i], hues[j]) > 0.04
    kinds |= set(scene.kind[1:])
  assert kinds == {scene_lib.BOX, scene_lib.TUBE, scene_lib.ELLIPSOID}


def test_views_are_level_around_the_origin(clips):
  quadrants = set()
  for clip in clips:
    pose = clip.world_to_camera
    eyes = cameras.camera_centre(pose)
    distance = np.linalg.norm(eyes, axis=-1)
    assert ((distance > 3.79) & (distance < 4.21)).all()
    elevation = np.degrees(np.arcsin(eyes[:, 2] / distance))
    assert ((elevation > 14.9) & (elevation < 50.1)).all()
    quadrants |= {(x > 0, y > 0) for x, y, _ in eyes}
    # Level: the image's x is horizontal, and its y points down.
    np.testing.assert_allclose(pose[:, 0, 2], 0, atol=1e-6)
    assert (pose[:, 1, 2] < 0).all()
    np.testing.assert_allclose(
      clip.intrinsics, np.tile([0.035 / 0.032] * 2 + [0.5] * 2, (FRAMES, 1))
    )
    origin, _ = cameras.project(np.zeros((FRAMES, 3)), clip.intrinsics, pose)
    assert (np.abs(origin - 0.5) < 0.17).all()
  assert len(quadrants) == 4


def test_eyes_are_on_the_arc():
  wide, narrow = (_clip(frames=100, size=8, arc=arc) for arc in (360, 60))
  x, y, _ = cameras.camera_centre(wide.world_to_camera).T
  assert np.ptp(np.degrees(np.arctan2(y, x))) > 330
  x, y, _ = cameras.camera_centre(narrow.world_to_camera).T
  angle = np.degrees(np.arctan2(y, x))
  assert 25 < np.abs(angle).max() < 30.01
  assert np.ptp(angle) > 50


def _points(clip):
  """What the pixels see [N, H, W, 3], by depth and cameras."""
  origins, rays = cameras.pixel_rays(
    clip.intrinsics, clip.world_to_camera, SIZE, SIZE
  )
  cosine = (rays * clip.world_to_camera[:, None, None, 2, :3]).sum(-1)
  return origins + rays * (_depths(clip) / cosine)[..., None]


def _extent(scene, points):
  """Distances [..., P] from the solids' centres, 1 on their surfaces."""
  local = np.einsum(
    'pij,...pj->...pi', scene.rotation, points[..., None, :] - scene.centre
  )
  x, y, z = np.moveaxis(np.abs(local / scene.half), -1, 0)
  return np.select(
    [scene.kind == scene_lib.ELLIPSOID, scene.kind == scene_lib.TUBE],
    [np.sqrt(x * x + y * y + z * z), np.maximum(np.hypot(x, y), z)],
    np.maximum(np.maximum(x, y), z),
  )


@pytest.mark.parametrize('index', SCENES)
def test_every_pixel_is_on_a_surface(clips, index):
  scene, _ = solids.build_scene(0, index)
  points = _points(clips[index])
  ground = np.abs(points[..., 2]) < 2e-3
  walls = np.abs(np.abs(points[..., :2]).max(-1) - 6) < 4e-3
  extent = _extent(scene, points)[..., 1:]
  solid = (np.abs(extent - 1) < 0.02).any(-1)
  assert (ground | walls | solid).all()
  assert (extent > 0.98).all()
  assert ground.mean() > 0.3
  assert (solid & ~ground).mean() > 0.05


def test_ground_has_the_analytic_depth(clips):
  for clip in clips:
    pose = clip.world_to_camera
    origins, rays = cameras.pixel_rays(clip.intrinsics, pose, SIZE, SIZE)
    with np.errstate(divide='ignore'):
      far = -origins[..., 2] / rays[..., 2]
    far = np.where(far > 0, far, np.inf)
    expected = far * (rays * pose[:, None, None, 2, :3]).sum(-1)
    depth = _depths(clip)
    assert (depth < expected + 2e-3).all()
    assert (np.abs(depth - expected) < 2e-3).mean() > 0.3


def test_solids_are_seen_where_the_cameras_say(clips):
  seen = 0
  for index, clip in enumerate(clips):
    scene, centres = solids.build_scene(0, index)
    hues, images = _hues(scene), _images(clip)
    _, rays = cameras.pixel_rays(
      clip.intrinsics, clip.world_to_camera, SIZE, SIZE
    )
    eyes = cameras.camera_centre(clip.world_to_camera)[:, None, None]
    eyes = np.broadcast_to(eyes, rays.shape).reshape(-1, 3)
    _, groups = render.first_seen(scene, eyes, rays.reshape(-1, 3))
    groups = groups.reshape(rays.shape[:3])
    for i, centre in enumerate(centres):
      xy, _ = cameras.project(
        np.tile(centre, (FRAMES, 1)), clip.intrinsics, clip.world_to_camera
      )
      for frame in range(FRAMES):
        column, row = (xy[frame] * SIZE).astype(int)
        block = np.s_[frame, row - 1 : row + 2, column - 1 : column + 2]
        inside = np.abs(xy[frame] - 0.5).max() < 0.45
        if not inside or (groups[block] != i + 1).any():
          continue
        hue = _hue(images[frame, row, column] / 255)
        nearest = min(
          hues, key=lambda other, hue=hue: _hue_distance(hue, other)
        )
        assert nearest == hues[i]
        seen += 1
  assert seen > len(clips) * FRAMES


def test_pictures_are_bright_and_colourful(clips):
  for clip in clips:
    images = _images(clip).astype(float)
    assert 100 < images.mean() < 200
    grey = images.max(-1) - images.min(-1)
    assert ((grey > 80).mean((1, 2)) > 0.03).all()


def test_converts_with_cameras_and_depth(tmp_path):
  options = {'scenes': 4, 'frames': 2, 'size': 16, 'test_fraction': 0.0}
  source = sources.make('solids', **options)
  convert_run.convert(source, tmp_path, workers=0, quiet=True)
  store = store_lib.open_split(tmp_path, 'solids', 'train')
  assert len(store) == 4
  for row in range(4):
    record = store.clip(row)
    clip = _clip(int(record.id), **options)
    np.testing.assert_array_equal(record.world_to_camera, clip.world_to_camera)
    np.testing.assert_array_equal(record.intrinsics, clip.intrinsics)
    assert list(store.clip_frames(row, range(2))) == clip.frames
    assert store.depth(int(store.first_frame[row])) == clip.depth[0]


def test_splits_and_depth_are_as_of_the_synthetic_source():
  options = {'scenes': 30, 'test_fraction': 0.2}
  ours = [item.split for item in sources.make('solids', **options).items()]
  rooms = sources.make('synthetic', **options).items()
  assert ours == [item.split for item in rooms]
  assert set(ours) == {'train', 'test'}
  assert _clip(frames=2, size=8, with_depth=False).depth is None


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('scenes', 0),
    ('frames', 1),
    ('size', 7),
    ('seed', -1),
    ('quality', 101),
    ('test_fraction', 1.5),
    ('arc', 361),
    ('height', 64),
  ],
)
def test_bad_options_are_explained(option, value):
  with pytest.raises(UserError, match=option):
    sources.make('solids', **{option: value})
