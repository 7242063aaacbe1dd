"""The explorer shows what is there, says what is not, and reads no more."""

import dataclasses
import functools
import io
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from tests import browser
from tests.data.convert.test_run import Fake, run
from tests.demo import serving
from xfactor.data import images, preview
from xfactor.data.records import store as store_lib
from xfactor.demo import catalogue, clips, explorer
from xfactor.errors import UserError
from xfactor.geometry import cameras

gr = pytest.importorskip('gradio')
gradio_client = pytest.importorskip('gradio_client')
pytest.importorskip('plotly')
FULL = 'full 1.0.0 train'
FORGED = (
  '../data/full 1.0.0 train',  # It would be there, were it a path.
  'full 1.0.0 test',
  'full',
  '/etc/passwd',
)
STEP, DEPTH = 0.25, 2.0
HEIGHT, WIDTH = 16, 24


@dataclasses.dataclass(frozen=True)
class Straight(Fake):
  """Clips of one colour each: cameras go right, past a wall, 2 units away.

  The depth of a frame's first row is unknown.
  """

  known: bool = True
  with_depth: bool = True

  def clips(self, item):
    for clip in super().clips(item):
      rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
      rgb[..., item.payload % 3] = 255
      n = len(clip.frames)
      poses = np.tile(np.eye(3, 4, dtype=np.float32), (n, 1, 1))
      poses[:, 0, 3] = -STEP * np.arange(n)
      intrinsics = np.tile(np.float32([0.5, 0.75, 0.5, 0.5]), (n, 1))
      yield dataclasses.replace(
        clip,
        # No two alike: the bytes of one are looked for in the file.
        frames=[marked(rgb, item.payload, i) for i in range(n)],
        height=HEIGHT,
        width=WIDTH,
        intrinsics=intrinsics if self.known else None,
        world_to_camera=poses if self.known else None,
        depth=[wall()] * n if self.with_depth else None,
      )


def marked(rgb, clip, frame):
  rgb = rgb.copy()
  rgb[0, 0] = clip, frame, 0
  return images.encode_png(rgb)


def wall():
  depth = np.full((HEIGHT, WIDTH), 1000 * DEPTH, np.uint16)
  depth[0] = 0
  out = io.BytesIO()
  Image.fromarray(depth).save(out, 'png')
  return out.getvalue()


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch):
  """Spares the disk: most of a small conversion's time is its flushes."""
  monkeypatch.setattr(os, 'fsync', lambda _: None)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
  """Sets with all, without depth, without cameras; 12 clips of 5 to 16."""
  folder = tmp_path_factory.mktemp('explored') / 'data'
  for name, options in (
    ('full', {'bad': (1,)}),
    ('posed', {'with_depth': False}),
    ('videos', {'with_depth': False, 'known': False}),
  ):
    source = Straight(count=12, frames=5, **options)
    run(source, folder, name=name, test_fraction=0)
  return folder


@pytest.fixture
def data(converted, tmp_path):
  """The same to damage."""
  return shutil.copytree(converted, tmp_path / 'data')


def store_of(folder, name='full'):
  return store_lib.open_split(folder, name, 'train')


