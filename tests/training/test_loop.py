"""A run from its first step to its pictures; stopping and going on."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from tests.training import small
from xfactor import config as configs
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.evaluation import run as evaluation_run
from xfactor.methods.xfactor import method as xfactor_method
from xfactor.methods.xfactor import objective as xfactor_objective
from xfactor.metrics import lpips_weights
from xfactor.training import build, data, loop
from xfactor.training.resilience import checkpoints as checkpoints_lib
from xfactor.training.resilience import resume
from xfactor.training.telemetry import goodput, log, writers


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return small.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """A finished run of six steps.

  Also what was traced (whether whole steps), the steps that were the last to
  have been dispatched when something was compiled, and the header of the run,
  which a test that continues the run overwrites.
  """
  workdir = tmp_path_factory.mktemp('run')
  config = small.recipe(data_dir)
  traces, compiled, dispatched = [], [], []
  loss, add = xfactor_objective.loss, log.Log.add

  def counted_loss(*args, **kwargs):
    traces.append(kwargs['whole'])
    return loss(*args, **kwargs)

  def counted_add(self, number, *args):
    dispatched.append(number)
    add(self, number, *args)

  def listen(event, seconds, **_):
    if event == '/jax/core/compile/backend_compile_duration' and dispatched:
      compiled.append(dispatched[-1])

  jax.monitoring.register_event_duration_secs_listener(listen)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(xfactor_objective, 'loss', counted_loss)
    patch.setattr(log.Log, 'add', counted_add)
    loop.train(config, str(workdir))
  compiled = list(compiled)
  dispatched.clear()
  header = json.loads((workdir / 'run.json').read_text())
  return config, workdir, traces, compiled, header


def read_state(config, workdir, at=None):
  checkpoints = checkpoints_lib.Checkpoints(workdir)
  built = build.build(config)
  state, meta = checkpoints.restore(built.abstract_state(), at)
  checkpoints.close()
  return jax.device_get(state), meta


def picture_size(path):
  with Image.open(path) as picture:
    return picture.size


def test_each_program_is_compiled_once(run):
  _, _, traces, compiled, _ = run
  assert sorted(traces) == [False, True]
  # The first save takes fingerprints, and the end evaluates.
  assert set(compiled) <= {0, 2, 5}
  assert 5 in compiled


def test_a_run_leaves_its_log(run):
  config, workdir, *_, header = run
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  train = [line for line in lines if 'loss' in line]
  assert [line['step'] for line in train] == [2, 4, 6]
  assert all(np.isfinite(list(line.values())).all() for line in lines)
  assert {'grad_norm', 'learning_rate', 'frames_per_s', 'data_wait'} <= set(
    train[0]
  )
  held_out = next(line for line in lines if 'eval/squares/psnr' in line)
  assert {'eval/squares/copy_psnr', 'eval/squares/mean_ssim'} <= set(held_out)
  assert header['state'] == 'random, seed 0'
  assert header['config']['train']['steps'] == config.train.steps
  assert list((workdir / 'tensorboard').glob('events*'))


def test_a_run_leaves_pictures(run):
  _, workdir, *_ = run
  # Three examples of context, prediction and truth, enlarged four times.
  size = picture_size(workdir / 'panels/00000006_squares_reconstruction.png')
  assert size == (4 * (3 * 32 + 2 * 2),) * 2
  assert (workdir / 'panels/00000006_squares_transfer.png').exists()


def test_the_newest_checkpoints_are_kept(run):
  config, workdir, *_ = run
  checkpoints = checkpoints_lib.Checkpoints(workdir)
  assert checkpoints.steps() == [3, 6]
  checkpoints.close()
  state, meta = read_state(config, workdir)
  assert int(state.step) == 6
  assert meta['config']['data']['batch'] == 8
  assert len(meta['data']['sha256']) == 64


@pytest.fixture(scope='module')
def muon(data_dir, tmp_path_factory):
  """A finished run with the settings by which small models learn motion."""
  workdir = tmp_path_factory.mktemp('muon')
  config = small.recipe(
    data_dir,
    **small.LEARNING,
    objective__unmasked_prob=0.0,
    eval__pairs=0,
  )
  loop.train(config, str(workdir))
  return config, workdir


@pytest.mark.slow
def test_a_run_with_muon_goes_on_as_if_it_had_not_stopped(muon, tmp_path):
  """Bit for bit, the orthogonalised momentum too."""
  config, workdir = muon
  shutil.copytree(workdir / 'checkpoints/3', tmp_path / 'checkpoints/3')
  loop.train(config, str(tmp_path))
  straight, resumed = (read_state(config, w)[0] for w in (workdir, tmp_path))
  found = optax.tree_utils.tree_get_all_with_path(straight.opt_state, 'mu')
  assert len(found) == 2  # Muon's and AdamW's.
  assert all(any(x.any() for x in jax.tree.leaves(mu)) for _, mu in found)
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.mark.slow
def test_without_pairs_nothing_is_transferred(muon):
  _, workdir = muon
  assert not list(workdir.glob('transfer.*'))


@pytest.mark.slow
def test_going_on_equals_never_having_stopped(run, data_dir, tmp_path):
  """Bit for bit: parameters, moments, and so the data and all draws."""
  config, workdir, *_ = run
  stopped = small.recipe(data_dir)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(log.Log, 'read', small.stop_at(4, log.Log.read))
    with pytest.raises(KeyboardInterrupt):
      loop.train(stopped, str(tmp_path))
  assert read_state(config, tmp_path)[0].step == 3
  loop.train(config, str(tmp_path))
  assert json.loads((tmp_path / 'run.json').read_text())['state'].endswith('/3')
  straight, resumed = (read_state(config, w)[0] for w in (workdir, tmp_path))
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)
  # Step 4 is the mean over 3 and 4, though the checkpoint lies between them.
  lines = [
    {
      line['step']: (line['loss'], line['grad_norm'])
      for line in writers.read_lines(w / 'metrics.jsonl')
      if 'loss' in line
    }
    for w in (workdir, tmp_path)
  ]
  assert lines[0] == lines[1]
  assert not (tmp_path / 'lock.json').exists()


@pytest.mark.slow
def test_a_finished_run_only_evaluates_again(run, capsys):
  config, workdir, *_ = run
  before = (workdir / 'metrics.jsonl').read_text()
  loop.train(config, str(workdir))
  assert 'copy the nearest view' in capsys.readouterr().out
  after = (workdir / 'metrics.jsonl').read_text()
  assert len(after.splitlines()) == len(before.splitlines()) + 1


def test_the_eval_binary_agrees_with_the_end_of_training(run):
  config, workdir, *_ = run
  page = evaluation_run.Evaluation(config, str(workdir))()
  assert page == workdir / 'eval/00000006/index.html'
  written = json.loads((workdir / 'eval/00000006.json').read_text())
  written = written['data']['squares']
  assert written['examples'] == 6
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  logged = next(
    line for line in map(json.loads, lines) if 'eval/squares/psnr' in line
  )
  np.testing.assert_allclose(
    written['mean']['model']['psnr'], logged['eval/squares/psnr'], rtol=1e-6
  )
  assert len(written['each']['copy']['psnr']) == 6
  size = picture_size(workdir / 'eval/00000006/squares_transfer.png')
  assert size[0] == 4 * (4 * 32 + 3 * 2)


@pytest.mark.slow
def test_fewer_steps_than_done_evaluates_what_is_there(run, data_dir):
  _, workdir, *_ = run
  loop.train(small.recipe(data_dir, train__steps=4), str(workdir))
  assert not (workdir / 'eval/00000004.json').exists()


def test_a_killed_runs_half_line_is_passed_over(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 3.0}\n{"st')
  with contextlib.closing(writers.Writer(tmp_path)) as writer:
    writer.scalars(1, {'loss': 2.0})
    writer.scalars(2, {'loss': 1.0})
    writer.curves()
  lines = writers.read_lines(tmp_path / 'metrics.jsonl')
  assert lines == [{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 1.0}]
  assert picture_size(tmp_path / 'curves.png')[0] > 500


@pytest.mark.slow
def test_data_are_made_once_and_other_options_are_refused(
  tmp_path, capsys, monkeypatch
):
  """What the README's first command does before it trains."""
  monkeypatch.setattr(
    data.sources, 'make', lambda name, **options: small.Squares(**options)
  )
  config = small.recipe(tmp_path)
  with config.unlocked():
    config.data.make = {'squares': {'clips_made': 12}}
  data.make(config)
  assert '12 frames' not in capsys.readouterr().out
  assert data.open_pipeline(config).num_clips == [9]
  data.make(config)
  assert not capsys.readouterr().out
  with config.unlocked():
    config.data.make = {'squares': {'clips_made': 16}}
  with pytest.raises(UserError, match='clips_made'):
    data.make(config)


