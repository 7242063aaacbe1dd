"""Every recipe builds, at full size, on a laptop."""

import ast
import dataclasses
import importlib.util
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from xfactor import config as configs
from xfactor.data.views import frame_rng
from xfactor.methods import registry
from xfactor.metrics import lpips
from xfactor.nn import optimizer
from xfactor.training import build

FOLDER = pathlib.Path(__file__).parent.parent / 'configs'
# That of the pose oracle is for another tool.
RECIPES = sorted({path.stem for path in FOLDER.glob('*.py')} - {'pose_oracle'})


def load(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_there_are_the_recipes_of_the_readme():
  assert {'tiny', 'sm', 'mv', 'video', 'vizdoom'} <= set(RECIPES)
  assert {'rust', 'rayzer', 'transfer'} <= set(RECIPES)
  posed = {name for name in RECIPES if 'srt' in name}
  assert posed == {
    'srt_tiny',
    *('srt_nmr', 'srt_msn', 'srt_clevr3d'),
    *('isrt_msn', 'vsrt_nmr', 'vsrt_clevr3d'),
  }


def check_step(config):
  """eval_shape of the real step: LPIPS, optimizer, accumulation and all."""
  # Small recipes are for a CPU that is split, parts of a batch for those.
  split = config.cpu_devices > 1 or config.train.accumulate > 1
  devices = jax.devices()[: config.cpu_devices] if split else None
  built = build.build(config.lock(), devices)
  weights = lpips.param_shapes('vgg16') if built.needs_lpips else None
  state = built.abstract_state()
  with jax.set_mesh(built.mesh):
    after, metrics = jax.eval_shape(
      built.step(built.step_kinds()[0]), state, built.abstract_batch(), weights
    )
  before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == before
  assert ('lpips' in metrics) == built.needs_lpips
  return built


@pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('mv', 'srt_msn', 'tiny')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in RECIPES
  ],
)
def test_the_train_step_keeps_the_states_shapes(name):
  check_step(load(name).get_config())


@pytest.mark.parametrize('name', RECIPES)
def test_the_docstring_has_its_command_and_hardware(name):
  text = load(name).__doc__
  assert f'--config=configs/{name}.py' in text
  assert 'Hardware' in text


@pytest.mark.parametrize('name', RECIPES)
def test_data_sections_make_sense(name):
  config = load(name).get_config()
  assert config.data.mix
  for part in config.data.mix.values():
    assert set(part) == set(configs.part(begin=2, end=2))
    chooser = registry.get(config.method).chooser(config.data, part)
    assert chooser.window == (part.begin, part.end)


def test_sm_is_the_papers():
  """Section 5 and the public config: size, data, windows, schedule."""
  config = load('sm').get_config()
  built = build.build(config)
  sizes = (math.prod(leaf.shape) for leaf in built.functional.shapes.values())
  registers = 16 * config.model.features  # The public code has 32.
  assert sum(sizes) == 305_178_624 - registers
  windows = {k: (v.begin, v.end) for k, v in config.data.mix.items()}
  assert windows == {
    'co3dv2': (9, 20),
    'dl3dv': (5, 10),
    're10k': (40, 100),
    'mvimgnet': (5, 10),
  }
  assert (config.data.batch, config.train.steps) == (256, 100_000)
  assert config.objective.lpips_weight == 0.5


def test_mv_is_the_papers():
  config = load('mv').get_config()
  stereo = load('sm').get_config()
  assert config.model == stereo.model  # A stereo model can be its start.
  parts = config.data.mix.items()
  assert {k: (v.begin, v.end, v.weight) for k, v in parts} == {
    'co3dv2': (9, 40, 2),
    'dl3dv': (6, 20, 5),
    're10k': (40, 200, 3),
    'mvimgnet': (6, 20, 2),
  }
  assert (config.data.contexts, config.train.steps) == (5, 200_000)
  assert config.objective.self_target_prob == 0.02
  for part in config.data.mix.values():
    views = registry.get(config.method).chooser(config.data, part)
    assert views.bump
    assert views.num_views == 6
    # The reference then lies in the window's central quarter.
    assert views.gap_sigma == 0.25
    for index in range(50):
      frames = views(frame_rng(0, index), 300, 10**6)
      ends = np.abs(frames[:, None] - frames[[0, -1]]).max(1)
      length = np.ptp(frames)
      assert ends.min() <= 0.625 * length + 1


def test_own_videos_can_have_any_name():
  config = load('video').get_config('holiday')
  assert list(config.data.mix) == ['holiday']
  assert re.search('video.py:NAME', load('video').__doc__)


TRANSFER = load('transfer')


def sections(config, *names):
  return {name: config[name].to_dict() for name in names}


@pytest.mark.parametrize('method', ['rust', 'rayzer'])
def test_baselines_are_of_xfactors_size_and_on_its_data(method):
  config, stereo = load(method).get_config(), load('sm').get_config()
  assert config.method == method
  built = build.build(config)
  sizes = (math.prod(leaf.shape) for leaf in built.functional.shapes.values())
  assert 300e6 < sum(sizes) < 330e6
  same = 'optimizer', 'train', 'eval', 'mesh'
  assert sections(config, *same) == sections(stereo, *same)
  data = stereo.data.to_dict()
  assert config.data.to_dict() == {key: data[key] for key in config.data}
  for key in ('l1_weight', 'lpips_weight', 'lpips_dtype'):
    assert config.objective[key] == stereo.objective[key]
  for key in ('features', 'heads', 'patch_size', 'encoder_layers', 'dtype'):
    assert config.model[key] == stereo.model[key]
  # The published sizes, not XFactor's.
  assert built.model.pose_dim == {'rust': 8, 'rayzer': 10}[method]


