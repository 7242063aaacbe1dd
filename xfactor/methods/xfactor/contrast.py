"""Objectives on poses only: SimCLR and VICReg (arXiv 2510.13063, table 6).

The poses of the two halves of an example should be similar, and those of
different examples should differ. Nothing is rendered; the pose probe measures
the quality of the poses.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Chen et al., ICML 2020, section 5.1; Bardes et al., ICLR 2022, section 4.2,
# whose terms are averaged as in its public code (facebookresearch/vicreg).
TEMPERATURE = 0.1
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0


def simclr(a: Float[Array, 'n z'], b: Float[Array, 'n z']) -> Float[Array, '']:
  """NT-Xent: each of 2 n poses must identify its partner among the others."""
  z = jnp.concatenate([a, b])
  z = z / jnp.sqrt(jnp.sum(z**2, -1, keepdims=True) + 1e-12)
  logits = jnp.matmul(z, z.T, precision='highest') / TEMPERATURE
  logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, logits)
  partner = jnp.roll(jnp.arange(len(z)), len(a))
  chosen = jnp.take_along_axis(logits, partner[:, None], axis=1)[:, 0]
  return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


def vicreg(a: Float[Array, 'n z'], b: Float[Array, 'n z']) -> Float[Array, '']:
  """VICReg: equal partners, unit variance per channel, no covariance."""
  invariance = jnp.mean((a - b) ** 2)
  variance = covariance = jnp.zeros(())
  for z in (a, b):
    z = z - jnp.mean(z, axis=0, keepdims=True)
    matrix = jnp.matmul(z.T, z, precision='highest') / (len(z) - 1)
    spread = jnp.sqrt(jnp.diag(matrix) + 1e-4)
    variance += jnp.mean(jax.nn.relu(1 - spread)) / 2
    apart = matrix - jnp.diag(jnp.diag(matrix))
    covariance += jnp.sum(apart**2) / z.shape[1]
  return INVARIANCE * invariance + VARIANCE * variance + COVARIANCE * covariance


# Names as in a recipe; rows of the two arguments are partners.
OBJECTIVES = {'simclr': simclr, 'vicreg': vicreg}
