"""Measures how fast the parts of an XFactor recipe learn motion on posed data.

Trains three times, each from the recipe's initialization and with its
optimizer, data and augmentation; examples are split as in training:

*   only the renderer, with true motions in place of latent poses.
*   only the pose encoder: the first channels of its poses are trained to equal
    the true motions (squared error).
*   both together: the unchanged recipe.

A true motion is the six numbers of `motion.freedoms`, each divided by its
standard deviation; degrees of freedom that hardly vary in the data are 0.
Held-out scores during training: PSNR with the right pose and with that of
another pair, and the share of each degree of freedom that a linear map explains
from the poses (R2). All use pairs of frames as far apart as in the last update.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.measuring import timed
from xfactor.data.pipeline import training as pipeline_training
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import motion
from xfactor.geometry.wander import FREEDOMS
from xfactor.methods import base as methods_base
from xfactor.methods import distances
from xfactor.methods.base import StepKind
from xfactor.methods.xfactor import method as xfactor_method
from xfactor.methods.xfactor import objective as xfactor_objective
from xfactor.metrics import images
from xfactor.nn import sharding
from xfactor.nn.functional import Params
from xfactor.nn.layers import to_float
from xfactor.training import build as builds
from xfactor.training import data, state

BETTER = 'better, %'  # Pairs rendered better with the right pose; chance: 50.
# Thresholds for learned: `BETTER` of the renderer, R2 of a degree of freedom.
# Untrained poses reach an R2 of 0.3, since tilt changes the brightness.
MIN_BETTER, MIN_R2 = 75.0, 0.5

_FITTED, _HELD_OUT = 384, 192  # Pairs of frames.
# Share of the largest rotation or translation that counts as motion: panning
# while looking up also rolls a little.
_LEAST = 0.4
_ROWS = 5  # Tests per training, including one before the first update.
# Required so that both halves share one known motion and a target is rendered.
_NEEDED = {
  'data.contexts': 1,
  'data.offset_prob': 0.0,
  'data.mirror_prob': 0.0,
  'objective.contrast': '',
  'model.pose': 'latent',
}

Row = dict[str, float]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Report:
  """Rows of each training (updates, CPU seconds, scores) and a conclusion."""

  title: str
  rows: dict[str, list[Row]]
  conclusion: str

  def summary(self) -> dict[str, Any]:
    """Returns the numbers, for JSON."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    return self.conclusion


def target_motion(
  batch: methods_base.Batch, draws: xfactor_objective.Samples
) -> jax.Array:
  """Returns the true motions [b, 6] from the references to the targets.

  The first of two views is the reference, since both are equally central; the
  target is the second view (1) or the unmoved first view (0).
  """
  return batch['motions'] * draws.target[:, None]


class ToldRenderer(xfactor_method.XFactor):
  """Trains only the renderer, given the true motion, with the usual loss."""

  def loss(self, network, batch, draws, objective, *, kind, weights):
    views, _ = xfactor_objective.prepare(
      to_float(batch['images']), draws, objective
    )
    true = target_motion(batch, draws)[:, None, None]
    channels = network.config.pose_dim - true.shape[-1]
    # The same for both halves; the reference's pose, zero, comes first.
    poses = jnp.pad(true, ((0, 0), (0, 0), (1, 0), (0, channels)))
    poses = jnp.repeat(poses, 2, axis=1)
    drawn = xfactor_objective.render(network, views[:, :1], poses, draws.order)
    perceptual = self._perceptual(weights, objective)
    return distances.score(drawn, views[:, 1], objective, perceptual)


class ToldEncoder(xfactor_method.XFactor):
  """Trains only the pose encoder to predict the true motion."""

  def loss(self, network, batch, draws, objective, *, kind, weights):
    joint = network.config.joint_encoder
    views = to_float(batch['images'])
    _, sets = xfactor_objective.prepare(views, draws, objective, joint=joint)
    poses = xfactor_objective.encode(network, sets, draws.order)
    true = target_motion(batch, draws)[:, None]
    error = jnp.square(poses[:, :, 1, : true.shape[-1]] - true).sum(-1).mean()
    return error, {'loss': error}


TRAININGS = {
  'renderer': (ToldRenderer(), 'only the renderer, given true motions'),
  'encoder': (ToldEncoder(), 'only the pose encoder, supervised'),
  'joint': (xfactor_method.XFactor(), 'both together, the unchanged recipe'),
}


