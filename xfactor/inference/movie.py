"""Pictures beside each other with captions, as video, GIF and a PNG strip."""

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
_GIF_TICK = 10  # Milliseconds; the format knows no shorter times.
_GIF_SHORTEST = 20  # Viewers slow down what is shown for less.


def enlarge(
  picture: UInt8[np.ndarray, 'h w 3'], size: int
) -> UInt8[np.ndarray, '{size} ww 3']:
  """The picture at `size` pixels of height; it stays as coarse as it is."""
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
  """The picture under a line of text, made smaller where it is too long."""
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
  """Pixels of the line of text over a picture of this width."""
  return max(14, width // 10)


def row(
  pictures: Sequence[UInt8[np.ndarray, 'h _ 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """Pictures of one height beside each other."""
  gap = np.full((len(pictures[0]), _GAP, 3), 255, np.uint8)
  parts = [part for picture in pictures for part in (gap, picture)]
  return np.concatenate(parts[1:], axis=1)


def column(
  pictures: Sequence[UInt8[np.ndarray, '_ w 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """Pictures of one width below each other."""
  turned = [einops.rearrange(x, 'h w c -> w h c') for x in pictures]
  return einops.rearrange(row(turned), 'w h c -> h w c')


def mp4(frames: UInt8[np.ndarray, 'n h w 3'], fps: float) -> bytes:
  """An MP4 video: H.264 where PyAV has an encoder for it, else MPEG-4.

  Sides are made even with white, as 4:2:0 colour wants it.
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
    # Near lossless, so that nobody judges a model by the codec.
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
  """Writes OUT, x.mp4, and x.gif and x.png, the strip, beside it."""
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_bytes(mp4(frames, fps))
  out.with_suffix('.gif').write_bytes(gif(frames, fps))
  out.with_suffix('.png').write_bytes(images.encode_png(strip))


@contextlib.contextmanager
def naming(out: epath.Path) -> Iterator[None]:
  """Says of what cannot be written that it belongs to --out."""
  try:
    yield
  except OSError as e:
    raise UserError(
      f'cannot write --out={out} ({e.strerror}); choose another place'
    ) from e


def gif(frames: UInt8[np.ndarray, 'n h w 3'], fps: float) -> bytes:
  """An endless GIF; above 50 frames a second some are left out."""
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
