"""Runs in a bucket: on a real server, in the place of Google's."""

import contextlib
import os
import socket
import threading
import time
import urllib.request

import fsspec
import jax
import numpy as np
import pytest
from etils import epath

from tests import bucket, commands
from tests.demo import serving
from tests.faults import runs
from tests.training import small, tiny
from xfactor import api
from xfactor.data import files
from xfactor.data.records import store
from xfactor.errors import UserError
from xfactor.evaluation import run as evaluation_run
from xfactor.exchange import convert as exchange_convert
from xfactor.training import held_out, loop
from xfactor.training.resilience import checkpoint_files
from xfactor.training.resilience import checkpoints as checkpoints_lib
from xfactor.training.resilience import lock as lock_lib
from xfactor.training.telemetry import appending, goodput, profiling, writers

pytestmark = [
  *tiny.MARKS,
  # TensorStore and gcsfs leave connections to the garbage collector.
  pytest.mark.filterwarnings('ignore::ResourceWarning'),
]


@pytest.fixture(scope='module')
def server():
  with bucket.Server() as server:
    yield server


@pytest.fixture
def workdir(server, request):
  return epath.Path(f'gs://{server.name}/{request.node.originalname}')


# ------------------------------------------------------------- checkpoints


def saved(workdir, *steps):
  with contextlib.closing(checkpoints_lib.Checkpoints(workdir)) as found:
    for step in steps:
      found.save(tiny.state(step), tiny.META)


def restored(workdir, **options):
  with contextlib.closing(
    checkpoints_lib.Checkpoints(workdir, **options)
  ) as found:
    state, _ = found.restore(tiny.abstract(tiny.state(1)))
    return state, found.steps()


def objects(folder):
  """The files under a folder, at any depth."""
  system, path = fsspec.core.url_to_fs(str(folder))
  return [epath.Path(f'gs://{name}') for name in system.find(path)]


def test_a_checkpoint_is_restored_bit_for_bit(workdir):
  saved(workdir, 1, 2, 3, 4)
  state, steps = restored(workdir)
  assert steps == [2, 3, 4]
  assert tiny.same(state, tiny.state(4))


def test_a_flipped_bit_is_found_and_the_one_before_is_taken(workdir, capfd):
  saved(workdir, 1, 2)
  found = objects(workdir / 'checkpoints/2/state')
  tiny.flip(max(found, key=lambda x: x.stat().length))
  state, steps = restored(workdir, create=False)  # Who only reads.
  assert tiny.same(state, tiny.state(1))
  assert steps == [1, 2]
  state, steps = restored(workdir)
  assert tiny.same(state, tiny.state(1))
  assert steps == [1]
  assert (workdir / 'checkpoints/2.damaged').exists()
  assert not (workdir / 'checkpoints/2').exists()


def test_who_does_not_respond_is_tried_again_and_who_refuses_is_not():
  place = epath.Path('gs://bucket/run')
  for cause in ValueError('UNAVAILABLE: try again'), OSError(5, '503'):
    error = checkpoint_files.cannot_write(place, cause)
    assert isinstance(error, ConnectionError)  # Exit code 1.
  for cause in ValueError('PERMISSION_DENIED: x'), OSError('Forbidden: x'):
    assert isinstance(checkpoint_files.cannot_write(place, cause), UserError)
  full = OSError(28, 'No space left')
  local = checkpoint_files.cannot_write(epath.Path('/run'), full)
  assert isinstance(local, UserError)


@pytest.mark.parametrize('mounted', [False, True])
def test_what_was_not_committed_is_none(
  server, workdir, tmp_path, monkeypatch, mounted
):
  """Nor is it renamed, which would copy every file."""
  if mounted:
    workdir = epath.Path(tmp_path)
    monkeypatch.setattr(files, 'is_mounted_bucket', lambda path: True)
  saved(workdir, 1, 2)
  (workdir / 'checkpoints/2/commit_success.txt').unlink()
  state, steps = restored(workdir)
  assert steps == [1]
  assert tiny.same(state, tiny.state(1))
  assert not (workdir / 'checkpoints/2').exists()


def test_mounted_buckets_are_recognised(tmp_path, monkeypatch):
  assert not files.is_mounted_bucket(tmp_path)
  read = files.pathlib.Path.read_text

  def mounts(self):
    if str(self) != '/proc/mounts':
      return read(self)
    return f'/dev/vda / ext4 rw 0 0\nruns {tmp_path}/gcs fuse.gcsfuse rw 0 0\n'

  monkeypatch.setattr(files.pathlib.Path, 'read_text', mounts)
  assert files.is_mounted_bucket(tmp_path / 'gcs/run')
  assert not files.is_mounted_bucket(tmp_path / 'gcs2/run')


