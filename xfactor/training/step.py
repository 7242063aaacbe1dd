"""The train step: a pure function, compiled once for each kind of step."""

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
  """Returns independent keys for the parameters and for the steps."""
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
  ema: float,
  kind: StepKind,
) -> tuple[TrainState, dict[str, Array]]:
  """Applies one optimizer update on a global batch.

  All random numbers are sampled for the global batch from (seed, step), so
  they depend neither on the mesh nor on `accumulate`.

  If the loss or the gradient is not finite, or the gradient is too large, the
  parameters, their average and the optimizer state, including its counts, do
  not change. Only the step is incremented. Such steps therefore never damage
  the state.

  Args:
    state: Train state; the caller donates it.
    batch: Global batch: the method's arrays, as the pipeline yields them.
    perceptual_weights: LPIPS weights, passed as an argument so that they are
      not constants of the program; None if the loss does not use LPIPS.
    control: Requests and gradient limit; by default no request and no limit.
    method: Method of the networks and their objective.
    functional: Structure of the networks.
    tx: Gradient transformation.
    schedule: Learning rate by update, for the metrics.
    objective: Loss.
    seed: Seed of all random numbers.
    accumulate: Parts of the batch whose gradients are accumulated.
    ema: Decay of the average of the parameters, if the state has one.
    kind: Kind of the step.

  Returns:
    The next state and the metrics of the step: loss and its parts, gradient
    norm before clipping, learning rate, whether the update was `skipped`
    because it was not finite or was one of the `spikes`, the `request`, and
    `module_norms` [modules], the gradient norms in the order of `modules`.
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
  with jax.named_scope('optimizer'):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  done = _updates_done(state.opt_state)
  average = {}
  if state.ema:
    decay = jnp.minimum(ema, (1 + done) / (10 + done))
    average = optax.incremental_update(params, state.ema, 1 - decay)
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
  params, opt_state, average = jax.tree.map(
    functools.partial(jnp.where, taken),
    (params, opt_state, average),
    (state.params, state.opt_state, state.ema),
  )
  metrics |= {
    'grad_norm': grad_norm,
    'learning_rate': schedule(done),
    'skipped': ~finite,
    'spikes': finite & ~taken,
    'module_norms': module_norms,
  }
  if control is not None:
    metrics['request'] = control.requests.max()
  return TrainState(state.step + 1, params, opt_state, average), metrics


def modules(params: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns the modules with parameters, sorted, and their parameter paths."""
  found = {}
  for path in sorted(params):
    found.setdefault(path.rpartition('/')[0], []).append(path)
  return found


def _updates_done(opt_state: Any) -> Array:
  """Returns the number of optimizer updates, without the skipped ones."""
  return optax.tree.get_all_with_path(opt_state, 'count')[0][1]


def accumulate_gradients(gradient: Callable, batch, parts: int):
  """Averages `gradient(*part)` over `parts` equal parts of the batch.

  Parts are interleaved, so that a batch sharded over devices is not moved.
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
