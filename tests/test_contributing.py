"""The recipes of docs/contributing.md work as they are written."""

import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.training import small
from xfactor import config as configs
from xfactor.data import sources
from xfactor.data.convert import run
from xfactor.data.records import store
from xfactor.evaluation import oracles
from xfactor.methods import registry
from xfactor.training import loop
from xfactor.training.telemetry import writers

PAGE = pathlib.Path(__file__).resolve().parents[1] / 'docs/contributing.md'


def block(heading):
  """The Python block below a heading of the page."""
  section = PAGE.read_text().split(f'\n## {heading}\n')[1].split('\n## ')[0]
  (code,) = re.findall(r'^```python\n(.*?)^```', section, re.M | re.S)
  return code


@pytest.fixture
def install(monkeypatch):
  """Makes a block a module of the package."""

  def install(name, heading):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(block(heading), name, 'exec'), vars(module))
    return module

  return install


@pytest.mark.slow
def test_add_a_method(install, monkeypatch, tmp_path):
  install('xfactor.methods.pairs.method', 'Add a method')
  monkeypatch.setitem(registry._CLASSES, 'pairs', ('pairs', 'Method'))
  config = configs.base('pairs')
  config.model.patch_size = 8
  config.objective.lpips_weight = 0.0
  config.optimizer.update(warmup_steps=2, learning_rate=1e-2)
  data = small.recipe(small.make_data(tmp_path / 'data')).data
  for key in ('dir', 'batch', 'image_size', 'ramp_steps', 'threads', 'mix'):
    config.data[key] = data[key]
  config.train.update(steps=12, log_every=4, save_every=12, eval_every=0)
  config.eval.update(window=4, batch=8, lpips=False, pairs=0)
  loop.train(config.lock(), str(tmp_path / 'run'))
  losses = [
    line['loss']
    for line in writers.read_lines(tmp_path / 'run/metrics.jsonl')
    if 'loss' in line
  ]
  assert losses[-1] < losses[0]
  assert (tmp_path / 'run/eval/00000012.json').exists()


def test_add_a_data_set(install, monkeypatch, tmp_path):
  install('xfactor.data.sources.pictures', 'Add a data set')
  monkeypatch.setattr(sources, 'NAMES', (*sources.NAMES, 'pictures'))
  rng = np.random.default_rng(0)
  for clip in ('a', 'b'):
    (tmp_path / 'raw' / clip).mkdir(parents=True)
    for i in range(11):
      picture = rng.integers(0, 256, (24, 24, 3), np.uint8)
      Image.fromarray(picture).save(tmp_path / f'raw/{clip}/{i}.png')
  source = sources.make('pictures', source=str(tmp_path / 'raw'))
  run.convert(
    source, tmp_path / 'data', test_fraction=0.0, workers=0, quiet=True
  )
  made = store.open_split(tmp_path / 'data', 'pictures', 'train')
  assert made.num_frames.tolist() == [11, 11]


def test_add_a_metric(install):
  module = install('new_metric', 'Add a metric')
  image = jnp.zeros((2, 16, 16, 3))
  scores = module.score(image, image + 0.5, {})
  assert set(scores) == {'psnr', 'ssim', 'mae'}
  np.testing.assert_allclose(scores['mae'], 0.25, rtol=1e-6)


def test_add_an_oracle(install, monkeypatch):
  install('xfactor.evaluation.oracles.still', 'Add an oracle')
  monkeypatch.setattr(oracles, 'NAMES', (*oracles.NAMES, 'still'))
  oracle = oracles.make('still', focal=2.0)
  assert oracle.settings() == {'focal': 2.0}
  result = oracle(np.zeros((3, 16, 16, 3), np.uint8))
  assert result.world_to_camera.shape == (3, 4, 4)
  assert jax.tree.leaves(result.world_to_camera)[0][0, 0, 0] == 1
