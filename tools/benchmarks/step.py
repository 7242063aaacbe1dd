"""Compares the train step with the token split with the public formulation.

The public formulation is plain_xfactor.py: dense attention under a segment
mask, float32 (also LPIPS), unrolled and rematerialized layers, a switch per
image in the augmentation; with the same perturbed weights, batch and samples,
and with AdamW, as published. It is measured with the register tokens of the
recipe and, as published, with 32.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks import plain_xfactor
from benchmarks.measuring import (
  MIB,
  Table,
  Time,
  Unequal,
  alternate,
  is_exact,
  peak_mib,
  place,
  temporaries,
  timed,
)
from xfactor.methods.base import StepKind
from xfactor.methods.xfactor import objective as xfactor_objective
from xfactor.metrics import lpips
from xfactor.nn import layers, sharding
from xfactor.nn.functional import Params
from xfactor.training import build as builds
from xfactor.training import chips, state, step

# Register tokens of the public code, as long as a block of its kernel.
_PUBLISHED_REGISTERS = 32
_PUBLISHED = f'dense reference, {_PUBLISHED_REGISTERS} registers'


def dense_step(build: builds.Build) -> Callable:
  """Returns the public train step, with the arguments of `Build.step`.

  Each layer has its own parameters, see `plain_xfactor.unstack`.
  """
  objective, model = build.objective, build.model
  grid = (build.image_size // model.patch_size,) * 2

  def loss(params, images, draws, weights):
    rows = jnp.arange(len(images))
    target = draws.views[rows, draws.target]
    order = draws.views.at[:, -1].set(target)
    views = layers.to_float(images[rows[:, None], order])
    first = jnp.broadcast_to(views[:, :1], views[:, 1:].shape)
    pairs = jnp.stack([first, views[:, 1:]], 2)
    seen = plain_xfactor.jitter_and_blur(
      pairs.reshape(-1, *pairs.shape[2:]),
      jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), draws.augmentation),
      objective.augmentation,
    )
    mask = plain_xfactor.mask_of(draws.order, grid)
    drawn = plain_xfactor.reconstruct(
      params, model, views, seen.reshape(pairs.shape), mask
    )
    total = objective.l1_weight * jnp.abs(drawn - views[:, -1]).mean()
    if weights:
      distance = lpips.lpips(weights, drawn, views[:, -1])
      total += objective.lpips_weight * distance.mean()
    return total

  def dense(old: state.TrainState, batch, weights):
    key = jax.random.fold_in(step.root_keys(build.seed)[1], old.step)
    draws = xfactor_objective.sample(key, batch['frames'], objective)
    value, grads = jax.value_and_grad(loss)(
      old.params, batch['images'], draws, weights
    )
    updates, moments = build.tx.update(grads, old.opt_state, old.params)
    params = optax.apply_updates(old.params, updates)
    new = state.TrainState(old.step + 1, params, moments)
    return new, {'loss': value, 'grad_norm': optax.tree.norm(grads)}

  return dense


def make_batch(build: builds.Build) -> dict[str, jax.Array]:
  """Returns a batch of noise on the build's mesh."""
  shape = build.abstract_batch()['images'].shape
  rng = np.random.default_rng(0)
  frames = np.arange(build.views, dtype=np.int32)
  batch = {
    'images': rng.integers(0, 256, shape, np.uint8),
    'frames': np.tile(frames, (build.batch, 1)),
  }
  return sharding.to_mesh(build.mesh, batch)


def lpips_weights(recipe: ConfigDict, build: builds.Build) -> Params:
  """Returns the weights of LPIPS, or random ones if none are installed."""
  weights = builds.load_perceptual(recipe, build.mesh, required=False)
  if weights is None:
    print('LPIPS weights are not installed: random ones are used')
    weights = jax.device_put(random_weights())
  return weights


def random_weights() -> Params:
  """Returns random VGG16 weights that keep features near unit scale."""
  rng = np.random.default_rng(0)
  weights = {}
  for name, shape in lpips.param_shapes('vgg16').items():
    x = rng.standard_normal(shape.shape, np.float32)
    if name.endswith('kernel'):
      x *= np.sqrt(2 / np.prod(shape.shape[:3]), dtype=np.float32)
    weights[name] = np.abs(x) if name.startswith('head') else x
  return weights


