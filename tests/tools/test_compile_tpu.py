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
from xfactor.training import aot

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
    [sys.executable, str(ROOT / 'tools/compile_tpu.py'), *args],
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
  ((report,),) = json.loads(path.read_text()).values()
  return result.stdout, report


@pytest.mark.parametrize(
  ('recipe', 'topology', 'slices', 'changes', 'mesh'),
  [
    ('sm', 'v5e:4x4', 1, (*NARROW, SPLIT), 'data=2 x fsdp=8 x tensor=1'),
    pytest.param(
      *('mv', 'v5p:4x4x4', 1, (SPLIT,), 'data=8 x fsdp=8 x tensor=1'),
      marks=pytest.mark.slow,
    ),
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
  assert report['kernels'] >= 16  # Two attentions of two networks, four each.
  uses = {k: x['bytes'] for k, x in report['collectives'].items()}
  # Parameters are gathered two or three times, gradients scattered while they
  # are reduced. At full width XLA reduces a third of them whole.
  assert uses['all-gather'] > 0.05e9
  # A program of full all-reduces has no reduce-scatter, and sums all gradients
  # whole: about half of what is gathered.
  assert uses['reduce-scatter'] > uses['all-gather'] / 25
  assert uses['all-reduce'] < uses['all-gather'] / 4
  assert (uses['over the network'] > 0) == (slices > 1)
  assert 0 < report['mfu'] < 1


@pytest.mark.parametrize(
  ('recipe', 'kernels'),
  [
    ('srt_nmr', 8),
    pytest.param('vsrt_clevr3d', 12, marks=pytest.mark.slow),
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
  assert report['kernels'] >= kernels
  uses = {k: x['bytes'] for k, x in report['collectives'].items()}
  assert uses['reduce-scatter'] > uses['all-gather'] / 3
  assert uses['all-reduce'] < uses['all-gather'] / 4
  assert 0 < report['mfu'] < 1


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
    ((), '--topology'),
  ],
)
def test_bad_usage_is_one_line_and_code_2(args, words):
  result = commands.run(
    'tools/compile_tpu.py', '--config=configs/sm.py', *args, XLA_FLAGS=''
  )
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert line.startswith('error: ')
  assert words in line


SEARCH = """
import sys
sys.path.insert(0, 'tools')
import compile_tpu
from xfactor.training import aot
GIB = {'none': 4, 'dots': 2, 'full': 1}

def pretend(config, devices):
  needed = GIB[config.model.remat] * config.data.batch / len(devices)
  yield aot.Report('split', needed <= 20, 1, needed, 20)

aot.compile_recipe = pretend
compile_tpu.cli.run(compile_tpu.main)
"""


@pytest.mark.parametrize(
  ('batch', 'code', 'words'),
  [
    (16, 0, 'for config.data.batch=16, remat none is the cheapest that fits'),
    (128, 0, 'for config.data.batch=128, remat dots is the cheapest that fits'),
    (512, 1, 'for config.data.batch=512, nothing that fits'),
  ],
)
def test_search_finds_the_largest_batch_of_each_policy(
  tmp_path, batch, code, words
):
  args = ('--config=configs/sm.py', '--topology=v5e:4x4', '--search')
  script = tmp_path / 'search.py'
  script.write_text(SEARCH)
  result = commands.run(
    script, *args, f'--config.data.batch={batch}', **aot.ENVIRONMENT
  )
  assert result.returncode == code, result.stderr
  *tries, none, dots, full, verdict = result.stdout.splitlines()
  assert 'at most 5 examples a chip' in none
  assert 'config.data.batch=80' in none
  assert 'at most 10 examples a chip' in dots
  assert 'at most 20 examples a chip' in full
  assert verdict == words
  assert all('GiB a chip' in line for line in tries)
  assert len(tries) < 20
