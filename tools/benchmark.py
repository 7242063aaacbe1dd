"""Measures the train step and the input pipeline against plain versions.

  python tools/benchmark.py [step] [pipeline] [--config=configs/tiny.py]

`step`: the recipe's train step with the token split against the public
formulation (tests/reference.py: dense attention under a segment mask, float32,
unrolled and rematerialised layers, a switch an image for the augmentation) with
the same (perturbed) weights, batch, draws and optimizer, without LPIPS.
`pipeline`: the training pipeline on records against the same frames read at
training time from loose JPEG and PNG files with PIL.

Both are first checked to compute the same. Then runs alternate, and every ratio
is that of two neighbouring runs: a table shows medians, and the median ratio to
the first column with its smallest and largest. CPU time, of all threads, is the
steadier number on a busy machine. Exit codes: 0 measured, 1 the two sides do
not compute the same, 2 bad input (one line on stderr says what).
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import multiprocessing
import os
import pathlib
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from PIL import Image, ImageOps

from xfactor import cli
from xfactor.data import convert, pipeline, records
from xfactor.data.sources import synthetic
from xfactor.data.views import Views
from xfactor.errors import UserError
from xfactor.models.functional import Params
from xfactor.training import build as builds
from xfactor.training import flops, objectives, sharding, state, step

ROOT = pathlib.Path(__file__).resolve().parents[1]

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The recipe; configs/tiny.py by default.', lock_config=True
)
_REPEATS = flags.DEFINE_integer('repeats', 9, 'Pairs of runs.', lower_bound=1)
_COMPILES = flags.DEFINE_integer(
  'compiles', 2, 'Pairs of compilations.', lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  'batch', None, "Examples of an update; the recipe's by default.", 1
)
_SIZES = flags.DEFINE_list(
  'sizes', ['256', '64'], 'Pixels of the frames that `pipeline` reads.'
)
_ISOLATE = flags.DEFINE_bool(
  'isolate',
  True,
  'A process for each thing measured, so that memory peaks are its own; '
  'never on TPUs, which serve one process.',
)
_JSON = flags.DEFINE_string('json', None, 'File for the numbers.')

# Frames that a run of `pipeline` reads, at least.
_FRAMES = 512
_MIB = 2**20


class Unequal(Exception):
  """The two sides of a comparison do not compute the same."""


# ==============================================================================
# Measuring and showing
# ==============================================================================


@dataclasses.dataclass
class Table:
  """Samples of several quantities for several things; the first is ours.

  Attributes:
    title: What is compared.
    things: Names, in the order of the columns.
    rows: Quantity to the samples of each thing that has it.
  """

  title: str
  things: list[str]
  rows: dict[str, dict[str, list[float]]] = dataclasses.field(
    default_factory=dict
  )

  def add(self, row: str, thing: str, value: float) -> None:
    """Appends a sample; the n-th ones of all things are neighbours in time."""
    self.rows.setdefault(row, {}).setdefault(thing, []).append(float(value))

  def ratios(self, row: str, thing: str) -> list[float]:
    """Returns this thing's samples, each over its neighbour among ours."""
    samples = self.rows[row]
    if thing == self.things[0] or not {thing, self.things[0]} <= set(samples):
      return []
    pairs = zip(samples[thing], samples[self.things[0]], strict=True)
    return [value / ours for value, ours in pairs]

  def summary(self) -> dict[str, Any]:
    """Returns the numbers of the table, for JSON."""
    rows = {
      row: {
        thing: {'median': float(np.median(values)), 'samples': values}
        | _spread(self.ratios(row, thing))
        for thing, values in samples.items()
      }
      for row, samples in self.rows.items()
    }
    return {'title': self.title, 'things': self.things, 'rows': rows}

  def __str__(self) -> str:
    ours, *others = self.things
    cells = [['', ours]]
    cells[0] += [x for thing in others for x in (thing, f'/ {ours}')]
    for row, samples in self.rows.items():
      cells.append([row, _number(samples.get(ours))])
      for thing in others:
        cells[-1].append(_number(samples.get(thing)))
        cells[-1].append(_ratio(self.ratios(row, thing)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
      '  '.join(
        [line[0].ljust(widths[0])]
        + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
      )
      for line in cells
    ]
    return '\n'.join([self.title, *lines])


def _spread(ratios: list[float]) -> dict[str, float]:
  if not ratios:
    return {}
  return {
    'ratio': float(np.median(ratios)),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
  }


def _number(values: list[float] | None) -> str:
  if values is None:
    return '-'
  median = float(np.median(values))
  return f'{median:,.0f}' if abs(median) >= 1000 else f'{median:.3g}'


def _ratio(ratios: list[float]) -> str:
  if not ratios:
    return ''
  median, low, high = _spread(ratios).values()
  if len(ratios) == 1:
    return f'{median:.2f}'
  return f'{median:.2f} ({low:.2f}..{high:.2f})'


def alternate(things: Iterable[Any], repeats: int) -> Iterable[Any]:
  """Yields all things `repeats` times, in turns; every second turn backwards.

  Whatever drifts meanwhile then favours none of them.
  """
  things = list(things)
  for turn in range(repeats):
    yield from things if turn % 2 == 0 else reversed(things)


@dataclasses.dataclass
class Time:
  """What `timed` measured: seconds by the clock and of all threads' work."""

  wall: float = 0.0
  cpu: float = 0.0


@contextlib.contextmanager
def timed():
  """Measures the block; the result is complete once it is left."""
  result = Time()
  wall, cpu = time.perf_counter(), time.process_time()
  yield result
  result.wall = time.perf_counter() - wall
  result.cpu = time.process_time() - cpu


def peak_mib() -> float:
  """Largest resident size that this process had, MiB.

  Linux only: the system's `ru_maxrss` would include the parent's size at the
  time of the fork.
  """
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
  """What the numbers were measured on."""
  cpuinfo = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  models = [x.split(':')[1].strip() for x in cpuinfo if 'model name' in x]
  device = jax.devices()[0]
  return {
    'cpu': models[0] if models else platform.machine(),
    'cores': len(os.sched_getaffinity(0)),
    'device': device.device_kind,
    'platform': device.platform,
    'jax': jax.__version__,
    'python': platform.python_version(),
    'load': os.getloadavg()[0],
  }


# ==============================================================================
# Processes
# ==============================================================================

_subject: Any = None


def _install(make: Callable, *args: Any) -> None:
  global _subject
  _subject = make(*args)


def _call(method: str, *args: Any) -> Any:
  return getattr(_subject, method)(*args)


class Remote:
  """An object in a process of its own, called by method name."""

  def __init__(self, stack: contextlib.ExitStack, make: Callable, *args: Any):
    self._pool = stack.enter_context(
      futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context('spawn')
      )
    )
    self._pool.submit(_install, make, *args).result()

  def __call__(self, method: str, *args: Any) -> Any:
    return self._pool.submit(_call, method, *args).result()


