"""The recipe's train step with the token split against the public formulation.

That is tests/reference.py: dense attention under a segment mask, float32,
unrolled and rematerialised layers, a switch an image for the augmentation; with
the same (perturbed) weights, batch, draws and optimizer, without LPIPS.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks.measuring import (
  Table,
  Time,
  Unequal,
  alternate,
  peak_mib,
  place,
  timed,
)
from xfactor.errors import UserError
from xfactor.models import layers
from xfactor.models.functional import Params
from xfactor.training import build as builds
from xfactor.training import flops, objectives, sharding, state, step

ROOT = pathlib.Path(__file__).resolve().parents[2]

_MIB = 2**20


@functools.cache
def load_reference():
  """Returns tests/reference.py, which is in no installed package."""
  path = ROOT / 'tests/reference.py'
  spec = importlib.util.spec_from_file_location('xfactor_reference', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def dense_step(build: builds.Build) -> Callable:
  """The train step in the public formulation; arguments as `Build.step`'s."""
  reference = load_reference()
  objective, model = build.objective, build.model
  grid = (build.image_size // model.patch_size,) * 2

  def loss(params, images, draws):
    rows = jnp.arange(len(images))
    target = draws.views[rows, draws.target]
    order = draws.views.at[:, -1].set(target)
    views = layers.to_float(images[rows[:, None], order])
    first = jnp.broadcast_to(views[:, :1], views[:, 1:].shape)
    pairs = jnp.stack([first, views[:, 1:]], 2)
    seen = reference.jitter_and_blur(
      pairs.reshape(-1, *pairs.shape[2:]),
      jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), draws.augmentation),
      objective.augmentation,
    )
    mask = reference.mask_of(draws.order, grid)
    l1 = reference.masked_l1(
      params, model, views, seen.reshape(pairs.shape), mask
    )
    return objective.l1_weight * l1

  def dense(old: state.TrainState, batch, _):
    key = jax.random.fold_in(step.root_keys(build.seed)[1], old.step)
    draws = objectives.draw(key, batch['frames'], objective)
    value, grads = jax.value_and_grad(loss)(old.params, batch['images'], draws)
    updates, moments = build.tx.update(grads, old.opt_state, old.params)
    params = optax.apply_updates(old.params, updates)
    new = state.TrainState(old.step + 1, params, moments)
    return new, {'loss': value, 'grad_norm': optax.tree.norm(grads)}

  return dense


def perturbed(params: Params) -> Params:
  """Weights away from the initial ones, where poses hardly touch the loss.

  Two programs that deal the quadrants differently would then pass for equal.
  """
  rng = np.random.default_rng(1)
  return {
    name: array
    if name.endswith('kernel')
    else array + 0.3 * rng.standard_normal(array.shape, np.float32)
    for name, array in sorted(params.items())
  }


class Trainer:
  """One way to compute the train step, and its measurements."""

  def __init__(self, config: ConfigDict, dense: bool):
    # A program from the cache would be loaded instead of compiled.
    jax.config.update('jax_enable_compilation_cache', False)
    self._build = builds.build(config, jax.devices()[:1])
    self._dense = dense
    self._program = None
    self._state = None
    shapes = self._build.abstract_batch()
    rng = np.random.default_rng(0)
    batch = {
      'images': rng.integers(0, 256, shapes['images'].shape, np.uint8),
      'frames': np.tile(
        np.arange(self._build.views, dtype=np.int32), (self._build.batch, 1)
      ),
    }
    self._batch = sharding.to_mesh(self._build.mesh, batch)

  def compile(self, whole: bool) -> Time:
    """Traces and compiles the step; keeps that of split examples."""
    jax.clear_caches()
    with timed() as result:
      if self._dense:
        program = self._compile_dense()
      else:
        program = self._build.compile(whole=whole, weights=None)
    if not whole:
      self._program = program
    return result

  def _compile_dense(self):
    build = self._build
    with jax.set_mesh(build.mesh):
      return (
        jax.jit(dense_step(build), donate_argnums=0)
        .lower(build.abstract_state(), build.abstract_batch(), None)
        .compile()
      )

  def memory(self) -> dict[str, float]:
    """XLA's account of the program, MiB; empty where it gives none."""
    stats = self._program.memory_analysis()
    if stats is None:
      return {}
    return {
      'XLA temporaries, MiB': stats.temp_size_in_bytes / _MIB,
      'XLA arguments, MiB': stats.argument_size_in_bytes / _MIB,
    }

  def peak(self) -> float:
    """Largest resident size of the process so far, MiB."""
    return peak_mib()

  def step(self) -> tuple[Time, dict[str, float]]:
    """Makes a step; returns its time, loss and gradient norm."""
    if self._state is None:
      new = self._build.init()
      params = jax.device_put(perturbed(new.params), self._build.places.params)
      self._state = dataclasses.replace(new, params=params)
    jax.block_until_ready(self._state)
    with timed() as result:
      self._state, metrics = self._program(self._state, self._batch, None)
      jax.block_until_ready((self._state, metrics))
    return result, {key: float(metrics[key]) for key in ('loss', 'grad_norm')}


