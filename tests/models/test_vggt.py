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
from xfactor.errors import UserError
from xfactor.models import vggt

TINY = vggt.Config(
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
  config, params = vggt.load(file)
  assert config == TINY
  return params


def half(golden_case, case):
  images = golden_case[f'{case}/images']
  return jnp.asarray(np.moveaxis(images, 2, -1))


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
    tokens = vggt.aggregate(params, images, config=TINY)
    return tokens, vggt.read_cameras(params, tokens)

  got = [run(scene) for scene in images]
  tokens, poses = (np.stack(x, -3) for x in zip(*got, strict=True))
  np.testing.assert_allclose(tokens, want['agg_tokens_last_camera'], atol=1e-5)
  np.testing.assert_allclose(poses, want['pose_enc_list'], atol=1e-5)
  pose = vggt.world_to_camera(poses[-1])
  np.testing.assert_allclose(pose[..., :3, :], want['extrinsic_3x4'], atol=1e-5)
  table = vggt.position_embedding(
    params['aggregator.patch_embed.pos_embed'], (height // 14, width // 14)
  )
  np.testing.assert_allclose(table, want['pos_embed_used'], atol=1e-5)


def test_order_of_all_but_the_first_frame_is_free(params, golden):
  images = golden('tps/vggt_tiny_forward')['B_70x98_B1S4/images'][0]
  images = np.moveaxis(images, 1, -1)

  def predict(order):
    return vggt.predict(params, jnp.asarray(images[order]), config=TINY)

  straight, mixed, other = map(
    predict, ([0, 1, 2, 3], [0, 3, 1, 2], [1, 0, 2, 3])
  )
  np.testing.assert_allclose(straight[np.array([0, 3, 1, 2])], mixed, atol=1e-5)
  assert np.abs(straight[np.array([1, 0, 2, 3])] - other).max() > 0.1


def test_rope(golden):
  units = golden('tps/vggt_units')
  for suffix in ('', '64'):
    q, out = units[f'rope/q{suffix}'], units[f'rope/out{suffix}']
    for x, want, positions in zip(q, out, units['rope/pos'], strict=False):
      table = vggt.rope_table(jnp.asarray(positions), x.shape[-1])
      x = jnp.asarray(np.swapaxes(x, 0, 1)[None])
      got = np.swapaxes(vggt.apply_rope(x, table)[0], 0, 1)
      np.testing.assert_allclose(got, want, atol=1e-5)


def test_cameras_of_encodings(golden):
  units = golden('tps/vggt_units')
  quaternions = units['rot/quat_xyzw']
  encoding = np.pad(quaternions, ((0, 0), (3, 2)))
  pose = vggt.world_to_camera(encoding)
  np.testing.assert_allclose(pose[:, :3, :3], units['rot/mat'], atol=1e-5)
  encoding = units['pose/enc']
  pose = vggt.world_to_camera(encoding)
  np.testing.assert_allclose(
    pose[..., :3, :], units['pose/extrinsic'], atol=1e-5
  )
  np.testing.assert_array_equal(
    pose[..., 3, :], np.broadcast_to([0, 0, 0, 1], (*encoding.shape[:2], 4))
  )
  k = units['pose/intrinsic']  # In pixels of 392 x 518 pictures.
  want = np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)
  np.testing.assert_allclose(
    vggt.intrinsics(encoding) * np.float32([518, 392, 518, 392]),
    want,
    rtol=1e-5,
  )


# ==============================================================================
# The full size
# ==============================================================================


def full_size(frames):
  """Shapes of VGGT-1B's parameters and of its input."""
  _, shapes = vggt.stacked(vggt.Config())


def test_parameters_are_those_of_vggt_1b():
  with open(os.path.join(GOLDEN, 'tps', 'vggt1b_keys.json')) as keys:
    want = {name: tuple(shape) for name, shape in json.load(keys).items()}
  assert vggt.shapes(vggt.Config()) == want
  assert vggt.read_config(want) == vggt.Config()
