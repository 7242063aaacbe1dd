"""Checkpoints of the public code and safetensors: in, out, and back."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import google_crc32c
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import serialization, traverse_util
from ml_collections import ConfigDict

from tests.conftest import GOLDEN
from tests.golden_tolerance import assert_close
from tests.methods.xfactor import test_network
from tests.training import small
from xfactor import config as configs
from xfactor.errors import UserError
from xfactor.exchange import convert as exchange_convert
from xfactor.exchange import official_xfactor, xfactor_names
from xfactor.training import build, held_out, loop
from xfactor.training.resilience import checkpoints as checkpoints_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Written by clu.checkpoint and the public train step, after two updates.
FOLDER = pathlib.Path(GOLDEN) / 'clu_ckpt'
FILE = FOLDER / 'checkpoints-0' / 'ckpt-2.flax'
MOMENTS = 'opt_state/inner_opt_state/1/0'


def flat(path):
  tree = serialization.msgpack_restore(path.read_bytes())
  return traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep='/')


def under(arrays, prefix):
  return {
    name.removeprefix(prefix): array
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def write(path, arrays):
  tree = traverse_util.unflatten_dict(arrays, sep='/')
  path.write_bytes(serialization.msgpack_serialize(tree, in_place=True))
  return path


def read(workdir):
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    return checkpoints.read()


def assert_same(got, want):
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.fixture(scope='module')
def theirs():
  return flat(FILE)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The golden checkpoint as a run of ours."""
  workdir = tmp_path_factory.mktemp('imported') / 'run'
  exchange_convert.convert(FOLDER, workdir, contexts=2, image_size=64)
  return workdir


def outputs(run, golden, **changes):
  """Poses and pictures of the imported model, and those of the public one."""
  want = golden('xf_clu_ckpt_expected')
  _, meta = read(run)
  config = configs.base()
  config.model.update(meta['config']['model'] | changes)
  built = build.build(config)
  checkpoints = checkpoints_lib.Checkpoints(run, create=False)
  with contextlib.closing(checkpoints):  # As xfactor.eval loads it.
    step, params = checkpoints.restore_params(built.abstract_state().params)
  assert step == want['step'] == 2

  @jax.jit
  def draw(params, images):
    model = built.functional.bind(params)
    poses = model.encode(images)
    return poses, model.render(images[:, :1], poses)

  got = draw(params, want['io/images'])
  return tuple(zip(got, (want['io/pose'], want['io/render']), strict=True))


@pytest.mark.slow
def test_an_imported_model_draws_what_the_public_one_draws(run, golden):
  poses, pictures = outputs(run, golden)
  assert_close(*poses, test_network.POSES)
  assert_close(*pictures, test_network.PICTURES)


@pytest.mark.slow
def test_bfloat16_costs_an_import_what_the_documents_say(run, golden):
  for dtype, low, high in (('float32', 0, 1e-4), ('bfloat16', 1e-2, 0.2)):
    poses, pictures = (
      float(np.abs(got - want).max() / np.abs(want).max())
      for got, want in outputs(run, golden, dtype=dtype)
    )
    print(f'{dtype}: poses {poses:.1e}, pictures {pictures:.1e}')
    assert low <= poses < high


def test_the_recipe_has_the_sizes_of_the_arrays(run):
  _, meta = read(run)
  config = configs.base()
  got = ConfigDict(meta['config'])
  assert configs.leaf_paths(got) == configs.leaf_paths(
    ConfigDict(json.loads(config.to_json_best_effort()))
  )
  sizes = {
    'features': 16,
    'heads': 2,
    'patch_size': 8,
    'encoder_layers': 1,
    'renderer_layers': 1,
    'pose_dim': 8,
    'registers': 32,
  }
  assert {k: got.model[k] for k in sizes} == sizes
  assert (got.data.contexts, got.data.image_size) == (2, 64)
  assert got.model.dtype == 'float32'  # As the public code computes.