def train(
  build: builds.Build,
  start: state.TrainState,
  stream: pipeline_training.Pipeline,
  known: Callable[[Arrays], Arrays],
  weights: Params | None,
  points: list[int],
) -> Iterator[tuple[int, float, Params]]:
  """Trains on batches with motions from `known`; yields at `points` (updates).

  Yields:
    Updates done, their CPU seconds (all threads; without compilation and the
    work of the caller) and the parameters, valid until the next iteration.
  """
  put = functools.partial(sharding.to_mesh, build.mesh)
  with jax.set_mesh(build.mesh):
    arguments = build.abstract_state(), put(known(stream.dataset()[0])), weights
    program = build.step(StepKind.SPLIT).lower(*arguments).compile()
  now, done, cpu = jax.tree.map(jnp.copy, start), 0, 0.0
  with contextlib.closing(stream.batches()) as batches:
    for point in points:
      with timed() as time:
        for _ in range(point - done):
          now, _ = program(now, put(known(next(batches))), weights)
        jax.block_until_ready(now)
      done, cpu = point, cpu + time.cpu
      yield done, cpu, now.params


def make_tests(
  build: builds.Build, fitted: Arrays, held_out: Arrays
) -> dict[str, Callable[[Params], Row]]:
  """Returns held-out scores by training; `fitted` fits the linear map of R2."""
  bind, true = build.functional.bind, held_out['motions']
  told = np.pad(true, ((0, 0), (0, build.model.pose_dim - true.shape[1])))

  @jax.jit
  def encode(params, pairs):
    return bind(params).encode_views(to_float(pairs))[:, 1]

  @jax.jit
  def psnr(params, pairs, poses):
    pairs, poses = to_float(pairs), jnp.stack([0 * poses, poses], axis=1)
    drawn = bind(params).render(pairs[:, :1], poses)
    return images.psnr((drawn + 1) / 2, (pairs[:, 1] + 1) / 2)

  def each(function, params, *arrays):
    call = functools.partial(function, params)
    return images.in_batches(call, *arrays, batch=32)

  def drawn(params, poses):
    right = each(psnr, params, held_out['images'], poses)
    other = each(psnr, params, held_out['images'], np.roll(poses, 1, axis=0))
    return {
      'PSNR, dB': float(right.mean()),
      "another's": float(other.mean()),
      BETTER: 100 * float((right > other).mean()),
    }

  def poses_of(params, some):
    return each(encode, params, some['images'])

  def read_off(params):
    known = poses_of(params, fitted), fitted['motions']
    found = motion.explained_variance(*known, poses_of(params, held_out), true)
    return {f'R2 {name}': value for name, value in found.items()}

  return {
    'renderer': lambda params: drawn(params, told),
    'encoder': read_off,
    'joint': lambda params: (
      drawn(params, poses_of(params, held_out)) | read_off(params)
    ),
  }


def conclude(last: Mapping[str, Row]) -> str:
  """Summarizes the last rows of the three trainings in one sentence.

  The renderer has learned if the right motion renders `MIN_BETTER` percent of
  the pairs better than another motion; an encoder, if all R2 reach `MIN_R2`.
  """
  draws = last['renderer'][BETTER] >= MIN_BETTER
  unseen, lost = (_not_learned(last[name]) for name in ('encoder', 'joint'))
  if not lost:
    return 'both together learn all motions: train longer for better pictures'
  facts = (
    f'the renderer {"learns" if draws else "does not learn"} from true motions;'
    f' the encoder {f"does not learn {unseen}" if unseen else "learns"} from '
    f'supervision; both together do not learn {lost}'
  )
  if draws and unseen:
    advice = (
      "change the encoder's initialisation (config.model.tie_qk, layer_scale, "
      'pose_gain) or the optimizer (config.optimizer.name)'
    )
  elif draws:
    advice = 'start with smaller motions (config.data.mix)'
  elif unseen:
    advice = 'smaller motions (config.data.mix) or another optimizer may help'
  else:
    advice = 'change the renderer (config.model.renderer_layers, patch_size)'
  return f'{facts}: {advice}, or train longer (--updates)'


def _not_learned(row: Row) -> str:
  """Lists the degrees of freedom that are not learned; empty if all are."""
  r2 = {k[3:]: value for k, value in row.items() if k.startswith('R2 ')}
  return ' and '.join(k for k, value in r2.items() if not value >= MIN_R2)


