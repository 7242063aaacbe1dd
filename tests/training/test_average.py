"""The average of the parameters: in steps, checkpoints, scores and exports."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import xfactor
from tests.training import small, tiny
from xfactor.errors import UserError
from xfactor.exchange import convert as exchange_convert
from xfactor.methods.base import StepKind
from xfactor.training import build, control, held_out, loop
from xfactor.training.resilience import checkpoints as checkpoints_lib

pytestmark = tiny.MARKS
WSD = {
  'optimizer__decay': 'wsd',
  'optimizer__decay_steps': 2,
  'optimizer__ema': 0.9,
  'train__save_every': 100,
  'train__keep': 1,
  'objective__unmasked_prob': 0.0,
  'eval__pairs': 0,
}


def recipe(data, **changes):
  return small.recipe(data, **(WSD | changes))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return small.make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
  """A finished run of six steps, four before the decay."""
  workdir = tmp_path_factory.mktemp('run')
  loop.train(recipe(data), str(workdir))
  return workdir


def read(config, workdir, step=None):
  built = build.build(config)
  checkpoints = checkpoints_lib.Checkpoints(workdir, create=False)
  with contextlib.closing(checkpoints):
    state, _ = checkpoints.restore(built.abstract_state(), step)
  return built, state


def largest_difference(a, b):
  return max(float(np.abs(np.asarray(a[k]) - b[k]).max()) for k in a)


@pytest.mark.slow
def test_a_step_averages_what_it_takes():
  built = build.build(recipe('none', mesh__fsdp=2), jax.devices()[:4])
  assert built.places.ema == built.places.params
  program = built.compile(StepKind.SPLIT, weights=None, controlled=True)
  state, rng = built.init(), np.random.default_rng(0)
  expected = jax.device_get(state.params)
  for done, limit in enumerate((np.inf, np.inf, np.inf, 1e-9)):
    before = jax.device_get(state)
    told = control.make(built.mesh, 0, limit)
    state, _ = program(state, small.batch(built, rng), None, told)
    if limit < 1:  # The update is skipped.
      assert tiny.same(state.ema, before.ema)
      continue
    decay = (1 + done) / (10 + done)
    params = jax.device_get(state.params)
    expected = {
      k: decay * x + (1 - decay) * params[k] for k, x in expected.items()
    }
  for name, array in jax.device_get(state.ema).items():
    np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-7)
  assert largest_difference(state.params, expected) > 1e-5


@pytest.mark.slow
def test_the_checkpoint_before_the_decay_is_kept(run):
  checkpoints = checkpoints_lib.Checkpoints(run, create=False)
  with contextlib.closing(checkpoints):
    assert checkpoints.steps() == [4, 6]


@pytest.mark.slow
def test_the_average_is_evaluated_loaded_and_exported(data, run, tmp_path):
  config = recipe(data)
  built, state = read(config, run)
  assert largest_difference(state.params, state.ema) > 1e-4
  written = json.loads((run / 'eval/00000006.json').read_text())
  evaluate = held_out.HeldOut(config, built, {})
  scores = [
    evaluate(params)['squares'].means()['model']['psnr']
    for params in (state.ema, state.params)
  ]
  told = written['data']['squares']['mean']['model']['psnr']
  assert told == pytest.approx(scores[0], rel=1e-6)
  assert told != pytest.approx(scores[1], rel=1e-6)
  assert tiny.same(xfactor.load(run)._params, state.ema)
  file = tmp_path / 'model.safetensors'
  facts = exchange_convert.convert(run, file, to='safetensors')
  assert 'average only' in facts['wrote']
  name = 'renderer/head/layers/2/bias'
  exported = safetensors.numpy.load_file(file)
  snapshot = exchange_convert.read(run)
  assert tiny.same(snapshot.params[name], state.params[name])
  assert any(np.array_equal(x, state.ema[name]) for x in exported.values())


@pytest.mark.slow
def test_a_run_is_extended_from_before_the_decay(data, run, tmp_path):
  """Bit for bit a longer run, the average too."""
  longer = recipe(data, train__steps=8)
  loop.train(longer, str(tmp_path / 'straight'))
  shutil.copytree(run / 'checkpoints/4', tmp_path / 'extended/checkpoints/4')
  loop.train(longer, str(tmp_path / 'extended'))
  facts = json.loads((tmp_path / 'extended/run.json').read_text())
  assert facts['state'].endswith('checkpoints/4, with train.steps: 6 -> 8')
  straight, extended = (
    read(longer, tmp_path / name)[1] for name in ('straight', 'extended')
  )
  assert int(extended.step) == 8
  assert tiny.same(straight, extended)


@pytest.mark.slow
def test_an_average_can_begin_later(data, tmp_path):
  """An old run has none; adding it changes what is trained."""
  loop.train(recipe(data, optimizer__ema=0.0), str(tmp_path))
  longer = recipe(data, train__steps=8)
  with pytest.raises(UserError, match=r'optimizer.ema: 0.0 -> 0.9'):
    loop.train(longer, str(tmp_path))
  longer.unlock().allow_change = True
  loop.train(longer.lock(), str(tmp_path))
  _, state = read(longer, tmp_path)
  assert int(state.step) == 8
  assert largest_difference(state.params, state.ema) > 1e-5


@pytest.mark.parametrize('there', [True, False])
@pytest.mark.parametrize('here', [True, False])
def test_checkpoints_with_and_without_an_average(tmp_path, there, here):
  state = tiny.state(1)
  other = tiny.state(2).params
  asked = tiny.abstract(state)
  if there:
    state = dataclasses.replace(state, ema=other)
  if here:
    asked = dataclasses.replace(asked, ema=asked.params)
  checkpoints = checkpoints_lib.Checkpoints(tmp_path)
  with contextlib.closing(checkpoints):
    checkpoints.save(state, tiny.META)
    checkpoints.wait()
    found, _ = checkpoints.restore(asked)
    _, params = checkpoints.restore_params(asked.params)
    everything, _ = checkpoints.read()
  average = other if there else state.params
  assert tiny.same(found.ema, average if here else {})
  assert tiny.same(found.params, state.params)
  assert tiny.same(params, average)
  assert tiny.same(everything.get('ema') or {}, other if there else {})
  # The step is given the buffers of both.
  assert not any(found.ema[k] is found.params[k] for k in found.ema)
