"""Measures parts of a train step: a layer's attention, LPIPS, augmentation.

Each runs at the recipe's sizes in all implementations available on this machine
and in a plain one: for attention and augmentation the public formulation in
plain_xfactor.py. Attention and LPIPS are measured with their gradients.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped
from ml_collections import ConfigDict

from benchmarks import plain_xfactor
from benchmarks.measuring import (
  Table,
  Time,
  Unequal,
  alternate,
  is_exact,
  temporaries,
  timed,
)
from benchmarks.step import lpips_weights
from xfactor.methods.xfactor import augment
from xfactor.methods.xfactor import objective as xfactor_objective
from xfactor.metrics import lpips
from xfactor.nn import attention
from xfactor.training import build as builds
from xfactor.training import chips

# Register tokens per half in the public models.
_REGISTERS = 32
# Relative to an array's norm. In the many layers of LPIPS, rounding flips the
# signs of ReLU inputs and with them gradients.
_TOLERANCE, _ROUNDED = 1e-5, 2e-2
_LPIPS_TOLERANCE, _LPIPS_ROUNDED = 1e-4, 0.2


@dataclasses.dataclass
class Case:
  """An implementation of a computation, and its measurements.

  Attributes:
    compute: Function that is compiled.
    arguments: Arguments of the function, on the device.
    case: Key of parts that compute the same; all are compared with the last.
    tolerance: Maximum error relative to an array's norm; ten times stricter for
      scalars.
    compared: Converts the results to those of the other parts of the case.
  """

  compute: Callable[..., Any]
  arguments: tuple[Any, ...]
  case: Hashable = None
  tolerance: float = _TOLERANCE
  compared: Callable[[Any], Any] = lambda results: results

  def compile(self) -> Time:
    """Traces and compiles."""
    jax.clear_caches()
    with timed() as result:
      self._program = jax.jit(self.compute).lower(*self.arguments).compile()
    return result

  def temporaries(self) -> float:
    """Returns XLA's temporaries in MiB; 0 if not reported."""
    return temporaries(self._program) or 0.0

  def results(self) -> Any:
    """Runs once; returns the results to compare."""
    return self.compared(self._program(*self.arguments))

  def run(self) -> Time:
    """Runs once."""
    with timed() as result:
      jax.block_until_ready(self._program(*self.arguments))
    return result


def measure(
  title: str,
  parts: Mapping[str, Case],
  rates: Mapping[str, float],
  *,
  repeats: int,
  compiles: int,
  work: float | None = None,
) -> Table:
  """Checks that parts compute the same and measures them alternately.

  Args:
    title: Title of the table.
    parts: Parts by name; the first is ours.
    rates: Number of processed units of a run by name, for example 'pictures'.
    repeats: Number of runs of each.
    compiles: Number of compilations of each.
    work: Useful FLOPs of a run, the same for all; None to omit FLOP/s.

  Raises:
    Unequal: If two parts of a case do not compute the same.
  """
  # A program from the cache would be loaded instead of compiled.
  jax.config.update('jax_enable_compilation_cache', False)
  table = Table(title, list(parts))
  compilations = [
    (name, parts[name].compile()) for name in alternate(parts, compiles)
  ]
  # Also the warm-up.
  print(f'{title.split(":")[0]}: {check_equal(parts)}', flush=True)
  peak = chips.peak_flops(jax.devices()[0].device_kind)
  for name in alternate(parts, repeats):
    result = parts[name].run()
    table.add('wall, ms', name, 1e3 * result.wall)
    table.add('CPU, ms', name, 1e3 * result.cpu)
    for what, count in rates.items():
      table.add(f'{what}/s', name, count / result.wall)
    if work:
      table.add('GFLOP/s', name, work / result.wall / 1e9)
    if work and peak:
      table.add('MFU', name, work / result.wall / peak)
  for name, result in compilations:
    table.add('compile, CPU s', name, result.cpu)
  for name, part in parts.items():
    # A TPU may need only its vector memory: 0 would make ratios meaningless.
    if mib := part.temporaries():
      table.add('XLA temporaries, MiB', name, mib)
  return table


def check_equal(parts: Mapping[str, Case]) -> str:
  """Returns a line stating that the parts of each case compute the same.

  Raises:
    Unequal: If they do not.
  """
  worst, expected = 0.0, {}
  for name, part in reversed(parts.items()):
    results = jax.tree.leaves(part.results())
    plain, wanted = expected.setdefault(part.case, (name, results))
    for x, y in zip(results, wanted, strict=True):
      error = _error(x, y)
      # Negated, so that NaN fails.
      if not error <= part.tolerance / (1 if x.ndim else 10):
        raise Unequal(
          f'results of {name!r} and {plain!r} differ by {error:.1g} of their '
          'norm: they do not compute the same, so their times cannot be '
          'compared'
        )
      worst = max(worst, error)
  return f'all compute the same, within {worst:.0e}'


