"""Held-out novel views of posed models: pixels of other views of a scene.

The data set fixes the input views. PSNR is computed over all scored pixels of a
scene together, as in stelzner/srt: sampled pixels (`config.eval.rays`) or all.
SSIM and LPIPS need all pixels. Two baselines do not use the scene's shape: a
copy of the input view with the nearest camera, and the inputs' mean colour.
"""

from collections.abc import Iterable, Mapping

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from xfactor.geometry import cameras
from xfactor.methods import scores as methods_scores
from xfactor.methods.srt import network
from xfactor.methods.srt import objective as objective_lib
from xfactor.metrics import images as metrics
from xfactor.nn import sharding
from xfactor.nn.functional import Functional, Params

LABELS = {
  'model': 'model',
  'copy': 'copy the nearest view',
  'mean': 'mean colour',
}


class Evaluator:
  """Scores parameters on batches of held-out scenes; compiles once."""

  def __init__(
    self,
    functional: Functional,
    mesh: Mesh,
    lpips: Mapping[str, Params],
    *,
    objective: objective_lib.Config,
    num_rays: int,
  ):
    """Prepares the scoring functions; the first call compiles them.

    Args:
      functional: Functional `network.SRT`.
      mesh: Mesh of the batches.
      lpips: Weights of LPIPS distances by name; may be empty.
      objective: Settings of the inputs and their coordinates.
      num_rays: Number of scored pixels per scene; 0: all.
    """
    self._mesh = mesh
    self._lpips = dict(lpips)
    everywhere = NamedSharding(mesh, P())
    ways = sharding.batch_ways(mesh)
    k, first = objective.inputs, objective_lib.first_target(objective)

    def prepare(params, batch):
      model = functional.bind(params)
      poses = objective_lib.poses_of(batch['world_to_camera'], objective)
      images, intrinsics = batch['images'], batch['intrinsics']
      tokens = objective_lib.encode(
        model, images[:, :k], intrinsics[:, :k], poses[:, :k], objective
      )
      return model, tokens, (images, intrinsics, poses)

    def score(params, batch, lpips):
      model, tokens, views = prepare(params, batch)
      images, _, poses = views
      targets = [x[:, first:] for x in views]
      shape = targets[0].shape[1:4]
      pixels = fixed_pixels(batch['example'], int(np.prod(shape)), num_rays)
      truth, drawn, _ = draw(model, tokens, *targets, pixels, ways)
      near = nearest_view(poses[:, :k], poses[:, first:])
      copied = jnp.take_along_axis(
        images[:, :k], near[:, :, None, None, None], axis=1
      )
      mean = jnp.mean(objective_lib.to_unit(images[:, :k]), axis=(1, 2, 3))
      candidates = {
        'model': drawn,
        'copy': objective_lib.pick(copied, pixels),
        'mean': jnp.broadcast_to(mean[:, None], truth.shape),
      }
      scores = {
        who: _score(x, truth, lpips, None if num_rays else shape)
        for who, x in candidates.items()
      }
      finite = jnp.isfinite(drawn).all((1, 2))
      return batch['mask'], finite, scores

    def show(params, batch):
      model, tokens, views = prepare(params, batch)
      # The first view that is not an input.
      target = (
        [x[:, k : k + 1] for x in views]
        if views[0].shape[1] > k
        else [x[:, :1] for x in views]
      )
      shape = target[0].shape[2:4]
      pixels = fixed_pixels(batch['example'], int(np.prod(shape)), 0)
      _, drawn, depth = draw(model, tokens, *target, pixels, ways)

      def whole(x):
        x = einops.rearrange(x, 'b (h w) c -> b h w c', h=shape[0])
        return jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8)

      pictures = {
        'context': views[0][:, :k],
        'prediction': whole(drawn),
        'truth': target[0][:, 0],
      }
      if depth is not None:
        far = model.config.max_dist
        pictures['depth'] = whole(jnp.repeat(depth[..., None] / far, 3, 2))
      return pictures

    self._score = jax.jit(score, out_shardings=everywhere)
    self._show = jax.jit(show, out_shardings=everywhere)

  def __call__(
    self,
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    num_images: int,
  ) -> methods_scores.Result:
    """Scores every scene of the batches and keeps the first pictures.

    Args:
      params: Parameters of the networks.
      batches: Batches from `pipeline.eval_batches`, with cameras.
      num_images: Number of examples whose pictures are kept, at most a batch.

    Raises:
      UserError: If rendered pictures are not finite.
    """
    scores, pictures = [], None
    names = ('images', 'intrinsics', 'world_to_camera', 'example', 'mask')
    with jax.set_mesh(self._mesh):
      for batch in batches:
        batch = sharding.to_mesh(self._mesh, {k: batch[k] for k in names})
        keep, finite, got = jax.device_get(
          self._score(params, batch, self._lpips)
        )
        methods_scores.check_finite(finite[keep])
        scores.append(jax.tree.map(lambda x, keep=keep: x[keep], got))
        if pictures is None:
          shown = jax.device_get(self._show(params, batch))
          pictures = {k: v[keep][:num_images] for k, v in shown.items()}
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *scores)
    return methods_scores.Result(
      {who: scores[who] for who in LABELS}, pictures, LABELS
    )


