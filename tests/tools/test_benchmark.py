"""The benchmark's tables are whole, and the file holds the same numbers."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from tests import commands
from tests.conftest import QUICK
from xfactor.data.convert import run as convert_run
from xfactor.data.sources import synthetic

TINY = (
  '--repeats=1',
  '--compiles=1',
  '--batch=2',
  '--config.train.accumulate=1',
  '--config.model.features=32',
  '--config.model.encoder_layers=1',
  '--config.model.renderer_layers=1',
  '--config.model.remat=full',
  '--config.data.image_size=32',
  '--config.data.threads=2',
  '--sizes=32',
  '--clips=3000',
)


def run(*args):
  """Runs the tool the way that compiles fastest; in processes of its own."""
  return commands.run('tools/benchmark.py', *args, XLA_FLAGS=QUICK)


def measure(folder, *args):
  """Runs it for one table; returns what it printed and that of the file."""
  path = folder / 'numbers.json'
  result = run(*args, *TINY, f'--json={path}')
  assert result.returncode == 0, result.stderr
  numbers = json.loads(path.read_text())
  assert result.stdout.startswith(f'cpu: {numbers["machine"]["cpu"]}')
  (table,) = numbers[args[0]]
  return result.stdout, table


def printed_rows(text, title):
  """Row name to its cells, of the table below a title."""
  lines = text.split(title + '\n')[1].split('\n\n')[0].splitlines()[1:]
  cells = (re.split(r'\s{2,}', line.strip()) for line in lines)
  return {name: values for name, *values in cells}


def assert_agree(text, table):
  """The printed medians are finite, above 0, and those of the file."""
  rows = printed_rows(text, table['title'])
  assert rows.keys() == table['rows'].keys()
  for name, row in table['rows'].items():
    printed = [float(x.replace(',', '')) for x in rows[name] if x != '-']
    expected = []
    for numbers in (row[x] for x in table['things'] if x in row):
      expected.append(numbers['median'])
      assert numbers['samples'] == [numbers['median']]
      if 'ratio' in numbers:
        expected.append(numbers['ratio'])
    assert all(math.isfinite(x) and x > 0 for x in expected), name
    assert printed == pytest.approx(expected, rel=5e-3, abs=5e-3), name


@pytest.mark.slow
def test_step_compares_equal_programs(tmp_path):
  text, table = measure(tmp_path, 'step', '--noisolate')
  assert 'all give the loss' in text
  assert 'float32, no LPIPS' in table['title']
  both = {'split', 'dense reference', 'dense reference, 32 registers'}
  assert {name: set(row) for name, row in table['rows'].items()} == {
    'compile, wall s': both,
    'compile, CPU s': both,
    'compile the whole program, wall s': {'split'},
    'compile the whole program, CPU s': {'split'},
    'peak RSS once compiled, MiB': both,
    'XLA temporaries, MiB': both,
    'XLA arguments, MiB': both,
    'step, wall s': both,
    'step, CPU s': both,
    'frames/s': both,
    'frames/CPU s': both,
    'model GFLOP/s': both,
    'peak RSS at the end, MiB': both,
  }
  assert_agree(text, table)
  step, rate = (table['rows'][x]['split'] for x in ('step, wall s', 'frames/s'))
  assert step['median'] * rate['median'] == pytest.approx(4)  # Frames.


@pytest.mark.slow
def test_compilation_alone_without_the_public_formulation(tmp_path):
  text, table = measure(tmp_path, 'compile', '--nobaseline', '--noisolate')
  assert {x for row in table['rows'].values() for x in row} == {'split'}
  assert {'compile, CPU s', 'XLA temporaries, MiB'} < set(table['rows'])
  assert not any(name.startswith('step') for name in table['rows'])
  assert_agree(text, table)


@pytest.mark.soak
def test_pipeline_reads_the_same_pictures(tmp_path):
  text, table = measure(tmp_path, 'pipeline')
  assert 'all read the same pictures' in text
  things = {'records'} | {
    f'{size} {kind}'
    for size in ('32 x 32', '640 x 360')
    for kind in ('JPG', 'PNG')
  }
  assert {name: set(row) for name, row in table['rows'].items()} == {
    'frames/s, one thread': things,
    'frames/CPU s, one thread': things,
    'frames/s, 2 threads': things,
    'peak RSS, MiB': things,
    'KiB a frame': things,
  }
  assert_agree(text, table)


@pytest.mark.slow
def test_start_opens_any_number_of_clips(tmp_path):
  text, table = measure(tmp_path, 'start')
  assert table['things'] == ['3,000 clips', '1,000 clips']
  assert set(table['rows']) == {'wall s', 'CPU s', 'peak RSS, MiB'}
  assert_agree(text, table)


@pytest.mark.soak
def test_convert_compares_ways_to_decode(tmp_path):
  text, table = measure(tmp_path, 'convert', '--noisolate')
  assert table['things'] == [
    *('JPEGs', 'JPEGs decoded in full', 'mp4', 'mp4 in HDR'),
    *('with cameras', 'undistorted'),
  ]
  rows = table['rows']
  assert set(rows) == {
    *('frames/s', 'frames/CPU s', 'verified frames/CPU s'),
    'KiB written a frame',
  }
  assert_agree(text, table)
  reduced, full, *_ = (
    rows['KiB written a frame'][x]['median'] for x in table['things']
  )
  assert reduced == pytest.approx(full, rel=0.1)
  assert reduced != full  # Or else the full decoding was not measured.


@pytest.mark.slow
def test_oracle_is_measured_on_known_cameras(tmp_path):
  rooms = synthetic.Source(scenes=2, frames=8, size=64, test_fraction=0.0)
  convert_run.convert(rooms, tmp_path, workers=0, quiet=True)
  numbers, picture = tmp_path / 'numbers.json', tmp_path / 'paths.png'
  result = run(
    *('oracle', '--oracle=known_scene', '--oracle_options=references=3'),
    *(f'--data_dir={tmp_path}', '--name=synthetic', '--split=train'),
    *('--clips=1', '--frames=2', '--window=4', '--size=48'),
    *(f'--json={numbers}', f'--out={picture}'),
  )
  assert result.returncode == 0, result.stderr
  (table,) = json.loads(numbers.read_text())['oracle']
  assert table['clips'] == ['000000']
  assert 'known_scene' in table['title']
  assert '2 frames of 48 x 48 pixels' in table['title']
  assert table['title'] in result.stdout
  clean, *worse = table['rows']
  assert clean['ok_frames'] == 1
  # Frames that it could see would be found to a hundredth of a degree.
  assert 0.01 < clean['rotation_degrees'] < 2
  assert len(worse) == 6
  with Image.open(picture) as image:
    pixels = np.asarray(image.convert('RGB')).reshape(-1, 3).astype(int)
  red, _, blue = pixels.T
  assert (red - blue > 100).sum() > 50  # Of the oracle's path.
  assert (pixels.sum(1) < 60).sum() > 50  # Of the true one, and text.


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (('stpe',), "'stpe'; choose from step, pipeline, start, convert, compile"),
    (('oracle',), 'needs --oracle'),
    (('oracle', '--oracle=file'), 'known_scene|rerender|learned|colmap|vggt'),
    (
      ('oracle', '--oracle=colmap', '--data_dir=/nowhere', '--name=rooms'),
      '/nowhere',
    ),
    (('step', '--config=configs/nope.py'), 'configs/nope.py'),
    (('step', '--config.model.feature=3'), 'Did you mean "features"'),
    (('rays', '--rays=8193'), 'objective.rays=8193 must be at most 8192'),
    (('rays', '--config=configs/tiny.py'), "config.method='srt'"),
    (('growth', '--factors=2,0'), '--factors takes numbers above 0'),
    (('growth', '--contexts=1.5'), '--contexts takes numbers above 0'),
    (('eval', '--config=configs/srt_tiny.py'), "config.method='xfactor'"),
  ],
)
def test_bad_usage_is_one_line_and_code_2(args, words):
  result = commands.run('tools/benchmark.py', *args)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert words in line


def test_unequal_sides_are_refused(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text("""
import sys
sys.path.insert(0, 'tools')
import numpy as np
from benchmarks import measuring, pipeline, step
same = {'loss': 0.5, 'grad_norm': 1.0}
step.check_steps_equal({'split': same, 'dense': same})
zeros = np.zeros((1, 2, 8, 8, 3), np.uint8)
pipeline.check_frames_equal({'records': zeros, 'loose': zeros})
for check, ours, other in (
  (step.check_steps_equal, same, {**same, 'loss': 0.50002}),
  (step.check_steps_equal, same, {**same, 'grad_norm': 1.0002}),
  (step.check_steps_equal, same, {**same, 'loss': float('nan')}),
  (pipeline.check_frames_equal, zeros, zeros + np.uint8(9)),
):
  try:
    check({'ours': ours, 'other': other})
  except measuring.Unequal as e:
    assert 'other' in str(e)
    print('refused')
""")
  result = commands.run(script)
  assert result.stdout.split() == ['refused'] * 4, result.stderr
