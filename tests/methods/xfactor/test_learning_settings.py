"""The settings by which small models learn motion; defaults are published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.methods.xfactor import network
from xfactor.nn import layers
from xfactor.nn.functional import Functional
from xfactor.training import build

SIZES = {
  'features': 16,
  'heads': 2,
  'patch_size': 8,
  'encoder_layers': 2,
  'renderer_layers': 2,
  'pose_dim': 4,
  'registers': 2,
  'dtype': 'float32',
}
QKV = 'pose_encoder/trunk/stack/layers/qkv/kernel'
SCALE = 'renderer/trunk/stack/layers/scale_mlp/scale'
HEAD = 'pose_encoder/head/layers/2/kernel'


def functional(**settings):
  config = network.Config(**SIZES, **settings)
  return Functional(lambda rngs: network.XFactor(config, rngs=rngs))


def params(**settings):
  return jax.jit(functional(**settings).init)(jax.random.key(0))


@pytest.mark.slow
def test_each_setting_changes_what_it_is_about_alone():
  published = params()
  for name, settings, changed in (
    (SCALE, {'layer_scale': 0.3}, 'scale_'),
    (QKV, {'tie_qk': True}, 'qkv/kernel'),
    (HEAD, {'pose_gain': 10.0}, HEAD),
  ):
    ours = params(**settings)
    differs = {k for k, x in ours.items() if not (x == published[k]).all()}
    assert name in differs
    assert all(changed in k for k in differs)
  assert set(params(position_grid=4)) == set(published)


@pytest.mark.slow
def test_keys_start_as_queries_and_values_do_not():
  q, k, v, own_q, own_k, own_v = np.split(params(tie_qk=True)[QKV], 6, -1)
  np.testing.assert_array_equal(q, k)
  np.testing.assert_array_equal(own_q, own_k)
  assert not (q == own_q).any()
  assert not (q == v).any()
  assert not (own_q == own_v).any()
  # As wide a draw as the published one of the fused matrix.
  wide = float(np.std(params()[QKV]))
  assert np.std(q) == pytest.approx(wide, rel=0.1)


@pytest.mark.slow
def test_gain_and_scale_start_as_told():
  np.testing.assert_allclose(
    params(pose_gain=10.0)[HEAD], 10 * params()[HEAD], rtol=1e-6
  )
  assert (params(layer_scale=0.3)[SCALE] == np.float32(0.3)).all()
  assert (params()[SCALE] == np.float32(0.01)).all()


def test_no_two_places_look_alike():
  places = layers.sine_positions(layers.grid_positions(8, 8), 8, 16)
  apart = jnp.abs(places[:, None] - places[None]).max(-1)
  assert (apart + jnp.eye(64)).min() > 0.3
  # Neither does a place in a half of the picture depend on the other half.
  some = layers.grid_positions(8, 8)[5:9]
  np.testing.assert_array_equal(layers.sine_positions(some, 8, 16), places[5:9])


@pytest.mark.slow
def test_positions_reach_the_tokens_of_both_networks():
  made = functional(position_grid=4)
  weights = params(position_grid=4)
  images = jax.random.uniform(jax.random.key(1), (1, 2, 32, 32, 3))
  poses = jax.random.normal(jax.random.key(2), (1, 2, 4))
  with_places, without = made.bind(weights), functional().bind(weights)
  for run in (
    lambda model: model.encode(images),
    lambda model: model.render(images[:, :1], poses),
  ):
    assert jnp.abs(run(with_places) - run(without)).max() > 1e-4


def test_a_grid_larger_than_made_for_is_refused():
  model = functional(position_grid=2).bind(params())
  with pytest.raises(UserError, match='position_grid of at least 4, not 2'):
    model.encode(jnp.zeros((1, 2, 32, 32, 3)))
  config = configs.small()
  config.model.position_grid = 4
  config.data.mix = {'walks': configs.part(begin=2, end=3)}
  with pytest.raises(UserError, match='position_grid of at least 8, not 4'):
    build.build(config)


def test_positions_need_a_width_for_four_waves():
  with pytest.raises(UserError, match='features=6 must be'):
    network.Config(features=6, heads=1, position_grid=4)
