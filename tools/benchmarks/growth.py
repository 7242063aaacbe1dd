"""How step time and memory grow with batch, views, image size and width.

One of them at a time, around the recipe. Beside what is measured stands what
analytic FLOPs say at the rate of the recipe's own step, also of sizes that are
not measured. Wider models have more heads, not wider ones.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from benchmarks.measuring import Table, alternate, temporaries, timed
from benchmarks.step import make_batch
from xfactor.errors import UserError
from xfactor.nn.functional import Params
from xfactor.training import build as builds
from xfactor.training import chips
from xfactor.training.state import TrainState

WALL, PREDICTED = 'step, wall s', 'as FLOPs, wall s'
MEMORY = 'XLA temporaries, MiB'
CONTEXTS = 'context views'
# Of the recipe's own, and context views: predicted, not measured.
_FURTHER = 4, 8
_FURTHER_CONTEXTS = 8, 16
# Of the free memory: a program's needs are XLA's estimate.
_SHARE = 0.9


@dataclasses.dataclass
class Curve(Table):
  """A table of what grows, its columns the sizes; the first is the recipe's.

  Attributes:
    axis: What grows.
    sizes: Column to size.
  """

  axis: str = ''
  sizes: dict[str, int] = dataclasses.field(default_factory=dict)

  def points(self, row: str) -> list[tuple[int, float]]:
    """Sizes and medians, of the columns that have them, by size."""
    samples = self.rows.get(row, {})
    return sorted(
      (self.sizes[thing], float(np.median(values)))
      for thing, values in samples.items()
    )


class Point:
  """The train step at one size."""

  def __init__(self, config: ConfigDict):
    self.build = builds.build(config, jax.devices()[:1])
    self.kind = self.build.step_kinds()[0]
    self._program = None
    self._batch = None

  @property
  def work(self) -> int:
    """Model FLOPs of a step."""
    return self.build.method.flops(self.build, self.kind)

  def compile(self, weights: Params | None) -> int:
    """Compiles; returns the bytes it needs to run, 0 if XLA does not say.

    Raises:
      MemoryError: If XLA knows that it cannot run.
    """
    try:
      self._program = self.build.compile(self.kind, weights=weights)
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      raise MemoryError(str(e).splitlines()[0]) from e
    stats = self._program.memory_analysis()
    if stats is None:
      return 0
    return stats.temp_size_in_bytes + stats.argument_size_in_bytes

  def temporaries(self) -> float | None:
    """XLA's account of the program, MiB; None where there is none."""
    return self._program and temporaries(self._program)

  def step(self, state: TrainState, weights: Params | None) -> TrainState:
    """Makes a step; the batch stays on the device."""
    if self._batch is None:
      self._batch = make_batch(self.build)
    state, _ = self._program(state, self._batch, weights)
    return state


class States:
  """Train states by width: all steps of a width go on with the same one."""

  def __init__(self):
    self._states = {}

  def step(self, point: Point, weights: Params | None) -> None:
    """Makes a step, and waits for it."""
    width = point.build.model.features
    state = self._states.pop(width, None)
    state = point.build.init() if state is None else state
    self._states[width] = jax.block_until_ready(point.step(state, weights))


