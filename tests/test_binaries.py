"""The commands as a user types them: what they print and how they exit."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests import commands
from tests.conftest import CACHE, QUICK
from tests.training import small

ROOT = pathlib.Path(__file__).parent.parent


def run(*args, **environment):
  return subprocess.run(
    [sys.executable, *args],
    cwd=ROOT,
    env={
      **os.environ,
      'XLA_FLAGS': QUICK,
      'JAX_COMPILATION_CACHE_DIR': CACHE,
      **environment,
    },
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def fork(*args, **environment):
  """The same from where the libraries are imported."""
  return commands.run(
    *args,
    XLA_FLAGS=QUICK,
    JAX_COMPILATION_CACHE_DIR=CACHE,
    **environment,
  )


BINARIES = (
  'xfactor.main',
  'xfactor.eval',
  'xfactor.render',
  'xfactor.calibrate',
  'xfactor.demo.__main__',
  'xfactor.convert',
)


def test_importing_the_package_starts_no_backend(tmp_path):
  # The binaries define the same flags, which are therefore deleted.
  script = tmp_path / 'script.py'
  script.write_text(
    'import pkgutil, importlib, xfactor, jax._src.xla_bridge as bridge\n'
    'from absl import flags\n'
    'for module in pkgutil.walk_packages(xfactor.__path__, "xfactor."):\n'
    f'  if module.name not in {BINARIES}:\n'
    '    importlib.import_module(module.name)\n'
    'shared = set(flags.FLAGS)\n'
    f'for binary in {BINARIES}:\n'
    '  importlib.import_module(binary)\n'
    '  for name in set(flags.FLAGS) - shared:\n'
    '    delattr(flags.FLAGS, name)\n'
    'assert not bridge.backends_are_initialized()\n'
  )
  done = fork(script)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--config=configs/tiny.py', '--config.train.stesp=3'], 'steps'),
    (['--config=configs/tiny.py', '--config.trian.steps=3'], 'train'),
    (['--config=configs/tiny.py', '--config.train.steps=few'], 'few'),
    (['--config=configs/none.py'], 'configs/none.py'),
    (['--cnofig=configs/tiny.py'], 'config'),
    (['--config=configs/tiny.py', '--config.zzz=3'], 'zzz'),
    (['--config=configs/tiny.py', '--config.data.batch=0'], 'data.batch'),
    (['--config=configs/tiny.py', '--config.model.heads=5'], 'model.heads'),
    (['--config=configs/sm.py', '--config.data.dir=/none'], 'convert_data'),
    (['--config=configs/tiny.py', '--processes=2'], '--coordinator'),
    (['--config=configs/tiny.py', 'config.train.steps=5'], 'write --config'),
    (
      ['--config=configs/tiny.py', '--config.optimizer.learning_rate=nan'],
      'optimizer.learning_rate',
    ),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, said):
  done = fork(
    '-m',
    'xfactor.main',
    f'--workdir={tmp_path}/run',
    *arguments,
    XFACTOR_CACHE=os.environ.get('XFACTOR_CACHE', ''),
  )
  lines = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert done.returncode == 2, done.stderr
  assert len(lines) == 1
  assert said in lines[0]
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def test_a_recipe_with_mistakes_is_named(tmp_path):
  for text, said in (
    ('def get_config(:', 'bad.py, line 1'),
    (
      'from xfactor import config\n'
      'def get_config():\n'
      '  c = config.small()\n'
      '  c.train.stesp = 3\n'
      '  return c\n',
      'steps',
    ),
  ):
    (tmp_path / 'bad.py').write_text(text)
    recipe = f'--config={tmp_path / "bad.py"}'
    done = fork('-m', 'xfactor.main', recipe, f'--workdir={tmp_path}')
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_flags_that_are_missing_are_named():
  done = run('-m', 'xfactor.main', '--config=configs/tiny.py')
  assert done.returncode == 2
  assert '--workdir' in done.stderr


@pytest.mark.slow
def test_train_then_evaluate(tmp_path):
  """The main job as two processes, and what they say to people."""
  small.make_data(tmp_path / 'data')
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    'from tests.training import small\n'
    'def get_config():\n'
    f'  return small.recipe({str(tmp_path / "data")!r})\n'
  )
  arguments = [f'--config={recipe}', f'--workdir={tmp_path / "run"}']
  done = run('-m', 'xfactor.main', *arguments)
  assert done.returncode == 0, done.stderr
  for words in ('parameters', 'random, seed 0', 'mean colour', 'PSNR'):
    assert words in done.stdout
  assert 'loss' in done.stderr  # The progress bar.
  assert 'frames/s' in done.stderr
  # Without --config: by the run's own recipe.
  done = run('-m', 'xfactor.eval', arguments[1], '--step=3')
  assert done.returncode == 0, done.stderr
  assert 'step 3' in done.stdout
  page = tmp_path / 'run/eval/00000003/index.html'
  assert f'report: {page}' in done.stdout
  assert page.stat().st_size > 10_000
  done = fork('-m', 'xfactor.eval', *arguments, '--config.model.pose_dim=8')
  assert done.returncode == 2
  assert 'model.pose_dim: 4 -> 8' in done.stderr
  for file in (tmp_path / 'run/checkpoints/6/state').rglob('*'):
    if file.is_file() and 'ocdbt' in file.name:
      file.write_bytes(b'')
  done = fork('-m', 'xfactor.eval', *arguments, '--step=6')
  assert done.returncode == 2
  assert 'checkpoints/6 is damaged' in done.stderr
  assert (tmp_path / 'run/eval/00000003/squares_reconstruction.png').exists()
