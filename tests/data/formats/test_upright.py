"""Frames look as in a player."""

import fractions
import struct

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from etils import epath

from xfactor.data.formats import hdr, upright, video

HEIGHT, WIDTH = 64, 96
X264 = pytest.mark.skipif(
  'libx264' not in av.codecs_available, reason='needs an encoder of H.264'
)


def corners(height=HEIGHT, width=WIDTH):
  """A picture with a colour in each quarter."""
  rgb = np.zeros((height, width, 3), np.uint8)
  rgb[: height // 2, : width // 2] = 200, 40, 40
  rgb[: height // 2, width // 2 :] = 40, 200, 40
  rgb[height // 2 :, : width // 2] = 40, 40, 200
  rgb[height // 2 :, width // 2 :] = 220, 220, 220
  return rgb


def add(container, frames, codec='mpeg4', **options):
  """Adds a stream to a container; returns its packets."""
  stream = container.add_stream(codec, rate=25, options=options)
  stream.height, stream.width = frames[0].shape[:2]
  stream.pix_fmt = 'yuv420p'
  stream.codec_context.bit_rate = 8_000_000
  return stream, [av.VideoFrame.from_ndarray(f, 'rgb24') for f in frames]


def write(path, frames, aspect=None, **options):
  with av.open(str(path), 'w') as container:
    stream, frames = add(container, frames, **options)
    if aspect:
      stream.codec_context.sample_aspect_ratio = aspect
    for frame in [*frames, None]:
      container.mux(stream.encode(frame))


def read(path):
  return list(video.read_video(str(path)))


def error(picture, want):
  """Returns the mean difference, if the shapes are equal."""
  assert picture.shape == want.shape
  return np.abs(picture.astype(int) - want).mean()


MATRICES = {
  # What a player does with the decoded picture, by the matrix a, b, c, d.
  (1, 0, 0, 1): lambda p: p,
  (0, 1, -1, 0): lambda p: np.rot90(p, -1),
  (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
  (0, -1, 1, 0): lambda p: np.rot90(p, 1),
  (-1, 0, 0, 1): lambda p: p[:, ::-1],
  (1, 0, 0, -1): lambda p: p[::-1],
  (0, 1, 1, 0): lambda p: p.swapaxes(0, 1),
  (0, -1, -1, 0): lambda p: np.rot90(p, 2).swapaxes(0, 1),
}


def set_matrix(path, a, b, c, d):
  """Sets the display matrix in the track header of an mp4."""
  data = bytearray(path.read_bytes())
  at = data.index(b'tkhd') + 44
  one = 1 << 16
  matrix = a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30
  data[at : at + 36] = struct.pack('>9i', *matrix)
  path.write_bytes(data)


@pytest.mark.parametrize('matrix', MATRICES)
def test_all_display_matrices(tmp_path, matrix):
  path = tmp_path / 'a.mp4'
  write(path, [corners()] * 2)
  set_matrix(path, *matrix)
  want = MATRICES[matrix](corners())
  assert error(read(path)[0].rgb, want) < 8
  ((_, rgb),) = video.read_frames(epath.Path(path), np.array([0.0]))
  assert error(rgb, want) < 8


@pytest.mark.parametrize(
  ('aspect', 'shape'), [((4, 3), (64, 128)), ((8, 9), (72, 96))]
)
def test_pixels_become_square(tmp_path, aspect, shape):
  path = tmp_path / 'a.mp4'
  write(path, [corners()] * 2, fractions.Fraction(*aspect))
  picture = read(path)[0]
  assert error(picture.rgb, corners(*shape)) < 8
  assert picture.changes == ('frames stretched to square pixels',)
  # The pixels of phones are stretched before the picture is turned.
  set_matrix(path, 0, 1, -1, 0)
  assert error(read(path)[0].rgb, np.rot90(corners(*shape), -1)) < 8


def test_square_and_absurd_pixels_are_kept(tmp_path):
  for i, aspect in enumerate([(1, 1), (100, 1)]):
    write(tmp_path / f'{i}.mp4', [corners()] * 2, fractions.Fraction(*aspect))
    picture = read(tmp_path / f'{i}.mp4')[0]
    assert picture.rgb.shape == (HEIGHT, WIDTH, 3)
    assert picture.changes == ()


def bar(left):
  rgb = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
  rgb[:, left : left + 16] = 220
  return rgb


@X264
def test_interlaced_frames_are_deinterlaced(tmp_path):
  path = tmp_path / 'a.mkv'
  frames = []
  for i in range(8):
    # The other field, of the upper lines, is half a frame later.
    frame = bar(8 * i)
    frame[::2] = bar(8 * i + 4)[::2]
    frames.append(frame)
  write(path, frames, codec='libx264', flags='+ildct+ilme')
  pictures = read(path)
  times = [picture.time for picture in pictures]
  np.testing.assert_allclose(times, np.arange(8) / 25, atol=2e-3)
  for i, picture in enumerate(pictures):
    assert picture.changes == ('frames deinterlaced',)
    # Half of the lines were combs.
    comb = np.abs(np.diff(picture.rgb[2:-2].astype(int), axis=0)).mean()
    assert comb < 3
    assert error(picture.rgb, bar(8 * i)) < 8
  ((_, rgb),) = video.read_frames(epath.Path(path), np.array([0.12]))
  assert error(rgb, bar(24)) < 8


@X264
@pytest.mark.parametrize(
  ('codec', 'sides'), [('mpeg4', (32, 32)), ('mjpeg', (256, 512))]
)
def test_the_largest_stream_that_moves_is_read(tmp_path, codec, sides):
  path = tmp_path / 'a.mkv'
  with av.open(str(path), 'w') as container:
    small, thumbnails = add(
      container, [corners(*sides)], codec, strict='unofficial'
    )
    large, frames = add(container, [corners()] * 12, 'libx264')
    for stream, pictures in ((small, thumbnails), (large, frames)):
      for frame in [*pictures, None]:
        container.mux(stream.encode(frame))
  pictures = read(path)
  assert len(pictures) == 12
  assert error(pictures[0].rgb, corners()) < 8


# Reference white, 18 % grey, a saturated colour, black; multiples of white.
LIGHT = np.array([[1, 1, 1], [0.18] * 3, [0.45, 0.12, 0.05], [0, 0, 0]])


def bt2100(light, transfer):
  """Signals of light of BT.709's primaries, by the tables of BT.2100."""
  wide = light @ np.array(
    [
      [0.6274, 0.0691, 0.0164],
      [0.3293, 0.9195, 0.0880],
      [0.0433, 0.0114, 0.8956],
    ]
  )
  if transfer == 'pq':
    y = (wide * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
  scene = wide * 0.265
  above = np.log(np.maximum(12 * scene - 0.28466892, 1e-9))
  return np.where(
    scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * above + 0.55991073
  )


def hdr_frame(signals, transfer):
  """A 10-bit frame with a column for each signal."""
  red, green, blue = np.repeat(signals, WIDTH // len(signals), 0).T
  luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
  planes = (
    64 + 876 * luma,
    512 + 896 * (blue - luma) / 1.8814,
    512 + 896 * (red - luma) / 1.4746,
  )
  frame = av.VideoFrame(WIDTH, HEIGHT, 'yuv444p10le')
  for plane, levels in zip(frame.planes, planes, strict=True):
    row = np.round(levels).astype('<u2')
    plane.update(np.tile(row, (HEIGHT, 1)).tobytes())
  frame.color_trc = {'pq': 16, 'hlg': 18}[transfer]
  frame.color_primaries = frame.colorspace = 9
  frame.color_range = 1
  return frame


def write_hdr(path, signals, transfer):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('ffv1', rate=25)
    stream.height, stream.width = HEIGHT, WIDTH
    stream.pix_fmt = 'yuv444p10le'
    context = stream.codec_context
    context.color_trc = {'pq': 16, 'hlg': 18}[transfer]
    context.color_primaries = context.colorspace = 9
    context.color_range = 1
    for frame in [hdr_frame(signals, transfer), None]:
      container.mux(stream.encode(frame))


@pytest.mark.parametrize('transfer', ['hlg', 'pq'])
def test_colours_of_hdr_are_those_of_an_sdr_camera(tmp_path, transfer):
  path = tmp_path / 'a.mkv'
  write_hdr(path, bt2100(LIGHT, transfer), transfer)
  picture = read(path)[0]
  assert picture.changes == ('frames tone-mapped from HDR',)
  columns = picture.rgb[HEIGHT // 2, WIDTH // 8 :: WIDTH // 4].astype(int)
  # BT.709: 1.099 L^0.45 - 0.099, and highlights need the room above 0.8.
  want = 255 * np.where(LIGHT < 0.018, 4.5 * LIGHT, 1.099 * LIGHT**0.45 - 0.099)
  assert np.abs(columns[1:] - want[1:]).max() < 2.5
  assert 238 <= columns[0].min() <= columns[0].max() <= 246


@pytest.mark.parametrize('transfer', ['hlg', 'pq'])
def test_ramps_of_hdr(tmp_path, transfer):
  """From black to the peak of a usual display, 1000 cd/m^2."""
  top = {'hlg': 1.0, 'pq': 0.7518}[transfer]
  ramp = np.linspace(0, top, 48)[:, None].repeat(3, 1)
  path = tmp_path / 'a.mkv'
  write_hdr(path, ramp, transfer)
  row = read(path)[0].rgb[0, ::2].astype(int)
  assert np.ptp(row, axis=1).max() <= 1  # Grey stays grey.
  grey = row[:, 1]
  assert grey[0] == 0
  assert grey[-1] >= 254  # Code 940 of HLG is white.
  assert np.diff(grey).min() >= 0
  # The tables have too few steps nowhere.
  light = {'hlg': hdr.hlg_light, 'pq': hdr.pq_light}[transfer](ramp[:, 0])
  light /= {'hlg': hdr.hlg_light(np.array(0.75)), 'pq': hdr.WHITE}[transfer]
  kept = light < hdr.KNEE
  want = 255 * hdr.bt709_signal(light[kept])
  assert np.abs(grey[kept] - want).max() < 2
  # The same formulas, forwards.
  np.testing.assert_allclose(
    bt2100(light[:, None].repeat(3, 1), transfer)[1:], ramp[1:], atol=2e-3
  )


def test_sdr_of_ten_bits_is_not_touched(tmp_path):
  frame = hdr_frame(np.full((4, 3), 0.5), 'pq')
  frame.color_trc, frame.color_primaries = 1, 1
  frame.colorspace = int(Colorspace.ITU709)
  rgb, changes = upright.Screen(1.0).show(frame)
  assert changes == ()
  assert np.abs(rgb.astype(int) - 128).max() <= 2
