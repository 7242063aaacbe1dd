"""SRT, improved and volumetric SRT: the public code's numbers, properties."""

import dataclasses
import functools
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import plain_srt
from jax.sharding import PartitionSpec as P

from tests.golden_tolerance import ROUNDING, assert_all_close, assert_close
from xfactor.errors import UserError
from xfactor.exchange import srt_names
from xfactor.methods.srt import network
from xfactor.nn import attention, optimizer, sharding
from xfactor.nn.functional import Functional

TINY = network.Config(
  features=48,
  heads=4,
  mlp_features=96,
  conv_blocks=3,
  conv_features=8,
  encoder_layers=2,
  dtype='float32',
)
VOLUME = dataclasses.replace(
  TINY,
  decoder='nerf',
  conv_blocks=2,
  encoder_layers=1,
  coarse_samples=16,
  fine_samples=8,
  min_dist=0.5,
  max_dist=6.0,
)
FINE_NET = dataclasses.replace(
  VOLUME, fine_net=True, min_dist=0.035, max_dist=35.0, min_z=0.0
)
ISRT = {'encoder': 'isrt', 'decoder': 'isrt'}
CONFIGS = {
  'srt_tiny': TINY,
  'isrt_tiny': dataclasses.replace(TINY, **ISRT, conv_blocks=2),
  'vsrt_tiny': VOLUME,
  'vsrt_tiny_finenet': FINE_NET,
}
FULL = {
  'srt_full': network.Config(dtype='float32'),
  'isrt_full': network.Config(
    **ISRT, conv_blocks=3, encoder_layers=5, dtype='float32'
  ),
}
# Roundings of volumes, see golden_tolerance; those of light fields are usual.
# Points are encoded with frequencies of up to 2^9 pi, which magnify theirs, and
# where coarse weights are small, fine samples move far with them.
COARSE = 1.5e-5  # Colours, depths and losses.
COLOR, DEPTH = 1.4e-4, 4.4e-4
GRADIENTS = 3.1e-4


def rounding(name, of_volumes):
  return of_volumes if name.startswith('vsrt') else ROUNDING


def make(config, platform='cpu'):
  return Functional(
    lambda rngs: network.SRT(config, rngs=rngs, platform=platform)
  )


def inputs_of(arrays):
  """Images, as ours are laid out, origins and directions."""
  names = ('images', 'camera_pos', 'rays')
  images, *cameras = (jnp.asarray(arrays[f'in/input_{x}']) for x in names)
  return images.transpose(0, 1, 3, 4, 2), *cameras


def targets_of(arrays):
  """Colours, origins and directions."""
  names = ('pixels', 'camera_pos', 'rays')
  return tuple(jnp.asarray(arrays[f'in/target_{x}']) for x in names)


def squared_error(functional, params, inputs, targets):
  """The public loss; with it what led there."""
  model = functional.bind(params)
  tokens = model.encode(*inputs)
  drawn = model.decode(tokens, *targets[1:])
  errors = {'mse': ((drawn.color - targets[0]) ** 2).mean((1, 2))}
  if drawn.coarse_color is not None:
    errors['coarse_mse'] = ((drawn.coarse_color - targets[0]) ** 2).mean((1, 2))
  return sum(errors.values()).mean(), (tokens, drawn, errors)


def step(config, params, arrays):
  """`squared_error` and its gradient."""
  inputs, targets = inputs_of(arrays), targets_of(arrays)

  @jax.jit
  def gradient(params):
    return jax.value_and_grad(
      functools.partial(squared_error, make(config)), has_aux=True
    )(params, inputs, targets)

  found, grads = gradient(params)
  return found, jax.device_get(grads)


@pytest.fixture(scope='module')
def load(golden):
  """A golden file, its parameters as ours, and our step on them."""

  @functools.cache
  def load(name):
    arrays = golden(name)
    state = {k[3:]: v for k, v in arrays.items() if k.startswith('sd/')}
    ours = srt_names.to_ours(srt_names.named_parameters(state))
    params = {path: jnp.asarray(array) for path, array in ours.items()}
    (loss, (tokens, drawn, errors)), grads = step(CONFIGS[name], params, arrays)
    return types.SimpleNamespace(
      arrays=arrays,
      state=state,
      params=params,
      loss=loss,
      tokens=tokens,
      drawn=drawn,
      errors=errors,
      grads=grads,
    )

  return load