def draw(
  model: network.SRT,
  tokens: Float[Array, 'b n c'],
  images: Array,
  intrinsics: Array,
  world_to_camera: Array,
  pixels: Int[Array, 'b r'],
  ways: int,
) -> tuple[
  Float[Array, 'b r 3'], Float[Array, 'b r 3'], Float[Array, 'b r'] | None
]:
  """Returns true colours, rendered colours and depth of pixels, in chunks.

  `ways` is the number of devices that the scenes are split over.
  """
  scenes, count = pixels.shape
  chunk = min(
    count,
    objective_lib.at_once(model.config, tokens.shape[1], scenes=scenes // ways),
  )
  padded = jnp.pad(pixels, [(0, 0), (0, -count % chunk)], mode='edge')

  def part(some):
    truth, *some_rays = objective_lib.targets_of(
      images, intrinsics, world_to_camera, some
    )
    drawn = model.decode(tokens, *some_rays)
    return truth, drawn.color, drawn.depth

  parts = jax.lax.map(
    part, einops.rearrange(padded, 'b (c r) -> c b r', r=chunk)
  )
  return jax.tree.map(
    lambda x: einops.rearrange(x, 'c b r ... -> b (c r) ...')[:, :count], parts
  )


def fixed_pixels(
  example: Int[Array, ' b'], population: int, count: int
) -> Int[Array, 'b r']:
  """Chooses the scored pixels of examples; all if `count` is 0."""
  if not count:
    return jnp.broadcast_to(jnp.arange(population), (len(example), population))
  keys = jax.vmap(jax.random.key)(example)
  return jax.vmap(
    lambda k: objective_lib.choose_pixels(k, 1, population, count)[0]
  )(keys)


def nearest_view(
  inputs: Float[Array, 'b k 3 4'], targets: Float[Array, 'b t 3 4']
) -> Int[Array, 'b t']:
  """Returns the input view whose camera is nearest to each target's.

  The distance is the angle between the viewing directions in radians, plus the
  distance of the centres divided by the mean distance of all centres from their
  mean.
  """
  sight, centre = (
    jnp.concatenate([f(inputs), f(targets)], axis=1)
    for f in (lambda x: x[..., 2, :3], lambda x: cameras.camera_centre(x, jnp))
  )
  spread = jnp.linalg.norm(centre - centre.mean(1, keepdims=True), axis=-1)
  k = inputs.shape[1]

  def between(x):
    return x[:, k:, None], x[:, None, :k]

  one, other = between(sight)
  angle = jnp.arccos(jnp.clip(jnp.sum(one * other, -1), -1, 1))
  one, other = between(centre)
  way = jnp.linalg.norm(one - other, axis=-1)
  scale = jnp.maximum(spread.mean(1), 1e-6)[:, None, None]
  return jnp.argmin(angle + way / scale, axis=-1)


def _score(
  colours: Float[Array, 'b r 3'],
  truth: Float[Array, 'b r 3'],
  lpips: Mapping[str, Params],
  shape: tuple[int, int, int] | None,
) -> dict[str, Float[Array, ' b']]:
  """Scores pixels; with a shape t, h, w they are whole views."""
  scores = {'psnr': metrics.psnr(colours[:, None], truth[:, None])}
  if shape is not None:
    t, h, _ = shape

    def views(x):
      return 2 * einops.rearrange(x, 'b (t h w) c -> b t h w c', t=t, h=h) - 1

    whole = metrics.score(views(jnp.clip(colours, 0, 1)), views(truth), lpips)
    scores |= {k: x.mean(1) for k, x in whole.items() if k != 'psnr'}
  return scores
