"""Checkpoints of the public SRT code become runs of ours that go on.

srt_2, srt_3 and vsrt in tests/golden/torch were written by torch.save of
PyTorch 2.13.0 as the public code does it, the last in the format before PyTorch
1.6: encoder, decoder and torch.optim.Adam of parameters with the public names,
by the rule below. Of srt_2 and srt_3 the learning rates were those of 4 warm-up
iterations.
"""

import contextlib
import gzip
import io
import os
import pathlib
import pickle
import re
import subprocess
import sys
import zipfile
import zlib

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy
import yaml
from ml_collections import ConfigDict

from tests.conftest import GOLDEN
from tests.golden_tolerance import assert_close
from tests.methods.srt import test_network
from tests.training import small
from xfactor import config as configs
from xfactor.data.formats import torch_file
from xfactor.errors import UserError
from xfactor.exchange import convert as exchange_convert
from xfactor.exchange import srt_names, srt_recipe
from xfactor.inference import restore
from xfactor.training import held_out, loop
from xfactor.training.resilience import checkpoints as checkpoints_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PUBLIC = {
  'data': {'dataset': 'nmr', 'num_points': 512},
  'model': {
    'encoder_kwargs': {'pos_start_octave': -5, 'use_linear_features': False},
    'decoder': 'lightfield',
    'decoder_kwargs': {'pos_start_octave': -5},
  },
  'training': {
    'batch_size': 8,
    'max_it': 100,
    'decay_it': 4_000_000,
    'lr_warmup': 4,
  },
}


def content(name):
  path = pathlib.Path(GOLDEN, 'torch', f'{name}.pt.gz')
  return gzip.decompress(path.read_bytes())


