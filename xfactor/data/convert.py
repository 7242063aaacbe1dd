"""Raw data -> records: the conversion that tools/convert_datasets.py runs.

The items of a source are dealt to a fixed number of parts, whatever the number
of workers. A worker writes one part at a time: a file of frames and a file of
clips for each split, then a small JSON that makes the part count as done.
A killed run that is started again skips the parts that are done and whose
checksums hold. Hosts that run the same command on a shared folder or bucket
share the parts (`sharing.py`); so do the workers of Apache Beam. When all parts
are done, one process gives their files their final names:

  DATA_DIR/NAME/.incomplete-VERSION/     all work in progress
    options.json                         what the run was asked for
    part-00007.claim                     some process is at work on this part
    part-00007.json                      this part is done
    part-00007.train.frames              its records, renamed at the end
    part-00007.train.clips               its clips, merged at the end
    parts.json                           all parts are done

Which split: explicit lists (`splits.py`), else the source's word, else a hash
of the clip's id, so that a clip keeps its split when others are added. In a
small data set where the hash leaves a split empty, the clip with the smallest
hash moves to `test` (or the one with the largest to `train`); only that clip
may change sides when clips are added.
"""

import contextlib
import dataclasses
import errno
import functools
import multiprocessing
import os
import pickle
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import tqdm
from absl import logging
from etils import epath

from xfactor.data import images, processes, records, sharing, sources
from xfactor.data import splits as splits_lib
from xfactor.errors import UserError

SHARD_BYTES = 512 * 2**20
MIN_PARTS = 32
EVAL_VIEWS, EVAL_WINDOW = 2, 20
_NAME = re.compile(r'[a-z][a-z0-9_]*')
_CLIP_ID = re.compile(r'[A-Za-z0-9/._-]+')
_PLACEHOLDER = 'folder'
_ASIDE = '.deleted-'
_POLL = 0.5  # Seconds between looks at what other hosts have done.
# What is wrong with an item; other errors of the system stop the run.
_UNREADABLE = (
  *(FileNotFoundError, PermissionError),
  *(IsADirectoryError, NotADirectoryError),
)


@dataclasses.dataclass(frozen=True)
class SplitSummary:
  """What was written to one split; `bytes` counts frames and clips."""

  clips: int
  frames: int
  bytes: int
  replaced: int


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a conversion did.

  Attributes:
    folder: DATA_DIR/NAME.
    version: Semantic version.
    splits: What is in each split.
    skipped: (item id, reason) of items that could not be converted.
    left_out: Clips that the split lists or `only` leave out.
    missing: Ids of the split lists that no clip has.
    seconds: Wall time of this run.
    new_frames: Frames that this run converted (others were done before).
    already: Whether the data set was there and nothing was done.
  """

  folder: str
  version: str
  splits: dict[str, SplitSummary]
  skipped: list[tuple[str, str]]
  left_out: int
  missing: list[str]
  seconds: float
  new_frames: int
  already: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be done, known before anything is read or written."""

  name: str
  root: epath.Path
  version: str
  test_fraction: float
  lists: splits_lib.Lists | None
  only: tuple[str, ...] | None
  parts: list[list[sources.Item]]
  options: dict[str, Any]

  @property
  def work(self) -> epath.Path:
    """The folder of unfinished work."""
    return self.root / f'.incomplete-{self.version}'

  @property
  def bytes(self) -> int:
    """Estimate of the size."""
    return sum(item.size for part in self.parts for item in part)

  def split_of(
    self, clip_id: str, item: sources.Item
  ) -> tuple[str | None, str | None]:
    """Returns a clip's split, None if left out, and its id in the lists."""
    listed = None
    if self.lists:
      split, listed = self.lists.find(clip_id)
    else:
      split = item.split or splits_lib.by_hash(clip_id, self.test_fraction)
    if self.only and split not in self.only:
      split = None
    return split, listed

  @property
  def by_hash(self) -> bool:
    """Whether the hash alone decides about splits."""
    return not self.lists and all(
      item.split is None for part in self.parts for item in part
    )


# ==============================================================================
# Planning
# ==============================================================================


