"""Maps between motions and latent poses, on poses that hold motions."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from etils import epath

import xfactor
from tests import test_api
from tests.training import small
from xfactor.data import images
from xfactor.data.formats import camera_files, camera_paths
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras, flights
from xfactor.inference import (
  calibration,
  latent,
  movie,
  path_render,
  posed_pairs,
)

CLIPS, EACH = 60, 8


@pytest.fixture(scope='module', autouse=True)
def quick():
  """Short trainings of few networks."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(calibration, '_STEPS', 200)
    patch.setattr(calibration, '_MEMBERS', 2)
    calibration._train.clear_cache()
    yield
  calibration._train.clear_cache()


def motions(seed=0):
  return np.random.default_rng(seed).normal(0, 0.1, (CLIPS * EACH, 6))


def pairs_of(moved, bend=1.0, channels=4, scales=None):
  """Pairs whose latent poses are a smooth function of what moved."""
  rng = np.random.default_rng(7)
  poses = np.tanh(bend * moved @ rng.normal(size=(6, channels))) / bend
  moved = moved.copy()
  if scales is not None:
    moved[:, 3:] *= scales
  return calibration.Pairs(
    latents=np.float32(poses),
    relative=calibration.relative_of(moved),
    focal=np.full(len(moved), 0.8),
    clip=np.repeat(np.arange(CLIPS), EACH),
    name='made/train',
  )


def fit(pairs, **options):
  options = {'step': 2, 'window': 6, 'one_unit': True} | options
  return calibration.fit(pairs, **options)


@pytest.fixture(scope='module')
def bent():
  return pairs_of(motions(), bend=5.0, channels=8)


@pytest.fixture(scope='module')
def made(bent):
  return fit(bent)


@pytest.mark.parametrize('bend', [1.0, 5.0])  # Ridge, or networks.
def test_exported_maps_are_the_same(bend):
  made = fit(pairs_of(motions(), bend=bend, channels=8))
  moved = np.concatenate([motions(1)[:20], 10 * motions(2)[:20], [[0] * 6]])
  assert np.linalg.norm(moved[:, :3], axis=1).max() > 2  # Radians.
  relative = calibration.relative_of(moved)
  wanted = made.poses(relative)
  pose, distance = jax.jit(made.traced)(np.float32(relative))
  scale = abs(wanted.poses).max()
  np.testing.assert_allclose(pose, wanted.poses, atol=1e-5 * scale)
  np.testing.assert_allclose(distance, wanted.distance, rtol=1e-4)


def test_motions_and_poses_are_inverse():
  moved = motions()
  relative = calibration.relative_of(moved)
  np.testing.assert_allclose(calibration.motions_of(relative), moved)
  eyes = cameras.camera_centre(relative)
  np.testing.assert_allclose(eyes, moved[:, 3:], atol=1e-12)


def test_both_directions_on_other_motions(made):
  other = pairs_of(motions(1), bend=5.0, channels=8)
  poses = made.poses(other.relative).poses
  error = np.square(poses - other.latents).mean() / other.latents.var()
  assert error < 0.1
  found = made.cameras(other.latents).world_to_camera
  truth = calibration.motions_of(other.relative)
  error = np.square(calibration.motions_of(found) - truth).mean(0)
  assert (error / truth.var(0) < 0.3).all()
  assert made.to_latents.best == 'network'
  by_ridge = made.poses(other.relative, by='ridge').poses
  assert not np.allclose(by_ridge, poses)


@pytest.mark.slow
def test_what_a_linear_map_reads_the_ridge_reads_exactly():
  straight = fit(pairs_of(motions(), bend=1e-4, channels=6))
  other = pairs_of(motions(1), bend=1e-4, channels=6)
  poses = straight.poses(other.relative, by='ridge').poses
  np.testing.assert_allclose(poses, other.latents, atol=0.02)


def test_no_motion_is_no_motion(made):
  still = made.poses(np.eye(3, 4)[None])
  np.testing.assert_allclose(still.poses, 0, atol=1e-6)
  assert still.deviation[0] == pytest.approx(0, abs=1e-6)
  found = made.cameras(np.zeros((1, 8)))
  np.testing.assert_allclose(found.world_to_camera[0], np.eye(3, 4), atol=1e-6)


def test_far_motions_are_said_to_be_far_and_uncertain(made):
  moved = np.zeros((2, 6))
  moved[:, 4] = 0.05, 1.5
  near, far = made.poses(calibration.relative_of(moved)).distance
  assert near < made.motions.limit < far
  assert far == pytest.approx(15, rel=0.2)
  deviation = made.poses(calibration.relative_of(moved)).deviation
  assert deviation[1] > 2 * deviation[0]
  # Focal lengths are a part of the motions.
  assert made.distance(np.eye(3, 4)[None], 2.0) > made.motions.limit