class Local:
  """The same in this process."""

  def __init__(self, _: contextlib.ExitStack, make: Callable, *args: Any):
    self._subject = make(*args)

  def __call__(self, method: str, *args: Any) -> Any:
    return getattr(self._subject, method)(*args)


def place(isolate: bool) -> type[Remote] | type[Local]:
  """Returns where to make what is measured."""
  return Remote if isolate and jax.default_backend() != 'tpu' else Local


# ==============================================================================
# The train step
# ==============================================================================


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
    views = step.to_float(images)
    is_self = (draws.target == 0)[:, None, None, None, None]
    of_pair = jax.tree.map(lambda x: x[:, 0], draws.augmentation)
    target = jnp.where(is_self, views[:, :1], views[:, 1:])
    views = jnp.concatenate([views[:, :1], target], 1)
    seen = reference.jitter_and_blur(views, of_pair, objective.augmentation)
    mask = reference.mask_of(draws.order, grid)
    l1 = reference.stereo_l1(params, model, views, seen, mask)
    return objective.l1_weight * l1

  def dense(old: state.TrainState, images, _):
    key = jax.random.fold_in(step.root_keys(build.seed)[1], old.step)
    draws = objectives.draw(key, *images.shape[:2], objective)
    value, grads = jax.value_and_grad(loss)(old.params, images, draws)
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
    shape = self._build.abstract_batch().shape
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    self._images = sharding.to_mesh(self._build.mesh, images)

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
    """Makes a step; returns its time and metrics."""
    if self._state is None:
      new = self._build.init()
      params = jax.device_put(perturbed(new.params), self._build.places.params)
      self._state = dataclasses.replace(new, params=params)
    jax.block_until_ready(self._state)
    with timed() as result:
      self._state, metrics = self._program(self._state, self._images, None)
      jax.block_until_ready((self._state, metrics))
    return result, {key: float(value) for key, value in metrics.items()}


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
  if config.data.contexts != 1:
    raise UserError(
      f'config.data.contexts={config.data.contexts}: the reference draws from '
      'one context; give --config.data.contexts=1'
    )
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


