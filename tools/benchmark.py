"""Measures the train step and the handling of data against plain versions.

  python tools/benchmark.py [step] [pipeline] [start] [convert]
    [--config=configs/tiny.py]

`step`: the recipe's train step with the token split against the public
formulation (tests/reference.py: dense attention under a segment mask, float32,
unrolled and rematerialised layers, a switch an image for the augmentation) with
the same (perturbed) weights, batch, draws and optimizer, without LPIPS.
`pipeline`: the training pipeline on records against the same frames read at
training time with PIL from loose JPEG and PNG files: of the records' size, and
the originals of 640 x 360 pixels that they were made from.
`start`: from the start of a process to its first batch, with a million clips.
`convert`: from 720p pictures and video to records, on one core; pictures also
decoded in full instead of at a reduced scale.

What is compared is first checked to be the same. Then runs alternate; a ratio
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
from unittest import mock

import av
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from PIL import Image, ImageOps

from xfactor import cli
from xfactor.data import convert, images, pipeline, records
from xfactor.data.sources import synthetic, video
from xfactor.data.views import Views
from xfactor.errors import UserError
from xfactor.models.functional import Params
from xfactor.training import build as builds
from xfactor.training import flops, loop, objectives, sharding, state, step

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
_CLIPS = flags.DEFINE_integer(
  'clips', 1_000_000, 'Clips of the data set that `start` opens.', 1000
)
_JSON = flags.DEFINE_string('json', None, 'File for the numbers.')

# Frames that a run of `pipeline` reads, at least.
_FRAMES = 512
# Pixels of the pictures that people have, as (height, width).
_ORIGINAL = 360, 640
_HD = 720, 1280
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
    rows = jnp.arange(len(images))
    target = draws.views[rows, draws.target]
    order = draws.views.at[:, -1].set(target)
    views = step.to_float(images[rows[:, None], order])
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
    """Makes a step; returns its time and metrics."""
    if self._state is None:
      new = self._build.init()
      params = jax.device_put(perturbed(new.params), self._build.places.params)
      self._state = dataclasses.replace(new, params=params)
    jax.block_until_ready(self._state)
    with timed() as result:
      self._state, metrics = self._program(self._state, self._batch, None)
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
  work = loop.step_flops(build)
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

  def __call__(self, chosen: tuple[str, list[int]]) -> dict[str, np.ndarray]:
    clip, frames = chosen
    return {'images': np.stack([self._read(clip, i) for i in frames])}

  def _read(self, clip: str, frame: int) -> np.ndarray:
    path = os.path.join(self._folder, clip, f'{frame:04d}.{self._extension}')
    with Image.open(path) as image:
      square = ImageOps.fit(
        image.convert('RGB'),
        (self._size, self._size),
        Image.Resampling.LANCZOS,
      )
      return np.asarray(square)


class Reader:
  """One way to read the frames of training batches, and its measurements."""

  def __init__(
    self,
    settings: pipeline.DataConfig,
    chosen: list[tuple[str, list[int]]],
    loose: tuple[str, str] | None,
  ):
    """Prepares reading.

    Args:
      settings: The pipeline's.
      chosen: Clip and frames of each example, as the pipeline chooses them.
      loose: Folder and extension of loose files, or None for the pipeline.
    """
    self._settings = settings
    self._chosen = chosen
    self._loose = loose

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
    if self._loose is None:
      return pipeline.Pipeline(settings).batches()
    load = Loose(*self._loose, settings.image_size)
    dataset = grain.MapDataset.source(self._chosen).map(load)
    return iter(
      dataset.batch(settings.batch_size).to_iter_dataset(
        grain.ReadOptions(
          num_threads=threads,
          prefetch_buffer_size=settings.prefetch if threads else 0,
        )
      )
    )


def make_walks(walks: int, frames: int, shape: tuple[int, int]):
  """Yields the frames of synthetic walks as pictures of a wide screen.

  Yields:
    Name of the walk, and its frames: uint8 [height, width, 3] each.
  """
  height, width = shape
  source = synthetic.Source(
    scenes=walks, frames=frames, size=height, with_depth=False
  )
  left = (width - height) // 2
  sides = (0, 0), (left, width - height - left), (0, 0)
  for number, item in enumerate(source.items()):
    (clip,) = source.clips(item)
    yield (
      f'{number:04d}',
      [np.pad(images.decode(x), sides, 'reflect') for x in clip.frames],
    )


def write_loose(folder: pathlib.Path, frames: Iterable[np.ndarray]) -> None:
  """Writes pictures as JPEGs and as PNGs."""
  folder.mkdir(parents=True)
  for number, rgb in enumerate(frames):
    path = folder / f'{number:04d}.jpg'
    path.write_bytes(images.encode_jpeg(rgb))
    path.with_suffix('.png').write_bytes(images.encode_png(rgb))


def make_files(folder: pathlib.Path, size: int) -> None:
  """Makes originals and, from them, records and loose files of their size.

  Under `folder`: `original/train/CLIP` has the wide pictures and `small/CLIP`
  what the records hold of them, each as JPEGs and as PNGs; `jpeg` is what the
  records are made from.
  """
  for name, frames in make_walks(6, 12, _ORIGINAL):
    write_loose(folder / 'original' / name, frames)
    jpegs = folder / 'jpeg/train' / name
    jpegs.mkdir(parents=True)
    for path in (folder / 'original' / name).glob('*.jpg'):
      (jpegs / path.name).hardlink_to(path)
  source = video.Source(str(folder / 'jpeg'), size=size, cut_threshold=2.0)
  convert.convert(source, folder, workers=0, quiet=True)
  store = records.open_split(folder, source.name, 'train')
  for clip in range(len(store)):
    frames = store.clip_frames(clip, range(int(store.num_frames[clip])))
    small = folder / 'small' / _walk(store, clip)
    write_loose(small, map(images.decode, frames))
    for number, frame in enumerate(frames):  # Not encoded a second time.
      (small / f'{number:04d}.jpg').write_bytes(frame)


def _walk(store: records.FrameStore, clip: int) -> str:
  return store.clip_id(clip).split('/')[1]


def _settings(config: ConfigDict, folder: str, size: int, name: str):
  """The pipeline of the recipe, on a data set of clips of 12 frames."""
  views = Views(
    num_views=config.data.contexts + 1, window=(12, 12), ramp_steps=0
  )
  return pipeline.DataConfig(
    data_dir=folder,
    parts=(pipeline.Part(name, views),),
    batch_size=config.data.batch,
    image_size=size,
    min_length=views.num_views,
    threads=config.data.threads,
    prefetch=config.data.prefetch,
  )


def _choices(settings: pipeline.DataConfig) -> list[tuple[str, list[int]]]:
  """Clips and frames of the batches of a run, from the pipeline itself."""
  (part,) = settings.parts
  store = records.open_split(settings.data_dir, part.name, part.split)
  batches = pipeline.Pipeline(settings).batches()
  chosen = []
  while len(chosen) * part.views.num_views < _FRAMES:
    batch = next(batches)
    clips = [_walk(store, clip) for clip in batch['clip'].tolist()]
    chosen += zip(clips, batch['frames'].tolist(), strict=True)
  batches.close()
  return chosen


def check_frames_equal(images: dict[str, np.ndarray]) -> str:
  """Returns a line that all read the same pictures.

  Raises:
    Unequal: If they differ by more than decoders, resampling and the records'
      own JPEG do.
  """
  (_, ours), *others = images.items()
  worst = 0.0
  for name, other in others:
    off = np.abs(ours.astype(np.int32) - other).mean()
    worst = max(worst, float(off))
    if off > 6:
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
    make_files(pathlib.Path(folder), size)
    settings = _settings(config, folder, size, video.Source.name)
    chosen = _choices(settings)
    height, width = _ORIGINAL
    kinds = {'records': None} | {
      f'{files} {extension.upper()}': (os.path.join(folder, kind), extension)
      for kind, files in (
        ('small', f'{size} x {size}'),
        ('original', f'{width} x {height}'),
      )
      for extension in ('jpg', 'png')
    }
    readers = {
      name: place(isolate)(stack, Reader, settings, chosen, loose)
      for name, loose in kinds.items()
    }
    views = settings.parts[0].views.num_views
    frames = len(chosen) * views
    table = Table(
      f'pipeline: runs of {frames} frames to {size} pixels in batches of '
      f'{settings.batch_size} x {views}, files in the page cache',
      list(readers),
    )
    warm = {name: call('read', 0)[1] for name, call in readers.items()}
    print(check_frames_equal(warm), flush=True)
    _measure_readers(table, readers, repeats, frames, settings.threads)
    for name, loose in kinds.items():
      where, extension = loose or (os.path.join(folder, 'small'), 'jpg')
      sizes = [p.stat().st_size for p in _files(where, f'*.{extension}')]
      table.add('KiB a frame', name, np.mean(sizes) / 1024)
  return table


def _files(folder: str, pattern: str) -> list[pathlib.Path]:
  return sorted(pathlib.Path(folder).rglob(pattern))


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
# Starting
# ==============================================================================


def make_index(folder: str, name: str, clips: int) -> None:
  """Makes a data set of any number of clips, with a thousand different ones.

  Its files of records are links to one. The clips' own records, which training
  never reads, are not there.
  """
  frames = records.frames_folder(folder, name, '1.0.0')
  table = records.clips_folder(folder, name, '1.0.0')
  for path in (frames, table):
    path.mkdir(parents=True)
  rng = np.random.default_rng(0)
  writer = records.ShardWriter(frames / 'one')
  for _ in range(1000 * 12):
    grey = rng.integers(0, 256, (2, 2, 1), np.uint8).repeat(3, -1)
    jpeg = images.encode_jpeg(np.kron(grey, np.ones((8, 8, 1), np.uint8)))
    writer.write(records.encode_frame(jpeg))
  shard = dataclasses.asdict(writer.close())
  count = clips // 1000
  names = [records.shard_name(name, 'train', i, count) for i in range(count)]
  for link in names:
    os.link(frames / 'one', frames / link)
  shards = [shard | {'file': link} for link in names]
  (table / 'none').write_text('')
  absent = {'file': 'none', 'records': 1000 * count, 'bytes': 0}
  records.write_index(
    table / 'clips-train.index.npz',
    ((f'{i:024x}', 12, 16, 16) for i in range(1000 * count)),
  )
  for path, split in (
    (frames, {'shards': shards}),
    (table, {'shards': [absent], 'frames_digest': records.digest(shards)}),
  ):
    manifest = {'format': records.FORMAT, 'splits': {'train': split}}
    records.write_json(path / 'manifest.json', manifest)


class Starter:
  """Makes the first batch in a process."""

  def __init__(self, settings: pipeline.DataConfig):
    self._settings = settings

  def first(self) -> tuple[float, float]:
    """Returns CPU seconds since the process began, and its peak in MiB."""
    batches = pipeline.Pipeline(self._settings).batches()
    next(batches)
    cpu = time.process_time()
    batches.close()
    return cpu, peak_mib()


def benchmark_start(
  config: ConfigDict, *, clips: int, repeats: int, isolate: bool
) -> list[Table]:
  """Measures how long a process takes to its first batch, imports included."""
  with tempfile.TemporaryDirectory() as folder:
    sizes = {f'{n:,} clips': n for n in (clips // 1000 * 1000, 1000)}
    table = Table('start: from a process to its first batch', list(sizes))
    settings = {}
    for name, count in sizes.items():
      make_index(folder, f'clips{count}', count)
      settings[name] = _settings(config, folder, 16, f'clips{count}')
    for name in alternate(sizes, repeats):
      began = time.perf_counter()
      with contextlib.ExitStack() as stack:
        call = place(isolate)(stack, Starter, settings[name])
        cpu, peak = call('first')
        table.add('wall s', name, time.perf_counter() - began)
      table.add('CPU s', name, cpu)
      table.add('peak RSS, MiB', name, peak)
  return [table]


# ==============================================================================
# Converting
# ==============================================================================


def make_footage(folder: pathlib.Path) -> None:
  """Makes a folder of JPEGs and an mp4 of the same 720p frames."""
  ((_, frames),) = make_walks(1, 48, _HD)
  for kind in ('jpeg/train/a', 'mp4/train'):
    (folder / kind).mkdir(parents=True)
  for number, rgb in enumerate(frames):
    path = folder / 'jpeg/train/a' / f'{number:04d}.jpg'
    path.write_bytes(images.encode_jpeg(rgb))
  with av.open(str(folder / 'mp4/train/a.mp4'), 'w') as container:
    stream = container.add_stream('libx264', rate=30)
    stream.height, stream.width = _HD
    stream.pix_fmt = 'yuv420p'
    for rgb in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, 'rgb24')))
    container.mux(stream.encode())


class Converter:
  """Converts footage on one core, and measures it."""

  def __init__(self, folder: str, size: int, full: bool):
    """Prepares converting.

    Args:
      folder: The footage.
      size: Pixels of the records.
      full: Whether JPEGs are decoded in full before they are made smaller.
    """
    self._source = video.Source(folder, size=size, cut_threshold=2.0)
    self._full = full

  def convert(self) -> tuple[Time, int, int]:
    """Returns the time, the number of frames and their bytes on disk."""
    with contextlib.ExitStack() as stack:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      if self._full:
        stack.enter_context(
          mock.patch.object(
            images,
            'read_square',
            lambda data, size: images.centre_crop_resize(
              images.decode(data), size
            ),
          )
        )
      with timed() as result:
        convert.convert(self._source, folder, workers=0, quiet=True)
      store = records.open_split(folder, self._source.name, 'train')
      sizes = [len(frame) for frame in store.frames(range(48))]
      return result, len(sizes), sum(sizes)


def benchmark_convert(
  *, sizes: Iterable[int], repeats: int, isolate: bool
) -> list[Table]:
  """Measures converting 720p footage to frames of each size."""
  return [_compare_converters(size, repeats, isolate) for size in sizes]


def _compare_converters(size: int, repeats: int, isolate: bool) -> Table:
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    make_footage(folder)
    kinds = {
      'JPEGs': ('jpeg', False),
      'JPEGs decoded in full': ('jpeg', True),
      'mp4': ('mp4', False),
    }
    converters = {
      name: place(isolate)(stack, Converter, str(folder / kind), size, full)
      for name, (kind, full) in kinds.items()
    }
    height, width = _HD
    table = Table(
      f'convert: {width} x {height} to {size} pixels, one core', list(kinds)
    )
    for call in converters.values():
      call('convert')  # Imports and caches.
    for name in alternate(converters, repeats):
      result, frames, written = converters[name]('convert')
      table.add('frames/s', name, frames / result.wall)
      table.add('frames/CPU s', name, frames / result.cpu)
      table.add('KiB written a frame', name, written / frames / 1024)
  return table


# ==============================================================================
# The command
# ==============================================================================

NAMES = ('step', 'pipeline', 'start', 'convert')


def _recipe() -> ConfigDict:
  config = _CONFIG.value.copy_and_resolve_references()
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
    elif name == 'pipeline':
      tables = benchmark_pipeline(config, sizes=sizes, **common)
    elif name == 'start':
      tables = benchmark_start(config, clips=_CLIPS.value, **common)
    else:
      tables = benchmark_convert(sizes=sizes, **common)
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
