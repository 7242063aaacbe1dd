"""Held-out scores: what counts, what does not, and the baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.methods import clip_scores, scores
from xfactor.methods.xfactor import objective
from xfactor.training import build, held_out

BUILT = build.build(small.recipe('data'))


@pytest.fixture(scope='module')
def built():
  return BUILT


@pytest.fixture(scope='module')
def params(built):
  return built.init().params


@pytest.fixture(scope='module')
def evaluate(built):
  return clip_scores.Evaluator(built.functional, built.mesh, {})


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).integers(
    0, 256, (16, 2, 32, 32, 3), dtype=np.uint8
  )


def batch(images, mask=None):
  mask = np.ones(len(images), bool) if mask is None else mask
  return {
    'images': images,
    'frames': np.tile(
      np.arange(images.shape[1], dtype=np.int32), (len(images), 1)
    ),
    'example': np.arange(len(images)),
    'mask': mask,
  }


@pytest.mark.slow
def test_padding_does_not_count(evaluate, params, images):
  mask = np.arange(8) < 5
  batches = [batch(images[:8]), batch(images[8:], mask)]
  result = evaluate(params, batches, num_images=4)
  changed = images.copy()
  changed[13:] = 0
  other = evaluate(
    params, [batch(changed[:8]), batch(changed[8:], mask)], num_images=4
  )
  assert result.num_examples == 13
  assert result.means()['model'] == other.means()['model']


def test_pictures_that_are_not_finite_are_said(evaluate, params, images):
  lost = jax.tree.map(lambda x: x * jnp.nan, params)
  mask = np.arange(8) < 5
  with pytest.raises(UserError, match='5 of 5 pictures .* are not finite'):
    evaluate(lost, [batch(images[:8], mask)], num_images=4)


def test_baselines_are_what_they_say(evaluate, params, images):
  still = images.copy()
  still[:, 1] = still[:, 0]  # Nothing moves: copying is perfect.
  result = evaluate(params, [batch(still[:8])], num_images=8)
  np.testing.assert_allclose(result.scores['copy']['psnr'], 100)
  np.testing.assert_allclose(result.scores['copy']['ssim'], 1, rtol=1e-6)
  mean = np.round(still[:8, 0].mean((1, 2), keepdims=True))
  error = ((still[:8, 1] - mean) / 255) ** 2
  want = -10 * np.log10(error.mean((1, 2, 3)))
  np.testing.assert_allclose(result.scores['mean']['psnr'], want, rtol=1e-3)


def test_the_model_is_scored_on_its_own_picture(evaluate, params, images):
  result = evaluate(params, [batch(images[:8])], num_images=8)
  np.testing.assert_array_equal(result.images['truth'], images[:8, 1])
  error = (result.images['prediction'] / 255.0 - images[:8, 1] / 255.0) ** 2
  want = -10 * np.log10(error.mean((1, 2, 3)))
  np.testing.assert_allclose(result.scores['model']['psnr'], want, rtol=1e-4)


def test_transfer_takes_the_next_examples_scene(
  built, evaluate, params, images
):
  result = evaluate(params, [batch(images[:8])], num_images=8)
  changed = images[:8].copy()
  changed[3, 0] = 255 - changed[3, 0]
  other = evaluate(params, [batch(changed)], num_images=8)
  differs = [
    not np.array_equal(a, b)
    for a, b in zip(
      result.images['transfer'], other.images['transfer'], strict=True
    )
  ]
  # Example 3 is the scene of 2, and the start of its own motion.
  assert differs == [i in (2, 3) for i in range(8)]


def test_the_panel_shows_the_scene_that_was_moved(evaluate, params, images):
  result = evaluate(params, [batch(images[:8])], num_images=3)
  np.testing.assert_array_equal(result.images['scene'], images[1:4, 0])


def test_the_shuffled_row_knows_only_another_examples_motion(
  evaluate, params, images
):
  """Its score changes with the next example's target, not with its own."""
  result = evaluate(params, [batch(images[:8])], num_images=8)
  changed = images[:8].copy()
  changed[3] = 255 - changed[3]
  other = evaluate(params, [batch(changed)], num_images=8)
  differs = (
    result.scores['shuffled']['psnr'] != other.scores['shuffled']['psnr']
  )
  assert differs.tolist() == [i in (2, 3) for i in range(8)]
  own = result.scores['model']['psnr'] != other.scores['model']['psnr']
  assert own.tolist() == [i == 3 for i in range(8)]


