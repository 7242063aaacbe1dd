"""The train step: pure, one program for split steps and one for whole ones."""

import functools
from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from xfactor.models import perceptual
from xfactor.models.functional import Functional, Params
from xfactor.models.layers import to_float
from xfactor.training import objectives
from xfactor.training.state import TrainState


def root_keys(seed: int) -> Array:
  """Two keys that share no stream: for the parameters and for the steps."""
  return jax.random.split(jax.random.key(seed))


Batch = dict[str, Array]


def train_step(
  state: TrainState,
  batch: Batch,
  perceptual_weights: Params | None = None,
  *,
  functional: Functional,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  objective: objectives.Config,
  seed: int,
  accumulate: int,
  whole: bool,
) -> tuple[TrainState, dict[str, Float[Array, '']]]:
  """One optimizer update on a global batch.

  Everything random is drawn for the global batch from (seed, step), so that
  neither the mesh nor `accumulate` changes what an example sees.

  Args:
    state: Donated by the caller.
    batch: The global batch: `images`, uint8 [b, v, h, w, 3], and `frames`,
      int32 [b, v], their places in their clips, in order of time.
    perceptual_weights: Of LPIPS, an argument so that they are no constants
      of the program; None where the loss has none.
    functional: The networks' structure.
    tx: The gradient transformation.
    schedule: Learning rate by update, for the metrics.
    objective: The loss.
    seed: Of everything random.
    accumulate: Parts that the batch is worked through in.
    whole: Leave all examples unsplit.

  Returns:
    The next state and the step's metrics (loss and its parts, gradient norm
    before clipping, learning rate).
  """
  key = jax.random.fold_in(root_keys(seed)[1], state.step)
  draws = objectives.draw(key, batch['frames'], objective)

  def loss(params, images, draws):
    return objectives.loss(
      functional.bind(params),
      to_float(images),
      draws,
      objective,
      whole=whole,
      perceptual=functools.partial(
        perceptual.lpips,
        perceptual_weights,
        dtype=jnp.dtype(objective.lpips_dtype),
      ),
    )

  grads, metrics = accumulate_gradients(
    functools.partial(jax.grad(loss, has_aux=True), state.params),
    (batch['images'], draws),
    accumulate,
  )
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics |= {
    'grad_norm': optax.tree.norm(grads),
    'learning_rate': schedule(state.step),
  }
  return TrainState(state.step + 1, params, opt_state), metrics


def accumulate_gradients(gradient: Callable, batch, parts: int):
  """The mean of `gradient(*part)` over `parts` equal parts of the batch.

  Parts are dealt out like cards, so that a batch sharded over devices stays
  where it is.
  """
  if parts == 1:
    return gradient(*batch)
  dealt = jax.tree.map(
    lambda x: einops.rearrange(x, '(b p) ... -> p b ...', p=parts), batch
  )
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], dealt)),
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, gradient(*part)), None

  total, _ = jax.lax.scan(add, zeros, dealt)
  return jax.tree.map(lambda x: x / parts, total)