def norm(x):
  """As PyTorch has it: eight float32 lanes, which lose 1e-4 of large arrays."""
  lanes = np.resize(x.ravel(), (-(-x.size // 8), 8)) ** 2
  lanes.ravel()[x.size :] = 0
  return np.sqrt(np.cumsum(lanes, 0)[-1].sum())


def check_gradient_norms(grads, arrays, rounding=ROUNDING):
  """Of every parameter, each relative to itself or a tenth of the largest."""
  public = srt_names.to_public(grads)
  want = {
    name.removeprefix('gradnorm/'): array
    for name, array in arrays.items()
    if name.startswith('gradnorm/')
  }
  got = {name: norm(array) for name, array in public.items()}
  assert_all_close(got, want, rounding, least=0.1)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_public_parameter_has_a_place(load, name):
  shapes = {k: v.shape for k, v in make(CONFIGS[name]).shapes.items()}
  assert shapes == {k: v.shape for k, v in load(name).params.items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_tokens_colours_and_losses_are_golden(load, name):
  run = load(name)
  assert_close(run.tokens, run.arrays['out/z'])
  assert_close(run.drawn.color, run.arrays['out/pred'], rounding(name, COLOR))
  check = functools.partial(assert_close, rounding=rounding(name, COARSE))
  check(run.loss, run.arrays['out/loss'])
  check(sum(run.errors.values()), run.arrays['out/loss_per_scene'])
  for term, error in run.errors.items():
    check(error, run.arrays[f'out/term_{term}'])
  psnr = -10 * np.log10(run.errors['mse'])
  check(psnr, run.arrays['out/psnr_per_scene'])


@pytest.mark.parametrize('name', ['vsrt_tiny', 'vsrt_tiny_finenet'])
def test_volumes_are_golden(load, name):
  run = load(name)
  drawn, arrays = run.drawn, run.arrays
  assert_close(drawn.depth, arrays['out/extra_depth'], DEPTH)
  assert_close(drawn.coarse_color, arrays['out/extra_coarse_img'], COARSE)
  assert_close(drawn.coarse_depth, arrays['out/extra_coarse_depth'], COARSE)


@pytest.mark.parametrize('name', CONFIGS)
def test_gradients_are_golden(load, name):
  run = load(name)
  check_gradient_norms(run.grads, run.arrays, rounding(name, GRADIENTS))


@pytest.mark.parametrize('name', CONFIGS)
def test_rendered_pictures_are_golden(load, name):
  run = load(name)
  config = CONFIGS[name]
  rays = jnp.asarray(run.arrays['render/rays']).reshape(1, -1, 3)
  origins = jnp.broadcast_to(run.arrays['render/camera_pos'], rays.shape)
  decode = jax.jit(lambda params, *x: make(config).bind(params).decode(*x))
  drawn = decode(run.params, run.tokens[:1], origins, rays)
  want = run.arrays['render/img']
  assert_close(drawn.color.reshape(want.shape), want, rounding(name, COLOR))
  if config.decoder == 'nerf':
    depth = run.arrays['render/extra_depth']
    assert_close(drawn.depth.reshape(depth.shape), depth, DEPTH)


@pytest.mark.parametrize('fine', [0, 1])
def test_few_fine_samples_are_golden(golden, load, fine):
  arrays, run = golden('vsrt_variants'), load('vsrt_tiny_finenet')
  config = dataclasses.replace(
    FINE_NET, min_dist=0.5, max_dist=6.0, min_z=None, fine_samples=fine
  )
  decode = jax.jit(lambda params, *x: make(config).bind(params).decode(*x))
  drawn = decode(
    run.params, jnp.asarray(arrays['in/z']), *targets_of(run.arrays)[1:]
  )
  want = arrays[f'fine{fine}/img']
  color, depth = (COLOR, DEPTH) if fine else (COARSE, COARSE)
  assert_close(drawn.color, want[..., :3], color)
  assert_close(drawn.depth, arrays[f'fine{fine}/depth'], depth)
  if fine:
    assert_close(drawn.coarse_color, arrays['fine1/coarse_img'], COARSE)
    assert_close(drawn.coarse_depth, arrays['fine1/coarse_depth'], COARSE)
  else:
    assert_close(drawn.alpha, want[..., 3], COARSE)
    assert drawn.coarse_color is None


def draw_by_rule(name, shape):
  """Weights as the golden files' description says."""
  rng = np.random.RandomState(zlib.crc32(name.encode()))  # noqa: NPY002
  x = rng.standard_normal(shape).astype(np.float32)
  if 'embedding' in name:
    return 0.5 * x
  if len(shape) == 1:
    return 1 + 0.1 * x if name.endswith('norm.weight') else 0.1 * x
  gain = 1.4 if len(shape) == 4 else 1
  return x * np.float32(gain / np.sqrt(np.prod(shape[1:])))


def params_by_rule(config):
  shapes = make(config).shapes
  zeros = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for path, leaf in shapes.items()
  }
  public = srt_names.to_public(zeros)
  return srt_names.to_ours(
    {name: draw_by_rule(name, x.shape) for name, x in public.items()}
  )


def test_the_rule_is_the_golden_one(load):
  for path, array in params_by_rule(TINY).items():
    assert_close(array, load('srt_tiny').params[path])


@pytest.mark.slow
@pytest.mark.parametrize('name', FULL)
def test_full_size_is_golden(golden, name):
  arrays = golden(name)
  (loss, (tokens, drawn, _)), grads = step(
    FULL[name], params_by_rule(FULL[name]), arrays
  )
  assert_close(tokens, arrays['out/z'])
  assert_close(drawn.color, arrays['out/pred'])
  assert_close(loss, arrays['out/loss'])
  check_gradient_norms(grads, arrays)


def test_full_sizes_are_the_published_ones():
  sizes = {}
  for name, config in FULL.items():
    shapes = make(config).shapes.items()
    sizes[name] = [
      sum(np.prod(leaf.shape) for path, leaf in shapes if path.startswith(part))
      for part in ('encoder', 'decoder')
    ]
  for name, want in (('srt_full', [69.9, 4.05]), ('isrt_full', [29.5, 11.5])):
    np.testing.assert_allclose(np.divide(sizes[name], 1e6), want, atol=0.05)


@pytest.mark.parametrize('name', ['srt_tiny', 'isrt_tiny'])
def test_the_plain_reference_agrees(load, name):
  run = load(name)
  arrays = run.arrays
  inputs = jnp.asarray(arrays['in/input_images']), *inputs_of(arrays)[1:]

  @jax.jit
  def gradient(params):
    error = functools.partial(
      plain_srt.loss,
      inputs=inputs,
      targets=targets_of(arrays),
      heads=4,
      decoder_heads=12,
    )
    return jax.value_and_grad(error)(params)

  loss, grads = gradient(run.state)
  assert_close(loss, arrays['out/loss'])
  assert_all_close(srt_names.to_ours(jax.device_get(grads)), run.grads)


@pytest.mark.parametrize('name', CONFIGS)
def test_half_precision_stays_near(load, name):
  run = load(name)
  half = dataclasses.replace(CONFIGS[name], dtype='bfloat16')
  model = make(half).bind(run.params)
  tokens = jax.jit(model.encode)(*inputs_of(run.arrays))
  # The decoder on the same tokens: volumes magnify what is not.
  drawn = jax.jit(model.decode)(run.tokens, *targets_of(run.arrays)[1:])
  assert tokens.dtype == drawn.color.dtype == jnp.float32
  assert 0 < np.abs(tokens - run.tokens).max() < 0.05 * np.std(run.tokens)
  assert np.abs(drawn.color - run.drawn.color).max() < 0.05


def test_only_the_first_view_is_special(load):
  run = load('srt_tiny')
  inputs = inputs_of(run.arrays)
  model = make(TINY).bind(run.params)
  encode = jax.jit(lambda *x: model.encode(*x).reshape(2, 3, 6, 48))
  tokens = encode(*inputs)
  swapped = encode(*(x[:, [0, 2, 1]] for x in inputs))
  assert_close(swapped, tokens[:, [0, 2, 1]])
  other_first = encode(*(x[:, [1, 0, 2]] for x in inputs))
  assert np.abs(other_first - tokens[:, [1, 0, 2]]).max() > 0.1


def test_one_network_twice_is_a_fine_network_of_the_same_weights(load):
  run = load('vsrt_tiny')
  copied = {
    path.replace('/coarse/', '/fine/'): array
    for path, array in run.params.items()
    if '/coarse/' in path
  }
  two = make(dataclasses.replace(VOLUME, fine_net=True))
  args = run.tokens, *targets_of(run.arrays)[1:]
  drawn = jax.jit(lambda params: two.bind(params).decode(*args))(
    run.params | copied
  )
  for name, of_volumes in {
    'color': COLOR,
    'alpha': COLOR,
    'depth': DEPTH,
    'coarse_color': COARSE,
    'coarse_depth': COARSE,
  }.items():
    got, want = getattr(drawn, name), getattr(run.drawn, name)
    assert_close(got, want, of_volumes, err_msg=name)


def test_noise_moves_samples_and_even_noise_does_not(load):
  run = load('vsrt_tiny')
  origins, directions = targets_of(run.arrays)[1:]
  model = make(VOLUME).bind(run.params)
  decode = jax.jit(
    lambda noise: model.decode(run.tokens, origins, directions, noise)
  )
  shape = origins.shape[:2]
  even = network.Noise(
    jnp.full((*shape, 16), 0.5),
    jnp.broadcast_to(jnp.linspace(0, 1, 8), (*shape, 8)),
  )
  assert_close(decode(even).color, run.drawn.color, COLOR)
  noise = network.sample_noise(jax.random.key(0), shape, VOLUME)
  assert jax.tree.map(jnp.shape, noise) == jax.tree.map(jnp.shape, even)
  assert np.abs(decode(noise).color - run.drawn.color).max() > 1e-3
  assert network.sample_noise(jax.random.key(0), shape, TINY) is None


@pytest.mark.slow
def test_new_parameters_are_drawn_as_pytorch_does():
  """But for convolutions, cross-attention and the bias of ISRT's colours."""
  config = dataclasses.replace(TINY, features=96, conv_blocks=2)
  params = jax.jit(make(config).init)(jax.random.key(0))
  for path, fan_in in (
    ('encoder/convs/1/kernel', 9 * 8 / 6),  # He et al.
    ('encoder/project/kernel', 32),
    ('encoder/project/bias', 32),
    ('encoder/stack/layers/qkv/kernel', 96),
    ('encoder/stack/layers/mlp/layers/1/bias', 96),
    ('decoder/stack/layers/q/kernel', 180),
    ('decoder/stack/layers/kv/kernel', 96 / 3**2),
    ('decoder/stack/layers/out/kernel', 96 / 3**2),
    ('decoder/stack/layers/out/bias', 96),
    ('decoder/head/layers/0/kernel', 180),
  ):
    limit = fan_in**-0.5
    assert 0.95 * limit < np.abs(params[path]).max() < limit, path
    assert np.std(params[path]) == pytest.approx(limit / 3**0.5, rel=0.15), path
  improved = dataclasses.replace(config, encoder='isrt', decoder='isrt')
  grey = jax.jit(make(improved).init)(jax.random.key(0))
  assert (grey['decoder/head/layers/4/bias'] == 0.5).all()
  for name in ('pixel_embedding', 'canonical_camera', 'other_camera'):
    assert np.std(params[f'encoder/{name}']) == pytest.approx(1, rel=0.2)
  first, second = params['encoder/stack/layers/qkv/kernel']
  assert np.abs(first - second).max() > 0.1


@pytest.mark.slow
def test_colours_count_from_the_start():
  """As little grey pictures differ, their tokens differ as with their rays."""
  config = dataclasses.replace(TINY, encoder='isrt', decoder='isrt')
  model = make(config)
  params = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  shape = (2, 1, 16, 16, 3)
  # Around grey, as far as pixels of photographs lie apart.
  images = np.float32(rng.uniform(0.25, 0.75, (*shape[:2], 1, 1, 3)))
  images = np.broadcast_to(images, shape)
  rays = rng.standard_normal(shape).astype(np.float32)
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  places = rng.standard_normal((2, 1, 3)).astype(np.float32)

  @jax.jit
  def encode(images, places, rays):
    return model.bind(params).encode(images, places, rays)

  tokens = encode(images, places, rays)
  recoloured = np.abs(encode(images[::-1], places, rays) - tokens).mean()
  moved = np.abs(encode(images, places[::-1], rays[::-1]) - tokens).mean()
  assert 0.3 < recoloured / moved < 3


def test_pictures_beyond_the_embedding_are_refused_with_a_remedy():
  config = network.Config()
  network.check_size(config, 240, 320)
  # CLEVR3D: eight rows of tokens, the last one half empty.
  network.check_size(config, 120, 160)
  assert network.token_grid(config, 120, 160) == (8, 10)
  with pytest.raises(UserError, match='320 x 240.*config.model.rows.*16'):
    network.check_size(config, 241, 320)
  with pytest.raises(UserError, match='encoder="isrt"'):
    network.check_size(config, 64, 336)
  network.check_size(network.Config(encoder='isrt'), 480, 640)
  functional = make(config)
  views = (
    jax.ShapeDtypeStruct((1, 1, *x, 3), 'float32')
    for x in ((256, 256), (), (256, 256))
  )
  with pytest.raises(UserError, match='320 x 240'):
    jax.eval_shape(
      lambda params, *x: functional.bind(params).encode(*x),
      functional.shapes,
      *views,
    )


@pytest.mark.parametrize(
  ('change', 'names'),
  [
    ({'encoder': 'vit'}, 'config.model.encoder'),
    ({'decoder': 'vsrt'}, 'config.model.decoder'),
    ({'heads': 5}, 'config.model.heads'),
    ({'decoder_heads': 7}, 'config.model.decoder_heads'),
    ({'decoder': 'nerf', 'coarse_samples': 1}, 'config.model.coarse_samples'),
    ({'dtype': 'float16'}, 'config.model.dtype'),
    ({'remat': 'all'}, 'config.model.remat'),
    ({'attention': 'flash'}, 'config.model.attention'),
  ],
)
def test_bad_settings_name_their_key(change, names):
  with pytest.raises(UserError, match=names):
    make(dataclasses.replace(TINY, **change))


@pytest.mark.slow
def test_splash_takes_many_rays_to_few_tokens():
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.standard_normal((1, n, 2, 64)), jnp.float32)
    for n in (40, 16, 16)
  )

  def value(attend):
    return jax.value_and_grad(
      lambda q, k, v: jnp.sin(attend(q, k, v)).sum(), argnums=(0, 1, 2)
    )(q, k, v)

  got = value(functools.partial(attention._splash, interpret=True))
  want = value(attention.attend)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert_close(a, b)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_parameter_has_its_rules(name):
  config = dataclasses.replace(CONFIGS[name], features=64, decoder_heads=4)
  shapes = make(config).shapes
  mesh = sharding.make_mesh(sharding.Config(data=2, fsdp=2, tensor=2))
  places = sharding.param_shardings(mesh, shapes)
  decayed = optimizer.decay_mask(shapes)
  for path, leaf in shapes.items():
    assert decayed[path] == path.endswith('/kernel'), path
    # Widths of 3 and 183 channels do not split.
    if path.endswith('kernel') and np.prod(leaf.shape) > 1000:
      assert places[path].spec != P(*[None] * leaf.ndim), path
    if path.endswith(('qkv/kernel', 'q/kernel', 'kv/kernel')):
      assert places[path].spec == P(None, 'fsdp', 'tensor')
