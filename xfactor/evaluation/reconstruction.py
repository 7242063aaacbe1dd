"""Held-out reconstruction: how well a view is drawn from its own latent pose.

The reference is the most central frame, as in training; which other frame is
the target is fixed by the example's number. Beside the model stands the model
with poses from the other half of each view, and with the target pose of another
example: what that loses is what the poses are worth. Two baselines know nothing
of poses: copying the context view that is nearest in time, and that view's mean
colour. The transfer panel applies one clip's motion to another clip's scene,
where there is no truth to score.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from xfactor.errors import UserError
from xfactor.evaluation import images as metrics
from xfactor.models.functional import Functional, Params
from xfactor.models.layers import to_float, to_uint8
from xfactor.models.xfactor import XFactor
from xfactor.training import objectives, sharding, writers

LABELS = {
  'model': 'model',
  'halves': 'pose of the other half',
  'shuffled': "another example's pose",
  'copy': 'copy the nearest view',
  'mean': 'mean colour',
}


@dataclasses.dataclass(frozen=True)
class Result:
  """Scores and pictures of one data set.

  Attributes:
    scores: 'model', 'halves' (XFactor's), 'shuffled', 'copy' and 'mean' to
      metric to one number an example: psnr in dB, ssim up to 1, lpips where
      there are weights.
    images: What the panels show, uint8: 'context' [n, c, h, w, 3] (reference
      first), 'prediction' [n, h, w, 3], 'truth'; 'depth' of a volume; of latent
      poses 'scene' (the next example's reference) and 'transfer' (that scene
      after this example's motion).
    labels: What the keys of `scores` mean, for people.
  """

  scores: dict[str, dict[str, np.ndarray]]
  images: dict[str, np.ndarray]
  labels: Mapping[str, str] = dataclasses.field(default_factory=lambda: LABELS)

  @property
  def num_examples(self) -> int:
    return len(self.scores['model']['psnr'])

  def means(self) -> dict[str, dict[str, float]]:
    """Mean over examples of every score."""
    return {
      who: {name: float(np.mean(values)) for name, values in scores.items()}
      for who, scores in self.scores.items()
    }

  def panels(self, *, scale: int = 1) -> dict[str, np.ndarray]:
    """Pictures by kind, one row an example.

    reconstruction: contexts | prediction | truth | depth; transfer: the
    motion's reference | its target | another scene | that scene moved.
    """
    shown = self.images
    rows = {
      'reconstruction': [
        *np.moveaxis(shown['context'], 1, 0),
        *(shown[k] for k in ('prediction', 'truth', 'depth') if k in shown),
      ]
    }
    if 'transfer' in shown:
      rows['transfer'] = [
        shown['context'][:, 0],
        *(shown[k] for k in ('truth', 'scene', 'transfer')),
      ]
    return {kind: writers.panel(x, scale=scale) for kind, x in rows.items()}


class Evaluator:
  """Scores parameters on batches of held-out examples; compiles once."""

  def __init__(
    self,
    functional: Functional,
    mesh: Mesh,
    lpips: Mapping[str, Params],
  ):
    self._mesh = mesh
    self._lpips = dict(lpips)
    everywhere = NamedSharding(mesh, P())

    def eval_step(params, batch, lpips):
      model = functional.bind(params)
      views = choose_views(batch['frames'], batch['example'])
      images = to_float(objectives.take_views(batch['images'], views))
      truth = images[:, -1]
      context = nearest_context(
        images, jnp.take_along_axis(batch['frames'], views, axis=1)
      )
      poses = model.encode_views(images)
      prediction = model.render(images[:, :-1], poses)
      mean = jnp.broadcast_to(
        jnp.mean(context, axis=(1, 2), keepdims=True), context.shape
      )
      scenes = jnp.roll(images[:, :-1], -1, axis=0)
      candidates = {
        'model': prediction,
        'shuffled': model.render(images[:, :-1], shuffle_target(poses)),
        'copy': context,
        'mean': mean,
      }
      if isinstance(model, XFactor):
        candidates['halves'] = draw_by_halves(model, images)
      scores = {
        who: metrics.score(image, truth, lpips)
        for who, image in candidates.items()
      }
      pictures = {
        'context': images[:, :-1],
        'prediction': prediction,
        'truth': truth,
        'scene': scenes[:, 0],
        'transfer': objectives.transfer(model, images, scenes),
      }
      finite = jnp.isfinite(prediction).all((1, 2, 3))
      # The mask comes back whole: a process has only its part of it.
      return batch['mask'], finite, scores, jax.tree.map(to_uint8, pictures)

    self._step = jax.jit(eval_step, out_shardings=everywhere)

  def __call__(
    self,
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    num_images: int,
  ) -> Result:
    """Scores every example of the batches and keeps the first pictures.

    Args:
      params: Of the networks.
      batches: As `pipeline.eval_batches` yields them.
      num_images: How many examples' pictures to keep, at most a batch.

    Raises:
      UserError: If the model's pictures are not finite.
    """
    scores, pictures = [], None
    with jax.set_mesh(self._mesh):
      for batch in batches:
        batch = sharding.to_mesh(
          self._mesh,
          {k: batch[k] for k in ('images', 'frames', 'example', 'mask')},
        )
        *got, shown = self._step(params, batch, self._lpips)
        keep, finite, got = jax.device_get(got)
        check_finite(finite[keep])
        scores.append(jax.tree.map(lambda x, keep=keep: x[keep], got))
        if pictures is None:
          pictures = {
            key: value[keep][:num_images]
            for key, value in jax.device_get(shown).items()
          }
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *scores)
    # JAX sorts the keys of what it returns.
    labels = {who: label for who, label in LABELS.items() if who in scores}
    return Result({who: scores[who] for who in labels}, pictures, labels)


def check_finite(finite: Bool[np.ndarray, ' n']) -> None:
  """Raises UserError unless all examples were drawn with finite colours."""
  if not finite.all():
    raise UserError(
      f'{(~finite).sum()} of {len(finite)} pictures that the model drew of '
      'held-out examples are not finite: training diverged; evaluate a '
      'checkpoint from before'
    )


def choose_views(
  frames: Int[Array, 'b v'], example: Int[Array, ' b']
) -> Int[Array, 'b v']:
  """The views of fixed examples: reference, other contexts, target.

  By turns, over the examples, each of the other frames is the target.
  """
  order = objectives.by_centrality(frames)
  count = frames.shape[1] - 1
  turned = (jnp.arange(count)[None] + example[:, None] + 1) % count
  others = jnp.take_along_axis(order[:, 1:], turned, axis=1)
  return jnp.concatenate([order[:, :1], others], axis=1)


def nearest_context(
  images: Float[Array, 'b v h w 3'], frames: Int[Array, 'b v']
) -> Float[Array, 'b h w 3']:
  """The context view that is nearest to the target in time."""
  distance = jnp.abs(frames[:, :-1] - frames[:, -1:])
  nearest = jnp.argmin(distance, axis=1, keepdims=True)
  return objectives.take_views(images, nearest)[:, 0]


def shuffle_target(poses: Float[Array, 'b v z']) -> Float[Array, 'b v z']:
  """Each example with the target pose of the next."""
  target = jnp.roll(poses[:, -1:], -1, axis=0)
  return jnp.concatenate([poses[:, :-1], target], axis=1)


def draw_by_halves(
  model: XFactor, images: Float[Array, 'b v h w 3']
) -> Float[Array, 'b h w 3']:
  """The target drawn as in training: each half by the other half's pose.

  No pixel of a half can reach its own drawing, so that this measures how far
  poses transfer, where there is a truth to compare with. Halves are opposite
  quadrants, in every example the same.
  """
  order = jnp.broadcast_to(jnp.array([[0, 3, 1, 2]]), (len(images), 4))
  sets = objectives.encoder_sets(images, model.config.joint_encoder)
  return objectives.reconstruct(model, images, sets, order).image


def table(name: str, result: Result) -> str:
  """The scores as lines of text for people."""
  means = result.means()
  columns = list(next(iter(means.values())))
  lines = [f'{name} ({result.num_examples} held-out examples)']
  lines.append(' ' * 24 + ''.join(f'{c.upper():>9}' for c in columns))
  for who, label in result.labels.items():
    cells = ''.join(f'{means[who][c]:9.3f}' for c in columns)
    lines.append(f'  {label:22}{cells}')
  return '\n'.join(lines)
