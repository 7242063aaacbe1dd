"""Layers whose formulation is ours equal the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np

from xfactor.nn import layers


def slope(function, x):
  return jax.vmap(jax.grad(lambda x: function(x).astype(jnp.float32)))(x)


def test_the_gradient_of_gelu_is_that_of_its_value():
  x = jnp.concatenate([jnp.linspace(-12, 12, 401), jnp.array([-1e4, 1e4])])
  want = slope(jax.nn.gelu, x)
  np.testing.assert_allclose(slope(layers.gelu, x), want, atol=1e-5)
  half = x.astype(jnp.bfloat16)
  want = slope(jax.nn.gelu, half.astype(jnp.float32))
  got = slope(layers.gelu, half)
  assert got.dtype == jnp.bfloat16
  # Half a unit in the last place: it is rounded once.
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=2**-8)
