"""Held-out reconstruction: how well a view is drawn from its own latent pose.

Beside the model stand two baselines that know nothing of poses: copying the
first context view, and that view's mean colour. Between them stands the model
with poses from the other half of each view. The transfer panel applies one
clip's motion to another clip's scene, where there is no truth to score.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from xfactor.evaluation import images as metrics
from xfactor.models import perceptual
from xfactor.models.functional import Functional, Params
from xfactor.models.layers import to_float, to_uint8
from xfactor.models.xfactor import XFactor
from xfactor.training import objectives, sharding, writers


@dataclasses.dataclass(frozen=True)
class Result:
  """Scores and pictures of one data set.

  Attributes:
    scores: 'model', 'halves', 'copy' and 'mean' to metric to one number an
      example: psnr in dB, ssim up to 1, lpips where weights are there.
    images: What the panels show, uint8: 'context' [n, h, w, 3] (the first
      view), 'prediction', 'truth', 'scene' (the next example's first view) and
      'transfer' (that scene after this example's motion).
  """

  scores: dict[str, dict[str, np.ndarray]]
  images: dict[str, np.ndarray]

  @property
  def num_examples(self) -> int:
    return len(self.scores['model']['psnr'])

  def means(self) -> dict[str, dict[str, float]]:
    """Mean over examples of every score."""
    return {
      who: {name: float(np.mean(values)) for name, values in scores.items()}
      for who, scores in self.scores.items()
    }

  def reconstruction_panel(self, *, scale: int = 1) -> np.ndarray:
    """Context | prediction | truth, one row an example."""
    return writers.panel(
      [self.images[key] for key in ('context', 'prediction', 'truth')],
      scale=scale,
    )

  def transfer_panel(self, *, scale: int = 1) -> np.ndarray:
    """Motion's first view | its last | another scene | that scene moved."""
    return writers.panel(
      [
        self.images['context'],
        self.images['truth'],
        self.images['scene'],
        self.images['transfer'],
      ],
      scale=scale,
    )


class Evaluator:
  """Scores parameters on batches of held-out examples; compiles once."""

  def __init__(
    self,
    functional: Functional,
    mesh: Mesh,
    perceptual_weights: Params | None,
  ):
    self._mesh = mesh
    self._weights = perceptual_weights
    everywhere = NamedSharding(mesh, P())

    def eval_step(params, images, mask, weights):
      model = functional.bind(params)
      images = to_float(images)
      context, truth = images[:, 0], images[:, -1]
      poses = objectives.reconstruct_poses(model, images)
      prediction = model.render(images[:, :-1], poses)
      mean = jnp.broadcast_to(
        jnp.mean(context, axis=(1, 2), keepdims=True), context.shape
      )
      scenes = jnp.roll(images[:, :-1], -1, axis=0)
      candidates = {
        'model': prediction,
        'halves': draw_by_halves(model, images),
        'copy': context,
        'mean': mean,
      }
      scores = {
        who: score(image, truth, weights) for who, image in candidates.items()
      }
      pictures = {
        'context': context,
        'prediction': prediction,
        'truth': truth,
        'scene': scenes[:, 0],
        'transfer': objectives.transfer(model, images, scenes),
      }
      # The mask comes back whole: a process has only its part of it.
      return mask, scores, jax.tree.map(to_uint8, pictures)

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
      batches: Each with `images`, uint8 [b, v, h, w, 3], this process's part,
        and `mask`, bool [b], False for padding.
      num_images: How many examples' pictures to keep, at most a batch.
    """
    scores, pictures = [], None
    with jax.set_mesh(self._mesh):
      for batch in batches:
        images, mask = sharding.to_mesh(
          self._mesh, (batch['images'], batch['mask'])
        )
        *got, shown = self._step(params, images, mask, self._weights)
        keep, got = jax.device_get(got)
        scores.append(jax.tree.map(lambda x, keep=keep: x[keep], got))
        if pictures is None:
          pictures = {
            key: value[keep][:num_images]
            for key, value in jax.device_get(shown).items()
          }
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *scores)
    return Result(scores, pictures)


def draw_by_halves(
  model: XFactor, images: Float[Array, 'b v h w 3']
) -> Float[Array, 'b h w 3']:
  """The target drawn as in training: each half by the other half's pose.

  No pixel of a half can reach its own drawing, so that this measures how far
  poses transfer, where there is a truth to compare with. Halves are opposite
  quadrants, in every example the same.
  """
  order = jnp.broadcast_to(jnp.array([[0, 3, 1, 2]]), (len(images), 4))
  pairs = objectives.encoder_pairs(images)
  return objectives.reconstruct(model, images, pairs, order).image


def score(
  image: Float[Array, 'b h w 3'],
  truth: Float[Array, 'b h w 3'],
  weights: Params | None,
) -> dict[str, Float[Array, ' b']]:
  """PSNR, SSIM and, with its weights, LPIPS of images in [-1, 1]."""
  # As a viewer would get them: eight bits a channel.
  image = to_float(to_uint8(image))
  unit, truth_unit = (image + 1) / 2, (truth + 1) / 2
  out = {
    'psnr': metrics.psnr(unit, truth_unit),
    'ssim': metrics.ssim(unit, truth_unit),
  }
  if weights is not None:
    out['lpips'] = perceptual.lpips(weights, image, truth)
  return out


def table(name: str, result: Result) -> str:
  """The scores as lines of text for people."""
  means = result.means()
  columns = list(next(iter(means.values())))
  labels = {
    'model': 'model',
    'halves': 'pose of the other half',
    'copy': 'copy the context frame',
    'mean': 'mean colour',
  }
  lines = [f'{name} ({result.num_examples} held-out examples)']
  lines.append(' ' * 24 + ''.join(f'{c.upper():>9}' for c in columns))
  for who, label in labels.items():
    cells = ''.join(f'{means[who][c]:9.3f}' for c in columns)
    lines.append(f'  {label:22}{cells}')
  return '\n'.join(lines)
