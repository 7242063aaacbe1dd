"""From the names of a motion and a scene to the files beside each other."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

import xfactor
from tests import test_api
from tests.conftest import QUICK
from tests.inference import test_posed
from tests.training import small
from xfactor.data.formats import video as video_lib
from xfactor.data.records import store as store_lib
from xfactor.data.sources import video
from xfactor.errors import UserError
from xfactor.inference import footage, movie, transfer

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a run, data, a video, pictures and frames."""
  folder = tmp_path_factory.mktemp('place')
  small.make_data(folder / 'data')
  small.make_posed_data(folder / 'data')
  test_api.save(folder / 'run')
  test_posed.save(folder / 'posed', **test_posed.VOLUME)
  frames = [np.full((30, 40, 3), 8 * i, np.uint8) for i in range(12)]
  (folder / 'walk.mp4').write_bytes(movie.mp4(np.stack(frames), 24))
  (folder / 'walk').mkdir()
  for i, frame in enumerate(frames):
    Image.fromarray(frame).save(folder / f'walk/f{i}.png')
  (folder / 'walk/notes.txt').write_text('none')
  (folder / 'broken.mp4').write_bytes(b'not a video')
  (folder / 'broken.png').write_bytes(b'not a picture')
  (folder / 'empty').mkdir()
  Image.new('RGB', (300, 40)).save(folder / 'long.jpg')
  return folder


@pytest.fixture(scope='module')
def model(place):
  return xfactor.load(place / 'run')


@pytest.fixture(scope='module')
def clip(place):
  store = store_lib.open_split(place / 'data', 'squares', 'test')
  return f'squares/test/{store.clip_id(0)}'


def read(place, name, **options):
  return footage.read(str(name), place / 'data', lambda x: x, **options)


def levels(taken):
  return (taken.frames.mean((1, 2, 3)) / 8).round().astype(int).tolist()


def test_videos_and_folders(place):
  for name in ('walk.mp4', 'walk'):
    taken = read(place, place / name)
    assert taken.frames.shape == (12, 30, 40, 3)
    assert levels(taken) == list(range(12))
    taken = read(place, place / name, first=2, last=9, stride=3)
    assert levels(taken) == taken.numbers.tolist() == [2, 5, 8]
    assert (taken.nearest(6), taken.nearest(8)) == (1, 2)
    taken = read(place, place / name, most=4)
    assert levels(taken) == taken.numbers.tolist() == [0, 4, 7, 11]
    with pytest.raises(UserError, match='no frames from number 12 to its end'):
      read(place, place / name, first=12)
    with pytest.raises(UserError, match='frame 1 is not among .* 2 to 9'):
      read(place, place / name, first=2, last=9).nearest(1)
  assert read(place, place / 'walk.mp4').fps == pytest.approx(24)
  assert read(place, place / 'walk.mp4', stride=2).fps == pytest.approx(12)
  assert read(place, place / 'walk').fps is None


def test_pictures_between_commas(place):
  names = ', '.join(str(place / f'walk/f{i}.png') for i in (10, 3, 2))
  assert levels(read(place, names)) == [10, 3, 2]
  assert levels(read(place, place / 'walk/f7.png')) == [7]


def test_clips(place, clip):
  taken = read(place, clip, first=1)
  store = store_lib.open_split(place / 'data', 'squares', 'test')
  assert taken.numbers.tolist() == list(range(1, 12))
  first = video.images.decode(store.clip_frames(0, [1])[0])
  np.testing.assert_array_equal(taken.frames[0], first)


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('{0}/none.mp4', 'none.mp4'),
    ('{0}/broken.mp4', 'broken.mp4 is no video'),
    ('{0}/broken.png', 'broken.png cannot be read'),
    ('{0}/walk/f1.png,{0}/none.png', 'none.png cannot be read'),
    ('{0}/empty', 'holds no pictures'),
    ('{0}/none', 'not a file, a folder or a clip .*squares'),
    ('circles/test/000', 'or a clip of a data set in .*squares'),
    ('squares/dev/000', "no split 'dev'"),
    ('squares/test/0004', "no clip '0004'; similar IDs: .*004"),
  ],
)
def test_what_cannot_be_read_is_named(place, name, said):
  with pytest.raises(UserError, match=said):
    read(place, name.format(place))


def run_transfer(model, place, motion, scene, **options):
  return transfer.transfer(
    model, str(motion), str(scene), data_dir=str(place / 'data'), **options
  )


