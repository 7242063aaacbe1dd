"""Frechet distance between the features of two sets of pictures; FID.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule": the distance
of two Gaussians with the moments of each set's features. It is called FID only
with the features of `metrics.inception` and its weights. Otherwise AlexNet is
used under the name `fd_alex`; its numbers are not comparable with FID.

  features = Features(inception='pt_inception-2015-12-05-6726825d.pth')
  real = Moments.of(features(pictures)) + Moments.of(features(more_pictures))
  distance(real, Moments.of(features(renders)))
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, UInt8

from xfactor.errors import UserError
from xfactor.metrics import images as images_lib
from xfactor.metrics import inception as inception_lib
from xfactor.metrics import lpips, lpips_weights
from xfactor.nn.layers import to_float


class Features:
  """Feature extractor for pictures; returns float32 [n, d].

  Attributes:
    name: Name of the distance: 'fid' or 'fd_alex'.

  Args:
    inception: Weights of Inception, or None for AlexNet's last features,
      averaged over the picture.
    alexnet: Weights of AlexNet; see `lpips_weights.load`.
    batch: Pictures at once; does not change the features.
    sharding: Sharding of a batch; see `images.in_batches`.

  Raises:
    UserError: If weights are missing or of another network.
  """

  def __init__(
    self,
    *,
    inception: str | os.PathLike[str] | None = None,
    alexnet: str | os.PathLike[str] | None = None,
    batch: int = 32,
    sharding: NamedSharding | None = None,
  ):
    self._batch = batch
    self._sharding = sharding
    if inception is not None:
      self.name = 'fid'
      self._step, weights = _inception, inception_lib.load(inception)
    else:
      self.name = 'fd_alex'
      self._step, weights = _alexnet, lpips_weights.load('alexnet', alexnet)
    self._weights = images_lib.everywhere(weights, sharding)

  def __call__(
    self, images: UInt8[np.ndarray, 'n h w 3']
  ) -> Float[np.ndarray, 'n d']:
    return images_lib.in_batches(
      lambda x: self._step(self._weights, x),
      images,
      batch=self._batch,
      sharding=self._sharding,
    )


@jax.jit
def _inception(
  weights: lpips.Params, images: UInt8[Array, 'n h w 3']
) -> Float[Array, 'n d']:
  return inception_lib.features(weights, images.astype(jnp.float32) / 255)


@jax.jit
def _alexnet(
  weights: lpips.Params, images: UInt8[Array, 'n h w 3']
) -> Float[Array, 'n d']:
  return lpips.features(weights, to_float(images))[-1].mean((1, 2))


@dataclasses.dataclass(frozen=True)
class Moments:
  """Mean and scatter of features in float64; moments of two sets can be added.

  Attributes:
    count: Number of pictures.
    mean: float64 [d].
    scatter: float64 [d, d], sum of the outer products of the features minus
      their mean. The covariance is `scatter / (count - 1)`.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(cls, features: Float[np.ndarray, 'n d']) -> 'Moments':
    """Returns the moments of a set.

    Raises:
      UserError: If the set is empty or a feature is not finite.
    """
    if not len(features):
      raise UserError('a Frechet distance needs pictures; none were given')
    if not np.isfinite(features).all():
      raise UserError(
        'the features of some pictures are not finite; check the weights of '
        'the feature network'
      )
    mean = np.mean(features, axis=0, dtype=np.float64)
    rest = features - mean
    return cls(len(features), mean, rest.T @ rest)

  def __add__(self, other: 'Moments') -> 'Moments':
    # Chan et al. 1979: avoids cancellation of large numbers.
    count = self.count + other.count
    gap = other.mean - self.mean
    return Moments(
      count=count,
      mean=self.mean + gap * (other.count / count),
      scatter=self.scatter
      + other.scatter
      + np.outer(gap, gap) * (self.count * other.count / count),
    )


def distance(a: Moments, b: Moments) -> float:
  """Returns |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

  It is biased upwards for few pictures: compare only distances of equally many
  pictures. A warning is logged unless there are more pictures than features.

  Raises:
    UserError: If a set has only one picture.
  """
  if min(a.count, b.count) < 2:
    raise UserError(
      'a Frechet distance needs at least 2 pictures in each set; evaluate more '
      'clips'
    )
  if min(a.count, b.count) <= len(a.mean):
    logging.log_first_n(
      logging.WARNING,
      'The Frechet distance of %d to %d pictures is too large: use more '
      'pictures than features (%d)',
      1,
      *(a.count, b.count, len(a.mean)),
    )
  gap = a.mean - b.mean
  # The trace of the root of C_a C_b is the sum of the singular values of
  # R_a^T R_b, where C = R R^T: this takes no square root of rounding errors.
  root_a, root_b = _root(a), _root(b)
  overlap = np.linalg.norm(root_a.T @ root_b, 'nuc')
  spread = np.sum(root_a**2) + np.sum(root_b**2)
  return max(float(gap @ gap + spread - 2 * overlap), 0.0)


def _root(moments: Moments) -> np.ndarray:
  """Returns R [d, rank] such that R R^T is the covariance."""
  values, vectors = np.linalg.eigh(moments.scatter / (moments.count - 1))
  rounding = len(values) * np.finfo(values.dtype).eps * values[-1]
  keep = values > rounding
  return vectors[:, keep] * np.sqrt(values[keep])
