"""The tab that flies: what its page asks for, and the page in a browser."""

import contextlib
import dataclasses
import io
import json
import shutil
import urllib.error
import urllib.request

import av
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from starlette.testclient import TestClient

import xfactor
from tests import browser, test_api
from tests.demo import serving
from tests.demo.serving import PATIENCE, wait
from tests.training import small
from xfactor.data import images
from xfactor.data.formats import camera_paths
from xfactor.data.records import store as store_lib
from xfactor.demo import fly, motion, uploads
from xfactor.inference import calibration

LIMITS = uploads.Limits(megabytes=1)
CLIP = 'skies/test/000'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a run that has a calibration, its data, and a picture."""
  folder = tmp_path_factory.mktemp('place')
  small.make_posed_data(folder / 'data')
  test_api.save(folder / 'run', steps=(2,))
  store = store_lib.open_split(folder / 'data', 'skies', 'train')
  with pytest.MonkeyPatch.context() as patch:  # Short trainings.
    patch.setattr(calibration, '_STEPS', 150)
    patch.setattr(calibration, '_MEMBERS', 2)
    calibration._train.clear_cache()
    xfactor.calibrate(xfactor.load(folder / 'run'), [store], pairs=64)
  calibration._train.clear_cache()
  noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
  Image.fromarray(noise).save(folder / 'kitchen.png')
  (folder / 'broken.png').write_bytes(b'not a picture')
  return folder


@pytest.fixture(scope='module')
def mover(place):
  return motion.Mover(xfactor.load(place / 'run'), place / 'data', LIMITS)


@pytest.fixture(scope='module')
def client(mover):
  app = fly.application(fly.Flyer(mover))
  return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope='module')
def scene(client):
  return client.post('/clip', json={'clip': CLIP}).json()['scene']


def cameras(count, scale=1.0):
  """A path of cameras that starts at the picture's."""
  moved = np.linspace(0, scale, count)[:, None] * [0, 0.1, 0, 0.5, -0.5, 1]
  return calibration.relative_of(moved)


def view(client, scene, camera):
  asked = {'scene': scene, 'cameras': [camera.tolist()]}
  return client.post('/view', json=asked)


def assert_refused(answer, status, says):
  assert answer.status_code == status
  assert says in answer.text
  assert '\n' not in answer.text


def test_a_view_is_what_the_model_renders(client, scene, mover, place):
  model, path = mover.model, cameras(2)
  store = store_lib.open_split(place / 'data', 'skies', 'test')
  middle = (int(store.num_frames[0]) - 1) // 2
  picture = images.decode(store.clip_frames(0, [middle])[0])
  expected = model.render_path([picture], path).astype(int)
  distances = model.calibration.distance(path)
  for i, camera in enumerate(path):
    answer = view(client, scene, camera)
    assert answer.status_code == 200
    got = images.decode(answer.content).astype(int)
    assert np.abs(got - expected[i]).max() <= 1  # Of another batch.
    assert np.abs(got - expected[1 - i]).max() > 1
    far = float(answer.headers['X-Distance'])
    assert far == pytest.approx(distances[i], rel=1e-4)


def test_frames_of_clips_are_chosen(client):
  first = client.post('/clip', json={'clip': CLIP, 'frame': 0}).json()
  last = client.post('/clip', json={'clip': CLIP, 'frame': 5}).json()
  assert first['frames'] == last['frames'] == 6
  assert [first['frame'], last['frame']] == [0, 5]
  assert first['scene'] != last['scene']


def test_pictures_are_uploaded(client, mover, place):
  data = (place / 'kitchen.png').read_bytes()
  key = client.post('/picture', content=data).json()['scene']
  answer = view(client, key, cameras(1)[0])
  picture = images.read_image(place / 'kitchen.png')
  expected = mover.model.render_path([picture], cameras(2))[0].astype(int)
  got = images.decode(answer.content)
  assert np.abs(got - expected).max() <= 1


def png(height, width):
  out = io.BytesIO()
  Image.new('RGB', (width, height)).save(out, 'PNG')
  return out.getvalue()


@pytest.mark.parametrize(
  ('data', 'status', 'says'),
  [
    (b'', 400, 'cannot be read as a picture; choose a JPEG'),
    (b'not a picture', 400, 'cannot be read as a picture; choose a JPEG'),
    (png(40, 40)[:-30], 400, 'cannot be read as a picture; choose a JPEG'),
    (b'%!PS-Adobe-3.0 EPSF-3.0', 400, 'cannot be read as a picture'),
    (png(2000, 9000), 400, 'has 9000 x 2000 pixels; make it smaller'),
    (png(40, 400), 400, 'is too long'),
    (png(4, 4), 400, 'is too small'),
    (bytes(2**20 + 1), 413, 'at most 1 MB are taken'),
  ],
)
def test_bad_pictures_are_refused(client, data, status, says):
  assert_refused(client.post('/picture', content=data), status, says)