def test_each_other_frame_is_the_target_by_turns():
  frames = jnp.array([[0, 2, 5, 9, 10]] * 5)
  views = clip_scores.choose_views(frames, jnp.arange(5))
  assert (views[:, 0] == 2).all()  # 5 is nearest to both 0 and 10.
  assert sorted(views[:4, -1].tolist()) == [0, 1, 3, 4]
  assert views[4].tolist() == views[0].tolist()
  for row in views.tolist():
    assert sorted(row) == list(range(5))


def test_copying_takes_the_view_nearest_in_time():
  frames = jnp.array([[5, 0, 9, 8]])  # The target is frame 8.
  images = jnp.arange(4.0)[None, :, None, None, None] * jnp.ones(
    (1, 4, 2, 2, 3)
  )
  near = clip_scores.nearest_context(images, frames)
  np.testing.assert_array_equal(near, np.full((1, 2, 2, 3), 2.0))


def test_halves_know_nothing_of_their_own_pixels(evaluate, params, images):
  """Changing the target's own quadrant leaves its drawing as it was."""
  changed = images[:8].copy()
  changed[:, 1, :16, :16] = 255 - changed[:, 1, :16, :16]
  before, after = (
    np.asarray(
      jax.jit(
        lambda p, x: objective.render_by_halves(
          BUILT.functional.bind(p), clip_scores.to_float(x)
        )
      )(params, jnp.asarray(x))
    )
    for x in (images[:8], changed)
  )
  np.testing.assert_array_equal(before[:, :16, :16], after[:, :16, :16])
  assert not np.array_equal(before[:, :16, 16:], after[:, :16, 16:])


@pytest.mark.slow
@pytest.mark.parametrize('method', ['rust', 'rayzer'])
def test_baselines_have_no_row_of_halves(method, images):
  built = build.build(small.baseline_recipe(method, 'data'), jax.devices()[:1])
  evaluator = clip_scores.Evaluator(built.functional, built.mesh, {})
  result = evaluator(built.init().params, [batch(images[:8])], num_images=8)
  assert list(result.scores) == ['model', 'shuffled', 'copy', 'mean']
  assert result.labels.keys() == result.scores.keys()
  table = scores.table('squares', result)
  assert scores.LABELS['halves'] not in table
  assert scores.LABELS['shuffled'] in table
  # The picture is that of the whole target, not of RUST's half.
  error = (result.images['prediction'] / 255.0 - images[:8, 1] / 255.0) ** 2
  want = -10 * np.log10(error.mean((1, 2, 3)))
  np.testing.assert_allclose(result.scores['model']['psnr'], want, rtol=1e-4)
  assert result.images['transfer'].shape == (8, 32, 32, 3)


def test_the_table_names_rows_and_counts(evaluate, params, images):
  result = evaluate(params, [batch(images[:8])], num_images=2)
  text = scores.table('squares', result)
  assert 'squares (8 held-out examples)' in text
  for words in ('model', 'copy the nearest view', 'mean colour', 'SSIM'):
    assert words in text
  names = held_out.scalars({'squares': result})
  assert {'eval/squares/psnr', 'eval/squares/copy_ssim'} <= set(names)


def test_an_evaluation_batch_that_does_not_divide_is_refused(tmp_path):
  config = small.recipe(tmp_path, eval__batch=12)
  with pytest.raises(UserError, match='config.eval.batch=12'):
    held_out.HeldOut(config, build.build(config), {})


@pytest.mark.slow
def test_results_do_not_depend_on_the_mesh(built, params, images):
  alone = build.build(small.recipe('data'), jax.devices()[:1])
  one = clip_scores.Evaluator(alone.functional, alone.mesh, {})(
    jax.tree.map(jnp.asarray, jax.device_get(params)),
    [batch(images[:8])],
    num_images=8,
  )
  eight = clip_scores.Evaluator(built.functional, built.mesh, {})(
    params, [batch(images[:8])], num_images=8
  )
  np.testing.assert_allclose(
    one.scores['model']['psnr'], eight.scores['model']['psnr'], rtol=1e-3
  )
