"""The objective against the official train step, and what it must never do."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_tolerance import assert_all_close, assert_close
from tests.methods.xfactor.test_network import (
  FUNCTIONAL,
  GRADIENTS,
  PICTURES,
  POSES,
  order_of,
  to_float,
)
from tests.training import small
from xfactor.errors import UserError
from xfactor.exchange import xfactor_names
from xfactor.methods import clip_scores, distances, view_order
from xfactor.methods.autoencoding import objective as autoencoding_objective
from xfactor.methods.base import StepKind
from xfactor.methods.xfactor import network, objective
from xfactor.nn.functional import Functional
from xfactor.training import build


def frames_of(images):
  return jnp.tile(jnp.arange(images.shape[1]), (len(images), 1))


@pytest.fixture(scope='module')
def params(golden):
  ours = xfactor_names.to_ours(golden('xf_params_pert'))
  return {name: jnp.asarray(array) for name, array in ours.items()}


@pytest.fixture(scope='module')
def step(golden):
  return golden('xf_loss_2v')


@pytest.fixture(scope='module')
def official_step(params, step):
  """Loss, images, poses, gradients with the official step's own draws.

  Its first example is unmasked: the loss is the mean of a whole example's and
  of the split ones'.
  """
  assert step['mid/qc'].tolist() == [0, 2, 2, 2]
  images = to_float(step['mid/x'])
  pairs = jnp.asarray(step['mid/x_enc'])[:, None]
  order = jnp.asarray(order_of(step['mid/pmask']))

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    model = FUNCTIONAL.bind(params)
    whole = objective.reconstruct(model, images[:1], pairs[:1], None)
    split = objective.reconstruct(model, images[1:], pairs[1:], order[1:])
    image = jnp.concatenate([whole.image, split.image])
    return jnp.mean(jnp.abs(image - images[:, -1])) + 0 * jnp.sum(whole.poses)

  @jax.jit
  def pictures(params):
    model = FUNCTIONAL.bind(params)
    whole = objective.reconstruct(model, images[:1], pairs[:1], None)
    split = objective.reconstruct(model, images[1:], pairs[1:], order[1:])
    return whole, split

  return *loss(params), *pictures(params)


def test_loss_is_golden(official_step, step):
  assert_close(official_step[0], step['f32exact/loss'])


def test_pictures_and_poses_are_golden(official_step, step):
  _, _, whole, split = official_step
  image = np.concatenate([whole.image, split.image])
  assert_close(image, step['f32exact/render'], PICTURES)
  want = step['f32exact/poses'].swapaxes(1, 2)
  assert_close(split.poses, want[1:], POSES)
  assert_close(whole.poses[:, 0], want[:1, 0], POSES)


def test_gradients_are_golden(official_step, golden):
  want = xfactor_names.to_ours(golden('xf_grads_2v'))
  assert_all_close(official_step[1], want, GRADIENTS)


@pytest.mark.parametrize('name', ['step', 'views_step'])
def test_evaluation_and_transfer_are_golden(params, request, name):
  want = request.getfixturevalue(name)
  images = to_float(want['mid/x'])

  @jax.jit
  def run(params):
    model = FUNCTIONAL.bind(params)
    poses = model.encode_views(images)
    scenes = jnp.roll(images[:, :-1], 1, axis=0)
    return (
      model.render(images[:, :-1], poses),
      clip_scores.transfer(model, images, scenes),
    )

  drawn, moved = run(params)
  assert_close(drawn, want['f32exact/eval_render'], PICTURES)
  assert_close(moved, want['f32exact/eval_transfer'], PICTURES)


@pytest.fixture(scope='module')
def views_step(golden):
  return golden('xf_loss_mv')


@pytest.fixture(scope='module')
def official_views_step(params, views_step):
  """As `official_step`, of six views; its last example is unmasked."""
  step = views_step
  assert step['mid/qc'].tolist() == [2, 2, 0]
  images = to_float(step['mid/x'])
  # The public code stacks pairs of one view of all examples.
  pairs = step['mid/x_enc'].reshape(5, 3, *step['mid/x_enc'].shape[1:])
  pairs = jnp.asarray(pairs.swapaxes(0, 1))
  order = jnp.asarray(order_of(step['mid/pmask']))

  def draw(params):
    model = FUNCTIONAL.bind(params)
    split = objective.reconstruct(model, images[:2], pairs[:2], order[:2])
    whole = objective.reconstruct(model, images[2:], pairs[2:], None)
    return jnp.concatenate([split.image, whole.image]), split.poses

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    return jnp.mean(jnp.abs(draw(params)[0] - images[:, -1]))

  return *loss(params), *jax.jit(draw)(params)


def test_views_loss_is_golden(official_views_step, views_step):
  assert_close(official_views_step[0], views_step['f32exact/loss'])


def test_views_pictures_and_poses_are_golden(official_views_step, views_step):
  _, _, image, poses = official_views_step
  assert_close(image, views_step['f32exact/render'], PICTURES)
  want = views_step['f32exact/poses'].swapaxes(1, 2)[:2]
  assert_close(poses, want, POSES)


def test_views_gradients_are_golden(official_views_step, golden):
  want = xfactor_names.to_ours(golden('xf_grads_mv'))
  assert_all_close(official_views_step[1], want, GRADIENTS)


def test_the_reference_is_the_official_one(golden):
  tables = golden('xf_tables')
  frames = jnp.asarray(tables['prox/in'])
  order = view_order.by_centrality(frames)
  np.testing.assert_array_equal(order, tables['prox/out'])
  for seed in range(3):
    drawn = view_order.sample_views(jax.random.PRNGKey(seed), frames)
    np.testing.assert_array_equal(drawn, tables[f'prox/select_key{seed}'])


@pytest.mark.slow
def test_views_are_put_in_the_official_order(views_step):
  """The golden step's own order, its self-target included."""
  step = views_step
  views = jnp.asarray(step['mid/sample_ind'])
  frames = jnp.asarray(step['in/frame_ind'])
  order = view_order.by_centrality(frames)
  np.testing.assert_array_equal(order[:, 0], views[:, 0])
  config = objective.Config()
  draws = objective.sample(jax.random.key(0), frames, config)
  is_self = step['mid/self_mask']
  images = step['in/batch_u8']
  # Which context the self-target shows, as the official draw had it.
  picked = [
    next(v for v in range(6) if (images[b, views[b, v]] == shown).all())
    for b, shown in enumerate(step['mid/x'][:, -1])
  ]
  assert [v < 5 for v in picked] == is_self.tolist()
  draws = dataclasses.replace(draws, views=views, target=jnp.array(picked))
  shown, _ = objective.prepare(to_float(images), draws, config)
  np.testing.assert_array_equal(shown, to_float(step['mid/x']))