def test_moments_and_counts_come_along(run, theirs):
  state, _ = read(run)
  adam, _, schedule = state['opt_state'][1]
  assert state['step'] == adam['count'] == schedule['count'] == 2
  want = {key: under(theirs, f'{MOMENTS}/{key}/') for key in ('mu', 'nu')}
  for key, arrays in want.items():
    assert_same(adam[key], xfactor_names.to_ours(arrays))
    assert any(array.any() for array in arrays.values())
  assert_same(state['params'], xfactor_names.to_ours(under(theirs, 'params/')))


@pytest.mark.slow
def test_training_goes_on_and_can_go_back(run, theirs, tmp_path, monkeypatch):
  """Its data are not known, so a change has to be allowed."""
  workdir = tmp_path / 'run'
  shutil.copytree(run, workdir)
  config = small.recipe(
    small.make_data(tmp_path / 'data'),
    model__pose_dim=8,
    model__registers=32,
    objective__unmasked_prob=0.0,
    train__steps=4,
  )
  with pytest.raises(UserError, match='allow_change'):
    loop.train(config, str(workdir))
  config.allow_change = True
  # Scores are not what this is about.
  monkeypatch.setattr(held_out.HeldOut, '__call__', lambda *_: {})
  monkeypatch.setattr(held_out, 'write', lambda *_: None)
  loop.train(config, str(workdir))
  state, _ = read(workdir)
  assert state['step'] == state['opt_state'][1][0]['count'] == 4

  out = tmp_path / 'out.flax'
  exchange_convert.convert(workdir, out, to='official')
  after = flat(out)
  assert list(after) == list(theirs)
  for name in ('step', 'opt_state/gradient_step', f'{MOMENTS}/count'):
    assert after[name] == 4
    assert after[name].dtype == np.int32
  assert_same(xfactor_names.to_ours(under(after, 'params/')), state['params'])
  name = 'params/PoseEnc/global_embed'
  assert (after[name] != theirs[name]).any()
  np.testing.assert_array_equal(after['key'], theirs['key'])


def test_gradients_of_an_unfinished_update_are_told(theirs, tmp_path):
  arrays = dict(theirs)
  name = 'opt_state/acc_grads/PoseEnc/Dense_0/bias'
  arrays[name] = arrays[name] + 1
  arrays['opt_state/mini_step'] = np.asarray(1, np.int32)
  arrays['multi_steps'] = np.asarray(3, np.int32)
  arrays['step'] = np.asarray(7, np.int32)
  source = write(tmp_path / 'in.flax', arrays)
  facts = exchange_convert.convert(source, tmp_path / 'run')
  assert facts['step'].startswith('2 updates, 7 steps')
  assert 'not finished' in facts['ignored']
  # They are kept for the way back all the same.
  exchange_convert.convert(tmp_path / 'run', tmp_path / 'o.flax', to='official')
  assert (tmp_path / 'o.flax').read_bytes() == source.read_bytes()


def test_an_imported_checkpoint_goes_back_bit_for_bit(run, tmp_path):
  exchange_convert.convert(run, tmp_path, to='official')
  folder = tmp_path / 'checkpoints-0'
  assert (folder / 'ckpt-1.flax').read_bytes() == FILE.read_bytes()
  # What was written is found again, by its folder too.
  again = exchange_convert.convert(folder, tmp_path / 'again')
  assert again['read'].startswith(str(folder / 'ckpt-1.flax'))


def test_the_folder_has_what_clu_looks_for(run, tmp_path):
  exchange_convert.convert(run, tmp_path, to='official')
  folder = tmp_path / 'checkpoints-0'
  names = (folder / 'checkpoint').read_text()
  saved, preserved = (
    float(re.search(rf'^{key}: ([0-9.]+)$', names, re.M)[1])
    for key in ('all_model_checkpoint_timestamps', 'last_preserved_timestamp')
  )
  assert saved > preserved  # Or TensorFlow ignores it.
  data = (folder / 'ckpt-1.data-00000-of-00001').read_bytes()
  assert int.from_bytes(data[:8], 'little') == 1
  index = (folder / 'ckpt-1.index').read_bytes()
  # The index has the masked checksum of the counter.
  crc = google_crc32c.value(data[:8])
  masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
  assert struct.pack('<I', masked) in index


