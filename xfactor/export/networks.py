"""The networks of a trained XFactor as functions of arrays."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, Float

from xfactor.errors import UserError
from xfactor.inference import calibration as calibrations
from xfactor.inference import restore
from xfactor.nn.functional import Functional, Params


@dataclasses.dataclass(frozen=True)
class Network:
  """A function of named float32 arrays, with its parameters in it.

  Attributes:
    name: 'encoder', 'renderer' or 'calibration'.
    apply: The function.
    inputs: Shape of each argument behind the batch axis, by name.
    outputs: Names of the outputs.
  """

  name: str
  apply: Callable[..., Array | tuple[Array, ...]]
  inputs: dict[str, tuple[int, ...]]
  outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Networks:
  """A trained XFactor to export.

  Attributes:
    encoder: (reference, frame) to the latent pose of the frame.
    renderer: (context, context_poses, pose) to the picture at the pose.
    calibration: (camera,) relative to the reference's to its latent pose and
      its distance from the motions of the calibration; None without one.
    model: Sizes of the networks.
    params: Parameters by our names, on one device.
    facts: What programs need to know, as JSON.
  """

  encoder: Network
  renderer: Network
  calibration: Network | None
  model: Any
  params: Params
  facts: dict[str, Any]

  def all(self) -> list[Network]:
    """Returns the networks that there are."""
    found = self.encoder, self.renderer, self.calibration
    return [network for network in found if network]


def load(workdir: epath.PathLike, contexts: int | None = None) -> Networks:
  """Loads the newest checkpoint of an XFactor run.

  Everything is computed in float32, whatever the recipe trains with.

  Args:
    workdir: A run, or one checkpoint of it, WORKDIR/checkpoints/STEP.
    contexts: Views that the renderer takes; those of training if None.

  Raises:
    UserError: If there is no such checkpoint, or it is of another method.
  """
  restored = restore.restore(workdir, devices=jax.devices()[:1])
  build = restored.build
  if build.method.name != 'xfactor':
    raise UserError(
      f'{workdir} is a run of config.method={build.method.name!r} and only '
      'XFactor can be exported to this format: give the --workdir of an '
      'XFactor run' + ', or --to=safetensors' * (build.method.name == 'srt')
    )
  contexts = build.views - 1 if contexts is None else contexts
  model = dataclasses.replace(
    build.model, dtype='float32', attention='einsum', remat='none'
  )
  functional = Functional(lambda rngs: build.method.network(model, rngs, 'cpu'))
  params = jax.device_put(restored.params, jax.devices()[0])
  picture = (build.image_size, build.image_width, 3)
  pose = (model.pose_dim,)
  known = calibrations.load(restored.workdir, restored.step)
  return Networks(
    Network(
      'encoder',
      functools.partial(_encode, functional, params),
      {'reference': picture, 'frame': picture},
      ('pose',),
    ),
    Network(
      'renderer',
      functools.partial(_render, functional, params),
      {
        'context': (contexts, *picture),
        'context_poses': (contexts, *pose),
        'pose': pose,
      },
      ('picture',),
    ),
    known
    and Network(
      'calibration', known.traced, {'camera': (3, 4)}, ('pose', 'distance')
    ),
    model,
    params,
    {
      'step': restored.step,
      'height': build.image_size,
      'width': build.image_width,
      'contexts': contexts,
      'window': restored.window,
      'model': dataclasses.asdict(model),
      'calibration': known and known.facts(),
    },
  )


def _encode(
  functional: Functional,
  params: Params,
  reference: Float[Array, 'b h w 3'],
  frame: Float[Array, 'b h w 3'],
) -> Float[Array, 'b z']:
  pair = jnp.stack([reference, frame], axis=1)
  return functional.bind(params).encode(pair)[:, 1]


def _render(
  functional: Functional,
  params: Params,
  context: Float[Array, 'b c h w 3'],
  context_poses: Float[Array, 'b c z'],
  pose: Float[Array, 'b z'],
) -> Float[Array, 'b h w 3']:
  poses = jnp.concatenate([context_poses, pose[:, None]], axis=1)
  return functional.bind(params).render(context, poses)
