"""Runs the tests of faults and prints a table of them.

  python -m tests.faults [PYTEST_OPTION ...]

Options are those of pytest: by default all of these tests run, which takes
about an hour on two cores; `-m "not soak"` runs them in minutes.

`tried` counts faults, `survived` those whose promise was kept, `lost` the
updates that were done but had to be done again, `wrong` the broken promises. A
test is one fault, unless it records how many it has tried.
"""

import collections
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLUMNS = ('tried', 'survived', 'lost', 'wrong')
# Files of tests, or tests, relative to this repository's `tests`.
FAULTS = {
  'storage: a full disk, the log': (
    'training/telemetry/test_writers.py::test_a_full_disk_holds_up_no_writer',
    'test_streams.py::test_a_full_disk_is_no_error',
  ),
  'storage: a full or read-only disk, checkpoints': (
    'faults/test_checkpoint_damage.py::'
    'test_a_full_disk_is_said_and_nothing_is_lost',
    'faults/test_checkpoint_damage.py::'
    'test_a_disk_that_cannot_be_written_is_said',
  ),
  'storage: damaged checkpoints': (
    'faults/test_checkpoint_damage.py::test_nothing_wrong_is_ever_loaded',
  ),
  'storage: two trainings in one folder': ('training/resilience/test_lock.py',),
  'storage: runs in a bucket': ('faults/test_bucket.py',),
  'storage: a crash, then the curves': (
    'training/telemetry/test_writers.py::'
    'test_curves_do_not_run_backwards_after_a_crash',
    'training/telemetry/test_writers.py::'
    'test_evaluations_that_were_interrupted_are_known',
  ),
  'storage: another recipe or other data at resume': (
    'training/resilience/test_resume.py',
  ),
  'commands: words, values and flags': ('test_parsing.py', 'test_binaries.py'),
  'commands: clusters that cannot be': ('test_cli.py',),
  'commands: closed streams, no terminal': (
    'test_streams.py::test_closed_streams_are_no_error',
    'test_streams.py::test_progress_without_a_terminal_is_whole_lines',
  ),
  'commands: evaluation of what is not there': ('test_eval.py',),
  'signals: training, at random moments': (
    'faults/test_interruptions.py::'
    'test_a_run_survives_signals_at_random_moments',
  ),
  'signals: compilation, at random moments': (
    'faults/test_interruptions.py::'
    'test_a_signal_while_jax_compiles_is_no_crash',
    'faults/test_interruptions.py::'
    'test_twenty_signals_while_jax_compiles_are_no_crash',
  ),
  'signals: what hangs, a second Ctrl-C': (
    'faults/test_interruptions.py::'
    'test_what_hangs_in_c_is_left_with_nothing_lost',
    'faults/test_interruptions.py::test_a_second_ctrl_c_ends_all',
    'faults/test_interruptions.py::test_the_watchdog_ends_what_hangs',
  ),
  'signals: one of two processes': (
    'faults/test_interruptions.py::'
    'test_two_processes_stop_together_and_miss_each_other',
  ),
  'files: mutations of each format': (
    'data/formats/test_fuzz.py::test_only_its_own_errors',
    'data/formats/test_fuzz.py::test_damaged_data_sets',
  ),
  'files: bombs and pickles': (
    'data/formats/test_fuzz.py::test_pickles_that_take_all_memory_or_time',
    'data/formats/test_fuzz.py::test_a_memo_of_any_size_takes_no_memory',
    'data/formats/test_fuzz.py::test_compressed_bombs',
    'data/formats/test_fuzz.py::test_arrays_that_declare_more_than_they_have',
    'data/formats/test_torch_file.py::test_other_names_are_refused',
  ),
  'files: uploads and hosts of the demo': (
    'demo/test_demo.py::test_only_its_own_names_reach_the_page',
    'demo/test_demo.py::test_large_uploads_are_refused',
    'demo/test_demo.py::test_what_cannot_be_shown_is_a_sentence',
  ),
  'launching: names and commands': (
    'launch/test_tpu.py::test_bad_names_are_refused_before_anything_is_called',
  ),
}


class Counter:
  """Counts the results of tests by fault; a plugin of pytest."""

  def __init__(self):
    self.rows = {fault: collections.Counter() for fault in FAULTS}

  def pytest_runtest_logreport(self, report):
    if report.skipped or (report.when != 'call' and report.passed):
      return
    said = dict(report.user_properties)
    tried = said.get('tried', 1)
    wrong = said.get('wrong', 1) if report.failed else 0
    test = report.nodeid.partition('[')[0]
    for fault, tests in FAULTS.items():
      if any(f'tests/{t}' in (test, test.partition('::')[0]) for t in tests):
        self.rows[fault].update(
          tried=tried,
          survived=tried - wrong,
          lost=said.get('lost', 0),
          wrong=wrong,
        )

  def __str__(self):
    total = sum(self.rows.values(), collections.Counter())
    lines = [f'| fault | {" | ".join(COLUMNS)} |', '|---|' + '---|' * 4]
    for fault, row in [*self.rows.items(), ('all', total)]:
      cells = (f'{row[column]:,}' for column in COLUMNS)
      lines.append(f'| {fault} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main(options):
  counter = Counter()
  tests = dict.fromkeys(test for tests in FAULTS.values() for test in tests)
  code = pytest.main(
    [
      *('-m', 'slow or soak or not slow', '--rootdir', str(ROOT), *options),
      *(str(ROOT / 'tests' / test) for test in tests),
    ],
    plugins=[counter],
  )
  print(f'\n{counter}')
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