def test_what_is_changed_before_is_kept():
  """But for the sizes of poses, and what the other method does not have."""
  config = configs.small()
  config.data.mix = {'walks': configs.part(begin=2, end=3)}
  config.update_from_flattened_dict(
    {
      'data.contexts': 3,
      'data.image_width': 96,
      'data.flip_prob': 0.0,
      'model.features': 64,
      'model.pose_dim': 7,
      'optimizer.learning_rate': 3e-4,
      'train.steps': 77,
      'eval.pairs': 5,
      'objective.l1_weight': 2.0,
      'objective.contrast': 'simclr',
      'seed': 3,
      'init_from': 'elsewhere',
    }
  )
  made = configs.like(config, 'rust')
  assert (made.method, made.seed, made.init_from) == ('rust', 3, 'elsewhere')
  same = 'optimizer', 'train', 'eval', 'mesh'
  assert sections(made, *same) == sections(config, *same)
  data = config.data.to_dict()
  assert made.data.to_dict() == {key: data[key] for key in made.data}
  assert set(data) - set(made.data) == {'offset', 'offset_prob'}
  assert (made.model.features, made.model.pose_dim) == (64, 8)
  assert made.model.scene_layers == configs.small('rust').model.scene_layers
  assert set(made.objective) == {'l1_weight', 'lpips_weight', 'lpips_dtype'}
  assert made.objective.l1_weight == 2.0


@pytest.mark.slow
@pytest.mark.parametrize('member', TRANSFER.MEMBERS)
def test_members_differ_in_what_they_are_about_alone(member):
  config = TRANSFER.get_config(member)
  plain = TRANSFER.get_config('xfactor').to_dict()
  same = 'optimizer', 'train', 'eval', 'mesh'
  if member in TRANSFER.PROBE_ONLY:
    plain['train']['accumulate'] = 1
  assert sections(config, *same) == {name: plain[name] for name in same}
  data = config.data.to_dict()
  differs = {key for key, value in data.items() if value != plain['data'][key]}
  assert differs <= {'contexts', 'offset_prob'}
  built = check_step(config)
  assert (config.method == 'xfactor') == (member not in ('rust', 'rayzer'))
  assert built.model.features == plain['model']['features']
  # The same networks in all worlds with pictures of this size.
  for suite in ('textures', 'moving', 'levels'):
    world = TRANSFER.get_config(f'{member},{suite}')
    networks = 'model', 'objective', 'optimizer'
    assert sections(world, *networks) == sections(config, *networks)
    assert suite in world.data.mix
    assert set(world.data.mix) == set(world.data.make)
  one = jax.devices()[:1]
  assert build.build(world, one).image_size == built.image_size
  parallax = build.build(TRANSFER.get_config(f'{member},parallax'), one)
  assert parallax.image_size == 64
  if member in ('rust', 'rayzer', 'se3'):
    full = TRANSFER.get_config(f'{member},full')
    assert full.data.batch == load('sm').get_config().data.batch
    check_step(full)


def test_wide_poses_are_as_wide_as_they_say():
  for width in (2, 4, 16, 64, 256):
    for member in ('xfactor', 'autoencode'):
      config = TRANSFER.get_config(f'{member}_{width}')
      assert config.model.pose_dim == width
      whole = TRANSFER.get_config(member).objective.unmasked_prob
      assert config.objective.unmasked_prob == whole
      assert TRANSFER.RATE_OF[f'{member}_{width}'] == member
  for member in ('nuisance', 'rayder'):
    assert TRANSFER.get_config(member).model.nuisance_dim == 16
    full = TRANSFER.get_config(f'{member},full')
    assert full.model.nuisance_dim == 256


def test_members_that_draw_nothing_are_told():
  assert {
    member
    for member, changes in TRANSFER.MEMBERS.items()
    if 'objective.contrast' in changes
  } == TRANSFER.PROBE_ONLY


def attributes_read():
  """Names of the attributes that the package's code reads."""
  return {
    node.attr
    for path in (FOLDER.parent / 'xfactor').rglob('*.py')
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
  }


@pytest.mark.parametrize('method', registry.NAMES)
def test_every_setting_is_read(method):
  """Sections become dataclasses at once: their fields must be read, too."""
  names = {
    path.split('.')[-1] for path in configs.leaf_paths(configs.base(method))
  }
  unread = names - attributes_read()
  assert names
  assert not unread, f'nothing reads {unread}'


def test_a_setting_that_nothing_reads_is_found(monkeypatch):
  unread = dataclasses.make_dataclass(
    'Config', [('never_read', int, 0)], bases=(optimizer.Config,), frozen=True
  )
  monkeypatch.setattr(optimizer, 'Config', unread)
  with pytest.raises(AssertionError, match='never_read'):
    test_every_setting_is_read('xfactor')
