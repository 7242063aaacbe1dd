"""Reads frames from videos, pictures, folders and clips of data sets."""

import dataclasses
import difflib
import itertools
import os
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from xfactor.data import images, naming
from xfactor.data.formats import video as video_lib
from xfactor.data.records import folders
from xfactor.data.records import store as store_lib
from xfactor.data.sources import video
from xfactor.errors import UserError


@dataclasses.dataclass(frozen=True)
class Footage:
  """Frames taken from a video or another source.

  Attributes:
    frames: Frames of one size.
    numbers: Frame numbers in the source, counted from 0.
    times: Timestamps in seconds; None if the source has none.
  """

  frames: UInt8[np.ndarray, 'n h w 3']
  numbers: Int[np.ndarray, ' n']
  times: Float[np.ndarray, ' n'] | None

  def __len__(self) -> int:
    return len(self.frames)

  def nearest(self, number: int) -> int:
    """Returns the index of the frame whose number is nearest.

    Raises:
      UserError: If the number is before the first or after the last.
    """
    if not self.numbers[0] <= number <= self.numbers[-1]:
      raise UserError(
        f'frame {number} is not among the frames taken, {self.numbers[0]} to '
        f'{self.numbers[-1]}; choose the reference among them'
      )
    return int(np.abs(self.numbers - number).argmin())

  @property
  def fps(self) -> float | None:
    """Frame rate in frames per second; None without timestamps."""
    if self.times is None or len(self) < 2 or self.times[0] == self.times[-1]:
      return None
    return (len(self) - 1) / float(self.times[-1] - self.times[0])


def spread(count: int, most: int) -> Int[np.ndarray, ' n']:
  """Returns at most `most` of `count` indices, evenly spaced, with the ends."""
  return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def read(
  name: str,
  data_dir: str | os.PathLike[str],
  fit: Callable[[np.ndarray], UInt8[np.ndarray, 'h w 3']],
  *,
  first: int = 0,
  last: int | None = None,
  stride: int = 1,
  most: int = 100,
) -> Footage:
  """Reads frames of a video or another source.

  Args:
    name: A video, one or more pictures separated by commas, a folder of frames,
      or a clip of a converted data set, NAME/SPLIT/ID.
    data_dir: Folder of converted data sets.
    fit: Function that resizes a picture, uint8 [H, W, 3], to the final size.
    first: Number of the first frame to take.
    last: Number of the last frame; the end of the video if None.
    stride: Step between the frames to take.
    most: Largest number of frames, chosen evenly among these.

  Raises:
    UserError: If the source does not exist, cannot be read, or ends before
      `first`.
  """
  stop = None if last is None else last + 1
  pictures = enumerate(_pictures(name, data_dir))
  try:
    # Resize frame by frame: a long video at full size does not fit in memory.
    taken = [
      (number, time, fit(picture))
      for number, (time, picture) in itertools.islice(
        pictures, first, stop, stride
      )
    ]
  except images.ImageError as e:
    raise UserError(f'{e} ({name}); pass another picture') from e
  if not taken:
    raise UserError(
      f'{name} has no frames from number {first} to '
      f'{"its end" if last is None else last}; choose another range'
    )
  taken = [taken[i] for i in spread(len(taken), most)]
  numbers, times, frames = zip(*taken, strict=True)
  return Footage(
    np.stack(frames),
    np.array(numbers),
    None if None in times else np.array(times, float),
  )


def _pictures(
  name: str, data_dir: str | os.PathLike[str]
) -> Iterator[tuple[float | None, np.ndarray]]:
  """Yields timestamp and picture of every frame."""
  path = epath.Path(name).expanduser()
  suffix = path.suffix.lower()
  if ',' in name or suffix in video.IMAGE_SUFFIXES:
    for file in name.split(','):
      yield None, images.read_image(epath.Path(file.strip()).expanduser())
  elif path.is_dir():
    files = [
      file
      for file in path.iterdir()
      if file.suffix.lower() in video.IMAGE_SUFFIXES
      and not file.name.startswith('.')
    ]
    if not files:
      raise UserError(
        f'{path} holds no pictures ({", ".join(video.IMAGE_SUFFIXES)}); pass a '
        'folder of frames'
      )
    files.sort(key=lambda file: naming.natural(file.name))
    for file in files:
      yield None, images.read_image(file)
  elif path.exists() or suffix in video.VIDEO_SUFFIXES:
    for picture in video_lib.read_video(os.fspath(path)):
      yield picture.time, picture.rgb
  else:
    yield from _read_clip(name, data_dir)


def find(
  name: str, data_dir: str | os.PathLike[str]
) -> tuple[store_lib.FrameStore, int]:
  """Returns the split and the number in it of the clip NAME/SPLIT/ID.

  Raises:
    UserError: If there is no such clip.
  """
  parts = name.split('/', 2)
  if len(parts) < 3 or parts[0] not in folders.available(data_dir):
    raise UserError(
      f'{name} is not a file, a folder or a clip of a data set in {data_dir} '
      f'({", ".join(folders.available(data_dir)) or "which has none"}); pass a '
      'video, pictures separated by commas, a folder of frames or NAME/SPLIT/ID'
    )
  store = store_lib.open_split(data_dir, *parts[:2])
  ids = store.clip_ids()
  if parts[2] not in ids:
    near = difflib.get_close_matches(parts[2], ids, cutoff=0)
    raise UserError(
      f'{parts[0]}/{parts[1]} has no clip {parts[2]!r}; similar IDs: '
      f'{", ".join(near)}'
    )
  return store, ids.index(parts[2])


def _read_clip(
  name: str, data_dir: str | os.PathLike[str]
) -> Iterator[tuple[float | None, np.ndarray]]:
  store, number = find(name, data_dir)
  clip = store.clip(number)
  for i in range(clip.num_frames):
    (data,) = store.clip_frames(number, [i])
    time = None if clip.timestamps is None else float(clip.timestamps[i])
    yield time, images.decode(data)
