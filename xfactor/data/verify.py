"""Re-reads converted data sets completely and checks them.

Checks files against their manifests, records, frames, the order of the clips,
cameras and timestamps, the clip index, the evaluation index, whether a clip or
its pictures occur twice, in particular in two splits, and whether the cameras
of some clips fit their pictures.

Worker processes check files, clips and frames, a range of records at a time;
the main process holds a few numbers per clip and sixteen bytes per frame.
"""

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tqdm
from etils import epath

from xfactor import streams
from xfactor.data import (
  checks,
  duplicates,
  epipolar,
  files,
  findings,
  processes,
)
from xfactor.data.formats import npz
from xfactor.data.records import shards as shards_lib
from xfactor.data.records import store
from xfactor.errors import UserError

_RANGE = 2048  # Records per task.
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_EVAL_KEY = re.compile(r'views=(\d+),window=(\d+)(,random)?(?:,cameras)?')
_Map = Callable[..., Iterable[Any]]  # `map`, in this process or a pool.


def verify(
  folder: str | os.PathLike[str],
  workers: int | None = None,
  quiet: bool = False,
) -> findings.Report:
  """Checks all versions of converted data sets.

  Args:
    folder: DATA_DIR, or DATA_DIR/NAME for one data set.
    workers: Number of processes; 0 uses this one, None one per core.
    quiet: Whether to hide the progress bar.

  Raises:
    UserError: If the folder does not exist or holds no converted data set.
  """
  report = findings.Report()
  roots = _roots(files.data_folder(folder), report.notes)
  workers = os.cpu_count() if workers is None else workers
  with processes.pool(workers) as pool:
    for root in roots:
      for version in _versions(root):
        report.rows += _verify_version(root, version, pool.map, quiet)
  return report


def _versions(root: epath.Path) -> list[str]:
  """Returns the versions of a data set, complete or not, oldest first."""
  found = {
    path.name
    for config in ('frames', 'clips')
    if (root / config).is_dir()
    for path in (root / config).iterdir()
    if _VERSION.fullmatch(path.name)
  }
  return sorted(found, key=lambda v: tuple(map(int, v.split('.'))))


def _roots(folder: epath.Path, notes: list[str]) -> list[epath.Path]:
  """Returns the data sets of a folder; notes unfinished conversions."""
  if not folder.is_dir():
    raise UserError(
      f'there is no folder {folder}; give the --data_dir of a conversion, or '
      'the folder of one data set in it'
    )
  within = [folder]
  if not _versions(folder):
    within += sorted(path for path in folder.iterdir() if path.is_dir())
  for root in within:
    for path in sorted(root.glob('.incomplete-*')):
      notes.append(
        f'{path} is an unfinished conversion: run its command again to '
        'continue it, or delete the folder'
      )
  roots = [root for root in within if _versions(root)]
  if not roots:
    raise UserError(
      f'{folder} holds no converted data set; expected NAME/frames/VERSION and '
      'NAME/clips/VERSION in it; give the --data_dir of a conversion'
      + (f' ({notes[0]})' if notes else '')
    )
  return roots


@dataclasses.dataclass(frozen=True)
class _Split:
  """Entry of one split in a manifest."""

  clips: int
  frames: int
  replaced: int
  frames_digest: str
  index_sha256: str
  shards: tuple[shards_lib.Shard, ...]

  @classmethod
  def parse(cls, entry: dict[str, Any]) -> '_Split':
    own = {field.name: entry[field.name] for field in dataclasses.fields(cls)}
    shards = tuple(shards_lib.Shard(**shard) for shard in own.pop('shards'))
    return cls(**own, shards=shards)

  def facts(self) -> '_Split':
    """Returns the fields that the manifests of frames and clips share."""
    return dataclasses.replace(self, shards=())

  def records(self) -> int:
    return sum(shard.records for shard in self.shards)


def _manifest(
  folder: epath.Path, problems: checks.Problems
) -> dict[str, _Split] | None:
  """Returns the splits of a manifest, or None if it is unusable."""
  path = folder / 'manifest.json'
  try:
    manifest = files.read_json(path)
    if manifest['format'] == store.FORMAT:
      splits = manifest['splits'].items()
      return {split: _Split.parse(entry) for split, entry in splits}
    what = f'format {manifest["format"]} instead of {store.FORMAT}'
  except FileNotFoundError:
    what = 'is missing'
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    what = f'is not a manifest: {e!r}'
  problems.add('manifest', path, what)
  return None


def _check_counts(
  path: epath.Path, frames: _Split, clips: _Split, problems: checks.Problems
) -> None:
  """Checks that the manifests are consistent, each and together."""
  shards = [dataclasses.asdict(shard) for shard in frames.shards]
  for what, found, wanted in (
    ('facts of frames and clips', frames.facts(), clips.facts()),
    ('digest of the frames', files.digest(shards), frames.frames_digest),
    ('number of frames', frames.records(), frames.frames),
    ('number of clips', clips.records(), clips.clips),
  ):
    if found != wanted:
      problems.add('manifest', path, f'the {what}: {found} instead of {wanted}')


