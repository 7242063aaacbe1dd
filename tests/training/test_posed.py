"""SRT goes through the loop, meshes, checkpoints and binaries of XFactor."""

import json
import math

import jax
import numpy as np
import pytest

from tests.training import small
from xfactor import config as configs
from xfactor.data.records import eval_index
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.evaluation import run as evaluation_run
from xfactor.training import build, loop
from xfactor.training.resilience import checkpoints as checkpoints_lib
from xfactor.training.telemetry import log, writers

pytestmark = pytest.mark.slow

VOLUME = {
  'model__decoder': 'nerf',
  'model__coarse_samples': 4,
  'model__fine_samples': 2,
  'objective__rays': 8,
}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return small.make_posed_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """A finished run of six steps."""
  workdir = tmp_path_factory.mktemp('run')
  config = small.posed_recipe(data_dir)
  loop.train(config, str(workdir))
  return config, workdir


def read_state(config, workdir):
  checkpoints = checkpoints_lib.Checkpoints(str(workdir), create=False)
  state, _ = checkpoints.restore(build.build(config).abstract_state())
  checkpoints.close()
  return state


def test_a_run_leaves_scores_and_pictures(run):
  _, workdir = run
  lines = writers.read_lines(workdir / 'metrics.jsonl')
  train = [line for line in lines if 'loss' in line]
  assert [line['step'] for line in train] == [2, 4, 6]
  assert all(np.isfinite(line['psnr']) for line in train)
  scores = json.loads((workdir / 'eval/00000006.json').read_text())
  assert set(scores['data']['skies']['mean']) == {'model', 'copy', 'mean'}
  assert (workdir / 'eval/00000006/skies_reconstruction.png').exists()
  facts = json.loads((workdir / 'run.json').read_text())
  assert '8 scenes of 2 + 2 views at 32 x 24 pixels' in facts['step']


def test_going_on_equals_never_having_stopped(run, data_dir, tmp_path):
  """Bit for bit: parameters, moments, and so the data and all draws."""
  config, workdir = run
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(log.Log, 'read', small.stop_at(4, log.Log.read))
    with pytest.raises(KeyboardInterrupt):
      loop.train(small.posed_recipe(data_dir), str(tmp_path))
  assert read_state(config, tmp_path).step == 3
  loop.train(config, str(tmp_path))
  resumed, straight = (read_state(config, w) for w in (tmp_path, workdir))
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)


def test_the_eval_binary_agrees_with_the_end_of_training(run):
  config, workdir = run
  path = workdir / 'eval/00000006.json'
  before = json.loads(path.read_text())
  page = evaluation_run.Evaluation(config, str(workdir))()
  after = json.loads(path.read_text())
  for who, scores in before['data']['skies']['mean'].items():
    again = after['data']['skies']['mean'][who]['psnr']
    np.testing.assert_allclose(again, scores['psnr'], rtol=1e-5)
  assert 'input view whose camera is nearest' in page.read_text()


@pytest.mark.parametrize(
  'asked', [{'oracle': oracles.make('known_scene')}, {'probe': True}]
)
def test_there_are_no_latent_poses_to_test(run, asked):
  config, workdir = run
  with pytest.raises(UserError, match='no latent poses'):
    evaluation_run.Evaluation(config, str(workdir), **asked)


def three_steps(devices, **changes):
  # Updates in proportion to gradients: Adam makes as much of their rounding,
  # and the finest sines of rays as of their pixels.
  changes = {
    'optimizer__eps': 1.0,
    'optimizer__learning_rate': 0.01,
    'model__octaves': 8,
    **changes,
  }
  return small.three_steps(small.posed_recipe('data', **changes), devices)


@pytest.mark.parametrize(
  ('model', 'others'),
  [
    (
      {},
      {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2},
    ),
    (VOLUME, {'mesh__data': 1, 'train__accumulate': 4}),
  ],
  ids=['light field, mesh', 'volume, accumulation'],
)
def test_neither_mesh_nor_accumulation_change_anything(model, others):
  """Also not which rays are drawn, nor where their samples lie."""
  one, losses = three_steps(1, **model)
  devices = math.prod(v for k, v in others.items() if k.startswith('mesh'))
  params, other = three_steps(devices, **model, **others)
  np.testing.assert_allclose(other, losses, rtol=1e-4)
  for name, array in params.items():
    np.testing.assert_allclose(array, one[name], atol=5e-5, err_msg=name)


def test_parameters_and_moments_are_sharded():
  built = build.build(small.posed_recipe('data', mesh__fsdp=4, mesh__data=2))
  places = {
    name: leaf.sharding.spec
    for name, leaf in built.abstract_state().params.items()
  }
  split = [k for k, spec in places.items() if 'fsdp' in spec]
  assert 'encoder/convs/1/kernel' in split
  assert 'decoder/stack/layers/kv/kernel' in split
  assert 'decoder/query/layers/1/kernel' in split


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'data__targets': 0}, 'config.data.targets=0'),
    ({'objective__rays': 2000}, 'config.objective.rays=2000'),
    ({'eval__rays': 2000}, 'config.eval.rays=2000'),
    ({'model__encoder': 'srt', 'model__rows': 2}, 'config.model.rows'),
    ({'model__decoder': 'mesh'}, 'config.model.decoder'),
    ({'data__contexts': 0}, 'config.data.contexts=0'),
  ],
)
def test_what_contradicts_itself_is_refused(changes, words):
  with pytest.raises(UserError, match=words):
    build.build(small.posed_recipe('data', **changes))


def test_an_unknown_family_is_refused():
  with pytest.raises(UserError, match="config.method='nerf'.* srt"):
    configs.base('nerf')


def test_data_without_cameras_are_refused(tmp_path):
  small.make_data(tmp_path)
  config = small.posed_recipe(tmp_path).unlock()
  config.data.mix = {'squares': configs.part(begin=6, end=6)}
  with pytest.raises(UserError, match='squares.*cameras'):
    loop.train(config, str(tmp_path / 'run'))


def test_too_few_views_are_said(data_dir, tmp_path):
  config = small.posed_recipe(data_dir, data__targets=9)
  with pytest.raises(UserError, match='wrong number of views: 11'):
    loop.train(config, str(tmp_path / 'run'))


def test_input_views_are_fixed(data_dir):
  index = [
    eval_index.eval_index(
      data_dir, 'skies', 'test', 4, 6, ordered=False, cameras=True
    )
    for _ in range(2)
  ]
  np.testing.assert_array_equal(index[0].frames, index[1].frames)
  assert all(len(set(row)) == 4 for row in index[0].frames.tolist())
