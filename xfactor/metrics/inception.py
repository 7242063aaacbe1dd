"""Inception-v3 of FID: pictures to the 2048 features of `pool3`.

Szegedy et al. 2016, "Rethinking the Inception Architecture", with the weights
and details of the 2015 network on which Heusel et al. 2017 ("GANs Trained by a
Two Time-Scale Update Rule") defined FID, as in pytorch-fid
(mseitzer/pytorch-fid, release 0.3.0): average pools exclude the padding, and
the last block uses a max pool. The Inception-v3 of torchvision gives other
numbers.
"""

import functools
import os
from collections.abc import Callable, Mapping

import einops
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from xfactor.data.formats import weights
from xfactor.errors import UserError

Params = dict[str, Array | np.ndarray]
# Takes (x, name, channels, kernel=(1, 1), *, stride=1, padding='SAME').
_Conv = Callable[..., Array]

WIDTH = 2048
WHERE = (
  'download pt_inception-2015-12-05-6726825d.pth from the release fid_weights '
  'of github.com/mseitzer/pytorch-fid'
)
_SIZE = 299
_EPS = 1e-3  # For batch normalisation.
# The classifier in the file distinguishes it from torchvision's network.
_CLASSIFIER = {'fc.weight': (1008, WIDTH), 'fc.bias': (1008,)}


def features(
  params: Params, images: Float[Array, 'n h w 3']
) -> Float[Array, 'n 2048']:
  """Returns the features of FID, computed in full float32.

  Args:
    params: Parameters from `load`.
    images: Images in [0, 1] of any size; pytorch-fid reads 8-bit pictures. They
      are resized to 299 x 299 by bilinear interpolation as in torch, without
      antialiasing.
  """
  shape = (len(images), _SIZE, _SIZE, 3)
  x = jax.image.resize(images, shape, 'linear', antialias=False)

  def conv(x, name, channels, kernel=(1, 1), *, stride=1, padding='SAME'):
    y = jax.lax.conv_general_dilated(
      x,
      jnp.asarray(params[f'{name}/kernel']),
      (stride, stride),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      # By default accelerators round the inputs of convolutions.
      precision=jax.lax.Precision.HIGHEST,
    )
    return jax.nn.relu(
      y + jnp.asarray(params[f'{name}/bias'])[None, None, None]
    )

  return _network(conv, 2 * x - 1)


def _network(conv: _Conv, x: Array) -> Array:
  x = conv(x, 'Conv2d_1a_3x3', 32, (3, 3), stride=2, padding='VALID')
  x = conv(x, 'Conv2d_2a_3x3', 32, (3, 3), padding='VALID')
  x = conv(x, 'Conv2d_2b_3x3', 64, (3, 3))
  x = _max_pool(x, 2, 'VALID')
  x = conv(x, 'Conv2d_3b_1x1', 80)
  x = conv(x, 'Conv2d_4a_3x3', 192, (3, 3), padding='VALID')
  x = _max_pool(x, 2, 'VALID')
  for name, pooled in (('Mixed_5b', 32), ('Mixed_5c', 64), ('Mixed_5d', 64)):
    x = _block_35(_below(conv, name), x, pooled)
  x = _to_17(_below(conv, 'Mixed_6a'), x)
  for name, width in (
    *(('Mixed_6b', 128), ('Mixed_6c', 160)),
    *(('Mixed_6d', 160), ('Mixed_6e', 192)),
  ):
    x = _block_17(_below(conv, name), x, width)
  x = _to_8(_below(conv, 'Mixed_7a'), x)
  x = _block_8(_below(conv, 'Mixed_7b'), x, _average_pool)
  x = _block_8(_below(conv, 'Mixed_7c'), x, lambda x: _max_pool(x, 1, 'SAME'))
  return jnp.mean(x, axis=(1, 2))


def _below(conv: _Conv, block: str) -> _Conv:
  return lambda x, name, *args, **kwargs: conv(
    x, f'{block}.{name}', *args, **kwargs
  )


def _block_35(conv: _Conv, x: Array, pooled: int) -> Array:
  """Block on 35 x 35 pixels; names below give the side in pixels."""
  one = conv(x, 'branch1x1', 64)
  five = conv(x, 'branch5x5_1', 48)
  five = conv(five, 'branch5x5_2', 64, (5, 5))
  double = conv(x, 'branch3x3dbl_1', 64)
  double = conv(double, 'branch3x3dbl_2', 96, (3, 3))
  double = conv(double, 'branch3x3dbl_3', 96, (3, 3))
  pool = conv(_average_pool(x), 'branch_pool', pooled)
  return jnp.concatenate([one, five, double, pool], -1)


def _to_17(conv: _Conv, x: Array) -> Array:
  half = functools.partial(conv, kernel=(3, 3), stride=2, padding='VALID')
  three = half(x, 'branch3x3', 384)
  double = conv(x, 'branch3x3dbl_1', 64)
  double = conv(double, 'branch3x3dbl_2', 96, (3, 3))
  double = half(double, 'branch3x3dbl_3', 96)
  return jnp.concatenate([three, double, _max_pool(x, 2, 'VALID')], -1)


def _block_17(conv: _Conv, x: Array, width: int) -> Array:
  one = conv(x, 'branch1x1', 192)
  seven = conv(x, 'branch7x7_1', width)
  seven = conv(seven, 'branch7x7_2', width, (1, 7))
  seven = conv(seven, 'branch7x7_3', 192, (7, 1))
  double = conv(x, 'branch7x7dbl_1', width)
  double = conv(double, 'branch7x7dbl_2', width, (7, 1))
  double = conv(double, 'branch7x7dbl_3', width, (1, 7))
  double = conv(double, 'branch7x7dbl_4', width, (7, 1))
  double = conv(double, 'branch7x7dbl_5', 192, (1, 7))
  pool = conv(_average_pool(x), 'branch_pool', 192)
  return jnp.concatenate([one, seven, double, pool], -1)