def _error(x: Array, expected: Array) -> float:
  """Returns the distance from `expected` relative to its norm."""
  x, expected = (jnp.ravel(a).astype(jnp.float32) for a in (x, expected))
  distance = jnp.linalg.norm(x - expected)
  return float(distance / jnp.linalg.norm(expected))


def _rounded(dtype: str = 'float32') -> float:
  """Returns the tolerance for products of a dtype on this machine."""
  return _TOLERANCE if is_exact(dtype) else _ROUNDED


def run_attention(
  recipe: ConfigDict, *, repeats: int, compiles: int
) -> list[Table]:
  """Measures both attentions of an encoder and a renderer layer with gradients.

  Ours treats the halves as two examples, in each available kernel. The dense
  one processes both halves and their register tokens under a segment mask, in
  float32. Gathering the halves, once for all layers, is not measured.

  Raises:
    Unequal: If two implementations do not compute the same.
  """
  build = builds.build(recipe, jax.devices()[:1])
  model = build.model
  kernels, missing = kernels_for(model.attention, model.dtype)
  for line in missing:
    print(f'attention: skipped: {line}')
  pairs = build.batch * (build.views - 1)
  return [
    measure(
      f'{name}: both of a layer, {examples} examples of {views} views of '
      f'{_tokens(build)} patches, {model.dtype}, forward and backward',
      _attention_parts(build, kernels, examples, views, registers),
      {},
      repeats=repeats,
      compiles=compiles,
      work=attention_flops(build, examples, views, registers),
    )
    for name, examples, views, registers in (
      ("the encoder's attention", pairs, 2, model.registers),
      ("the renderer's attention", build.batch, build.views, 0),
    )
  ]


def kernels_for(name: str, dtype: str) -> tuple[list[str], list[str]]:
  """Returns kernels, the recipe's first, and why others are unavailable."""
  platform = jax.default_backend()
  ours = attention.choose_kernel(name, platform, jnp.dtype(dtype))
  missing = []
  if platform == 'cpu':
    missing.append('fused kernels: none on a cpu')
  elif platform == 'gpu' and dtype == 'float32':
    missing.append('cudnn: only takes half precision')
  best = attention.choose_kernel('auto', platform, jnp.dtype(dtype))
  return list(dict.fromkeys([ours, best, 'einsum'])), missing


def _tokens(build: builds.Build) -> int:
  """Returns the number of patches per view."""
  return build.image_size * build.image_width // build.model.patch_size**2


def attention_flops(
  build: builds.Build, examples: int, views: int, registers: int
) -> int:
  """Returns model FLOPs of a layer's attentions and their gradients.

  Counted as in `cost.train_step`: with the token split, without projections.
  """
  tokens = _tokens(build) // 2 + registers
  pairs = (views * tokens) ** 2 + views * tokens**2
  return 3 * 2 * examples * 4 * build.model.features * pairs


def _attention_parts(
  build: builds.Build,
  kernels: list[str],
  examples: int,
  views: int,
  registers: int,
) -> dict[str, Case]:
  """Returns ours in each kernel, and the full dense attention."""
  model = build.model
  public = _REGISTERS if registers else 0
  tolerance = _rounded(model.dtype)

  def part(kernel: str | None, count: int) -> Case:
    """Makes a case with `count` registers; dense if `kernel` is None."""
    halves = _half_masks(build, examples, count)
    arrays = _draw_arrays(build, (examples, views, halves.shape[1]))
    take = functools.partial(take_halves, halves=halves)
    if kernel:
      compute = functools.partial(_split_attention, kernel)
      return Case(compute, tuple(map(take, arrays)), count, tolerance)
    return Case(
      _dense_attention,
      (halves.astype(jnp.int32), *(x.astype(jnp.float32) for x in arrays)),
      count,
      tolerance,
      compared=functools.partial(jax.tree.map, take),
    )

  parts = {f'split, {kernel}': part(kernel, registers) for kernel in kernels}
  if public != registers:
    name = f'split, {public} + {public} registers'
    parts[name] = part(kernels[0], public)
  name = f'dense, {public} + {public} registers' if public else 'dense'
  return parts | {name: part(None, public)}


def _half_masks(
  build: builds.Build, examples: int, registers: int
) -> Bool[Array, 'b t']:
  """Returns which patches and register copies of each example are in half B."""
  order = xfactor_objective.sample_quadrants(jax.random.key(0), examples)
  patch = build.model.patch_size
  grid = build.image_size // patch, build.image_width // patch
  copies = jnp.repeat(jnp.arange(2), registers)
  return jnp.concatenate(
    [
      plain_xfactor.mask_of(order, grid),
      jnp.broadcast_to(copies, (examples, len(copies))),
    ],
    axis=1,
  ).astype(bool)


def _draw_arrays(build: builds.Build, shape: tuple[int, ...]) -> list[Array]:
  """Samples queries, keys, values across and within views, and cotangents."""
  model = build.model
  shape = *shape, model.heads, model.head_dim
  return [
    jax.random.normal(key, shape, model.dtype)
    for key in jax.random.split(jax.random.key(1), 8)
  ]


