"""The public parameter tree: names, order, and the sizes read off it."""

import numpy as np
import pytest

from xfactor.errors import UserError
from xfactor.exchange import xfactor_names
from xfactor.methods.xfactor import network as xfactor_network
from xfactor.nn.functional import Functional


def empty(config):
  """Our parameters of a model, which take no memory."""
  functional = Functional(
    lambda rngs: xfactor_network.XFactor(config, rngs=rngs)
  )
  return {
    name: np.broadcast_to(np.float32(0), leaf.shape)
    for name, leaf in functional.shapes.items()
  }


@pytest.mark.parametrize(
  'config',
  [
    xfactor_network.Config(registers=32),
    xfactor_network.Config(
      features=24,
      heads=3,
      patch_size=5,
      encoder_layers=12,
      renderer_layers=2,
      pose_dim=7,
      registers=3,
    ),
  ],
)
def test_sizes_are_read_off_the_arrays(config):
  theirs = xfactor_names.to_official(empty(config))
  assert xfactor_names.read_config(theirs) == config
  if config.features == 1024:  # The public model.
    assert sum(x.size for x in theirs.values()) == 305_178_624


def test_there_and_back(golden):
  arrays = golden('xf_params_pert')
  back = xfactor_names.to_official(xfactor_names.to_ours(arrays))
  assert list(back) == sorted(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_layers_beyond_ten_stay_in_order():
  config = xfactor_network.Config(
    features=4, heads=1, encoder_layers=12, renderer_layers=1, pose_dim=1
  )
  ours = {
    name: np.random.default_rng(0).standard_normal(x.shape, np.float32)
    for name, x in empty(config).items()
  }
  theirs = xfactor_names.to_official(ours)
  stack = ours['pose_encoder/trunk/stack/layers/qkv/kernel']
  for i in range(12):
    kernel = theirs[f'PoseEnc/layers_{i}/Dense_0/kernel']
    np.testing.assert_array_equal(kernel, stack[i])
  # As JAX sorts the tree: by the parts of the path.
  paths = [name.split('/') for name in theirs]
  assert paths == sorted(paths)
  back = xfactor_names.to_ours(theirs)
  assert all((back[name] == array).all() for name, array in ours.items())


def test_names_of_other_models_are_refused():
  with pytest.raises(UserError, match="'pose_encoder/odd' is no parameter"):
    xfactor_names.to_official({'pose_encoder/odd': np.zeros(1)})


@pytest.mark.parametrize(
  ('path', 'array', 'said'),
  [
    ('PoseEnc/Dense_0/kernel', None, 'PoseEnc/Dense_0/kernel is missing'),
    ('Render/layers_1/Dense_0/kernel', None, r'layers_1/Dense_0.* is missing$'),
    (
      'Render/layers_4/Dense_0/kernel',
      np.zeros((2, 2)),
      'layers_2.*is missing',
    ),
    ('Render/Dense_9/kernel', np.zeros(3), 'Dense_9/kernel is unexpected$'),
    ('PoseEnc/global_embed', np.zeros((2, 3, 4)), r'is \[2, 3, 4\]'),
    (
      'Render/LayerNorm_0/scale',
      np.zeros(63, np.float32),
      r'Render/LayerNorm_0/scale is float32\[63\] where float32\[64\] belongs$',
    ),
    (
      'Render/LayerNorm_0/bias',
      np.zeros(64, np.float16),
      r'float16\[64\] where float32\[64\]',
    ),
    ('PoseEnc/Dense_0/kernel', np.zeros((192, 65)), 'config.model.features=65'),
  ],
)
def test_what_does_not_go_with_the_rest_is_named(golden, path, array, said):
  arrays = golden('xf_params_pert')
  if array is None:
    del arrays[path]
  else:
    arrays[path] = array
  with pytest.raises(UserError, match=said):
    xfactor_names.read_config(arrays)
