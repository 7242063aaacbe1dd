"""docs/notebooks/transfer.ipynb runs, on a run of a few steps."""

import json
import pathlib

import matplotlib as mpl
import pytest

from tests.training import small
from xfactor import config as configs
from xfactor.data.convert import run
from xfactor.data.sources import synthetic
from xfactor.training import loop

NOTEBOOK = pathlib.Path(__file__).parents[1] / 'docs/notebooks/transfer.ipynb'


@pytest.mark.soak
def test_the_notebook_runs(tmp_path, monkeypatch):
  source = synthetic.Source(
    scenes=8,
    frames=12,
    size=32,
    paths='pan',
    field_of_view=65.0,
    test_fraction=0.6,
    with_depth=False,
  )
  run.convert(source, tmp_path / 'data', name='rooms', workers=0, quiet=True)
  config = small.recipe(tmp_path / 'data', eval__pairs=0)
  with config.unlocked():
    config.data.mix = {'rooms': configs.part(begin=2, end=4)}
  loop.train(config, str(tmp_path / 'run'))
  for name, value in (('RUN', 'run'), ('DATA', 'data'), ('NAME', '')):
    monkeypatch.setenv(name, str(tmp_path / value) if value else 'rooms')
  mpl.use('Agg')
  space = {}
  for cell in json.loads(NOTEBOOK.read_text())['cells']:
    if cell['cell_type'] == 'code':
      exec(''.join(cell['source']), space)
  assert space['moved'].shape == (6, 32, 32, 3)
  assert 5 < space['psnr'] < 60
