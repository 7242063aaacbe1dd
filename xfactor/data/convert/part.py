"""Converts one part of a data set: its clips into temporary shards."""

import dataclasses
import errno
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from xfactor.data import files, images, naming, sources
from xfactor.data.convert import plan as plan_lib
from xfactor.data.records import codec, shards
from xfactor.errors import UserError

# System errors that are not of one item.
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass
class Progress:
  """Counters that workers increment and the main process sums up.

  Each part has its own cells and one writer, so there are no locks that a
  killed worker could hold for ever.
  """

  items: Any
  frames: Any
  stop: Any

  @classmethod
  def make(cls, parts: int) -> 'Progress':
    context = multiprocessing.get_context('spawn')
    return cls(
      items=context.RawArray('q', parts),
      frames=context.RawArray('q', parts),
      stop=context.RawValue('b', 0),
    )


class _Stopped(Exception):
  """Raised in a worker if the main process has asked it to stop."""


class Outputs:
  """Files of one part: one of frames and one of clips for each split."""

  def __init__(self, work: epath.Path, stem: str):
    self._work = work
    self._stem = stem
    self._writers: dict[str, dict[str, shards.ShardWriter]] = {}
    self._depth: dict[str, bool] = {}
    self._encodings: set[str] = set()
    self._clips: list[dict[str, Any]] = []

  def _split(self, split: str) -> dict[str, shards.ShardWriter]:
    if split not in self._writers:
      self._depth[split] = True
      self._writers[split] = {
        kind: shards.ShardWriter(self._work / f'{self._stem}.{split}.{kind}')
        for kind in ('frames', 'clips')
      }
    return self._writers[split]

  def add(
    self,
    split: str,
    clip: codec.Clip,
    frames: Iterable[bytes],
    depth: bool,
    encodings: Iterable[str],
    **facts: Any,
  ) -> None:
    """Writes one clip and its frames' records to a split.

    Args:
      split: Name of the split.
      clip: Clip; its first frame is set here.
      frames: Records of the frames.
      depth: Whether they have depth.
      encodings: Formats of the pictures.
      **facts: Entries of the clip's row in the summary.
    """
    out = self._split(split)
    clip = dataclasses.replace(clip, first_frame=out['frames'].records)
    for record in frames:
      out['frames'].write(record)
    out['clips'].write(codec.encode_clip(clip))
    self._depth[split] &= depth
    self._encodings.update(encodings)
    self._clips.append(
      {
        **facts,
        'id': clip.id,
        'split': split,
        'frames': clip.num_frames,
        'height': clip.height,
        'width': clip.width,
        'posed': clip.world_to_camera is not None,
        'replaced': clip.replaced,
      }
    )

  def close(self) -> dict[str, Any]:
    """Finishes the files and returns a summary of them."""
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
    """Deletes the files."""
    for out in self._writers.values():
      for writer in out.values():
        writer.abort()


def _check_clip(clip: sources.Clip, item: sources.Item) -> None:
  """Raises ValueError if a clip is not as `sources.Clip` specifies."""
  n = len(clip.frames)
  problems = []
  if not naming.is_clip_id(clip.id):
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
    raise UserError(f'clip {clip.id!r} of {item.id!r}: {"; ".join(problems)}')


def part_stem(number: int) -> str:
  return f'part-{number:05d}'


def _write_part(
  source: sources.Source,
  plan: plan_lib.Plan,
  progress: Progress | None,
  number: int,
  items: Sequence[sources.Item],
) -> dict[str, Any]:
  """Converts one part and returns its summary, also stored as part-N.json."""
  stem = part_stem(number)
  out = Outputs(plan.work, stem)
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
      except (UserError, images.ImageError) as e:
        skipped.append((item.id, _one_line(e)))
      except Exception as e:
        e.add_note(f'while writing item {item.id!r}')
        raise
      if progress:
        progress.items[number] += 1
    part = out.close() | {
      'skipped': skipped,
      'left_out': left_out,
      'listed': listed,
    }
    files.write_json(plan.work / f'{stem}.json', part)
  except BaseException:
    out.abort()
    raise
  return part


def _clips(
  source: sources.Source, item: sources.Item
) -> Iterator[sources.Clip]:
  """Yields the clips of an item; raises UserError if it is unusable."""
  if item.problem is not None:
    raise UserError(item.problem)
  try:
    yield from source.clips(item)
  except UserError:
    raise
  except Exception as e:
    # Decoders and parsers of damaged files raise anything.
    if getattr(e, 'errno', None) in _FULL:
      raise
    logging.debug('Traceback of item %s:', item.id, exc_info=True)
    what = '' if isinstance(e, OSError) else f'{type(e).__name__}: '
    raise UserError(f'{item.id} cannot be read: {what}{e}') from e


def _one_line(error: Exception) -> str:
  # Names of files need not be text, which could not be printed.
  text = str(error).encode(errors='backslashreplace').decode()
  return ' '.join(text.split())


def _add_clip(
  out: Outputs, split: str, item: sources.Item, clip: sources.Clip
) -> None:
  depth = clip.depth or [None] * len(clip.frames)
  out.add(
    split,
    codec.Clip(
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
    map(codec.encode_frame, clip.frames, depth),
    clip.depth is not None,
    {
      'png' if frame.startswith(b'\x89PNG') else 'jpeg' for frame in clip.frames
    },
    item=item.id,
    group=item.group,
    notes=clip.notes,
  )


def read_part(
  plan: plan_lib.Plan, number: int, check: bool = True
) -> dict[str, Any] | None:
  """Returns the summary of a part that is done and intact, or None.

  Args:
    plan: The conversion.
    number: Number of the part.
    check: Whether to verify checksums; not in buckets, which keep their own.
  """
  path = plan.work / f'{part_stem(number)}.json'
  if not path.exists():
    return None
  try:
    part = files.read_json(path)
  except ValueError:
    return None
  for split in part['splits'].values():
    for kind in ('frames', 'clips'):
      shard = shards.Shard(**split[kind])
      file = plan.work / shard.file
      if not file.exists() or file.stat().length != shard.bytes:
        return None
      check = check and not files.is_remote(file)
      if check and files.sha256(file) != shard.sha256:
        return None
  return part


# First arguments of `do_part`, the same for all parts.
_job: tuple[Any, ...] = ()


def set_job(*job: Any) -> None:
  global _job
  _job = job


def work_on(
  number: int, items: Sequence[sources.Item], check: bool
) -> dict[str, Any]:
  return do_part(*_job, number, items, check)


def do_part(
  source: sources.Source,
  plan: plan_lib.Plan,
  progress: Progress | None,
  number: int,
  items: Sequence[sources.Item],
  check: bool,
) -> dict[str, Any]:
  """Returns the summary of a part, converting it unless it is done."""
  part = read_part(plan, number, check)
  if part is None:
    return _write_part(source, plan, progress, number, items)
  if progress:
    progress.items[number] = len(items)
  return part


def without_items(plan: plan_lib.Plan) -> plan_lib.Plan:
  """Returns a plan without its items, which are slow to copy to workers."""
  return dataclasses.replace(plan, parts=[])
