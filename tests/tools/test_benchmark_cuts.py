"""The comparison of detectors of cuts counts what they find and invent."""

import numpy as np
import pytest
from benchmarks import cuts

from xfactor.errors import UserError


def test_found_and_wrong_cuts_are_counted():
  frame = np.zeros((8, 8, 3), np.uint8)
  footage = [
    cuts.Footage('shots', [frame] * 9, [(3, 3), (6, 6)]),
    cuts.Footage('fades', [frame] * 9, [(2, 5)]),
    cuts.Footage('pans', [frame] * 9, []),
  ]
  answers = {
    'perfect': [[3, 6], [2], []],
    'hasty': [[3, 4], [3, 4, 7], [1, 2]],
    'blind': [[], [], []],
  }
  found = {name: iter(answer) for name, answer in answers.items()}
  detectors = {
    name: lambda _, places=places: next(places)
    for name, places in found.items()
  }
  result = cuts.score(footage, detectors)
  assert result.cuts == {'shots': 2, 'fades': 1, 'pans': 0}
  assert result.found['perfect'] == {'shots': 2, 'fades': 1, 'pans': 0}
  assert result.wrong['perfect'].total() == 0
  assert result.found['hasty'] == {'shots': 1, 'fades': 1, 'pans': 0}
  assert result.wrong['hasty'] == {'shots': 1, 'fades': 1, 'pans': 2}
  assert result.found['blind'].total() == result.wrong['blind'].total() == 0
  lines = str(result).splitlines()
  assert lines[-2].split() == ['all', '3', '3', '0', '2', '4', '0', '0']


@pytest.mark.soak
def test_ours_finds_the_cuts_of_the_sequences():
  footage = [*cuts.sequences()]
  assert len(footage) == 20
  result = cuts.score(footage, {'ours': cuts.ours})
  found, wrong = result.found['ours'], result.wrong['ours']
  for kind in ('shots, 30 frames/s', 'shots, 4 frames/s'):
    assert found[kind] > 0.9 * result.cuts[kind]
  for kind in ('fast pans', 'walks through a door', 'flash and lamp'):
    assert wrong[kind] == 0
  assert wrong.total() <= 2


def test_pyscenedetect_that_is_missing(monkeypatch):
  monkeypatch.setattr(cuts.importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match='pip install scenedetect-headless'):
    cuts.run()