def check_steps_equal(metrics: dict[str, dict[str, float]]) -> str:
  """Returns a line that the things' first steps agree.

  Raises:
    Unequal: If a loss is off by 1e-5 or a gradient norm by a part in 1e4.
  """
  (_, ours), *others = metrics.items()
  for name, other in others:
    for key, rtol, atol in (('loss', 0, 1e-5), ('grad_norm', 1e-4, 0)):
      if not math.isclose(ours[key], other[key], rel_tol=rtol, abs_tol=atol):
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


def _step_config(recipe: ConfigDict) -> ConfigDict:
  """The recipe as it is compared: without LPIPS, on examples that are split.

  Raises:
    UserError: If there is no dense reference for it.
  """
  config = recipe.copy_and_resolve_references()
  config.objective.lpips_weight = 0.0
  if config.model.dtype != 'float32':
    raise UserError(
      f'config.model.dtype={config.model.dtype!r}: the reference is float32; '
      'give --config.model.dtype=float32'
    )
  return config


def _trainers(
  config: ConfigDict, stack: contextlib.ExitStack, where: type
) -> dict[str, Any]:
  """The recipe's step; the same with the reference's memory policy; dense."""
  full = config.copy_and_resolve_references()
  full.model.remat = 'full'
  variants = {'split': (config, False)}
  if config.model.remat != 'full':
    variants['split, full remat'] = (full, False)
  variants['dense reference'] = (full, True)
  return {k: where(stack, Trainer, *v) for k, v in variants.items()}


def run(
  recipe: ConfigDict, *, repeats: int, compiles: int, isolate: bool
) -> list[Table]:
  """Compares compiling and running the train step.

  Raises:
    Unequal: If the two do not compute the same.
    UserError: If there is no reference for the recipe.
  """
  config = _step_config(recipe)
  build = builds.build(config, jax.devices()[:1])
  with contextlib.ExitStack() as stack:
    trainers = _trainers(config, stack, place(isolate))
    table = Table(
      f'train step: {build.batch} examples of {build.views} views at '
      f'{build.image_size} pixels, one device, no LPIPS, remat '
      f'{config.model.remat}',
      list(trainers),
    )
    _measure_compiles(table, trainers, compiles)
    # The first step is also the warm-up.
    first = {name: call('step')[1] for name, call in trainers.items()}
    print(check_steps_equal(first), flush=True)
    _measure_steps(table, trainers, repeats, build)
    for name, call in trainers.items():
      table.add('peak RSS at the end, MiB', name, call('peak'))
  return [table]


def _measure_compiles(table: Table, trainers, compiles: int) -> None:
  for name in alternate(trainers, compiles):
    result = trainers[name]('compile', False)
    table.add('compile, wall s', name, result.wall)
    table.add('compile, CPU s', name, result.cpu)
  for name, call in trainers.items():
    table.add('peak RSS once compiled, MiB', name, call('peak'))
  for _ in range(compiles):
    result = trainers['split']('compile', True)
    table.add('compile the whole program, wall s', 'split', result.wall)
    table.add('compile the whole program, CPU s', 'split', result.cpu)
  for name, call in trainers.items():
    for key, value in call('memory').items():
      table.add(key, name, value)


def _measure_steps(
  table: Table, trainers, repeats: int, build: builds.Build
) -> None:
  # The same useful work for all: what masks hide is no model FLOP.
  work = build.family.flops(build)
  frames = build.batch * build.views
  peak = flops.peak_flops(jax.devices()[0].device_kind)
  for name in alternate(trainers, repeats):
    result, _ = trainers[name]('step')
    table.add('step, wall s', name, result.wall)
    table.add('step, CPU s', name, result.cpu)
    table.add('frames/s', name, frames / result.wall)
    table.add('frames/CPU s', name, frames / result.cpu)
    table.add('model GFLOP/s', name, work / result.wall / 1e9)
    if peak:
      table.add('MFU', name, work / result.wall / peak)
