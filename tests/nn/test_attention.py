"""Every kernel against a plain softmax."""

import functools
import re

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


@pytest.mark.slow
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


@pytest.mark.parametrize(
  ('tokens', 'keys', 'depth'),
  [(7, 8, 16), (6, 9, 12), (1, 1, 4)],
)
def test_cudnn_pads_and_equals_einsum(tokens, keys, depth):
  """JAX's other implementation, given the same padded arrays and lengths."""
  q, k, v = draw(tokens, keys, depth=depth)

  def value(attend, *qkv):
    return jnp.sum(jnp.sin(attend(*qkv)))

  got, want = (
    jax.jit(jax.value_and_grad(functools.partial(value, f), (0, 1, 2)))(q, k, v)
    for f in (
      functools.partial(attention._cudnn, implementation='xla'),
      attention.attend,
    )
  )
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  for a, b in zip(got[1], want[1], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def lowered(platform, kernel, tokens, keys, depth):
  """Attention and its gradients, lowered for a platform that is not here."""
  q, k = (
    jax.ShapeDtypeStruct((2, n, 2, depth), jnp.bfloat16) for n in (tokens, keys)
  )

  def total(*qkv):
    return jnp.sum(attention.attend(*qkv, kernel=kernel).astype(jnp.float32))

  gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  program = gradients.trace(q, k, k).lower(lowering_platforms=(platform,))
  return program.as_text()


def check_cudnn(tokens, keys, depth):
  text = lowered('cuda', 'cudnn', tokens, keys, depth)
  assert ('fmhaSoftmaxBackward' in text) == (depth <= 128)


def check_splash(tokens, keys, depth):
  text = lowered('tpu', 'splash', tokens, keys, depth)
  # Forward, and the gradients of queries, and of keys and values.
  assert len(re.findall('custom_call @tpu_custom_call', text)) == 3


@pytest.mark.parametrize(
  ('tokens', 'keys'),
  [(n, n) for n in (1, 2, 3, 127, 128, 129, 257, 299, 300)]
  + [(1, 300), (300, 1), (16, 17), (17, 16)],
)
def test_cudnn_lowers_for_any_length(cudnn, tokens, keys):
  check_cudnn(tokens, keys, 64)


@pytest.mark.parametrize('depth', [4, 8, 12, 36, 128, 132, 256])
def test_cudnn_lowers_for_any_head_dimension(cudnn, depth):
  check_cudnn(257, 31, depth)


@pytest.mark.parametrize(
  ('tokens', 'keys', 'depth'),
  [(1, 300, 64), (128, 129, 4), (257, 257, 100), (300, 1, 256)],
)
def test_splash_lowers_for_any_length_and_head_dimension(tokens, keys, depth):
  check_splash(tokens, keys, depth)


@pytest.mark.soak
@pytest.mark.parametrize('check', [check_cudnn, check_splash])
def test_all_lengths_lower(cudnn, check):
  """Queries ascend, keys descend, and all head dimensions are among them."""
  for n in range(1, 301):
    check(n, 301 - n, 4 * (n % 64 + 1))


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