@pytest.mark.filterwarnings('ignore')
def test_clu_restores_what_is_exported(run, theirs, tmp_path):
  """Needs clu and TensorFlow, which change nothing of xfactor otherwise."""
  checkpoint = pytest.importorskip('clu.checkpoint')
  exchange_convert.convert(run, tmp_path, to='official')
  manager = checkpoint.MultihostCheckpoint(str(tmp_path / 'checkpoints'), {})
  zero = jax.tree.map(
    np.zeros_like, serialization.msgpack_restore(FILE.read_bytes())
  )
  state = manager.restore_or_initialize(zero)
  got = traverse_util.flatten_dict(state, keep_empty_nodes=True, sep='/')
  assert got['step'] == 2
  assert_same(under(got, 'params/'), under(theirs, 'params/'))
  kept = tmp_path / 'checkpoints-0' / 'ckpt-1.flax'
  assert kept.read_bytes() == FILE.read_bytes()
  assert manager.save(state).endswith('ckpt-2')


def test_a_run_that_was_never_imported_gets_the_rest_made_up(
  run, theirs, tmp_path
):
  shutil.copytree(run / 'checkpoints', tmp_path / 'run' / 'checkpoints')
  out = tmp_path / 'out.flax'
  facts = exchange_convert.convert(tmp_path / 'run', out, to='official')
  assert 'LPIPS' in facts['made up']
  got = flat(out)
  assert list(got) == list(theirs)
  for name, leaf in theirs.items():
    if name == 'key' or 'metrics' in name:
      assert not got[name].any()
      assert (got[name].dtype, got[name].shape) == (leaf.dtype, leaf.shape)
    elif leaf is not traverse_util.empty_node:
      np.testing.assert_array_equal(got[name], leaf, err_msg=name)
      assert got[name].dtype == leaf.dtype


def test_safetensors_there_and_back(run, theirs, tmp_path):
  exchange_convert.convert(run, tmp_path, to='safetensors')
  path = tmp_path / 'model.safetensors'
  with safetensors.safe_open(path, 'numpy') as file:
    metadata = file.metadata()
  assert metadata['step'] == '2'
  assert json.loads(metadata['model'])['features'] == 16
  arrays = safetensors.numpy.load_file(path)
  params = under(theirs, 'params/')
  assert_same(arrays, {k.replace('/', '.'): v for k, v in params.items()})

  exchange_convert.convert(path, tmp_path / 'run')
  state, _ = read(tmp_path / 'run')
  assert_same(state['params'], xfactor_names.to_ours(params))
  adam = state['opt_state'][1][0]
  assert state['step'] == adam['count'] == 0
  assert not any(x.any() for x in (*adam['mu'].values(), *adam['nu'].values()))
  assert not (tmp_path / 'run' / official_xfactor.REST).exists()


def untrained(workdir, **changes):
  """A run of ours that has not learned yet; returns its parameters."""
  config = small.recipe('none', **changes)
  state = build.build(config, jax.devices()[:1]).init()
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir)) as checkpoints:
    meta = json.loads(config.to_json_best_effort())
    checkpoints.save(state, {'config': meta, 'data': {}})
    checkpoints.wait()
  return jax.device_get(state.params)


@pytest.mark.slow
def test_safetensors_keep_what_arrays_do_not_tell(tmp_path):
  """Also of a run with Muon; what is imported goes on with AdamW."""
  params = untrained(tmp_path / 'run', **small.LEARNING)
  path = tmp_path / 'model.safetensors'
  exchange_convert.convert(tmp_path / 'run', path, to='safetensors')
  exchange_convert.convert(path, tmp_path / 'again', image_size=32)
  state, meta = read(tmp_path / 'again')
  assert_same(state['params'], params)
  want = {
    name.removeprefix('model__'): value
    for name, value in small.LEARNING.items()
    if name.startswith('model__')
  }
  assert {key: meta['config']['model'][key] for key in want} == want
  assert meta['config']['model']['dtype'] == 'float32'
  assert meta['config']['optimizer']['name'] == 'adamw'


