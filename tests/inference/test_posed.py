"""Scenes from cameras, against the bare networks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xfactor
from tests.training import small
from xfactor.errors import UserError
from xfactor.geometry import cameras
from xfactor.inference import posed, restore
from xfactor.methods.srt import objective as srt_objective
from xfactor.training import build
from xfactor.training.resilience import checkpoints as checkpoints_lib

VIEWS, HEIGHT, WIDTH = 2, 24, 32
UP = np.array([0.0, 0.0, 1.0])
# The highest octaves would make rounding errors of rays into visible ones.
SMOOTH = {'model__octaves': 8}
VOLUME = {
  'model__decoder': 'nerf',
  'model__coarse_samples': 6,
  'model__fine_samples': 4,
}


def make(devices=None, **changes):
  """An untrained model whose layers all matter."""
  # Colours of the improved decoder would be out of range.
  changes = SMOOTH | {'model__decoder': 'srt'} | changes
  config = small.posed_recipe('none', **changes)
  built = build.build(config, devices)
  rng = np.random.default_rng(0)
  params = {
    name: x + 0.1 * rng.standard_normal(x.shape, np.float32)
    for name, x in built.init().params.items()
  }
  params = jax.device_put(params, built.places.params)
  return posed.PosedModel(restore.Restored(config, 1, built, params))


def save(workdir, **changes):
  """Writes a checkpoint of such a model."""
  config = small.posed_recipe('none', **changes)
  built = build.build(config)
  checkpoints = checkpoints_lib.Checkpoints(workdir)
  state = built.init()
  meta = json.loads(config.to_json_best_effort())
  checkpoints.save(
    type(state)(np.int32(1), state.params, state.opt_state),
    {'config': meta, 'data': {}},
  )
  checkpoints.wait()
  checkpoints.close()
  return workdir


def looking(count, seed):
  """Cameras all around that look at about the origin."""
  rng = np.random.default_rng(seed)
  eyes = 3 * cameras.normalize(rng.normal(size=(count, 3)))
  poses = cameras.look_at(eyes, 0.2 * rng.normal(size=(count, 3)), UP)
  return np.tile([1.0, 4 / 3, 0.5, 0.5], (count, 1)), poses


def pictures(count=VIEWS, height=HEIGHT, width=WIDTH):
  rng = np.random.default_rng(5)
  return rng.integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.fixture(scope='module')
def light():
  return make()


@pytest.fixture(scope='module')
def volume():
  return make(**VOLUME)


def draw(model, count=3, height=6, width=10, seen=None):
  scene = model.encode(pictures() if seen is None else seen, *looking(VIEWS, 1))
  return model.render(scene, *looking(count, 2), height, width)


def bare(model, seen, targets, height, width):
  """The networks in one go on one device, coordinates by hand."""
  objective = model._build.objective
  built = build.build(model.config, jax.devices()[:1])
  params = jax.device_put(jax.device_get(model._params), jax.devices()[0])
  network = built.functional.bind(params)
  lenses, poses = looking(VIEWS, 1)
  first = cameras.invert_pose(poses[0])

  def rays_of(lenses, poses, *shape):
    if objective.canonical:
      first_ = np.broadcast_to(first, poses.shape)
      poses = cameras.compose(poses, first_)
    return cameras.pixel_rays(lenses, poses, *shape)

  def given(x):
    return jnp.asarray(x[None], jnp.float32)

  s = objective.input_stride
  some = np.s_[:, s // 2 :: s, s // 2 :: s]
  origins, directions = rays_of(lenses, poses, HEIGHT, WIDTH)
  tokens = network.encode(
    given(seen[some] / 255), given(origins[:, 0, 0]), given(directions[some])
  )
  drawn = network.decode(
    tokens,
    *(given(x.reshape(-1, 3)) for x in rays_of(*targets, height, width)),
  )
  shape = len(targets[0]), height, width
  depth = None if drawn.depth is None else drawn.depth.reshape(shape)
  return drawn.color.reshape(*shape, 3), depth


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [{}, {'objective__canonical': False, 'objective__input_stride': 3}, VOLUME],
)
def test_against_the_bare_networks(changes):
  model = make(**changes)
  drawn, seen = draw(model), pictures()
  colours, depth = bare(model, seen, looking(3, 2), 6, 10)
  colours = 255 * np.clip(colours, 0, 1)
  assert np.abs(drawn.pictures - colours).max() < 0.6
  assert np.ptp(drawn.pictures) > 20
  if changes is VOLUME:
    np.testing.assert_allclose(drawn.depth, depth, rtol=1e-4)
    assert np.ptp(drawn.depth) > 0.1
    assert model.span == (2.0, 4.0)
  else:
    assert drawn.depth is None
    assert model.span is None


@pytest.mark.slow
def test_parts_do_not_show(volume, monkeypatch):
  whole = draw(volume, count=5)
  calls = []
  program = volume._draw

  def counted(*args):
    calls.append(args[-1])
    return program(*args)

  monkeypatch.setattr(volume, '_draw', counted)
  for rays_at_once, parts in (
    (15, [1, 1, 1]),  # Pictures of 60 rays, two at a time on eight devices.
    (3, [3, 3, 3, 3, 3]),
  ):
    calls.clear()
    monkeypatch.setattr(srt_objective, 'at_once', lambda *_, n=rays_at_once: n)
    drawn = draw(volume, count=5)
    assert calls == parts
    assert np.abs(drawn.pictures.astype(int) - whole.pictures).max() <= 1
    np.testing.assert_allclose(drawn.depth, whole.depth, rtol=1e-4)


@pytest.mark.slow
def test_one_device_draws_what_eight_draw(volume):
  one = make(jax.devices()[:1], **VOLUME)
  a, b = draw(one), draw(volume)
  assert np.abs(a.pictures.astype(int) - b.pictures).max() <= 1
  np.testing.assert_allclose(a.depth, b.depth, rtol=1e-4)


def test_the_world_does_not_matter_to_canonical_models(light):
  other = cameras.look_at(np.array([4.0, 1, -2]), np.zeros(3), UP)

  def moved(lenses, poses):
    return lenses, cameras.compose(poses, np.broadcast_to(other, poses.shape))

  scene = light.encode(pictures(), *moved(*looking(VIEWS, 1)))
  drawn = light.render(scene, *moved(*looking(3, 2)), 6, 10)
  again = draw(light).pictures
  assert np.abs(drawn.pictures.astype(int) - again).max() <= 1
  # The pictures do depend on the cameras.
  still = light.render(scene, *looking(3, 2), 6, 10)
  assert np.abs(still.pictures.astype(int) - again).max() > 2


def test_floats_are_levels(light):
  np.testing.assert_array_equal(
    draw(light, seen=pictures() / 255).pictures, draw(light).pictures
  )


@pytest.mark.slow
def test_loading(tmp_path):
  model = xfactor.load(save(tmp_path))
  assert isinstance(model, posed.PosedModel)
  assert (model.step, model.contexts) == (1, VIEWS)
  assert model.image_shape == (HEIGHT, WIDTH)
  assert draw(model).pictures.shape == (3, 6, 10, 3)


@pytest.mark.slow
def test_memory_is_within_the_budget():
  """The compiler plans with less than what a part was chosen for."""
  model = make(
    jax.devices()[:1],
    model__features=96,
    model__mlp_features=192,
    model__remat='none',
  )
  budget = 2**24
  tokens = 300
  count = srt_objective.at_once(model._build.model, tokens, budget=budget)
  shape = jax.ShapeDtypeStruct((1, tokens, 96), 'float32')
  lenses, poses = looking(1, 2)
  program = model._draw.lower(
    model._params,
    shape,
    np.zeros((3, 4), np.float32),
    lenses.astype(np.float32),
    poses.astype(np.float32),
    *(50, count // 10, 5),
  ).compile()
  assert program.memory_analysis().temp_size_in_bytes < budget


def test_views_and_cameras_must_fit(light):
  lenses, poses = looking(VIEWS, 1)
  with pytest.raises(UserError, match='1 intrinsics and 2 poses'):
    light.encode(pictures(), lenses[:1], poses)
  with pytest.raises(UserError, match='3 views have 2 cameras'):
    light.encode(pictures(3), lenses, poses)
  with pytest.raises(UserError, match='at least one of each'):
    light.encode(pictures(0), lenses[:0], poses[:0])
  with pytest.raises(UserError, match='not finite'):
    light.encode(pictures(), lenses, poses * np.nan)
  scene = light.encode(pictures(), lenses, poses)
  with pytest.raises(UserError, match='2 intrinsics and 1 poses'):
    light.render(scene, lenses, poses[:1], 6, 10)
  with pytest.raises(UserError, match='not finite'):
    light.render(scene, lenses, poses * np.nan, 6, 10)


@pytest.mark.slow
def test_views_larger_than_the_embedding():
  model = make(model__encoder='srt', model__rows=3, model__columns=4)
  draw(model)
  lenses, poses = looking(VIEWS, 1)
  with pytest.raises(UserError, match='views of 40 x 24 pixels are larger'):
    model.encode(pictures(width=40), lenses, poses)


@pytest.mark.slow
def test_a_diverged_model_is_named(light):
  params = jax.tree.map(lambda x: x * np.nan, light._params)
  broken = posed.PosedModel(
    restore.Restored(light.config, 7, light._build, params)
  )
  with pytest.raises(UserError, match='step 7 gives are not finite'):
    draw(broken)
