"""Conversion gives the same bytes however it went; errors are one sentence."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import time
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import simplejpeg
from etils import epath
from etils.epath import backend
from fsspec.implementations import local

from tests import commands
from xfactor.data import files, sources, verify
from xfactor.data import processes as processes_lib
from xfactor.data.convert import claims as claims_lib
from xfactor.data.convert import options as options_lib
from xfactor.data.convert import part as part_lib
from xfactor.data.convert import plan as plan_lib
from xfactor.data.convert import publish, splits
from xfactor.data.convert import run as run_lib
from xfactor.data.convert import summary as summary_lib
from xfactor.data.convert import workers as workers_lib
from xfactor.data.records import folders, shards
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[3]


def jpeg(seed: int, size: int) -> bytes:
  """Returns an image of noise."""
  image = np.random.default_rng(seed).integers(
    0, 256, (size, size, 3), dtype=np.uint8
  )
  return simplejpeg.encode_jpeg(image, quality=90)


@dataclasses.dataclass(frozen=True)
class Fake(sources.Source):
  """Clips of noise, one an item; clip i has `frames` + i frames."""

  name: ClassVar[str] = 'fake'
  description: ClassVar[str] = 'Noise.'

  count: int = 6
  frames: int = 10
  size: int = 16
  split: str | None = None
  cameras: bool = True
  bad: tuple[int, ...] = ()
  same_id: bool = False
  delay: float = 0.0
  dies: bool = False
  bundle: bool = False

  def items(self):
    return [
      sources.Item(f'item/{i:03d}', i, self.split, 1000, self.bundle)
      for i in range(self.count)
    ]

  def clips(self, item):
    time.sleep(self.delay)
    i = item.payload
    if self.dies:
      os.kill(os.getpid(), signal.SIGKILL)
    if i in self.bad:
      raise UserError(f'item {i}\nis broken')
    n = self.frames + i
    rng = np.random.default_rng(i)
    yield sources.Clip(
      id='same' if self.same_id else f'clip-{i:03d}',
      frames=[jpeg(1000 * i + j, self.size) for j in range(n)],
      height=self.size,
      width=self.size,
      timestamps=np.arange(n) / 3 if self.cameras else None,
      intrinsics=rng.random((n, 4), np.float32) if self.cameras else None,
      world_to_camera=(
        rng.random((n, 3, 4), np.float32) if self.cameras else None
      ),
      replaced=i % 2,
    )


def run(source: sources.Source, folder: pathlib.Path, **options):
  """Converts in this process, without a progress bar."""
  return run_lib.convert(
    source, folder, **{'workers': 0, 'quiet': True, **options}
  )


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns every file of a folder."""
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


def clip_ids(folder: pathlib.Path, split: str) -> list[str]:
  return store_lib.open_split(folder, 'fake', split).clip_ids()


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch):
  """Spares the disk: most of a small conversion's time is its flushes."""
  monkeypatch.setattr(os, 'fsync', lambda _: None)


@pytest.fixture(scope='module')
def straight(tmp_path_factory) -> dict[str, bytes]:
  """The files of an uninterrupted conversion of `Fake()`."""
  folder = tmp_path_factory.mktemp('straight')
  run(Fake(), folder)
  return snapshot(folder)


def test_the_number_of_workers_changes_no_byte(tmp_path, straight):
  summary = run(Fake(), tmp_path, workers=2)
  assert snapshot(tmp_path) == straight
  assert summary.new_frames == sum(10 + i for i in range(6))
  assert sum(s.replaced for s in summary.splits.values()) == 3


def test_summary_counts_what_is_there(tmp_path):
  summary = run(Fake(bad=(2, 4)), tmp_path)
  frames = sum(s.frames for s in summary.splits.values())
  assert frames == 10 + 11 + 13 + 15
  assert sum(s.clips for s in summary.splits.values()) == 4
  assert summary.skipped == [
    ('item/002', 'item 2 is broken'),
    ('item/004', 'item 4 is broken'),
  ]
  manifest = files.read_json(tmp_path / 'fake/frames/1.0.0/manifest.json')
  assert manifest['skipped'] == [list(s) for s in summary.skipped]
  assert manifest['options']['bad'] == [2, 4]
  report = summary_lib.report(summary)
  assert 'item/002: item 2 is broken' in report
  assert [line.split()[0] for line in report.splitlines()[:3]] == [
    'split',
    'test',
    'train',
  ]