def benchmark_step(
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
  work = flops.train_step(
    build.model,
    batch=build.batch,
    views=build.views,
    height=build.image_size,
    width=build.image_size,
  )
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


# ==============================================================================
# The input pipeline
# ==============================================================================


class Loose:
  """Loads an example from loose files: the same frames as the pipeline's."""

  def __init__(self, folder: str, extension: str, size: int):
    self._folder = folder
    self._extension = extension
    self._size = size

  def __call__(self, chosen: tuple[int, list[int]]) -> dict[str, np.ndarray]:
    clip, frames = chosen
    return {'images': np.stack([self._read(clip, i) for i in frames])}

  def _read(self, clip: int, frame: int) -> np.ndarray:
    path = os.path.join(
      self._folder, f'{clip:04d}', f'{frame:04d}.{self._extension}'
    )
    with Image.open(path) as image:
      square = ImageOps.fit(image.convert('RGB'), (self._size, self._size))
      return np.asarray(square)


class Reader:
  """One way to read the frames of training batches, and its measurements."""

  def __init__(
    self,
    settings: pipeline.DataConfig,
    chosen: list[tuple[int, list[int]]],
    extension: str | None,
  ):
    """Prepares reading.

    Args:
      settings: The pipeline's.
      chosen: Clip and frames of each example, as the pipeline chooses them.
      extension: Of the loose files, or None for the pipeline itself.
    """
    self._settings = settings
    self._chosen = chosen
    self._extension = extension

  def read(self, threads: int) -> tuple[Time, np.ndarray]:
    """Reads all batches, with threads ahead or, if 0, one by one.

    Returns:
      The time, and the images of the first batch.
    """
    batches = self._open(threads)
    first = None
    with timed() as result:
      for _ in range(len(self._chosen) // self._settings.batch_size):
        images = next(batches)['images']
        first = images if first is None else first
    batches.close()
    return result, first

  def peak(self) -> float:
    """Largest resident size of the process so far, MiB."""
    return peak_mib()

  def _open(self, threads: int):
    settings = dataclasses.replace(self._settings, threads=threads)
    if self._extension is None:
      return pipeline.Pipeline(settings).batches()
    load = Loose(settings.data_dir, self._extension, settings.image_size)
    dataset = grain.MapDataset.source(self._chosen).map(load)
    return iter(
      dataset.batch(settings.batch_size).to_iter_dataset(
        grain.ReadOptions(
          num_threads=threads,
          prefetch_buffer_size=settings.prefetch if threads else 0,
        )
      )
    )


def make_files(folder: str, size: int) -> dict[str, float]:
  """Makes records of synthetic scenes and the same frames as loose files.

  Returns:
    Mean KiB of a frame, by kind of file.
  """
  source = synthetic.Source(
    scenes=6, frames=12, size=size, test_fraction=0.0, with_depth=False
  )
  convert.convert(source, folder, quiet=True)
  store = records.open_split(folder, source.name, 'train')
  sizes = {'jpg': [], 'png': []}
  for clip in range(len(store)):
    loose = pathlib.Path(folder) / f'{clip:04d}'
    loose.mkdir()
    jpegs = store.clip_frames(clip, range(int(store.num_frames[clip])))
    for number, jpeg in enumerate(jpegs):
      path = loose / f'{number:04d}.jpg'
      path.write_bytes(jpeg)
      with Image.open(path) as image:
        image.save(path.with_suffix('.png'))
      for extension, found in sizes.items():
        found.append(path.with_suffix(f'.{extension}').stat().st_size)
  return {key: float(np.mean(found)) / 1024 for key, found in sizes.items()}


def _settings(config: ConfigDict, folder: str, size: int):
  """The pipeline of the recipe, on the data set of `make_files`."""
  views = Views(
    num_views=config.data.contexts + 1, window=(12, 12), ramp_steps=0
  )
  return pipeline.DataConfig(
    data_dir=folder,
    parts=(pipeline.Part(synthetic.Source.name, views),),
    batch_size=config.data.batch,
    image_size=size,
    min_length=views.num_views,
    threads=config.data.threads,
    prefetch=config.data.prefetch,
  )


def _choices(settings: pipeline.DataConfig) -> list[tuple[int, list[int]]]:
  """Clips and frames of the batches of a run, from the pipeline itself."""
  batches = pipeline.Pipeline(settings).batches()
  views = settings.parts[0].views.num_views
  chosen = []
  while len(chosen) * views < _FRAMES:
    batch = next(batches)
    chosen += zip(batch['clip'].tolist(), batch['frames'].tolist(), strict=True)
  batches.close()
  return chosen


def check_frames_equal(images: dict[str, np.ndarray]) -> str:
  """Returns a line that all read the same pictures.

  Raises:
    Unequal: If they differ by more than JPEG decoders do.
  """
  (_, ours), *others = images.items()
  worst = 0.0
  for name, other in others:
    off = np.abs(ours.astype(np.int32) - other).mean()
    worst = max(worst, float(off))
    if off > 1:
      raise Unequal(
        f'the first batch from {name} differs from that of the pipeline by '
        f'{off:.1f} levels of 255 on average: they do not read the same '
        'frames, so their times cannot be compared'
      )
  return f'all read the same pictures, within {worst:.2g} levels of 255'


def benchmark_pipeline(
  config: ConfigDict, *, sizes: Iterable[int], repeats: int, isolate: bool
) -> list[Table]:
  """Compares ways to read training batches, for each size of frames.

  Raises:
    Unequal: If they do not read the same pictures.
  """
  return [_compare_readers(config, size, repeats, isolate) for size in sizes]


def _compare_readers(
  config: ConfigDict, size: int, repeats: int, isolate: bool
) -> Table:
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    weights = make_files(folder, size)
    settings = _settings(config, folder, size)
    chosen = _choices(settings)
    kinds = {'records': None, 'loose JPEG': 'jpg', 'loose PNG': 'png'}
    readers = {
      name: place(isolate)(stack, Reader, settings, chosen, extension)
      for name, extension in kinds.items()
    }
    views = settings.parts[0].views.num_views
    frames = len(chosen) * views
    table = Table(
      f'pipeline: runs of {frames} frames of {size} pixels in batches of '
      f'{settings.batch_size} x {views}, files in the page cache',
      list(readers),
    )
    warm = {name: call('read', 0)[1] for name, call in readers.items()}
    print(check_frames_equal(warm), flush=True)
    _measure_readers(table, readers, repeats, frames, settings.threads)
    for name, extension in kinds.items():
      table.add('KiB a frame', name, weights[extension or 'jpg'])
  return table


def _measure_readers(
  table: Table, readers, repeats: int, frames: int, threads: int
) -> None:
  for name in alternate(readers, repeats):
    result, _ = readers[name]('read', 0)
    table.add('frames/s, one thread', name, frames / result.wall)
    table.add('frames/CPU s, one thread', name, frames / result.cpu)
  # With threads only the clock counts: they read ahead of what is asked for.
  for name in alternate(readers, repeats):
    result, _ = readers[name]('read', threads)
    table.add(f'frames/s, {threads} threads', name, frames / result.wall)
  for name, call in readers.items():
    table.add('peak RSS, MiB', name, call('peak'))


# ==============================================================================
# The command
# ==============================================================================

NAMES = ('step', 'pipeline')


def _recipe() -> ConfigDict:
  """The recipe that the flags name.

  Raises:
    UserError: If there is no such file: the flag says so on access only.
  """
  try:
    config = _CONFIG.value.copy_and_resolve_references()
  except OSError as e:
    raise UserError(f'cannot load --config: {str(e).splitlines()[-1]}') from e
  if _BATCH.value:
    config.data.batch = _BATCH.value
  return config


def _sizes() -> list[int]:
  if not all(size.isdecimal() and int(size) >= 8 for size in _SIZES.value):
    raise UserError(f'--sizes takes numbers from 8, not {_SIZES.value}')
  return [int(size) for size in _SIZES.value]


def _run(names: list[str]) -> dict[str, Any]:
  """Runs the benchmarks, printing as it goes; returns the numbers."""
  for name in names:
    if name not in NAMES:
      raise UserError(
        f'there is no benchmark {name!r}; choose from {", ".join(NAMES)}'
      )
  config, sizes = _recipe(), _sizes()
  numbers = {'machine': machine()}
  print(', '.join(f'{k}: {v}' for k, v in numbers['machine'].items()))
  common = {'repeats': _REPEATS.value, 'isolate': _ISOLATE.value}
  for name in names or NAMES:
    if name == 'step':
      tables = benchmark_step(config, compiles=_COMPILES.value, **common)
    else:
      tables = benchmark_pipeline(config, sizes=sizes, **common)
    numbers[name] = [table.summary() for table in tables]
    print('\n'.join(f'{table}\n' for table in tables), flush=True)
  return numbers


def main(argv: list[str]) -> int:
  """Runs what is asked for; returns the exit code."""
  # Several processes share a GPU here.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  with cli.reporting_user_errors():
    try:
      numbers = _run(argv[1:])
    except Unequal as e:
      print(f'error: {e}', file=sys.stderr)
      return 1
    if _JSON.value:
      records.write_json(_JSON.value, numbers)
  return 0


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags, which may follow the names of benchmarks."""
  flags.FLAGS.set_gnu_getopt()
  if not any(re.match('--?config(=|$)', argument) for argument in argv):
    # As the flag's default it would be loaded, and the overrides in the
    # command with it, before anybody reports errors.
    argv = [argv[0], f'--config={ROOT / "configs/tiny.py"}', *argv[1:]]
  return cli.parse_flags(argv)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
