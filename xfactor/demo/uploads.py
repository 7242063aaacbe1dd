"""What visitors may hand in: bounded, and opened as what it says it is."""

import dataclasses
from collections.abc import Sequence

import av
from etils import epath

from xfactor.data.sources import video
from xfactor.errors import UserError

# What phones and cameras write; a playlist in disguise could name other files.
_CONTAINERS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif'
_MOST_PIXELS = 4096 * 4096  # Of a frame.


@dataclasses.dataclass(frozen=True)
class Limits:
  """Of one visitor's request.

  Attributes:
    megabytes: Of one file.
    seconds: Of a video.
    frames: That are encoded and drawn.
    pictures: Of a scene.
  """

  megabytes: int = 200
  seconds: float = 120.0
  frames: int = 100
  pictures: int = 16


def video_frames(path: str, limits: Limits) -> int:
  """About how many frames a video has, by its header.

  Raises:
    UserError: If it is no video of a known container, or beyond the limits.
  """
  name = epath.Path(path).name
  try:
    with av.open(path, options={'format_whitelist': _CONTAINERS}) as container:
      (stream, *_) = container.streams.video or [None]
      if stream is None:
        raise UserError(f'{name} has no pictures in it; choose a video')
      seconds = float(container.duration or 0) / av.time_base
      rate = float(stream.average_rate or 30)
      pixels = stream.width * stream.height
      count = stream.frames or round(seconds * rate)
  except (av.FFmpegError, OSError) as e:
    raise UserError(
      f'{name} is no video that can be read; convert it to mp4 and choose that'
    ) from e
  if seconds > limits.seconds or count > 240 * limits.seconds:
    raise UserError(
      f'{name} lasts {seconds:.0f} seconds and at most {limits.seconds:.0f} '
      'are taken; cut it'
    )
  if pixels > _MOST_PIXELS:
    raise UserError(
      f'{name} has frames of {stream.width} x {stream.height} pixels; make it '
      'smaller than 4096 x 4096'
    )
  return max(count, 1)


def check_pictures(paths: Sequence[str], limits: Limits) -> None:
  """Looks at the names of a scene's pictures.

  Raises:
    UserError: If one is of another kind of file, or they are too many.
  """
  for path in map(epath.Path, paths):
    if path.suffix.lower() not in video.IMAGE_SUFFIXES:
      raise UserError(
        f'{path.name} is no picture ({", ".join(video.IMAGE_SUFFIXES)}); '
        'choose one'
      )
  if len(paths) > limits.pictures:
    raise UserError(
      f'the scene has {len(paths)} pictures and at most {limits.pictures} are '
      'taken; choose fewer'
    )
