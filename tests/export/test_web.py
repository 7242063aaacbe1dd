"""The exported page, from a plain file server, in a headless browser."""

import functools
import http.server
import re
import shutil
import threading

import numpy as np
import pytest
from etils import epath
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests import browser, test_api
from tests.demo.serving import wait
from tests.inference import test_calibration
from xfactor import api
from xfactor.data.formats import camera_paths
from xfactor.errors import UserError
from xfactor.export import formats, web
from xfactor.inference import calibration, movie

SHOWN = """
const canvas = document.getElementById(arguments[0]);
const { width, height } = canvas;
return Array.from(
  canvas.getContext('2d').getImageData(0, 0, width, height).data);
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a run and its page; the runtime comes from npm."""
  folder = tmp_path_factory.mktemp('place')
  test_api.save(folder / 'run')
  with pytest.MonkeyPatch.context() as patch:  # Short trainings.
    patch.setattr(calibration, '_STEPS', 150)
    patch.setattr(calibration, '_MEMBERS', 2)
    calibration._train.clear_cache()
    made = test_calibration.fit(
      test_calibration.pairs_of(test_calibration.motions())
    )
  calibration._train.clear_cache()
  calibration.save(made, folder / 'run')
  if not shutil.which('npm'):
    pytest.skip('no npm: apt-get install npm')
  formats.write(folder / 'run', folder / 'site', to='web')
  size = test_api.SIZE
  frames = [np.full((2 * size, 3 * size, 3), 20 * i, 'uint8') for i in range(8)]
  (folder / 'walk.mp4').write_bytes(movie.mp4(np.stack(frames), 4))
  (folder / 'broken.mp4').write_bytes(b'not a video')
  scene = test_api.pictures(1, seed=1)[0]
  Image.fromarray(scene).save(folder / 'kitchen.png')
  return folder


@pytest.fixture(params=['CPU'])
def page(place, request):
  """The page, opened from a plain file server; its address is `page.at`."""
  handler = functools.partial(Quiet, directory=place / 'site')
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    with browser.chromium(
      webgpu=request.param == 'GPU', downloads=place / 'downloads'
    ) as opened:
      opened.at = f'127.0.0.1:{server.server_port}'
      opened.get(f'http://{opened.at}/')
      wait(lambda: 'Choose' in status(opened))
      yield opened
  finally:
    server.shutdown()
    server.server_close()


def text(page, name):
  return page.find_element(By.ID, name).text


def status(page):
  return text(page, 'status')


def choose(page, name, path):
  page.find_element(By.ID, name).send_keys(str(path))


def shown(page, name):
  size = test_api.SIZE
  pixels = np.reshape(page.execute_script(SHOWN, name), (size, size, 4))
  assert (pixels[..., 3] == 255).all()
  return pixels[..., :3]


@pytest.mark.slow
@pytest.mark.parametrize('page', ['CPU', 'GPU'], indirect=True)
@pytest.mark.filterwarnings('ignore::ResourceWarning')  # Selenium's.
def test_a_video_moves_a_picture(place, page, request):
  where = request.node.callspec.params['page']
  choose(page, 'video', place / 'walk.mp4')
  choose(page, 'picture', place / 'kitchen.png')
  found = wait(
    lambda: re.fullmatch(
      rf'6 frames, (\d+\.\d) frames per second on the {where}\.', status(page)
    )
  )
  print(f'{found[1]} frames per second of 32 x 32 pixels on the {where}')
  assert float(found[1]) > 0
  last = shown(page, 'moved')
  # Steps back to the reference, whose pose is zero whatever the video shows.
  slider = page.find_element(By.ID, 'shown')
  page.execute_script(
    'arguments[0].value = 0; arguments[0].dispatchEvent(new Event("input"))',
    slider,
  )
  model = api.load(place / 'run')
  zero = np.zeros((1, model.pose_dim), np.float32)
  scene = np.asarray(Image.open(place / 'kitchen.png'))
  want = model.render([scene], zero, zero)[0].astype(int)
  first = shown(page, 'moved')
  assert np.abs(first - want).max() <= 1  # The browser rounds halves up.
  assert np.abs(last - first).max() > 2
  # The middle of a dark frame, and nothing from elsewhere.
  assert np.ptp(shown(page, 'motion')) <= 2
  assert browser.hosts(page) == {page.at}
  assert browser.errors(page) == []


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::ResourceWarning')
def test_keys_fly_through_a_picture(place, page):
  choose(page, 'picture', place / 'kitchen.png')
  wait(lambda: 'standard deviations' in text(page, 'distance'))
  start = shown(page, 'view')
  view = page.find_element(By.ID, 'view')
  for key in 'w', Keys.ARROW_RIGHT, 'q':
    view.click()
    ActionChains(page).key_down(key).pause(0.5).key_up(key).perform()
  wait(lambda: 'pictures a second' in text(page, 'where'))
  print(re.search(r'[\d.]+ pictures a second', text(page, 'where'))[0])
  page.find_element(By.ID, 'save-cameras').click()
  file = place / 'downloads/transforms.json'
  wait(file.exists)
  path = camera_paths.read(file)
  count = int(text(page, 'length').split()[2])
  assert len(path.world_to_camera) == count > 3
  # What is shown is what the model renders from the same cameras.
  model = api.load(place / 'run')
  np.testing.assert_allclose(path.focal, model.calibration.focal)
  scene = np.asarray(Image.open(place / 'kitchen.png'))
  want = model.render_path([scene], path.world_to_camera[[0, -1]]).astype(int)
  last = shown(page, 'view')
  assert np.abs(last - want[1]).max() <= 1
  assert np.abs(start - want[0]).max() <= 1
  assert np.abs(last - start).max() > 2
  (far,) = model.calibration.distance(path.world_to_camera[-1:])
  said = float(text(page, 'distance').split()[0])
  assert said == pytest.approx(far, abs=0.06)
  view.click()
  ActionChains(page).send_keys('r').perform()
  wait(lambda: text(page, 'length').split()[2] == '1')
  np.testing.assert_array_equal(shown(page, 'view'), start)
  assert browser.hosts(page) == {page.at}
  assert browser.errors(page) == []


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::ResourceWarning')
def test_files_that_cannot_be_read_are_named(place, page):
  choose(page, 'picture', place / 'kitchen.png')
  choose(page, 'video', place / 'broken.mp4')
  said = 'this browser cannot read broken.mp4: choose another video.'
  wait(lambda: status(page) == said)


def test_without_npm_the_remedy_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(UserError, match=r'npm is not installed.*Node\.js'):
    web.write(epath.Path(tmp_path / 'site'))


def test_a_package_that_npm_lacks_is_one_sentence(tmp_path, monkeypatch):
  if not shutil.which('npm'):
    pytest.skip('no npm: apt-get install npm')
  monkeypatch.setattr(web, 'RUNTIME', f'file:{tmp_path}/none')
  with pytest.raises(UserError, match='npm cannot fetch') as caught:
    web.write(epath.Path(tmp_path / 'site'))
  assert '\n' not in str(caught.value)
