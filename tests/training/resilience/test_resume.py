"""What may differ where a run goes on, and what may not."""

import json

import pytest

from tests.training import small
from xfactor.errors import UserError
from xfactor.training.resilience import resume


def meta(**changes):
  config = small.recipe('data', **changes)
  data = {'parts': [{'name': 'squares'}], 'seed': 0, 'batch_size': 8}
  return {'config': json.loads(config.to_json_best_effort()), 'data': data}


def check(saved, found, allow=False):
  return resume.check(saved, found, 'checkpoints/6', allow=allow)


def test_nothing_changed():
  assert check(meta(), meta()) == []


def test_where_how_fast_and_how_long_is_only_told():
  found = meta(
    train__steps=9,
    train__log_every=5,
    optimizer__decay_steps=7,
    eval__batch=4,
    data__threads=7,
    mesh__fsdp=2,
    model__remat='none',
  )
  found['config']['allow_change'] = True
  assert check(meta(), found) == [
    'model.remat: full -> none',
    'optimizer.decay_steps: 10000 -> 7',
    'mesh.fsdp: 1 -> 2',
    'data.threads: 2 -> 7',
    'train.steps: 6 -> 9',
    'train.log_every: 2 -> 5',
    'eval.batch: 8 -> 4',
  ]


@pytest.mark.parametrize(
  ('section', 'key', 'value', 'told'),
  [
    ('optimizer', 'b2', 0.5, 'optimizer.b2: 0.95 -> 0.5'),
    ('objective', 'unmasked_prob', 0.5, 'objective.unmasked_prob: 0.25 -> 0.5'),
    ('model', 'heads', 4, 'model.heads: 2 -> 4'),
  ],
)
def test_another_training_is_refused(section, key, value, told, monkeypatch):
  found = meta(train__steps=9, **{f'{section}__{key}': value})
  with pytest.raises(UserError) as caught:
    check(meta(), found)
  assert f'({told})' in str(caught.value)
  assert 'checkpoints/6' in str(caught.value)
  assert '--config.allow_change=true' in str(caught.value)
  said = []
  monkeypatch.setattr(
    resume.logging, 'warning', lambda *args: said.append(args)
  )
  assert check(meta(), found, allow=True) == ['train.steps: 6 -> 9']
  assert said[0][1:] == ('checkpoints/6', told)


def test_recipe_and_data_are_named_together():
  found = meta(optimizer__eps=1e-6)
  found['data'] = found['data'] | {'seed': 1}
  with pytest.raises(UserError) as caught:
    check(meta(), found)
  assert '(optimizer.eps: 1e-08 -> 1e-06; seed: 0 -> 1)' in str(caught.value)


def test_data_of_an_import_are_not_known():
  saved = meta() | {'data': {'parts': []}}
  with pytest.raises(UserError, match='it was imported'):
    check(saved, meta())


def test_what_an_older_version_lacked_was_as_by_default():
  saved = meta()
  del saved['config']['optimizer']['clip_norm'], saved['config']['eval']
  saved['config']['train']['forgotten'] = 3
  assert (
    check(
      saved,
      meta(
        eval__window=20,
        eval__batch=64,
        eval__panel=8,
        eval__pairs=64,
        eval__targets=5,
        eval__lpips=True,
      ),
    )
    == []
  )
  with pytest.raises(UserError, match=r'clip_norm: 1.0 -> 2.0'):
    check(saved, meta(optimizer__clip_norm=2.0))
