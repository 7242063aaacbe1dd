"""Training runs as processes of their own, to be told to stop and killed."""

import contextlib
import json
import os
import time

from tests import commands
from tests.conftest import QUICK

# Far more than anything takes: what is waited for in vain is a failure.
PATIENCE = 600

_RECIPE = """
import ctypes
import os
import time

from tests.training import small
from xfactor.data.pipeline import training as pipeline
from xfactor.training import held_out
from xfactor.training import build

build.load_perceptual = lambda *args, **kwargs: None  # As if not installed.
following = pipeline.Batches.__next__


def paced(batches):
  '''On any machine signals come before the last update.'''
  time.sleep(0.02)
  return following(batches)


pipeline.Batches.__next__ = paced


def hang(*args, **kwargs):
  '''In C, where Python's signal handlers do not run.'''
  open({folder!r} + '/hanging', 'w').close()
  libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
  libc.pthread_mutex_lock(lock)
  libc.pthread_mutex_lock(lock)


match os.environ.get('HANG'):
  case 'compile':
    build.Build.compile = hang
  case 'data':
    pipeline.Batches.__next__ = hang
  case 'evaluation':
    held_out.HeldOut.__call__ = hang


def get_config():
  return small.recipe(
    {data!r},
    model__features=8,
    objective__unmasked_prob=0.0,
    data__image_size=16,
    eval__batch=8,
    train__log_every=1,
    train__keep=100,
  )
"""


def write_recipe(folder, data):
  """Writes the recipe of all these runs.

  Environment variable HANG makes a part of a run hang, which a file `hanging`
  beside the recipe then tells.
  """
  path = folder / 'recipe.py'
  path.write_text(_RECIPE.format(data=str(data), folder=str(folder)))
  return path


class Run:
  """The processes of a run; those that are left are killed in the end.

  Attributes:
    workdir: Its folder.
    processes: Of multiprocessing.
  """

  def __init__(self, recipe, workdir, *flags, processes=1, hang=''):
    self.workdir = workdir
    workdir.mkdir(exist_ok=True)
    self._hanging = recipe.parent / 'hanging'
    self._hanging.unlink(missing_ok=True)
    self._known = len(losses(workdir, every=True))
    cluster = [[]]
    if processes > 1:
      shared = [
        f'--coordinator=127.0.0.1:{commands.free_port()}',
        f'--processes={processes}',
        '--heartbeat=10',
      ]
      cluster = [[*shared, f'--process={i}'] for i in range(processes)]
    self.processes = [
      commands.start(
        *('-m', 'xfactor.main', f'--config={recipe}', f'--workdir={workdir}'),
        *own,
        *flags,
        stdout=str(workdir / f'{i}.txt'),
        stderr=str(workdir / f'{i}.txt'),
        XLA_FLAGS=QUICK,
        HANG=hang,
        JAX_COMPILATION_CACHE_DIR=str(recipe.parent / 'programs'),
      )
      for i, own in enumerate(cluster)
    ]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.join()

  def tell(self, signum, process=0):
    os.kill(self.processes[process].pid, signum)

  def codes(self, among=None):
    """Exit codes, when all of them (or of those `among`) have ended."""
    chosen = range(len(self.processes)) if among is None else among
    for i in chosen:
      self.processes[i].join(PATIENCE)
    return [self.processes[i].exitcode for i in chosen]

  def until(self, condition):
    """Waits until it holds; whether it did before a process ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
      if any(process.exitcode is not None for process in self.processes):
        return condition()
      assert time.monotonic() < deadline, self.output()
      time.sleep(0.02)
    return True

  def reached(self):
    """Updates done, as far as this run has logged them; 0 for none."""
    return max(losses(self.workdir, every=True)[self._known :], default=(0,))[0]

  def hangs(self):
    return self._hanging.exists()

  def output(self, process=0):
    """What it has written, as those before it in the same folder."""
    return (self.workdir / f'{process}.txt').read_text()

  def complete(self):
    """Waits for a good end."""
    codes = self.codes()
    assert codes == [0] * len(codes), f'{codes}: ' + '\n'.join(
      self.output(i)[-3000:] for i in range(len(codes))
    )


def losses(workdir, *, every=False):
  """Loss by updates done, the last logged; or every pair as it was logged."""
  file = workdir / 'metrics.jsonl'
  pairs = []
  for text in file.read_text().splitlines() if file.exists() else ():
    with contextlib.suppress(ValueError):
      line = json.loads(text)
      if 'loss' in line:
        pairs.append((line['step'], line['loss']))
  return pairs if every else dict(pairs)


def saved(workdir):
  """Steps with a checkpoint, oldest first."""
  names = [path.name for path in workdir.glob('checkpoints/*')]
  return sorted(int(name) for name in names if name.isdigit())