def _to_8(conv: _Conv, x: Array) -> Array:
  half = functools.partial(conv, kernel=(3, 3), stride=2, padding='VALID')
  three = half(conv(x, 'branch3x3_1', 192), 'branch3x3_2', 320)
  seven = conv(x, 'branch7x7x3_1', 192)
  seven = conv(seven, 'branch7x7x3_2', 192, (1, 7))
  seven = conv(seven, 'branch7x7x3_3', 192, (7, 1))
  seven = half(seven, 'branch7x7x3_4', 192)
  return jnp.concatenate([three, seven, _max_pool(x, 2, 'VALID')], -1)


def _block_8(conv: _Conv, x: Array, pool: Callable[[Array], Array]) -> Array:
  one = conv(x, 'branch1x1', 320)
  three = conv(x, 'branch3x3_1', 384)
  double = conv(x, 'branch3x3dbl_1', 448)
  double = conv(double, 'branch3x3dbl_2', 384, (3, 3))
  return jnp.concatenate(
    [
      one,
      conv(three, 'branch3x3_2a', 384, (1, 3)),
      conv(three, 'branch3x3_2b', 384, (3, 1)),
      conv(double, 'branch3x3dbl_3a', 384, (1, 3)),
      conv(double, 'branch3x3dbl_3b', 384, (3, 1)),
      conv(pool(x), 'branch_pool', 192),
    ],
    -1,
  )


def _max_pool(x: Array, stride: int, padding: str) -> Array:
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding
  )


def _average_pool(x: Array) -> Array:
  """Averages 3 x 3 pixels; excludes pixels outside the image."""
  total = jax.lax.reduce_window(
    x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), 'SAME'
  )
  rows, columns = (
    np.convolve(np.ones(side), np.ones(3), 'same') for side in x.shape[1:3]
  )
  count = np.outer(rows, columns)[None, :, :, None]
  return total / jnp.asarray(count, x.dtype)


@functools.cache
def _kernels() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of all kernels, OIHW, by name of the layer."""
  shapes = {}

  def conv(x, name, channels, kernel=(1, 1), *, stride=1, padding='SAME'):
    shapes[name] = (channels, x.shape[-1], *kernel)
    y = jax.lax.reduce_window(
      x, 0.0, jax.lax.add, (1, *kernel, 1), (1, stride, stride, 1), padding
    )
    return jnp.zeros((*y.shape[:-1], channels))

  x = jax.ShapeDtypeStruct((1, _SIZE, _SIZE, 3), jnp.float32)
  jax.eval_shape(functools.partial(_network, conv), x)
  return shapes


def file_shapes() -> dict[str, tuple[int, ...]]:
  """Returns the names and shapes of the arrays in the authors' file."""
  shapes = {}
  for name, shape in _kernels().items():
    shapes[f'{name}.conv.weight'] = shape
    for key in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{name}.bn.{key}'] = shape[:1]
  return shapes | _CLASSIFIER


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads weights from a file; none come with this package.

  Args:
    path: Path of the authors' file, or of a .npz or .safetensors file with its
      arrays under the same names; local or gs://.

  Returns:
    `LAYER/kernel` (HWIO) and `LAYER/bias`, float32, with the statistics of
    batch normalisation folded in.

  Raises:
    UserError: If the file is missing, damaged, incomplete or of another
      network.
  """
  path = epath.Path(path)
  if not path.exists():
    raise UserError(f'Inception weights {path} do not exist; {WHERE}')
  try:
    arrays = weights.read_arrays(path)
  except UserError as error:
    raise UserError(f'{error}; {WHERE}') from error
  _check(path, arrays)
  params = {}
  for name in _kernels():
    kernel, scale, bias, mean, variance = (
      np.float64(arrays[f'{name}.{key}'])
      for key in (
        *('conv.weight', 'bn.weight', 'bn.bias'),
        *('bn.running_mean', 'bn.running_var'),
      )
    )
    factor = scale / np.sqrt(variance + _EPS)
    kernel = einops.rearrange(kernel, 'o i h w -> h w i o') * factor
    params[f'{name}/kernel'] = np.float32(kernel)
    params[f'{name}/bias'] = np.float32(bias - mean * factor)
  return params


def _check(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Raises UserError unless the arrays are those of the authors' file.

  Batch counters, which depend on the version of torch, are ignored.
  """
  shapes = file_shapes()
  found = {x for x in arrays if not x.endswith('.num_batches_tracked')}
  if missing := sorted(shapes.keys() - found):
    raise UserError(
      f'{path} is not the Inception of FID: {len(missing)} arrays are missing, '
      f'such as {missing[0]}; {WHERE}'
    )
  if unknown := sorted(found - shapes.keys()):
    raise UserError(
      f'{path} is not the Inception of FID: it has {unknown[0]}; {WHERE}'
    )
  for name, shape in shapes.items():
    if np.shape(arrays[name]) != shape:
      raise UserError(
        f'{path} is not the Inception of FID: {name} has shape '
        f'{np.shape(arrays[name])}, not {shape}; {WHERE}'
      )
    if not np.isfinite(arrays[name]).all():
      raise UserError(f'{path} is damaged: {name} is not finite; {WHERE}')
