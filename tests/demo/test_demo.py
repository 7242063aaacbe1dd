"""The page as its visitors have it, those who mean harm among them."""

import os
import signal
import socket
import urllib.error
import urllib.request

import av
import numpy as np
import pytest
from PIL import Image

from tests import browser, commands, test_api
from tests.demo import serving
from tests.demo.serving import PATIENCE, wait
from tests.inference import test_posed
from tests.training import small
from xfactor import api
from xfactor.demo import motion, paths, uploads
from xfactor.errors import UserError
from xfactor.inference import movie

LIMITS = uploads.Limits(seconds=5.0, frames=12, pictures=3)
FLAGS = '--max_seconds=5', '--max_megabytes=1'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with runs, data, a video and pictures."""
  folder = tmp_path_factory.mktemp('place')
  small.make_data(folder / 'data')
  test_api.save(folder / 'run')
  test_posed.save(folder / 'posed', **test_posed.VOLUME)
  frames = [np.full((48, 64, 3), 20 * i, np.uint8) for i in range(12)]
  for name in ('walk.mp4', 'walk, fast.mp4'):
    (folder / name).write_bytes(movie.mp4(np.stack(frames), 12))
  long = np.repeat(np.stack(frames), 6, axis=0)
  (folder / 'long.mp4').write_bytes(movie.mp4(long, 12))
  (folder / 'broken.mp4').write_bytes(b'not a video')
  # Would show another file's frames.
  (folder / 'list.mp4').write_text(
    f'#EXTM3U\n#EXTINF:1,\nfile://{folder}/long.mp4\n#EXT-X-ENDLIST\n'
  )
  Image.new('RGB', (80, 60), 'red').save(folder / 'kitchen.png')
  (folder / 'broken.png').write_bytes(b'not a picture')
  return folder


@pytest.fixture(scope='module')
def mover(place):
  return motion.Mover(api.load(place / 'run'), place / 'data', LIMITS)


@pytest.fixture(scope='module')
def served(place, tmp_path_factory):
  """Address of the page, its process and its folder for files.

  SIGTERM ends the process, which deletes its files.
  """
  folder = tmp_path_factory.mktemp('served')
  flags = f'--workdir={place}/run', f'--data_dir={place}/data', *FLAGS
  with serving.serve(folder, *flags) as page:
    yield *page, folder
    _, process = page
    assert list(folder.glob('xfactor-demo-*'))
    os.kill(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert not list(folder.glob('xfactor-demo-*'))


# ==============================================================================
# Paths
# ==============================================================================


def test_principal_components_keep_distances():
  rng = np.random.default_rng(0)
  plane = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 16))
  points, share = paths.principal(plane)
  np.testing.assert_allclose(share, 1)
  np.testing.assert_allclose(
    np.linalg.norm(points[:, None] - points, axis=-1),
    np.linalg.norm(plane[:, None] - plane, axis=-1),
    atol=1e-5,
  )
  _, share = paths.principal(rng.normal(size=(200, 6)))
  assert 0.4 < share < 0.7
  still, share = paths.principal(np.zeros((3, 2)))
  assert (still == 0).all()
  assert share == 1


def test_cameras_stand_where_they_stand():
  turn = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
  places = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
  known = np.stack(
    [np.concatenate([turn, -turn @ x[:, None]], axis=1) for x in places]
  )
  # This camera looks along -x of the world, whose y points down as its own.
  x, y, z = paths.centres(known).T
  np.testing.assert_allclose(z, places[:, 0] * turn[2, 0])
  np.testing.assert_allclose(y, -places[:, 1])
  np.testing.assert_allclose(x, places[:, 2] * turn[0, 2])


def test_both_paths_are_drawn(place, mover):
  poses = np.random.default_rng(0).normal(size=(5, 8))
  known = np.tile(np.eye(4)[:3], (5, 1, 1))
  known[:, 2, 3] = -np.arange(5)
  drawn = paths.figure(poses, 2, known)
  lines = [x for x in drawn.data if 'lines' in x.mode]
  assert [len(x.x) for x in lines] == [5, 5]
  np.testing.assert_allclose(lines[1].y, np.arange(5))  # Ahead.
  assert len(paths.figure(poses, 2).data) == 2


# ==============================================================================
# What visitors choose
# ==============================================================================


def test_clips_to_try_are_held_out(mover):
  assert mover.clips[0] == 'squares/test/000'
  assert len(mover.clips) == 6
  assert mover.defaults() == ('squares/test/000', 'squares/test/012')
  assert mover.length('squares/test/000') == 12


def test_a_moved_scene(place, mover, tmp_path):
  moved = mover.move(
    str(place / 'walk.mp4'),
    'squares/test/000',
    tmp_path,
    first=2,
    last=9,
    frames=4,
    interpolate=2,
  )
  with av.open(moved.files['mp4']) as video:
    assert len(list(video.decode(video=0))) == 2 * 3 + 1
  assert np.load(moved.files['npy']).shape == (4, mover.model.pose_dim)
  with Image.open(moved.files['gif']) as gif:
    assert gif.n_frames == 7
  assert len(moved.path.data[0].x) == 4
  assert [x for x in moved.notes if 'frame of walk.mp4 of 64 x 48' in x]


@pytest.mark.parametrize(
  ('name', 'says'),
  [
    ('long.mp4', 'lasts 6 seconds and at most 5 are taken; cut it'),
    ('broken.mp4', 'broken.mp4 cannot be read as a video'),
    ('list.mp4', 'list.mp4 cannot be read as a video'),
    ('kitchen.png', 'kitchen.png cannot be read as a video'),
  ],
)
def test_bad_motions_are_refused(place, mover, name, says):
  with pytest.raises(UserError, match=says):
    mover.length(str(place / name))
  with pytest.raises(UserError, match=says):
    mover.motion_strip(str(place / name))


@pytest.mark.parametrize(
  ('names', 'says'),
  [
    (['kitchen.png'] * 4, 'has 4 pictures and at most 3 are taken'),
    (['list.mp4'], 'list.mp4 is not a picture'),
    (['kitchen.png', 'walk.mp4'], 'walk.mp4 is not a picture'),
    (['broken.png'], 'broken.png cannot be read'),
  ],
)
def test_bad_scenes_are_refused(place, mover, names, says):
  scene = ','.join(str(place / name) for name in names)
  with pytest.raises(UserError, match=says):
    mover.scene_strip(scene)


def test_spans_follow_the_training(place, mover):
  window = mover.model.window
  assert mover.span('squares/test/000') == (11, min(11, window - 1))
  assert mover.span(None) == (1, 1)


# ==============================================================================
# The page
# ==============================================================================


def status(request):
  """The HTTP status of the answer."""
  try:
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
      return answer.status
  except urllib.error.HTTPError as error:
    with error:
      return error.code


@pytest.mark.slow
def test_move_a_scene_in_a_browser(place, mover, served, tmp_path):
  address, *_ = served
  with browser.chromium(height=1400, downloads=tmp_path) as opened:

    def find(selector):
      return wait(lambda: opened.find_elements('css selector', selector))[0]

    def upload(part, name):
      find(f'#{part} input[type=file]').send_keys(str(place / name))
      wait(lambda: opened.find_elements('css selector', f'#{part} .filename'))

    opened.get(address)
    upload('motion', 'walk.mp4')
    upload('scene', 'kitchen.png')
    wait(
      lambda: (
        [
          x.get_attribute('value')
          for x in opened.find_elements('css selector', 'input[type=number]')
        ][1]
        == str(mover.span(str(place / 'walk.mp4'))[1])
      )
    )
    find('#run').click()
    video = find('#result video')
    wait(lambda: opened.execute_script('return arguments[0].videoWidth', video))
    find('#path .js-plotly-plot canvas')
    find('#get-mp4').click()
    (file,) = wait(lambda: list(tmp_path.glob('*.mp4')))
    assert not browser.errors(opened)
    assert browser.hosts(opened) == {address.strip('/').split('//')[1]}
  with av.open(str(file)) as movie_got:
    assert movie_got.streams.video[0].width == 2 * 256 + 4


def test_a_bad_upload_gets_a_sentence(place, served):
  with browser.chromium() as opened:
    opened.get(served[0])

    def found(selector):
      return wait(lambda: opened.find_elements('css selector', selector))

    found('#motion input[type=file]')[0].send_keys(str(place / 'broken.mp4'))
    wait(lambda: 'broken.mp4 cannot be read as a video' in opened.page_source)


def test_visitors_wait_for_each_other(served):
  client = pytest.importorskip('gradio_client')
  clip = 'squares/test/000'
  clients = [client.Client(served[0], verbose=False) for _ in range(3)]
  jobs = [
    x.submit(None, clip, None, clip, 0, last, 4, 1, 0, api_name='/move')
    for last, x in enumerate(clients, 2)
  ]
  results = [job.result(timeout=PATIENCE) for job in jobs]
  assert all(len(result) == 7 for result in results)


@pytest.mark.parametrize(
  'changes',
  [
    {0: {'path': '/etc/passwd', 'meta': {'_type': 'gradio.FileData'}}},
    {1: '/etc/passwd'},
    {3: '../../etc/passwd'},
  ],
)
def test_no_other_file_is_reached(served, changes):
  client = pytest.importorskip('gradio_client')
  clip = 'squares/test/000'
  values = [None, clip, None, clip, 0, 2, 4, 1, 0]
  for index, value in changes.items():
    values[index] = value
  with pytest.raises(client.exceptions.AppError):
    client.Client(served[0], verbose=False).predict(*values, api_name='/move')


def test_files_are_not_served(place, served):
  assert status(served[0]) == 200
  for file in ('/etc/passwd', 'README.md', str(place / 'kitchen.png')):
    assert status(f'{served[0]}gradio_api/file={file}') == 403


def test_the_command_of_a_calibration_is_named(served):
  with urllib.request.urlopen(f'{served[0]}config', timeout=PATIENCE) as answer:
    found = answer.read()
  assert b'To fly: the model of step 2 has no calibration' in found
  assert b'python -m xfactor.calibrate --workdir=' in found
  assert status(f'{served[0]}fly/facts.json') == 404


def test_large_uploads_are_refused(served):
  boundary = b'xxx'
  body = (
    b'--xxx\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"'
    b'\r\n\r\n' + bytes(2 * 2**20) + b'\r\n--xxx--\r\n'
  )
  request = urllib.request.Request(
    f'{served[0]}gradio_api/upload',
    body,
    {'Content-Type': f'multipart/form-data; boundary={boundary.decode()}'},
  )
  assert status(request) == 413


UPLOAD = (
  b'--xxx\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"'
  b'\r\n\r\nx\r\n--xxx--\r\n'
)


@pytest.mark.parametrize(
  ('headers', 'code'),
  [
    ({'Host': 'evil.example'}, 403),  # DNS rebinding.
    ({'Host': 'evil.example:80'}, 403),
    ({'Host': 'localhost:80'}, 200),
    ({'Host': '[::1]:80'}, 200),
    ({'Host': '192.0.2.7'}, 200),
  ],
)
def test_only_its_own_names_reach_the_page(served, headers, code):
  assert status(urllib.request.Request(served[0], headers=headers)) == code


def test_other_sites_cannot_upload(served):
  address = served[0].rstrip('/')
  for origin, code in ((address, 200), ('http://evil.example', 403)):
    request = urllib.request.Request(
      f'{address}/gradio_api/upload',
      UPLOAD,
      {
        'Content-Type': 'multipart/form-data; boundary=xxx',
        'Origin': origin,
      },
    )
    assert status(request) == code


def test_recordings_without_a_length_are_measured(tmp_path):
  path = str(tmp_path / 'live.mkv')
  with av.open(path, 'w', options={'live': '1'}) as container:
    stream = container.add_stream('mpeg4', rate=10)
    stream.width, stream.height = 64, 48
    for i in range(70):
      frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, np.uint8))
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  with av.open(path) as container:
    assert not container.duration
  with pytest.raises(UserError, match=r'lasts . seconds and at most 5'):
    uploads.video_frames(path, LIMITS)
  longer = uploads.Limits(seconds=10.0)
  assert uploads.video_frames(path, longer) == 70


def test_limits_are_for_the_stream_that_is_read(tmp_path):
  path = str(tmp_path / 'two.mkv')
  with av.open(path, 'w') as container:
    thumbnail = container.add_stream('mpeg4', rate=10)
    thumbnail.width, thumbnail.height = 32, 32
    main = container.add_stream('mpeg4', rate=20)
    main.width, main.height = 64, 48
    for stream, count in (thumbnail, 10), (main, 20):
      for i in range(count):
        shape = (stream.height, stream.width, 3)
        frame = av.VideoFrame.from_ndarray(np.full(shape, i, np.uint8))
        frame.pts = i
        container.mux(stream.encode(frame))
      container.mux(stream.encode())
  assert uploads.video_frames(path, LIMITS) == 20


def test_nobody_else_can_listen(served):
  port = int(served[0].strip('/').rsplit(':', 1)[1])
  socket.create_connection(('127.0.0.1', port)).close()
  with pytest.raises(ConnectionRefusedError):  # Open if bound to 0.0.0.0.
    socket.create_connection(('127.0.0.2', port))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flags', 'says'),
  [
    ([], 'give --workdir=RUN to move scenes with its model'),
    (['--workdir=PLACE/posed'], 'is a posed model'),
    (['--workdir=PLACE/nothing'], 'is neither a run'),
    (['--data_dir=PLACE/nothing'], 'nothing has no data sets'),
    (['--data_dir=PLACE/data', '--port=PORT'], 'choose another --port'),
  ],
)
def test_what_cannot_be_shown_is_a_sentence(place, served, flags, says):
  port = served[0].strip('/').rsplit(':', 1)[1]
  flags = [x.replace('PLACE', str(place)).replace('PORT', port) for x in flags]
  result = commands.run('-m', 'xfactor.demo', *flags)
  assert result.returncode == 2
  (line,) = [x for x in result.stderr.splitlines() if x.startswith('error: ')]
  assert says in line


@pytest.mark.slow
def test_rooms_are_made_where_there_are_no_data(place, tmp_path):
  flags = f'--workdir={place}/run', f'--data_dir={tmp_path}/none'
  with (
    serving.serve(tmp_path, *flags) as (address, _),
    urllib.request.urlopen(f'{address}config', timeout=PATIENCE) as answer,
  ):
    assert b'"synthetic/train/' in answer.read()
