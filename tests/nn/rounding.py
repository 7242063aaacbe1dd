"""Programs computed as on an accelerator that rounds the factors of products.

A float32 product of default precision is one bfloat16 pass on a TPU and TF32 on
an NVIDIA GPU: factors are rounded, sums are float32. A CPU rounds nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

_DEFAULT, _HIGH = jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGH
# Bits of the mantissa by platform and precision; HIGHEST has all. The exponent
# has 8 bits everywhere. Three bfloat16 passes, HIGH on a TPU, are about as
# exact as factors of 15 bits.
MANTISSA = {
  'cuda': {_DEFAULT: 10, _HIGH: 10},
  'tpu': {_DEFAULT: 7, _HIGH: 15},
}
_PRODUCTS = ('dot_general', 'conv_general_dilated')


def rounded(function: Callable[..., Any], platform: str) -> Callable[..., Any]:
  """Returns `function` with the rounded products of a platform.

  Products of bfloat16 are equal on all platforms.

  Args:
    function: Function of trees of arrays.
    platform: One of `MANTISSA`.
  """

  @functools.wraps(function)
  def call(*args):
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    out = _evaluate(closed, jax.tree.leaves(args), platform)
    return jax.tree.unflatten(jax.tree.structure(shape), out)

  return call


def _evaluate(
  closed: core.ClosedJaxpr, args: list[Any], platform: str
) -> list[Any]:
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  values.update(zip(jaxpr.invars, args, strict=True))

  def read(x):
    return x.val if isinstance(x, core.Literal) else values[x]

  for eqn in jaxpr.eqns:
    out = _apply(eqn, [read(x) for x in eqn.invars], platform)
    if not eqn.primitive.multiple_results:
      out = [out]
    values.update(zip(eqn.outvars, out, strict=True))
  return [read(x) for x in jaxpr.outvars]


def _apply(eqn: core.JaxprEqn, inputs: list[Any], platform: str) -> Any:
  name, params = eqn.primitive.name, eqn.params
  if name in _PRODUCTS:
    bits = _mantissa(eqn, platform)
    if bits:
      inputs = [jax.lax.reduce_precision(x, 8, bits) for x in inputs]
  # What a custom derivative is the derivative of; it has been applied.
  if name in ('custom_jvp_call', 'custom_vjp_call'):
    return _evaluate(params['call_jaxpr'], inputs, platform)
  if params.get('branches_platforms'):
    names = params['branches_platforms']
    chosen = next(i for i, x in enumerate(names) if not x or platform in x)
    return _evaluate(params['branches'][chosen], inputs[1:], platform)
  params = {k: _rewrite(v, platform) for k, v in params.items()}
  return eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))


def _rewrite(value: Any, platform: str) -> Any:
  """Rewrites the programs among the parameters of an equation."""
  if type(value) is tuple:  # Not the named tuples of numbers.
    return tuple(_rewrite(x, platform) for x in value)
  if isinstance(value, core.Jaxpr):
    return _rewrite(core.ClosedJaxpr(value, ()), platform).jaxpr
  if not isinstance(value, core.ClosedJaxpr):
    return value
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in value.in_avals]
  return jax.make_jaxpr(lambda *args: _evaluate(value, args, platform))(*shapes)


def _mantissa(eqn: core.JaxprEqn, platform: str) -> int | None:
  """Returns the bits of a product's factors; None if they are not rounded."""
  if any(x.aval.dtype != 'float32' for x in eqn.invars):
    return None
  precision = eqn.params['precision'] or _DEFAULT
  pair = precision if isinstance(precision, tuple) else (precision,) * 2
  assert pair[0] == pair[1]
  return MANTISSA[platform].get(pair[0])