def test_stereo_leaves_the_loaders_order():
  frames = jnp.array([[3, 9], [9, 3], [4, 4]])
  views = view_order.sample_views(jax.random.key(0), frames)
  np.testing.assert_array_equal(views, [[0, 1]] * 3)


def test_quadrants_are_the_official_draws(golden):
  """From the second half of its key, the official code deals the same."""
  tables = golden('xf_tables')
  for seed in range(6):
    mask = tables[f'qpatch/key{seed}_fc0.05_mask']
    masked = tables[f'qpatch/key{seed}_fc0.05_qc'] > 0
    bits = mask.reshape(-1, 2, 4, 2, 4)[:, :, 0, :, 0].reshape(-1, 4)
    key = jax.random.split(jax.random.PRNGKey(seed))[1]
    ours = np.asarray(objective.quadrant_bits(key, len(mask)))
    np.testing.assert_array_equal(ours[masked], bits[masked])


def assert_same(ours, theirs):
  for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_halves_are_left_and_right_or_top_and_bottom():
  config = objective.Config(split='halves')
  frames = jnp.zeros((64, 2), int)
  draws = objective.sample(jax.random.key(0), frames, config)
  found = {tuple(sorted(order[:2])) for order in draws.order.tolist()}
  assert found == {(0, 1), (2, 3), (0, 2), (1, 3)}
  assert (np.sort(draws.order) == np.arange(4)).all()
  # All other draws are the same.
  other = objective.sample(jax.random.key(0), frames, objective.Config())
  assert len({tuple(sorted(x[:2])) for x in other.order.tolist()}) == 6
  same = dataclasses.replace(other, order=draws.order)
  assert_same(same, draws)