@pytest.mark.slow
def test_data_can_have_another_name_than_their_source(tmp_path, capsys):
  config = small.recipe(tmp_path)
  rooms = {'source': 'synthetic', 'scenes': 10, 'frames': 2, 'size': 8}
  with config.unlocked():
    config.data.make = {'few': rooms, 'solids': {**rooms, 'source': 'solids'}}
  data.make(config)
  made = {
    name: store_lib.open_split(tmp_path, name, 'train').manifest()
    for name in ('few', 'solids')
  }
  assert [x['source'] for x in made.values()] == ['synthetic', 'solids']
  assert made['few']['options']['scenes'] == 10
  capsys.readouterr()
  data.make(config)
  assert not capsys.readouterr().out
  with config.unlocked():
    config.data.make.few.frames = 3
  with pytest.raises(UserError, match='frames'):
    data.make(config)
  with config.unlocked():
    config.data.make = {'few': {'source': 'fex'}}
  with pytest.raises(UserError, match='fex'):
    data.make(config)


def test_other_data_at_resume_are_refused(run, data_dir, tmp_path):
  _, workdir, *_ = run
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
  other = small.recipe(data_dir, data__flip_prob=0.0, data__batch=16)
  with pytest.raises(UserError) as caught:
    loop.train(other, str(tmp_path))
  for words in (
    'checkpoints/6 was trained on',
    'batch_size: 8 -> 16',
    'squares.views.flip_prob: 0.5 -> 0.0',
    'another --workdir',
    '--config.allow_change=true',
  ):
    assert words in str(caught.value)


