"""The table of faults names tests that exist, and counts what they say."""

import ast
import types

import pytest

from tests.faults import __main__ as table


def report(nodeid, outcome='passed', when='call', **said):
  return types.SimpleNamespace(
    nodeid=nodeid,
    when=when,
    user_properties=list(said.items()),
    **{word: outcome == word for word in ('passed', 'failed', 'skipped')},
  )


@pytest.mark.parametrize('fault', table.FAULTS)
def test_its_tests_exist(fault):
  for test in table.FAULTS[fault]:
    file, _, name = test.partition('::')
    tree = ast.parse((table.ROOT / 'tests' / file).read_text())
    names = {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
    assert not name or name in names, test


def test_results_are_counted():
  counter = table.Counter()
  fuzz = 'tests/data/formats/test_fuzz.py::test_only_its_own_errors'
  lock = 'tests/training/resilience/test_lock.py::test_a'
  for one in (
    report(f'{fuzz}[png-2000]', tried=2000),
    report(f'{fuzz}[png-2000]', when='teardown'),
    report(f'{fuzz}[gif-2000]', 'failed', tried=2000),
    report(f'{lock}[0]', lost=7),
    report(f'{lock}[1]', 'failed', when='setup'),
    report(f'{lock}[2]', 'skipped'),
    report('tests/test_api.py::test_a'),
  ):
    counter.pytest_runtest_logreport(one)
  text = str(counter).splitlines()
  row = '| files: mutations of each format | 4,000 | 3,999 | 0 | 1 |'
  assert row in text
  assert '| storage: two trainings in one folder | 2 | 1 | 7 | 1 |' in text
  assert text[-1] == '| all | 4,002 | 4,000 | 7 | 2 |'