@pytest.mark.parametrize('grid', [(2, 2), (4, 6), (8, 2)])
def test_halves_come_back_together(grid):
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.standard_normal((3, grid[0] * grid[1], 5)))
  order = objective.sample_quadrants(jax.random.key(1), 3)
  halves = objective.split_halves(tokens, order, grid)
  assert halves.shape == (6, tokens.shape[1] // 2, 5)
  np.testing.assert_array_equal(
    objective.join_halves(halves, order, grid), tokens
  )


@pytest.mark.parametrize('whole', [False, True])
def test_no_pixel_leaks_from_target_to_its_own_half(params, step, whole):
  """The paper's claim as one assertion (section 4.2).

  The rendered target's A patches have exactly zero gradient from the target's
  own A pixels: they can only be drawn from the context and from motion that
  was seen in B. Whole examples do leak; that is what the split is for.
  """
  images = to_float(step['mid/x'])[:1]
  order = None if whole else jnp.array([[0, 3, 1, 2]])

  @jax.jit
  @jax.grad
  def drawn_a(target):
    full = jnp.concatenate([images[:, :1], target[:, None]], axis=1)
    model = FUNCTIONAL.bind(params)
    pairs = network.encoder_pairs(full)
    image = objective.reconstruct(model, full, pairs, order).image
    return jnp.sum(jnp.sin(3 * image[:, :32, :32]))  # Inside A: quadrant 0.

  gradient = np.abs(drawn_a(images[:, 1]))[0]
  own = (gradient[:32, :32], gradient[32:, 32:])
  others = (gradient[:32, 32:], gradient[32:, :32])
  assert all(part.max() > 0 for part in others)
  assert all((part.max() > 0) == whole for part in own)


@pytest.mark.slow
def test_self_targets_show_a_context_and_have_no_motion(params, step):
  images = to_float(step['mid/x'])
  config = objective.Config(self_target_prob=1.0)
  draws = objective.sample(jax.random.key(0), frames_of(images), config)
  assert (draws.target == 0).all()
  shown, pairs = objective.prepare(images, draws, config)
  np.testing.assert_array_equal(shown[:, 1], images[:, 0])
  np.testing.assert_array_equal(pairs[:, 0, 0], pairs[:, 0, 1])


def test_only_the_pose_encoder_sees_augmented_pixels(step):
  images = to_float(step['mid/x'])
  config = objective.Config(self_target_prob=0.0)
  draws = objective.sample(jax.random.key(0), frames_of(images), config)
  shown, pairs = objective.prepare(images, draws, config)
  np.testing.assert_array_equal(shown, images)
  assert not np.allclose(pairs, network.encoder_pairs(images))


def test_whole_steps_are_known_from_the_step_alone():
  config = objective.Config()
  kinds = [
    objective.step_kind(0, i, config) is StepKind.WHOLE for i in range(4000)
  ]
  assert 0.035 < np.mean(kinds) < 0.065
  assert kinds[:50] == [
    objective.step_kind(0, i, config) is StepKind.WHOLE for i in range(50)
  ]
  never = dataclasses.replace(config, unmasked_prob=0.0)
  assert objective.step_kinds(never) == [StepKind.SPLIT]
  assert objective.step_kinds(config) == [StepKind.SPLIT, StepKind.WHOLE]


def test_loss_adds_its_parts(params, step):
  """Weights apply, and LPIPS is only asked where it counts."""
  images = to_float(step['mid/x'])
  config = objective.Config(l1_weight=2.0, lpips_weight=0.5)
  draws = objective.sample(jax.random.key(0), frames_of(images), config)

  def distance(a, b):
    return jnp.mean((a - b) ** 2, axis=(1, 2, 3))

  total, parts = jax.jit(
    lambda p: objective.loss(
      FUNCTIONAL.bind(p), images, draws, config, whole=True, perceptual=distance
    )
  )(params)
  want = 2 * parts['l1'] + 0.5 * parts['lpips']
  np.testing.assert_allclose(total, want, rtol=1e-6)


SMALL = network.Config(
  features=16,
  heads=2,
  patch_size=8,
  encoder_layers=1,
  renderer_layers=1,
  pose_dim=4,
  registers=1,
  dtype='float32',
  remat='none',
)
HALVES = jnp.array([[0, 3, 1, 2]] * 2)


def variant(**changes):
  config = dataclasses.replace(SMALL, **changes)
  return Functional(lambda rngs: network.XFactor(config, rngs=rngs))


def alive(functional):
  """Parameters of a network all of whose parts matter."""
  rng = np.random.default_rng(0)
  return {
    name: x + 0.1 * rng.standard_normal(x.shape, np.float32)
    for name, x in functional.init(jax.random.key(0)).items()
  }


def noise(views, seed=0):
  """Two examples of 2 x 4 patches."""
  rng = np.random.default_rng(seed)
  return jnp.float32(rng.uniform(-1, 1, (2, views, 16, 32, 3)))


@pytest.mark.slow
def test_a_joint_encoder_sees_what_pairs_do_not():
  """Of two views the same; of three, each pose depends on all."""
  pairs, joint = variant(), variant(joint_encoder=True)
  params = alive(pairs)

  @functools.partial(jax.jit, static_argnums=0)
  def run(functional, params, images):
    model = functional.bind(params)
    sets = network.encoder_sets(images, model.config.joint_encoder)
    halves = objective.encode(model, sets, HALVES)
    return jnp.concatenate([model.encode_views(images)[:, None], halves], 1)

  two, three = noise(2), noise(3)
  np.testing.assert_array_equal(
    run(joint, params, two), run(pairs, params, two)
  )
  alone, together = run(pairs, params, three), run(joint, params, three)
  assert alone.shape == together.shape == (2, 3, 3, 4)
  np.testing.assert_allclose(together[:, :, 0], 0, atol=1e-6)
  assert not np.allclose(alone[:, :, 1:], together[:, :, 1:], atol=1e-3)
  other = three.at[:, 1].set(noise(3, seed=1)[:, 1])
  for functional, poses in ((pairs, alone), (joint, together)):
    same = np.allclose(run(functional, params, other)[:, :, 2], poses[:, :, 2])
    assert same == (functional is pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [{'pose': 'se3', 'pose_dim': 10}, {'joint_encoder': True}],
  ids=lambda changes: next(iter(changes)),
)
def test_no_variant_leaks(changes):
  """As `test_no_pixel_leaks`: what is drawn of A has not been seen in A."""
  functional = variant(**changes)
  images = noise(3)

  @jax.jit
  @jax.grad
  def drawn_a(target, params):
    full = jnp.concatenate([images[:, :-1], target[:, None]], axis=1)
    model = functional.bind(params)
    sets = network.encoder_sets(full, model.config.joint_encoder)
    image = objective.reconstruct(model, full, sets, HALVES).image
    return jnp.sum(jnp.sin(3 * image[:, :8, :16]))  # Inside A: quadrant 0.

  gradient = np.abs(drawn_a(images[:, -1], alive(functional)))
  assert not gradient[:, :8, :16].any()
  assert not gradient[:, 8:, 16:].any()
  assert gradient[:, :8, 16:].max() > 0
  assert gradient[:, 8:, :16].max() > 0


@pytest.mark.slow
def test_explicit_poses_are_drawn_by_the_patches_own_rays():
  """Halves in another order give the same picture from the same poses."""
  functional = variant(pose='se3', pose_dim=10)
  params, images = alive(functional), noise(2)
  poses = 0.3 * jax.random.normal(jax.random.key(0), (2, 1, 2, 10))
  poses = jnp.repeat(poses, 2, axis=1)  # From A as from B.

  @jax.jit
  def draw(params, order, poses):
    model = functional.bind(params)
    return objective.render(model, images[:, :1], poses, order)

  drawn = draw(params, HALVES, poses)
  swapped = jnp.array([[3, 0, 2, 1]] * 2)
  np.testing.assert_allclose(draw(params, swapped, poses), drawn, atol=1e-5)
  turned = poses.at[..., 1, 2].add(0.3)
  assert not np.allclose(draw(params, HALVES, turned), drawn, atol=1e-3)


def shifted_loss(images, shifted, params, functional, **changes):
  config = objective.Config(
    lpips_weight=0.0, self_target_prob=0.0, shifted=shifted, **changes
  )
  draws = objective.sample(jax.random.key(3), frames_of(images[:, :2]), config)
  return objective.loss(
    functional.bind(params), images, draws, config, whole=False
  )[0]


@pytest.mark.slow
def test_b_sees_the_moment_that_is_shifted():
  """A shift by nothing changes nothing; A never sees the other moment."""
  functional = variant()
  params, images = alive(functional), noise(2)
  other = noise(2, seed=1)
  loss = jax.jit(shifted_loss, static_argnums=(1, 3))
  same = loss(jnp.concatenate([images, images], 1), True, params, functional)
  np.testing.assert_allclose(
    same, loss(images, False, params, functional), rtol=1e-6
  )
  moved = loss(jnp.concatenate([images, other], 1), True, params, functional)
  assert abs(moved - same) > 1e-5

  @jax.jit
  def poses(others):
    model = functional.bind(params)
    sets = network.encoder_pairs(images)
    others = network.encoder_pairs(others)
    return objective.encode(model, sets, HALVES, others)

  before, after = poses(images), poses(other)
  np.testing.assert_array_equal(before[:, 0], after[:, 0])
  assert not np.allclose(before[:, 1], after[:, 1], atol=1e-3)


@pytest.mark.slow
def test_the_shifted_moment_is_in_the_same_order():
  """Of three views the most central is the reference in both."""
  functional = variant()
  params, images = alive(functional), noise(3)
  frames = jnp.array([[0, 4, 9]] * 2)
  config = objective.Config(lpips_weight=0.0, shifted=True)
  draws = objective.sample(jax.random.key(0), frames, config)

  @jax.jit
  def loss(images):
    model = functional.bind(params)
    return objective.loss(model, images, draws, config, whole=False)[0]

  @jax.jit
  def unshifted(images):
    plain = dataclasses.replace(config, shifted=False)
    model = functional.bind(params)
    return objective.loss(model, images, draws, plain, whole=False)[0]

  np.testing.assert_allclose(
    loss(jnp.concatenate([images, images], 1)), unshifted(images), rtol=1e-6
  )


@pytest.mark.parametrize(
  ('section', 'key', 'value', 'said'),
  [
    ('model', 'pose', 'se2', 'config.model.pose='),
    ('model', 'pose', 'se3', 'config.model.pose_dim=4 must be 10'),
    ('data', 'offset_prob', 0.5, 'config.data.offset_prob=.*unmasked_prob'),
    ('data', 'offset_prob', -0.5, 'config.data.offset_prob=-0.5 must be'),
    ('objective', 'split', 'thirds', 'split=.thirds.: choose one of quadrants'),
    ('objective', 'nuisance_dropout', 1.5, 'nuisance_dropout=1.5 must be'),
    ('model', 'nuisance_dim', -1, 'config.model.nuisance_dim=-1 must be'),
  ],
)
def test_variants_that_cannot_be_are_refused(section, key, value, said):
  recipe = small.recipe('data', **{f'{section}__{key}': value})
  with pytest.raises(UserError, match=said):
    build.build(recipe)


def test_a_nuisance_needs_a_renderer():
  recipe = small.recipe(
    'data',
    model__nuisance_dim=4,
    objective__contrast='simclr',
    objective__unmasked_prob=0.0,
  )
  with pytest.raises(UserError, match="'simclr' renders nothing that .*=4"):
    build.build(recipe)


def nuisance_loss(functional, params, images, draws, whole):
  config = objective.Config(lpips_weight=0.0, self_target_prob=0.0)
  return objective.loss(
    functional.bind(params), images, draws, config, whole=whole
  )[0]


def test_without_a_nuisance_nothing_changes():
  """The tree of parameters, their initial values, the other draws."""
  plain, ours = variant(), variant(nuisance_dim=4)
  before, after = (x.init(jax.random.key(0)) for x in (plain, ours))
  added = {name for name in after if name.startswith('nuisance/')}
  assert set(after) - set(before) == added
  assert added
  for name, x in before.items():
    np.testing.assert_array_equal(after[name], x)
  draws = [
    objective.sample(
      jax.random.key(1), jnp.zeros((512, 2), int), objective.Config(**changes)
    )
    for changes in ({}, {'nuisance_dropout': 0.0})
  ]
  assert 0.4 < draws[0].nuisance.mean() < 0.6
  assert draws[1].nuisance.all()
  same = dataclasses.replace(draws[1], nuisance=draws[0].nuisance)
  assert_same(same, draws[0])


@pytest.mark.slow
@pytest.mark.parametrize('whole', [False, True])
def test_a_dropped_nuisance_is_none(whole):
  """A kept one explains the patches that it is read from, and poses do not."""
  plain, ours = variant(), variant(nuisance_dim=4)
  params, images = alive(ours), noise(2)
  rest = {k: x for k, x in params.items() if not k.startswith('nuisance/')}
  config = objective.Config(self_target_prob=0.0)
  draws = objective.sample(jax.random.key(3), frames_of(images), config)
  dropped = dataclasses.replace(draws, nuisance=jnp.array([False, False]))
  kept = dataclasses.replace(draws, nuisance=jnp.array([True, True]))
  loss = jax.jit(
    jax.value_and_grad(nuisance_loss, argnums=1), static_argnums=(0, 4)
  )
  want, gradient = loss(plain, rest, images, draws, whole)
  got, ours_gradient = loss(ours, params, images, dropped, whole)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for name, x in ours_gradient.items():
    if name.startswith('nuisance/'):
      assert not x.any()
    else:
      np.testing.assert_allclose(x, gradient[name], rtol=1e-3, atol=1e-6)
  other, ours_gradient = loss(ours, params, images, kept, whole)
  assert abs(other - want) > 1e-5
  assert all(
    x.any() for k, x in ours_gradient.items() if k.startswith('nuisance/')
  )

  @jax.jit
  def poses_and_pictures(params, images):
    model = ours.bind(params)
    poses = model.encode_views(images)
    drawn = objective.render_by_halves(model, images)
    return poses, model.render(images[:, :1], poses), drawn

  # In tests there is none.
  other = {
    k: 2 * x if k.startswith('nuisance/') else x for k, x in params.items()
  }
  for a, b in zip(
    poses_and_pictures(params, images),
    poses_and_pictures(other, images),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_nuisance_is_of_the_half_that_it_helps_to_draw():
  functional = variant(nuisance_dim=4)
  params, images = alive(functional), noise(3)

  @jax.jit
  def features(images):
    model = functional.bind(params)
    sets = network.encoder_pairs(images)
    return model.nuisance(objective._encode(model, sets, HALVES, None)[1])

  before = features(images)
  assert before.shape == (2, 2, SMALL.features)
  # HALVES: A has quadrants 0 and 3; the second context is no part of it.
  after = features(images.at[:, 2, :8, :16].add(0.5))
  assert (before[:, 0] != after[:, 0]).any()
  np.testing.assert_array_equal(before[:, 1], after[:, 1])
  np.testing.assert_array_equal(
    before, features(images.at[:, 1].set(noise(3, seed=1)[:, 1]))
  )

  @jax.jit
  def draw(extra):
    model = functional.bind(params)
    poses = objective.encode(model, network.encoder_pairs(images), HALVES)
    return objective.render(model, images[:, :-1], poses, HALVES, extra)

  moved = draw(before) != draw(before.at[:, 0].add(1.0))
  assert moved[:, :8, :16].any()
  assert moved[:, 8:, 16:].any()
  assert not moved[:, :8, 16:].any()
  assert not moved[:, 8:, :16].any()


def test_baselines_draw_which_half_is_seen_and_the_views_order():
  frames = jnp.tile(jnp.array([[0, 4, 9]]), (2000, 1))
  draws = autoencoding_objective.sample_autoencoding(jax.random.key(0), frames)
  assert (draws.views[:, 0] == 1).all()  # The most central one.
  assert 0.45 < jnp.mean(draws.views[:, 1] == 0) < 0.55
  assert 0.45 < jnp.mean(draws.left) < 0.55
  together = jnp.mean(draws.left & (draws.views[:, 1] == 0))
  assert 0.2 < together < 0.3


def test_baselines_are_scored_on_what_they_draw():
  images = noise(2)

  class Model:
    def reconstruct(self, images, left):
      return 0.5 * images[:, -1], images[:, -1]

  draws = autoencoding_objective.AutoencodingSamples(
    views=jnp.array([[1, 0]] * 2), left=jnp.array([True, False])
  )
  # jaxtyping knows the classes of baselines only.
  loss = inspect.unwrap(autoencoding_objective.autoencoding_loss)
  config = distances.Distances(l1_weight=2.0, lpips_weight=0.5)
  total, parts = loss(
    Model(),
    images,
    draws,
    config,
    perceptual=lambda a, b: jnp.mean((a - b) ** 2, axis=(1, 2, 3)),
  )
  first = np.asarray(images[:, 0])
  np.testing.assert_allclose(parts['l1'], np.abs(first / 2).mean(), rtol=1e-5)
  np.testing.assert_allclose(parts['lpips'], (first**2 / 4).mean(), rtol=1e-5)
  want = 2 * parts['l1'] + 0.5 * parts['lpips']
  np.testing.assert_allclose(total, want, rtol=1e-6)
