"""Frechet distances of known Gaussians, and of pictures."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.golden_tolerance import assert_close
from tests.metrics import test_inception
from xfactor.errors import UserError
from xfactor.metrics import frechet, lpips, lpips_weights


def gaussian(mean, covariance, count=10**6):
  mean, covariance = np.float64(mean), np.float64(covariance)
  return frechet.Moments(count, mean, covariance * (count - 1))


def random_covariance(rng, size):
  root = rng.normal(size=(size, size))
  return root @ root.T


def test_distance_of_round_gaussians():
  a = gaussian([1, 2, 3], 4 * np.eye(3))
  b = gaussian([1, 0, 2], 9 * np.eye(3))
  assert frechet.distance(a, b) == pytest.approx(5 + 3 * (3 - 2) ** 2)
  assert frechet.distance(a, a) == pytest.approx(0, abs=1e-9)
  one, other = gaussian([0.5], [[0.25]]), gaussian([-1], [[4]])
  assert frechet.distance(one, other) == pytest.approx(1.5**2 + 1.5**2)


@pytest.mark.parametrize('size', [2, 7, 64])
def test_distance_is_that_of_the_formula(size):
  rng = np.random.default_rng(size)
  (m1, m2), c1, c2 = (
    rng.normal(size=(2, size)),
    random_covariance(rng, size),
    random_covariance(rng, size),
  )
  root = scipy.linalg.sqrtm(c1 @ c2).real
  want = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * root)
  a, b = gaussian(m1, c1), gaussian(m2, c2)
  assert frechet.distance(a, b) == pytest.approx(want, rel=1e-8)
  assert frechet.distance(b, a) == pytest.approx(want, rel=1e-8)


def test_fewer_pictures_than_features():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(10, 40)), rng.normal(1, 2, size=(25, 40))
  a, b = frechet.Moments.of(x), frechet.Moments.of(y)
  x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
  want = np.sum((a.mean - b.mean) ** 2) + np.sum(x**2) + np.sum(y**2)
  want -= 2 * np.linalg.norm(x @ y.T, 'nuc')
  assert frechet.distance(a, b) == pytest.approx(want, rel=1e-9)
  assert frechet.distance(a, a) == pytest.approx(0, abs=1e-9)


def test_samples_come_near_their_gaussians():
  rng = np.random.default_rng(0)
  c = random_covariance(rng, 4)
  x = rng.multivariate_normal(np.zeros(4), c, 20000)
  y = rng.multivariate_normal(np.full(4, 2), 4 * c, 20000)
  got = frechet.distance(frechet.Moments.of(x), frechet.Moments.of(y))
  assert got == pytest.approx(16 + np.trace(c), rel=0.03)


def test_few_pictures_are_warned_of(monkeypatch):
  told = []
  monkeypatch.setattr(
    frechet.logging,
    'log_first_n',
    lambda level, text, n, *args: told.append(text % args),
  )
  enough = gaussian(np.zeros(3), np.eye(3), count=4)
  frechet.distance(enough, enough)
  assert not told
  frechet.distance(dataclasses.replace(enough, count=3), enough)
  (text,) = told
  assert 'of 3 to 4 pictures is too large' in text
  assert 'features (3)' in text


def test_bad_sets_are_named():
  one = frechet.Moments.of(np.ones((1, 3)))
  with pytest.raises(UserError, match='at least 2 pictures'):
    frechet.distance(one, one)
  with pytest.raises(UserError, match='none were given'):
    frechet.Moments.of(np.ones((0, 3)))
  with pytest.raises(UserError, match='not finite'):
    frechet.Moments.of(np.array([[0, np.nan], [0, 0]]))


@pytest.mark.parametrize('offset', [0, 1e6])
@pytest.mark.parametrize('cuts', [[], [1], [50, 51], [10, 20, 30, 99]])
def test_moments_do_not_depend_on_batches(cuts, offset):
  x = np.random.default_rng(0).normal(size=(100, 5)) + offset
  first, *rest = (frechet.Moments.of(part) for part in np.split(x, cuts))
  total = sum(rest, start=first)
  assert total.count == 100
  np.testing.assert_allclose(total.mean, x.mean(0), rtol=1e-14, atol=1e-14)
  np.testing.assert_allclose(
    total.scatter / 99, np.cov(x, rowvar=False), rtol=1e-8, atol=1e-9
  )


def test_moments_of_float32_are_float64():
  x = np.random.default_rng(0).normal(1e3, 1, (1000, 2)).astype(np.float32)
  moments = frechet.Moments.of(x)
  exact = frechet.Moments.of(np.float64(x))
  assert moments.scatter.dtype == np.float64
  np.testing.assert_allclose(moments.scatter, exact.scatter, rtol=1e-12)


@pytest.fixture(scope='module')
def alexnet(tmp_path_factory):
  """A file of random weights of AlexNet."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('alex') / 'alex.npz'
  np.savez(
    path,
    **{
      name: rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype('f4')
      for name, x in lpips.param_shapes('alexnet').items()
    },
  )
  return path


def pictures(count, size=40):
  return np.stack([test_inception.picture(i, size, size) for i in range(count)])


def test_alexnet_stands_in_under_its_own_name(alexnet):
  features = frechet.Features(alexnet=alexnet, batch=4)
  assert features.name == 'fd_alex'
  x = pictures(3)
  got = features(x)
  assert got.dtype == np.float32
  maps = jax.jit(lpips.features)(
    lpips_weights.load('alexnet', alexnet),
    jax.numpy.asarray(np.float32(x / 127.5 - 1)),
  )
  want = np.asarray(maps[-1]).mean((1, 2))
  assert want.std(0).max() > 1e-3
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert features(x[:0]).shape == (0, 256)


def test_batches_and_devices_change_nothing(alexnet):
  x = pictures(11)
  want = frechet.Features(alexnet=alexnet, batch=11)(x)
  mesh = Mesh(np.array(jax.devices()), ('data',))
  assert mesh.size == 8
  for batch, sharding in ((4, None), (8, NamedSharding(mesh, P('data')))):
    features = frechet.Features(alexnet=alexnet, batch=batch, sharding=sharding)
    np.testing.assert_allclose(features(x), want, rtol=1e-4, atol=1e-5)


def test_worse_pictures_are_farther(alexnet):
  features = frechet.Features(alexnet=alexnet, batch=8)
  x = pictures(32)
  real = frechet.Moments.of(features(x[:16]))
  noise = np.random.default_rng(0).integers(-60, 60, x[16:].shape)
  noisy = np.uint8(np.clip(x[16:] + noise, 0, 255))
  same, worse = (
    frechet.distance(real, frechet.Moments.of(features(y)))
    for y in (x[16:], noisy)
  )
  assert worse > 2 * same > 0


def test_fid_is_by_inception(tmp_path, golden):
  path = tmp_path / 'inception.npz'
  np.savez(path, **test_inception.weights())
  features = frechet.Features(inception=path, batch=1)
  assert features.name == 'fid'
  got = features(test_inception.picture(0, 64, 64)[None])
  want = golden('inception')['features_0']
  assert_close(got, want)


def test_missing_weights_are_named(tmp_path):
  with pytest.raises(UserError, match='do not exist; download pt_inception'):
    frechet.Features(inception=tmp_path / 'none.pth')