@pytest.mark.parametrize('clip', [None, 3, [], '/etc/passwd', 'skies/test/xxx'])
def test_unknown_clips_are_refused(client, clip):
  answer = client.post('/clip', json={'clip': clip})
  assert_refused(answer, 400, 'there is no such clip')


@pytest.mark.parametrize('frame', [-1, 6, 1.5, '0', [0], True])
def test_unknown_frames_are_refused(client, frame):
  answer = client.post('/clip', json={'clip': CLIP, 'frame': frame})
  assert_refused(answer, 400, 'frame must be a number from 0 to 5')


ADDRESSES = '/clip', '/view', '/fly.mp4'


@pytest.mark.parametrize('address', ADDRESSES)
@pytest.mark.parametrize(
  'data', [b'', b'{', b'[]', b'\xff\xfe', b'[' * 100_000, b'9' * 10_000]
)
def test_garbage_is_refused(client, address, data):
  answer = client.post(address, content=data)
  assert_refused(answer, 400, 'is not a JSON object; load the page again')


STILL = np.eye(3, 4).tolist()


def changed(value):
  return [[value, *STILL[0][1:]], *STILL[1:]]


@pytest.mark.parametrize('address', ADDRESSES[1:])
@pytest.mark.parametrize(
  ('found', 'says'),
  [
    (None, 'matrices of 3 x 4 numbers'),
    ([], 'matrices of 3 x 4 numbers'),
    (STILL, 'matrices of 3 x 4 numbers'),
    ([STILL[:2]], 'matrices of 3 x 4 numbers'),
    ([STILL] * (fly.CAMERAS + 1), 'matrices of 3 x 4 numbers'),
    ([{}], 'matrices of 3 x 4 numbers'),
    ([changed('right')], 'matrices of 3 x 4 numbers'),
    ([changed(10**400)], 'matrices of 3 x 4 numbers'),
    ([changed(float('nan'))], 'a camera is not a rotation'),
    ([changed(float('inf'))], 'a camera is not a rotation'),
    ([changed(1e300)], 'a camera is not a rotation'),
    ([changed(-1.0)], 'a camera is not a rotation'),
    ([changed(2.0)], 'a camera is not a rotation'),
  ],
)
def test_bad_cameras_are_refused(client, scene, address, found, says):
  asked = {'scene': scene, 'cameras': found, 'rate': 5}
  answer = client.post(address, content=json.dumps(asked))
  assert_refused(answer, 400, says)


@pytest.mark.parametrize('rate', [None, 'fast', 0, 61, float('nan'), [5]])
def test_bad_rates_are_refused(client, scene, rate):
  asked = {'scene': scene, 'cameras': [STILL], 'rate': rate}
  answer = client.post('/fly.mp4', content=json.dumps(asked))
  assert_refused(answer, 400, 'rate must be a number from 1 to 60')


@pytest.mark.parametrize('unknown', [None, '', 'x', 5, [], {}])
def test_unknown_scenes_are_not_found(client, unknown):
  answer = client.post('/view', json={'scene': unknown, 'cameras': [STILL]})
  assert_refused(answer, 404, 'not in memory any more; choose it again')


def test_the_oldest_scene_is_forgotten(mover, monkeypatch):
  monkeypatch.setattr(fly, '_SCENES', 2)
  app = fly.application(fly.Flyer(mover))
  with TestClient(app) as client:

    def choose(frame):
      asked = {'clip': CLIP, 'frame': frame}
      return client.post('/clip', json=asked).json()['scene']

    first, second = choose(0), choose(1)
    assert view(client, first, cameras(1)[0]).status_code == 200  # Used again.
    choose(2)
    assert view(client, first, cameras(1)[0]).status_code == 200
    assert view(client, second, cameras(1)[0]).status_code == 404


def test_too_many_requests_wait(mover, monkeypatch):
  monkeypatch.setattr(fly, '_AT_ONCE', 0)
  with TestClient(fly.application(fly.Flyer(mover))) as client:
    answer = client.post('/clip', json={'clip': CLIP})
    assert_refused(answer, 503, 'too many visitors fly now; try again')


def test_a_path_is_downloaded(client, scene, mover):
  made = mover.model.calibration
  path = cameras(6, 20.0)
  inside = made.distance(path) <= made.motions.limit
  assert inside[0]
  assert not inside[-1]
  asked = {'scene': scene, 'cameras': path.tolist(), 'rate': 7.5}
  answer = client.post('/fly.mp4', json=asked)
  with av.open(io.BytesIO(answer.content)) as video:
    assert float(video.streams.video[0].average_rate) == 7.5
    frames = [x.to_ndarray(format='rgb24') for x in video.decode(video=0)]
  captions = np.stack(frames)[:, :20].astype(int)
  orange = (captions[..., 0] - captions[..., 2] > 80).any((1, 2))
  np.testing.assert_array_equal(orange, ~inside)


def test_without_a_calibration_there_is_nothing_to_ask(mover):
  assert len(fly.routes(mover)) == 1
  bare = mover.model.at(mover.model.step, mover.model._params)
  assert fly.routes(dataclasses.replace(mover, model=bare)) == []


