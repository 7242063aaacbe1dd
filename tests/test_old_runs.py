"""Runs and records of earlier versions still open, with the same scores.

`golden/old_runs.tar.gz` holds two small data sets, a run of each method, and
their held-out scores, all made by version 0.1.0 before its modules moved.
"""

import json
import pathlib
import tarfile

import jax
import pytest
from ml_collections import ConfigDict

from xfactor.data import verify
from xfactor.inference import restore
from xfactor.training import build, held_out
from xfactor.training.resilience import checkpoints as checkpoints_lib
from xfactor.training.resilience import resume

ARCHIVE = pathlib.Path(__file__).parent / 'golden' / 'old_runs.tar.gz'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('old_runs')
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(path, filter='data')
  return path


@pytest.mark.slow
@pytest.mark.parametrize('name', ['xfactor', 'srt', 'rust', 'rayzer'])
def test_a_run_opens_with_the_scores_that_it_had(folder, name):
  restored = restore.restore(folder / name, devices=jax.devices()[:1])
  assert restored.step == 3
  config = ConfigDict(restored.config)
  config.data.dir = str(folder / 'data')
  scores = held_out.HeldOut(config, restored.build, {})(restored.params)
  expected = json.loads((folder / 'expected.json').read_text())[name]
  assert scores.keys() == expected.keys()
  for data_set, result in scores.items():
    for row, values in expected[data_set].items():
      assert result.means()[row] == pytest.approx(values, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['xfactor', 'srt', 'rust', 'rayzer'])
def test_a_run_resumes(folder, name):
  devices = jax.devices()[:1]
  config = restore.restore(folder / name, devices=devices).config
  built = build.build(config, devices)
  checkpoints = checkpoints_lib.Checkpoints(folder / name, create=False)
  state, meta = checkpoints.restore(built.abstract_state())
  checkpoints.close()
  assert int(state.step) == 3
  with config.unlocked():  # Inference has another batch.
    config.data.batch = meta['config']['data']['batch']
  found = json.loads(config.to_json_best_effort())
  changes = resume.check(meta, meta | {'config': found}, name, allow=False)
  assert not changes


def test_records_verify(folder):
  report = verify.verify(str(folder / 'data'), workers=0, quiet=True)
  assert report.ok
  assert {row.name for row in report.rows} == {'squares', 'skies'}
  assert sum(row.frames for row in report.rows) == 8 * 12 + 8 * 6