def test_clips_of_unknown_scale():
  """Scales of clips do not matter, and are found better than by their size."""
  rng = np.random.default_rng(3)
  scales = np.repeat(np.exp(rng.normal(0, 1, CLIPS)), EACH)[:, None]
  pairs = pairs_of(motions(), bend=0.1, channels=8, scales=scales)
  each = fit(pairs, one_unit=False)
  shared = fit(pairs)
  assert each.to_latents.errors['ridge'] < 0.2
  assert shared.to_latents.errors['ridge'] > 0.4
  moved = calibration.motions_of(pairs.relative)
  units = calibration._clip_units(np.float64(pairs.latents), moved, pairs.clip)
  found = np.log(units[::EACH] / scales[::EACH, 0])
  lengths = np.sum(moved[:, 3:] ** 2, 1)
  lengths = np.sqrt(lengths.reshape(CLIPS, EACH).mean(1))
  assert found.std() < 0.5 * np.log(lengths / scales[::EACH, 0]).std()
  assert 'typical moves' in each.describe()


@pytest.mark.slow
def test_cameras_that_only_turn():
  moved = motions() * [1, 1, 1, 0, 0, 0]
  for one_unit in (True, False):
    turning = fit(pairs_of(moved), one_unit=one_unit)
    assert turning.move == 0
    assert np.isfinite(turning.poses(np.eye(3, 4)[None]).distance).all()


def test_files(made, tmp_path):
  path = calibration.save(made, tmp_path)
  assert path.name == 'calibration-2.npz'
  again = calibration.load(tmp_path, 2)
  assert again.describe() == made.describe()
  relative = calibration.relative_of(motions(2))
  for one, other in zip(
    dataclasses.astuple(made.poses(relative)),
    dataclasses.astuple(again.poses(relative)),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)
  assert calibration.load(tmp_path, 3) is None
  np.savez(path, format=1, step=2)
  with pytest.raises(UserError, match='delete it and make it again: py'):
    calibration.load(tmp_path, 2)
  path.write_bytes(b'nothing')
  with pytest.raises(UserError, match='is damaged .* delete it'):
    calibration.load(tmp_path, 2)
  with pytest.raises(UserError, match='cannot write .*none/calibration'):
    calibration.save(made, tmp_path / 'none')


def test_too_few_pairs_and_bad_values():
  pairs = pairs_of(motions())
  few = [getattr(pairs, x.name) for x in dataclasses.fields(pairs)]
  few = calibration.Pairs(*(x[:20] for x in few[:-1]), pairs.name)
  with pytest.raises(UserError, match='64 pairs .* gives 20 of 3'):
    fit(few)
  bad = dataclasses.replace(pairs, latents=pairs.latents * np.float32(np.nan))
  with pytest.raises(UserError, match='made/train are not finite'):
    fit(bad)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A run, clips with cameras and clips without."""
  folder = tmp_path_factory.mktemp('place')
  small.make_posed_data(folder / 'data')
  small.make_data(folder / 'data')
  test_api.save(folder / 'run')
  return folder


@pytest.fixture(scope='module')
def bare(place):
  return xfactor.load(place / 'run')


@pytest.fixture(scope='module')
def model(place, bare):
  clips = [store_lib.open_split(place / 'data', 'skies', 'train')]
  xfactor.calibrate(bare, clips, pairs=128)
  return xfactor.load(place / 'run')  # Read from its file.


def relative(scale=0.1, count=5):
  """A path of cameras from the reference's."""
  turns = np.linspace(0, scale, count)[:, None] * [0.3, 1, 0.2, 0.5, -0.5, 1]
  return calibration.relative_of(turns)


def sliding(scale):
  """A path of cameras that do not turn: its distance grows with it."""
  moved = np.linspace(0, scale, 40)[:, None] * [0, 0, 0, 0.5, -0.5, 1]
  return calibration.relative_of(moved)


def world_of(path):
  """The same path in another world."""
  start = cameras.look_at(
    np.array([1.0, 2, 3]), np.zeros(3), np.array([0, 0, 1.0])
  )
  return cameras.compose(path, np.broadcast_to(start, path.shape))