def test_summary_says_what_was_lost(tmp_path, monkeypatch):
  original = Fake.clips

  def clips(self, item):
    for clip in original(self, item):
      if item.payload == 1:
        clip.intrinsics = clip.world_to_camera = None
        clip.notes = {'clips without cameras: no model': 1}
      if item.payload < 3:
        clip.notes['frames skipped: are black'] = 1 + item.payload
      yield clip

  monkeypatch.setattr(Fake, 'clips', clips)
  monkeypatch.setattr(Fake, 'ignored', lambda self: {'.txt': 3, '.heic': 12})
  summary = run(Fake(split='train'), tmp_path)
  assert summary.splits['train'].unposed == 11
  assert summary.splits['train'].notes == {
    'clips without cameras: no model': 1,
    'frames skipped: are black': 6,
  }
  report = summary_lib.report(summary)
  assert report.splitlines()[1].split()[:4] == ['train', '6', '75', '11']
  assert 'train: frames skipped: are black: 6\n' in report
  assert 'without cameras: no model: 1 (clip-001)\n' in report
  assert 'files ignored: 12 .heic, 3 .txt' in report
  # So does a run that finds it done.
  assert run(Fake(split='train'), tmp_path).splits == summary.splits


def test_manifest_checksums_match_the_files(tmp_path):

  run(Fake(), tmp_path)
  for config in ('frames', 'clips'):
    folder = tmp_path / 'fake' / config / '1.0.0'
    manifest = files.read_json(folder / 'manifest.json')
    listed = set()
    for split in manifest['splits'].values():
      for shard in split['shards']:
        data = (folder / shard['file']).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard['sha256']
        assert len(data) == shard['bytes']
        listed.add(shard['file'])
    assert listed == {p.name for p in folder.glob('*array_record*')}


def test_killed_run_continues_to_the_same_bytes(tmp_path, straight):
  code = (
    'import sys\n'
    'from tests.data.convert import test_run as t\n'
    'if __name__ == "__main__":\n'
    '  t.run_lib.convert(t.Fake(delay=0.3), sys.argv[1], workers=2)\n'
  )
  script = tmp_path / 'script.py'
  script.write_text(code)
  data = tmp_path / 'data'
  process = subprocess.Popen(
    [sys.executable, script, data],
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
    stderr=subprocess.DEVNULL,
  )
  work = data / 'fake' / '.incomplete-1.0.0'
  for _ in range(3000):
    if list(work.glob('part-*.json')) or process.poll() is not None:
      break
    time.sleep(0.01)
  process.kill()
  process.wait()
  finished = {p.name: p.stat().st_mtime_ns for p in work.glob('part-*.json')}
  assert 1 <= len(finished) < 6
  with pytest.raises(UserError, match='its conversion was not finished'):
    store_lib.open_split(data, 'fake', 'train')

  source = Fake(delay=0.3)
  summary = run(source, data, workers=2)
  # Each finished part was one clip; only the others were made now.
  assert summary.new_frames < sum(10 + i for i in range(6))
  again = snapshot(data)
  assert again.keys() == straight.keys()
  for name, content in again.items():
    if not name.endswith('manifest.json'):  # It holds the option `delay`.
      assert content == straight[name], name


class _Broken(Exception):
  pass


@pytest.mark.parametrize(
  ('target', 'nth'),
  [
    ('tfds_metadata.write_tfds_metadata', 1),
    ('tfds_metadata.write_tfds_metadata', 2),
    ('os.replace', 3),  # Among the frames that get their final names.
    ('publish', 1),
    ('shutil.rmtree', 1),
  ],
)
def test_interrupted_finish_is_repeated(
  tmp_path, monkeypatch, straight, target, nth
):
  module, _, name = target.rpartition('.')
  owner = getattr(publish, module) if module else publish
  original = getattr(owner, name)
  calls = []

  def failing(*args, **kwargs):
    if target == 'os.replace' and '/frames/' not in str(args[1]):
      return original(*args, **kwargs)
    calls.append(args)
    if len(calls) == nth:
      raise _Broken
    return original(*args, **kwargs)

  with monkeypatch.context() as m:
    m.setattr(owner, name, failing)
    with pytest.raises(_Broken):
      run(Fake(), tmp_path)
  run(Fake(), tmp_path)
  assert snapshot(tmp_path) == straight


def test_interrupted_between_clips_and_frames(tmp_path, monkeypatch, straight):
  original = os.replace

  def failing(source, target):
    if pathlib.Path(target).parent.name == 'frames':
      raise _Broken
    original(source, target)

  with monkeypatch.context() as m:
    m.setattr(run_lib.os, 'replace', failing)
    with pytest.raises(_Broken):
      publish.publish(_finished(tmp_path))
  run(Fake(), tmp_path)
  assert snapshot(tmp_path) == straight


def _finished(folder: pathlib.Path) -> plan_lib.Plan:
  """Returns a plan of which only the last step is missing."""
  with pytest.MonkeyPatch.context() as m:
    m.setattr(publish, 'publish', _raise(_Broken()))
    with pytest.raises(_Broken):
      run(Fake(), folder)
  return plan_lib.make_plan(Fake(), folder)


def _raise(error: Exception):
  def fail(*args, **kwargs):
    raise error

  return fail


def test_a_process_that_was_held_up_takes_nothing_away(tmp_path, straight):
  """Another has taken over and published meanwhile."""
  plan = _finished(tmp_path)
  run(Fake(), tmp_path)
  with pytest.raises(FileNotFoundError):
    publish.publish(plan)
  assert snapshot(tmp_path) == straight