def rule(name, shape, modulus, offset):
  """What the weights (modulus 13) and gradients (7) were set to."""
  n = zlib.crc32(name.encode()) + 17 * offset + np.arange(np.prod(shape))
  return ((n % modulus - modulus // 2) / 64).astype(np.float32).reshape(shape)


def change(mapping, changes):
  """A nested dict with other values at dotted paths."""
  out = yaml.safe_load(yaml.safe_dump(mapping))
  for path, value in changes.items():
    *sections, key = path.split('.')
    section = out
    for name in sections:
      section = section.setdefault(name, {})
    section[key] = value
  return out


def put(folder, name='srt_2', recipe=PUBLIC):
  """A folder as the public code leaves it."""
  folder.mkdir()
  (folder / 'model.pt').write_bytes(content(name))
  if recipe is not None:
    (folder / 'config.yaml').write_text(yaml.safe_dump(recipe))
  return folder


def open_run(workdir):
  """The recipe, what it builds, and the whole state, as training reads it."""
  restored = restore.restore(workdir, devices=jax.devices()[:1])
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    state, meta = checkpoints.restore(restored.build.abstract_state())
  return ConfigDict(meta['config']), restored.build, jax.device_get(state)


def moments(state):
  get = optax.tree_utils.tree_get
  return get(state.opt_state, 'mu'), get(state.opt_state, 'nu')


def assert_same(got, want):
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """What was told, and the run."""
  folder = tmp_path_factory.mktemp('imported')
  source = put(folder / 'public')
  facts = exchange_convert.convert(source, folder / 'run')
  return facts, folder / 'run'


@pytest.fixture(scope='module')
def restored(imported):
  return open_run(imported[1])


def test_the_state_is_that_of_the_file(restored):
  _, built, state = restored
  file = torch_file.load(content('srt_2'))
  # In the order of PyTorch's parameters, which Adam counts.
  names = [
    *(f'encoder.{name}' for name in file['encoder']),
    *(f'decoder.{name}' for name in file['decoder']),
  ]
  weights = srt_names.to_public(state.params)
  mu, nu = (srt_names.to_public(x) for x in moments(state))
  assert sorted(weights) == sorted(names)
  for i, name in enumerate(names):
    part, _, rest = name.partition('.')
    adam = file['optimizer']['state'][i]
    np.testing.assert_array_equal(weights[name], file[part][rest])
    np.testing.assert_array_equal(mu[name], adam['exp_avg'])
    np.testing.assert_array_equal(nu[name], adam['exp_avg_sq'])
  assert jax.tree.map(
    lambda x: (x.shape, x.dtype), built.abstract_state()
  ) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert state.step == 2


def test_the_next_update_is_that_of_torch(restored):
  _, built, state = restored
  gradients = srt_names.to_ours(
    {
      name: rule(name, array.shape, 7, 3)
      for name, array in srt_names.to_public(state.params).items()
    }
  )
  assert built.schedule(2) == np.float32(5e-5)

  @jax.jit
  def update(gradients, opt_state, params):
    updates, opt_state = built.tx.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params, opt_state = update(gradients, state.opt_state, state.params)
  want = srt_recipe.read(torch_file.load(content('srt_3')))
  for got, arrays, atol in (
    (params, want.named, 2e-8),
    (optax.tree_utils.tree_get(opt_state, 'mu'), want.mu, 1e-8),
    (optax.tree_utils.tree_get(opt_state, 'nu'), want.nu, 1e-10),
  ):
    theirs = srt_names.to_ours(arrays)
    for name, array in theirs.items():
      np.testing.assert_allclose(got[name], array, 0, atol, err_msg=name)
  moved = srt_names.to_ours(want.named)['decoder/head/layers/1/kernel']
  moved = np.abs(moved - state.params['decoder/head/layers/1/kernel']).max()
  assert 2e-5 < moved < 6e-5


def test_the_recipe_is_that_of_the_config_file(imported, restored):
  facts, _ = imported
  recipe, built, _ = restored
  assert 'config.yaml' in facts['recipe']
  assert (recipe.train.steps, recipe.data.batch) == (100, 8)
  assert recipe.objective.rays == 512
  assert recipe.optimizer.warmup_steps == 4
  # 100 of the 4 M iterations in which it falls to 0.16 of the peak.
  assert built.schedule(104) == pytest.approx(1e-4 * 0.16 ** (100 / 4e6))
  sizes = {
    'encoder': 'srt',
    'decoder': 'srt',
    'features': 24,
    'heads': 12,
    'mlp_features': 16,
    'conv_blocks': 4,
    'conv_features': 2,
    'rows': 4,
    'columns': 4,
  }
  assert {key: recipe.model[key] for key in sizes} == sizes


SHIPPED = {
  'srt_nmr': {'data': {'dataset': 'nmr', 'num_points': 8192}},
  'srt_msn': {'data': {'dataset': 'msn', 'num_points': 8192}},
  'isrt_msn': {
    'data': {
      'dataset': 'msn',
      'num_points': 8192,
      'kwargs': {'canonical_view': False},
    }
  },
  'srt_clevr3d': {
    'data': {
      'dataset': 'clevr3d',
      'num_points': 8192,
      'kwargs': {'downsample': 1},
    }
  },
  'vsrt_nmr': {'data': {'dataset': 'nmr', 'num_points': 256}},
  'vsrt_clevr3d': {
    'data': {
      'dataset': 'clevr3d',
      'num_points': 256,
      'kwargs': {'downsample': 1},
    }
  },
}


@pytest.mark.parametrize('name', SHIPPED)
def test_published_recipes_are_ours(tmp_path, name):
  training = {
    'batch_size': 32 if name.startswith('v') else 256,
    'max_it': 4_000_000,
    'decay_it': 4_000_000,
    'lr_warmup': 2500,
  }
  theirs = PUBLIC | SHIPPED[name] | {'training': training}
  (tmp_path / 'config.yaml').write_text(yaml.safe_dump(theirs))
  got = srt_recipe.read_recipe(tmp_path / 'config.yaml')
  want = configs.beside(str(ROOT / 'configs' / 'x.py'), name)
  for section in ('data', 'objective', 'optimizer', 'train', 'mesh'):
    assert got[section].to_dict() == want[section].to_dict()
  for key in ('start_octave', 'min_dist', 'max_dist', 'min_z', 'fine_samples'):
    assert got.model[key] == want.model[key]
  assert (got.eval.split, got.eval.window, got.eval.rays) == (
    want.eval.split,
    want.eval.window,
    want.eval.rays,
  )


def test_what_a_config_file_leaves_out_is_the_public_default(tmp_path):
  theirs = {
    'data': {'dataset': 'obsurf_msn'},
    'model': {'encoder_kwargs': {}, 'decoder': 'nerf', 'decoder_kwargs': None},
    'training': {'batch_size': 16, 'num_coarse_samples': 32},
  }
  (tmp_path / 'config.yaml').write_text(yaml.safe_dump(theirs))
  got = srt_recipe.read_recipe(tmp_path / 'config.yaml')
  assert list(got.data.mix) == ['obsurf_msn']
  assert got.objective.to_dict() == {
    'rays': 2048,
    'canonical': True,
    'input_stride': 1,
    'include_inputs': True,
  }
  assert (got.model.coarse_samples, got.model.fine_samples) == (32, 64)
  assert got.model.start_octave == 0
  assert (got.train.steps, got.optimizer.warmup_steps) == (1_000_000, 2500)
  assert got.optimizer.final_learning_rate == pytest.approx(1e-4 * 0.16**0.25)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'data.dataset': 'cars'}, "data set 'cars' is none of nmr, msn"),
    ({'model.decoder_kwargs.pos_start_octave': 0}, 'pos_start_octave'),
    ({'training': {}}, "'batch_size'"),
    ({'training.max_it': 'many'}, "'many'"),
    ({'model': None}, 'no recipe of the public SRT code'),
  ],
)
def test_other_config_files_are_refused(tmp_path, changes, said):
  path = tmp_path / 'config.yaml'
  path.write_text(yaml.safe_dump(change(PUBLIC, changes)))
  with pytest.raises(UserError, match=f'{said}.*--config') as error:
    srt_recipe.read_recipe(path)
  assert str(path) in str(error.value)
  path.write_text('data: [')
  with pytest.raises(UserError, match='no recipe'):
    srt_recipe.read_recipe(path)


