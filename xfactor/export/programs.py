"""Writes networks as StableHLO and as ONNX, for any number of examples."""

import logging
import warnings

import jax
import jax.numpy as jnp
from etils import epath
from jax import export

from xfactor.errors import UserError
from xfactor.exchange import snapshot
from xfactor.export.networks import Network

# One file runs on all of them.
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write_stablehlo(network: Network, folder: epath.Path) -> epath.Path:
  """Writes NAME.stablehlo, which `jax.export.deserialize` reads.

  Products are float32 on all platforms: at the default precision they would be
  bfloat16 on a TPU and TF32 on an NVIDIA GPU.
  """
  (batch,) = export.symbolic_shape('batch')
  shapes = [
    jax.ShapeDtypeStruct((batch, *shape), 'float32')
    for shape in network.inputs.values()
  ]
  with jax.default_matmul_precision('highest'):
    program = export.export(jax.jit(network.apply), platforms=PLATFORMS)(
      *shapes
    )
  path = folder / f'{network.name}.stablehlo'
  with snapshot.whole(path) as file:
    file.write(program.serialize())
  return path


def write_onnx(network: Network, folder: epath.Path) -> epath.Path:
  """Writes NAME.onnx.

  Raises:
    UserError: If jax2onnx is not installed.
  """
  # They log unused plugins, with tracebacks, and shapes without a type.
  for name in ('jax2onnx', 'onnx_ir'):
    logging.getLogger(name).setLevel(logging.ERROR)
  try:
    import jax2onnx
  except ImportError as e:
    raise UserError(
      f'ONNX is written by jax2onnx, which cannot be imported ({e}): pip '
      "install -e '.[export]'"
    ) from e
  cumsum = jnp.cumsum
  with warnings.catch_warnings():
    # It reads parameters as older releases of Flax have them.
    warnings.simplefilter('ignore', DeprecationWarning)
    try:
      model = jax2onnx.to_onnx(
        network.apply,
        [('batch', *shape) for shape in network.inputs.values()],
        input_names=list(network.inputs),
        output_names=list(network.outputs),
        model_name=network.name,
      )
    finally:
      jnp.cumsum = cumsum  # It leaves another one, which lacks arguments.
  path = folder / f'{network.name}.onnx'
  with snapshot.whole(path) as file:
    file.write(model.SerializeToString())
  return path