# ==============================================================================
# The page
# ==============================================================================

PIXELS = 'return document.getElementById(arguments[0]).toDataURL()'


class Page:
  """The tab of the page in a browser."""

  def __init__(self, opened, address):
    self.opened, self.address = opened, address
    opened.get(address)
    tabs = wait(lambda: opened.find_elements(By.CSS_SELECTOR, '[role=tab]'))
    next(tab for tab in tabs if tab.text == 'Fly').click()
    frame = wait(lambda: opened.find_elements(By.CSS_SELECTOR, 'iframe'))[0]
    opened.switch_to.frame(frame)
    wait(lambda: 'standard deviations' in self.text('status'))

  def find(self, name):
    return self.opened.find_element(By.ID, name)

  def text(self, name):
    return self.find(name).text

  def pixels(self, name):
    return self.opened.execute_script(PIXELS, name)

  def length(self):
    """Number of cameras of the path."""
    return int(self.text('length').split()[2])

  def hold(self, key):
    self.find('view').click()
    hold = ActionChains(self.opened).key_down(key).pause(1).key_up(key)
    hold.perform()

  def drag(self, name, right, down):
    actions = ActionChains(self.opened)
    actions.drag_and_drop_by_offset(self.find(name), right, down).perform()


@contextlib.contextmanager
def serve(place, run, folder):
  (folder / 'served').mkdir()
  flags = f'--workdir={place / run}', f'--data_dir={place}/data'
  with (
    serving.serve(folder / 'served', *flags) as (address, _),
    browser.chromium(downloads=folder / 'downloads') as opened,
  ):
    yield Page(opened, address)


def status_from_elsewhere(address):
  """The status of a request of another site."""
  request = urllib.request.Request(
    address, b'{}', {'Origin': 'http://evil.example'}
  )
  with pytest.raises(urllib.error.HTTPError) as caught:
    urllib.request.urlopen(request, timeout=PATIENCE)
  with caught.value as error:
    return error.code


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::ResourceWarning')  # Selenium's.
def test_fly_in_a_browser(place, tmp_path):
  with serve(place, 'run', tmp_path) as page:
    assert status_from_elsewhere(f'{page.address}fly/view') == 403
    assert page.length() == 1
    assert not page.find('save-mp4').is_enabled()
    start, drawn = page.pixels('view'), page.pixels('path')
    page.hold('w')
    wait(lambda: 'pictures a second' in page.text('where'))
    assert page.length() >= 3
    assert page.pixels('view') != start
    assert page.pixels('path') != drawn
    assert '0.00 right, 0.00 down' in page.text('where')
    assert '0.00 ahead' not in page.text('where')
    # Dragging turns; far away there is a warning in orange.
    assert 'turned 0.0° right, 0.0° up' in page.text('where')
    page.drag('view', 100, 50)
    wait(lambda: '° left, ' in page.text('where'))

    def is_beyond():
      page.drag('view', 200, 100)
      return 'the picture is unreliable' in page.text('status')

    wait(is_beyond)
    colour = page.find('status').value_of_css_property('color')
    assert colour == 'rgba(200, 80, 0, 1)'
    # The path turns, too.
    drawn = page.pixels('path')
    page.drag('path', 50, 0)
    assert page.pixels('path') != drawn
    files = (
      tmp_path / 'downloads/fly.mp4',
      tmp_path / 'downloads/transforms.json',
    )
    count = page.length()
    for button, file in zip(('save-mp4', 'save-cameras'), files, strict=True):
      page.find(button).click()
      wait(file.exists)
    page.hold('r')
    wait(lambda: page.length() == 1)
    wait(lambda: page.pixels('view') == start)
    # A picture of the visitor's.
    page.find('picture').send_keys(str(place / 'kitchen.png'))
    wait(lambda: page.pixels('view') != start)
    page.find('picture').send_keys(str(place / 'broken.png'))
    wait(lambda: 'cannot be read as a picture' in page.text('status'))
    complaints = [x for x in browser.errors(page.opened) if ' 400 ' not in x]
    assert complaints == []
    host = page.address.strip('/').split('//')[1]
    assert browser.hosts(page.opened) == {host}
  with av.open(str(files[0])) as video:
    assert len(list(video.decode(video=0))) == count
  found = camera_paths.read(files[1])
  assert len(found.world_to_camera) == count
  known = xfactor.load(place / 'run').calibration
  np.testing.assert_allclose(found.focal, known.focal)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::ResourceWarning')
def test_only_turning_cameras_do_not_move(place, tmp_path):
  shutil.copytree(place / 'run', place / 'turning')
  known = xfactor.load(place / 'turning').calibration
  still = dataclasses.replace(known, move=0.0)
  calibration.save(still, place / 'turning')
  with serve(place, 'turning', tmp_path) as page:
    assert 'the keys that move do nothing' in page.text('only-turns')
    page.hold('w')
    assert page.length() == 1
    page.hold(Keys.ARROW_RIGHT)
    wait(lambda: page.length() > 1)
    assert page.text('where').startswith('turned ')
