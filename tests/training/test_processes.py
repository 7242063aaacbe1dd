"""Training by several processes, and going on with another number of them."""

import json
import shutil

import numpy as np
import pytest

from tests.faults import runs
from tests.training import small

FLAGS = ('--config.train.steps=9', '--config.train.save_every=3')


@pytest.mark.soak
def test_a_run_goes_on_with_any_number_of_processes(tmp_path):
  """2 processes; from 3 on one; from 6 on four: the losses are the same."""
  recipe = runs.write_recipe(tmp_path, small.make_data(tmp_path / 'data'))
  straight = tmp_path / '2'
  with runs.Run(recipe, straight, *FLAGS, processes=2) as run:
    run.complete()
  assert runs.saved(straight) == [3, 6, 9]
  expected = runs.losses(straight)
  assert list(expected) == list(range(1, 10))
  before = straight
  for processes, step in ((1, 3), (4, 6)):
    workdir = tmp_path / str(processes)
    shutil.copytree(
      before / f'checkpoints/{step}', workdir / f'checkpoints/{step}'
    )
    with runs.Run(recipe, workdir, *FLAGS, processes=processes) as run:
      run.complete()
    found = runs.losses(workdir)
    assert list(found) == list(range(step + 1, 10))
    np.testing.assert_allclose(
      list(found.values()), list(expected.values())[step:], rtol=1e-5
    )
    header = json.loads((workdir / 'run.json').read_text())
    assert header['state'].startswith(str(workdir / f'checkpoints/{step}'))
    assert f'{processes} process(es)' in header['devices']
    before = workdir
  scores = [
    json.loads((tmp_path / f'{n}/eval/00000009.json').read_text())
    for n in (1, 2, 4)
  ]
  psnr = [x['data']['squares']['mean']['model']['psnr'] for x in scores]
  np.testing.assert_allclose(psnr, psnr[0], rtol=1e-4)
