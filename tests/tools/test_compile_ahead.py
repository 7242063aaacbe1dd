"""The recipes' real train steps compile for TPUs, fit, and shard as meant.

One at full size with LPIPS; the others narrower, on smaller pictures, where
LPIPS would take longer to compile than all the rest. Depth is scanned and costs
nothing. Each in a process: the compiler is told how hard to try once.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import commands
from xfactor.training.aot import topologies

ROOT = pathlib.Path(__file__).resolve().parents[2]
NARROW = (
  '--config.model.features=256',
  '--config.model.heads=4',
  '--config.data.image_size=64',
  '--config.objective.lpips_weight=0.0',
)
NARROW_SRT = (
  '--config.model.features=256',
  '--config.model.heads=4',
  '--config.model.decoder_heads=4',
  '--config.model.mlp_features=512',
  '--config.model.conv_features=32',
)
SPLIT = '--config.objective.unmasked_prob=0.0'
WHOLE = '--config.objective.unmasked_prob=1.0'


def run(*args):
  """Runs the tool, trying least."""
  return subprocess.run(
    [sys.executable, str(ROOT / 'tools/compile_ahead.py'), *args],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={
      **os.environ,
      'JAX_OPTIMIZATION_LEVEL': 'O0',
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': '',
    },
  )


def compile_one(folder, *args):
  """Compiles one program; returns what was printed and its numbers."""
  path = folder / 'numbers.json'
  result = run(*args, f'--json={path}')
  assert result.returncode == 0, result.stderr
  (found,) = json.loads(path.read_text()).values()
  (report,) = found['programs']
  return result.stdout, report


@pytest.mark.soak
@pytest.mark.parametrize(
  ('recipe', 'topology', 'slices', 'changes', 'mesh'),
  [
    ('sm', 'v5e:4x4', 1, (*NARROW, SPLIT), 'data=2 x fsdp=8 x tensor=1'),
    ('mv', 'v5p:4x4x4', 1, (SPLIT,), 'data=8 x fsdp=8 x tensor=1'),
    ('mv', 'v6e:16x16', 1, (*NARROW, WHOLE), 'data=32 x fsdp=8 x tensor=1'),
    ('sm', 'v5e:4x4', 2, (*NARROW, SPLIT), 'data=4 x fsdp=8 x tensor=1'),
  ],
)
def test_recipes_compile(tmp_path, recipe, topology, slices, changes, mesh):
  text, report = compile_one(
    tmp_path,
    f'--config=configs/{recipe}.py',
    f'--topology={topology}',
    f'--slices={slices}',
    *changes,
  )
  assert mesh in text
  assert report['program'] == ('whole' if WHOLE in changes else 'split')
  assert report['fits']
  # Two attentions of two networks, four each.
  assert report['kernels']['Mosaic'] >= 16
  check_traffic(report)
  assert (report['network_bytes'] > 0) == (slices > 1)


def check_traffic(report):
  """Weights are gathered, gradients scattered; nothing else is large."""
  assert 0.8 < report['sent_bytes'] / report['least_bytes'] < 1.3
  sent = report['sent_by_kind']
  assert sent['reduce-scatter'] > sent['all-gather'] / 4
  assert sum(report['sent_by_axis'].values()) == report['sent_bytes']
  assert 0 < report['mfu_bound'] < 1


@pytest.mark.soak
@pytest.mark.parametrize(
  ('recipe', 'kernels'),
  [
    ('srt_nmr', 8),
    ('vsrt_clevr3d', 12),
  ],
)
def test_posed_recipes_compile(tmp_path, recipe, kernels):
  text, report = compile_one(
    tmp_path,
    f'--config=configs/{recipe}.py',
    '--topology=v5e:4x4',
    *NARROW_SRT,
  )
  assert 'data=2 x fsdp=8 x tensor=1' in text
  assert report['fits']
  # Of encoder and decoder, four each; the volume's is asked twice.
  assert report['kernels']['Mosaic'] >= kernels
  check_traffic(report)


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (('--topology=v9:2x2',), 'v5e:16x16'),
    (('--topology=v5e:2x2', '--config.model.feature=3'), 'Did you mean'),
    (('--topology=v5e:4x4', '--config.data.batch=12'), 'a multiple of 16'),
    (
      ('--topology=v5e:2x2', '--slices=3', '--config.mesh.data=1'),
      'a multiple of 3, the number of slices',
    ),
    (('--topology=h200',), 'h100:2x8'),
    (('--topology=v5e:2x2', '--max_sent=much'), 'for example 5GB'),
    ((), '--topology'),
  ],
)
def test_bad_usage_is_one_line_and_code_2(args, words):
  result = commands.run(
    'tools/compile_ahead.py', '--config=configs/sm.py', *args, XLA_FLAGS=''
  )
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert words in line


PRETEND = """
import sys
sys.path.insert(0, 'tools')
import compile_ahead
from xfactor.training.aot import report as reports
GIB = {'none': 4, 'dots': 2, 'full': 1}

def pretend(config, topology):
  part = config.data.batch / len(topology.devices) / config.train.accumulate
  needed = GIB[config.model.remat] * part * 2**30
  yield reports.Report(
    'split', needed <= 20 * 2**30, 1, needed, 20 * 2**30,
    sent_bytes=2e9, least_bytes=1e9,
    least_seconds={'compute': 5 - GIB[config.model.remat]},
  )

reports.compile_recipe = pretend
compile_ahead.cli.run(compile_ahead.main)
"""


def pretending(folder, *args):
  """Runs the tool with programs of known size."""
  script = folder / 'pretend.py'
  script.write_text(PRETEND)
  return commands.run(
    *(script, '--config=configs/sm.py', '--topology=v5e:4x4', *args),
    **topologies.ENVIRONMENT,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ('batch', 'code', 'words'),
  [
    (16, 0, '--config.model.remat=none --config.train.accumulate=1'),
    (128, 0, '--config.model.remat=none --config.train.accumulate=2'),
  ],
)
def test_search_finds_the_largest_batch_and_the_fastest(
  tmp_path, batch, code, words
):
  result = pretending(tmp_path, '--search', f'--config.data.batch={batch}')
  assert result.returncode == code, result.stderr
  lines = result.stdout.splitlines()
  largest = [line for line in lines if 'at most' in line]
  for line, examples in zip(largest, (5, 10, 20), strict=True):
    assert f'at most {examples} examples a device' in line
    assert f'config.data.batch={16 * examples}' in line
  assert lines[-1].startswith(f'best for config.data.batch={batch}: {words} ')


@pytest.mark.slow
def test_what_does_not_fit_comes_with_remedies(tmp_path):
  result = pretending(tmp_path, '--config.data.batch=512')
  assert result.returncode == 1, result.stderr
  over, remedies = result.stdout.splitlines()[-2:]
  assert over.strip() == (
    'split program does not fit: 12.00 GiB too much a device'
  )
  assert remedies.count('--config.train.accumulate=2') == 3 - remedies.count(
    '--config.train.accumulate=4'
  )
  assert 'what fits: --config.model.remat=full' in remedies


@pytest.mark.parametrize(
  ('limit', 'code'), [('1.9', 1), ('2.1', 0), ('1.9GB', 1), ('2.1GB', 0)]
)
def test_a_limit_of_what_is_sent(tmp_path, limit, code):
  result = pretending(tmp_path, '--config.data.batch=16', f'--max_sent={limit}')
  assert result.returncode == code, result.stderr
  assert ('more than --max_sent' in result.stdout) == bool(code)
