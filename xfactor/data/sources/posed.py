"""Turns pictures and cameras of posed sequences into clips."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from xfactor.data import files, images, naming, sources
from xfactor.data.formats import lens
from xfactor.data.sources import framing
from xfactor.errors import UserError

_NAMED = 5  # Maximum number of names in a message.
_BLACK = 12  # Levels.
# Why a clip has no cameras.
TOO_FEW = 'fewer frames than min_posed have one'


@dataclasses.dataclass(frozen=True)
class View:
  """A picture of a sequence and its camera (OpenCV), as far as known.

  Attributes:
    picture: File, local or gs://, or encoded bytes.
    name: Name for messages.
    intrinsics: [4] (fx, fy, cx, cy), divided by the width and height of the
      whole picture, or None if unknown.
    world_to_camera: [3, 4] [R|t], or None if unknown.
    timestamp: Seconds, or None if unknown.
    camera: The camera in place of `intrinsics`, if the size of its pictures and
      its distortion are known.
  """

  picture: epath.Path | bytes
  name: str
  intrinsics: np.ndarray | None = None
  world_to_camera: np.ndarray | None = None
  timestamp: float | None = None
  camera: lens.Camera | None = None

  @property
  def posed(self) -> bool:
    return self.any_camera is not None and self.world_to_camera is not None

  @property
  def any_camera(self) -> lens.Camera | None:
    """The camera, for pictures of any size if these are unknown."""
    if self.camera is not None or self.intrinsics is None:
      return self.camera
    return lens.Camera('PINHOLE', 0, 0, self.intrinsics, np.zeros(0))


@dataclasses.dataclass(frozen=True)
class Source(sources.Source):
  """Base class of sources of picture sequences.

  Attributes:
    source: Folder of the data set.
    size: Width and height of the centre-cropped frames; None keeps whole
      pictures.
    quality: JPEG quality.
    min_length: Minimum number of frames; shorter sequences are skipped.
    max_megapixels: Maximum size of pictures, millions of pixels; larger ones
      count as unreadable.
    min_posed: Minimum share of frames with a camera. A clip with fewer loses
      its cameras; any other clip loses its frames without a camera.
    undistort: Whether to undo the distortion of lenses, where it is known; None
      does so for fisheye lenses.
  """

  source: str
  size: int | None = 256
  quality: int = 95
  min_length: int = 10
  max_megapixels: int = images.MAX_MEGAPIXELS
  min_posed: float = 0.5
  undistort: bool | None = None

  def _clip(
    self, id: str, views: Iterable[View], **options: Any
  ) -> sources.Clip:
    """Calls `make_clip` with the options of the source."""
    options = {'unposed': 'no camera is known'} | options
    return make_clip(
      id,
      views,
      size=self.size,
      quality=self.quality,
      min_length=self.min_length,
      max_megapixels=self.max_megapixels,
      min_posed=self.min_posed,
      undistort=self.undistort,
      **options,
    )


def folder(source: str, expected: str) -> epath.Path:
  """Returns the source folder of a data set.

  Args:
    source: Path given by the user.
    expected: Description of the expected layout.

  Raises:
    UserError: If there is no such folder.
  """
  path = files.data_folder(source)
  if not path.is_dir():
    raise UserError(f'there is no folder {source}; expected {expected}')
  return path


def listed(
  folder: epath.Path, problems: list[sources.Item]
) -> list[epath.Path]:
  """Returns what is in a folder, sorted.

  If it cannot be listed, adds an item to `problems` that says so, once.
  """
  try:
    return sorted(folder.iterdir())
  except OSError as error:
    item = sources.Item(naming.clip_id(folder.name), problem=str(error))
    if item not in problems:
      problems.append(item)
    return []


def wrong_layout(path: epath.Path, expected: str) -> UserError:
  """Returns an error with the expected and the actual content of a folder."""
  names = sorted(p.name for p in path.iterdir())
  found = ', '.join(names[:_NAMED]) or 'nothing'
  more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
  return UserError(f'{path} holds {found}{more}; expected {expected}')


def make_clip(
  id: str,
  views: Iterable[View],
  *,
  size: int | None,
  quality: int = 95,
  min_length: int = 1,
  max_megapixels: int = images.MAX_MEGAPIXELS,
  min_posed: float = 0.5,
  undistort: bool | None = None,
  drop_black: bool = False,
  unposed: str | None = None,
  notes: dict[str, int] | None = None,
) -> sources.Clip:
  """Returns the clip of a posed sequence.

  Unreadable frames are skipped. Frames without a camera are skipped if at least
  `min_posed` of all have one; otherwise the clip has no cameras.

  Args:
    id: Id of the clip.
    views: Views in time order.
    size: Side of the central squares in pixels, or None for whole pictures.
    quality: Quality of re-encoded JPEGs.
    min_length: Minimum number of frames.
    max_megapixels: Maximum size of pictures.
    min_posed: Minimum share of frames with a camera.
    undistort: As in `framing.frame`.
    drop_black: Whether to skip frames that are black all over.
    unposed: Why no frame has a camera, if so and unexpected.
    notes: What was lost already; see `sources.Clip`.

  Raises:
    UserError: If fewer than `min_length` frames remain, or whole pictures have
      different sizes; the message names the first unreadable frame.
  """
  kept: list[View] = []
  framed: list[framing.Framed] = []
  lost: dict[str, list[str]] = collections.defaultdict(list)
  total = 0
  for view in views:
    total += 1
    try:
      frame = framing.frame(
        _bytes(view.picture),
        view.any_camera,
        view.world_to_camera,
        size=size,
        quality=quality,
        max_megapixels=max_megapixels,
        undistort=undistort,
      )
    except (images.ImageError, OSError) as error:
      lost['cannot be read'].append(f'{view.name} ({error})')
      continue
    except framing.CameraError as error:
      lost['have the camera of another size'].append(f'{view.name} ({error})')
      continue
    if drop_black and _is_black(frame.picture):
      lost['are black'].append(view.name)
      continue
    # Drops the picture: a sequence can have hundreds of large ones.
    kept.append(dataclasses.replace(view, picture=b''))
    framed.append(frame)
  first = next((names[0] for names in lost.values()), None)
  notes = dict(notes or {})
  posed = sum(view.posed for view in kept)
  use_cameras = posed > 0 and posed >= min_posed * len(kept)
  if use_cameras:
    lost['have no camera'] += [v.name for v in kept if not v.posed]
    framed = [f for f, v in zip(framed, kept, strict=True) if v.posed]
    kept = [view for view in kept if view.posed]
  else:
    why = TOO_FEW if posed else unposed
    if why is not None:
      notes[f'clips without cameras: {why}'] = 1
  what = ' and '.join(f'{len(n)} {why}' for why, n in lost.items() if n)
  named = f', the first: {first}' if first else ''
  if len(kept) < max(min_length, 1):
    raise UserError(
      f'{id} has {len(kept)} usable frames and min_length={min_length}'
      + (f'; of {total} {what}{named}' if what else '')
    )
  if what:
    logging.warning('%s: of %d frames %s%s', id, total, what, named)
  if posed and not use_cameras:
    logging.warning(
      '%s: only %d of %d frames have a camera, fewer than min_posed=%g: the '
      'clip has no cameras',
      *(id, posed, len(kept), min_posed),
    )
  pictures = [frame.picture for frame in framed]
  sizes = {(p.height, p.width) for p in pictures}
  if len(sizes) > 1:
    raise UserError(
      f'{id} has pictures of different sizes ({_sizes(sizes)}); give --size to '
      'crop and resize them'
    )
  notes |= {f'frames skipped: {why}': len(n) for why, n in lost.items() if n}
  for what, field in (
    ('clips without distortion, which was undone', 'undistorted'),
    ('clips whose cameras were turned with the pictures', 'turned'),
  ):
    if any(getattr(frame, field) for frame in framed):
      notes[what] = 1
  times = [view.timestamp for view in kept]
  return sources.Clip(
    id=id,
    frames=[picture.data for picture in pictures],
    height=pictures[0].height,
    width=pictures[0].width,
    timestamps=None if None in times else np.array(times, np.float64),
    intrinsics=_stack(frame.intrinsics for frame in framed)
    if use_cameras
    else None,
    world_to_camera=_stack(frame.world_to_camera for frame in framed)
    if use_cameras
    else None,
    notes=notes,
  )


def bundle(
  name: str, clips: Iterable[Callable[[], sources.Clip]]
) -> Iterator[sources.Clip]:
  """Yields the usable clips of an item with many clips.

  Raises:
    UserError: After all other clips, if some are unusable.
  """
  total, failed = 0, []
  for total, make in enumerate(clips, 1):  # noqa: B007
    try:
      clip = make()
    except (UserError, images.ImageError) as error:
      failed.append(error)
    else:
      yield clip
  if failed:
    raise UserError(
      f'{len(failed)} of {total} sequences of {name} are skipped; the first '
      f'error: {failed[0]}'
    )


def _bytes(picture: epath.Path | bytes) -> bytes:
  return picture if isinstance(picture, bytes) else picture.read_bytes()


def _stack(arrays: Iterable[np.ndarray]) -> np.ndarray:
  return np.stack(list(arrays)).astype(np.float32)


def _is_black(picture: images.Fitted) -> bool:
  """Returns whether no pixel is brighter than the noise of a black JPEG."""
  # Only such pictures compress this well; others need not be decoded.
  if len(picture.data) > 0.05 * picture.height * picture.width + 1000:
    return False
  return int(images.decode(picture.data).max()) < _BLACK


def _sizes(sizes: Iterable[tuple[int, int]]) -> str:
  return ', '.join(f'{width} x {height}' for height, width in sorted(sizes))
