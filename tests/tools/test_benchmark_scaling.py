"""What `tools/benchmark.py scaling` reports of its members."""

import pathlib

import pytest
from benchmarks import scaling
from transfer_suite import members

from xfactor.errors import UserError
from xfactor.training import build as builds

RECIPES = members.load(
  str(pathlib.Path(__file__).parents[2] / 'configs/scaling.py')
)
FINAL = {'own': 23.45, 'other': 20.59, 'rank': 79.0, 'identified': 46.9}


def member(*curve, name='base'):
  points = [
    {'step': step, 'pan': pan, 'tilt': tilt} for step, pan, tilt in curve
  ]
  return scaling.Member(name, 410_240, 10**10, 300, points, FINAL)


def test_a_freedom_turns_where_half_of_it_is_explained_first():
  turned = member((100, 0.1, 0.0), (200, 0.5, 0.2), (300, 0.4, 0.6))
  assert turned.turn('pan') == 200
  assert turned.turn('tilt') == 300
  assert member((100, 0.49, 0.0)).turn('pan') is None


def test_the_table_has_the_flops_of_the_last_turn():
  both = member((100, 0.6, 0.0), (300, 0.6, 0.7))
  one = member((100, 0.6, 0.0), name='published')
  lines = str(scaling.Report('3 TFLOP each', [both, one])).splitlines()
  row = ' '.join(lines[2].split())
  assert row == 'base 410,240 10.0 300 100 300 3.0 23.45 20.59 79.0 46.9'
  assert lines[3].split()[4:7] == ['100', '-', '-']


def test_unknown_members_are_refused(tmp_path):
  with pytest.raises(UserError, match="no member 'basis'; choose from base"):
    scaling.run(['basis'], updates=1, data_dir=tmp_path, out=tmp_path)


@pytest.mark.parametrize('name', RECIPES['MEMBERS'])
def test_members_are_recipes_with_the_widths_of_their_names(name):
  build = builds.build(RECIPES['get_config'](name))
  features = int(name.split('_')[-1]) if 'width' in name else None
  assert build.model.features == (
    features or (128 if name == 'published_128' else 64)
  )