@pytest.mark.slow
def test_other_data_can_be_allowed(run, data_dir, tmp_path, monkeypatch):
  """They are then what the run is on, and are compared with."""
  _, workdir, *_ = run
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
  said = []
  monkeypatch.setattr(
    resume.logging, 'warning', lambda *args: said.append(args)
  )
  changes = {'data__flip_prob': 0.0, 'train__steps': 8}
  allowed = small.recipe(data_dir, **changes)
  allowed.allow_change = True
  loop.train(allowed, str(tmp_path))
  # Orbax warns, too.
  ((_, origin, differences),) = [x for x in said if 'with changes' in x[0]]
  assert origin.endswith('checkpoints/6')
  assert differences == 'squares.views.flip_prob: 0.5 -> 0.0'
  assert read_state(allowed, tmp_path)[0].step == 8
  with pytest.raises(UserError, match=r'flip_prob: 0.0 -> 0.5'):
    loop.train(small.recipe(data_dir), str(tmp_path))


@pytest.mark.slow
def test_hands_that_only_change_speed_are_no_other_data(
  run, data_dir, tmp_path
):
  """Threads, prefetch, worker processes: going on equals a straight run."""
  config, workdir, *_ = run
  shutil.copytree(workdir / 'checkpoints/3', tmp_path / 'checkpoints/3')
  speed = small.recipe(
    data_dir, data__threads=1, data__prefetch=2, data__workers=1
  )
  parsed = flags.FLAGS.is_parsed()
  flags.FLAGS.mark_as_parsed()  # Binaries have parsed them; Grain looks.
  try:
    loop.train(speed, str(tmp_path))
  finally:
    if not parsed:
      flags.FLAGS.unparse_flags()
  straight, resumed = (read_state(config, w)[0] for w in (workdir, tmp_path))
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.mark.slow
def test_unreadable_examples_are_in_the_log(data_dir, tmp_path):
  """By data set, where there are any; a bad checksum has another clip read."""
  shutil.copytree(data_dir, tmp_path / 'data')
  store = store_lib.open_split(data_dir, 'squares', 'train')
  (jpeg,) = store.clip_frames(4, [5])
  for path in (tmp_path / 'data').glob('squares/frames/*/*train*array_record*'):
    path.write_bytes(path.read_bytes().replace(jpeg[-99:], bytes(99)))
  loop.train(small.recipe(tmp_path / 'data'), str(tmp_path / 'run'))
  lines = writers.read_lines(tmp_path / 'run/metrics.jsonl')
  last = [line for line in lines if 'loss' in line][-1]
  assert last['bad_examples/squares'] == last['bad_examples'] >= 1


@pytest.mark.parametrize(
  ('section', 'key', 'value'),
  [
    ('model', 'heads', 0),
    ('model', 'patch_size', 0),
    ('train', 'accumulate', 0),
    ('train', 'log_every', 0),
    ('eval', 'panel', 0),
    ('data', 'image_size', 8),
    ('objective', 'lpips_dtype', 'half'),
  ],
)
def test_values_that_make_no_sense_are_named(section, key, value):
  with pytest.raises(UserError, match=f'config.{section}.{key}'):
    build.build(small.recipe('data', **{f'{section}__{key}': value}))