def test_another_scene_has_no_truth(model, place, clip):
  shown = run_transfer(model, place, clip, place / 'walk', last=4)
  scene = read(place, place / 'walk/f5.png').frames  # The most central.
  np.testing.assert_array_equal(shown.scene, model.fit(scene)[0])
  motion = read(place, clip, last=4).frames
  np.testing.assert_array_equal(shown.pictures, model.transfer(motion, scene))
  size = 64
  width, line = 2 * size + 4, movie.line_height(size)
  assert shown.video(size).shape == (5, line + size, width, 3)
  other = run_transfer(
    model, place, clip, place / 'walk', last=4, scene_reference=9
  )
  assert not np.array_equal(shown.scene, other.scene)


def test_the_same_clip_has_truth(model, place, clip):
  shown = run_transfer(model, place, clip, clip, last=6, reference=2)
  motion = read(place, clip, last=6).frames
  np.testing.assert_array_equal(shown.scene, motion[2])
  np.testing.assert_array_equal(
    shown.pictures, model.transfer(motion, motion[2:3], reference=2)
  )
  size = 64
  line, step = movie.line_height(size), size + 4
  frame = shown.video(size)[5][line:]
  panels = [frame[:, i * step : i * step + size] for i in range(3)]
  for panel, picture in zip(
    panels, (motion[5], shown.pictures[5], motion[5]), strict=True
  ):
    np.testing.assert_array_equal(panel[::2, ::2], picture)
  strip = shown.strip(size)
  assert strip.shape == (3 * (line + size) + 8, 8 * step - 4, 3)
  np.testing.assert_array_equal(
    strip[line : line + size : 2, :size:2], motion[2]
  )


def test_interpolated_pictures_say_so(model, place, clip):
  shown = run_transfer(model, place, clip, clip, stride=4, interpolate=2)
  assert shown.motion.numbers.tolist() == [0, 4, 8]
  line = movie.line_height(128)
  captions = shown.video(128)[:, :line, 132 : 132 + 128]
  # Orange text has more red than blue; black has not.
  colourful = (np.ptp(captions.astype(int), axis=-1) > 40).any(axis=(1, 2))
  assert colourful.tolist() == [False, True, False, True, False]
  assert (captions.min(axis=(1, 2, 3)) < 100).all()


def test_views_of_a_scene():
  numbers = np.arange(100)
  choose = transfer.choose_views
  assert choose(numbers, 40, 1, 20).tolist() == [40]
  assert choose(numbers, 40, 3, 21).tolist() == [30, 40, 50]
  assert choose(numbers, 2, 3, 21).tolist() == [2, 10, 20]
  assert choose(numbers, 99, 3, 21).tolist() == [79, 89, 99]
  assert choose(numbers, 50, 3, None).tolist() == [0, 50, 99]
  assert choose(numbers[::10], 5, 3, 21).tolist() == [4, 5, 6]
  assert choose(numbers[:2], 1, 5, 21).tolist() == [0, 1]


def test_multi_view_scenes(tmp_path, place, clip):
  test_api.save(tmp_path, contexts=3, steps=(1,))
  model = xfactor.load(tmp_path)  # Windows of six frames.
  motion = read(place, clip).frames
  shown = run_transfer(model, place, clip, clip, reference=6)
  np.testing.assert_array_equal(
    shown.pictures,
    model.transfer(motion, motion[[3, 6, 8]], reference=6, scene_reference=1),
  )
  names = ','.join(str(place / f'walk/f{i}.png') for i in (2, 7))
  shown = run_transfer(model, place, clip, names)
  scene = read(place, names).frames
  np.testing.assert_array_equal(shown.pictures, model.transfer(motion, scene))


def test_files(model, place, clip, tmp_path, capsys):
  shown = run_transfer(model, place, clip, clip, last=4, interpolate=2)
  out = epath.Path(tmp_path / 'new/moved.mp4')
  transfer.write(shown, out, fps=10, size=51)
  expected = shown.video(51)
  assert expected.shape[2] % 2  # An odd width is made even.
  frames = list(video_lib.read_video(str(out)))
  assert len(frames) == 9
  assert [round(x.time, 3) for x in frames[:3]] == [0, 0.1, 0.2]
  height, width = expected.shape[1:3]
  for frame, truth in zip(frames, expected, strict=True):
    assert frame.rgb.shape == (height + height % 2, width + 1, 3)
    assert np.abs(frame.rgb[:height, :width].astype(int) - truth).mean() < 6
  with Image.open(out.with_suffix('.gif')) as picture:
    assert picture.size == (width, height)
    total = 0
    for i in range(picture.n_frames):
      picture.seek(i)
      total += picture.info['duration']
    assert total == 900
  with Image.open(out.with_suffix('.png')) as picture:
    np.testing.assert_array_equal(np.asarray(picture), shown.strip(51))
  assert '9 pictures at 10 a second, of which 4' in capsys.readouterr().out
  transfer.write(shown, out, size=51)
  assert 'at 24 a second' in capsys.readouterr().out
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='choose another place'):
    transfer.write(shown, epath.Path(tmp_path / 'file/x.mp4'))


