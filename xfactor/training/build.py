"""Builds a recipe for training, evaluation and ahead-of-time compilation."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.methods import base as methods_base
from xfactor.methods import registry
from xfactor.methods.base import StepKind
from xfactor.metrics import lpips_weights
from xfactor.nn import optimizer, sharding
from xfactor.nn.functional import Functional, Params
from xfactor.training import control, state
from xfactor.training.step import root_keys, train_step


@dataclasses.dataclass(frozen=True)
class Build:
  """A recipe built for a mesh.

  Attributes:
    mesh: Mesh of devices.
    method: Method of the recipe.
    model: Sizes of the networks.
    functional: Structure of the networks.
    tx: Optimizer.
    schedule: Learning rate by update.
    objective: Loss.
    places: Shardings of the train state.
    batch: Examples of an update, over all devices.
    views: Views of an example: contexts and targets.
    frames: Frames read for an example.
    image_size: Height of a view, in pixels.
    image_width: Width of a view, in pixels.
    accumulate: Parts of a batch whose gradients are accumulated.
    ema: Decay of the average of the parameters; 0: none.
    decay_start: Updates before the decay of 'wsd'; None for other schedules.
    seed: Seed of all random numbers.
  """

  mesh: Mesh
  method: methods_base.Method
  model: Any
  functional: Functional
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  objective: Any
  places: state.TrainState
  batch: int
  views: int
  frames: int
  image_size: int
  image_width: int
  accumulate: int
  ema: float
  decay_start: int | None
  seed: int

  def abstract_state(self) -> state.TrainState:
    """Returns shapes, dtypes and shardings of the train state."""
    return state.abstract(self.functional, self.tx, self.places)

  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of a global batch."""
    place = NamedSharding(self.mesh, sharding.BATCH)
    views = (self.batch, self.frames)
    known = {
      'images': ((self.image_size, self.image_width, 3), 'uint8'),
      'frames': ((), 'int32'),
      'intrinsics': ((4,), 'float32'),
      'world_to_camera': ((3, 4), 'float32'),
    }
    return {
      name: jax.ShapeDtypeStruct(views + shape, dtype, sharding=place)
      for name, (shape, dtype) in known.items()
      if name in self.method.arrays
    }

  @property
  def needs_lpips(self) -> bool:
    """Whether the loss needs the weights of LPIPS."""
    return self.method.needs_lpips(self.objective)

  def step_kinds(self) -> list[StepKind]:
    """Returns the kinds of steps that a run has."""
    return self.method.step_kinds(self.objective)

  def init(self) -> state.TrainState:
    """Initializes the train state directly in its shardings."""
    make = functools.partial(
      state.init, self.functional, self.tx, average=self.ema > 0
    )
    with jax.set_mesh(self.mesh):
      return jax.jit(make, out_shardings=self.places)(root_keys(self.seed)[0])

  def step(self, kind: StepKind, *, controlled: bool = False):
    """Jits the step: (state, batch, LPIPS weights) to (state, metrics).

    With `controlled` it also takes a `control.Control`. The state is donated
    and keeps its shardings, so that the program is compiled only once.
    """
    step = functools.partial(
      train_step,
      method=self.method,
      functional=self.functional,
      tx=self.tx,
      schedule=self.schedule,
      objective=self.objective,
      seed=self.seed,
      accumulate=self.accumulate,
      ema=self.ema,
      kind=kind,
    )
    in_shardings = (
      self.places,
      NamedSharding(self.mesh, sharding.BATCH),
      NamedSharding(self.mesh, P()),
    )
    return jax.jit(
      step,
      donate_argnums=0,
      in_shardings=in_shardings
      + ((control.shardings(self.mesh),) if controlled else ()),
      out_shardings=(self.places, NamedSharding(self.mesh, P())),
    )

  def trace(
    self,
    kind: StepKind,
    *,
    weights: Params | None,
    controlled: bool = False,
  ):
    """Traces `step` for this mesh."""
    arguments = (self.abstract_state(), self.abstract_batch(), weights)
    if controlled:
      arguments += (control.abstract(self.mesh),)
    with jax.set_mesh(self.mesh):
      return self.step(kind, controlled=controlled).trace(*arguments)

  def compile(
    self,
    kind: StepKind,
    *,
    weights: Params | None,
    controlled: bool = False,
  ):
    """Compiles `step` for this mesh ahead of time."""
    traced = self.trace(kind, weights=weights, controlled=controlled)
    with jax.set_mesh(self.mesh):
      return traced.lower().compile()


def build(
  config: ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  hosts: Sequence[int] | None = None,
) -> Build:
  """Builds a recipe for devices (default: all) without allocating arrays.

  Args:
    config: Recipe.
    devices: Devices of the mesh.
    hosts: Host or slice of each device; see `sharding.make_mesh`.

  Raises:
    UserError: If parts of the recipe contradict each other or the devices.
  """
  configs.check(config)
  data, train = config.data, config.train
  method = registry.get(config.method)
  method.check(config)
  model = method.model(**config.model)
  mesh = sharding.make_mesh(sharding.Config(**config.mesh), devices, hosts)
  sharding.check_batch(mesh, data.batch, 'config.data.batch')
  if data.batch % train.accumulate:
    raise UserError(
      f'config.data.batch={data.batch} must be a multiple of '
      f'config.train.accumulate={train.accumulate}'
    )
  sharding.check_batch(
    mesh,
    data.batch // train.accumulate,
    'config.data.batch / config.train.accumulate',
  )
  platform = mesh.devices.flat[0].platform
  functional = Functional(lambda rngs: method.network(model, rngs, platform))
  optimizer_config = optimizer.Config(**config.optimizer)
  tx = optimizer.make_optimizer(
    optimizer_config, train.steps, functional.shapes
  )
  return Build(
    mesh=mesh,
    method=method,
    model=model,
    functional=functional,
    tx=tx,
    schedule=optimizer.make_schedule(optimizer_config, train.steps),
    objective=method.make_objective(config),
    places=state.shardings(
      mesh, functional, tx, average=optimizer_config.ema > 0
    ),
    batch=data.batch,
    views=method.views(data),
    frames=method.frames(data),
    image_size=data.image_size,
    image_width=data.image_width or data.image_size,
    accumulate=train.accumulate,
    ema=optimizer_config.ema,
    decay_start=optimizer.decay_start(optimizer_config, train.steps),
    seed=config.seed,
  )


def load_perceptual(
  config: ConfigDict, mesh: Mesh, *, required: bool, net: str = 'vgg16'
) -> Params | None:
  """Returns LPIPS weights on every device, or None if there are none.

  Args:
    config: Recipe; `perceptual_weights` may name a folder or file.
    mesh: Mesh to replicate them on.
    required: Whether missing weights are an error.
    net: 'vgg16' or 'alexnet'.

  Raises:
    UserError: If the weights are damaged, or required and missing.
  """
  path = config.perceptual_weights or None
  try:
    weights = lpips_weights.load(net, path)
  except lpips_weights.MissingWeights:
    if required or path:
      raise
    return None
  return jax.device_put(weights, NamedSharding(mesh, P()))
