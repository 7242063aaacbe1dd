"""Turns pictures and cameras of posed sequences into clips."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from absl import logging
from etils import epath

from xfactor.data import files, images, sources
from xfactor.errors import UserError
from xfactor.geometry import cameras

_NAMED = 5  # Maximum number of names in a message.


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
  """

  picture: epath.Path | bytes
  name: str
  intrinsics: np.ndarray | None = None
  world_to_camera: np.ndarray | None = None
  timestamp: float | None = None

  @property
  def posed(self) -> bool:
    return self.intrinsics is not None and self.world_to_camera is not None


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
  """

  source: str
  size: int | None = 256
  quality: int = 95
  min_length: int = 10
  max_megapixels: int = images.MAX_MEGAPIXELS

  def _clip(self, id: str, views: Iterable[View]) -> sources.Clip:
    """Calls `make_clip` with the options of the source."""
    return make_clip(
      id,
      views,
      size=self.size,
      quality=self.quality,
      min_length=self.min_length,
      max_megapixels=self.max_megapixels,
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
) -> sources.Clip:
  """Returns the clip of a posed sequence.

  Unreadable frames are skipped. If at least half of the others have a camera,
  frames without one are skipped too; otherwise the clip has no cameras.

  Args:
    id: Id of the clip.
    views: Views in time order.
    size: Side of the central squares in pixels, or None for whole pictures.
    quality: Quality of re-encoded JPEGs.
    min_length: Minimum number of frames.
    max_megapixels: Maximum size of pictures.

  Raises:
    UserError: If fewer than `min_length` frames remain, or whole pictures have
      different sizes; the message names the first unreadable frame.
  """
  kept: list[View] = []
  fitted: list[images.Fitted] = []
  broken: list[str] = []
  total = 0
  for view in views:
    total += 1
    try:
      picture = images.fit(_bytes(view.picture), size, quality, max_megapixels)
    except (images.ImageError, OSError) as error:
      broken.append(f'{view.name} ({error})')
      continue
    # Drops the picture: a sequence can have hundreds of large ones.
    kept.append(dataclasses.replace(view, picture=b''))
    fitted.append(picture)
  posed = [view.posed for view in kept]
  use_cameras = any(posed) and 2 * sum(posed) >= len(kept)
  if use_cameras and not all(posed):
    fitted = [f for f, ok in zip(fitted, posed, strict=True) if ok]
    kept = [view for view in kept if view.posed]
  what = f'{len(broken)} cannot be read' if broken else ''
  if use_cameras and (lost := len(posed) - len(kept)):
    what += f'{" and " if what else ""}{lost} have no camera'
  named = f', the first: {broken[0]}' if broken else ''
  if len(kept) < max(min_length, 1):
    raise UserError(
      f'{id} has {len(kept)} usable frames and min_length={min_length}'
      + (f'; of {total} {what}{named}' if what else '')
    )
  if what:
    logging.warning('%s: of %d frames %s%s', id, total, what, named)
  sizes = {(f.height, f.width) for f in fitted}
  if len(sizes) > 1:
    raise UserError(
      f'{id} has pictures of different sizes ({_sizes(sizes)}); give --size to '
      'crop and resize them'
    )
  times = [view.timestamp for view in kept]
  return sources.Clip(
    id=id,
    frames=[f.data for f in fitted],
    height=fitted[0].height,
    width=fitted[0].width,
    timestamps=None if None in times else np.array(times, np.float64),
    intrinsics=_intrinsics(kept, fitted, size) if use_cameras else None,
    world_to_camera=(
      np.stack([view.world_to_camera for view in kept]).astype(np.float32)
      if use_cameras
      else None
    ),
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


def _intrinsics(
  views: Sequence[View], fitted: Sequence[images.Fitted], size: int | None
) -> np.ndarray:
  """Returns float32 [N, 4] normalised intrinsics of the kept frames."""
  out = []
  for view, frame in zip(views, fitted, strict=True):
    intrinsics = np.asarray(view.intrinsics, np.float64)
    if size is not None:
      intrinsics = cameras.crop_intrinsics(
        intrinsics, frame.source_height, frame.source_width
      )
    out.append(intrinsics)
  return np.stack(out).astype(np.float32)


def _sizes(sizes: Iterable[tuple[int, int]]) -> str:
  return ', '.join(f'{width} x {height}' for height, width in sorted(sizes))
