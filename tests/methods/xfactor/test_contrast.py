"""SimCLR and VICReg by their published formulas; steps that only encode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.methods.xfactor import contrast
from xfactor.training import build


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  a = rng.standard_normal((6, 4))
  return jnp.float32(a), jnp.float32(a + 0.5 * rng.standard_normal((6, 4)))


def test_simclr_is_the_published_sum(rows):
  """Chen et al., equation 1, mean over both orders of every pair."""
  a, b = (np.asarray(x, np.float64) for x in rows)
  z = [row / np.linalg.norm(row) for row in (*a, *b)]
  n, total = len(a), 0.0
  for i in range(2 * n):
    j = (i + n) % (2 * n)
    others = sum(np.exp(z[i] @ z[k] / 0.1) for k in range(2 * n) if k != i)
    total -= np.log(np.exp(z[i] @ z[j] / 0.1) / others)
  np.testing.assert_allclose(contrast.simclr(*rows), total / (2 * n), rtol=1e-5)


def test_vicreg_is_the_published_sum(rows):
  """Of the code by Bardes et al. (main_vicreg.py): means over the channels."""
  a, b = (np.asarray(x, np.float64) for x in rows)
  total = 25 * np.mean(np.sum((a - b) ** 2, 1)) / a.shape[1]
  for z in (a, b):
    spread = np.sqrt(z.var(0, ddof=1) + 1e-4)
    total += 25 / 2 * np.maximum(0, 1 - spread).mean()
    matrix = np.cov(z, rowvar=False)
    matrix[np.diag_indices(4)] = 0
    total += np.sum(matrix**2) / 4
  np.testing.assert_allclose(contrast.vicreg(*rows), total, rtol=1e-5)


@pytest.mark.parametrize('name', contrast.OBJECTIVES)
def test_either_half_may_come_first(rows, name):
  a, b = rows
  loss = contrast.OBJECTIVES[name]
  forth, back = loss(a, b), loss(b, a)
  np.testing.assert_allclose(forth, back, rtol=1e-5)
  strangers = loss(a, jnp.roll(b, 1, axis=0))
  assert strangers > 1.1 * forth


@pytest.mark.parametrize('name', contrast.OBJECTIVES)
def test_gradients_are_finite_where_nothing_moves(rows, name):
  """A self-target's pose is zero from either half."""
  a, b = (x.at[0].set(0) for x in rows)
  grads = jax.grad(contrast.OBJECTIVES[name], argnums=(0, 1))(a, b)
  assert np.isfinite(grads).all()


@pytest.fixture(scope='module')
def simclr():
  """What a run of three steps starts and ends with."""
  config = small.recipe(
    'data',
    objective__contrast='simclr',
    objective__unmasked_prob=0.0,
    objective__lpips_weight=0.5,
    optimizer__weight_decay=0.5,
  )
  built = build.build(config, jax.devices()[:1])
  return built, built.init().params, small.three_steps(config, 1)[0]


@pytest.mark.slow
def test_only_the_pose_encoder_learns(simclr):
  """The rest decays, as all kernels do."""
  built, start, end = simclr
  assert not built.needs_lpips
  left = np.prod([1 - 0.5 * float(built.schedule(i)) for i in range(3)])
  learned = 0
  for name, before in start.items():
    decayed = before * left if name.endswith('kernel') else before
    is_still = np.allclose(end[name], decayed, rtol=1e-6, atol=0)
    learned += not is_still
    if name.startswith('renderer/'):
      assert is_still, name
  assert left < 0.9999
  assert learned > 10


@pytest.mark.slow
def test_pixels_are_not_counted(simclr):
  built = simclr[0]
  drawing = build.build(small.recipe('data'), jax.devices()[:1])
  assert built.method.flops(built) < 0.7 * drawing.method.flops(drawing)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'contrast': 'byol'}, 'config.objective.contrast=.*simclr, vicreg'),
    ({'contrast': 'simclr'}, 'config.objective.contrast=.*unmasked_prob=0.0'),
  ],
)
def test_what_cannot_be_contrasted_is_refused(changes, said):
  changes = {f'objective__{key}': value for key, value in changes.items()}
  with pytest.raises(UserError, match=said):
    build.build(small.recipe('data', **changes))