def test_pairs_of_a_data_set(place, bare):
  store = store_lib.open_split(place / 'data', 'skies', 'train')
  read = posed_pairs.read(bare, [store], window=4, count=100, seed=0)
  assert read.name == 'skies/train'
  assert len(np.unique(read.clip)) == len(store) == 12
  # The middle square of 24 x 32 pixels.
  np.testing.assert_allclose(read.focal, 4 / 3, rtol=1e-6)
  assert not posed_pairs.has_one_unit([store])
  # Each latent pose is that of its cameras: one pair is found again.
  frames = bare.fit(
    [images.decode(x) for x in store.clip_frames(0, range(6))], 'a frame'
  )
  known = np.float64(store.clip(0).world_to_camera)
  seen = 0
  for i in range(6):
    for j in range(6):
      moved = cameras.compose(known[j], cameras.invert_pose(known[i]))
      same = np.abs(read.relative - moved).max((1, 2)) < 1e-6
      if i != j and same.any():
        assert abs(i - j) < 4
        pose = bare.encode_pairs(frames[[i]], frames[[j]])[0]
        np.testing.assert_allclose(
          read.latents[same], np.tile(pose, (same.sum(), 1)), atol=1e-5
        )
        seen += 1
  assert seen > 2


def assert_same_level(a, b):
  """Another world rounds poses otherwise."""
  assert np.abs(a.astype(int) - b).max() <= 1
  assert np.ptp(a) > 20


def test_paths_are_rendered_from_their_latent_poses(model):
  scene, path = test_api.pictures(1), relative()
  drawn = model.render_path(scene, world_of(path))
  poses = model.calibration.poses(path).poses
  expected = model.render(scene, poses[:1] * 0, poses)
  assert_same_level(drawn, expected)
  # The reference is another camera of the path.
  back = cameras.compose(
    path, np.broadcast_to(cameras.invert_pose(path[2]), path.shape)
  )
  assert_same_level(
    model.render_path(scene, world_of(path), reference=2),
    model.render(scene, poses[:1] * 0, model.calibration.poses(back).poses),
  )


def test_chained_paths_continue_from_their_pictures(model):
  scene, path = test_api.pictures(1), relative()
  drawn = model.render_path(scene, path, chain=2)
  later = model.render_path(drawn[[2]], path[2:])
  np.testing.assert_array_equal(drawn[3:], later[1:])
  with pytest.raises(UserError, match='chain=0 must be at least 1'):
    model.render_path(scene, path, chain=0)


def test_focal_lengths_of_files_are_used(model):
  scene, path = test_api.pictures(1), relative()
  lens = np.tile([0.9, 1.5, 0.5, 0.5], (len(path), 1))
  found = camera_files.Cameras(lens, path)
  np.testing.assert_array_equal(
    model.render_path(scene, found), model.render_path(scene, path, focal=1.5)
  )
  np.testing.assert_array_equal(
    model.render_path(scene, camera_files.Cameras(lens * np.nan, path)),
    model.render_path(scene, path),
  )


def test_far_paths_are_warned_of_with_the_remedy(model):
  said = []
  telling = model.telling(said.append)
  scene = test_api.pictures(1)
  telling.render_path(scene, relative(scale=0.05))
  assert not said
  path = sliding(1.0)
  limit = model.calibration.motions.limit
  scale = 2.5 * limit / model.calibration.distance(path).max()
  path = sliding(scale)
  telling.render_path(scene, path)
  (text,) = said
  assert 'camera 39 of the path is' in text
  assert 'standard deviations from the motions of the calibration' in text
  chain = int(text.rpartition('chain=')[2])
  assert 1 <= chain < 39
  assert model.path_distances(path, 4 / 3, 0, chain).max() <= limit
  assert model.path_distances(path, 4 / 3, 0, chain + 1).max() > limit


def test_cameras_of_a_video_are_composed(model):
  frames = test_api.pictures(9, seed=4)
  window = model.calibration.window
  assert window == model.window == 6
  found = model.cameras(frames, 1)
  # Batches of other sizes may be added up in another order.
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  first = model.calibration.cameras(model.encode_poses(frames[1:7]))
  near(found.world_to_camera[1:7], first.world_to_camera)
  near(found.distance[2:7], first.distance[1:])
  second = model.calibration.cameras(model.encode_poses(frames[6:]))
  near(
    found.world_to_camera[8],
    cameras.compose(second.world_to_camera[2], found.world_to_camera[6]),
  )
  near(found.move[7:], second.move[1:])
  before = model.calibration.cameras(model.encode_poses(frames[:2], 1))
  near(found.world_to_camera[0], before.world_to_camera[0])