def perturbed(params: Params) -> Params:
  """Returns weights away from the initialization.

  Poses hardly affect the initial loss, so that programs with different
  quadrants would appear equal.
  """
  rng = np.random.default_rng(1)
  return {
    name: array
    if name.endswith('kernel')
    else array + 0.3 * rng.standard_normal(array.shape, np.float32)
    for name, array in sorted(params.items())
  }


class Trainer:
  """A variant of the train step, and its measurements."""

  def __init__(self, config: ConfigDict, dense: bool):
    # A program from the cache would be loaded instead of compiled.
    jax.config.update('jax_enable_compilation_cache', False)
    self._build = builds.build(config, jax.devices()[:1])
    self._dense = dense
    self._program = None
    self._state = None
    self._batch = make_batch(self._build)
    self._weights = None
    if self._build.needs_lpips:
      self._weights = lpips_weights(config, self._build)

  def compile(self, kind: StepKind) -> Time:
    """Traces and compiles the step; keeps the program for split examples."""
    jax.clear_caches()
    with timed() as result:
      if self._dense:
        program = self._compile_dense()
      else:
        program = self._build.compile(kind, weights=self._weights)
    if kind is StepKind.SPLIT:
      self._program = program
    return result

  def _compile_dense(self):
    build = self._build
    abstract = jax.eval_shape(self._dense_state, build.abstract_state())
    with jax.set_mesh(build.mesh):
      return (
        jax.jit(dense_step(build), donate_argnums=0)
        .lower(abstract, build.abstract_batch(), self._weights)
        .compile()
      )

  def _dense_state(self, old: state.TrainState) -> state.TrainState:
    params = plain_xfactor.unstack(old.params)
    return state.TrainState(old.step, params, self._build.tx.init(params))

  def memory(self) -> dict[str, float]:
    """Returns XLA's memory analysis in MiB; empty if not reported."""
    stats = self._program.memory_analysis()
    if stats is None:
      return {}
    return {
      'XLA temporaries, MiB': temporaries(self._program),
      'XLA arguments, MiB': stats.argument_size_in_bytes / MIB,
    }

  def peak(self) -> float:
    """Returns the peak resident size of the process in MiB."""
    return peak_mib()

  def step(self) -> tuple[Time, dict[str, float]]:
    """Runs a step; returns its time, loss and gradient norm."""
    if self._state is None:
      new = self._build.init()
      params = jax.device_put(perturbed(new.params), self._build.places.params)
      self._state = dataclasses.replace(new, params=params)
      if self._dense:
        self._state = self._dense_state(self._state)
    jax.block_until_ready(self._state)
    with timed() as result:
      self._state, metrics = self._program(
        self._state, self._batch, self._weights
      )
      jax.block_until_ready((self._state, metrics))
    return result, {key: float(metrics[key]) for key in ('loss', 'grad_norm')}


def check_steps_equal(
  metrics: dict[str, dict[str, float]], rounding: float = 1.0
) -> str:
  """Returns a line stating that the first steps agree.

  Args:
    metrics: Loss and gradient norm of the first step of each thing.
    rounding: Factor for the tolerances, which are those of float32.

  Raises:
    Unequal: If losses differ by more than 1e-5 or gradient norms by more than
      one part in 1e4, times `rounding`.
  """
  (_, ours), *others = metrics.items()
  for name, other in others:
    for key, rtol, atol in (('loss', 0, 1e-5), ('grad_norm', 1e-4, 0)):
      if not math.isclose(
        ours[key], other[key], rel_tol=rounding * rtol, abs_tol=rounding * atol
      ):
        raise Unequal(
          f'{key} of the first step is {ours[key]!r} with the token split and '
          f'{other[key]!r} in {name}: they do not compute the same, so their '
          'times cannot be compared'
        )
  worst = max(abs(other['loss'] - ours['loss']) for _, other in others)
  return (
    f'all give the loss {ours["loss"]:.6f} on the first step, within '
    f'{worst:.0e}'
  )