@pytest.mark.slow
def test_older_checkpoints_can_be_evaluated(run):
  config, workdir, *_ = run
  evaluation_run.Evaluation(config, str(workdir))(3)
  assert (workdir / 'eval/00000003.json').exists()
  with pytest.raises(UserError, match=r'no checkpoint of step 4.*3, 6'):
    evaluation_run.Evaluation(config, str(workdir))(4)


@pytest.mark.slow
def test_overrides_are_named_and_overwrite_no_scores(run, tmp_path, capsys):
  config, workdir, *_ = run
  evaluation_run.Evaluation(config, str(workdir))(3)
  before = (workdir / 'eval/00000003.json').read_text()
  other = ConfigDict(config)
  other.unlock().eval.examples = 2
  page = evaluation_run.Evaluation(other, str(workdir), out=str(tmp_path))(3)
  scores = json.loads(page.parent.with_suffix('.json').read_text())
  assert scores['overrides'] == {'eval.examples': 2}
  assert scores['data']['squares']['examples'] == 2
  assert page.is_relative_to(tmp_path)
  assert (workdir / 'eval/00000003.json').read_text() == before
  assert not list(workdir.glob('eval-*'))
  assert 'not the recipe of the run: eval.examples=2' in capsys.readouterr().out


def test_scores_are_printed_where_they_cannot_be_written(run, tmp_path, capsys):
  config, workdir, *_ = run
  (tmp_path / 'file').write_text('')
  evaluate = evaluation_run.Evaluation(
    config, str(workdir), out=str(tmp_path / 'file')
  )
  with pytest.raises(UserError, match='give --out=FOLDER'):
    evaluate(3)
  assert 'PSNR' in capsys.readouterr().out


def test_no_checkpoint_is_said(data_dir, tmp_path):
  with pytest.raises(UserError, match='no checkpoint in'):
    evaluation_run.Evaluation(small.recipe(data_dir), str(tmp_path / 'none'))()
  assert not (tmp_path / 'none').exists()


def test_a_checkpoint_of_another_size_is_refused_by_name(run, data_dir):
  _, workdir, *_ = run
  other = small.recipe(data_dir, model__pose_dim=8)
  with pytest.raises(UserError, match=r'another model.*pose_encoder/head'):
    loop.train(other, str(workdir))
  with pytest.raises(UserError, match=r'model.pose_dim: 4 -> 8'):
    evaluation_run.Evaluation(other, str(workdir))()


def test_a_damaged_checkpoint_is_named(run, tmp_path):
  config, workdir, *_ = run
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
  (tmp_path / 'checkpoints/6/state/_METADATA').write_text('{"tree')
  shutil.rmtree(tmp_path / 'checkpoints/3')
  with pytest.raises(
    UserError, match=r'none of .*checkpoints can be read \(6:'
  ):
    loop.train(config, str(tmp_path))


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_says_why(
  data_dir, tmp_path, monkeypatch
):
  config = small.recipe(data_dir, train__max_skipped=2)
  loss = xfactor_objective.loss

  def diverged(*args, **kwargs):
    return jax.tree.map(lambda x: x * jnp.nan, loss(*args, **kwargs))

  monkeypatch.setattr(xfactor_objective, 'loss', diverged)
  with pytest.raises(FloatingPointError, match=r'2 steps in a row.*loss nan'):
    loop.train(config, str(tmp_path))
  found = json.loads((tmp_path / 'diagnosis-1.json').read_text())
  assert [skipped['step'] for skipped in found['skipped']] == [0, 1]
  assert len(found['skipped'][0]['examples']) == config.data.batch
  assert 'pose_encoder/embed' in found['skipped'][0]['module_norms']


@pytest.fixture(scope='module')
def eventful(data_dir, tmp_path_factory):
  """A run with a poisoned batch, saves by time, a profile, expectations."""
  workdir = tmp_path_factory.mktemp('eventful')
  config = small.recipe(
    data_dir,
    objective__unmasked_prob=0.0,
    train__save_every=100,
    train__save_minutes=1e-6,
    train__keep=100,
    train__profile_at=2,
    train__profile_steps=2,
  )
  config.expected_devices = 8
  to_float, to_mesh, batches = (
    xfactor_method.to_float,
    loop.sharding.to_mesh,
    [],
  )

  def poison(mesh, batch):
    batches.append(batch)
    if len(batches) == 4:
      batch = {**batch, 'images': np.full_like(batch['images'], 255)}
    return to_mesh(mesh, batch)

  def poisoned(images):
    return jnp.where((images == 255).all(), jnp.nan, to_float(images))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.sharding, 'to_mesh', poison)
    patch.setattr(xfactor_method, 'to_float', poisoned)
    loop.train(config, str(workdir))
  return config, workdir


