"""Checks single files, clips and frames of converted data.

`verify` calls this in worker processes, per file or range of records.
"""

import collections
import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from xfactor.data import files, images, looks
from xfactor.data.records import codec, shards

_EXAMPLES = 3  # Kept per kind of problem.
_ORTHONORMAL = 1e-3
_FOCAL = (0.2, 20.0)  # In units of image width or height.
_PRINCIPAL = (-0.5, 1.5)


class Problems:
  """Counts and examples of problems.

  Attributes:
    counts: Number of problems by kind (a key of `findings.REMEDIES`).
    examples: First few problems by kind: file, clip and description.
  """

  def __init__(self):
    self.counts: dict[str, int] = collections.Counter()
    self.examples: dict[str, list[str]] = collections.defaultdict(list)

  def add(self, kind: str, where: object, what: str) -> None:
    """Records one problem."""
    self.counts[kind] += 1
    if len(self.examples[kind]) < _EXAMPLES:
      self.examples[kind].append(f'{where}: {what}')

  def merge(self, other: 'Problems') -> None:
    """Adds all problems of `other`."""
    for kind, count in other.counts.items():
      self.counts[kind] += count
      room = _EXAMPLES - len(self.examples[kind])
      self.examples[kind] += other.examples[kind][:room]

  def __len__(self) -> int:
    return sum(self.counts.values())


def read_file(
  path: str, wanted: shards.Shard
) -> tuple[Problems, tuple[int, str]]:
  """Checks a shard; returns its number of readable records and its sha256."""
  problems = Problems()
  try:
    size, sha256 = epath.Path(path).stat().length, files.sha256(path)
  except FileNotFoundError:
    problems.add('missing file', path, 'does not exist')
    return problems, (0, '')
  except OSError as e:
    problems.add('damaged file', path, str(e))
    return problems, (0, '')
  if size != wanted.bytes:
    what = f'{size} bytes instead of {wanted.bytes}'
    problems.add('damaged file', path, what)
  elif sha256 != wanted.sha256:
    what = f'sha256 {sha256} instead of {wanted.sha256}'
    problems.add('checksum', path, what)
  try:
    with shards.open_shard(path) as reader:
      found = reader.num_records()
  except RuntimeError as e:
    if not problems:
      problems.add('damaged file', path, str(e))
    return problems, (0, sha256)
  if found != wanted.records:
    what = f'{found} records instead of {wanted.records}'
    problems.add('record count', path, what)
  return problems, (min(found, wanted.records), sha256)


@dataclasses.dataclass(frozen=True)
class Range:
  """Records `start` to `stop` of a shard.

  `first` is the index of the shard's first record within the split.
  """

  path: str
  start: int
  stop: int
  first: int

  def read(self, problems: Problems) -> Iterator[tuple[int, bytes]]:
    """Yields (index within the shard, bytes) of each readable record."""
    with shards.open_shard(self.path) as reader:
      for i in range(self.start, self.stop):
        try:
          yield i, reader.read([i])[0]
        except RuntimeError as e:
          problems.add('unreadable record', self.path, f'record {i}: {e}')


def read_clips(
  task: Range,
) -> tuple[Problems, tuple[list[codec.Clip], int]]:
  """Checks each clip on its own.

  Returns the clips without their arrays, to save memory, and the number of
  clips with cameras.
  """
  problems = Problems()
  clips, posed = [], 0
  for i, record in task.read(problems):
    try:
      clip = codec.decode_clip(record)
    except Exception as e:  # Protobuf raises various types on bad bytes.
      problems.add('unreadable record', task.path, f'record {i}: {e!r}')
      continue
    for kind, what in _check_clip(clip):
      problems.add(kind, task.path, f'clip {clip.id!r}: {what}')
    posed += clip.intrinsics is not None and clip.world_to_camera is not None
    bare = dict.fromkeys(('timestamps', 'intrinsics', 'world_to_camera'))
    clips.append(dataclasses.replace(clip, **bare))
  return problems, (clips, posed)


def _check_clip(clip: codec.Clip) -> Iterator[tuple[str, str]]:
  """Yields (kind, description) of problems with timestamps and cameras."""
  for kind, key, check in (
    ('timestamps', 'timestamps', _check_timestamps),
    ('camera', 'intrinsics', _check_intrinsics),
    ('camera', 'world_to_camera', _check_poses),
  ):
    array = getattr(clip, key)
    if array is None:
      continue
    if len(array) != clip.num_frames:
      what = f'{len(array)} for {clip.num_frames} frames'
    elif not np.isfinite(array).all():
      frame = np.argwhere(~np.isfinite(array))[0, 0]
      what = f'frame {frame} is not finite'
    else:
      what = check(array.astype(np.float64))
    if what:
      yield kind, f'{key}: {what}'