def run(recipe: ConfigDict, *, updates: int) -> list[Report]:
  """Trains three times and prints rows during training.

  Args:
    recipe: Stereo XFactor recipe whose data sets have cameras; missing data
      sets in `data.make` are made.
    updates: Updates of each training.

  Raises:
    UserError: If the recipe does not fit, or no camera is known or moves.
  """
  _check(recipe)
  build = builds.build(recipe, jax.devices()[:1])
  weights = None
  if build.needs_lpips:
    weights = builds.load_perceptual(recipe, build.mesh, required=True)
  data.make(recipe)
  stream, fitted, held_out = _open(recipe, updates)
  scale = _scale(fitted)
  known = functools.partial(_with_motions, scale=scale)
  tests = make_tests(build, known(fitted), known(held_out))
  points = np.unique(np.linspace(0, updates, _ROWS).astype(int)).tolist()
  title = f'how fast motion is learned from {build.method.describe(build)}'
  print(title)
  start, rows = build.init(), {name: [] for name in TRAININGS}
  for name, (method, what) in TRAININGS.items():
    print(what, flush=True)
    own = dataclasses.replace(build, method=method)
    course = train(own, start, stream, known, weights, points)
    for step, cpu, params in course:
      row = {'updates': step, 'CPU s': cpu} | tests[name](params)
      rows[name].append(row)
      _show(row, head=step == 0)
  last = {name: found[-1] for name, found in rows.items()}
  return [Report(title, rows, conclude(last))]


def _check(recipe: ConfigDict) -> None:
  for key, needed in _NEEDED.items():
    section, name = key.split('.')
    given = recipe[section].get(name, needed)
    if given != needed:
      raise UserError(
        f'the benchmark learn needs config.{key}={needed!r}, not {given!r}'
      )
  if recipe.model.pose_dim < len(FREEDOMS):
    raise UserError(
      f'the benchmark learn needs config.model.pose_dim of {len(FREEDOMS)} or '
      f'more, not {recipe.model.pose_dim}'
    )


def _open(
  recipe: ConfigDict, updates: int
) -> tuple[pipeline_training.Pipeline, Arrays, Arrays]:
  """Returns the training stream, and batches of training and held-out pairs."""
  split = recipe.eval.split
  for name, part in recipe.data.mix.items():
    for each in (part.split, split):
      store = store_lib.open_split(recipe.data.dir, name, each)
      if not any(store.clip(i).posed for i in range(len(store))):
        raise UserError(
          f'the benchmark learn needs true motions, but {name}/{each} has no '
          'cameras; give a recipe whose data sets have them'
        )
  config = data.open_pipeline(recipe).config
  config = dataclasses.replace(config, cameras=True)
  parts = tuple(dataclasses.replace(x, split=split) for x in config.parts)
  fitted = dataclasses.replace(config, batch_size=_FITTED)
  held_out = dataclasses.replace(config, batch_size=_HELD_OUT, parts=parts)
  return pipeline_training.Pipeline(config), *(
    pipeline_training.Pipeline(x).dataset()[updates] for x in (fitted, held_out)
  )


def _with_motions(batch: Arrays, scale: Any = 1.0) -> Arrays:
  """Returns the arrays of a step and the scaled true motions [b, 6]."""
  motions = [motion.freedoms(*x) for x in batch['world_to_camera']]
  arrays = {name: batch[name] for name in xfactor_method.XFactor.arrays}
  return arrays | {'motions': np.float32(motions * np.asarray(scale))}


def _scale(fitted: Arrays) -> np.ndarray:
  """Returns factors [6] that give unit deviation; 0 for what hardly varies."""
  spread = _with_motions(fitted)['motions'].std(0)
  least = np.repeat(_LEAST * spread.reshape(2, 3).max(1), 3)
  moving = spread > np.maximum(least, 1e-4)
  if not moving.any():
    raise UserError('the benchmark learn needs cameras that move; none does')
  return moving / np.maximum(spread, 1e-8)


def _show(row: Row, head: bool) -> None:
  """Prints a row, with the names of the columns before the first one."""
  if head:
    print(''.join(f'{name:>11}' for name in row))
  updates, cpu, *scores = row.values()
  cells = [f'{updates:,}', f'{cpu:.1f}', *(f'{x:.2f}' for x in scores)]
  print(''.join(f'{cell:>11}' for cell in cells), flush=True)