def damage(folder, config, wanted, name='full'):
  """Turns a bit of a record over, which its checksum tells."""
  paths = (folder / name / config / '1.0.0').glob('*.array_record-*')
  contents = {path: path.read_bytes() for path in paths}
  (path,) = [path for path, data in contents.items() if wanted in data]
  assert contents[path].count(wanted) == 1
  data = bytearray(contents[path])
  data[data.index(wanted) + len(wanted) // 2] ^= 1
  path.write_bytes(data)


def test_overview_counts_what_is_there(converted):
  splits, problems = catalogue.overview(converted)
  assert problems == []
  assert [x.row()[:5] for x in splits] == [
    ('full', '1.0.0', 'train', '11', '120'),  # Without the bad one, of six.
    ('posed', '1.0.0', 'train', '12', '126'),
    ('videos', '1.0.0', 'train', '12', '126'),
  ]
  assert [x.depth for x in splits] == [True, False, False]
  size = sum(
    x.stat().st_size for x in (converted / 'full').rglob('*.array_record-*')
  )
  assert splits[0].bytes == size
  assert splits[0].source.startswith('fake ')


@pytest.mark.parametrize('content', ['{', '[]', '{"splits": {"train": {}}}'])
def test_a_broken_manifest_hides_no_other_data_set(data, content):
  path = data / 'posed' / 'clips' / '1.0.0' / 'manifest.json'
  path.write_text(content)
  splits, (problem,) = catalogue.overview(data)
  assert {x.name for x in splits} == {'full', 'videos'}
  assert problem.startswith('posed 1.0.0 cannot be listed')


def test_an_empty_folder_has_a_sentence(tmp_path):
  for folder in (tmp_path, tmp_path / 'absent'):
    with pytest.raises(UserError, match='holds no converted data set'):
      catalogue.overview(folder)


def test_a_split_stays_open_until_it_is_converted_again(data):
  split = catalogue.overview(data)[0][1]
  first = catalogue.open_split(data, split)
  assert catalogue.open_split(data, split) is first
  again = Straight(count=3, with_depth=False)
  run(again, data, name='posed', test_fraction=0, overwrite=True)
  path = data / 'posed' / 'clips' / '1.0.0' / 'manifest.json'
  os.utime(path, (1, 1))  # A disk may have no finer clock than the test.
  assert len(catalogue.open_split(data, split)) == 3


def test_search_is_of_parts_in_any_case(converted):
  store = store_of(converted)
  assert catalogue.search(store, '').tolist() == list(range(11))
  found = catalogue.search(store, 'CLIP-01')
  assert [store.clip_id(int(i)) for i in found] == ['clip-010', 'clip-011']
  assert len(catalogue.search(store, 'absent')) == 0


def test_bad_inputs_are_told(converted):
  said, rows = catalogue.bad_inputs(store_of(converted))
  assert rows == [('item/001', 'item 1 is broken')]
  assert 'full 1.0.0 that could not be converted: 1;' in said
  # Every other clip of `Fake` has one, here without that of the bad one.
  assert 'frames of train replaced by a neighbouring frame: 5.' in said


def test_strips_show_frames_and_damage(data):
  store = store_of(data)
  picture, problem = clips.strip(store, 0)
  red = (picture == [255, 0, 0]).all(-1).mean()
  assert red > 0.8
  assert clips.caption(store, 0, problem) == 'clip-000, 5 frames'
  damage(data, 'frames', store.frame(0))
  store = store_of(data)
  picture, problem = clips.strip(store, 0)
  assert np.ptp(picture) == 0
  wanted = 'clip-000, its frames cannot be read: '
  assert clips.caption(store, 0, problem).startswith(wanted)
  assert problem in clips.details(store, 0, True)[0]


def test_points_lie_where_depth_says(converted):
  store = store_of(converted)
  clip = store.clip(0)
  points, colours = clips.cloud(store, clip)
  # Five frames, without the row that is unknown.
  assert len(points) == 5 * (HEIGHT - 1) * WIDTH
  np.testing.assert_allclose(points[:, 2], DEPTH)
  assert (colours == [255, 0, 0]).all()
  # By hand: half a pixel from the left and one and a half from the top.
  x = (0.5 / WIDTH - 0.5) / 0.5 * DEPTH
  y = (1.5 / HEIGHT - 0.5) / 0.75 * DEPTH
  np.testing.assert_allclose(points[0], [x, y, DEPTH])
  last = points[-(HEIGHT - 1) * WIDTH]
  np.testing.assert_allclose(last, [x + 4 * STEP, y, DEPTH])


def test_points_are_few(converted, monkeypatch):
  store = store_of(converted)
  monkeypatch.setattr(clips, 'POINTS', 100)
  points, _ = clips.cloud(store, store.clip(0))
  assert 20 < len(points) <= 100
  frame = points[: len(points) // 5]
  uv, z = cameras.project(
    frame,
    np.tile([0.5, 0.75, 0.5, 0.5], (len(frame), 1)),
    np.tile(np.eye(3, 4), (len(frame), 1, 1)),
  )
  np.testing.assert_allclose(z, DEPTH)
  # Spread over the picture, at the centres of pixels.
  assert (np.ptp(uv, 0) > 0.6).all()
  pixels = uv * [WIDTH, HEIGHT] - 0.5
  np.testing.assert_allclose(pixels, pixels.round(), atol=1e-9)


def test_cameras_are_drawn_ahead_and_upright(converted):
  store = store_of(converted)
  said, _, figure = clips.details(store, 0, depth=True)
  assert said.startswith('clip-000: 5 frames, 24 x 16')
  cloud, path, *frusta = figure.data
  right, ahead, up = (np.asarray(path[axis]) for axis in 'xyz')
  np.testing.assert_allclose(right, STEP * np.arange(5), atol=1e-6)
  np.testing.assert_allclose([ahead, up], 0, atol=1e-6)
  np.testing.assert_allclose(cloud.y, DEPTH, atol=1e-6)
  # The first row that is known is high up.
  assert cloud.z[0] > 0 > cloud.z[-1]
  assert len(frusta) == preview.FRAMES - 3
  assert cloud.marker.color[0] == '#ff0000'


@pytest.mark.parametrize(
  ('name', 'sentence', 'drawn'),
  [('posed', 'No depth is known', True), ('videos', 'No cameras', False)],
)
def test_what_is_unknown_is_told(converted, name, sentence, drawn):
  said, picture, figure = clips.details(store_of(converted, name), 0, False)
  assert sentence in said
  assert picture.std() > 0
  assert (figure is not None) == drawn
  if drawn:
    assert {x.mode for x in figure.data} == {'lines'}


def test_a_damaged_frame_leaves_the_cameras(data):
  store = store_of(data)
  damage(data, 'frames', store.frame(2))
  said, _, figure = clips.details(store_of(data), 0, True)
  assert 'Its points cannot be shown: ' in said
  assert {x.mode for x in figure.data} == {'lines'}


def test_baselines_of_a_straight_path(data):
  store = store_of(data)
  found = clips.baselines(store)
  np.testing.assert_allclose(found.steps, STEP, atol=1e-6)
  wanted = STEP * (store.num_frames - 1)
  np.testing.assert_allclose(found.widest, wanted, atol=1e-5)
  damage(data, 'clips', b'clip-004')
  found = clips.baselines(store_of(data))
  assert (len(found.steps), found.sampled, found.unreadable) == (10, 11, 1)
  assert '1 of them cannot be read' in clips.describe(store, found)


def test_histograms_count_every_clip(converted, monkeypatch):
  monkeypatch.setattr(clips, 'SAMPLE', 4)
  store = store_of(converted)
  found = clips.baselines(store)
  lengths, steps, widest = clips.histograms(store.num_frames, found).data
  assert [sum(x.y) for x in (lengths, steps, widest)] == [11, 4, 4]
  assert [x for x, y in zip(lengths.x, lengths.y, strict=True) if y] == (
    store.num_frames.tolist()
  )
  unknown = clips.baselines(store_of(converted, 'videos'))
  assert unknown.sampled == 4
  assert len(clips.histograms(store.num_frames, unknown).data) == 1
  assert 'None of 4 sampled clips has cameras' in clips.describe(store, unknown)


def test_histograms_of_equal_clips():
  one = clips.Baselines(np.array([0.1, 0.1 + 1e-17]), np.zeros(2), 2, 0)
  bars = clips.histograms(np.array([7, 7], np.int32), one).data
  assert [sum(x.y) for x in bars] == [2, 2, 2]


@pytest.fixture
def page(converted):
  found = explorer.Explorer(converted)
  found.begin()
  return found


@pytest.mark.parametrize(
  ('asked', 'shown', 'count'),
  [(-5, 1, 8), (1, 1, 8), (2, 2, 3), (99, 2, 3), (None, 1, 8)],
)
def test_pages_are_those_that_there_are(page, asked, shown, count):
  said, strips, (label, numbers), number = page.browse(FULL, '', asked)
  assert (number, len(strips)) == (shown, count)
  assert f'11 clips, page {shown} of 2' in said['value']
  assert label == FULL
  assert numbers == list(range(8 * shown - 8, 8 * shown - 8 + count))


def test_pages_turn(page):
  assert [page.following(FULL, '', x)[-1] for x in (None, 1, 2)] == [2, 2, 2]
  assert [page.previous(FULL, '', x)[-1] for x in (None, 1, 2)] == [1, 1, 1]


def test_only_listed_splits_are_read(page, monkeypatch):
  read, open_split = [], store_lib.open_split

  def watched(*args):
    read.append(args)
    return open_split(*args)

  monkeypatch.setattr(store_lib, 'open_split', watched)
  catalogue._opened.cache_clear()
  for label in FORGED:
    for call in (
      functools.partial(page.browse, label, ''),
      functools.partial(page.count, label),
      functools.partial(page.check, label),
      functools.partial(page.look, (label, [0])),
    ):
      with pytest.raises(UserError, match='Choose a split from the list'):
        call()
  assert read == []
  page.browse(FULL, '')
  assert len(read) == 1


@pytest.mark.parametrize('at', [-1, 8, 10**9])
def test_only_shown_clips_are_drawn(page, at):
  shown = page.browse(FULL, '')[2]
  assert 'clip-000: 5 frames' in page.look(shown)[0]['value']
  with pytest.raises(UserError, match='Choose a clip from the list'):
    page.look(shown, at)
  with pytest.raises(UserError, match='Choose a clip from the list'):
    page.look(None)


def test_trouble_is_a_sentence(data):
  page = explorer.Explorer(data)
  page.begin()
  path = next((data / 'full' / 'frames' / '1.0.0').glob('*.array_record-*'))
  os.truncate(path, 100)
  browse = explorer._told(page.browse, 4)
  said, *others = browse(FULL, '')
  assert 'has 100 bytes instead of' in said['value']
  assert others == [None] * 3
  assert 'damaged file: 1' in page.check(FULL)[1]
  said, *_ = browse('posed 1.0.0 train', '<b>')
  assert 'has &#x27;&lt;b&gt;&#x27; in its id' in said['value']
  shutil.rmtree(data)
  for said, *others in (explorer._told(page.begin, 3)(), browse(FULL, '')):
    assert said['visible']
    assert str(data) in said['value']
    assert not any(others)


@pytest.fixture(scope='module')
def address(converted, tmp_path_factory):
  """Of the page with this tab alone."""
  folder = tmp_path_factory.mktemp('served')
  with serving.serve(folder, f'--data_dir={converted}') as (address, _):
    yield address


def test_the_server_checks_choices(address):
  client = gradio_client.Client(address, verbose=False)
  client.predict(api_name='/begin')
  for label in FORGED:
    with pytest.raises(gradio_client.exceptions.AppError):
      client.predict(label, '', 1, api_name='/browse')
  _, strips, page = client.predict(FULL, '', 2, api_name='/browse')
  assert (len(strips), page) == (3, 2)


@pytest.mark.slow
def test_in_a_browser(address):
  Keys = pytest.importorskip('selenium.webdriver').Keys
  with browser.chromium(height=1400) as opened:

    def wait(script):
      deadline = time.monotonic() + serving.PATIENCE
      while not (found := opened.execute_script(f'return {script}')):
        assert time.monotonic() < deadline, script
        time.sleep(0.1)
      return found

    def text(words):
      return wait(f'document.body.innerText.includes({words!r})')

    def choose(label):
      box = opened.find_element('css selector', 'input[role=combobox]')
      box.click()
      box.send_keys(Keys.CONTROL + 'a' + Keys.NULL, label, Keys.ENTER)

    opened.get(address)
    text('converted by')
    text('videos')
    choose('full 1.0.0 train')
    # The first clip, its cameras, and three histograms.
    text('clip-000: 5 frames')
    wait("document.querySelectorAll('.strips img').length == 8")
    wait("document.querySelectorAll('.js-plotly-plot canvas').length > 0")
    wait("document.querySelectorAll('.js-plotly-plot .barlayer').length == 3")
    text('item 1 is broken')
    opened.find_elements('css selector', '.strips button')[2].click()
    text('clip-003: 8 frames')
    (forward,) = (
      x
      for x in opened.find_elements('tag name', 'button')
      if x.text == 'Next page'
    )
    forward.click()
    text('11 clips, page 2 of 2')
    wait("document.querySelectorAll('.strips img').length == 3")
    choose('videos 1.0.0 train')
    text('No cameras are known')
    assert not opened.find_elements('css selector', '.js-plotly-plot canvas')
    [
      x
      for x in opened.find_elements('tag name', 'button')
      if x.text.startswith('Verify')
    ][0].click()
    text('no problems found')
    assert browser.errors(opened) == []
    assert browser.hosts(opened) == {address.split('/')[2]}
