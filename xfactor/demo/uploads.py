"""Checks uploads of visitors for size and file format."""

import dataclasses
import io
from collections.abc import Sequence

import av
import numpy as np
from etils import epath
from jaxtyping import UInt8

from xfactor.data import images
from xfactor.data.formats import video as video_lib
from xfactor.data.sources import video
from xfactor.errors import UserError

_MOST_PIXELS = 4096 * 4096  # Pixels per frame.


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of one request.

  Attributes:
    megabytes: Size of one file in MB.
    seconds: Length of a video in seconds.
    frames: Number of frames to encode and render.
    pictures: Number of pictures of a scene.
  """

  megabytes: int = 200
  seconds: float = 120.0
  frames: int = 100
  pictures: int = 16


def video_frames(path: str, limits: Limits) -> int:
  """Returns the approximate number of frames of a video.

  Takes the length from the header, or, if that has none as in live recordings,
  from the packets, which are not decoded.

  Raises:
    UserError: If the container is unknown, or the video exceeds the limits.
  """
  name = epath.Path(path).name
  try:
    with video_lib.open_video(path) as container:
      if not container.streams.video:
        raise UserError(f'{name} has no video stream; choose a video')
      stream = video_lib.main_stream(name, container)
      seconds = float(container.duration or 0) / av.time_base
      rate = float(stream.average_rate or 30)
      pixels = stream.width * stream.height
      count = stream.frames or round(seconds * rate)
      if not seconds:
        count, seconds = _measure(container, stream, limits)
  except (av.FFmpegError, OSError) as e:
    raise UserError(
      f'{name} cannot be read as a video; convert it to mp4 and upload that'
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


def _measure(
  container: av.container.InputContainer,
  stream: av.VideoStream,
  limits: Limits,
) -> tuple[int, float]:
  """Returns frames and seconds by the packets; stops beyond the limits."""
  count, first, last = 0, None, 0.0
  for packet in container.demux(stream):
    if packet.pts is None:
      continue
    count += 1
    last = float(packet.pts * packet.time_base)
    first = last if first is None else first
    if last - first > limits.seconds or count > 240 * limits.seconds:
      break
  return count, last - (first or 0.0)


def check_pictures(paths: Sequence[str], limits: Limits) -> None:
  """Checks the file names and the number of a scene's pictures.

  Raises:
    UserError: If a file is not a picture, or there are too many.
  """
  for path in map(epath.Path, paths):
    if path.suffix.lower() not in video.IMAGE_SUFFIXES:
      raise UserError(
        f'{path.name} is not a picture ({", ".join(video.IMAGE_SUFFIXES)}); '
        'choose a picture'
      )
  if len(paths) > limits.pictures:
    raise UserError(
      f'the scene has {len(paths)} pictures and at most {limits.pictures} are '
      'taken; choose fewer'
    )


def read_picture(data: bytes) -> UInt8[np.ndarray, 'h w 3']:
  """Reads an uploaded picture.

  Raises:
    UserError: If it is not a picture, is damaged, or has too many pixels.
  """
  try:
    height, width, _ = images.stored_form(io.BytesIO(data))
    if height * width > _MOST_PIXELS:
      raise UserError(
        f'the picture has {width} x {height} pixels; make it smaller than '
        '4096 x 4096'
      )
    return images.read_image(io.BytesIO(data))
  except images.ImageError as e:
    raise UserError(
      'the file cannot be read as a picture; choose a JPEG, PNG, WebP, AVIF, '
      'TIFF or BMP picture'
    ) from e
