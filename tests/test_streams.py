"""Output that cannot be written stops no command; progress is whole lines."""

import io
import subprocess
import sys

from xfactor import streams


def test_progress_without_a_terminal_is_whole_lines(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', out)
  with streams.progress(total=3, desc='things') as bar:
    bar.update(1)
    bar.set_postfix_str('loss 0.5')
    bar.update(2)
  text = out.getvalue()
  assert '\r' not in text
  assert '\x1b' not in text
  lines = text.splitlines()
  assert all(line.startswith('things: ') for line in lines)
  assert '3/3' in lines[-1]
  assert text.endswith('\n')


CODE = """
import sys
from xfactor import streams
streams.survive()
for i in range(9000):
  print(i, flush=True)
print('to stderr', file=sys.stderr, flush=True)
opened = open(sys.argv[1], 'w')
assert opened.fileno() > 2, opened.fileno()
opened.write('done')
"""


def shell(command, folder):
  file = folder / 'result'
  code = subprocess.run(
    ['bash', '-c', command, sys.executable, CODE, file], check=False
  ).returncode
  return code, file.read_text()


def test_closed_streams_are_no_error(tmp_path):
  assert shell('"$0" -c "$1" "$2" >&- 2>&-', tmp_path) == (0, 'done')


def test_a_reader_that_leaves_is_no_error(tmp_path):
  command = '"$0" -c "$1" "$2" 2>&1 | head -1; exit ${PIPESTATUS[0]}'
  assert shell(command, tmp_path) == (0, 'done')


def test_a_full_disk_is_no_error(tmp_path):
  assert shell('"$0" -c "$1" "$2" >/dev/full', tmp_path) == (0, 'done')