def test_a_recipe_that_is_given_comes_first(tmp_path):
  config = small.posed_recipe(tmp_path, model__heads=3, model__dtype='float32')
  facts = exchange_convert.convert(
    put(tmp_path / 'public'), tmp_path / 'run', config=config
  )
  assert facts['recipe'].startswith('as given')
  recipe, *_ = open_run(tmp_path / 'run')
  assert (recipe.model.heads, recipe.model.features) == (3, 24)
  assert recipe.model.dtype == 'float32'
  assert list(recipe.data.mix) == ['skies']
  assert config.model.features != 24  # It is the caller's.
  with pytest.raises(UserError, match="of SRT, .* config.method='xfactor'"):
    exchange_convert.read(tmp_path / 'public', configs.base())


@pytest.mark.slow
def test_shared_networks_are_counted_once(tmp_path):
  """And without a recipe, what is assumed is said."""
  file = torch_file.load(content('vsrt'))
  assert any(name.startswith('fine_net.') for name in file['decoder'])
  facts = exchange_convert.convert(
    put(tmp_path / 'public', 'vsrt', None), tmp_path / 'run'
  )
  assert 'heads 12 + 12, start_octave -5' in facts['assumed']
  recipe, _, state = open_run(tmp_path / 'run')
  assert (recipe.model.decoder, recipe.model.fine_net) == ('nerf', False)
  assert (recipe.data.image_size, recipe.data.image_width) == (16, 16)
  assert not any('/fine/' in name for name in state.params)
  mu = srt_names.to_public(moments(state)[0])
  name = 'decoder.coarse_net.density_predictor.2.weight'  # All but the last.
  want = 0.1 * rule(name, (1, 128), 7, 1)
  np.testing.assert_allclose(mu[name], want, rtol=1e-6)

  exchange_convert.convert(tmp_path / 'run', tmp_path / 'x', to='safetensors')
  arrays = safetensors.numpy.load_file(tmp_path / 'x' / 'model.safetensors')
  assert_same(
    arrays,
    {
      f'{part}.{name}': array
      for part in ('encoder', 'decoder')
      for name, array in file[part].items()
    },
  )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['srt_tiny', 'isrt_tiny', 'vsrt_tiny'])
