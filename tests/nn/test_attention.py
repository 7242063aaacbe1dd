"""Every kernel against a plain softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xfactor.errors import UserError
from xfactor.nn import attention


def draw(tokens, keys, heads=2, depth=16, batch=2):
  rng = np.random.default_rng(tokens)
  shapes = ((batch, n, heads, depth) for n in (tokens, keys, keys))
  return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def plain(q, k, v):
  logits = np.einsum('btnd,bsnd->bnts', q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bnts,bsnd->btnd', weights, v)


@pytest.mark.parametrize(('tokens', 'keys'), [(1, 1), (7, 40), (65, 65)])
def test_einsum_is_softmax_attention(tokens, keys):
  q, k, v = draw(tokens, keys)
  out = attention.attend(q, k, v, kernel='einsum')
  np.testing.assert_allclose(out, plain(q, k, v), atol=1e-6)


@pytest.mark.parametrize(('tokens', 'keys'), [(40, 40), (130, 72)])
def test_splash_pads_and_equals_einsum(tokens, keys):
  q, k, v = draw(tokens, keys)

  def value(q, k, v, attend):
    return jnp.sum(jnp.sin(attend(q, k, v)))

  got, want = (
    jax.value_and_grad(lambda *x, f=f: value(*x, f), argnums=(0, 1, 2))(q, k, v)
    for f in (
      lambda *x: attention._splash(*x, interpret=True),
      attention.attend,
    )
  )
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for a, b in zip(got[1], want[1], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_half_precision_stays_near():
  q, k, v = draw(64, 64)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
  out = attention.attend(*half)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), plain(q, k, v), atol=0.03)


def test_auto_serves_each_platform():
  choose = attention.choose_kernel
  assert choose('auto', 'cpu', jnp.float32) == 'einsum'
  assert choose('auto', 'gpu', jnp.bfloat16) == 'cudnn'
  assert choose('auto', 'gpu', jnp.float32) == 'einsum'
  assert choose('auto', 'tpu', jnp.bfloat16) == 'splash'
  assert choose('einsum', 'tpu', jnp.bfloat16) == 'einsum'
  with pytest.raises(UserError, match='half precision'):
    choose('cudnn', 'gpu', jnp.float32)