@pytest.mark.slow
@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'model__position_grid': 4}, 'config.model.position_grid=4 cannot be'),
    ({'optimizer__name': 'muon'}, "config.optimizer.name='muon', whose mom"),
  ],
)
def test_what_the_public_code_has_not_is_not_written_for_it(
  tmp_path, changes, said
):
  untrained(tmp_path / 'run', **changes)
  out = tmp_path / 'out.flax'
  with pytest.raises(UserError, match=f'{said}.*--to=safetensors') as caught:
    exchange_convert.convert(tmp_path / 'run', out, to='official')
  assert '\n' not in str(caught.value)
  assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize('to', ['official', 'safetensors'])
def test_a_nuisance_has_no_name_in_the_public_code(tmp_path, to):
  untrained(tmp_path / 'run', model__nuisance_dim=4)
  with pytest.raises(UserError, match='no name for the nuisance .*keep it'):
    exchange_convert.convert(tmp_path / 'run', tmp_path / 'out', to=to)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'model__position_grid': 4}, 'config.model.position_grid=0, not 4'),
    ({'optimizer__name': 'muon'}, 'config.optimizer.name="adamw", and start'),
  ],
)
def test_an_import_goes_on_as_the_public_code_can(tmp_path, changes, said):
  config = small.recipe('none', **changes)
  with pytest.raises(UserError, match=said) as caught:
    exchange_convert.convert(FILE, tmp_path / 'run', config=config)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_one_foreign_format_becomes_another(theirs, tmp_path):
  out = tmp_path / 'm.safetensors'
  exchange_convert.convert(FILE, out, to='safetensors')
  arrays = safetensors.numpy.load_file(out)
  params = under(theirs, 'params/')
  assert_same(arrays, {k.replace('/', '.'): v for k, v in params.items()})


def change(tmp_path, theirs, changes):
  """The golden checkpoint with other arrays; None leaves one out."""
  arrays = {k: v for k, v in (theirs | changes).items() if v is not None}
  return write(tmp_path / 'changed.flax', arrays)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'params/Render/MLP2_1/Dense_0/kernel': np.zeros((9, 64), np.float32)},
      r'MLP2_1/Dense_0/kernel is float32\[9, 64\] where float32\[8, 64\]',
    ),
    ({'params/Render/odd': np.zeros(3)}, 'Render/odd is unexpected'),
    ({'params/PoseEnc/Dense_0/bias': None}, 'PoseEnc/Dense_0/bias is missing'),
    ({f'{MOMENTS}/nu/PoseEnc/Dense_0/bias': None}, 'Dense_0/bias is missing'),
    ({'ema_params/x': np.zeros(3)}, 'ema_params/x is unexpected'),
    ({'multi_steps': None}, 'multi_steps is missing'),
    ({f'{MOMENTS}/count': np.asarray(3, np.int32)}, 'counts of updates differ'),
  ],
)
def test_other_models_are_told_by_their_arrays(tmp_path, theirs, changes, said):
  source = change(tmp_path, theirs, changes)
  with pytest.raises(UserError, match=rf'changed.flax .*{said}'):
    exchange_convert.read(source)


