"""Every recipe builds, at full size, on a laptop."""

import importlib.util
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from xfactor import config as configs
from xfactor.data.views import frame_rng
from xfactor.models import perceptual
from xfactor.training import build, families

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
  posed = {name for name in RECIPES if 'srt' in name}
  assert posed == {
    'srt_tiny',
    *('srt_nmr', 'srt_msn', 'srt_clevr3d'),
    *('isrt_msn', 'vsrt_nmr', 'vsrt_clevr3d'),
  }


@pytest.mark.parametrize('name', RECIPES)
def test_the_train_step_keeps_the_states_shapes(name):
  """eval_shape of the real step: LPIPS, optimizer, accumulation and all."""
  config = load(name).get_config().lock()
  built = build.build(config)
  weights = perceptual.param_shapes('vgg16') if built.needs_lpips else None
  state = built.abstract_state()
  with jax.set_mesh(built.mesh):
    after, metrics = jax.eval_shape(
      built.step(whole=False), state, built.abstract_batch(), weights
    )
  before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == before
  assert ('lpips' in metrics) == built.needs_lpips


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
    chooser = families.get(config.family).chooser(config.data, part)
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
    views = families.get(config.family).chooser(config.data, part)
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