def test_what_a_killed_finish_left_is_not_published(tmp_path, straight):
  plan = _finished(tmp_path)
  for config in ('clips', 'frames'):
    (plan.work / config / 'a.incomplete-other-7').write_text('half')
  run(Fake(), tmp_path)
  assert snapshot(tmp_path) == straight


def test_a_work_folder_without_content_does_not_count(tmp_path, straight):
  run(Fake(), tmp_path)
  (tmp_path / 'fake' / '.incomplete-1.0.0').mkdir()
  assert run(Fake(), tmp_path).already


def test_files_of_a_host_whose_name_begins_the_same_are_kept(tmp_path):
  with pytest.MonkeyPatch.context() as m:
    m.setattr(run_lib, '_finish_parts', _raise(_Broken()))
    with pytest.raises(_Broken):
      run(Fake(), tmp_path)
  plan = plan_lib.make_plan(Fake(), tmp_path)
  mine = f'{plan.work}/x.incomplete-{socket.gethostname()}'
  # No process has this number.
  dead, other = (pathlib.Path(f'{mine}{end}-{2**22 + 1}') for end in ('', '-2'))
  dead.write_text('')
  other.write_text('')
  run_lib._open_work(plan, overwrite=False)
  assert other.exists()
  assert not dead.exists()


def test_nothing_is_made_again_once_all_parts_are_done(tmp_path):
  plan = _finished(tmp_path)

  def numbers():
    progress = part_lib.Progress.make(len(plan.parts))
    with contextlib.closing(claims_lib.Claims(plan.work)) as claims:
      done = workers_lib._run_parts(Fake(), plan, 0, progress, claims)
      return [number for number, _ in done]

  assert numbers() == []
  (plan.work / 'parts.json').unlink()
  assert numbers() == [0, 1, 2, 3, 4, 5]


