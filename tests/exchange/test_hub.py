"""Published models: what is written, uploaded, fetched and kept in a cache."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

import xfactor
from tests import commands
from tests.exchange import stub_hub
from tests.training import small, tiny
from xfactor.errors import UserError
from xfactor.evaluation.reports import card
from xfactor.exchange import hub as hub_lib
from xfactor.inference import calibration, restore
from xfactor.training import build
from xfactor.training.resilience import checkpoints as checkpoints_lib

pytestmark = pytest.mark.slow

STEP = 3


def save(workdir, config):
  """A run of an untrained model with an average, and its scores."""
  built = build.build(config)
  state = built.init()
  rng = np.random.default_rng(0)
  ema = jax.tree.map(
    lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), state.params
  )
  checkpoints = checkpoints_lib.Checkpoints(workdir)
  meta = {'config': json.loads(config.to_json_best_effort()), 'data': {}}
  checkpoints.save(
    type(state)(np.int32(STEP), state.params, state.opt_state, ema), meta
  )
  checkpoints.close()
  return workdir


def write_calibration(workdir):
  """A calibration of the right sizes, which fits nothing."""
  weights = {'kernel': np.ones((2, 2))}
  maps = [
    calibration.Regression(
      np.ones(d), np.ones(k), np.ones((d, k)), weights, {'ridge': 0.5}
    )
    for d, k in ((7, 4), (4, 6))
  ]
  domains = [calibration.Domain(np.ones(d), np.eye(d), 3.0) for d in (7, 4)]
  made = calibration.Calibration(
    *maps, *domains, 1.0, STEP, 6, 128, 0.5, True, 'squares/train'
  )
  calibration.save(made, workdir)
  (workdir / f'calibration-{STEP}.json').write_text('{}')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  config = small.recipe('none', optimizer__ema=0.5)
  workdir = save(tmp_path_factory.mktemp('run'), config)
  write_calibration(workdir)
  (workdir / 'calibration-2.npz').write_bytes(b'of another step')
  pictures = workdir / f'eval/{STEP:08d}'
  pictures.mkdir(parents=True)
  (pictures / 'squares_transfer.png').write_bytes(b'png')
  scores = {
    'examples': 6,
    'mean': {
      'model': {'psnr': 21.234, 'ssim': 0.5},
      'copy': {'psnr': 17.5, 'ssim': 0.25},
    },
    'transfer': {
      'pairs': 64,
      'psnr': 23.5,
      'own_psnr': 24.5,
      'frozen_psnr': 19.5,
      'rank': 95.0,
      'identified': 80.0,
      'chance': 12.5,
    },
  }
  file = workdir / f'eval/{STEP:08d}.json'
  file.write_text(json.dumps({'step': STEP, 'data': {'squares': scores}}))
  probe = {
    'rows': {
      'probe': {
        'pairs': 9,
        'acceptance': 1.0,
        'mean': {'auc@20': {'value': 0.4}},
      },
      'shuffled': {'pairs': 9, 'acceptance': 1.0, 'mean': {}},
    }
  }
  (pictures / 'squares_probe.json').write_text(json.dumps(probe))
  facts = {'data': 'squares/train 18 clips'}
  (workdir / 'run.json').write_text(json.dumps(facts))
  return workdir


@pytest.fixture(scope='module')
def published(run, tmp_path_factory):
  """The folder of the model."""
  folder = tmp_path_factory.mktemp('published')
  restored = restore.restore(run)
  names = hub_lib.write(restored, run, folder)
  names += card.write(
    restored, run, folder, repo='me/squares', license='cc-by-4.0'
  )
  found = [x for x in folder.rglob('*') if x.is_file()]
  assert {str(x.relative_to(folder)) for x in found} == set(names)
  return folder


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
  """A hub with the model, and an empty cache."""
  with stub_hub.serving() as hub:
    files = {
      str(x.relative_to(published)): x.read_bytes()
      for x in published.rglob('*')
      if x.is_file()
    }
    hub.commit('models', 'me/squares', files)
    monkeypatch.setenv('HF_ENDPOINT', hub.url)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('HF_HUB_DISABLE_TELEMETRY', '1')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    fresh(monkeypatch)
    yield hub


def fresh(monkeypatch):
  """Lets huggingface_hub read the environment again."""
  for name in [x for x in sys.modules if x.split('.')[0] == 'huggingface_hub']:
    monkeypatch.delitem(sys.modules, name)


def same_params(model, other):
  assert model._params.keys() == other._params.keys()
  for name, array in model._params.items():
    np.testing.assert_array_equal(array, other._params[name], err_msg=name)


def test_a_published_folder_is_the_same_model(run, published):
  model, other = xfactor.load(run), xfactor.load(published)
  assert other.step == model.step == STEP
  assert other.config == model.config
  same_params(model, other)
  with pytest.raises(UserError, match='holds step 3, not 2'):
    xfactor.load(published, 2)


def test_a_run_with_an_export_in_its_folder_is_a_run(run, published, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  shutil.copyfile(
    published / 'model.safetensors', tmp_path / 'run/model.safetensors'
  )
  assert not hub_lib.is_published(tmp_path / 'run')


@pytest.mark.parametrize('method', ['srt', 'rust'])
def test_other_methods_are_published(method, tmp_path):
  if method == 'srt':
    config = small.posed_recipe('none', optimizer__ema=0.5)
  else:
    config = small.baseline_recipe(method, 'none', optimizer__ema=0.5)
  workdir = save(tmp_path / 'run', config)
  (tmp_path / 'out').mkdir()
  restored = restore.restore(workdir)
  hub_lib.write(restored, workdir, tmp_path / 'out')
  card.write(restored, workdir, tmp_path / 'out', repo='me/it')
  text = (tmp_path / 'out/README.md').read_text()
  assert 'was not evaluated' in text
  assert 'licence of the weights is not stated' in text
  assert ('latent poses' in text) == (method != 'srt')
  same_params(xfactor.load(workdir), xfactor.load(tmp_path / 'out'))


def test_the_card_has_what_the_run_has(published):
  text = (published / 'README.md').read_text()
  _, head, body = text.split('---\n', 2)
  assert yaml.safe_load(head) == {
    'library_name': 'xfactor',
    'license': 'cc-by-4.0',
    'tags': ['novel-view-synthesis', 'jax', 'xfactor'],
  }
  for part in (
    "xfactor.load('hf://me/squares')",
    'an average over updates (decay 0.5)',
    '| squares | train | 100% | 6 frames |',
    'squares/train 18 clips',
    '6 held-out examples',
    '| model | 21.23 | 0.500 |',
    '| copy the nearest view | 17.50 | 0.250 |',
    'identified 80.00 % (12.50 % by chance)',
    '| probe | 9 | 100.00 | 40.00 |  |  |  |',
    '![squares_transfer](pictures/squares_transfer.png)',
    'Motions longer than 6 frames',
    'Weights: cc-by-4.0.',
  ):
    assert part in body, part


def test_files_of_other_models_are_refused(published, tmp_path):
  shutil.copytree(published, tmp_path / 'it')
  config = json.loads((tmp_path / 'it/config.json').read_text())
  config['config']['model']['pose_dim'] = 5
  (tmp_path / 'it/config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='another model than its recipe'):
    xfactor.load(tmp_path / 'it')
  (tmp_path / 'it/config.json').write_text('{"model_type": "bert"}')
  with pytest.raises(UserError, match='holds no recipe'):
    xfactor.load(tmp_path / 'it')


def test_a_model_is_fetched_once(run, hub, monkeypatch):
  folder = hub_lib.fetch('hf://me/squares')
  model = xfactor.load('hf://me/squares')
  same_params(model, xfactor.load(run))
  names = sorted(x.name for x in folder.iterdir())
  assert names == [
    *('calibration-3.json', 'calibration-3.npz'),
    *('config.json', 'model.safetensors'),
  ]
  assert model.calibration.data == 'squares/train'
  got = [path for method, path in hub.requests if method == 'GET']
  assert sum('/resolve/' in path for path in got) == 4
  # A commit is fetched without looking it up, even if main has moved.
  digest = hub.repos['models/me/squares']['hash of main']
  hub.commit('models', 'me/squares', {'config.json': b'{}'})
  assert hub_lib.fetch(f'hf://me/squares@{digest}') == folder
  assert hub_lib.fetch('hf://me/squares') != folder


def test_without_network_the_cache_is_used(hub, monkeypatch):
  folder = hub_lib.fetch('hf://me/squares')
  monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{commands.free_port()}')
  fresh(monkeypatch)
  assert hub_lib.fetch('hf://me/squares') == folder
  with pytest.raises(UserError, match='cannot be reached and it is not in the'):
    hub_lib.fetch('hf://me/other')
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setenv('HF_ENDPOINT', hub.url)
  fresh(monkeypatch)
  before = list(hub.requests)
  assert hub_lib.fetch('hf://me/squares') == folder
  with pytest.raises(UserError, match='HF_HUB_OFFLINE is set .* unset it'):
    hub_lib.fetch('hf://me/other')
  assert hub.requests == before


def test_what_is_not_there_is_said_in_one_line(hub):
  hub.commit('models', 'me/bert', {'config.json': b'{}'})
  hub.commit('models', 'me/secret', {'model.safetensors': b'x'})
  hub.gated.add('me/secret')
  for name, text in {
    'me/nothing': 'does not exist or is private: check the name',
    'me/squares@v9': 'does not exist, but other revisions do',
    'me/secret': 'is gated: accept its terms',
    'me/bert': 'is no model that tools/publish.py wrote',
    'squares': 'must be hf://OWNER/NAME',
    'me/-squares': 'is no name of the Hub',
  }.items():
    with pytest.raises(UserError, match=text) as caught:
      xfactor.load(f'hf://{name}')
    assert f'hf://{name}' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
  fresh(monkeypatch)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match=r"pip install -e '.\[hub\]'"):
    hub_lib.fetch('hf://me/squares')


def test_the_tool_uploads_model_and_space(run, published, hub):
  args = ['tools/publish.py', f'--workdir={run}', '--repo=me/new', '--space']
  done = commands.run(*args)
  assert done.returncode == 2
  assert 'not allowed' in done.stderr
  assert done.stderr.count('\n') == 1
  assert 'models/me/new' not in hub.repos
  done = commands.run(*args, HF_TOKEN='hf_stub')
  assert done.returncode == 0, done.stderr
  assert f'{hub.url}/me/new' in done.stdout.splitlines()
  model = hub.repos['models/me/new']['main']
  arrays, expected = (
    safetensors.numpy.load(x)
    for x in (
      model['model.safetensors'],
      (published / 'model.safetensors').read_bytes(),
    )
  )
  assert tiny.same(arrays, expected)
  assert b'licence of the weights is not stated' in model['README.md']
  assert 'calibration-3.npz' in model
  space = hub.repos['spaces/me/new']['main']
  assert {'app.py', 'xfactor/demo/__main__.py'} <= space.keys()
  assert "'--workdir=hf://me/new'" in space['app.py'].decode()
  compile(space['app.py'], 'app.py', 'exec')
  needed = space['requirements.txt'].decode().split()
  assert any(x.startswith('gradio>=') for x in needed)
  assert not any('pytest' in x or 'extra' in x for x in needed)


def test_a_dry_run_uploads_nothing(run, hub):
  done = commands.run(
    'tools/publish.py',
    f'--workdir={run}',
    '--repo=me/dry',
    '--dry_run',
    HF_TOKEN='hf_stub',
  )
  assert done.returncode == 0, done.stderr
  folder = run / f'published/{STEP}/model'
  assert all(pathlib.Path(x).exists() for x in done.stdout.split())
  assert str(folder / 'README.md') in done.stdout.split()
  assert not hub.requests
  assert f'published/{STEP}/space' not in done.stdout
