"""Which checkpoints the eval binary looks at, and when it is done."""

import contextlib
import dataclasses
import json
import shutil

import jax.numpy as jnp
import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.evaluation import own_recipe
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


@pytest.mark.slow
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


def test_the_recipe_of_a_run_is_that_of_its_newest_checkpoint(tmp_path, state):
  with pytest.raises(UserError, match='no checkpoint in .* --config=FILE'):
    own_recipe.get_config(str(tmp_path))
  save(tmp_path, state, 2, 4)
  found = own_recipe.get_config(str(tmp_path))
  assert not own_recipe.overrides(found, tmp_path, 2)
  assert not own_recipe.overrides(CONFIG, tmp_path, 2)
  assert found.eval.to_dict() == CONFIG.eval.to_dict()


@pytest.mark.parametrize('setting', ['eval__examples', 'data__image_size'])
def test_overrides_are_named_and_have_their_own_folder(
  tmp_path, state, setting
):
  save(tmp_path, state, 2)
  other = small.recipe('elsewhere', **{setting: 16, 'train__steps': 9})
  found = own_recipe.overrides(other, tmp_path, 2)
  assert found == {setting.replace('__', '.'): 16}
  variant = own_recipe.variant(found)
  assert held_out.file(tmp_path, 2, variant) != held_out.file(tmp_path, 2)
  assert variant != own_recipe.variant({**found, 'eval.window': 3})


def test_another_model_of_the_same_shapes_is_refused(tmp_path, state):
  save(tmp_path, state, 2)
  other = small.recipe('data', model__tie_qk=True)
  with pytest.raises(UserError, match='model.tie_qk: False -> True'):
    own_recipe.overrides(other, tmp_path, 2)
  other.unlock().allow_change = True
  assert own_recipe.overrides(other, tmp_path, 2) == {'model.tie_qk': True}


class Scores(evaluation_run.Evaluation):
  """An evaluation under which training deletes a checkpoint."""

  def __init__(self, workdir, deletes):
    self._workdir, self._deletes = workdir, deletes

  def is_done(self, step):
    return held_out.file(self._workdir, step).exists()

  def __call__(self, step):
    if step == self._deletes:
      shutil.rmtree(self._workdir / f'checkpoints/{step}')
      raise UserError('it is gone')
    evaluated(self._workdir, step)
    return step


def pages(workdir, evaluate, which='all', **options):
  return list(
    evaluation_run.pages(evaluate, CONFIG, str(workdir), which, **options)
  )


@pytest.mark.slow
def test_checkpoints_that_training_deletes_are_passed_over(
  tmp_path, state, capsys
):
  save(tmp_path, state, 1, 2, 6)
  assert pages(tmp_path, Scores(tmp_path, 2), follow=True) == [1, 6]
  assert 'step 2 has been deleted by the run' in capsys.readouterr().out


def test_checkpoints_that_cannot_be_read_are_an_error(tmp_path, state):
  save(tmp_path, state, 1)
  with pytest.raises(UserError, match='it is gone'):
    pages(tmp_path, Scores(tmp_path, 1), which='1')


def test_following_ends_with_the_run_and_says_what_it_waits_for(
  tmp_path, state, monkeypatch, capsys
):
  """The run has six updates, whatever the recipe of the evaluation says."""
  save(tmp_path, state, 2)
  monkeypatch.setattr(
    evaluation_run.time, 'sleep', lambda _: save(tmp_path, state, 6)
  )
  longer = small.recipe('data', train__steps=99)
  evaluate = Scores(tmp_path, None)
  found = evaluation_run.pages(
    evaluate, longer, str(tmp_path), 'all', follow=True
  )
  assert list(found) == [2, 6]
  said = capsys.readouterr().out
  assert 'after step 2; the run ends with step 6, and no process' in said


def test_anything_else_is_refused(tmp_path):
  with pytest.raises(UserError, match='latest, all or the number'):
    list(steps(tmp_path, 'newest'))
  with pytest.raises(UserError, match='with --follow no number'):
    list(steps(tmp_path, '3', follow=True))
