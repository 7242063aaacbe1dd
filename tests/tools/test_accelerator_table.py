"""The table of accelerators, from the numbers of compilations."""

import accelerator_table as tables
import pytest

PROGRAM = {
  'program': 'split',
  'fits': False,
  'memory_bytes': 100 * 2**30,
  'capacity_bytes': 79 * 2**30,
  'sent_bytes': 2e9,
  'least_bytes': 1.6e9,
  'least_seconds': {'compute': 0.1, 'HBM': 0.2},
  'mfu_bound': 0.42,
}
CELL = {
  'recipe': 'sm',
  'topology': 'v5e:4x4',
  'commit': 'abc',
  'date': '2026-01-02',
  'compiled': {
    'jax': '0.0',
    'mesh': {'data': 2, 'fsdp': 8, 'tensor': 1},
    'batch': 256,
    'programs': [PROGRAM],
  },
}


def test_a_row_has_the_numbers_of_a_program():
  _, _, row, _, caption = tables.table([CELL]).splitlines()
  assert row == (
    '| sm | split | v5e-16 | data 2 x fsdp 8 | 256 | **100.0** | 79.0 | 2.00 | '
    '1.60 | 200 | HBM | 42% |'
  )
  assert '2026-01-02, commit abc, jax 0.0' in caption


def test_what_was_not_compiled_says_why():
  cell = {k: v for k, v in CELL.items() if k != 'compiled'}
  text = tables.table([CELL, {**cell, 'error': 'no such thing'}])
  assert 'not compiled: no such thing' in text
  rows = [line for line in text.splitlines() if line.startswith('|')]
  assert len({row.count('|') for row in rows}) == 1


def test_the_table_replaces_what_is_between_the_markers():
  begin, end = tables.MARKERS
  text = f'before\n{begin}\nold\n{end}\nafter'
  new = tables.replace(text, 'new')
  assert new == f'before\n{begin}\nnew\n{end}\nafter'
  assert tables.replace(new, 'new') == new
  with pytest.raises(ValueError):
    tables.replace('none', 'new')
