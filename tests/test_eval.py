"""Which checkpoints the eval binary looks at, and when it is done."""

import contextlib
import dataclasses
import json

import jax.numpy as jnp
import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.evaluation import run as evaluation_run
from xfactor.training import build, held_out
from xfactor.training.resilience import checkpoints

CONFIG = small.recipe('data')  # Of six updates.


@pytest.fixture(scope='module')
def state():
  return build.build(CONFIG).init()


def save(workdir, state, *steps):
  with contextlib.closing(checkpoints.Checkpoints(workdir, keep=9)) as saved:
    for step in steps:
      new = dataclasses.replace(state, step=jnp.int32(step))
      saved.save(new, {'config': json.loads(CONFIG.to_json_best_effort())})
      saved.wait()


def evaluated(workdir, *steps):
  (workdir / 'eval').mkdir(exist_ok=True)
  for step in steps:
    (workdir / f'eval/{step:08d}.json').write_text('{}')


def steps(workdir, which, **options):
  def is_done(step):
    return held_out.file(workdir, step).exists()

  return evaluation_run.steps(CONFIG, str(workdir), which, is_done, **options)


def test_latest_and_numbers_are_evaluated_again(tmp_path, state):
  save(tmp_path, state, 2, 4)
  evaluated(tmp_path, 2, 4)
  assert list(steps(tmp_path, 'latest')) == [None]
  assert list(steps(tmp_path, '2')) == [2]


def test_all_are_those_not_evaluated_yet(tmp_path, state):
  save(tmp_path, state, 1, 2, 4)
  evaluated(tmp_path, 2)
  assert list(steps(tmp_path, 'all')) == [1, 4]


@pytest.mark.parametrize(
  ('which', 'expected'), [('all', [1, 2, 4, 6]), ('latest', [2, 6])]
)
def test_following_ends_with_the_last_update(
  tmp_path, monkeypatch, state, which, expected
):
  """New checkpoints come while others are evaluated; nothing comes twice."""
  waited = []

  def wait(_):
    waited.append(1)
    if len(waited) == 1:
      save(tmp_path, state, 1, 2)
    else:
      save(tmp_path, state, 4, 6)

  monkeypatch.setattr(evaluation_run.time, 'sleep', wait)
  got = []
  for step in steps(tmp_path, which, follow=True):
    got.append(step)
    evaluated(tmp_path, step)
  assert got == expected
  assert len(waited) == 2
  # Started again, there is nothing left to do.
  assert not list(steps(tmp_path, which, follow=True))


def test_anything_else_is_refused(tmp_path):
  with pytest.raises(UserError, match='latest, all or the number'):
    list(steps(tmp_path, 'newest'))
  with pytest.raises(UserError, match='with --follow no number'):
    list(steps(tmp_path, '3', follow=True))
