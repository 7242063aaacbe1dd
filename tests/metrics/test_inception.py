"""Inception against pytorch-fid, on weights by a rule.

tests/golden/inception.npz holds the features that the package pytorch-fid 0.3.0
(on torch 2.13 and torchvision's blocks) computes with these weights from these
pictures; its own 472 names and shapes were used.
"""

import zlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.golden_tolerance import assert_close
from tests.metrics.test_lpips import write_torch_zip
from xfactor.errors import UserError
from xfactor.metrics import inception


def weights():
  """Random weights that depend on nothing but their names."""
  out = {}
  for name, shape in inception.file_shapes().items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.random(shape, np.float32)
    if name.endswith('conv.weight'):
      x = (x - 0.5) * np.float32((24 / np.prod(shape[1:])) ** 0.5)
    elif name.endswith(('bn.weight', 'running_var')):
      x = x + 0.5
    else:
      x = 0.4 * x - 0.2
    out[name] = np.float32(x)
  return out


def picture(seed, height, width):
  """A wave with noise, uint8."""
  rng = np.random.default_rng(seed)
  y, x = np.arange(height) / 9, np.arange(width) / 7
  rows = np.sin(y[:, None, None] + rng.random(3))
  wave = rows * np.cos(x[:, None] + rng.random(3))
  noise = rng.integers(-40, 41, (height, width, 3))
  return np.uint8(np.clip(np.round(127 + 90 * wave) + noise, 0, 255))


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('inception') / 'pt_inception.pth'
  write_torch_zip(path, weights())
  return path


@pytest.fixture(scope='module')
def params(file):
  return inception.load(file)


@pytest.mark.parametrize(('number', 'size'), [(0, (64, 64)), (1, (300, 401))])
def test_equals_pytorch_fid(number, size, params, golden):
  want = golden('inception')[f'features_{number}']
  image = np.float32(picture(number, *size))[None] / 255
  got = jax.jit(inception.features)(params, jax.numpy.asarray(image))
  assert_close(got, want)


def test_reads_the_same_from_other_files(params, tmp_path):
  arrays = weights()
  # As newer versions of torch write it.
  arrays['Mixed_5b.branch1x1.bn.num_batches_tracked'] = np.array(7)
  safetensors.numpy.save_file(arrays, tmp_path / 'inception.safetensors')
  np.savez(tmp_path / 'inception.npz', **arrays)
  for name in ('inception.npz', 'inception.safetensors'):
    loaded = inception.load(str(tmp_path / name))
    assert loaded.keys() == params.keys()
    for key, value in params.items():
      assert value.dtype == np.float32
      np.testing.assert_array_equal(loaded[key], value)


def refused(path, arrays, match):
  np.savez(path, **arrays)
  with pytest.raises(UserError, match=match) as caught:
    inception.load(path)
  assert str(path) in str(caught.value)
  assert 'mseitzer/pytorch-fid' in str(caught.value)


def test_weights_of_other_networks_are_refused(tmp_path):
  path, arrays = tmp_path / 'w.npz', weights()
  refused(
    path,
    {k: v for k, v in arrays.items() if k != 'Mixed_7c.branch_pool.bn.bias'},
    '1 arrays are missing, such as Mixed_7c.branch_pool.bn.bias',
  )
  # What torchvision's network has besides.
  auxiliary = {'AuxLogits.fc.bias': np.zeros(1000, np.float32)}
  refused(path, arrays | auxiliary, 'it has AuxLogits.fc.bias')
  torchvision = {
    'fc.weight': np.zeros((1000, 2048), np.float32),
    'fc.bias': np.zeros(1000, np.float32),
  }
  refused(
    path,
    arrays | torchvision,
    r'fc.weight has shape \(1000, 2048\), not \(1008',
  )
  damaged = {'Mixed_6a.branch3x3.bn.weight': np.full(384, np.nan, np.float32)}
  refused(path, arrays | damaged, 'Mixed_6a.branch3x3.bn.weight is not finite')


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(UserError, match='nowhere.pth do not exist; download pt_'):
    inception.load(tmp_path / 'nowhere.pth')
  for name in ('w.npz', 'w.safetensors', 'w.pth'):
    (tmp_path / name).write_bytes(b'PK\x03\x04 not weights')
    damaged = rf'{name} (cannot be read|is not a valid|is not a readable)'
    with pytest.raises(UserError, match=damaged):
      inception.load(tmp_path / name)
