"""Damage to checkpoints and their disk: nothing wrong is loaded or lost."""

import collections
import contextlib
import shutil
import subprocess
import time

import pytest

from tests.training import tiny
from xfactor.errors import UserError
from xfactor.training.resilience import checkpoints as checkpoints_lib

pytestmark = tiny.MARKS


def cut(path, share):
  content = path.read_bytes()
  path.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])


def flips(places):
  return [
    lambda path, place=place, bit=i % 8: tiny.flip(path, place, bit)
    for i, place in enumerate(places)
  ]


DAMAGES = {
  'flipped': flips([0.3, 0, 0.7, 1]),
  'cut': [lambda path, x=x: cut(path, x) for x in (1, 0.5, 0)],
  'deleted': [lambda path: path.unlink()],
}
MORE_FLIPS = flips([i / 24 for i in range(24)])  # Of the arrays.


@pytest.mark.slow
def test_nothing_wrong_is_ever_loaded(
  tmp_path, monkeypatch, capsys, record_property
):
  """Each damage changes nothing, or is seen and the one before is taken."""
  states = {step: tiny.state(step) for step in (1, 2)}
  with contextlib.closing(
    checkpoints_lib.Checkpoints(tmp_path / 'saved')
  ) as saved:
    for state in states.values():
      saved.save(state, tiny.META)
  said = []
  monkeypatch.setattr(
    checkpoints_lib.logging,
    'warning',
    lambda text, *args: said.append(text % args),
  )
  newest = tmp_path / 'saved/checkpoints/2'
  arrays = tiny.data_file(newest)
  files = sorted(x for x in newest.rglob('*') if x.is_file())
  trials = [
    (file, kind, damage)
    for file in files
    for kind, damages in DAMAGES.items()
    for damage in damages
  ]
  trials += [(arrays, 'flipped', damage) for damage in MORE_FLIPS]
  run = tmp_path / 'run'
  counts, wrong = collections.defaultdict(collections.Counter), []
  for file, kind, damage in trials:
    shutil.copytree(tmp_path / 'saved', run)
    damage(run / 'checkpoints/2' / file.relative_to(newest))
    said.clear()
    with contextlib.closing(checkpoints_lib.Checkpoints(run)) as checkpoints:
      state, meta = checkpoints.restore(tiny.abstract(states[2]))
    step = int(state.step)
    aside = (run / 'checkpoints/2.damaged').exists()
    if step == 2:
      verdict = 'harmless'
    elif any('what was saved' in line for line in said):
      verdict = 'seen by us'
    else:
      verdict = 'seen by Orbax'
    good = tiny.same(state, states[step]) and meta == tiny.META
    if not good or aside != (step == 1):
      verdict = 'wrong'
      wrong.append(f'{file} {kind}')
    name = 'the arrays' if file == arrays else str(file.relative_to(newest))
    counts[name, kind][verdict] += 1
    shutil.rmtree(run)
  with capsys.disabled():
    print('\n' + table(counts))
  record_property('tried', len(trials))
  record_property('wrong', len(wrong))
  assert not wrong
  # Without ours most flips in the arrays would be loaded.
  assert counts['the arrays', 'flipped']['seen by us'] > len(MORE_FLIPS) / 2
  assert len(files) > 10


def table(counts):
  columns = ('harmless', 'seen by Orbax', 'seen by us', 'wrong')
  lines = [('file', 'damage', 'tried', *columns)]
  total = collections.Counter()
  for (name, kind), count in counts.items():
    total += count
    lines.append((name, kind, count.total(), *(count[x] for x in columns)))
  lines.append(('all', '', total.total(), *(total[x] for x in columns)))
  return '\n'.join(
    f'{name:58.58} {kind:8}' + ''.join(f'{x:>14}' for x in rest)
    for name, kind, *rest in lines
  )


@pytest.fixture
def disk(tmp_path):
  """A disk of 2 MiB of its own."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(folder)]
  try:
    done = subprocess.run(command, capture_output=True, check=False)
  except FileNotFoundError:
    done = None
  if done is None or done.returncode:
    pytest.skip('a disk cannot be mounted here')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


def outcome(checkpoints):
  """What polling, as the loop does, comes to."""
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    step = checkpoints.poll()
    if step is not None:
      return step
    time.sleep(0.01)
  raise TimeoutError


def test_a_full_disk_is_said_and_nothing_is_lost(disk, monkeypatch):
  states = {step: tiny.state(step) for step in (1, 2, 3)}
  checkpoints = checkpoints_lib.Checkpoints(disk, keep=2)
  for step in (1, 2):
    checkpoints.save(states[step], tiny.META)
    assert outcome(checkpoints) == step
  ballast, roomy = disk / 'ballast', shutil.disk_usage('/')
  free = shutil.disk_usage(disk).free
  ballast.write_bytes(bytes(free - 64 * 1024))

  def save():
    checkpoints.save(states[3], tiny.META)
    outcome(checkpoints)

  with pytest.raises(UserError, match='GiB are left, .*free some space'):
    save()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints_lib.shutil, 'disk_usage', lambda _: roomy)
    for _ in range(2):  # Filled by somebody else after the look.
      with pytest.raises(UserError, match='cannot write .*free some space'):
        save()
      assert checkpoints.steps() == [1, 2]
  with contextlib.closing(
    checkpoints_lib.Checkpoints(disk, create=False)
  ) as other:
    state, _ = other.restore(tiny.abstract(states[2]))
  assert tiny.same(state, states[2])

  ballast.unlink()
  save()
  state, _ = checkpoints.restore(tiny.abstract(states[3]))
  assert tiny.same(state, states[3])
  checkpoints.close()
  kept = {x.name for x in (disk / 'checkpoints').iterdir()}
  assert {x for x in kept if x.isdigit()} == {'2', '3'}


def test_a_disk_that_cannot_be_written_is_said(disk):
  states = {step: tiny.state(step) for step in (1, 2)}
  checkpoints = checkpoints_lib.Checkpoints(disk)
  checkpoints.save(states[1], tiny.META)
  assert checkpoints.wait() == 1
  subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
  with pytest.raises(UserError, match='cannot write .*make it writable'):
    checkpoints.save(states[2], tiny.META)
  checkpoints.close()
  with contextlib.closing(checkpoints_lib.Checkpoints(disk)) as again:
    assert again.resumable()
    with pytest.raises(UserError, match='cannot write .*make it writable'):
      again.check_room(tiny.abstract(states[1]))
    assert tiny.same(again.restore(tiny.abstract(states[1]))[0], states[1])
  with pytest.raises(UserError, match='cannot write .*make it writable'):
    checkpoints_lib.Checkpoints(disk / 'new')
