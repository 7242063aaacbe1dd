"""The tool's table and its JSON say the same."""

import json
import pathlib
import re

import pytest

from tests import commands
from xfactor.training.telemetry import goodput

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*args):
  return commands.run('tools/goodput.py', *args)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A run that was killed once, and one that has only begun."""
  folder = tmp_path_factory.mktemp('runs')
  lines = [
    ('a', 0, 'start', {}),
    ('a', 10, 'compile', {'seconds': 10.0}),
    ('a', 50, 'step', {'seconds': 36.0, 'step': 40, 'steps': 40}),
    ('b', 60, 'start', {}),
    ('b', 90, 'step', {'seconds': 30.0, 'step': 60, 'steps': 30}),
    ('b', 100, 'end', {}),
  ]
  for name, count in (('killed', len(lines)), ('begun', 1)):
    (folder / name).mkdir()
    text = ''.join(
      json.dumps({'incarnation': i, 'time': t, 'kind': k, **more}) + '\n'
      for i, t, k, more in lines[:count]
    )
    (folder / name / goodput.FILE).write_text(text)
  return folder


def test_table_and_json(runs):
  told = run(runs / 'killed', runs / 'begun')
  assert told.returncode == 0, told.stderr
  tables = told.stdout.split('\n\n')
  assert [table.splitlines()[0] for table in tables] == [
    str(runs / 'killed'),
    str(runs / 'begun'),
  ]
  rows = dict(re.findall(r'^  (\w+) +([\d.]+) ', tables[0], re.MULTILINE))
  assert {k: float(v) for k, v in rows.items() if k in goodput.BUCKETS} == {
    'init': 0.0,
    'compile': 10.0,
    'data_wait': 0.0,
    'step': 57.0,
    'checkpoint': 0.0,
    'evaluation': 0.0,
    'lost': 9.0,
    'other': 14.0,
    'downtime': 10.0,
  }
  assert rows['wall'] == '100.0'
  assert 'restarts 1, steps 60, steps lost 10, goodput 57.0 %' in tables[0]
  assert 'restarts 0, steps 0, steps lost 0, goodput 0.0 %' in tables[1]

  (numbers,) = json.loads(run(runs / 'killed', '--json').stdout)
  assert numbers['seconds']['lost'] == 9.0
  assert (numbers['wall'], numbers['goodput']) == (100.0, 0.57)
  assert (numbers['restarts'], numbers['lost_steps']) == (1, 10)


@pytest.mark.parametrize('args', [(), ('nowhere',)])
def test_bad_input_is_one_line(args):
  told = run(*args)
  assert told.returncode == 2
  assert told.stderr.startswith('error: ')
  assert 'the --workdir of a run' in told.stderr
  assert len(told.stderr.splitlines()) == 1
