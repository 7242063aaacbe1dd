"""Measures SRT's train step without each optimization, and its rendering speed.

The plain formulation is plain_srt.py: float32 colours and rays from the host,
all channels convolved, unrolled layers, dense attention, no recomputation; with
the same weights, rays and optimizer. The other variants omit one optimization
each, to show its gain. `run_torch` compares with torch_srt.py, the same in
PyTorch.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from benchmarks import plain_srt
from benchmarks.measuring import (
  Table,
  Time,
  Unequal,
  align,
  alternate,
  is_exact,
  number,
  peak_mib,
  place,
  ratio,
  temporaries,
  timed,
)
from xfactor.errors import UserError
from xfactor.exchange import srt_names
from xfactor.geometry import cameras
from xfactor.inference import posed, restore
from xfactor.methods.base import StepKind
from xfactor.methods.srt import method as srt_method
from xfactor.methods.srt import network as srt_network
from xfactor.methods.srt import objective as srt_objective
from xfactor.nn import attention, layers, sharding
from xfactor.nn.functional import Params
from xfactor.training import build as builds
from xfactor.training import state, step

# Models whose steps have a plain formulation.
COMPARED = 'SRT', 'improved SRT'
# Size of rendered pictures, (height, width); smaller for volumes on a CPU,
# where they would take minutes.
_PICTURE = 240, 320
_SMALL_PICTURE = 24, 32
# Relative, of gradient norms. The highest octaves of rays amplify rounding to
# parts in 1e4.
_TOLERANCE, _DEVICE_TOLERANCE = 5e-4, 5e-2


class Tricks(Table):
  """A table with one line per thing."""

  def __str__(self) -> str:
    ours = self.things[0]
    cells = [['', *(x for row in self.rows for x in (row, f'/ {ours}'))]]
    for thing in self.things:
      cells.append([thing])
      for row, samples in self.rows.items():
        cells[-1].append(number(samples[thing]))
        cells[-1].append(ratio(self.ratios(row, thing)))
    return align(self.title, cells)


def make_views(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Returns views [scenes, views, height, width, 3] that look at the origin.

  The images are noise, since timing does not depend on their content.
  """
  rng = np.random.default_rng(0)
  eyes = 3 * cameras.normalize(rng.standard_normal((*shape[:2], 3)))
  poses = cameras.look_at(eyes, np.zeros_like(eyes), np.array([0.0, 0.0, 1.0]))
  lens = np.array([1.2, 1.2, 0.5, 0.5], np.float32)
  return {
    'images': rng.integers(0, 256, shape, np.uint8),
    'intrinsics': np.tile(lens, (*shape[:2], 1)),
    'world_to_camera': poses.astype(np.float32),
  }