def test_only_parts_of_earlier_runs_are_read_again(tmp_path, monkeypatch):
  with pytest.MonkeyPatch.context() as m:
    m.setattr(publish, 'fill_splits', _raise(_Broken()))
    with pytest.raises(_Broken):
      run(Fake(), tmp_path)
  plan = plan_lib.make_plan(Fake(), tmp_path)
  (plan.work / 'part-00002.json').rename(tmp_path / 'kept')
  read, original = [], files.sha256

  def sha256(path):
    read.append(pathlib.Path(path).name[:10])
    if len(read) == 1:  # Another host finishes its part.
      (tmp_path / 'kept').rename(plan.work / 'part-00002.json')
    return original(path)

  monkeypatch.setattr(files, 'sha256', sha256)
  assert run(Fake(), tmp_path).new_frames == 0
  parts = sorted({name for name in read if name.startswith('part')})
  assert parts == [f'part-{i:05d}' for i in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize(
  'change',
  [lambda data: data[:-1], lambda data: data[:500] + b'?' + data[501:]],
  ids=['short', 'altered'],
)
def test_a_part_whose_file_is_damaged_is_made_again(tmp_path, straight, change):
  with pytest.MonkeyPatch.context() as m:
    m.setattr(publish, 'fill_splits', _raise(_Broken()))
    with pytest.raises(_Broken):
      run(Fake(), tmp_path)
  work = tmp_path / 'fake' / '.incomplete-1.0.0'
  (file,) = work.glob('part-00002.*.frames')
  file.write_bytes(change(file.read_bytes()))
  assert run(Fake(), tmp_path).new_frames == 12
  assert snapshot(tmp_path) == straight


def test_other_options_do_not_continue_an_unfinished_run(tmp_path, straight):
  with pytest.MonkeyPatch.context() as m:
    m.setattr(publish, 'finish', _raise(_Broken()))
    with pytest.raises(_Broken):
      run(Fake(frames=12), tmp_path)
  with pytest.raises(
    UserError, match=r'frames was 12 and is now 10.*another --name'
  ):
    run(Fake(), tmp_path)
  run(Fake(), tmp_path, overwrite=True)
  assert snapshot(tmp_path) == straight


def test_overwrite_leaves_the_work_of_the_living(tmp_path):
  plan = plan_lib.make_plan(Fake(size=8), tmp_path)
  _claim(pathlib.Path(plan.work), 3)
  files.write_json(plan.work / 'options.json', plan.options)
  with pytest.raises(UserError, match='another process is at work in'):
    run(Fake(), tmp_path, overwrite=True)
  _claim(pathlib.Path(plan.work), 3, time=0)
  run(Fake(), tmp_path, overwrite=True)


def test_converting_twice(tmp_path):
  run(Fake(), tmp_path)
  before = snapshot(tmp_path)
  summary = run(Fake(), tmp_path)
  assert summary.already
  assert 'already converted' in summary_lib.report(summary)
  with pytest.raises(UserError, match='size was 16 and is now 8.*--overwrite'):
    run(Fake(size=8), tmp_path)
  assert snapshot(tmp_path) == before
  run(Fake(size=8), tmp_path, overwrite=True)
  assert store_lib.open_split(tmp_path, 'fake', 'train').height[0] == 8


def test_options_that_are_new_since_the_conversion(tmp_path):
  run(Fake(), tmp_path)
  path = tmp_path / 'fake/frames/1.0.0/manifest.json'
  manifest = files.read_json(path)
  del manifest['options']['delay']
  files.write_json(path, manifest)
  assert run(Fake(), tmp_path).already
  with pytest.raises(UserError, match='delay was 0.0 and is now 0.1'):
    run(Fake(delay=0.1), tmp_path)


def test_hash_split_keeps_clips_where_they_were(tmp_path):
  """A clip's split depends on its own id alone."""
  run(Fake(count=12, frames=1), tmp_path, test_fraction=0.3)
  found = {s: clip_ids(tmp_path, s) for s in ('train', 'test')}
  assert sorted(found['train'] + found['test']) == [
    f'clip-{i:03d}' for i in range(12)
  ]
  for split, ids in found.items():
    assert {splits.by_hash(i, 0.3) for i in ids} == {split}
  many = [splits.by_hash(str(i), 0.3) for i in range(2000)]
  assert 0.27 < many.count('test') / 2000 < 0.33


def test_source_decides_the_split(tmp_path):
  summary = run(Fake(split='validation'), tmp_path)
  assert set(summary.splits) == {'validation'}


@pytest.mark.parametrize(
  ('fraction', 'alone'), [(1e-9, 'test'), (1 - 1e-9, 'train')]
)
def test_neither_split_is_empty(tmp_path, fraction, alone):
  run(Fake(), tmp_path, test_fraction=fraction)
  ids = {s: clip_ids(tmp_path, s) for s in ('train', 'test')}
  everything = [f'clip-{i:03d}' for i in range(6)]
  order = sorted(everything, key=files.unit_hash)
  assert ids[alone] == [order[0] if alone == 'test' else order[-1]]
  assert sorted(ids['train'] + ids['test']) == everything
  # The moved clip's frames moved with it.
  for split, own in ids.items():
    store = store_lib.open_split(tmp_path, 'fake', split)
    for i, clip_id in enumerate(own):
      number = int(clip_id[-3:])
      assert store.clip_frames(i, [3]) == [jpeg(1000 * number + 3, 16)]
      assert store.clip(i).num_frames == 10 + number


@pytest.mark.parametrize(('fraction', 'split'), [(0.0, 'train'), (1.0, 'test')])
def test_extreme_fractions_are_taken_literally(tmp_path, fraction, split):
  assert set(run(Fake(), tmp_path, test_fraction=fraction).splits) == {split}


def test_deal_is_consecutive_balanced_and_blind_to_workers():
  items = [sources.Item(str(i), size=1 + i % 7) for i in range(1000)]
  parts = plan_lib.deal(items)
  assert [i for part in parts for i in part] == items
  sizes = [sum(i.size for i in part) for part in parts]
  assert len(parts) == plan_lib.MIN_PARTS
  assert max(sizes) - min(sizes) <= 14
  large = [sources.Item(str(i), size=2**28) for i in range(200)]
  assert len(plan_lib.deal(large)) == 100
  assert len(plan_lib.deal([sources.Item('a', size=2**40)])) == 1
  assert len(plan_lib.deal(items[:3])) == 3


def test_equal_clip_ids_become_unique(tmp_path):
  run(Fake(count=3, same_id=True, cameras=False), tmp_path)
  # All went to one split, by the id; nothing else says where they belong.
  (split,) = folders.splits(tmp_path, 'fake')
  store = store_lib.open_split(tmp_path, 'fake', split)
  assert store.clip_ids() == ['same', 'same-2', 'same-3']
  assert [store.clip(i).id for i in range(3)] == store.clip_ids()
  assert [store.clip(i).num_frames for i in range(3)] == [10, 11, 12]
  assert verify.verify(tmp_path, 0, quiet=True).ok


def test_equal_item_ids_become_unique(tmp_path, monkeypatch):
  items = [sources.Item('a', i, size=1000) for i in range(3)]
  monkeypatch.setattr(Fake, 'items', lambda self: items)
  plan = plan_lib.make_plan(Fake(), tmp_path)
  found = [item for part in plan.parts for item in part]
  assert [item.id for item in found] == ['a', 'a-2', 'a-3']
  assert [item.payload for item in found] == [0, 1, 2]
  assert {item.group for item in found[1:]} == {'a'}


def test_clips_of_a_group_are_in_one_split(tmp_path, monkeypatch):
  original = Fake.items

  def grouped(self):
    return [
      dataclasses.replace(item, group=f'film {item.payload % 2}')
      for item in original(self)
    ]

  monkeypatch.setattr(Fake, 'items', grouped)
  for fraction in (1e-9, 0.5, 1 - 1e-9):
    run(Fake(), tmp_path / str(fraction), test_fraction=fraction)
    found = [
      {int(id[-1]) % 2 for id in clip_ids(tmp_path / str(fraction), split)}
      for split in ('train', 'test')
    ]
    # The smaller hash is for testing.
    first = min((0, 1), key=lambda i: files.unit_hash(f'film {i}'))
    assert found == [{1 - first}, {first}]


def test_one_group_is_not_split(tmp_path, monkeypatch):
  items = [sources.Item(str(i), i, size=9, group='film') for i in range(6)]
  monkeypatch.setattr(Fake, 'items', lambda self: items)
  (summary,) = run(Fake(), tmp_path).splits.values()
  assert summary.clips == 6


def test_items_that_the_system_does_not_give(tmp_path, monkeypatch):
  def clips(self, item):
    raise PermissionError(13, 'Permission denied', f'/in/{item.payload}')
    yield

  original = Fake.clips
  monkeypatch.setattr(
    Fake,
    'clips',
    lambda self, item: (clips if item.payload == 1 else original)(self, item),
  )
  ((item, why),) = run(Fake(), tmp_path).skipped
  assert item == 'item/001'
  assert "cannot be read: [Errno 13] Permission denied: '/in/1'" in why
  monkeypatch.setattr(Fake, 'items', _raise(PermissionError(13, 'no', '/in')))
  with pytest.raises(UserError, match="cannot be listed: .* no: '/in'"):
    run(Fake(), tmp_path)


@pytest.mark.parametrize(
  'error',
  [
    ZeroDivisionError('division by zero'),
    UnicodeDecodeError('utf-8', b'\xe9', 0, 1, 'invalid start byte'),
    AttributeError("'NoneType' object has no attribute 'x'"),
    OSError(5, 'Input/output error'),
    RuntimeError('No frame \udce9'),
    UserError('of \udce9'),
  ],
  ids=lambda error: type(error).__name__,
)
def test_whatever_an_item_raises_the_others_are_converted(
  tmp_path, monkeypatch, error
):
  original = Fake.clips

  def clips(self, item):
    yield from original(self, item)
    if item.payload == 1:
      raise error

  monkeypatch.setattr(Fake, 'clips', clips)
  summary = run(Fake(cameras=False), tmp_path)
  ((item, why),) = summary.skipped
  assert item == 'item/001'
  assert str(error).encode(errors='backslashreplace').decode() in why
  # What came before the error is kept.
  assert sum(s.clips for s in summary.splits.values()) == 6
  assert verify.verify(tmp_path, 0, quiet=True).ok


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (OSError(28, 'No space left on device'), 'is full'),
    (KeyboardInterrupt(), None),
    (SystemExit(1), None),
  ],
)
def test_what_is_not_of_one_item_stops(tmp_path, monkeypatch, error, message):
  monkeypatch.setattr(Fake, 'clips', _raise(error))
  with pytest.raises(UserError if message else type(error), match=message):
    run(Fake(), tmp_path)


