"""VGGT's cameras against the official code, on random weights.

The goldens in tests/golden/tps are outputs of VGGT as xfactor-nvs carries it,
run by torch on a CPU in float32.
"""

import json
import os
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import GOLDEN
from tests.golden_tolerance import ROUNDING, assert_close
from xfactor.errors import UserError
from xfactor.evaluation.oracles.vggt import network

TINY = network.Config(
  width=64, head_dim=16, grid=4, encoder_layers=2, layers=2, head_layers=4
)


@pytest.fixture(scope='module')
def weights(golden):
  return golden('tps/vggt_tiny_weights')


@pytest.fixture(scope='module')
def file(weights, tmp_path_factory):
  path = tmp_path_factory.mktemp('vggt') / 'model.safetensors'
  safetensors.numpy.save_file(weights, path)
  return path


@pytest.fixture(scope='module')
def params(file):
  config, params = network.load(file)
  assert config == TINY
  return params


@pytest.mark.parametrize(
  'case', ['A_56x56_B2S3', 'B_70x98_B1S4', 'C_56x56_B1S1', 'D_112x112_B1S3']
)
def test_equals_official(case, params, golden):
  want = {
    name.split('/')[1]: x
    for name, x in golden('tps/vggt_tiny_forward').items()
    if name.startswith(case)
  }
  images = np.moveaxis(want['images'], 2, -1)
  height, width = images.shape[2:4]

  @jax.jit
  def run(images):
    tokens = network.aggregate(params, images, config=TINY)
    return tokens, network.read_cameras(params, tokens)

  got = [run(scene) for scene in images]
  tokens, poses = (np.stack(x, -3) for x in zip(*got, strict=True))
  assert_close(tokens, want['agg_tokens_last_camera'])
  assert_close(poses, want['pose_enc_list'])
  pose = network.world_to_camera(poses[-1])
  assert_close(pose[..., :3, :], want['extrinsic_3x4'])
  table = network.position_embedding(
    params['aggregator.patch_embed.pos_embed'], (height // 14, width // 14)
  )
  assert_close(table, want['pos_embed_used'])


def test_order_of_all_but_the_first_frame_is_free(params, golden):
  images = golden('tps/vggt_tiny_forward')['B_70x98_B1S4/images'][0]
  images = np.moveaxis(images, 1, -1)

  def predict(order):
    return network.predict(params, jnp.asarray(images[order]), config=TINY)

  straight, mixed, other = map(
    predict, ([0, 1, 2, 3], [0, 3, 1, 2], [1, 0, 2, 3])
  )
  assert_close(straight[np.array([0, 3, 1, 2])], mixed)
  assert np.abs(straight[np.array([1, 0, 2, 3])] - other).max() > 0.1


def test_fields_of_view_are_not_negative(params):
  last = 'camera_head.pose_branch.fc2'
  answer = jnp.arange(9.0) - 8.5
  params = params | {
    f'{last}.weight': jnp.zeros_like(params[f'{last}.weight']),
    f'{last}.bias': answer,
  }
  poses = network.read_cameras(params, jnp.ones((2, 128)))
  want = np.tile([*answer[:7] * 4, 0, 0], (2, 1))
  np.testing.assert_allclose(poses[-1], want, rtol=1e-6)


def test_rope(golden):
  units = golden('tps/vggt_units')
  for suffix in ('', '64'):
    q, out = units[f'rope/q{suffix}'], units[f'rope/out{suffix}']
    for x, want, positions in zip(q, out, units['rope/pos'], strict=False):
      table = network.rope_table(jnp.asarray(positions), x.shape[-1])
      x = jnp.asarray(np.swapaxes(x, 0, 1)[None])
      got = np.swapaxes(network.apply_rope(x, table)[0], 0, 1)
      assert_close(got, want)


def test_cameras_of_encodings(golden):
  units = golden('tps/vggt_units')
  quaternions = units['rot/quat_xyzw']
  encoding = np.pad(quaternions, ((0, 0), (3, 2)))
  pose = network.world_to_camera(encoding)
  assert_close(pose[:, :3, :3], units['rot/mat'])
  encoding = units['pose/enc']
  pose = network.world_to_camera(encoding)
  assert_close(pose[..., :3, :], units['pose/extrinsic'])
  np.testing.assert_array_equal(
    pose[..., 3, :], np.broadcast_to([0, 0, 0, 1], (*encoding.shape[:2], 4))
  )
  k = units['pose/intrinsic']  # In pixels of 392 x 518 pictures.
  want = np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)
  np.testing.assert_allclose(
    network.intrinsics(encoding) * np.float32([518, 392, 518, 392]),
    want,
    rtol=2 * ROUNDING,
  )


def test_parameters_are_those_of_vggt_1b():
  with open(os.path.join(GOLDEN, 'tps', 'vggt1b_keys.json')) as keys:
    want = {name: tuple(shape) for name, shape in json.load(keys).items()}
  assert network.shapes(network.Config()) == want
  assert network.read_config(want) == network.Config()


def test_thirty_frames_at_518_pixels_fit_in_16_gib():
  config = network.Config()
  weights = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in network.shapes(config).items()
  }
  params = jax.eval_shape(lambda w: network.from_official(w, config), weights)
  images = jax.ShapeDtypeStruct((30, 518, 518, 3), jnp.float32)
  program = network.predict.lower(params, images, config=config)
  assert program.out_info.shape == (30, 9)
  # In float32; with bfloat16 weights, it is 2 GiB less.
  memory = program.compile().memory_analysis()
  total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  assert total < 8 * 2**30