def own_sizes(recipe: ConfigDict) -> dict[str, tuple[int, int]]:
  """What grows to its size in the recipe, and what sizes are multiples of."""
  data, model = recipe.data, recipe.model
  return {
    'batch': (data.batch, recipe.train.accumulate),
    CONTEXTS: (data.contexts, 1),
    'image size': (data.image_size, 2 * model.patch_size),
    'width': (model.features, model.features // model.heads),
  }


def resized(recipe: ConfigDict, axis: str, size: int) -> ConfigDict:
  """The recipe with one thing grown."""
  config = recipe.copy_and_resolve_references()
  data, model = config.data, config.model
  if axis == 'batch':
    data.batch = size
  elif axis == CONTEXTS:
    data.contexts = size
  elif axis == 'width':
    model.heads = size * model.heads // model.features
    model.features = size
  else:
    if data.image_width:
      wide = data.image_width * size / data.image_size
      data.image_width = _multiple(wide, 2 * model.patch_size)
    data.image_size = size
  return config


def _multiple(value: float, unit: int) -> int:
  return unit * max(1, round(value / unit))


def available_bytes() -> int:
  """Of the first device's memory, those that are free."""
  stats = jax.devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
    if line.startswith('MemAvailable:'):
      return 1024 * int(line.split()[1])
  return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def run(
  recipe: ConfigDict,
  *,
  factors: Sequence[float],
  contexts: Sequence[int],
  repeats: int,
  out: str | os.PathLike[str] | None,
) -> list[Table]:
  """Measures the train step of the recipe and of others around it.

  Args:
    recipe: With latent poses.
    factors: What the recipe's batch, image size and width are multiplied by.
    contexts: Numbers of context views.
    repeats: Steps at each size.
    out: A picture of all; see `draw`.

  Raises:
    UserError: If the recipe's own step does not fit, or `out` cannot be
      written.
  """
  # A program from the cache would be loaded instead of compiled.
  jax.config.update('jax_enable_compilation_cache', False)
  if out is not None:
    _save(Figure(), out)  # It fails now, or not in the end.
  own = Point(recipe)
  weights = None
  if own.build.needs_lpips:
    weights = builds.load_perceptual(recipe, own.build.mesh, required=True)
  if problem := _compile(own, weights):
    raise UserError(
      f"the recipe's own step does not fit ({problem}); give a smaller --batch"
    )
  states, curves = States(), []
  for axis, (base, unit) in own_sizes(recipe).items():
    if axis == CONTEXTS:
      sizes, further = contexts, _FURTHER_CONTEXTS
    else:
      sizes, further = (
        [_multiple(base * x, unit) for x in some]
        for some in (factors, _FURTHER)
      )
    others = sorted({*sizes, *further} - {base})
    names = {f'{axis} {x}': x for x in (base, *others)}
    points = {
      name: own if size == base else Point(resized(recipe, axis, size))
      for name, size in names.items()
    }
    curve = Curve(
      f'{axis}: train step around {own.build.method.describe(own.build)}, '
      f'width {recipe.model.features}, {recipe.model.dtype}',
      list(points),
      axis=axis,
      sizes=names,
    )
    measured = {
      name: points[name] for name, x in names.items() if x in (base, *sizes)
    }
    _measure(curve, points, measured, states, weights, repeats)
    curves.append(curve)
  if out is not None:
    _save(draw(curves), out)
  return curves


def _compile(point: Point, weights: Params | None) -> str:
  """Compiles; returns why it cannot be run, if it cannot."""
  free = available_bytes()
  try:
    needed = point.compile(weights)
  except MemoryError as e:
    return str(e)
  if needed <= _SHARE * free:
    return ''
  return f'it needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} are free'


def _measure(
  curve: Curve,
  points: dict[str, Point],
  measured: dict[str, Point],
  states: States,
  weights: Params | None,
  repeats: int,
) -> None:
  """Fills the curve: `points` are its columns, of which some are measured."""
  base = curve.things[0]
  own = points[base]
  fitting = {}
  for name, point in measured.items():
    problem = '' if point is own else _compile(point, weights)
    if problem:
      print(f'left out: {name}: {problem}', flush=True)
      continue
    fitting[name] = point
    states.step(point, weights)  # The warm-up.
  for name in alternate(fitting, repeats):
    with timed() as result:
      states.step(fitting[name], weights)
    curve.add(WALL, name, result.wall)
    curve.add('step, CPU s', name, result.cpu)
  rate = own.work / np.median(curve.rows[WALL][base])
  for name, point in points.items():
    curve.add(PREDICTED, name, point.work / rate)
    curve.add('model GFLOP', name, point.work / 1e9)
  # A share of the bfloat16 peak says nothing of a float32 model.
  half = own.build.model.dtype == 'bfloat16'
  peak = half and chips.peak_flops(jax.devices()[0].device_kind)
  for name, point in fitting.items():
    for wall in curve.rows[WALL][name]:
      curve.add('model GFLOP/s', name, point.work / wall / 1e9)
      if peak:
        curve.add('MFU', name, point.work / wall / peak)
  # Also of programs that there is no room to run.
  for name, point in measured.items():
    mib = point.temporaries()
    if mib is not None:
      curve.add(MEMORY, name, mib)


def draw(curves: Sequence[Curve]) -> Figure:
  """Draws a panel for each: time and what FLOPs predict; memory, at the right.

  All axes are logarithmic, those of time and memory alike.
  """
  figure = Figure((9, 6.5), layout='constrained')
  FigureCanvasAgg(figure)
  handles = {}
  for curve, time in zip(curves, figure.subplots(2, 2).flat, strict=True):
    memory = time.twinx()
    for axes, row, style, colour, label in (
      (time, WALL, 'o-', 'tab:blue', 'step time'),
      (time, PREDICTED, '--', 'tab:gray', "as FLOPs at the recipe's rate"),
      (memory, MEMORY, 's-', 'tab:orange', 'XLA temporaries'),
    ):
      if points := curve.points(row):
        (handles[label],) = axes.plot(
          *zip(*points, strict=True), style, color=colour, markersize=5
        )
    sizes = sorted(curve.sizes.values())
    time.set(xscale='log', yscale='log', xlabel=curve.axis, ylabel='seconds')
    time.set_xticks(sizes, labels=[str(x) for x in sizes])
    time.set_xticks([], minor=True)
    time.axvline(curve.sizes[curve.things[0]], color='black', alpha=0.2)
    time.grid(alpha=0.3)
    memory.set(yscale='log', ylabel='MiB')
    own = curve.things[0]
    if own in curve.rows.get(MEMORY, {}):
      # The same slope is the same growth, and the recipe's points coincide.
      scale = np.median(curve.rows[MEMORY][own])
      scale /= np.median(curve.rows[WALL][own])
      memory.set_ylim(scale * np.array(time.get_ylim()))
  figure.legend(
    handles.values(), handles.keys(), loc='outside lower center', ncols=3
  )
  return figure


def _save(figure: Figure, out: str | os.PathLike[str]) -> None:
  try:
    figure.savefig(out)
  except (OSError, ValueError) as error:
    raise UserError(
      f'cannot draw {out} ({error}); give --out a file that ends in .png'
    ) from error
