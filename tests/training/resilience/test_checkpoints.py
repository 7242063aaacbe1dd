"""Checkpoints: verified, passed over if bad, never lost; on any mesh."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny
from xfactor.errors import UserError
from xfactor.training.resilience import checkpoints as checkpoints_lib

pytestmark = tiny.MARKS


def opened(workdir, **options):
  return contextlib.closing(checkpoints_lib.Checkpoints(workdir, **options))


@pytest.fixture(scope='module')
def states():
  return {step: tiny.state(step) for step in (1, 2)}


@pytest.fixture(scope='module')
def saved(states, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('saved')
  with opened(workdir) as checkpoints:
    for state in states.values():
      checkpoints.save(state, tiny.META)
  return workdir


@pytest.fixture
def run(saved, tmp_path):
  """A copy to be damaged."""
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


@pytest.fixture
def said(monkeypatch):
  """What is warned of."""
  lines = []
  monkeypatch.setattr(
    checkpoints_lib.logging,
    'warning',
    lambda text, *args: lines.append(text % args),
  )
  return lines


def damage(run, step):
  tiny.flip(tiny.data_file(run / f'checkpoints/{step}'))


def names(run):
  return sorted(x.name for x in (run / 'checkpoints').iterdir())


@pytest.mark.parametrize('devices', [8, 4, 1])
def test_any_mesh_takes_the_same_state(saved, states, devices, said):
  other = tiny.abstract(tiny.state(0, devices))
  with opened(saved, create=False) as checkpoints:
    state, meta = checkpoints.restore(other)
  assert tiny.same(state, states[2])
  assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
    lambda x: x.sharding, other
  )
  assert meta == tiny.META
  assert not said


@pytest.mark.parametrize('prefix', ['', 'renderer/'])
def test_parameters_alone_are_verified_and_nothing_is_renamed(
  run, states, said, prefix
):
  target = tiny.abstract(states[2].params)
  expected = {
    step: {k: x for k, x in state.params.items() if k.startswith(prefix)}
    for step, state in states.items()
  }
  with opened(run, create=False) as checkpoints:
    step, params = checkpoints.restore_params(target, prefix=prefix)
    assert step == 2
    assert tiny.same(params, expected[2])
    assert not said
    # Of both the digest, as of a flip that Orbax does not see.
    meta = run / 'checkpoints/2/meta/metadata'
    meta.write_text(meta.read_text().replace('0.0004', '0.0005'))
    step, params = checkpoints.restore_params(target, prefix=prefix)
  assert step == 1
  assert tiny.same(params, expected[1])
  assert 'metadata are not what was saved' in said[0]
  assert 'passed over, step 1 is taken' in said[0]
  assert names(run) == ['1', '2']


def test_a_wrong_value_of_a_parameter_is_seen(run, states, monkeypatch):
  """Whatever is between the file and the device."""
  real = checkpoints_lib.ocp.PyTreeCheckpointHandler.restore

  def restore(*args, **options):
    tree = real(*args, **options)
    name = 'renderer/bias'
    tree['params'][name] = tree['params'][name].at[7].add(1e-7)
    return tree

  monkeypatch.setattr(
    checkpoints_lib.ocp.PyTreeCheckpointHandler, 'restore', restore
  )
  target = tiny.abstract(states[2].params)
  with (
    opened(run, create=False) as checkpoints,
    pytest.raises(UserError, match='params/renderer/bias is not what was') as e,
  ):
    checkpoints.restore_params(target, prefix='renderer/')
  assert 'none of the checkpoints' in str(e.value)


def test_a_damaged_one_is_set_aside(run, states, said):
  damage(run, 2)
  before = tiny.data_file(run / 'checkpoints/2').read_bytes()
  with opened(run) as checkpoints:
    state, _ = checkpoints.restore(tiny.abstract(states[2]))
    assert checkpoints.steps() == [1]
    assert tiny.same(state, states[1])
    assert 'now 2.damaged, step 1 is taken' in said[0]
    assert tiny.data_file(run / 'checkpoints/2.damaged').read_bytes() == before
    # The run comes by again.
    checkpoints.save(states[2], tiny.META)
    checkpoints.wait()
    assert tiny.same(checkpoints.restore(tiny.abstract(state))[0], states[2])
  assert names(run) == ['1', '2', '2.damaged']
  damage(run, 2)
  with opened(run) as checkpoints:
    checkpoints.restore(tiny.abstract(states[2]))
  assert names(run) == ['1', '2.damaged', '2.damaged+']


def test_one_asked_for_is_that_or_an_error(run, states):
  damage(run, 2)
  target = tiny.abstract(states[2])
  with opened(run) as checkpoints:
    with pytest.raises(UserError, match='checkpoints/2 is damaged'):
      checkpoints.restore(target, step=2)
    assert int(checkpoints.restore(target, step=1)[0].step) == 1
    with pytest.raises(UserError, match='no checkpoint of step 3 .* 1, 2'):
      checkpoints.restore(target, step=3)
  assert names(run) == ['1', '2']


def test_nothing_starts_anew_where_all_are_damaged(run, states):
  for step in (1, 2):
    damage(run, step)
  for _ in range(2):
    with opened(run) as checkpoints:
      assert checkpoints.resumable()
      with pytest.raises(UserError, match=r'none of .* can be read \(2: .*1: '):
        checkpoints.restore(tiny.abstract(states[2]))
  assert names(run) == ['1', '2']
  for step in (1, 2):
    (run / f'checkpoints/{step}').rename(run / f'checkpoints/{step}.damaged')
  with (
    opened(run) as checkpoints,
    pytest.raises(UserError, match=r'only damaged .*\(1.damaged, 2.damaged\)'),
  ):
    checkpoints.resumable()


def test_there_may_be_nothing_yet(tmp_path):
  (tmp_path / 'checkpoints/2.orbax-checkpoint-tmp').mkdir(parents=True)
  with opened(tmp_path) as checkpoints:
    assert not checkpoints.resumable()


def test_an_empty_folder_is_no_checkpoint(run, states):
  (run / 'checkpoints/30').mkdir()
  with opened(run) as checkpoints:
    state, _ = checkpoints.restore(tiny.abstract(states[2]))
  assert int(state.step) == 2
  assert names(run) == ['1', '2', '30.damaged']


@pytest.mark.parametrize('create', [True, False])
def test_of_older_versions_are_taken_unverified(run, states, said, create):
  for step in (1, 2):
    (run / f'checkpoints/{step}/meta/metadata').write_text(
      json.dumps(tiny.META)
    )
  with opened(run, create=create) as checkpoints:
    state, meta = checkpoints.restore(tiny.abstract(states[2]))
    read, _ = checkpoints.read()
  assert tiny.same(state, states[2])
  assert meta == tiny.META
  assert tiny.same(read['params'], states[2].params)
  assert len(said) == 2
  assert 'is not verified' in said[0]


@pytest.mark.parametrize('lost', ['fingerprints', 'sha256'])
def test_lost_fingerprints_make_no_older_version(run, states, lost):
  file = run / 'checkpoints/2/meta/metadata'
  file.write_text(file.read_text().replace(lost, lost.upper()))
  with opened(run) as checkpoints:
    assert int(checkpoints.restore(tiny.abstract(states[2]))[0].step) == 1
  assert names(run) == ['1', '2.damaged']


def test_reading_whatever_there_is(run, states):
  with opened(run, create=False) as checkpoints:
    state, meta = checkpoints.read()
    assert tiny.same(state['params'], states[2].params)
    assert tiny.same(state['opt_state'][1]['mu'], states[2].opt_state[1].mu)
    assert meta == tiny.META
    damage(run, 2)
    assert checkpoints.read()[0]['step'] == 1


def test_another_model_is_no_damage(run, states):
  target = tiny.abstract(states[2])
  params = dict(target.params)
  params['renderer/bias'] = jax.ShapeDtypeStruct((16,), jnp.float32)
  target = dataclasses.replace(target, params=params)
  with (
    opened(run) as checkpoints,
    pytest.raises(UserError, match='another model') as e,
  ):
    checkpoints.restore(target)
  assert 'renderer/bias is float32[32] there and float32[16] here' in str(
    e.value
  )
  assert names(run) == ['1', '2']


@pytest.mark.parametrize(
  ('error', 'raised'),
  [
    (ValueError('UNAVAILABLE: the bucket is tired'), RuntimeError),
    (OSError(5, 'Input/output error'), RuntimeError),
    (jax.errors.JaxRuntimeError('INTERNAL: the device'), RuntimeError),
    (PermissionError(13, 'Permission denied'), UserError),
    (ValueError('PERMISSION_DENIED: of the bucket'), UserError),
  ],
)
def test_what_may_pass_sets_nothing_aside(
  run, states, monkeypatch, error, raised
):
  def restore(*_, **__):
    raise RuntimeError('read failed') from error

  monkeypatch.setattr(
    checkpoints_lib.ocp.PyTreeCheckpointHandler, 'restore', restore
  )
  with (
    opened(run) as checkpoints,
    pytest.raises(raised, match='read failed|may not be read'),
  ):
    checkpoints.restore(tiny.abstract(states[2]))
  assert names(run) == ['1', '2']


def test_a_state_that_is_not_finite_is_not_saved(run, states):
  nu = states[2].opt_state[1].nu
  nu = nu | {'renderer/bias': nu['renderer/bias'].at[3].set(np.nan)}
  empty, moments = states[2].opt_state
  bad = dataclasses.replace(
    states[2],
    step=states[2].step + 1,
    opt_state=(empty, moments._replace(nu=nu)),
  )
  with (
    opened(run) as checkpoints,
    pytest.raises(
      FloatingPointError, match='opt_state/1/nu/renderer/bias .*ep 3'
    ),
  ):
    checkpoints.save(bad, tiny.META)
  assert names(run) == ['1', '2']


def test_a_killed_save_is_ignored_and_cleared_away(run, states):
  left = run / 'checkpoints/3.orbax-checkpoint-tmp'
  (left / 'state').mkdir(parents=True)
  with opened(run, create=False) as checkpoints:
    assert checkpoints.steps() == [1, 2]
  assert left.exists()
  with opened(run, keep=9) as checkpoints:
    assert checkpoints.steps() == [1, 2]
    state = dataclasses.replace(states[2], step=states[2].step + 1)
    checkpoints.save(state, tiny.META)
  assert names(run) == ['1', '2', '3']


def test_a_step_is_saved_once(run, states):
  before = (run / 'checkpoints/2/meta/metadata').stat().st_mtime_ns
  with opened(run) as checkpoints:
    checkpoints.save(states[2], tiny.META)
    assert checkpoints.wait() is None
  assert (run / 'checkpoints/2/meta/metadata').stat().st_mtime_ns == before


def test_only_what_is_on_disk_is_listed(tmp_path, states):
  with opened(tmp_path) as checkpoints:
    assert checkpoints.poll() is None
    checkpoints.save(states[1], tiny.META)
    assert checkpoints.steps() == []
    assert checkpoints.wait() == 1
    assert checkpoints.steps() == [1]
    assert checkpoints.poll() is None


@pytest.mark.parametrize(
  ('checkpoints_free', 'outcome'), [(0.5, 'error'), (1.5, 'warning'), (9, '')]
)
def test_room_is_looked_for_at_the_start(
  run, states, said, monkeypatch, checkpoints_free, outcome
):
  """Of three to be kept, two are there: two more are needed at a time."""
  size = sum(x.nbytes for x in jax.tree.leaves(states[2]))
  monkeypatch.setattr(
    checkpoints_lib.shutil,
    'disk_usage',
    lambda _: shutil._ntuple_diskusage(0, 0, int(checkpoints_free * size)),
  )
  with opened(run) as checkpoints:
    if outcome == 'error':
      with pytest.raises(UserError, match='GiB are left, .* free some space'):
        checkpoints.check_room(tiny.abstract(states[2]))
    else:
      checkpoints.check_room(tiny.abstract(states[2]))
  assert ['2 more checkpoints take' in line for line in said] == (
    [True] if outcome == 'warning' else []
  )
  assert names(run) == ['1', '2']