def test_problems_that_listing_found(tmp_path, monkeypatch):
  items = [*Fake().items(), sources.Item('closed', problem='no permission')]
  monkeypatch.setattr(Fake, 'items', lambda self: items)
  summary = run(Fake(), tmp_path)
  assert summary.skipped == [('closed', 'no permission')]
  assert sum(s.clips for s in summary.splits.values()) == 6


def test_nothing_convertible_leaves_nothing(tmp_path):
  with pytest.raises(
    UserError, match='nothing was converted: 2 of 2 items.*item 0 is broken'
  ):
    run(Fake(count=2, bad=(0, 1)), tmp_path)
  assert not list(tmp_path.iterdir())


def test_no_items(tmp_path):
  with pytest.raises(UserError, match='nothing to convert'):
    run(Fake(count=0), tmp_path)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'name': 'My Data'}, 'lower-case letters'),
    ({'test_fraction': 1.5}, 'give it 0 to 1'),
  ],
)
def test_bad_options(tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    run(Fake(), tmp_path, **options)


def test_target_that_cannot_be_made():
  with pytest.raises(UserError, match='cannot make the folder /proc/x/fake'):
    run(Fake(), '/proc/x')


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    # The words of array_record, from a run with /dev/full.
    (
      RuntimeError('write() failed: No space left on device; writing x'),
      'is full; free some space and run the same command again',
    ),
    (OSError(28, 'No space left on device'), 'is full'),
    (OSError(30, 'Read-only file system'), 'cannot write to'),
    (PermissionError(13, 'Permission denied'), 'cannot write to'),
  ],
)
def test_disk_troubles_are_one_sentence_and_keep_parts(
  tmp_path, monkeypatch, straight, error, message
):
  original = shards.ShardWriter.close
  done = []

  def failing(self):
    done.append(self)
    if len(done) > 4:  # Two parts have a file of frames and one of clips each.
      raise error
    return original(self)

  with monkeypatch.context() as m:
    m.setattr(shards.ShardWriter, 'close', failing)
    with pytest.raises(UserError, match=message):
      run(Fake(), tmp_path)
  work = tmp_path / 'fake' / '.incomplete-1.0.0'
  assert len(list(work.glob('part-*.json'))) == 2
  assert not list(work.glob('*.incomplete*'))
  assert run(Fake(), tmp_path).new_frames == 12 + 13 + 14 + 15
  assert snapshot(tmp_path) == straight