def _check_tfds(
  folder: epath.Path, splits: dict[str, _Split], problems: checks.Problems
) -> dict[str, Any]:
  """Checks the metadata of TFDS; returns the features of a record."""
  try:
    path = folder / 'dataset_info.json'
    for entry in files.read_json(path)['splits']:
      lengths = [int(length) for length in entry['shardLengths']]
      wanted = [shard.records for shard in splits[entry['name']].shards]
      if lengths != wanted:
        what = f'{entry["name"]} has different shards in manifest.json'
        problems.add('TFDS metadata', path, what)
    path = folder / 'features.json'
    return files.read_json(path)['featuresDict']['features']
  except (OSError, ValueError, KeyError, TypeError) as e:
    problems.add('TFDS metadata', path, f'cannot be used: {e!r}')
    return {}


def _verify_version(
  root: epath.Path, version: str, run: _Map, quiet: bool
) -> list[findings.Row]:
  """Checks a version; returns a row per split, plus one for other problems."""
  whole = findings.Row(root.resolve().name, version, '-')
  problems = whole.problems
  folders = [root / config / version for config in ('frames', 'clips')]
  manifests = [_manifest(folder, problems) for folder in folders]
  if None in manifests:
    return [whole]
  frames, clips = manifests
  features, _ = map(_check_tfds, folders, manifests, [problems] * 2)
  path = folders[1] / 'manifest.json'
  if frames.keys() != clips.keys():
    what = f'has splits {sorted(clips)}, but the frames have {sorted(frames)}'
    problems.add('manifest', path, what)
  splits = sorted(frames.keys() & clips.keys())
  found = {}
  with streams.progress(
    total=sum(frames[split].frames for split in splits),
    desc=f'{whole.name} {version}',
    unit='frame',
    disable=quiet,
  ) as bar:
    for split in splits:
      row = dataclasses.replace(whole, split=split, problems=checks.Problems())
      row.clips, row.frames = clips[split].clips, frames[split].frames
      shards = (*frames[split].shards, *clips[split].shards)
      row.bytes = sum(shard.bytes for shard in shards)
      _check_counts(path, frames[split], clips[split], row.problems)
      found[split] = _read_clips_of(row, folders[1], clips[split], run)
      _check_order(folders[1], found[split], frames[split].records())
      _check_index(folders[1], found[split], clips[split].index_sha256)
      depth = 'depth' in features
      _read_frames_of(found[split], folders[0], frames[split], depth, run, bar)
  _check_evaluation(folders[1], found, problems)
  whole_files = not (
    problems or any(out.row.problems for out in found.values())
  )
  repeated = duplicates.check_repeated(list(found.values()))
  if whole_files:
    root = root.resolve()
    opened = {
      split: store.open_split(root.parent, root.name, split, version)
      for split in splits
    }
    for split in splits:
      _check_fit(opened[split], found[split].row, run)
    duplicates.check_looks(
      list(found.values()),
      lambda split, clip, frame: opened[split].clip_frames(clip, [frame])[0],
      repeated,
    )
  return [*(out.row for out in found.values()), *([whole] if problems else [])]


def _check_fit(opened: store.FrameStore, row: findings.Row, run: _Map) -> None:
  """Checks whether the cameras of some clips fit their pictures."""
  if not row.posed:
    return
  clips = epipolar.chosen(opened)
  errors = list(run(epipolar.error, itertools.repeat(opened), clips))
  for clip, error in zip(clips, errors, strict=True):
    if error is not None and error > epipolar.LIMIT:
      what = (
        f'matched features are {error:.1f} pixels at {epipolar.SIDE} off where '
        'the cameras see them'
      )
      where = f'clip {opened.clip_id(clip)!r} of {row.split}'
      row.problems.add('cameras and pictures', where, what)
  known = [error for error in errors if error is not None]
  row.epipolar = float(np.median(known)) if known else None


def _gather(
  run: _Map, function: Callable[..., Any], problems: checks.Problems, *args: Any
) -> Iterator[Any]:
  """Maps a function that returns (problems, result); yields the results."""
  for new, out in run(function, *args):
    problems.merge(new)
    yield out


def _check_files(
  folder: epath.Path, split: _Split, problems: checks.Problems, run: _Map
) -> list[checks.Range]:
  """Checks the shards; returns the ranges of readable records."""
  paths = [os.fspath(folder / shard.file) for shard in split.shards]
  owner = {shard.sha256: shard.file for shard in split.shards}
  ranges, first = [], 0
  facts = _gather(run, checks.read_file, problems, paths, split.shards)
  for path, shard, (found, sha256) in zip(
    paths, split.shards, facts, strict=True
  ):
    if sha256 != shard.sha256 and sha256 in owner:
      what = f'has the content of {owner[sha256]}'
      problems.add('damaged file', path, what)
    # In a bucket, each range would download its whole shard.
    step = max(shard.records, 1) if files.is_remote(path) else _RANGE
    for start in range(0, found, step):
      ranges.append(checks.Range(path, start, min(start + step, found), first))
    first += shard.records
  return ranges