def _trainers(
  config: ConfigDict, stack: contextlib.ExitStack, where: type, baseline: bool
) -> dict[str, Any]:
  """Returns the recipe's step, with full remat if different, and dense.

  The dense step has the recipe's register tokens and, as published, 32.
  """
  full = config.copy_and_resolve_references()
  full.model.remat = 'full'
  plain = full.copy_and_resolve_references()
  plain.model.dtype = 'float32'
  variants = {'split': (config, False)}
  if baseline:
    if config.model.remat != 'full':
      variants['split, full remat'] = (full, False)
    variants['dense reference'] = (plain, True)
    if plain.model.registers != _PUBLISHED_REGISTERS:
      published = plain.copy_and_resolve_references()
      published.model.registers = _PUBLISHED_REGISTERS
      variants[_PUBLISHED] = (published, True)
  return {k: where(stack, Trainer, *v) for k, v in variants.items()}


def run(
  recipe: ConfigDict,
  *,
  repeats: int,
  compiles: int,
  isolate: bool,
  baseline: bool,
) -> list[Table]:
  """Compares compiling and running the train step.

  Args:
    recipe: Recipe of the step; its optimizer is replaced by AdamW.
    repeats: Pairs of steps; 0 to compile only.
    compiles: Pairs of compilations.
    isolate: Whether each variant runs in its own process.
    baseline: Whether the public formulation is also measured.

  Raises:
    Unequal: If the variants do not compute the same.
  """
  recipe = recipe.copy_and_resolve_references()
  recipe.optimizer.name = 'adamw'
  build = builds.build(recipe, jax.devices()[:1])
  with contextlib.ExitStack() as stack:
    trainers = _trainers(recipe, stack, place(isolate), baseline)
    table = Table(
      f'train step: {build.batch} examples of {build.views} views at '
      f'{build.image_size} pixels, one device, {build.model.dtype}, '
      f'{"LPIPS" if build.needs_lpips else "no LPIPS"}, remat '
      f'{recipe.model.remat}',
      list(trainers),
    )
    _measure_compiles(table, trainers, compiles)
    if repeats:
      # The first step is also the warm-up.
      first = {name: call('step')[1] for name, call in trainers.items()}
      if baseline:
        rounding = 1 if is_exact(build.model.dtype) else 500
        # Other registers are other numbers.
        first.pop(_PUBLISHED, None)
        print(check_steps_equal(first, rounding), flush=True)
      _measure_steps(table, trainers, repeats, build)
      for name, call in trainers.items():
        table.add('peak RSS at the end, MiB', name, call('peak'))
  return [table]


def _measure_compiles(table: Table, trainers, compiles: int) -> None:
  for name in alternate(trainers, compiles):
    result = trainers[name]('compile', StepKind.SPLIT)
    table.add('compile, wall s', name, result.wall)
    table.add('compile, CPU s', name, result.cpu)
  for name, call in trainers.items():
    table.add('peak RSS once compiled, MiB', name, call('peak'))
  for _ in range(compiles):
    result = trainers['split']('compile', StepKind.WHOLE)
    table.add('compile the whole program, wall s', 'split', result.wall)
    table.add('compile the whole program, CPU s', 'split', result.cpu)
  for name, call in trainers.items():
    for key, value in call('memory').items():
      table.add(key, name, value)


def _measure_steps(
  table: Table, trainers, repeats: int, build: builds.Build
) -> None:
  # The same model FLOPs for all: masked work does not count.
  work = build.method.flops(build)
  frames = build.batch * build.views
  peak = chips.peak_flops(jax.devices()[0].device_kind)
  for name in alternate(trainers, repeats):
    result, _ = trainers[name]('step')
    table.add('step, wall s', name, result.wall)
    table.add('step, CPU s', name, result.cpu)
    table.add('frames/s', name, frames / result.wall)
    table.add('frames/CPU s', name, frames / result.cpu)
    table.add('model GFLOP/s', name, work / result.wall / 1e9)
    if peak:
      table.add('MFU', name, work / result.wall / peak)