# -------------------------------------------------------------------- lock


def quick(monkeypatch):
  monkeypatch.setattr(lock_lib, '_WATCH', 0.3)
  monkeypatch.setattr(lock_lib, '_POLL', 0.02)


def test_the_second_process_is_refused(workdir):
  first = lock_lib.Lock(workdir)
  with pytest.raises(UserError, match=f'process {os.getpid()} on '):
    lock_lib.Lock(workdir)
  assert lock_lib.holder(workdir)
  first.close()
  lock_lib.Lock(workdir).close()
  assert not objects(workdir)


def test_a_dead_host_holds_nothing_after_a_while(workdir, monkeypatch):
  quick(monkeypatch)
  owner = {'host': 'gone', 'process': 7, 'started': '1'}
  files.write_json(workdir / 'lock.json', owner)
  lock_lib.Lock(workdir).close()


def test_one_of_many_gets_the_lock_of_a_dead_one(workdir, monkeypatch):
  files.write_json(workdir / 'lock.json', {'host': socket.gethostname()})
  won, refused = [], []

  def compete():
    try:
      won.append(lock_lib.Lock(workdir))
    except UserError:
      refused.append(1)

  threads = [threading.Thread(target=compete) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(won) == 1
  assert len(refused) == 7
  won[0].close()


def test_only_the_lock_that_was_seen_is_replaced(workdir, monkeypatch):
  """Not one that another process has put there meanwhile."""
  path = workdir / 'lock.json'
  files.write_json(path, {'host': 'gone'})
  assert not lock_lib._replace(path, {'host': 'before'}, '{}')
  parse = lock_lib._parse

  def replaced(text):
    files.write_json(path, {'host': 'another'})
    return parse(text)

  monkeypatch.setattr(lock_lib, '_parse', replaced)
  assert not lock_lib._replace(path, {'host': 'gone'}, '{}')
  assert files.read_json(path) == {'host': 'another'}
  monkeypatch.undo()
  assert lock_lib._replace(path, {'host': 'another'}, '{}')
  assert files.read_json(path) == {}


# -------------------------------------------------------------------- logs


def test_logs_are_uploaded_at_saves_and_every_minute(workdir, monkeypatch):
  log = appending.appender(workdir / 'log')
  log.append(b'one\n')
  time.sleep(0.1)
  assert not (workdir / 'log').exists()
  log.flush()
  wait(lambda: (workdir / 'log').exists())
  assert (workdir / 'log').read_bytes() == b'one\n'
  log.append(b'tw')
  log.close()
  monkeypatch.setattr(appending, '_EVERY', 0.05)
  log = appending.appender(workdir / 'log')
  log.end_line()
  wait(lambda: (workdir / 'log').read_bytes() == b'one\ntw\n')
  log.append(b'three\n')
  wait(lambda: (workdir / 'log').read_bytes() == b'one\ntw\nthree\n')
  log.close()


def test_a_bucket_that_does_not_respond_holds_up_nothing(
  workdir, monkeypatch, capsys
):
  """Its failure is said once, and its return, too."""
  monkeypatch.setattr(appending, '_EVERY', 0.02)
  write = type(workdir).write_bytes
  log = appending.appender(workdir / 'log')
  failed = []

  def fail(self, data):
    failed.append(data)
    raise RuntimeError('503\nService Unavailable')

  monkeypatch.setattr(type(workdir), 'write_bytes', fail)
  log.append(b'one\n')
  wait(lambda: len(failed) > 2)
  assert log.read() == b'one\n'
  monkeypatch.setattr(type(workdir), 'write_bytes', write)
  wait(lambda: (workdir / 'log').exists())
  log.close()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  assert '(503 Service Unavailable)' in lines[0]
  assert lines[1].endswith('is uploaded again')


def wait(condition):
  for _ in range(1000):
    with contextlib.suppress(FileNotFoundError):
      if condition():
        return
    time.sleep(0.02)
  raise AssertionError('it did not come')


def test_a_profile_is_uploaded(workdir):
  profile = profiling.Profile(workdir, 0, 1)
  profile.before(0)
  profile.after(0, jax.numpy.ones(3) + 1)
  assert any(x.name.endswith('.xplane.pb') for x in objects(workdir))


# --------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  ('path', 'said'),
  [
    (
      's3://bucket/run',
      's3://bucket/run: a run can be in a folder or in gs://',
    ),
    ('gs://nowhere/run', 'the bucket gs://nowhere does not exist'),
  ],
)
def test_other_buckets_are_refused(server, path, said):
  for use in (
    writers.check,
    goodput.read,
    api.load,
    lambda x: checkpoints_lib.Checkpoints(x, create=False),
  ):
    with pytest.raises(UserError, match=said):
      use(path)