def test_golden_weights_draw_golden_pictures(tmp_path, golden, name):
  """Of the public code; by way of safetensors and of a run."""
  want = golden(name)
  weights = {
    key.removeprefix('sd/'): np.ascontiguousarray(array)
    for key, array in want.items()
    if key.startswith('sd/')
  }
  source = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(weights, source)
  config = configs.base('srt')
  config.model.update(heads=4, dtype='float32')
  config.data.image_size, config.data.image_width = 16, 24
  config.objective.rays = 20
  if name == 'vsrt_tiny':
    config.model.update(
      coarse_samples=16, fine_samples=8, min_dist=0.5, max_dist=6.0
    )
  exchange_convert.convert(source, tmp_path / 'run', config=config)
  _, built, state = open_run(tmp_path / 'run')

  @jax.jit
  def draw(params, images, origins, directions, *rays):
    model = built.functional.bind(params)
    tokens = model.encode(images, origins, directions)
    return tokens, model.decode(tokens, *rays).color

  tokens, color = draw(
    state.params,
    np.moveaxis(want['in/input_images'], 2, -1),
    want['in/input_camera_pos'],
    want['in/input_rays'],
    want['in/target_camera_pos'],
    want['in/target_rays'],
  )
  assert_close(tokens, want['out/z'])
  rounding = test_network.rounding(name, test_network.COLOR)
  assert_close(color, want['out/pred'], rounding)


def test_safetensors_there_and_back(imported, restored, tmp_path):
  _, run = imported
  recipe, _, state = restored
  exchange_convert.convert(run, tmp_path / 'm.safetensors', to='safetensors')
  facts = exchange_convert.convert(
    tmp_path / 'm.safetensors', tmp_path / 'again'
  )
  assert 'the step is 0' in facts['moments']
  again, _, begun = open_run(tmp_path / 'again')
  assert_same(begun.params, state.params)
  assert again.model == recipe.model
  assert begun.step == 0
  assert not any(x.any() for x in moments(begun)[0].values())
  with pytest.raises(UserError, match='of SRT.*--to=safetensors'):
    exchange_convert.convert(run, tmp_path / 'official', to='official')


@pytest.mark.slow
def test_training_goes_on(tmp_path, monkeypatch):
  config = small.posed_recipe(
    small.make_posed_data(tmp_path / 'data'),
    model__encoder='srt',
    model__decoder='srt',
    model__features=24,
    model__heads=12,
    model__decoder_heads=12,
    model__rows=4,
    model__columns=4,
    model__conv_blocks=4,
    model__conv_features=2,
    train__steps=4,
  )
  workdir = tmp_path / 'run'
  exchange_convert.convert(put(tmp_path / 'public'), workdir, config=config)
  *_, before = open_run(workdir)
  with pytest.raises(UserError, match='allow_change'):
    loop.train(config, str(workdir))
  config.allow_change = True
  # Scores are not what this is about.
  monkeypatch.setattr(held_out.HeldOut, '__call__', lambda *_: {})
  monkeypatch.setattr(held_out, 'write', lambda *_: None)
  loop.train(config, str(workdir))
  *_, after = open_run(workdir)
  counts = optax.tree_utils.tree_get_all_with_path(after.opt_state, 'count')
  assert {int(count) for _, count in counts} == {int(after.step)} == {4}
  name = 'decoder/head/layers/1/kernel'
  assert (after.params[name] != before.params[name]).any()


def test_adam_may_have_begun_anew(tmp_path):
  file = torch_file.load(content('srt_2'))
  for state in file['optimizer']['state'].values():
    state['step'] = 1  # A plain number, as in old versions.
  del file['optimizer']['state'][39]  # It never had a gradient.
  run = srt_recipe.read(file | {'it': 7})
  assert (run.iterations, run.updates) == (7, 1)
  last = 'decoder.ray_predictor.output_mlp.2.bias'
  assert not run.mu[last].any()
  assert run.mu['encoder.pixel_embedding'].any()

  del file['optimizer']
  run = srt_recipe.read(file)
  assert (run.iterations, run.updates) == (2, 0)
  assert not any(x.any() for x in (*run.mu.values(), *run.nu.values()))