def test_chunks_hold_few_weights_and_waste_little():
  # 30 frames of 1374 tokens: the weights of all queries would be 109 GB.
  tokens = 30 * 1374
  size = network.chunk_size(1, 16, tokens, tokens)
  assert 4 * 16 * size * tokens < 200e6
  assert -tokens % size < tokens / 100
  assert network.chunk_size(30, 16, 1374, 1374) <= 64
  assert network.chunk_size(2, 4, 21, 21) == 21


@pytest.mark.parametrize('queries', [64, 65, 130, 200])
def test_chunks_change_nothing(monkeypatch, queries):
  monkeypatch.setattr(network, '_CHUNK_BYTES', 0)
  rng = np.random.default_rng(queries)
  q, k, v = (
    jnp.asarray(rng.standard_normal((2, n, 3, 8)), jnp.float32)
    for n in (queries, 50, 50)
  )
  got = network._attend(q, k, v, 'einsum')
  want = network.attention.attend(q, k, v)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_half_precision(file, params, golden):
  config, half = network.load(file, jnp.bfloat16)
  small = {name for name, x in half.items() if x.dtype == jnp.bfloat16}
  assert 'aggregator.frame_blocks.attn.qkv.weight' in small
  assert 'aggregator.patch_embed.patch_embed.proj.weight' in small
  assert not any(
    name.startswith('camera_head') or 'norm' in name or 'gamma' in name
    for name in small
  )
  images = golden('tps/vggt_tiny_forward')['A_56x56_B2S3/images'][0]
  images = jnp.asarray(np.moveaxis(images, 1, -1))
  want, got = (
    network.predict(p, images, config=config) for p in (params, half)
  )
  assert got.dtype == jnp.float32
  error = np.abs(got - want).max() / np.ptp(want)
  assert 0 < error < 0.03


def test_unused_heads_are_ignored(weights, params, tmp_path):
  extra = {'depth_head.norm.weight': np.zeros(3, np.float32)}
  extra |= {'point_head.x': extra['depth_head.norm.weight']}
  extra |= {'track_head.x': extra['depth_head.norm.weight']}
  path = tmp_path / 'all.safetensors'
  safetensors.numpy.save_file(weights | extra, path)
  config, got = network.load(path)
  assert config == TINY
  jax.tree.map(np.testing.assert_array_equal, got, params)


def save_torch(monkeypatch, path, weights):
  """Writes what torch.save writes for a dict of float32 tensors."""
  module = types.ModuleType('torch')
  module.FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})
  functions = types.ModuleType('torch._utils')

  def _rebuild_tensor_v2(*_):
    pass

  _rebuild_tensor_v2.__module__ = 'torch._utils'
  _rebuild_tensor_v2.__qualname__ = '_rebuild_tensor_v2'
  functions._rebuild_tensor_v2 = _rebuild_tensor_v2
  monkeypatch.setitem(sys.modules, 'torch', module)
  monkeypatch.setitem(sys.modules, 'torch._utils', functions)

  class Storage:
    def __init__(self, key, size):
      self.pid = ('storage', module.FloatStorage, key, 'cpu', size)

  class Tensor:
    def __init__(self, key, x):
      strides = tuple(s // x.itemsize for s in x.strides)
      self.state = (Storage(key, x.size), 0, x.shape, strides, False, {})

    def __reduce__(self):
      return _rebuild_tensor_v2, self.state

  class Pickler(pickle.Pickler):
    def persistent_id(self, x):
      return x.pid if isinstance(x, Storage) else None

  with zipfile.ZipFile(path, 'w') as archive:
    tensors = {}
    for i, (name, x) in enumerate(weights.items()):
      tensors[name] = Tensor(str(i), x)
      archive.writestr(f'model/data/{i}', x.tobytes())
    with archive.open('model/data.pkl', 'w') as stream:
      Pickler(stream, 2).dump(tensors)


def test_torch_file(weights, params, tmp_path, monkeypatch):
  save_torch(monkeypatch, tmp_path / 'model.pt', weights)
  config, got = network.load(tmp_path / 'model.pt')
  assert config == TINY
  jax.tree.map(np.testing.assert_array_equal, got, params)


BROKEN = {
  'aggregator.camera_token': None,
  'aggregator.frame_blocks.1.mlp.fc1.bias': None,
  'camera_head.trunk.3.attn.qkv.weight': np.zeros((384, 64), np.float32),
  'aggregator.patch_embed.pos_embed': np.zeros((1, 18, 64), np.float32),
  'aggregator.frame_blocks.2.norm1.bias': np.zeros(64, np.float32),
  'aggregator.norm.bias': np.zeros(64, np.float32),
}


@pytest.mark.parametrize('name', BROKEN)
def test_wrong_weights_are_named(name, weights, tmp_path):
  weights = {**weights, name: BROKEN[name]}
  if BROKEN[name] is None:
    del weights[name]
  path = tmp_path / 'wrong.safetensors'
  safetensors.numpy.save_file(weights, path)
  # One block too many makes the others' absence the error.
  named = name.replace('2.norm1.bias', '2.norm1.weight')
  with pytest.raises(UserError, match=rf'wrong.safetensors .*{named}.* Face'):
    network.load(path)


def test_bad_files(weights, tmp_path):
  with pytest.raises(UserError, match='no.pt do not exist; download .*VGGT-1B'):
    network.load(tmp_path / 'no.pt')
  for name in ('cut.safetensors', 'cut.pt'):
    (tmp_path / name).write_bytes(safetensors.numpy.save(weights)[:10000])
    with pytest.raises(UserError, match=f'{name} .*download'):
      network.load(tmp_path / name)