def test_models_without_a_calibration(bare, model, place):
  for call in (
    lambda: bare.render_path(test_api.pictures(1), relative()),
    lambda: bare.cameras(test_api.pictures(3)),
  ):
    with pytest.raises(UserError, match='python -m xfactor.calibrate --w'):
      call()
  # That of step 2 is not that of step 1.
  first = xfactor.load(place / 'run', 1)
  with pytest.raises(UserError, match='step 1 has no calibration'):
    first.cameras(test_api.pictures(3))
  with pytest.raises(UserError, match='is of step 2 .* the model of step 1'):
    first.calibrated(model.calibration)
  with pytest.raises(UserError, match='no calibration'):
    model.at(3, model._params).calibration  # noqa: B018


def test_clips_without_cameras(bare, place):
  clips = [store_lib.open_split(place / 'data', 'squares', 'train')]
  with pytest.raises(UserError, match='no clip of squares/train has cameras'):
    xfactor.calibrate(bare, clips)


def test_methods_whose_poses_are_no_motions(bare):
  other = latent.Model.__new__(latent.Model)
  other.relative, other.config = False, bare.config
  with pytest.raises(UserError, match='are no camera motions'):
    posed_pairs.read(other, [], window=3, count=4, seed=0)


def test_presets_fill_half_of_the_domain(model):
  limit = model.calibration.motions.limit
  for name in flights.FLIGHTS:
    text, found = path_render.choose(model, name, 12)
    assert text.startswith(f'{name}:')
    distances = model.calibration.distance(found.world_to_camera)
    assert 0.4 * limit < distances.max() <= 0.5 * limit or text.startswith(
      f'{name}:60'
    )
  text, found = path_render.choose(model, 'pan:8', 12)
  assert text == 'pan:8 (degrees)'
  turns = calibration.motions_of(found.world_to_camera)
  assert np.degrees(abs(turns[:, 1]).max()) == pytest.approx(8)


def test_paths_that_are_not_there(model):
  for path, said in (
    ('obrit', 'is neither one of pan, .* nor a file'),
    ('pan:far', 'must be a number .degrees.'),
    ('none.json', 'none.json does not exist'),
  ):
    with pytest.raises(UserError, match=said):
      path_render.choose(model, path, 12)
  turning = dataclasses.replace(model.calibration, move=0.0)
  with pytest.raises(UserError, match='only turn, so --path=dolly has no'):
    path_render.choose(model.calibrated(turning), 'dolly', 12)


def test_files_of_a_path(model, place, tmp_path, capsys):
  store = store_lib.open_split(place / 'data', 'skies', 'test')
  scene = f'skies/test/{store.clip_id(1)}'
  calibration = model.calibration
  unit = calibration.distance(flights.fly('slide', 8, 1.0, 1.0)).max()
  far = round(2 * calibration.motions.limit / unit, 3)
  shown = path_render.follow(
    model, f'slide:{far}', scene, data_dir=place / 'data', frames=8
  )
  view = middle_view(store, model)
  np.testing.assert_array_equal(shown.scene, view)
  np.testing.assert_array_equal(
    shown.pictures, model.render_path(view[None], shown.path)
  )
  assert shown.truth is None
  assert shown.inside[[0, 4]].all()
  assert not shown.inside[2]
  out = epath.Path(tmp_path / 'new/pan.mp4')
  path_render.write(shown, out, size=64)
  assert {x.name for x in out.parent.iterdir()} == {
    *('pan.mp4', 'pan.gif', 'pan.png'),
  }
  beyond = int((~shown.inside).sum())
  said = capsys.readouterr().out
  assert '8 pictures along slide:' in said
  assert f'{beyond} of them beyond the calibration' in said
  # Orange captions.
  captions = shown.video(64)[:, : movie.line_height(64)].astype(int)
  orange = (np.ptp(captions, axis=-1) > 40).any((1, 2))
  np.testing.assert_array_equal(orange, ~shown.inside)
  # The same path from its file.
  camera_paths.write(tmp_path / 'pan.kitti', shown.path)
  again = path_render.follow(
    model, str(tmp_path / 'pan.kitti'), scene, data_dir=place / 'data'
  )
  np.testing.assert_array_equal(again.pictures, shown.pictures)
  moved = camera_paths.read(tmp_path / 'pan.kitti').world_to_camera
  scaled = path_render.choose(model, str(tmp_path / 'pan.kitti'), 9, scale=3.0)
  np.testing.assert_allclose(
    scaled[1].world_to_camera, moved * [1, 1, 1, 3], atol=1e-12
  )


def middle_view(store, model):
  """The middle frame of a clip, as the model sees it."""
  return model.fit([images.decode(store.clip_frames(1, [2])[0])])[0]
