"""The transformer block that SRT and the autoencoding methods share."""

import einops
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xfactor.nn import attention


class Block(nnx.Module):
  """Pre-norm self-attention, or cross-attention to tokens, and an MLP.

  Subclasses make the layers: `norm_attention`, `qkv` or else `q` and `kv`,
  `out`, `norm_mlp` and `mlp`; and set `heads` and `kernel`.
  """

  heads: int
  kernel: str

  def __call__(
    self,
    x_BTC: Float[Array, 'b t c'],
    tokens: Float[Array, 'b s d'] | None = None,
  ) -> Float[Array, 'b t c']:
    x_BTC = x_BTC + self._attention(self.norm_attention(x_BTC), tokens)
    return x_BTC + self.mlp(self.norm_mlp(x_BTC))

  def _attention(self, x_BTC: Array, tokens: Array | None) -> Array:
    if tokens is None:
      qkv = jnp.split(self.qkv(x_BTC), 3, axis=-1)
    else:
      qkv = self.q(x_BTC), *jnp.split(self.kv(tokens), 2, axis=-1)
    q, k, v = (
      einops.rearrange(x, 'b t (n d) -> b t n d', n=self.heads) for x in qkv
    )
    out = attention.attend(*self.prepare(q, k, v), kernel=self.kernel)
    return self.out(einops.rearrange(out, 'b t n d -> b t (n d)'))

  def prepare(
    self,
    q: Float[Array, 'b t n d'],
    k: Float[Array, 'b s n d'],
    v: Float[Array, 'b s n d'],
  ) -> tuple[Array, Array, Array]:
    """Returns what is attended with; without norms of the heads by default."""
    return q, k, v