@pytest.mark.slow
def test_a_poisoned_batch_is_left_out(eventful):
  config, workdir = eventful
  lines = writers.read_lines(workdir / 'metrics.jsonl')
  lines = [line for line in lines if 'loss' in line]
  assert sum(line['skipped'] for line in lines) == 1
  assert all(np.isfinite(list(line.values())).all() for line in lines)
  state, _ = read_state(config, workdir)
  assert int(state.step) == 6
  assert optax.tree.get_all_with_path(state.opt_state, 'count')[0][1] == 5
  assert np.isfinite(optax.tree.norm(state.params))


@pytest.mark.slow
def test_it_saves_by_time(eventful):
  _, workdir = eventful
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    steps = checkpoints.steps()
  assert steps[-1] == 6
  assert len(steps) > 1


@pytest.mark.slow
def test_a_profile_on_request(eventful):
  _, workdir = eventful
  assert list(workdir.glob('profile/**/*.xplane.pb'))


@pytest.mark.slow
def test_where_the_time_went_is_known(eventful):
  _, workdir = eventful
  summary = goodput.summarize(goodput.read(workdir))
  assert summary.steps == 6
  assert all(
    summary.seconds[kind] > 0
    for kind in ('init', 'compile', 'data_wait', 'step', 'checkpoint')
  )


def test_fewer_devices_than_expected_are_said(data_dir, tmp_path):
  config = small.recipe(data_dir)
  config.expected_devices = 256
  with pytest.raises(UserError, match=r'=256 but there are 8.*--worker=all'):
    loop.train(config, str(tmp_path))


@pytest.mark.slow
def test_nothing_slips_onto_the_devices(run, tmp_path, monkeypatch):
  config, *_ = run
  make = loop.control.make
  monkeypatch.setattr(
    loop.control, 'make', lambda *args: jax.device_get(make(*args))
  )
  with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to'):
    loop.train(config, str(tmp_path))


def test_programs_are_kept_with_the_run(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  loop.keep_programs(str(tmp_path))
  assert jax.config.jax_compilation_cache_dir == before
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    loop.keep_programs(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == f'{tmp_path}/compile_cache'
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_training_without_weights_for_lpips_is_refused(
  data_dir, tmp_path, monkeypatch
):
  monkeypatch.setenv('XFACTOR_CACHE', str(tmp_path))
  monkeypatch.setattr(
    lpips_weights.importlib.util, 'find_spec', lambda name: None
  )
  config = small.recipe(data_dir, objective__lpips_weight=0.5)
  with pytest.raises(UserError, match=r'perceptual.*lpips_weight=0'):
    loop.train(config, str(tmp_path))


def test_missing_data_are_named_with_their_command(tmp_path):
  config = small.recipe(tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r'squares.*convert_datasets.py'):
    loop.train(config, str(tmp_path / 'run'))


def test_a_workdir_that_cannot_be_written_is_said(data_dir, tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  with pytest.raises(UserError, match='--workdir'):
    loop.train(small.recipe(data_dir), str(blocked / 'run'))


@pytest.mark.slow
def test_every_leaf_of_the_config_is_read(run, tmp_path, monkeypatch):
  """A key that nothing reads would be a promise that nobody keeps."""
  config, workdir, *_ = run
  # Some say how to go on.
  shutil.copytree(workdir / 'checkpoints/3', tmp_path / 'checkpoints/3')
  seen = set()

  class Recording(configs.ConfigDict):
    pass

  def watch(section, prefix=''):
    """Replaces sections by copies that note which keys are asked for."""
    copy = Recording()
    for key in section:
      value = section[key]
      inner = isinstance(value, configs.ConfigDict)
      copy[key] = watch(value, f'{prefix}{key}.') if inner else value
    object.__setattr__(copy, '_prefix', prefix)
    return copy

  real = configs.ConfigDict.__getitem__

  def getitem(self, key):
    if isinstance(self, Recording):
      seen.add(self._prefix + key)
    return real(self, key)

  watched = watch(config)
  monkeypatch.setattr(Recording, '__getitem__', getitem, raising=False)
  monkeypatch.setattr(
    Recording,
    'to_json_best_effort',
    lambda self: config.to_json_best_effort(),
    raising=False,
  )
  # It reads every number.
  monkeypatch.setattr(configs.limits, 'check_finite', lambda config: None)
  loop.train(watched, str(tmp_path))
  unread = set(configs.leaf_paths(config)) - seen
  # Only asked for where there is no checkpoint: test_multiview.py.
  assert unread == {'init_from'}