def test_killed_worker_is_one_sentence(tmp_path):
  with pytest.raises(UserError, match='a worker process was killed'):
    run(Fake(dies=True), tmp_path, workers=1)


SHARED = """
import sys
from tests.data.convert import test_run as t
if __name__ == '__main__':
  summary = t.run_lib.convert(t.Fake(delay=0.3), sys.argv[1], workers=0)
  print(summary.new_frames, summary.already)
"""


def test_processes_share_a_conversion(tmp_path, straight):
  script = tmp_path / 'script.py'
  script.write_text(SHARED)
  data = tmp_path / 'data'
  processes = [
    subprocess.Popen(
      [sys.executable, script, data],
      env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(3)
  ]
  outputs = [process.communicate(timeout=120) for process in processes]
  assert [p.returncode for p in processes] == [0] * 3, outputs
  new_frames = [int(out.split()[0]) for out, _ in outputs]
  # Each frame was made once, by whichever process.
  assert sum(new_frames) == sum(10 + i for i in range(6))
  for name, content in snapshot(data).items():
    if not name.endswith('manifest.json'):  # It holds the option `delay`.
      assert content == straight[name], name


def _claim(work: pathlib.Path, number: int, **changes):
  owner = {'host': 'other', 'pid': 1, 'time': time.time()} | changes
  work.mkdir(parents=True, exist_ok=True)
  files.write_json(work / f'part-{number:05d}.claim', owner)


@pytest.mark.parametrize(
  'dead',
  [
    {'time': 0},
    {'host': socket.gethostname(), 'pid': 2**22 + 1},  # Above any pid.
  ],
)
def test_claims_of_the_dead_do_not_count(tmp_path, dead):
  claims = claims_lib.Claims(epath.Path(tmp_path))
  _claim(tmp_path, 0)
  assert claims_lib.is_taken(epath.Path(tmp_path) / 'part-00000.claim')
  assert not claims.take('part-00000')
  _claim(tmp_path, 0, **dead)
  assert claims.take('part-00000')
  claims.close()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('links', [True, False])
def test_one_of_two_at_the_same_moment_gets_a_claim(
  tmp_path, monkeypatch, links
):
  ours = {'host': 'ours', 'pid': 1, 'time': time.time()}
  link = os.link

  def late(source, target):
    # Another process comes first, after this one has found nothing.
    _claim(tmp_path, 0, **ours)
    if not links:
      raise OSError(95, 'Operation not supported')
    link(source, target)

  monkeypatch.setattr(os, 'link', late)
  claims = claims_lib.Claims(epath.Path(tmp_path))
  assert claims.take('part-00000') != links
  claims.close()
  left = [path.name for path in tmp_path.iterdir()]
  assert left == (['part-00000.claim'] if links else [])


def test_claims_outlive_trouble_with_the_bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(claims_lib, '_RENEW', 0.01)
  claims = claims_lib.Claims(epath.Path(tmp_path))
  claims.take('part-00000')
  with monkeypatch.context() as m:
    m.setattr(files, 'write_json', _raise(_Broken()))
    time.sleep(0.1)
  (tmp_path / 'part-00000.claim').unlink()
  for _ in range(500):
    if (tmp_path / 'part-00000.claim').exists():
      break
    time.sleep(0.01)
  assert (tmp_path / 'part-00000.claim').exists()
  claims.close()


def test_workers_are_not_sent_all_items(tmp_path, monkeypatch):
  sent, original = [], processes_lib.pool

  def pool(workers, initializer, initargs):
    sent.append(pickle.dumps(initargs[:2]))
    return original(workers, initializer, initargs)

  monkeypatch.setattr(processes_lib, 'pool', pool)
  run(Fake(), tmp_path)
  assert b'item/' not in sent[0]


def test_waits_for_the_part_of_another_host(tmp_path, monkeypatch, straight):
  plan = plan_lib.make_plan(Fake(), tmp_path)
  _claim(pathlib.Path(plan.work), 3)
  files.write_json(plan.work / 'options.json', plan.options)
  slept = []

  monkeypatch.setattr(workers_lib, 'POLL', 0)

  def finish_elsewhere(text, *args):
    if 'Waiting' not in text:
      return
    # By now all other parts must have been made.
    slept.append(len(list(plan.work.glob('part-*.json'))))
    part_lib._write_part(Fake(), plan, None, 3, plan.parts[3])
    (plan.work / 'part-00003.claim').unlink()

  monkeypatch.setattr(workers_lib.logging, 'info', finish_elsewhere)
  summary = run(Fake(), tmp_path)
  assert slept[0] == 5
  assert summary.new_frames == sum(10 + i for i in range(6)) - 13
  assert snapshot(tmp_path) == straight


def test_finished_by_another_process_meanwhile(tmp_path, monkeypatch, straight):
  original = run_lib._finish_parts

  def second(*args):
    original(*args)  # As if by another process.
    original(*args)

  monkeypatch.setattr(run_lib, '_finish_parts', second)
  assert run(Fake(), tmp_path).splits['train'].clips == 5
  assert snapshot(tmp_path) == straight


class _Bucket(local.LocalFileSystem):
  """gs:// in a local folder: without empty folders, and no need to make any."""

  cachable = False
  folder: ClassVar[str] = ''

  def __init__(self, **kwargs):
    super().__init__(auto_mkdir=True)

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(
      str(path).replace('gs://', f'{cls.folder}/', 1)
    )

  def mkdir(self, path, **kwargs):
    pass

  def exists(self, path, **kwargs):
    path = pathlib.Path(self._strip_protocol(path))
    return path.is_file() or any(p.is_file() for p in path.rglob('*'))

  def mv(self, path1, path2, **kwargs):
    assert self.exists(path1)
    super().mv(path1, path2)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """Returns the folder that gs:// stands for."""
  monkeypatch.setattr(_Bucket, 'folder', str(tmp_path / 'gs'))
  monkeypatch.setattr(claims_lib, '_SETTLE', 0)
  real = fsspec.get_filesystem_class('gcs')
  fsspec.register_implementation('gcs', _Bucket, clobber=True)
  backend.fsspec_backend._get_filesystem.cache_clear()
  yield tmp_path / 'gs'
  fsspec.register_implementation('gcs', real, clobber=True)
  backend.fsspec_backend._get_filesystem.cache_clear()


def test_bucket_holds_the_same(bucket, straight):
  summary = run(Fake(), 'gs://bucket/data')
  assert summary.splits['train'].frames == 63
  assert snapshot(bucket / 'bucket' / 'data') == straight
  assert run(Fake(), 'gs://bucket/data').already
  run(Fake(size=8), 'gs://bucket/data', overwrite=True)
  assert (
    files.read_json('gs://bucket/data/fake/frames/1.0.0/manifest.json')[
      'options'
    ]['size']
    == 8
  )


def test_unreachable_bucket_is_one_sentence(bucket, monkeypatch):
  def fail(*args, **kwargs):
    raise ImportError('Please install gcsfs')

  monkeypatch.setattr(_Bucket, 'exists', fail)
  with pytest.raises(UserError, match=r'Please install gcsfs; .*\[gcs\]'):
    run(Fake(), 'gs://bucket/data')
  monkeypatch.setattr(_Bucket, 'exists', _raise(OSError('forbidden')))
  with pytest.raises(UserError, match=r'reached \(forbidden\)'):
    run(Fake(), 'gs://bucket/data')


def test_interrupted_deletion_in_a_bucket(bucket, monkeypatch, straight):
  original = _Bucket.rm_file

  def failing(self, path):
    if path.endswith('part-00003.json'):
      raise _Broken
    original(self, path)

  with monkeypatch.context() as m:
    m.setattr(_Bucket, 'rm_file', failing)
    m.setattr(_Bucket, 'rm', lambda self, path, **_: self.rm_file(path))
    with pytest.raises(_Broken):
      run(Fake(), 'gs://bucket/data')
  assert run(Fake(), 'gs://bucket/data').already
  assert not list((bucket / 'bucket/data/fake').glob('.*/*'))
  found = snapshot(bucket / 'bucket' / 'data')
  missing = straight.keys() - found.keys()
  assert {pathlib.Path(name).name for name in missing} <= {
    'eval_index-test.json'
  }


@pytest.mark.parametrize('nth', [1, 4, 9, 12])
def test_interrupted_move_in_a_bucket(bucket, monkeypatch, straight, nth):
  original, calls = _Bucket.mv, []

  def failing(self, path1, path2, **kwargs):
    calls.append(path1)
    if len(calls) == nth:
      raise _Broken
    original(self, path1, path2)

  with monkeypatch.context() as m:
    m.setattr(_Bucket, 'mv', failing)
    with pytest.raises(_Broken):
      run(Fake(), 'gs://bucket/data')
  run(Fake(), 'gs://bucket/data')
  assert snapshot(bucket / 'bucket' / 'data') == straight


def test_beam_makes_the_same(tmp_path, straight):
  pytest.importorskip('apache_beam')
  summary = run(Fake(), tmp_path, beam_options=['--runner=DirectRunner'])
  assert summary.new_frames == sum(10 + i for i in range(6))
  assert snapshot(tmp_path) == straight


def test_lists_override_the_source(tmp_path):
  path = tmp_path / 'lists.json'
  path.write_text(
    '{"train": ["clip-000", "gone"], "test": {"clip-002": [1, 2]}}'
  )
  lists = splits.read(str(path))
  summary = run(Fake(split='train', bundle=True), tmp_path, lists=lists)
  assert clip_ids(tmp_path, 'train') == ['clip-000']
  assert clip_ids(tmp_path, 'test') == ['clip-002']
  assert summary.left_out == 4
  assert summary.missing == ['gone']
  report = summary_lib.report(summary)
  assert 'excluded by --splits or --split: 4' in report
  assert 'without a clip: 1, for instance gone' in report
  folder = folders.clips_folder(tmp_path, 'fake', '1.0.0')
  assert files.read_json(folder / 'splits.json') == {
    'train': ['clip-000', 'gone'],
    'test': ['clip-002'],
  }


def test_other_lists_are_other_options(tmp_path):
  first, second = (splits.Lists({f'00{i}': 'test'}) for i in (1, 2))
  run(Fake(), tmp_path, lists=first)
  with pytest.raises(UserError, match=r'options \(the lists of --splits\);'):
    run(Fake(), tmp_path, lists=second)


def test_items_that_no_list_names_are_not_read(tmp_path):
  lists = splits.Lists({'item/000': 'train', '003': 'test'})
  plan = plan_lib.make_plan(Fake(), tmp_path, lists=lists)
  assert [i.id for part in plan.parts for i in part] == ['item/000', 'item/003']
  with pytest.raises(UserError, match='none of the 6 items'):
    plan_lib.make_plan(Fake(), tmp_path, lists=splits.Lists({'else': 'train'}))


def test_one_split_only(tmp_path):
  source = Fake(count=12, frames=1)
  summary = run(source, tmp_path, only=['train'], test_fraction=0.3)
  assert summary.splits.keys() == {'train'}
  assert summary.left_out == 12 - summary.splits['train'].clips > 0
  with pytest.raises(UserError, match='none of the 6 items.*--split'):
    run(Fake(split='val'), tmp_path, only=['test'])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'id': 'a b'}, 'its id has characters'),
    ({'frames': []}, 'no frames'),
    ({'height': 15}, 'frame 0 is 16 x 16 instead of 15 x 16'),
    ({'timestamps': np.zeros(9)}, r'timestamps of shape \(9,\)'),
    ({'depth': [b'']}, '1 depth images for 10 frames'),
  ],
)
def test_source_that_breaks_its_promise(monkeypatch, tmp_path, change, message):
  original = Fake.clips

  def clips(self, item):
    for clip in original(self, item):
      yield dataclasses.replace(clip, **change)

  monkeypatch.setattr(Fake, 'clips', clips)
  with pytest.raises(UserError, match=message):
    run(Fake(cameras=False), tmp_path)