# NumPy cannot make one; the header's padding gives up a space.
BFLOAT16 = (
  safetensors.numpy.save({'w': np.zeros(9, 'i2')})
  .replace(b'I16', b'BF16')
  .replace(b'}} ', b'}}')
)


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    (FILE.read_bytes()[:300_000], 'damaged or incomplete'),
    (FILE.read_bytes()[:1], 'damaged or incomplete'),
    (serialization.msgpack_serialize({'a': 1}), 'Dense_0/kernel is missing'),
    (b'PK\x03\x04' + bytes(100), 'not a valid file of torch.save'),
    (b'', 'no known format'),
    (
      safetensors.numpy.save({'w': np.zeros(9)})[:-3],
      'damaged or incomplete',
    ),
    (safetensors.numpy.save({'w': np.zeros(9)}), 'Dense_0/kernel is missing'),
    (BFLOAT16, 'type BF16: save them as F32'),
  ],
)
def test_files_of_other_kinds_are_refused(tmp_path, content, said):
  source = tmp_path / 'some file'
  source.write_bytes(content)
  with pytest.raises(UserError, match=f'some file .*{said}'):
    exchange_convert.read(source)


def test_folders_without_a_checkpoint_are_refused(tmp_path):
  with pytest.raises(UserError, match='no checkpoint that is known'):
    exchange_convert.read(tmp_path)
  (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "/x/ckpt-7"\n')
  with pytest.raises(UserError, match='names no .flax file that is there'):
    exchange_convert.read(tmp_path)
  shutil.copy(FILE, tmp_path / 'ckpt-7.flax')
  assert exchange_convert.read(tmp_path).step == 2


def test_a_rest_of_another_model_is_refused(run, theirs, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  rest = dict.fromkeys(['params/odd'])
  write(tmp_path / 'run' / official_xfactor.REST, theirs | rest)
  with pytest.raises(UserError, match='another model'):
    exchange_convert.convert(tmp_path / 'run', tmp_path / 'out', to='official')
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_nothing_is_replaced_unasked(run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(run, workdir)
  exchange_convert.convert(run, tmp_path / 'm.safetensors', to='safetensors')
  with pytest.raises(UserError, match='overwrite'):
    exchange_convert.convert(tmp_path / 'm.safetensors', workdir)
  assert read(workdir)[0]['step'] == 2
  exchange_convert.convert(tmp_path / 'm.safetensors', workdir, overwrite=True)
  assert read(workdir)[0]['step'] == 0
  # It is not of the checkpoint that is there now.
  assert not (workdir / official_xfactor.REST).exists()
  for to in ('official', 'safetensors'):
    exchange_convert.convert(run, tmp_path / 'out', to=to)
    with pytest.raises(UserError, match='overwrite'):
      exchange_convert.convert(run, tmp_path / 'out', to=to)
    exchange_convert.convert(run, tmp_path / 'out', to=to, overwrite=True)


def test_a_run_of_ours_needs_another_format(run, tmp_path):
  with pytest.raises(UserError, match='--to=official'):
    exchange_convert.convert(run, tmp_path / 'out')


def test_the_recipe_must_fit_the_patches(tmp_path):
  (tmp_path / 'checkpoints' / '7').mkdir(parents=True)
  with pytest.raises(UserError, match='image_size=100'):
    exchange_convert.convert(FILE, tmp_path, image_size=100, overwrite=True)
  assert (tmp_path / 'checkpoints' / '7').exists()


def command(*args):
  return subprocess.run(
    [sys.executable, 'tools/import_checkpoint.py', *map(str, args)],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_the_command_imports_and_tells_what(tmp_path):
  done = command(f'--source={FOLDER}', f'--out={tmp_path}/run')
  assert done.returncode == 0, done.stderr
  assert done.stderr == ''
  for said in (
    'ckpt-2.flax',
    'features 16, heads 2, patch_size 8, encoder_layers 1, renderer_layers 1',
    'pose_dim 8',
    '36,536 in 59 arrays',
    '2 updates',
    '59 gradient accumulators',
    f'{tmp_path}/run/checkpoints/2',
  ):
    assert said in done.stdout


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--source=/none/x.flax'], '/none/x.flax does not exist'),
    (['--source=setup.py'], 'setup.py is of no known format'),
    ([], '--source'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, said):
  done = command(*arguments, f'--out={tmp_path}/out')
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ')
  assert said in line
  assert not (tmp_path / 'out').exists()