def test_fast_gifs_leave_frames_out():
  frames = np.random.default_rng(0).integers(
    0, 256, (12, 8, 8, 3), dtype=np.uint8
  )
  for fps, count, duration in ((10, 12, 100), (50, 12, 20), (100, 6, 20)):
    with Image.open(io.BytesIO(movie.gif(frames, fps))) as picture:
      assert picture.n_frames == count
      assert picture.info['duration'] == duration


def test_without_h264(monkeypatch, tmp_path):
  monkeypatch.setattr(movie.av, 'codecs_available', {'mpeg4'})
  frames = np.full((4, 16, 17, 3), 200, np.uint8)
  (tmp_path / 'x.mp4').write_bytes(movie.mp4(frames, 12.5))
  with movie.av.open(str(tmp_path / 'x.mp4')) as container:
    assert container.streams.video[0].codec.name == 'mpeg4'
  taken = read(tmp_path, tmp_path / 'x.mp4')
  assert taken.frames.shape == (4, 16, 18, 3)
  assert np.abs(taken.frames[:, :, :17].astype(int) - 200).max() < 8


def test_captions_fit():
  picture = np.zeros((64, 64, 3), np.uint8)
  shown = movie.caption(picture, 'a very long line of text indeed, too long')
  line = movie.line_height(64)
  assert (shown[:line, [0, -1]] > 200).all()
  assert (shown[:line] < 150).any()
  np.testing.assert_array_equal(shown[line:], picture)


def command(place, *arguments):
  return subprocess.run(
    [
      *(sys.executable, '-m', 'xfactor.render', f'--workdir={place}/run'),
      *(f'--data_dir={place}/data', *arguments),
    ],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': QUICK},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


def test_the_command(place, clip, tmp_path):
  done = command(
    place,
    f'--motion={place}/walk.mp4',
    f'--scene={clip}',
    f'--out={tmp_path}/x.mp4',
    *('--frames=4', '--interpolate=2', '--size=64', '--chain=2', '--step=1'),
  )
  assert done.returncode == 0, done.stderr
  assert 'step 1 of' in done.stdout
  assert '7 pictures' in done.stdout
  assert 'pictures:' in done.stderr  # The progress bar.
  assert 'central square' in done.stderr
  assert 'reference changes at frames 2' in done.stderr
  assert len(list(video_lib.read_video(f'{tmp_path}/x.mp4'))) == 7
  assert {x.name for x in tmp_path.iterdir()} == {'x.mp4', 'x.gif', 'x.png'}


@pytest.mark.slow
def test_the_command_for_posed_models(place, tmp_path):
  done = command(
    place,
    *(f'--workdir={place}/posed', '--motion=rotate', '--scene=skies/test/1:3'),
    *(f'--out={tmp_path}/x.mp4', '--frames=3', '--fade', '--height=16'),
  )
  assert done.returncode == 0, done.stderr
  store = store_lib.open_split(place / 'data', 'skies', 'test')
  for name in (store.clip_id(1), store.clip_id(2)):
    assert f'3 pictures of skies/test/{name} at 30' in done.stdout
    for suffix in ('.mp4', '_depth.mp4'):
      frames = list(video_lib.read_video(f'{tmp_path}/x_{name}{suffix}'))
      assert [x.rgb.shape for x in frames] == [(256, 512, 3)] * 3
    assert len(list((tmp_path / f'x_{name}_depth').iterdir())) == 4
  assert len(list(tmp_path.iterdir())) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--out=x.avi'], '.mp4'),
    (['--workdir=/none'], '/none is neither a run'),
    (['--motion=squares/test/0'], 'similar IDs: '),
    (['--motion={0}/walk/f1.png'], 'one frame'),
    (['--scene={0}/walk/f1.png,{0}/walk/f2.png'], 'stereo'),
    (['--scene={0}/long.jpg'], 'too long'),
    (['--stride=0'], 'stride'),
    (['--motion=rotate'], 'is a camera motion for posed models'),
    (['--look_at=3'], '--look_at does not apply to models that take'),
    (['--workdir={0}/posed'], 'is not a camera motion, and this model'),
    (['--workdir={0}/posed', '--chain=3'], '--chain does not apply to posed'),
    (['--cameras=x.tum'], 'no calibration, which camera paths need'),
    (['--cameras=x.xyz'], 'must end with one of .json'),
    (['--path=pan'], 'Exactly one of (motion, path)'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(
  place, clip, tmp_path, arguments, said
):
  done = command(
    place,
    *(f'--motion={clip}', f'--scene={clip}', f'--out={tmp_path}/x.mp4'),
    *(argument.format(place) for argument in arguments),
  )
  lines = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert done.returncode == 2, done.stderr
  assert len(lines) == 1
  assert said in lines[0]
  assert 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())
