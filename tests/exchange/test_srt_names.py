"""Names and layouts of the public SRT code, and sizes read off them.

That golden pictures come out of golden weights is in test_srt.py.
"""

import dataclasses

import numpy as np
import pytest

from xfactor.errors import UserError
from xfactor.exchange import srt_names
from xfactor.methods.srt import network as srt_network

TINY = srt_network.Config(
  features=48,
  heads=4,
  mlp_features=96,
  conv_blocks=3,
  conv_features=8,
  encoder_layers=2,
)
VOLUME = {'decoder': 'nerf', 'conv_blocks': 2, 'encoder_layers': 1}
CONFIGS = {
  'srt_tiny': TINY,
  'isrt_tiny': dataclasses.replace(
    TINY, encoder='isrt', decoder='isrt', conv_blocks=2
  ),
  'vsrt_tiny': dataclasses.replace(TINY, **VOLUME),
  'vsrt_tiny_finenet': dataclasses.replace(TINY, **VOLUME, fine_net=True),
}


@pytest.fixture(scope='module')
def load(golden):
  """A golden state dict; do not change it."""
  cache = {}

  def load(name):
    if name not in cache:
      cache[name] = {
        key.removeprefix('sd/'): array
        for key, array in golden(name).items()
        if key.startswith('sd/')
      }
    return cache[name]

  return load


def assert_same(got, want):
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize('name', CONFIGS)
def test_sizes_are_read_and_nothing_is_lost(load, name):
  named = srt_names.named_parameters(load(name))
  assert list(named) == list(load(name))
  assert srt_names.read_config(named, heads=4) == CONFIGS[name]
  assert_same(srt_names.to_public(srt_names.to_ours(named)), named)


def test_layouts_are_turned(load):
  named = load('srt_tiny')
  ours = srt_names.to_ours(named)
  for path, name, axes in (
    ('encoder/convs/3/kernel', 'conv_blocks.1.layers.2.weight', (2, 3, 1, 0)),
    ('encoder/project/kernel', 'per_patch_linear.weight', (2, 3, 1, 0)),
    ('encoder/pixel_embedding', 'pixel_embedding', (0, 2, 3, 1)),
    ('encoder/other_camera', 'non_canonical_camera_embedding', (0, 1, 2)),
  ):
    want = named[f'encoder.{name}'].transpose(axes)
    np.testing.assert_array_equal(ours[path], want.reshape(ours[path].shape))
  qkv = ours['encoder/stack/layers/qkv/kernel']
  assert qkv.shape == (2, 48, 144)
  theirs = named['encoder.transformer.layers.1.0.fn.to_qkv.weight']
  np.testing.assert_array_equal(qkv[1], theirs.T)


def test_settings_that_shapes_do_not_tell(load):
  config = srt_names.read_config(
    load('vsrt_tiny'), heads=4, max_dist=6.0, dtype='float32', features=99
  )
  assert (config.max_dist, config.dtype, config.features) == (6, 'float32', 48)


@pytest.mark.parametrize('prefix', ['module.{}', '{}module.'])
def test_names_of_data_parallel(load, prefix):
  named = load('srt_tiny')
  state = {}
  for name, array in named.items():
    part, _, rest = name.partition('.')
    state[f'{prefix.format(part + ".")}{rest}'] = array
  assert list(srt_names.named_parameters(state)) == list(named)


def test_a_shared_network_is_there_once(load):
  named = load('vsrt_tiny')
  state = srt_names.state_dict(named)
  fine = [name for name in state if name.startswith('decoder.fine_net.')]
  assert len(state) == len(named) + len(fine)
  assert_same(srt_names.named_parameters(state), named)
  # What differs anywhere is not shared, as with use_fine_net.
  other = state | {fine[-1]: state[fine[-1]] + 1}
  assert_same(srt_names.named_parameters(other), other)
  assert srt_names.read_config(
    srt_names.named_parameters(other), heads=4
  ).fine_net
  both = load('vsrt_tiny_finenet')
  assert_same(srt_names.state_dict(both), both)


HEAD = 'decoder.ray_predictor.output_mlp.0.weight'
PATCH = 'encoder.per_patch_linear.weight'


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({HEAD: None}, f'{HEAD} is missing'),
    ({HEAD: np.zeros((9, 180), 'f4')}, rf'{HEAD} is float32\[9, 180\] where'),
    ({HEAD: np.zeros((128, 180))}, rf'{HEAD} is float64\[128, 180\] where'),
    ({PATCH: None}, f'{PATCH} is missing'),
    ({PATCH: np.zeros(3, 'f4')}, rf'{PATCH} is \[3\]'),
    ({'decoder.odd': np.zeros(3, 'f4')}, 'decoder.odd is unexpected'),
    ({'encoder.pixel_embedding': None}, 'pixel_embedding is missing'),
    (
      {'encoder.transformer.layers.0.1.norm.bias': None},
      r'layers\.0\.1\.norm\.bias is missing',
    ),
    (
      {'encoder.conv_blocks.7.layers.0.weight': np.zeros((1, 1, 3, 3), 'f4')},
      r'conv_blocks\.\d\.layers\.\d\.weight is .* \(and',
    ),
  ],
)
def test_what_is_wrong_is_named(load, changes, said):
  named = load('srt_tiny') | changes
  named = {name: x for name, x in named.items() if x is not None}
  with pytest.raises(UserError, match=said):
    srt_names.read_config(named, heads=4)


def test_a_model_without_a_decoder_is_refused(load):
  named = {
    name: array
    for name, array in load('srt_tiny').items()
    if name.startswith('encoder.')
  }
  with pytest.raises(UserError, match=r'decoder\.ray_predictor\..* is missing'):
    srt_names.read_config(named, heads=4)


def test_names_of_other_models_are_refused():
  zeros = np.zeros(3, 'f4')
  with pytest.raises(UserError, match='no parameter of the public SRT'):
    srt_names.to_ours({'encoder.odd': zeros})
  with pytest.raises(UserError, match='no parameter of SRT'):
    srt_names.to_public({'encoder/odd': zeros})
  lacking = {'encoder.transformer.layers.1.0.norm.bias': zeros}
  with pytest.raises(UserError, match=r'lacks a layer of .*: it has \[1\]'):
    srt_names.to_ours(lacking)