def deal(items: Sequence[sources.Item]) -> list[list[sources.Item]]:
  """Deals items to parts: consecutive, of about equal size, none empty.

  Their number depends on the items alone: about 512 MiB each, but at least
  `MIN_PARTS` (or one an item), for the sake of workers.
  """
  sizes = [max(item.size, 1) for item in items]
  total = sum(sizes)
  count = max(-(-total // SHARD_BYTES), min(len(items), MIN_PARTS))
  parts = [[] for _ in range(count)]
  before = 0
  for item, size in zip(items, sizes, strict=True):
    # By the item's middle, so that a large one does not end up in a late part.
    parts[(2 * before + size) * count // (2 * total)].append(item)
    before += size
  return [part for part in parts if part]


def make_plan(
  source: sources.Source,
  data_dir: str | os.PathLike[str],
  name: str | None = None,
  test_fraction: float = 0.1,
  lists: splits_lib.Lists | None = None,
  only: Sequence[str] | None = None,
) -> Plan:
  """Lists the items and deals them to parts; reads no footage.

  Arguments are those of `convert`.

  Raises:
    UserError: If a name or number is not usable, the source lists nothing, or
      two items have one id.
  """
  name = name or source.name
  if not _NAME.fullmatch(name):
    raise UserError(
      f'the name {name!r} of a data set must be lower-case letters, digits '
      'and underscores, and start with a letter'
    )
  if not 0 <= test_fraction <= 1:
    raise UserError(f'--test_fraction is {test_fraction}; give it 0 to 1')
  try:
    items = source.items()
  except OSError as e:
    raise UserError(f'the {source.name} source cannot be listed: {e}') from e
  if not items:
    raise UserError(f'the {source.name} source lists nothing to convert')
  seen = set()
  for item in items:
    if item.id in seen:
      raise UserError(f'the {source.name} source lists item {item.id!r} twice')
    seen.add(item.id)
  only = tuple(only) if only else None
  wanted = [item for item in items if _may_be_wanted(item, lists, only)]
  if not wanted:
    raise UserError(
      f'none of the {len(items)} items of the {source.name} source is wanted '
      f'(for instance {items[0].id} is not): check --splits and --split'
    )
  parts = deal(wanted)
  return Plan(
    name=name,
    root=records.data_folder(data_dir) / name,
    version=source.version,
    test_fraction=test_fraction,
    lists=lists,
    only=only,
    parts=parts,
    options={
      'format': records.FORMAT,
      'source': source.name,
      'source_version': source.version,
      'options': {
        f.name: _plain(getattr(source, f.name))
        for f in dataclasses.fields(source)
      },
      'test_fraction': test_fraction,
      'lists': records.digest(lists.by_id) if lists else None,
      'only': _plain(only),
      'items': records.digest(
        [(i.id, i.split, i.size) for part in parts for i in part]
      ),
    },
  )


def _may_be_wanted(
  item: sources.Item,
  lists: splits_lib.Lists | None,
  only: Sequence[str] | None,
) -> bool:
  if lists:
    return item.bundle or lists.may_hold(item.id)
  return not (only and item.split and item.split not in only)


def _plain(value: Any) -> Any:
  """Returns a value as JSON will give it back."""
  if isinstance(value, tuple | list):
    return [_plain(v) for v in value]
  if isinstance(value, bool | int | float | str | None):
    return value
  return str(value)


# ==============================================================================
# One part (runs in a worker)
# ==============================================================================


@dataclasses.dataclass
class _Progress:
  """Numbers that a worker counts up and the main process adds up.

  Each part has its own cells and one writer: no locks, which a killed worker
  could take with it.
  """

  items: Any
  frames: Any
  stop: Any

  @classmethod
  def make(cls, parts: int) -> '_Progress':
    context = multiprocessing.get_context('spawn')
    return cls(
      items=context.RawArray('q', parts),
      frames=context.RawArray('q', parts),
      stop=context.RawValue('b', 0),
    )


class _Stopped(Exception):
  """The main process asked the workers to stop."""


class _Outputs:
  """The files of one part: a file of frames and one of clips a split."""

  def __init__(self, work: epath.Path, stem: str):
    self._work = work
    self._stem = stem
    self._writers: dict[str, dict[str, records.ShardWriter]] = {}
    self._depth: dict[str, bool] = {}
    self._encodings: set[str] = set()
    self._clips: list[dict[str, Any]] = []

  def _split(self, split: str) -> dict[str, records.ShardWriter]:
    if split not in self._writers:
      self._depth[split] = True
      self._writers[split] = {
        kind: records.ShardWriter(self._work / f'{self._stem}.{split}.{kind}')
        for kind in ('frames', 'clips')
      }
    return self._writers[split]

  def add(
    self,
    split: str,
    item: str,
    clip: records.Clip,
    frames: Iterable[bytes],
    depth: bool,
    encodings: Iterable[str],
  ) -> None:
    """Writes one clip, given its frames' records, into a split."""
    out = self._split(split)
    clip = dataclasses.replace(clip, first_frame=out['frames'].records)
    for record in frames:
      out['frames'].write(record)
    out['clips'].write(records.encode_clip(clip))
    self._depth[split] &= depth
    self._encodings.update(encodings)
    self._clips.append(
      {
        'id': clip.id,
        'item': item,
        'split': split,
        'frames': clip.num_frames,
        'height': clip.height,
        'width': clip.width,
        'replaced': clip.replaced,
      }
    )

  def close(self) -> dict[str, Any]:
    """Finishes the files and returns what is in them."""
    return {
      'splits': {
        split: {
          'depth': self._depth[split],
          **{k: dataclasses.asdict(w.close()) for k, w in out.items()},
        }
        for split, out in sorted(self._writers.items())
      },
      'clips': self._clips,
      'encodings': sorted(self._encodings),
    }

  def abort(self) -> None:
    """Drops the files."""
    for out in self._writers.values():
      for writer in out.values():
        writer.abort()


def _check_clip(clip: sources.Clip, item: sources.Item) -> None:
  """Raises ValueError where a source breaks the promises of `Clip`."""
  n = len(clip.frames)
  problems = []
  if not _CLIP_ID.fullmatch(clip.id):
    problems.append('its id has characters other than letters, digits, /._-')
  if not n:
    problems.append('it has no frames')
  if clip.depth is not None and len(clip.depth) != n:
    problems.append(f'{len(clip.depth)} depth images for {n} frames')
  for key, shape in (
    ('timestamps', (n,)),
    ('intrinsics', (n, 4)),
    ('world_to_camera', (n, 3, 4)),
  ):
    array = getattr(clip, key)
    if array is not None and array.shape != shape:
      problems.append(f'{key} of shape {array.shape} instead of {shape}')
  for i, frame in enumerate(clip.frames):
    height, width = images.header(frame)
    if (height, width) != (clip.height, clip.width):
      problems.append(
        f'frame {i} is {height} x {width} instead of '
        f'{clip.height} x {clip.width}'
      )
      break
  if problems:
    raise ValueError(f'clip {clip.id!r} of {item.id!r}: {"; ".join(problems)}')


def _stem(number: int) -> str:
  return f'part-{number:05d}'


def _write_part(
  source: sources.Source,
  plan: Plan,
  progress: _Progress | None,
  number: int,
  items: Sequence[sources.Item],
) -> dict[str, Any]:
  """Converts one part and returns its summary, also left as part-N.json."""
  stem = _stem(number)
  out = _Outputs(plan.work, stem)
  skipped, left_out, listed = [], 0, []
  try:
    for item in items:
      try:
        for clip in _clips(source, item):
          if progress and progress.stop.value:
            raise _Stopped
          split, key = plan.split_of(clip.id, item)
          if split is None:
            left_out += 1
            continue
          _check_clip(clip, item)
          _add_clip(out, split, item, clip)
          if key:
            listed.append(key)
          if progress:
            progress.frames[number] += len(clip.frames)
      except UserError as e:
        skipped.append((item.id, ' '.join(str(e).split())))
      except Exception as e:
        e.add_note(f'while converting item {item.id!r}')
        raise
      if progress:
        progress.items[number] += 1
    part = out.close() | {
      'skipped': skipped,
      'left_out': left_out,
      'listed': listed,
    }
    records.write_json(plan.work / f'{stem}.json', part)
  except BaseException:
    out.abort()
    raise
  return part


def _clips(
  source: sources.Source, item: sources.Item
) -> Iterator[sources.Clip]:
  try:
    yield from source.clips(item)
  except _UNREADABLE as e:
    raise UserError(f'{item.id} cannot be read: {e}') from e


def _add_clip(
  out: _Outputs, split: str, item: sources.Item, clip: sources.Clip
) -> None:
  depth = clip.depth or [None] * len(clip.frames)
  out.add(
    split,
    item.id,
    records.Clip(
      id=clip.id,
      first_frame=0,
      num_frames=len(clip.frames),
      height=clip.height,
      width=clip.width,
      timestamps=clip.timestamps,
      intrinsics=clip.intrinsics,
      world_to_camera=clip.world_to_camera,
      replaced=clip.replaced,
    ),
    map(records.encode_frame, clip.frames, depth),
    clip.depth is not None,
    {
      'png' if frame.startswith(b'\x89PNG') else 'jpeg' for frame in clip.frames
    },
  )


def _read_part(
  plan: Plan, number: int, check: bool = True
) -> dict[str, Any] | None:
  """Returns the summary of a part that is done and whole, or None.

  Args:
    plan: The conversion.
    number: Of the part.
    check: Whether its checksums are to be compared. A bucket keeps its own.
  """
  path = plan.work / f'{_stem(number)}.json'
  if not path.exists():
    return None
  try:
    part = records.read_json(path)
  except ValueError:
    return None
  for split in part['splits'].values():
    for kind in ('frames', 'clips'):
      shard = records.Shard(**split[kind])
      file = plan.work / shard.file
      if not file.exists() or file.stat().length != shard.bytes:
        return None
      check = check and not records.is_remote(file)
      if check and records.sha256(file) != shard.sha256:
        return None
  return part


# ==============================================================================
# All parts
# ==============================================================================

# What a worker process works on.
_job: tuple[Any, ...] = ()


def _set_job(*job: Any) -> None:
  global _job
  _job = job


def _work_on(
  number: int, items: Sequence[sources.Item], check: bool
) -> dict[str, Any]:
  return _do_part(*_job, number, items, check)


def _do_part(
  source: sources.Source,
  plan: Plan,
  progress: _Progress | None,
  number: int,
  items: Sequence[sources.Item],
  check: bool,
) -> dict[str, Any]:
  """Returns the summary of a part, converting it unless it is done."""
  part = _read_part(plan, number, check)
  if part is None:
    return _write_part(source, plan, progress, number, items)
  if progress:
    progress.items[number] = len(items)
  return part


def _run_parts(
  source: sources.Source,
  plan: Plan,
  workers: int,
  progress: _Progress,
  claims: sharing.Claims,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number, summary) of parts as they are done, here or elsewhere.

  Stops early where another process has them all.
  """
  waiting = list(range(len(plan.parts)))
  # Of earlier runs; what is made from now on needs no reading again.
  before = {path.name for path in plan.work.glob('part-*.json')}
  if before:
    logging.info(
      'Continuing: %d of %d parts are done.', len(before), len(waiting)
    )
  running: dict[futures.Future, int] = {}
  told = False
  job = (source, _without_items(plan), progress)
  workers = min(workers, len(waiting))
  with processes.pool(workers, _set_job, job) as pool:
    try:
      while waiting or running:
        if not _is_open(plan):
          return
        others = []
        for number in waiting:
          # One more than workers, so that none has to wait for this loop.
          if len(running) <= workers and claims.take(_stem(number)):
            check = f'{_stem(number)}.json' in before
            future = pool.submit(_work_on, number, plan.parts[number], check)
            running[future] = number
          else:
            others.append(number)
        waiting = others
        if not running:
          if not told:
            logging.info(
              'Waiting for %d parts that other processes convert.',
              len(waiting),
            )
            told = True
          time.sleep(_POLL)
        done, _ = futures.wait(running, _POLL, futures.FIRST_COMPLETED)
        for future in done:
          number = running.pop(future)
          yield number, future.result()
          claims.release(_stem(number))
    finally:
      progress.stop.value = 1


def _without_items(plan: Plan) -> Plan:
  """Returns what a worker needs of a plan: a million items are heavy."""
  return dataclasses.replace(plan, parts=[])


def _is_open(plan: Plan) -> bool:
  """Whether parts are still to be made, as far as other processes tell."""
  all_done = (plan.work / 'parts.json').exists()
  return not all_done and (plan.work / 'options.json').exists()


class _Bar:
  """The progress bar: items done, frames a second, time left."""

  def __init__(self, plan: Plan, progress: _Progress, quiet: bool):
    self._progress = progress
    self._bar = tqdm.tqdm(
      total=sum(map(len, plan.parts)),
      desc=plan.name,
      unit='item',
      disable=quiet,
      smoothing=0.1,
    )
    self._start = time.monotonic()

  def update(self) -> None:
    frames = sum(self._progress.frames)
    rate = frames / max(time.monotonic() - self._start, 1e-6)
    self._bar.set_postfix_str(
      f'{frames} frames, {rate:.0f} frames/s', refresh=False
    )
    self._bar.update(sum(self._progress.items) - self._bar.n)
    self._bar.refresh()

  def close(self) -> None:
    self.update()
    self._bar.close()


def _ticking(bar: _Bar) -> Callable[[], None]:
  """Redraws the bar while in-process work is under way; returns the stop."""
  stop = threading.Event()

  def tick() -> None:
    # A log file is better off without a line every half second.
    while not stop.wait(0.5 if sys.stderr.isatty() else 30):
      bar.update()

  thread = threading.Thread(target=tick, daemon=True)
  thread.start()

  def end() -> None:
    stop.set()
    thread.join()
    bar.close()

  return end


def _convert_parts(
  source: sources.Source,
  plan: Plan,
  workers: int,
  progress: _Progress,
  claims: sharing.Claims,
  quiet: bool,
) -> list[dict[str, Any]]:
  """Returns the summaries of all parts; see `_run_parts`."""
  parts, owner = {}, {}
  end = _ticking(_Bar(plan, progress, quiet))
  try:
    with contextlib.closing(
      _run_parts(source, plan, workers, progress, claims)
    ) as finished:
      for number, part in finished:
        parts[number] = part
        _own(plan, owner, parts, number)
  finally:
    end()
  return [part for _, part in sorted(parts.items())]


def _convert_on_beam(
  source: sources.Source,
  plan: Plan,
  progress: _Progress,
  options: Sequence[str],
) -> list[dict[str, Any]]:
  """As `_convert_parts`, by the workers of Apache Beam."""
  try:
    import apache_beam as beam
  except ImportError as e:
    raise UserError(
      "--runner=beam needs Apache Beam: pip install -e '.[beam]'"
    ) from e
  from apache_beam.options import pipeline_options

  done = {n for n in range(len(plan.parts)) if _read_part(plan, n)}
  todo = [n for n in range(len(plan.parts)) if n not in done]
  # Of these options: a worker may have read others' before.
  items = plan.work / f'items-{records.digest(plan.options)}.pickle'
  items.write_bytes(pickle.dumps(plan.parts))
  with beam.Pipeline(
    options=pipeline_options.PipelineOptions(list(options))
  ) as pipeline:
    _ = (
      pipeline
      | beam.Create(todo)
      | beam.Reshuffle()
      # A service takes graphs of a few megabytes, too few for the items.
      | beam.Map(_beam_part, source, _without_items(plan), os.fspath(items))
    )
  parts, owner = {}, {}
  for number in range(len(plan.parts)):
    part = _read_part(plan, number, check=False)
    if part is None:
      raise UserError(
        f'the Beam workers left no {_stem(number)} in {plan.work}; give a '
        '--data_dir that they and this host share, such as a bucket'
      )
    parts[number] = part
    _own(plan, owner, parts, number)
    if number not in done:
      progress.frames[number] = sum(clip['frames'] for clip in part['clips'])
  return list(parts.values())


def _beam_part(
  number: int, source: sources.Source, plan: Plan, items: str
) -> None:
  _do_part(source, plan, None, number, _load_items(items)[number], check=True)


@functools.lru_cache(1)
def _load_items(path: str) -> list[list[sources.Item]]:
  try:
    return pickle.loads(epath.Path(path).read_bytes())
  except FileNotFoundError as e:
    raise UserError(
      f'a Beam worker cannot see {path}; give a --data_dir that the workers '
      'and this host share, such as a bucket'
    ) from e


def _own(
  plan: Plan, owner: dict[str, int], parts: dict[int, Any], number: int
) -> None:
  """Notes which part each clip of a new part is in.

  Raises:
    UserError: If an earlier clip has the same id.
  """
  for clip in parts[number]['clips']:
    if clip['id'] in owner:
      other = owner[clip['id']]
      first = next(c for c in parts[other]['clips'] if c['id'] == clip['id'])
      # Once they are corrected, they are to be read again.
      for made in {number, other}:
        (plan.work / f'{_stem(made)}.json').unlink(missing_ok=True)
      raise UserError(
        f'two clips have the id {clip["id"]!r}: one from item '
        f'{first["item"]!r} and one from item {clip["item"]!r}; rename '
        'one of them and convert again with --overwrite'
      )
    owner[clip['id']] = number


# ==============================================================================
# Finishing
# ==============================================================================


def _fill_splits(
  plan: Plan, parts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Moves one clip where the hash left a split empty (see the module)."""
  clips = [clip for part in parts for clip in part['clips']]
  found = {clip['split'] for clip in clips}
  if (
    not plan.by_hash
    or plan.only
    or not 0 < plan.test_fraction < 1
    or len(clips) < 2
    or len(found) > 1
  ):
    return parts
  by_hash = sorted(clips, key=lambda c: (records.unit_hash(c['id']), c['id']))
  if found == {'train'}:
    moved, target = by_hash[0]['id'], 'test'
  else:
    moved, target = by_hash[-1]['id'], 'train'
  for number, part in enumerate(parts):
    if any(clip['id'] == moved for clip in part['clips']):
      part = _rewrite_part(plan, number, part, {moved: target})
      return [*parts[:number], part, *parts[number + 1 :]]
  raise AssertionError(moved)


def _rewrite_part(
  plan: Plan, number: int, part: dict[str, Any], target: dict[str, str]
) -> dict[str, Any]:
  """Writes a part anew with some clips in other splits."""
  (split,) = part['splits']
  files = part['splits'][split]
  frames = records.read_shard(plan.work / files['frames']['file'])
  clips = records.read_shard(plan.work / files['clips']['file'])
  # Another stem: until the JSON is replaced, the old files are the part.
  out = _Outputs(plan.work, f'{_stem(number)}-moved')
  for entry, record in zip(part['clips'], clips, strict=True):
    clip = records.decode_clip(record)
    own = [next(frames) for _ in range(clip.num_frames)]
    out.add(
      target.get(clip.id, split),
      entry['item'],
      clip,
      own,
      files['depth'],
      part['encodings'],
    )
  new = part | out.close()
  records.write_json(plan.work / f'{_stem(number)}.json', new)
  return new


def _finish(plan: Plan, description: str, parts: list[dict[str, Any]]) -> None:
  """Gives everything its final place; can be interrupted and repeated."""
  splits = sorted({split for part in parts for split in part['splits']})
  _make_folder(plan.work / 'clips')
  depth = all(s['depth'] for part in parts for s in part['splits'].values())
  encodings = {e for part in parts for e in part['encodings']}
  listed = {key for part in parts for key in part['listed']}
  ids = plan.lists.by_id if plan.lists else {}
  if plan.lists:
    records.write_json(
      plan.work / 'clips' / 'splits.json', plan.lists.by_split()
    )
  frames, clips, manifest = {}, {}, {}
  for split in splits:
    own = [part for part in parts if split in part['splits']]
    rows = [c for part in own for c in part['clips'] if c['split'] == split]
    frames[split] = _name_frames(plan, split, own)
    clips[split] = _merge_clips(plan, split, own)
    manifest[split] = {
      'clips': len(rows),
      'frames': sum(row['frames'] for row in rows),
      'replaced': sum(row['replaced'] for row in rows),
      'frames_digest': records.digest(
        [dataclasses.asdict(shard) for shard in frames[split]]
      ),
      'index_sha256': records.write_index(
        plan.work / 'clips' / f'clips-{split}.index.npz',
        [(r['id'], r['frames'], r['height'], r['width']) for r in rows],
      ),
    }
  for config, shards in (('frames', frames), ('clips', clips)):
    folder = plan.work / config
    records.write_tfds_metadata(
      folder,
      name=plan.name,
      config=config,
      version=plan.version,
      description=description,
      shards=shards,
      depth=depth,
      encoding=encodings.pop() if len(encodings) == 1 else None,
    )
    own = {
      split: entry
      | {'shards': [dataclasses.asdict(shard) for shard in shards[split]]}
      for split, entry in manifest.items()
    }
    # Of runs that were killed here.
    for leftover in folder.glob('*.incomplete-*'):
      leftover.unlink(missing_ok=True)
    records.write_json(
      folder / 'manifest.json',
      plan.options
      | {
        'name': plan.name,
        'config': config,
        'version': plan.version,
        'splits': own,
        'skipped': [s for part in parts for s in part['skipped']],
        'left_out': sum(part['left_out'] for part in parts),
        'missing': sorted(ids.keys() - listed),
      },
    )


def _name_frames(
  plan: Plan, split: str, parts: list[dict[str, Any]]
) -> list[records.Shard]:
  """Renames the parts' frames to what TFDS expects."""
  out = []
  for i, part in enumerate(parts):
    shard = records.Shard(**part['splits'][split]['frames'])
    name = records.shard_name(plan.name, split, i, len(parts))
    # A run that was interrupted here has renamed some files already.
    if (plan.work / shard.file).exists():
      (plan.work / shard.file).replace(plan.work / 'frames' / name)
    out.append(dataclasses.replace(shard, file=name))
  return out


def _merge_clips(
  plan: Plan, split: str, parts: list[dict[str, Any]]
) -> list[records.Shard]:
  """Writes the clips anew, with first frames counted over the whole split."""
  size = sum(part['splits'][split]['clips']['bytes'] for part in parts)
  groups = -(-size // SHARD_BYTES)
  groups = min(groups, len(parts))
  first, out = 0, []
  for g in range(groups):
    name = records.shard_name(plan.name, split, g, groups)
    writer = records.ShardWriter(plan.work / 'clips' / name)
    begin, end = (len(parts) * i // groups for i in (g, g + 1))
    for part in parts[begin:end]:
      files = part['splits'][split]
      for record in records.read_shard(plan.work / files['clips']['file']):
        clip = records.decode_clip(record)
        clip.first_frame += first
        writer.write(records.encode_clip(clip))
      first += files['frames']['records']
    out.append(writer.close())
  return out


def _is_published(plan: Plan) -> bool:
  """Whether only the last step, deleting the work folder, is missing."""
  return (plan.work / 'parts.json').exists() and not (
    plan.work / 'frames'
  ).exists()


def _publish(plan: Plan) -> None:
  """Puts the finished folders in place, instead of older ones if any.

  Frames come last: without them the data set does not count as there, and
  their absence from the work folder tells that all is done.
  """
  for config in ('clips', 'frames'):
    new, final = plan.work / config, plan.root / config / plan.version
    if records.is_remote(final):
      _move_files(new, final)
      continue
    final.parent.mkdir(exist_ok=True)
    if not new.exists():
      # This process was held up, and what is in place is what it made.
      raise FileNotFoundError(errno.ENOENT, 'moved by another process', new)
    if final.exists():
      _set_aside(plan, final)
    new.replace(final)
  _discard(plan)


def _set_aside(plan: Plan, folder: epath.Path) -> None:
  """Takes a local folder away at once, for `_delete_aside`."""
  owner = f'{socket.gethostname()}-{os.getpid()}'
  name = f'{_ASIDE}{owner}-{folder.parent.name}-{folder.name}'
  folder.replace(plan.root / name)


def _delete_aside(plan: Plan) -> None:
  for folder in plan.root.glob(f'{_ASIDE}*'):
    # Another process may be about it too.
    shutil.rmtree(folder, ignore_errors=True)


def _discard(plan: Plan) -> None:
  """Deletes the work folder, for other processes all at once."""
  if not records.is_remote(plan.work):
    _set_aside(plan, plan.work)
    _delete_aside(plan)
    return
  for path in plan.work.iterdir():
    # It says that the rest is not needed any more.
    if path.name != 'parts.json' and not path.is_dir():
      path.unlink(missing_ok=True)
  plan.work.rmtree()


def _make_folder(folder: epath.Path) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  if records.is_remote(folder):
    # A bucket has only the folders that something is in.
    (folder / _PLACEHOLDER).write_text('')


def _move_files(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder of a bucket; can be interrupted and repeated.

  The manifest, which makes a folder count, comes last, so that a target with
  one is an older version or, where the source has none, moved already.
  """
  (source / _PLACEHOLDER).unlink(missing_ok=True)
  manifest = 'manifest.json'
  if (source / manifest).exists() and (target / manifest).exists():
    target.rmtree()
  _make_folder(target)
  paths = sorted(source.iterdir(), key=lambda p: (p.name == manifest, p.name))
  for path in paths:
    path.replace(target / path.name)
  (target / _PLACEHOLDER).unlink()


# ==============================================================================
# The whole
# ==============================================================================


def convert(
  source: sources.Source,
  data_dir: str | os.PathLike[str],
  *,
  name: str | None = None,
  workers: int | None = None,
  test_fraction: float = 0.1,
  lists: splits_lib.Lists | None = None,
  only: Sequence[str] | None = None,
  overwrite: bool = False,
  quiet: bool = False,
  beam_options: Sequence[str] | None = None,
) -> Summary:
  """Converts a source to records; continues where a killed run stopped.

  Args:
    source: What to convert; picklable.
    data_dir: Folder of converted data sets, local or gs://.
    name: Of the data set; the source's own name by default.
    workers: Processes; 0 works in this one, None takes one a core. The result
      does not depend on it.
    test_fraction: Share of clips, by hash, that become the test split where the
      source does not say.
    lists: Explicit split lists, instead of the source's and the hash.
    only: The splits to convert; all by default.
    overwrite: Replace an existing data set, and drop unfinished work that was
      begun with other options.
    quiet: No progress bar.
    beam_options: Command-line options of Apache Beam, to convert with it
      instead of local processes.

  Raises:
    UserError: If the input or the target is unusable; its message says what to
      do. Finished parts stay.
  """
  start = time.monotonic()
  plan = make_plan(source, data_dir, name, test_fraction, lists, only)
  if workers is None:
    workers = os.cpu_count() or 1
  progress = _Progress.make(len(plan.parts))
  with _clear_messages(plan):
    _make_root(plan)
    _delete_aside(plan)
    if _is_published(plan):
      _discard(plan)
    done = plan.version in records.versions(data_dir, plan.name)
    if done and not overwrite and not (plan.work / 'options.json').exists():
      _check_same(plan)
      return _summary(plan, time.monotonic() - start, 0, already=True)
    _open_work(plan, overwrite)
    try:
      with contextlib.closing(sharing.Claims(plan.work)) as claims:
        parts = None
        if not (plan.work / 'parts.json').exists():
          if beam_options is None:
            parts = _convert_parts(
              source, plan, workers, progress, claims, quiet
            )
          else:
            parts = _convert_on_beam(source, plan, progress, beam_options)
        while not claims.take('finish'):
          time.sleep(_POLL)
        _finish_parts(plan, source.description, parts)
    except (OSError, RuntimeError):
      if plan.work.exists() or plan.version not in records.versions(
        data_dir, plan.name
      ):
        raise
      # Another process, which shared the work, has just finished it.
  _fix_eval(plan)
  return _summary(plan, time.monotonic() - start, sum(progress.frames))


def _finish_parts(
  plan: Plan, description: str, parts: list[dict[str, Any]] | None
) -> None:
  """Makes a data set of finished parts; continues what was interrupted.

  Args:
    plan: The conversion, whose `finish` this process has claimed.
    description: Of the source.
    parts: Their summaries; of no use where another run got as far as this.
  """
  if not (plan.work / 'options.json').exists() or _is_published(plan):
    return  # Another process has just finished it all.
  path = plan.work / 'parts.json'
  if path.exists():
    parts = [
      records.read_json(plan.work / f'{_stem(number)}.json')
      for number in range(len(plan.parts))
    ]
  else:
    parts = _fill_splits(plan, parts)
    if not any(part['clips'] for part in parts):
      raise _nothing(plan, parts)
    _make_folder(plan.work / 'frames')
    # From here on a new run repeats the finish, no matter which files of parts
    # already have their final names.
    records.write_json(path, len(parts))
  _finish(plan, description, parts)
  _publish(plan)


def _check_same(plan: Plan) -> None:
  """Raises UserError if the data set was made with other options."""
  old = records.read_json(plan.root / 'frames' / plan.version / 'manifest.json')
  old = {key: old.get(key) for key in plan.options}
  if old != plan.options:
    raise UserError(
      f'{plan.root} {plan.version} is there already, made with other options '
      f'({_difference(old, plan.options)}); give another --name, or '
      '--overwrite to replace it'
    )


def _make_root(plan: Plan) -> None:
  try:
    plan.root.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    if e.errno == errno.ENOSPC:
      raise
    raise UserError(
      f'cannot make the folder {plan.root}: {e.strerror}; give a --data_dir '
      'that you may write to'
    ) from e


def _open_work(plan: Plan, overwrite: bool) -> None:
  """Makes the folder of unfinished work or checks that it is this command's."""
  path = plan.work / 'options.json'
  if path.exists():
    old = records.read_json(path)
    if old == plan.options:
      _sweep(plan)
      return
    if not overwrite:
      raise UserError(
        f'{plan.work} holds an unfinished conversion with other options '
        f'({_difference(old, plan.options)}); run the same command as then '
        'to continue it, or give another --name, or delete that folder'
      )
    if any(map(sharing.is_taken, plan.work.glob('*.claim'))):
      raise UserError(
        f'another process is at work in {plan.work} with other options; stop '
        'it and wait five minutes if it is on another host, or give another '
        '--name'
      )
    plan.work.rmtree()
  plan.work.mkdir(exist_ok=True)
  records.write_json(path, plan.options)


def _sweep(plan: Plan) -> None:
  """Deletes what killed processes of this host have left unfinished."""
  mark = f'.incomplete-{socket.gethostname()}'
  for path in plan.work.iterdir():
    head, _, pid = path.name.rpartition('-')
    if head.endswith(mark) and not sharing.is_alive(int(pid)):
      path.unlink(missing_ok=True)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
  """Names the options that differ."""
  flat_old = {**old, **old['options']}
  flat_new = {**new, **new['options']}
  out = []
  for key in sorted(flat_old.keys() | flat_new.keys()):
    before, now = flat_old.get(key), flat_new.get(key)
    if key == 'options' or before == now:
      continue
    digests = {
      'items': 'the list of items in the source',
      'lists': 'the lists of --splits',
    }
    out.append(digests.get(key, f'{key} was {before!r} and is now {now!r}'))
  return ', '.join(out)


def _nothing(plan: Plan, parts: list[dict[str, Any]]) -> UserError:
  skipped = [s for part in parts for s in part['skipped']]
  _discard(plan)
  with contextlib.suppress(OSError):  # Other versions may be there.
    plan.root.rmdir()
  why = f'; the first: {skipped[0][0]}: {skipped[0][1]}' if skipped else ''
  return UserError(
    f'nothing was converted: {len(skipped)} of '
    f'{sum(map(len, plan.parts))} items could not be read, '
    f'{sum(part["left_out"] for part in parts)} clips were not wanted, and '
    f'the other items have no clips{why}'
  )


def _fix_eval(plan: Plan) -> None:
  """Chooses the default evaluation examples, where clips are long enough."""
  manifest = records.read_json(
    plan.root / 'clips' / plan.version / 'manifest.json'
  )
  if 'test' not in manifest['splits']:
    return
  with contextlib.suppress(UserError):
    records.eval_index(
      plan.root.parent,
      plan.name,
      'test',
      EVAL_VIEWS,
      EVAL_WINDOW,
      plan.version,
    )


def _summary(
  plan: Plan, seconds: float, new_frames: int, already: bool = False
) -> Summary:
  frames, clips = (
    records.read_json(plan.root / config / plan.version / 'manifest.json')
    for config in ('frames', 'clips')
  )
  return Summary(
    folder=str(plan.root),
    version=plan.version,
    splits={
      split: SplitSummary(
        clips=entry['clips'],
        frames=entry['frames'],
        bytes=sum(
          shard['bytes']
          for manifest in (frames, clips)
          for shard in manifest['splits'][split]['shards']
        ),
        replaced=entry['replaced'],
      )
      for split, entry in frames['splits'].items()
    },
    skipped=[tuple(s) for s in frames['skipped']],
    left_out=frames.get('left_out', 0),
    missing=frames.get('missing', []),
    seconds=seconds,
    new_frames=new_frames,
    already=already,
  )


@contextlib.contextmanager
def _clear_messages(plan: Plan) -> Iterator[None]:
  """Turns what a disk can do to us into one sentence."""
  try:
    yield
  except (OSError, RuntimeError) as e:
    # array_record raises RuntimeError with the system's words.
    text = str(e)
    if getattr(e, 'errno', 0) == errno.ENOSPC or 'No space left' in text:
      raise UserError(
        f'the disk of {plan.root} is full; free some space and run the same '
        'command again: finished parts are kept'
      ) from e
    if (
      isinstance(e, PermissionError)
      or any(words in text for words in ('Read-only file', 'Permission denied'))
      or getattr(e, 'errno', 0) == errno.EROFS
    ):
      raise UserError(
        f'cannot write to {plan.root}: {e}; give a --data_dir that you may '
        'write to'
      ) from e
    raise


# ==============================================================================
# What the user reads
# ==============================================================================


def describe(plan: Plan) -> str:
  """Returns what a conversion would do, for --dry_run."""
  items = [item for part in plan.parts for item in part]
  splits: dict[str, int] = {}
  for item in items:
    key = item.split or f'by hash ({plan.test_fraction:g} test)'
    splits['by lists' if plan.lists else key] = splits.get(key, 0) + 1
  options = ', '.join(f'{k}={v}' for k, v in plan.options['options'].items())
  lines = [
    f'would convert {len(items)} items in {len(plan.parts)} parts '
    f'with the {plan.options["source"]} source ({options})',
    'splits: ' + ', '.join(f'{k}: {n} items' for k, n in splits.items()),
    f'into {plan.root}/frames/{plan.version} and clips/{plan.version}',
    f'estimated size {plan.bytes / 2**20:.0f} MiB{_free(plan)}',
  ]
  lines += [f'  {item.id}' for item in items[:20]]
  if len(items) > 20:
    lines.append(f'  ... and {len(items) - 20} more')
  return '\n'.join(lines)


def _free(plan: Plan) -> str:
  """Returns the room that a local target has, in words."""
  if records.is_remote(plan.root):
    return ''
  existing = plan.root.resolve()
  while not existing.exists():
    existing = existing.parent
  return f', free {shutil.disk_usage(existing).free / 2**20:.0f} MiB'


def report(summary: Summary) -> str:
  """Returns the closing table."""
  rate = summary.new_frames / max(summary.seconds, 1e-6)
  head = ('split', 'clips', 'frames', 'MiB', 'replaced')
  rows = [
    (
      split,
      str(s.clips),
      str(s.frames),
      f'{s.bytes / 2**20:.1f}',
      str(s.replaced),
    )
    for split, s in sorted(summary.splits.items())
  ]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  lines = [
    '  '.join(cell.rjust(w) for cell, w in zip(row, widths, strict=True))
    for row in (head, *rows)
  ]
  if summary.already:
    lines.append(
      f'already converted: {summary.folder} {summary.version} (give '
      '--overwrite to convert again)'
    )
  else:
    lines.append(
      f'{summary.folder} {summary.version}: {summary.new_frames} frames in '
      f'{summary.seconds:.0f} s, {rate:.0f} frames/s'
    )
  if summary.left_out:
    lines.append(f'clips left out by --splits or --split: {summary.left_out}')
  if summary.missing:
    lines.append(
      f'ids of --splits without a clip: {len(summary.missing)}, for instance '
      + ', '.join(summary.missing[:3])
    )
  if summary.skipped:
    lines.append(f'skipped items: {len(summary.skipped)}')
    lines += [f'  {item}: {why}' for item, why in summary.skipped[:20]]
    if len(summary.skipped) > 20:
      lines.append('  ... all of them are in manifest.json')
  return '\n'.join(lines)
