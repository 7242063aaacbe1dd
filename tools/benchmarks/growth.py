"""Measures how step time and memory grow with batch, views, size and width.

Changes one of them at a time, starting from the recipe. Also lists the time
predicted from analytic FLOPs at the rate of the recipe's step, including for
sizes that are not measured. Wider models have more heads, not wider heads.
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
# Multiples of the recipe's sizes, and context views: predicted, not measured.
_FURTHER = 4, 8
_FURTHER_CONTEXTS = 8, 16
# Usable share of the free memory: XLA only estimates what a program needs.
_SHARE = 0.9


@dataclasses.dataclass
class Curve(Table):
  """A table with one column per size; the first is the recipe's.

  Attributes:
    axis: Quantity that grows.
    sizes: Size of each column.
  """

  axis: str = ''
  sizes: dict[str, int] = dataclasses.field(default_factory=dict)

  def points(self, row: str) -> list[tuple[int, float]]:
    """Returns sizes and medians of the measured columns, sorted by size."""
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
    """Compiles; returns the bytes needed to run, 0 if XLA does not report them.

    Raises:
      MemoryError: If XLA reports that the program cannot run.
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
    """Returns XLA's temporaries in MiB; None if not reported."""
    return self._program and temporaries(self._program)

  def step(self, state: TrainState, weights: Params | None) -> TrainState:
    """Runs a step; the batch stays on the device."""
    if self._batch is None:
      self._batch = make_batch(self.build)
    state, _ = self._program(state, self._batch, weights)
    return state


class States:
  """Train states by width; all steps of a width share one state."""

  def __init__(self):
    self._states = {}

  def step(self, point: Point, weights: Params | None) -> None:
    """Runs a step and waits for it."""
    width = point.build.model.features
    state = self._states.pop(width, None)
    state = point.build.init() if state is None else state
    self._states[width] = jax.block_until_ready(point.step(state, weights))


def own_sizes(recipe: ConfigDict) -> dict[str, tuple[int, int]]:
  """Returns the recipe's size of each axis and the unit of its sizes."""
  data, model = recipe.data, recipe.model
  return {
    'batch': (data.batch, recipe.train.accumulate),
    CONTEXTS: (data.contexts, 1),
    'image size': (data.image_size, 2 * model.patch_size),
    'width': (model.features, model.features // model.heads),
  }


def resized(recipe: ConfigDict, axis: str, size: int) -> ConfigDict:
  """Returns the recipe with one axis resized."""
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
  """Returns the free memory of the first device."""
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
  """Measures the train step of the recipe and of resized recipes.

  Args:
    recipe: Recipe with latent poses.
    factors: Factors for the recipe's batch, image size and width.
    contexts: Numbers of context views.
    repeats: Steps at each size.
    out: Path of a plot of all curves, see `draw`; None for no plot.

  Raises:
    UserError: If the recipe's own step does not fit, or `out` cannot be
      written.
  """
  # A program from the cache would be loaded instead of compiled.
  jax.config.update('jax_enable_compilation_cache', False)
  if out is not None:
    _save(Figure(), out)  # Fails early if `out` cannot be written.
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
  """Compiles; returns why the step cannot run, or an empty string."""
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
  """Fills the curve; `points` are all columns, `measured` those to run."""
  base = curve.things[0]
  own = points[base]
  fitting = {}
  for name, point in measured.items():
    problem = '' if point is own else _compile(point, weights)
    if problem:
      print(f'skipped: {name}: {problem}', flush=True)
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
  # MFU is relative to the bfloat16 peak: meaningless for float32 models.
  half = own.build.model.dtype == 'bfloat16'
  peak = half and chips.peak_flops(jax.devices()[0].device_kind)
  for name, point in fitting.items():
    for wall in curve.rows[WALL][name]:
      curve.add('model GFLOP/s', name, point.work / wall / 1e9)
      if peak:
        curve.add('MFU', name, point.work / wall / peak)
  # Also for programs that do not fit.
  for name, point in measured.items():
    mib = point.temporaries()
    if mib is not None:
      curve.add(MEMORY, name, mib)


def draw(curves: Sequence[Curve]) -> Figure:
  """Plots one panel per curve: time and predicted time; memory on the right.

  All axes are logarithmic, with the same scale for time and memory.
  """
  figure = Figure((9, 6.5), layout='constrained')
  FigureCanvasAgg(figure)
  handles = {}
  for curve, time in zip(curves, figure.subplots(2, 2).flat, strict=True):
    memory = time.twinx()
    for axes, row, style, colour, label in (
      (time, WALL, 'o-', 'tab:blue', 'step time'),
      (time, PREDICTED, '--', 'tab:gray', "FLOPs at the recipe's rate"),
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
      # Equal slopes then mean equal growth; the recipe's points coincide.
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
