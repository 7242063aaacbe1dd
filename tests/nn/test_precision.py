"""Which products are rounded on accelerators, and what that costs a pose.

A float32 product of default precision is one bfloat16 pass on a TPU and TF32 on
an NVIDIA GPU. Kernels of attention (cuDNN, Splash) are calls in a lowered
program; their own products are not listed.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn import rounding
from tests.training import small
from xfactor.metrics import lpips
from xfactor.nn import layers
from xfactor.training import build

FAMILIES = {
  'stereo': lambda: small.recipe(
    'data', objective__lpips_weight=0.5, optimizer__name='muon'
  ),
  'multi-view, se3': lambda: small.recipe(
    'data', model__pose='se3', model__pose_dim=10, data__contexts=2
  ),
  'rust': lambda: small.baseline_recipe('rust', 'data'),
  'rayzer': lambda: small.baseline_recipe('rayzer', 'data'),
  'srt': lambda: small.posed_recipe('data'),
  'improved srt': lambda: small.posed_recipe(
    'data', model__encoder='isrt', model__decoder='isrt'
  ),
  'volumetric srt': lambda: small.posed_recipe('data', model__decoder='nerf'),
}
KERNELS = {'cuda': 'cudnn', 'tpu': 'splash'}

# Where a product is, by its location in the lowered program; otherwise REST.
PLACES = {
  'pose_head': 'pose head',
  'colors': 'colours and densities',
  'lpips': 'LPIPS',
  r'\.\.\.,K->\.\.\.K': 'blur of augmented pictures',
  'hsd,hsd->hs': "row sums in the gradient of Splash's attention",
  r'/_muon\.py': 'orthogonalisation in Muon',
}
REST = 'trunk, patches and hidden layers'
# All that is allowed there.
EXACT, HALF, ROUNDED = 'float32 at HIGHEST', 'bfloat16', 'float32 at DEFAULT'
ALLOWED = {
  'pose head': {EXACT},
  # Hidden layers, then the last one.
  'colours and densities': {HALF, EXACT},
  'blur of augmented pictures': {EXACT},
  REST: {HALF},
  # The other factors of this gradient are bfloat16.
  "row sums in the gradient of Splash's attention": {ROUNDED},
  # Five iterations that converge to the same from rounded matrices.
  'orthogonalisation in Muon': {ROUNDED},
}
LPIPS = {
  # Three passes for the features, one for the gradient.
  'cuda': {ROUNDED},
  'tpu': {'float32 at HIGH', ROUNDED},
}
POSED = {'colours and densities', REST}
PRESENT = {
  'stereo': {
    *('pose head', 'blur of augmented pictures', REST),
    *('LPIPS', 'orthogonalisation in Muon'),
  },
  'multi-view, se3': {'pose head', 'blur of augmented pictures', REST},
  'rust': {'pose head', REST},
  'rayzer': {'pose head', REST},
  'srt': POSED,
  'improved srt': POSED,
  'volumetric srt': POSED,
}


def half(recipe, **model):
  with recipe.unlocked():
    recipe.model.update(dtype='bfloat16', **model)
  return build.build(recipe, jax.devices()[:1])


def products(text):
  """Places of a program's products, and types and precisions there."""
  locations = dict(re.findall(r'^(#loc\d+) = (.*)$', text, re.MULTILINE))

  @functools.cache
  def place_of(location):
    line = locations[location]
    here = (v for k, v in PLACES.items() if re.search(k, line))
    inner = map(place_of, re.findall(r'#loc\d+', line))
    return next(filter(None, itertools.chain(here, inner)), None)

  found = {}
  pattern = r'stablehlo\.(?:dot_general|convolution)\W.*loc\((#loc\d+)\)$'
  for match in re.finditer(pattern, text, re.MULTILINE):
    line, location = match[0], match[1]
    *types, _ = re.findall(r'x(bf16|f32)>', line.rpartition(' : ')[2])
    (precision,) = set(re.findall('DEFAULT|HIGHEST|HIGH', line))
    kind = 'bfloat16' if types == ['bf16'] * 2 else f'float32 at {precision}'
    found.setdefault(place_of(location) or REST, set()).add(kind)
  return found


@pytest.mark.parametrize('platform', KERNELS)
@pytest.mark.parametrize(
  'family',
  [
    family
    if family in ('stereo', 'srt')
    else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
  ],
)
def test_no_product_is_rounded_but_the_allowed(family, platform, cudnn):
  built = half(FAMILIES[family](), attention=KERNELS[platform])
  weights = lpips.param_shapes('vgg16') if built.needs_lpips else None
  with jax.set_mesh(built.mesh):
    step = built.step(built.step_kinds()[0]).trace(
      built.abstract_state(), built.abstract_batch(), weights
    )
    program = step.lower(lowering_platforms=(platform,))
  present = PRESENT[family]
  if platform == 'tpu':
    present = present | {"row sums in the gradient of Splash's attention"}
  allowed = ALLOWED | {'LPIPS': LPIPS[platform]}
  found = products(program.as_text(debug_info=True))
  assert found == {place: allowed[place] for place in present}


def outcome(built):
  """Poses, or depths and colours of rays, as a function of the parameters."""
  rng = np.random.default_rng(0)
  images = rng.uniform(0, 1, (2, 2, 32, 32, 3)).astype(np.float32)
  origins = rng.normal(size=(2, 2, 3)).astype(np.float32)
  rays = rng.normal(size=(2, 2, 32, 32, 3)).astype(np.float32)
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)

  def compute(params, images, origins, rays):
    model = built.functional.bind(params)
    if not built.method.posed:
      return model.encode_views(2 * images - 1)
    tokens = model.encode(images, origins, rays)
    drawn = model.decode(tokens, origins, rays[:, 0, :2, 0])
    return jnp.concatenate([drawn.color, drawn.depth[..., None]], -1)

  return compute, (built.init().params, images, origins, rays)


def rounding_error(built, platform):
  """Relative change by what a platform rounds and a CPU does not.

  Products of bfloat16 are the same, so that the trunk's tokens are, too, and
  the rest is the error of what follows them.
  """
  compute, arguments = outcome(built)
  exact = jax.jit(compute)(*arguments)
  near = jax.jit(rounding.rounded(compute, platform))(*arguments)
  return jnp.linalg.norm(near - exact) / jnp.linalg.norm(exact)


ESTIMATES = ('stereo', 'rust', 'rayzer', 'volumetric srt')


@pytest.mark.slow
@pytest.mark.parametrize('platform', KERNELS)
@pytest.mark.parametrize('family', ESTIMATES)
def test_rounding_hardly_changes_poses_and_rays(family, platform):
  assert rounding_error(half(FAMILIES[family]()), platform) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('platform', KERNELS)
def test_rounded_heads_would_change_poses(platform, monkeypatch):
  """The test above sees a head without a precision."""

  def without(x, kernel, *_, **__):
    return layers.product(x, kernel)

  monkeypatch.setattr(layers, 'dot_general', without)
  assert rounding_error(half(FAMILIES['stereo']()), platform) > 1e-3
