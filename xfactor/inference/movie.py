"""Writes captioned pictures as a video, a GIF and a PNG strip."""

import contextlib
import fractions
import io
import math
from collections.abc import Iterator, Sequence

import av
import einops
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from xfactor.data import images
from xfactor.errors import UserError

BLACK, ORANGE = (0, 0, 0), (200, 80, 0)
_GAP = 4  # Pixels between pictures.
_GIF_TICK = 10  # Milliseconds; the time unit of the format.
_GIF_SHORTEST = 20  # Milliseconds; viewers slow down shorter frames.


def enlarge(
  picture: UInt8[np.ndarray, 'h w 3'], size: int
) -> UInt8[np.ndarray, '{size} ww 3']:
  """Resizes a picture to a height of `size`; whole factors repeat pixels."""
  height, width = picture.shape[:2]
  whole = size % height == 0
  how = Image.Resampling.NEAREST if whole else Image.Resampling.BICUBIC
  shape = max(1, round(width * size / height)), size
  return np.asarray(Image.fromarray(picture).resize(shape, how))


def caption(
  picture: UInt8[np.ndarray, 'h w 3'],
  text: str,
  colour: tuple[int, int, int] = BLACK,
) -> UInt8[np.ndarray, 'hh w 3']:
  """Puts a line of text above a picture, in a smaller font if too long."""
  width = picture.shape[1]
  height = line_height(width)
  bar = Image.new('RGB', (width, height), 'white')
  font = ImageFont.load_default(0.7 * height)
  while font.getlength(text) > 0.95 * width and font.size > 1:
    font = ImageFont.load_default(0.9 * font.size)
  ImageDraw.Draw(bar).text(
    (width / 2, height / 2), text, fill=colour, font=font, anchor='mm'
  )
  return np.concatenate([np.asarray(bar), picture])


def line_height(width: int) -> int:
  """Returns the height in pixels of a caption for this width."""
  return max(14, width // 10)


def row(
  pictures: Sequence[UInt8[np.ndarray, 'h _ 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """Joins pictures of one height horizontally."""
  gap = np.full((len(pictures[0]), _GAP, 3), 255, np.uint8)
  parts = [part for picture in pictures for part in (gap, picture)]
  return np.concatenate(parts[1:], axis=1)


def column(
  pictures: Sequence[UInt8[np.ndarray, '_ w 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """Joins pictures of one width vertically."""
  turned = [einops.rearrange(x, 'h w c -> w h c') for x in pictures]
  return einops.rearrange(row(turned), 'w h c -> h w c')


def mp4(frames: UInt8[np.ndarray, 'n h w 3'], fps: float) -> bytes:
  """Encodes an MP4 video: H.264 if PyAV has the encoder, else MPEG-4.

  Odd sides are padded with white, since 4:2:0 colour needs even sides.
  """
  odd = [(0, n % 2) for n in frames.shape[1:3]]
  frames = np.pad(frames, [(0, 0), *odd, (0, 0)], constant_values=255)
  rate = fractions.Fraction(fps).limit_denominator(1000)
  h264 = 'libx264' in av.codecs_available
  out = io.BytesIO()
  with av.open(out, 'w', format='mp4') as container:
    stream = container.add_stream('libx264' if h264 else 'mpeg4', rate=rate)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    # Nearly lossless, so that codec artefacts do not hide those of the model.
    stream.options = {'crf': '16'} if h264 else {'q:v': '2'}
    for frame in frames:
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return out.getvalue()


def write(
  out: epath.Path,
  frames: UInt8[np.ndarray, 'n h w 3'],
  fps: float,
  strip: UInt8[np.ndarray, 'hh ww 3'],
) -> None:
  """Writes the video OUT, x.mp4, the GIF x.gif and the strip x.png."""
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_bytes(mp4(frames, fps))
  out.with_suffix('.gif').write_bytes(gif(frames, fps))
  out.with_suffix('.png').write_bytes(images.encode_png(strip))


@contextlib.contextmanager
def naming(out: epath.Path) -> Iterator[None]:
  """Turns write errors into a UserError that names --out."""
  try:
    yield
  except OSError as e:
    raise UserError(
      f'cannot write --out={out} ({e.strerror}); choose another place'
    ) from e


def gif(frames: UInt8[np.ndarray, 'n h w 3'], fps: float) -> bytes:
  """Encodes a looping GIF; frames above 50 per second are skipped."""
  step = math.ceil(fps * _GIF_SHORTEST / 1000)
  ticks = round(1000 * step / fps / _GIF_TICK)
  first, *rest = (Image.fromarray(x).quantize() for x in frames[::step])
  out = io.BytesIO()
  first.save(
    out,
    'GIF',
    save_all=True,
    append_images=rest,
    duration=ticks * _GIF_TICK,
    loop=0,
  )
  return out.getvalue()