@pytest.mark.slow
def test_the_state_tells_iterations_from_updates(tmp_path, monkeypatch):
  """The first set the learning rate, the others Adam's corrections."""
  file = torch_file.load(content('srt_2')) | {'it': 7}
  monkeypatch.setattr(torch_file, 'load', lambda _: file)
  exchange_convert.convert(put(tmp_path / 'public'), tmp_path / 'run')
  *_, state = open_run(tmp_path / 'run')
  counts = optax.tree_utils.tree_get_all_with_path(state.opt_state, 'count')
  assert sorted(int(count) for _, count in counts) == [2, 7]
  assert (
    optax.tree_utils.tree_get(
      state.opt_state,
      'count',
      filtering=lambda path, _: path[-1].tuple_name == 'ScaleByAdamState',
    )
    == 2
  )
  assert state.step == 7


HEAD = 'ray_predictor.output_mlp.2.bias'


@pytest.mark.parametrize(
  ('edit', 'said'),
  [
    (lambda file: file.pop('decoder'), 'decoder is missing'),
    (lambda file: file.pop('it'), 'it, the number of iterations, is missing'),
    (lambda file: file['decoder'].pop(HEAD), f'{HEAD} is missing'),
    (
      lambda file: file['optimizer']['param_groups'][0]['params'].pop(),
      'optimizer is not of Adam for this model',
    ),
    (
      lambda file: file['optimizer']['state'][3].pop('exp_avg'),
      'optimizer is not of Adam for this model',
    ),
    (
      lambda file: file['optimizer']['state'][3].update(step=1),
      r'counts of updates differ: \[1, 2\]',
    ),
    (
      lambda file: file['optimizer']['state'][39].update(exp_avg=np.zeros(2)),
      rf'{HEAD} is float64\[2\] where float32\[3\] belongs',
    ),
    (
      lambda file: file['decoder'].update({HEAD: 'none'}),
      f'{HEAD} is no tensor',
    ),
    (
      lambda file: file['decoder'].update({HEAD: np.zeros(3)}),
      rf'{HEAD} is float64\[3\] where float32\[3\] belongs',
    ),
  ],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, edit, said):
  file = torch_file.load(content('srt_2'))
  edit(file)
  monkeypatch.setattr(torch_file, 'load', lambda _: file)
  source = put(tmp_path / 'public')
  with pytest.raises(
    UserError, match=rf'model\.pt is no complete SRT checkpoint: .*{said}'
  ):
    exchange_convert.read(source)


def test_files_that_are_not_srt_are_refused(tmp_path):
  state = pathlib.Path(GOLDEN, 'torch', 'state.pt')
  with pytest.raises(UserError, match=r'state\.pt .*: encoder is missing'):
    exchange_convert.read(state)
  chunk = pathlib.Path(GOLDEN, 'torch', 'chunk.torch')
  with pytest.raises(UserError, match=r'chunk\.torch .*no dict'):
    exchange_convert.read(chunk)
  half = tmp_path / 'model.pt'
  for name in ('srt_2', 'vsrt'):
    half.write_bytes(content(name)[:100_000])
    with pytest.raises(UserError, match=r'model\.pt is not a valid file'):
      exchange_convert.read(half)


def test_no_program_in_a_file_is_run(tmp_path):
  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'made'),)

  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(content('srt_2'))) as old,
    zipfile.ZipFile(out, 'w') as new,
  ):
    for member in old.namelist():
      evil = member.endswith('data.pkl')
      data = pickle.dumps(Evil(), 2) if evil else old.read(member)
      new.writestr(member, data)
  source = tmp_path / 'model.pt'
  source.write_bytes(out.getvalue())
  with pytest.raises(UserError, match=r'model\.pt holds an object of posix'):
    exchange_convert.convert(source, tmp_path / 'run')
  assert not (tmp_path / 'made').exists()
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_command_imports_and_tells_what(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, 'tools/import_checkpoint.py'),
      *(f'--source={put(tmp_path / "public")}', f'--out={tmp_path}/run'),
      *('--config=configs/srt_nmr.py', '--config.data.batch=8'),
    ],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''
  for said in (
    f'{tmp_path}/public/model.pt',
    'encoder srt, decoder srt, features 24, heads 12',
    '57,097 in 40 arrays',
    '2 iterations, 2 updates',
    'loss_val_best 27.25',
    'as given',
    f'{tmp_path}/run/checkpoints/2',
  ):
    assert re.search(re.escape(said), done.stdout)
