"""The train step: pure, one program for split steps and one for whole ones."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from xfactor.methods.base import Batch, Method, StepKind
from xfactor.nn.functional import Functional, Params
from xfactor.training.control import Control
from xfactor.training.state import TrainState


def root_keys(seed: int) -> Array:
  """Two keys that share no stream: for the parameters and for the steps."""
  return jax.random.split(jax.random.key(seed))


def train_step(
  state: TrainState,
  batch: Batch,
  perceptual_weights: Params | None = None,
  control: Control | None = None,
  *,
  method: Method,
  functional: Functional,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  objective: Any,
  seed: int,
  accumulate: int,
  kind: StepKind,
) -> tuple[TrainState, dict[str, Array]]:
  """One optimizer update on a global batch.

  Everything random is drawn for the global batch from (seed, step), so that
  neither the mesh nor `accumulate` changes what an example sees.

  Where the loss or the gradient is not finite, or the gradient too large,
  parameters and optimizer stay as they are, its counts included; only the step
  goes on. So a state is never worse than the one before.

  Args:
    state: Donated by the caller.
    batch: The global batch: the method's arrays, as the pipeline yields them.
    perceptual_weights: Of LPIPS, an argument so that they are no constants
      of the program; None where the loss has none.
    control: Requests and the largest gradient; none and infinity by default.
    method: Of the networks and their objective.
    functional: The networks' structure.
    tx: The gradient transformation.
    schedule: Learning rate by update, for the metrics.
    objective: The loss.
    seed: Of everything random.
    accumulate: Parts that the batch is worked through in.
    kind: Kind of the step.

  Returns:
    The next state and the step's metrics: loss and its parts, gradient norm
    before clipping, learning rate, whether the step was `skipped` because it
    was not finite or as one of the `spikes`, the `request`, and `module_norms`
    [modules], the gradient's by module in the order of `modules`.
  """
  key = jax.random.fold_in(root_keys(seed)[1], state.step)
  draws = method.sample(key, batch, objective)

  def loss(params, batch, draws):
    return method.loss(
      functional.bind(params),
      batch,
      draws,
      objective,
      kind=kind,
      weights=perceptual_weights,
    )

  grads, metrics = accumulate_gradients(
    functools.partial(jax.grad(loss, has_aux=True), state.params),
    (batch, draws),
    accumulate,
  )
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  after = optax.apply_updates(state.params, updates), opt_state
  module_norms = jnp.stack(
    [
      optax.tree.norm({k: grads[k] for k in paths})
      for paths in modules(grads).values()
    ]
  )
  grad_norm = optax.tree.norm(grads)
  finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(grad_norm)
  limit = jnp.inf if control is None else control.max_grad_norm
  taken = finite & (grad_norm <= limit)
  params, opt_state = jax.tree.map(
    functools.partial(jnp.where, taken),
    after,
    (state.params, state.opt_state),
  )
  metrics |= {
    'grad_norm': grad_norm,
    'learning_rate': schedule(_updates_done(state.opt_state)),
    'skipped': ~finite,
    'spikes': finite & ~taken,
    'module_norms': module_norms,
  }
  if control is not None:
    metrics['request'] = control.requests.max()
  return TrainState(state.step + 1, params, opt_state), metrics


def modules(params: Mapping[str, Any]) -> dict[str, list[str]]:
  """The modules that have parameters, in order, and their parameters' paths."""
  found = {}
  for path in sorted(params):
    found.setdefault(path.rpartition('/')[0], []).append(path)
  return found


def _updates_done(opt_state: Any) -> Array:
  """Updates that the optimizer has done: those left out do not count."""
  return optax.tree.get_all_with_path(opt_state, 'count')[0][1]


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