@dataclasses.dataclass(frozen=True)
class Options:
  """A field of each kind."""

  description: ClassVar[str] = 'Kinds.'

  source: str
  size: int = 64
  fps: float | None = None
  depth: bool = True
  walks: tuple[str, ...] = ()


def test_options_become_fields(monkeypatch):
  monkeypatch.setattr(options_lib, '_source_class', lambda _: Options)

  def parse(*args):
    return options_lib.parse('kinds', args)

  assert parse('--source=/a=b', '--size', '32', '--fps=2.5') == {
    'source': '/a=b',
    'size': 32,
    'fps': 2.5,
  }
  assert parse('--nodepth', '--fps=none') == {'depth': False, 'fps': None}
  assert parse('--depth', '--walks=a,b') == {'depth': True, 'walks': ('a', 'b')}
  assert parse('--depth=false') == {'depth': False}
  for args, message in (
    (('--sise=3',), 'no option --sise; it takes --depth, --fps'),
    (('--size=x',), "--size takes int, not 'x'"),
    (('--fps=x',), "--fps takes float or none, not 'x'"),
    (('--size',), '--size needs a value'),
    (('size=3',), 'unexpected argument'),
    (('--depth=maybe',), '--depth takes bool'),
  ):
    with pytest.raises(UserError, match=message):
      parse(*args)
  listed = options_lib.describe('kinds')
  assert '--source: str, required' in listed
  assert '--fps: float or none, default None' in listed


def command(*args: str) -> subprocess.CompletedProcess[str]:
  return commands.run('tools/convert_datasets.py', *args)


def test_command_dry_run_writes_nothing(tmp_path):
  done = command(
    '--dataset=synthetic', f'--data_dir={tmp_path}', '--dry_run', '--scenes=3'
  )
  assert done.returncode == 0, done.stderr
  assert 'would convert 3 items' in done.stdout
  assert not list(tmp_path.iterdir())


def test_command_errors_are_one_line_and_exit_2(tmp_path):
  done = command('--dataset=synthetic', f'--data_dir={tmp_path}', '--bogus=1')
  assert done.returncode == 2
  assert done.stderr.startswith('error: the synthetic source has no option')
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({}, 'the nmr source needs --source'),
    ({'source': '/in', 'size': 0}, '--size is 0; give it 1 to'),
    ({'source': '/in', 'quality': 101}, '--quality is 101; .* 1 to 100'),
  ],
)
def test_options_that_cannot_be(given, message):
  with pytest.raises(UserError, match=message):
    sources.make('nmr', **given)
