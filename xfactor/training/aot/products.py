"""Counts matrix products, convolutions and attention of a traced step.

XLA's own count is not used: it counts a scanned layer once, and is missing for
GPUs.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Of the cuDNN kernels: products for each pair of query and key, forward, and
# backward with the recomputed weights.
_CUDNN = {
  'dot_product_attention_fwd_wrapper': 2,
  'dot_product_attention_bwd_wrapper': 5,
}
# Operations that keep the axes of their (largest) operand.
_KEEP = ('convert_element_type', 'mul', 'copy', 'name', 'sharding_constraint')


@dataclasses.dataclass
class Products:
  """Work of one step, on all devices.

  Attributes:
    flops: FLOPs by operation and precision, for example 'dot bfloat16'.
    counts: Number of these operations.
    dtypes: Dtype in which each parameter is multiplied, by path.
    sums: Bytes of results of products whose contracted axis is split over the
      tensor axis: what devices along this axis have to add up.
  """

  flops: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )
  counts: dict[str, int] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(int)
  )
  dtypes: dict[str, jnp.dtype] = dataclasses.field(default_factory=dict)
  sums: float = 0.0

  def add(self, kind: str, flops: float, turns: int) -> None:
    """Adds an operation that runs several times."""
    self.flops[kind] += flops * turns
    self.counts[kind] += turns


def count(jaxpr: Any, paths: list[str | None], specs: Mapping) -> Products:
  """Counts the products of a traced step.

  Args:
    jaxpr: Closed jaxpr of the step.
    paths: Path of the parameter that each argument is, or None.
    specs: Partition spec of each parameter, by path.
  """
  walk = _Walk(Products(), specs)
  arguments = [
    path and (path, tuple(range(len(v.aval.shape))))
    for path, v in zip(paths, jaxpr.jaxpr.invars, strict=True)
  ]
  walk.run(jaxpr.jaxpr, arguments, 1)
  return walk.products


class _Walk:
  """Follows parameters through a jaxpr.

  What is known of a variable is the path of the parameter that it is made of,
  and the axis of the parameter that each of its axes is.
  """

  def __init__(self, products: Products, specs: Mapping):
    self.products = products
    self.specs = specs

  def run(self, jaxpr, arguments: list, turns: int) -> list:
    known = dict(zip(jaxpr.invars, arguments, strict=True))

    def look(v):
      return known.get(v) if isinstance(v, jax.extend.core.Var) else None

    for eqn in jaxpr.eqns:
      inputs = [look(v) for v in eqn.invars]
      results = self._equation(eqn, inputs, turns)
      known.update(zip(eqn.outvars, results, strict=False))
    return [look(v) for v in jaxpr.outvars]

  def _equation(self, eqn, inputs: list, turns: int) -> list:
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.invars]
    nothing = [None] * len(eqn.outvars)
    if name == 'dot_general':
      self._dot(eqn, inputs, turns)
    elif name == 'conv_general_dilated':
      self._convolution(eqn, inputs, turns)
    elif name in _CUDNN:
      (batch, queries, heads, depth), keys = shapes[0], shapes[1][1]
      flops = 2 * _CUDNN[name] * batch * heads * queries * keys * depth
      kind = f'attention {_precision(eqn)}'
      self.products.add(kind, flops, turns)
    elif name == 'scan':
      return self._scan(eqn, inputs, turns)
    elif name == 'pallas_call':
      self._kernel(params, turns)
    elif name == 'shard_map':
      self._inside(params['jaxpr'], turns * params['mesh'].size)
    elif name == 'cond':
      self._inside(params['branches'][-1], turns)
    elif name == 'while':
      self._inside(params['body_jaxpr'], turns)
    elif name == 'transpose' and inputs[0]:
      path, axes = inputs[0]
      return [(path, tuple(axes[i] for i in params['permutation']))]
    elif name in ('squeeze', 'reshape') and inputs[0]:
      path, axes = inputs[0]
      kept = [a for a, n in zip(axes, shapes[0], strict=True) if n != 1]
      if len(kept) == len(eqn.outvars[0].aval.shape):
        return [(path, tuple(kept))]
    elif name in _KEEP:
      out = eqn.outvars[0].aval.shape
      same = [x for x, s in zip(inputs, shapes, strict=True) if s == out and x]
      return same[:1] or nothing
    else:
      for inner in params.values():
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          if len(inner.invars) != len(inputs):
            inputs = [None] * len(inner.invars)
          return self.run(inner, inputs, turns)
    return nothing

  def _kernel(self, params, turns: int) -> None:
    """Adds a Pallas kernel, which runs once for each point of its grid."""
    inner = _Walk(Products(), self.specs)
    inner._inside(params['jaxpr'], math.prod(params['grid_mapping'].grid))
    for kind, flops in inner.products.flops.items():
      self.products.add(kind.replace('dot', 'kernel'), flops, turns)

  def _inside(self, jaxpr, turns: int) -> None:
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
    self.run(jaxpr, [None] * len(jaxpr.invars), turns)

  def _scan(self, eqn, inputs: list, turns: int) -> list:
    params = eqn.params
    first = params['num_consts'] + params['num_carry']
    inside = [
      x and (x[0], x[1][1:]) if i >= first else x for i, x in enumerate(inputs)
    ]
    inside[params['num_consts'] : first] = [None] * params['num_carry']
    jaxpr = params['jaxpr'].jaxpr
    results = self.run(jaxpr, inside, turns * params['length'])
    carried = params['num_carry']
    stacked = [x and (x[0], (None, *x[1])) for x in results[carried:]]
    return [None] * carried + stacked

  def _dot(self, eqn, inputs: list, turns: int) -> None:
    contracted, _ = eqn.params['dimension_numbers']
    out = eqn.outvars[0].aval
    work = math.prod(eqn.invars[0].aval.shape[i] for i in contracted[0])
    flops = 2 * out.size * work
    self.products.add(f'dot {_precision(eqn)}', flops, turns)
    for known, axes, operand in zip(
      inputs, contracted, eqn.invars, strict=True
    ):
      if not known:
        continue
      path, places = known
      self.products.dtypes[path] = operand.aval.dtype
      spec = self.specs[path]
      split = [spec[places[i]] for i in axes if places[i] is not None]
      if 'tensor' in split:
        self.products.sums += turns * out.size * out.dtype.itemsize

  def _convolution(self, eqn, inputs: list, turns: int) -> None:
    if inputs[1]:
      self.products.dtypes[inputs[1][0]] = eqn.invars[1].aval.dtype
    kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
    numbers = eqn.params['dimension_numbers']
    channels = kernel.shape[numbers.rhs_spec[0]]
    taps = kernel.size // channels
    dilation = math.prod(eqn.params['lhs_dilation'])
    flops = 2 * out.size * taps / dilation
    self.products.add(f'convolution {_precision(eqn)}', flops, turns)


def _precision(eqn) -> str:
  """Returns for example 'bfloat16', 'float32' or 'float32 highest'."""
  dtype = jnp.result_type(*(v.aval.dtype for v in eqn.invars[:2]))
  chosen = eqn.params.get('precision')
  if chosen is None or dtype != jnp.float32:
    return str(dtype)
  if isinstance(chosen, tuple):
    chosen = max(chosen, key=lambda x: x.value)
  label = getattr(chosen, 'name', str(chosen)).lower()
  return str(dtype) if label == 'default' else f'{dtype} {label}'