def host_batch(
  views: dict[str, np.ndarray],
  objective: srt_objective.Config,
  pixels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Converts views to the batch of the public loader.

  Args:
    views: Result of `make_views`.
    objective: Configuration with the number of rays and their views.
    pixels: Sampled pixels [scenes, rays]; random by default.

  Returns:
    All float32: the inputs' `images` [b, k, 3, h, w], `origins` [b, k, 3] and
    `directions` of all pixels [b, k, h, w, 3]; `colors`, `ray_origins` and
    `ray_directions` [b, r, 3] of the sampled rays.
  """
  images = views['images'].astype(np.float32) / 255
  origins, directions = _host_rays(views, objective)
  k, stride = objective.inputs, objective.input_stride
  every = np.s_[:, :k, stride // 2 :: stride, stride // 2 :: stride]
  first = srt_objective.first_target(objective)
  colors, targets = (
    einops.rearrange(x[:, first:], 'b v h w c -> b (v h w) c')
    for x in (images, directions)
  )
  count, area = colors.shape[1], math.prod(images.shape[2:4])
  if pixels is None:
    # As in the public loader: with a permutation of all pixels.
    choose = functools.partial(np.random.choice, replace=False)  # noqa: NPY002
    pixels = np.stack([choose(count, objective.rays) for _ in colors])
  each = np.arange(len(pixels))[:, None]
  return {
    'images': np.ascontiguousarray(np.moveaxis(images[every], -1, 2)),
    'origins': origins[:, :k],
    'directions': np.ascontiguousarray(directions[every]),
    'colors': colors[each, pixels],
    'ray_origins': origins[each, first + pixels // area],
    'ray_directions': targets[each, pixels],
  }


def _host_rays(
  views: dict[str, np.ndarray], objective: srt_objective.Config
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the origins of views and the directions of all their pixels."""
  poses = views['world_to_camera']
  if objective.canonical:
    poses = cameras.relative_to(poses, poses[:, :1])
  height, width = views['images'].shape[2:4]
  u, v = np.meshgrid(
    (np.arange(width, dtype=np.float32) + 0.5) / width,
    (np.arange(height, dtype=np.float32) + 0.5) / height,
  )
  fx, fy, cx, cy = np.moveaxis(views['intrinsics'][..., None], -2, 0)
  x, y = (u.ravel() - cx) / fx, (v.ravel() - cy) / fy
  local = np.stack([x, y, np.ones_like(x)], -1)
  local /= np.linalg.norm(local, axis=-1, keepdims=True)
  directions = (local @ poses[..., :3]).reshape(views['images'].shape)
  return cameras.camera_centre(poses), directions


def make_weights(shapes: dict[str, jax.ShapeDtypeStruct]) -> Params:
  """Returns weights for which every part affects the loss, as after training.

  Sampled with NumPy: compiling the JAX initializers takes as long as compiling
  the train step.
  """
  rng = np.random.default_rng(1)
  params = {}
  for path, leaf in sorted(shapes.items()):
    x = rng.standard_normal(leaf.shape, np.float32)
    if path.endswith('kernel'):
      # The first axis of most other arrays stacks the layers.
      inputs = leaf.shape[-4:-1] if '/convs/' in path else leaf.shape[-2:-1]
      x /= 2 * math.sqrt(math.prod(inputs))
    elif path.endswith('scale'):
      x = 1 + 0.3 * x
    params[path] = x
  return params


class HostRays(srt_method.SRT):
  """SRT that takes batches of `host_batch`."""

  def draw(self, key, batch, objective):
    del key, batch, objective

  def loss(self, network, batch, draws, objective, *, kind, weights):
    del draws, objective, kind, weights
    images = einops.rearrange(batch['images'], 'b v c h w -> b v h w c')
    tokens = network.encode(images, batch['origins'], batch['directions'])
    drawn = network.decode(
      tokens, batch['ray_origins'], batch['ray_directions']
    )
    loss = jnp.mean((drawn.color - batch['colors']) ** 2)
    return loss, {'loss': loss}


def _unrolled(self: layers.Stack, x: jax.Array, *args: jax.Array) -> jax.Array:
  """`layers.Stack.__call__` with unrolled layers."""
  graphdef, stacked = nnx.split(self.layers)

  def body(x, layer):
    return nnx.merge(graphdef, layer)(x, *args)

  if self.remat != 'none':
    body = jax.checkpoint(body, policy=layers.REMAT_POLICIES[self.remat])
  for i in range(jax.tree.leaves(stacked)[0].shape[0]):
    x = body(x, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
  return x


def _convolve_all(x, kernel, size):
  """`srt_network.convolve_constant` applied to every pixel."""
  return srt_network.convolve(
    jnp.broadcast_to(x[:, None, None], (len(x), *size, x.shape[-1])), kernel
  )


@dataclasses.dataclass(frozen=True)
class Way:
  """A variant of the train step; ours by default.

  Attributes:
    model: Changed model settings.
    host: Whether colours and rays come from the host.
    change: Arguments of `mock.patch.object` that replace a part of our code.
    plain: Whether this is the plain formulation.
  """

  model: dict[str, Any] = dataclasses.field(default_factory=dict)
  host: bool = False
  change: tuple[Any, str, Callable] | None = None
  plain: bool = False


def ways(model: ConfigDict, platform: str) -> tuple[dict[str, Way], list[str]]:
  """Returns the compared variants, ours first, and why others are skipped."""
  found = {
    'ours': Way(),
    'rays from the host': Way(host=True),
    'layers unrolled': Way(change=(layers.Stack, '__call__', _unrolled)),
    'positions convolved': Way(
      change=(srt_network, 'convolve_constant', _convolve_all)
    ),
  }
  missing = []
  if model.remat == 'none':
    missing.append('remat: the recipe has none')
  else:
    found['nothing recomputed'] = Way({'remat': 'none'})
  kernel = attention.choose_kernel(
    model.attention, platform, jnp.dtype(model.dtype)
  )
  if kernel == 'einsum':
    missing.append(f'fused attention: none for {model.dtype} on a {platform}')
  else:
    found['einsum attention'] = Way({'attention': 'einsum'})
  if model.dtype == 'float32':
    missing.append(
      'bfloat16: slow on a cpu'
      if platform == 'cpu'
      else 'bfloat16: the recipe is float32'
    )
  else:
    found['float32, einsum attention'] = Way(
      {'dtype': 'float32', 'attention': 'einsum'}
    )
  return found | {'plain formulation': Way(host=True, plain=True)}, missing


class Trainer:
  """A variant of the train step, and its measurements."""

  def __init__(
    self,
    config: ConfigDict,
    views: dict[str, np.ndarray],
    drawn: dict[str, np.ndarray],
    way: Way,
  ):
    """Initializes with a batch as views and as returned by `host_batch`."""
    config = config.copy_and_resolve_references()
    config.model.update(way.model)
    self._way = way
    self._program = None
    self._build = build = builds.build(config, jax.devices()[:1])
    if way.host:
      self._build = dataclasses.replace(build, method=HostRays())
    self._batch = sharding.to_mesh(build.mesh, drawn if way.host else views)
    params = make_weights(build.functional.shapes)
    if way.plain:
      params = srt_names.to_public(params)
      self._tx, places = optax.adam(build.schedule), None
    else:
      self._tx, places = build.tx, build.places
    start = np.zeros((), np.int32)
    moments = jax.jit(self._tx.init)(params)
    self._state = jax.device_put(
      state.TrainState(start, params, moments), places
    )

  def compile(self) -> Time:
    """Traces and compiles the step."""
    jax.clear_caches()
    if self._way.plain:
      program = jax.jit(self._plain, donate_argnums=0)
    else:
      program = self._build.step(StepKind.SPLIT)
    with contextlib.ExitStack() as stack:
      if self._way.change:
        stack.enter_context(mock.patch.object(*self._way.change))
      stack.enter_context(jax.set_mesh(self._build.mesh))
      result = stack.enter_context(timed())
      self._program = program.lower(self._state, self._batch, None).compile()
    return result

  def _plain(self, old: state.TrainState, batch, _):
    model = self._build.model
    loss = functools.partial(
      plain_srt.loss,
      heads=model.heads,
      decoder_heads=model.decoder_heads,
    )
    value, grads = jax.value_and_grad(loss)(
      old.params,
      tuple(batch[k] for k in ('images', 'origins', 'directions')),
      tuple(batch[k] for k in ('colors', 'ray_origins', 'ray_directions')),
    )
    updates, moments = self._tx.update(grads, old.opt_state, old.params)
    params = optax.apply_updates(old.params, updates)
    new = state.TrainState(old.step + 1, params, moments)
    return new, {'loss': value, 'grad_norm': optax.tree.norm(grads)}

  def temporaries(self) -> float | None:
    """Returns XLA's temporaries in MiB; None if not reported."""
    return temporaries(self._program)

  def step(self) -> tuple[Time, dict[str, float]]:
    """Runs a step; returns its time, loss and gradient norm."""
    jax.block_until_ready(self._state)
    with timed() as result:
      self._state, metrics = self._program(self._state, self._batch, None)
      jax.block_until_ready((self._state, metrics))
    return result, {key: float(metrics[key]) for key in ('loss', 'grad_norm')}

  def peak(self) -> float:
    """Returns the peak resident size of the process in MiB."""
    return peak_mib()


class TorchTrainer:
  """The train step of torch_srt.py, with the methods of `Trainer`."""

  def __init__(self, config: ConfigDict, drawn: dict[str, np.ndarray]):
    """Initializes with a batch as returned by `host_batch`."""
    import torch

    from benchmarks import torch_srt

    build = builds.build(config, jax.devices()[:1])
    params = srt_names.to_public(make_weights(build.functional.shapes))
    self._params = {
      name: torch.from_numpy(x.copy()).requires_grad_()
      for name, x in params.items()
    }
    self._optimizer = torch.optim.Adam(self._params.values(), lr=1e-4)
    batch = {name: torch.from_numpy(x) for name, x in drawn.items()}
    self._loss = functools.partial(
      torch_srt.loss,
      self._params,
      [batch[k] for k in ('images', 'origins', 'directions')],
      [batch[k] for k in ('colors', 'ray_origins', 'ray_directions')],
      heads=build.model.heads,
      decoder_heads=build.model.decoder_heads,
    )

  def step(self) -> tuple[Time, dict[str, float]]:
    """Runs a step; returns its time, loss and gradient norm."""
    with timed() as result:
      self._optimizer.zero_grad()
      loss = self._loss()
      loss.backward()
      self._optimizer.step()
    squares = (float((x.grad**2).sum()) for x in self._params.values())
    metrics = {'loss': loss.item(), 'grad_norm': math.sqrt(sum(squares))}
    return result, metrics

  def peak(self) -> float:
    """Returns the peak resident size of the process in MiB."""
    return peak_mib()


def check_steps_equal(
  metrics: dict[str, dict[str, float]], tolerance: float
) -> str:
  """Returns a line stating that first steps agree with the last, the plain one.

  Args:
    metrics: Loss and gradient norm of the first step of each variant.
    tolerance: Relative tolerance of the gradient norm; ten times stricter for
      losses.

  Raises:
    Unequal: If they do not.
  """
  *_, plain = metrics
  worst = 0.0
  for name, values in metrics.items():
    for key, value in values.items():
      expected = metrics[plain][key]
      worst = max(worst, abs(value / expected - 1))
      most = tolerance / 10 if key == 'loss' else tolerance
      if not math.isclose(value, expected, rel_tol=most):
        raise Unequal(
          f'{key} of the first step is {value!r} in {name!r} and {expected!r} '
          f'in {plain!r}: they do not compute the same, so their times cannot '
          'be compared'
        )
  return f'all give the same loss and gradient norm, within {worst:.0e}'


def models(recipe: ConfigDict) -> dict[str, ConfigDict]:
  """Returns SRT, improved and volumetric SRT with the recipe's widths.

  As published, improved SRT has one convolution block less and half the layers,
  and all have 15 octaves.
  """
  improved = recipe.model.encoder == 'isrt'
  blocks = recipe.model.conv_blocks + improved
  depth = recipe.model.encoder_layers * (1 + improved)
  kinds = {
    'SRT': ('srt', 'srt', blocks, depth),
    'improved SRT': ('isrt', 'isrt', blocks - 1, max(1, depth // 2)),
    'volumetric SRT': ('srt', 'nerf', blocks, depth),
  }
  configs = {}
  for name, (encoder, decoder, conv_blocks, encoder_layers) in kinds.items():
    config = configs[name] = recipe.copy_and_resolve_references()
    config.model.update(
      encoder=encoder,
      decoder=decoder,
      conv_blocks=conv_blocks,
      encoder_layers=encoder_layers,
      start_octave=srt_network.Config.start_octave,
      octaves=srt_network.Config.octaves,
    )
    if jax.default_backend() == 'cpu':
      config.model.update(dtype='float32', attention='auto')
  return configs


def run(
  recipe: ConfigDict,
  *,
  batch: int,
  size: int,
  count: int,
  repeats: int,
  compiles: int,
) -> list[Table]:
  """Compares train steps and loaders, and measures rendering.

  Args:
    recipe: Recipe of any SRT, for its widths and numbers of views.
    batch: Scenes per update.
    size: Image size of views in updates, in pixels. Rendering uses views of the
      recipe's size.
    count: Rays per scene and update.
    repeats: Number of runs of each.
    compiles: Number of compilations of each.

  Raises:
    Unequal: If two variants do not compute the same.
    UserError: If the sizes do not fit the recipe.
  """
  # A program from the cache would be loaded instead of compiled.
  jax.config.update('jax_enable_compilation_cache', False)
  recipe = recipe.copy_and_resolve_references()
  recipe.train.accumulate = 1
  configs = models(_sized(recipe, batch, size, count))
  tables = [
    _compare_steps(name, configs[name], repeats, compiles) for name in COMPARED
  ]
  tables.append(_compare_loaders(configs['SRT'], repeats))
  recipe.data.batch = 1
  return [*tables, _measure_pictures(models(recipe), repeats)]


def run_torch(
  recipe: ConfigDict,
  *,
  batch: int,
  size: int,
  count: int,
  repeats: int,
  isolate: bool,
) -> list[Table]:
  """Compares train steps of SRT and improved SRT with PyTorch, on a CPU.

  Args:
    recipe: Recipe of any SRT, for its widths and numbers of views.
    batch: Scenes per update.
    size: Image size of views, in pixels.
    count: Rays per scene and update.
    repeats: Number of runs of each.
    isolate: Whether each runs in its own process.

  Raises:
    Unequal: If the two do not compute the same.
    UserError: If PyTorch is missing, or the sizes do not fit the recipe.
  """
  if importlib.util.find_spec('torch') is None:
    raise UserError('--torch needs PyTorch; run `pip install -e .[torch]`')
  if jax.default_backend() != 'cpu':
    raise UserError('--torch compares on a CPU; set JAX_PLATFORMS=cpu')
  configs = models(_sized(recipe, batch, size, count))
  where = place(isolate)
  return [
    _compare_torch(name, configs[name], repeats, where) for name in COMPARED
  ]


def _compare_torch(
  name: str, config: ConfigDict, repeats: int, where: type
) -> Table:
  build, views = _build(config)
  drawn = host_batch(views, build.objective, _first_pixels(build, views))
  with contextlib.ExitStack() as stack:
    trainers = {
      'ours': where(stack, Trainer, config, views, drawn, Way()),
      'PyTorch': where(stack, TorchTrainer, config, drawn),
    }
    table = Table(
      f'{name}: train step of {build.method.describe(build)}, '
      f'{build.model.dtype}',
      list(trainers),
    )
    trainers['ours']('compile')
    # The first step is also the warm-up.
    first = {key: call('step')[1] for key, call in trainers.items()}
    print(f'{name}: {check_steps_equal(first, _TOLERANCE)}', flush=True)
    for key in alternate(trainers, repeats):
      result, _ = trainers[key]('step')
      table.add('step, wall s', key, result.wall)
      table.add('step, CPU s', key, result.cpu)
    for key, call in trainers.items():
      table.add('peak RSS at the end, MiB', key, call('peak'))
  return table


def _sized(recipe: ConfigDict, batch: int, size: int, count: int) -> ConfigDict:
  """Returns the recipe with these sizes of an update."""
  recipe = recipe.copy_and_resolve_references()
  recipe.train.accumulate = 1
  recipe.data.update(batch=batch, image_size=size, image_width=None)
  recipe.objective.rays = count
  return recipe


def _build(config: ConfigDict) -> tuple[builds.Build, dict[str, np.ndarray]]:
  """Builds a recipe for one device, and makes views for it."""
  build = builds.build(config, jax.devices()[:1])
  return build, make_views(build.abstract_batch()['images'].shape)


def _compare_steps(
  name: str, config: ConfigDict, repeats: int, compiles: int
) -> Table:
  build, views = _build(config)
  device = jax.devices()[0]
  compared, missing = ways(config.model, device.platform)
  for line in missing:
    print(f'{name}: skipped: {line}')
  table = Tricks(
    f'{name}: train step of {build.method.describe(build)}, '
    f'{build.model.dtype}',
    list(compared),
  )
  drawn = host_batch(views, build.objective, _first_pixels(build, views))
  trainers = {
    key: Trainer(config, views, drawn, way) for key, way in compared.items()
  }
  compilations = [
    (key, trainers[key].compile()) for key in alternate(trainers, compiles)
  ]
  # The first step is also the warm-up.
  first = {key: trainer.step()[1] for key, trainer in trainers.items()}
  tolerance = _TOLERANCE if is_exact() else _DEVICE_TOLERANCE
  print(f'{name}: {check_steps_equal(first, tolerance)}', flush=True)
  for key in alternate(trainers, repeats):
    result, _ = trainers[key].step()
    table.add('step, wall s', key, result.wall)
    table.add('step, CPU s', key, result.cpu)
  for key, result in compilations:
    table.add('compile, CPU s', key, result.cpu)
  for key, trainer in trainers.items():
    mib = trainer.temporaries()
    if mib is not None:
      table.add('XLA temporaries, MiB', key, mib)
  return table


def _first_pixels(build: builds.Build, views: dict[str, np.ndarray]):
  """Returns the pixels that our first step samples."""
  key = jax.random.fold_in(step.root_keys(build.seed)[1], 0)
  return np.asarray(build.method.sample(key, views, build.objective).pixels)


def _compare_loaders(config: ConfigDict, repeats: int) -> Table:
  build, views = _build(config)
  loaders = {
    'uint8 views': lambda: views,
    'float32 rays': lambda: host_batch(views, build.objective),
  }
  table = Table(
    f'from decoded views to the device: {build.method.describe(build)}',
    list(loaders),
  )
  for name in alternate(loaders, repeats):
    with timed() as result:
      batch = jax.block_until_ready(
        sharding.to_mesh(build.mesh, loaders[name]())
      )
    table.add('wall, ms a batch', name, 1e3 * result.wall)
    table.add('CPU, ms a batch', name, 1e3 * result.cpu)
    sent = sum(x.nbytes for x in jax.tree.leaves(batch))
    table.add('KiB a scene', name, sent / build.batch / 1024)
  return table


def _measure_pictures(configs: dict[str, ConfigDict], repeats: int) -> Table:
  shapes = dict.fromkeys(configs, _PICTURE)
  if jax.default_backend() == 'cpu':
    shapes['volumetric SRT'] = _SMALL_PICTURE
  draw = {}
  for name, config in configs.items():
    build, views = _build(config)
    params = make_weights(build.functional.shapes)
    model = posed.PosedModel(
      restore.Restored(
        config, 0, build, jax.device_put(params, build.places.params)
      )
    )
    given = [views[k][0, : model.contexts] for k in build.method.arrays]
    scene = model.encode(*given)
    _, intrinsics, poses = given
    draw[name] = functools.partial(
      model.render, scene, intrinsics[:1], poses[:1], *shapes[name]
    )
    draw[name]()  # Warm-up: compiles.
  sizes = ['{1} x {0}'.format(*shape) for shape in shapes.values()]
  table = Table(
    f'pictures of {sizes[0]} pixels (volumetric: {sizes[-1]}) from '
    f'{model.contexts} views of {build.image_width} x {build.image_size}',
    list(configs),
  )
  for name in alternate(draw, repeats):
    with timed() as result:
      draw[name]()
    count = math.prod(shapes[name])
    table.add('rays/s', name, count / result.wall)
    table.add('rays/CPU s', name, count / result.cpu)
  return table