def take_halves(
  x: Shaped[Array, 'b v t n d'], halves: Bool[Array, 'b t']
) -> Shaped[Array, 'b2 v half n d']:
  """Gathers the tokens of both halves in order; row 2b is half A."""
  index = jnp.argsort(halves, axis=1, stable=True)
  picked = jnp.take_along_axis(x, index[:, None, :, None, None], axis=2)
  return einops.rearrange(picked, 'b v (s t) n d -> (b s) v t n d', s=2)


def _split_attention(kernel: str, *arrays: Array):
  """Returns outputs of both attentions and gradients of their inputs."""

  def both(*qkv):
    return _fold(qkv, lambda q, k, v: attention.attend(q, k, v, kernel=kernel))

  return _with_gradients(both, arrays)


def _dense_attention(ids: Array, *arrays: Array):
  """Like `_split_attention`, for all tokens under a segment mask."""
  attend = plain_xfactor.segment_attention

  def both(*qkv):
    views = qkv[0].shape[1]
    # Folded like the tokens: across all views and within each.
    segments = jnp.tile(ids, (1, views)), jnp.repeat(ids, views, axis=0)
    return _fold(qkv, attend, segments)

  return _with_gradients(both, arrays)


def _fold(qkv, attend: Callable, *extra):
  """Attends across all views and within each; [b, v, t, n, d] each."""
  views = qkv[0].shape[1]
  outputs = []
  for i, pattern in enumerate(('b (v t) n d', '(b v) t n d')):
    folded = (
      einops.rearrange(x, f'b v t n d -> {pattern}')
      for x in qkv[3 * i : 3 * i + 3]
    )
    out = attend(*folded, *(x[i] for x in extra))
    outputs.append(einops.rearrange(out, f'{pattern} -> b v t n d', v=views))
  return tuple(outputs)


def _with_gradients(both: Callable, arrays: tuple[Array, ...]):
  *qkv, across, within = arrays
  outputs, pull = jax.vjp(both, *qkv)
  return outputs, pull((across, within))


def run_lpips(
  recipe: ConfigDict, *, repeats: int, compiles: int
) -> list[Table]:
  """Measures LPIPS of a batch's pictures and its gradient, in each dtype.

  The plain implementation is float32 and also computes the gradient of the
  true picture.

  Raises:
    Unequal: If two implementations do not compute the same.
  """
  build = builds.build(recipe, jax.devices()[:1])
  weights = lpips_weights(recipe, build)
  shape = build.batch, build.image_size, build.image_width, 3
  pictures = tuple(_pictures(seed, shape) for seed in range(2))

  def part(dtype, argnums, **options):
    def loss(drawn, truth, weights):
      return jnp.mean(lpips.lpips(weights, drawn, truth, dtype))

    compute = jax.value_and_grad(loss, argnums)
    return Case(compute, (*pictures, weights), **options)

  tolerances = dict.fromkeys(lpips.DTYPES, _LPIPS_ROUNDED)
  tolerances['float32'] = _LPIPS_TOLERANCE
  dtypes = dict.fromkeys([build.objective.lpips_dtype, *tolerances])
  parts = {
    dtype: part(dtype, 0, tolerance=tolerances[dtype]) for dtype in dtypes
  }
  # The others have only its first gradient.
  parts['float32, both sides'] = part(
    'float32', (0, 1), compared=lambda x: (x[0], x[1][0])
  )
  return [
    measure(
      f'LPIPS: {build.batch} pictures of {build.image_width} x '
      f'{build.image_size} pixels, forward and backward',
      parts,
      {'pictures': build.batch},
      repeats=repeats,
      compiles=compiles,
      work=build.batch * lpips.lpips_gradient(*shape[1:3]),
    )
  ]


def _pictures(seed: int, shape: tuple[int, ...]) -> Float[Array, '*b h w 3']:
  """Returns noise in [-1, 1]."""
  return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


def run_augment(
  recipe: ConfigDict, *, repeats: int, compiles: int
) -> list[Table]:
  """Measures the augmentation of a batch's pairs, with the same samples.

  Ours processes all examples at once; the plain formulation switches between
  operations per example. No gradient flows through it.

  Raises:
    Unequal: If the two do not compute the same.
  """
  build = builds.build(recipe, jax.devices()[:1])
  config = build.objective.augmentation
  pairs = build.batch * (build.views - 1)
  shape = pairs, 2, build.image_size, build.image_width, 3
  draws = augment.sample(jax.random.key(0), pairs, config)
  parts = {
    name: Case(
      functools.partial(apply, config=config),
      (_pictures(0, shape), draws),
      tolerance=_rounded(),
    )
    for name, apply in (
      ('ours', augment.apply),
      ('a switch an image', plain_xfactor.jitter_and_blur),
    )
  }
  return [
    measure(
      f'augmentation: {pairs} pairs of {build.image_width} x '
      f'{build.image_size} pixels',
      parts,
      {'pictures': 2 * pairs},
      repeats=repeats,
      compiles=compiles,
    )
  ]


BENCHMARKS = {
  'attention': run_attention,
  'lpips': run_lpips,
  'augment': run_augment,
}