def _check_timestamps(times: np.ndarray) -> str:
  bad = np.flatnonzero(np.diff(times) <= 0)
  return (
    f'frame {bad[0] + 1} is not later than the previous one' if len(bad) else ''
  )


def _check_intrinsics(intrinsics: np.ndarray) -> str:
  for what, columns, (low, high) in (
    ('focal length', intrinsics[:, :2], _FOCAL),
    ('principal point', intrinsics[:, 2:], _PRINCIPAL),
  ):
    bad = np.flatnonzero(((columns < low) | (columns > high)).any(-1))
    if len(bad):
      found = ', '.join(f'{value:.4g}' for value in columns[bad[0]])
      return (
        f'frame {bad[0]} has the {what} {found}, outside {low:g}..{high:g} of '
        "the image's size"
      )
  return ''


def _check_poses(poses: np.ndarray) -> str:
  rotation = poses[:, :, :3]
  product = np.einsum('nij,nkj->nik', rotation, rotation)
  error = np.abs(product - np.eye(3)).max((1, 2))
  determinant = np.linalg.det(rotation)
  bad = (error > _ORTHONORMAL) | (np.abs(determinant - 1) > _ORTHONORMAL)
  if not bad.any():
    return ''
  frame = np.flatnonzero(bad)[0]
  return (
    f'frame {frame} has an invalid rotation: R R^T is {error[frame]:.2g} from '
    f'the identity, the determinant is {determinant[frame]:.4g}'
  )


def read_frames(
  task: Range, clips: Sequence[codec.Clip], depth: bool
) -> tuple[Problems, np.ndarray]:
  """Checks frames of some clips; returns hashes of the pictures.

  Those are uint64 [2, frames]: of their bytes, 0 if a picture cannot be read,
  and of their looks, 0 for pictures that are not compared.
  """
  problems = Problems()
  hashes = np.zeros((2, task.stop - task.start), np.uint64)
  begin, end = task.first + task.start, task.first + task.stop
  owner = {
    frame: clip
    for clip in clips
    for frame in range(
      max(clip.first_frame, begin),
      min(clip.first_frame + clip.num_frames, end),
    )
  }
  for i, record in task.read(problems):
    clip = owner.get(task.first + i)
    where = f'{task.path}: record {i}'
    compared = False
    if clip is not None:
      frame = task.first + i - clip.first_frame
      where += f', frame {frame} of clip {clip.id!r}'
      compared = frame % looks.EVERY == 0
    if checked := _check_frame(record, clip, depth, where, problems):
      image, rgb = checked
      digest = hashlib.blake2b(image, digest_size=8).digest()
      hashes[0, i - task.start] = int.from_bytes(digest, 'little')
      if compared:
        hashes[1, i - task.start] = looks.look(rgb)
  return problems, hashes


def _check_frame(
  record: bytes,
  clip: codec.Clip | None,
  depth: bool,
  where: str,
  problems: Problems,
) -> tuple[bytes, np.ndarray] | None:
  """Checks the record of one frame; returns its picture, encoded and not."""
  try:
    image = codec.decode_frame(record)
    rgb = images.decode(image)
    height, width = rgb.shape[:2]
  except (ValueError, images.ImageError) as e:
    problems.add('frame', where, str(e))
    return None
  if clip is not None and (height, width) != (clip.height, clip.width):
    what = f'{height} x {width} instead of {clip.height} x {clip.width} pixels'
    problems.add('frame size', where, what)
  if depth and (what := _check_depth(record, height, width)):
    problems.add('depth', where, what)
  return image, rgb


def _check_depth(record: bytes, height: int, width: int) -> str:
  """Describes what is wrong with a frame's depth; '' if nothing is."""
  try:
    png = codec.decode_frame(record, 'depth')
    with Image.open(io.BytesIO(png), formats=('PNG',)) as image:
      image.load()
      if image.mode.startswith('I') and image.size == (width, height):
        return ''
      return (
        f'{image.height} x {image.width} pixels of mode {image.mode} instead '
        f'of {height} x {width} of 16 bits'
      )
  except (ValueError, OSError, SyntaxError) as e:
    return str(e)
