"""Held-out views of posed models: the scores, and their baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from xfactor.data.pipeline import evaluation as pipeline_evaluation
from xfactor.data.records import eval_index
from xfactor.errors import UserError
from xfactor.geometry import cameras
from xfactor.methods import scores as scores_lib
from xfactor.methods.srt import scores
from xfactor.training import build, held_out

UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return small.make_posed_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def parts(data_dir):
  """What builds the model, its parameters, and the evaluation's batches."""
  config = small.posed_recipe(data_dir)
  built = build.build(config, jax.devices()[:2])
  index = eval_index.eval_index(
    data_dir, 'skies', 'test', 4, 6, ordered=False, cameras=True
  )
  batches = list(
    pipeline_evaluation.eval_batches(
      str(data_dir),
      'skies',
      index,
      image_size=24,
      image_width=32,
      cameras=True,
      batch_size=4,
    )
  )
  return config, built, built.init().params, batches


def evaluate(parts, num_rays=0, params=None):
  _, built, own, batches = parts
  evaluator = scores.Evaluator(
    built.functional,
    built.mesh,
    {},
    objective=built.objective,
    num_rays=num_rays,
  )
  return evaluator(own if params is None else params, batches, num_images=3)


@pytest.fixture(scope='module')
def result(parts):
  return evaluate(parts)


def psnr(a, b):
  return -10 * np.log10(np.mean((a - b) ** 2))


def test_baselines_are_what_they_are_called(parts, result):
  batch = parts[3][0]
  for i in range(4):
    images = batch['images'][i] / 255
    poses = jnp.asarray(batch['world_to_camera'][i])
    truth = images[2:]
    mean = images[:2].mean((0, 1, 2))
    np.testing.assert_allclose(
      result.scores['mean']['psnr'][i], psnr(truth, mean), rtol=1e-4
    )
    near = scores.nearest_view(poses[None, :2], poses[None, 2:])[0]
    np.testing.assert_allclose(
      result.scores['copy']['psnr'][i],
      psnr(truth, images[np.asarray(near)]),
      rtol=1e-4,
    )


def test_the_model_is_scored_by_its_own_pictures(parts, result):
  """PSNR of the panel's picture, which is of one of the two target views."""
  assert result.num_examples == 4
  assert set(result.scores['model']) == {'psnr', 'ssim'}
  shown = result.images
  assert shown['context'].shape == (3, 2, 24, 32, 3)
  assert shown['prediction'].shape == shown['truth'].shape == (3, 24, 32, 3)
  np.testing.assert_array_equal(shown['truth'], parts[3][0]['images'][:3, 2])


def test_pixels_in_parts_are_those_of_the_whole(parts, result, monkeypatch):
  monkeypatch.setattr(scores.objective_lib, 'at_once', lambda *_, **__: 100)
  again = evaluate(parts)
  np.testing.assert_allclose(
    again.scores['model']['psnr'], result.scores['model']['psnr'], rtol=1e-4
  )
  # Products of other sizes may be added up in another order.
  difference = (
    np.int32(again.images['prediction']) - result.images['prediction']
  )
  assert abs(difference).max() <= 1


def test_some_pixels_estimate_all(parts, result):
  some = evaluate(parts, num_rays=512)
  assert set(some.scores['model']) == {'psnr'}
  for who in ('model', 'copy', 'mean'):
    np.testing.assert_allclose(
      some.scores[who]['psnr'], result.scores[who]['psnr'], atol=1.0
    )
  np.testing.assert_array_equal(
    evaluate(parts, num_rays=512).scores['model']['psnr'],
    some.scores['model']['psnr'],
  )


def test_diverged_parameters_are_said(parts):
  params = jax.tree.map(lambda x: x * jnp.nan, parts[2])
  with pytest.raises(UserError, match='training diverged'):
    evaluate(parts, params=params)


def test_the_nearest_view():
  """By where it looks, and by where it is."""
  eyes = np.array([[3, 0, 1], [0, 3, 1], [-3, 0, 1], [2.8, 0.5, 1]], float)
  poses = cameras.look_at(eyes, np.zeros((4, 3)), UP)[None]
  near = scores.nearest_view(
    jnp.asarray(poses[:, :3]), jnp.asarray(poses[:, 3:])
  )
  assert near.tolist() == [[0]]
  eyes = np.array([[0, 0, 0], [9, 0, 0], [7, 0, 0]], float)
  poses = cameras.look_at(eyes, eyes + [0, 1, 0], UP)[None]
  near = scores.nearest_view(
    jnp.asarray(poses[:, :2]), jnp.asarray(poses[:, 2:])
  )
  assert near.tolist() == [[1]]


def test_the_table_and_the_names_of_the_curves(result):
  text = scores_lib.table('skies', result)
  assert 'copy the nearest view' in text
  assert 'pose' not in text
  names = held_out.scalars({'skies': result})
  assert {'eval/skies/psnr', 'eval/skies/copy_psnr'} <= set(names)
  assert list(held_out.panels('skies', result)) == ['skies_reconstruction']