def test_a_run_that_is_not_there(workdir):
  with pytest.raises(UserError, match='neither a run'):
    api.load(str(workdir))
  with pytest.raises(UserError, match='does not exist'):
    goodput.read(workdir)


# -------------------------------------------------------------- whole runs


def start(recipe, workdir, tmp_path, *flags):
  output = str(tmp_path / 'output.txt')
  return commands.start(
    *('-m', 'xfactor.main', f'--config={recipe}', f'--workdir={workdir}'),
    *('--config.train.steps=12', '--config.train.save_every=4', *flags),
    stdout=output,
    stderr=output,
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'programs'),
  )


def complete(process, tmp_path):
  process.join(runs.PATIENCE)
  output = (tmp_path / 'output.txt').read_text()
  assert process.exitcode == 0, output[-3000:]
  return output


def content(workdir):
  """The last state, and the losses that were logged."""
  with contextlib.closing(
    checkpoints_lib.Checkpoints(workdir, create=False)
  ) as found:
    state, _ = found.read()
  lines = writers.read_lines(epath.Path(workdir) / 'metrics.jsonl')
  return state, {x['step']: x['loss'] for x in lines if 'loss' in x}


def psnr(workdir):
  scores = files.read_json(held_out.file(workdir, 12))
  return scores['data']['squares']['mean']['model']['psnr']


@pytest.mark.slow
def test_a_killed_run_goes_on_and_is_used(server, workdir, tmp_path, capsys):
  data = small.make_data(tmp_path / 'data')
  recipe = runs.write_recipe(tmp_path, data)
  complete(start(recipe, tmp_path / 'straight', tmp_path), tmp_path)
  process = start(recipe, workdir, tmp_path)
  first = workdir / 'checkpoints/4/commit_success.txt'
  while not first.exists():
    assert process.is_alive(), (tmp_path / 'output.txt').read_text()[-3000:]
    time.sleep(0.02)
  process.kill()
  process.join()
  output = complete(start(recipe, workdir, tmp_path), tmp_path)
  assert f'state  {workdir}/checkpoints/' in output
  state, losses = content(workdir)
  other, others = content(tmp_path / 'straight')
  assert jax.tree.all(jax.tree.map(np.array_equal, state, other))
  assert losses == {step: others[step] for step in losses}
  assert 12 in losses
  assert 'gs:' not in os.listdir('.')  # As a relative path of this machine.
  summary = goodput.summarize(goodput.read(workdir))
  assert summary.incarnations == 2
  assert summary.steps == 12

  scores = psnr(workdir)
  config = small.recipe(
    data,
    model__features=8,
    objective__unmasked_prob=0.0,
    data__image_size=16,
    eval__batch=8,
    train__steps=3,
  )
  held_out.file(workdir, 12).unlink()
  page = evaluation_run.Evaluation(config, str(workdir))()
  assert page.exists()
  assert psnr(workdir) == pytest.approx(scores)
  assert api.load(str(workdir)).step == 12
  clips = store.open_split(data, 'squares', 'test').clip_ids()
  motion, scene = (f'squares/test/{clip}' for clip in clips[:2])
  commands.run(
    *('-m', 'xfactor.render', f'--workdir={workdir}', f'--data_dir={data}'),
    *(f'--motion={motion}', f'--scene={scene}', f'--out={workdir}/moved.mp4'),
  )
  assert epath.Path(f'{workdir}/moved.mp4').read_bytes()[4:8] == b'ftyp'
  flags = f'--workdir={workdir}', f'--data_dir={data}'
  with serving.serve(tmp_path, *flags) as (address, _):
    assert urllib.request.urlopen(address).status == 200
  file = f'{workdir}/model.safetensors'
  exchange_convert.convert(str(workdir), file, to='safetensors')
  exchange_convert.convert(file, f'{workdir}-2')
  assert api.load(f'{workdir}-2').step == 0
  with config.unlocked():
    config.init_from = str(workdir)
  loop.train(config, f'{workdir}-3')
  header = files.read_json(f'{workdir}-3/run.json')
  assert f'of {workdir}/checkpoints/12: ' in header['state']