def _read_clips_of(
  row: findings.Row, folder: epath.Path, split: _Split, run: _Map
) -> findings.Found:
  """Checks and returns the clips of a split, without frame hashes."""
  found = findings.Found(row, [], *np.zeros((2, 0), np.uint64))
  ranges = _check_files(folder, split, row.problems, run)
  for clips, posed in _gather(run, checks.read_clips, row.problems, ranges):
    found.clips += clips
    row.posed += posed
  return found


def _read_frames_of(
  found: findings.Found,
  folder: epath.Path,
  split: _Split,
  depth: bool,
  run: _Map,
  bar: tqdm.tqdm,
) -> None:
  """Checks the frames of a split and stores their hashes."""
  problems = found.row.problems
  ranges = _check_files(folder, split, problems, run)
  begin, end = found.spans()
  clips = []
  for r in ranges:
    own = (begin < r.first + r.stop) & (end > r.first + r.start)
    clips.append([found.clips[i] for i in np.flatnonzero(own)])
  found.hashes, found.looks = np.zeros((2, split.records()), np.uint64)
  depths = itertools.repeat(depth)
  hashes = _gather(run, checks.read_frames, problems, ranges, clips, depths)
  for r, part in zip(ranges, hashes, strict=True):
    own = slice(r.first + r.start, r.first + r.stop)
    found.hashes[own], found.looks[own] = part
    bar.update(part.shape[1])


def _check_order(
  folder: epath.Path, found: findings.Found, frames: int
) -> None:
  """Checks that the clips tile the frames of the split."""
  split, problems = found.row.split, found.row.problems
  names = [f'clip {clip.id!r} of {split}' for clip in found.clips]
  names.append(f'the end of {split}')
  begins, ends = found.spans()
  for name, begin, end in zip(
    names, [*begins, frames], [0, *ends], strict=True
  ):
    if begin != end:
      what = f'{name} is at frame {begin} instead of {end}'
      problems.add('clip order', folder, what)
  for name, empty in zip(names, ends <= begins, strict=False):
    if empty:
      problems.add('clip order', folder, f'{name} has no frames')


def _check_index(
  folder: epath.Path, found: findings.Found, sha256: str
) -> None:
  """Checks the clip index against its checksum and the clips."""
  path = folder / f'clips-{found.row.split}.index.npz'
  keys = ('num_frames', 'height', 'width')
  try:
    data = path.read_bytes()
    columns = npz.read(data)
    text = columns['id_bytes'].tobytes()
    bounds = itertools.pairwise(columns['id_offsets'].tolist())
    ids = [text[begin:end].decode() for begin, end in bounds]
    rows = list(zip(ids, *(columns[key] for key in keys), strict=True))
  except Exception as e:  # NumPy raises various types on bad bytes.
    found.row.problems.add('clip index', path, f'cannot be read: {e!r}')
    return
  if hashlib.sha256(data).hexdigest() != sha256:
    what = 'its sha256 differs from the manifest'
    found.row.problems.add('clip index', path, what)
  for row, clip in itertools.zip_longest(rows, found.clips):
    wanted = clip and (clip.id, clip.num_frames, clip.height, clip.width)
    if row != wanted:
      what = f'has {_plain(row)} instead of {_plain(wanted)}'
      found.row.problems.add('clip index', path, what)


def _plain(row: tuple[Any, ...] | None) -> str:
  """Describes a row of the clip index."""
  if row is None:
    return 'nothing'
  return 'clip {!r} of {} frames of {} x {}'.format(*row)


def _check_evaluation(
  folder: epath.Path,
  found: dict[str, findings.Found],
  problems: checks.Problems,
) -> None:
  """Checks the files with the fixed evaluation examples."""
  for path in sorted(folder.glob('eval_index-*.json')):
    split = path.name.removeprefix('eval_index-').removesuffix('.json')
    if split not in found:
      problems.add('evaluation index', path, f'there is no split {split!r}')
      continue
    lengths = {clip.id: clip.num_frames for clip in found[split].clips}
    try:
      for key, examples in files.read_json(path).items():
        for clip, frames in examples:
          if what := _check_example(key, frames, lengths.get(clip)):
            what = f'{key}: clip {clip!r}: {what}'
            found[split].row.problems.add('evaluation index', path, what)
    except (OSError, ValueError, TypeError, AttributeError) as e:
      problems.add('evaluation index', path, f'cannot be used: {e!r}')


def _check_example(key: str, frames: list[int], length: int | None) -> str:
  """Describes what is wrong with an evaluation example; '' if nothing."""
  if not (numbers := _EVAL_KEY.fullmatch(key)):
    return 'the key is not views=N,window=M'
  views, window = map(int, numbers.groups()[:2])
  if length is None:
    return 'there is no such clip'
  chosen = sorted(frames) if numbers[3] else frames
  if len(frames) != views or chosen != sorted(set(frames)):
    how = 'different frames' if numbers[3] else 'frames in order'
    return f'{frames} are not {views} {how}'
  if chosen[0] < 0 or chosen[-1] >= length or chosen[-1] - chosen[0] >= window:
    return f'{frames} are not within {window} of the {length} frames'
  return ''
