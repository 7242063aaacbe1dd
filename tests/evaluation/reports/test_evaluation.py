"""The report: what it shows, what it escapes, and how a browser takes it."""

import base64
import dataclasses
import io
import json
import re
from html import parser

import numpy as np
import pytest
from PIL import Image

from tests import browser
from tests.evaluation import test_transfer_test
from xfactor import config as configs
from xfactor.evaluation import probe, transfer_test
from xfactor.evaluation.reports import evaluation
from xfactor.methods import scores as methods_scores
from xfactor.metrics import poses

PAIRS, EXAMPLES, TARGETS, SHOWN, SIZE = 8, 12, 5, 6, 64


def heldout_result(rng):
  def scores(mean):
    return {
      'psnr': rng.normal(mean, 3, EXAMPLES).astype(np.float32),
      'ssim': rng.uniform(0, 1, EXAMPLES).astype(np.float32),
    }

  rows = {'model': 24, 'halves': 23, 'shuffled': 15, 'copy': 18, 'mean': 12}
  shape = (SHOWN, SIZE, SIZE, 3)
  pictures = {
    name: rng.integers(0, 256, shape, np.uint8)
    for name in ('prediction', 'truth', 'scene', 'transfer')
  }
  context = rng.integers(0, 256, (SHOWN, 3, SIZE, SIZE, 3), np.uint8)
  return methods_scores.Result(
    {who: scores(mean) for who, mean in rows.items()},
    {'context': context, **pictures},
  )


def paths(rng, count=PAIRS):
  """Smooth walks, world to camera, with frame 0 at the origin."""
  out = np.tile(np.eye(4), (count, TARGETS, 1, 1))
  turns = np.arange(TARGETS) * rng.uniform(-0.3, 0.3, (count, 1))
  out[..., 0, 0] = out[..., 2, 2] = np.cos(turns)
  out[..., 0, 2], out[..., 2, 0] = np.sin(turns), -np.sin(turns)
  steps = rng.normal(0.3, 0.3, (count, TARGETS, 3))
  out[..., :3, 3] = np.cumsum(steps, axis=1) - steps[:, :1]
  return out


def transfer_result(rng, rejected=()):
  target, model = paths(rng), paths(rng)
  model[0] = target[0]
  accepted = ~np.isin(np.arange(PAIRS), rejected)
  model[~accepted] = np.nan
  scores = {row: poses.score(target, model) for row in transfer_test.ROWS}
  shape = (PAIRS, TARGETS, SIZE, SIZE, 3)
  drawn, motion = rng.integers(0, 256, (2, *shape), np.uint8)
  return transfer_test.Result(
    oracle='reader 1',
    summaries={row: poses.aggregate(x, accepted) for row, x in scores.items()},
    scores=scores,
    accepted=dict.fromkeys(scores, accepted),
    paths={'target': target, 'model': model},
    distances={'model': 123.4},
    distance='fid',
    pictures={'motion': motion, 'drawn': drawn, 'scene': drawn[:, 0]},
  )


class Page(parser.HTMLParser):
  """The elements of a page, (tag, attributes), and its texts in lines."""

  def __init__(self, path):
    super().__init__()
    self.elements, self.text = [], ''
    self.feed(path.read_text())

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_data(self, data):
    self.text += data + '\n'

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


def write(
  folder,
  heldout=None,
  transfer=None,
  probes=None,
  config=None,
  name='squares',
):
  return evaluation.write(
    folder,
    config=config or configs.small(),
    step=1200,
    heldout={name: heldout} if heldout else {},
    transfer={name: transfer} if transfer else {},
    probes={name: probes} if probes else {},
  )


def decode(source):
  kind, data = source.split(',')
  assert kind == 'data:image/png;base64'
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_tables_have_the_numbers(tmp_path):
  rng = np.random.default_rng(0)
  heldout, transfer = heldout_result(rng), transfer_result(rng, rejected=[5])
  page = Page(write(tmp_path, heldout, transfer))
  assert f'{heldout.means()["model"]["psnr"]:.1f}' in page.text
  assert f'{heldout.means()["halves"]["ssim"]:.3f}' in page.text
  mean = transfer.summaries['model'].means['auc@20']
  low, high = f'{100 * mean.low:.1f}', f'{100 * mean.high:.1f}'
  assert f'{100 * mean.value:.1f}\n{low} to {high}\n' in page.text
  assert f'{100 * mean.rejected_as_zero:.1f}' in page.text
  assert '87.5' in page.text  # Accepted: seven of eight.
  assert 'reader 1' in page.text
  assert 'step 1,200' in page.text


def test_histograms_count_every_example(tmp_path):
  rng = np.random.default_rng(0)
  path = write(
    tmp_path, heldout_result(rng), transfer_result(rng, rejected=[5, 6])
  )
  bars = re.findall(r'<title>\S+ to \S+: (\d+)</title>', path.read_text())
  counts = np.array(bars, int).reshape(2, -1).sum(1)
  assert counts.tolist() == [EXAMPLES, PAIRS - 2]


def test_best_median_and_worst_example(tmp_path):
  heldout = heldout_result(np.random.default_rng(0))
  # Better ones without pictures must not be looked for.
  heldout.scores['model']['psnr'][:SHOWN] = [20, 23, 19, np.nan, 22, 21]
  heldout.scores['model']['psnr'][SHOWN:] = 99
  page = Page(write(tmp_path, heldout))
  titles = re.findall(r'(\w+): ([\d.]+) dB \(example (\d)\)', page.text)
  assert titles == [
    ('Best', '23.0', '2'),
    ('Median', '21.0', '6'),
    ('Worst', '19.0', '3'),
  ]
  pictures = [decode(x['src']) for x in page.all('img')]
  expected = [
    x
    for i in (1, 5, 2)
    for x in (
      *heldout.images['context'][i],
      heldout.images['prediction'][i],
      heldout.images['truth'][i],
    )
  ]
  np.testing.assert_array_equal(pictures, expected)


def test_few_examples_are_shown_once(tmp_path):
  heldout = heldout_result(np.random.default_rng(0))
  for shown, labels in ((1, ['Best']), (2, ['Best', 'Worst'])):
    images = {key: value[:shown] for key, value in heldout.images.items()}
    few = methods_scores.Result(heldout.scores, images)
    page = Page(write(tmp_path, few))
    assert re.findall(r'(\w+): [\d.]+ dB', page.text) == labels


def test_best_and_worst_pair(tmp_path):
  transfer = transfer_result(np.random.default_rng(0), rejected=[4])
  page = Page(write(tmp_path, transfer=transfer))
  assert 'Best: AUC@20 100.0 % (pair 1)' in page.text
  assert len(page.all('video')) == 3
  pictures = [decode(x['src']) for x in page.all('img')[: 2 * TARGETS + 1]]
  np.testing.assert_array_equal(
    pictures,
    [
      *transfer.pictures['motion'][0],
      *transfer.pictures['drawn'][0],
      transfer.pictures['scene'][0],
    ],
  )


def test_distances_and_probes_are_in_tables(tmp_path):
  rng = np.random.default_rng(0)
  scores = poses.score(paths(rng), paths(rng))
  summary = poses.aggregate(scores, np.ones(PAIRS, bool))
  side = probe.Side('squares/test', 3, PAIRS, 16, 0)
  probes = probe.Result(
    train=dataclasses.replace(side, name='squares/train'),
    test=side,
    losses={'probe': 0.1},
    summaries={'probe': summary},
    scores={'probe': scores},
  )
  page = Page(write(tmp_path, transfer=transfer_result(rng), probes=probes))
  assert 'FID' in page.text
  assert '123.4' in page.text
  assert 'Pose probe' in page.text
  text = page.text.split('Pose probe')[1]
  assert 'squares/train' in text
  assert f'{100 * summary.means["auc@20"].value:.1f}' in text


def test_all_pairs_rejected(tmp_path):
  transfer = transfer_result(np.random.default_rng(0), rejected=range(PAIRS))
  page = Page(write(tmp_path, transfer=transfer))
  assert 'Worst: rejected' in page.text
  assert not page.all('canvas')
  assert 'nan' not in page.text.split('Configuration')[0].lower()


def test_pairs_whose_target_stays_in_place_have_no_score(tmp_path):
  transfer = transfer_result(np.random.default_rng(0))
  transfer.scores['model'].has_translation[:] = False
  page = Page(write(tmp_path, transfer=transfer))
  assert not page.all('video')


def test_everything_is_escaped(tmp_path):
  evil = '<script>alert(1)</script>&amp;"$body'
  config = configs.small().copy_and_resolve_references().unlock()
  config.data.dir = '</pre>' + evil
  path = write(
    tmp_path,
    heldout_result(np.random.default_rng(0)),
    config=config,
    name=evil,
  )
  page = Page(path)
  assert len(page.all('script')) == 1
  assert page.text.count(evil) == 1  # The heading; JSON escapes quotes.
  recipe = page.text[page.text.index('The recipe') + len('The recipe') :]
  recipe, _ = json.JSONDecoder().raw_decode(recipe.lstrip())
  assert recipe['data']['dir'] == '</pre>' + evil


def test_size_is_bounded(tmp_path):
  # Noise is the worst that can happen to PNG and H.264.
  rng = np.random.default_rng(0)
  path = write(tmp_path, heldout_result(rng), transfer_result(rng))
  assert path.stat().length < 5_000_000


def test_a_real_transfer_test(tmp_path):
  store = test_transfer_test.store_of(tmp_path)
  result = transfer_test.evaluate(
    test_transfer_test.Painter(),
    store,
    test_transfer_test.pairs_of(store),
    test_transfer_test.Reader(),
  )
  page = Page(write(tmp_path / 'eval', transfer=result))
  assert len(page.all('canvas')) == 3
  # Model and target are the same path here, after the floor.
  _, target, model = json.loads(page.all('canvas')[0]['data-lines'])
  for a, b in zip(target['lines'], model['lines'], strict=True):
    np.testing.assert_allclose(a, b, atol=0.01)


def camera_to_world(rng):
  return np.linalg.inv(paths(rng, 1)[0])


def moved(path, rng, scale):
  """The path in another world of another scale."""
  rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
  rotation *= np.linalg.det(rotation)
  out = path.copy()
  out[:, :3, :3] = rotation @ path[:, :3, :3]
  out[:, :3, 3] = scale * path[:, :3, 3] @ rotation.T + rng.normal(size=3)
  return out


def test_alignment_undoes_a_similarity():
  rng = np.random.default_rng(0)
  target = camera_to_world(rng)
  path = moved(target, rng, 3.7)
  np.testing.assert_allclose(evaluation.align(target, path), target, atol=1e-9)


def test_alignment_of_centres_on_a_line():
  rng = np.random.default_rng(0)
  target = camera_to_world(rng)
  target[:, :3, 3] = np.arange(TARGETS)[:, None] * [0.1, 0, 0.4]
  path = moved(target, rng, 0.2)
  np.testing.assert_allclose(evaluation.align(target, path), target, atol=1e-9)


def test_alignment_keeps_a_wrong_path_large():
  target = camera_to_world(np.random.default_rng(0))
  path = target.copy()
  path[:, :3, 3] *= -1
  aligned = evaluation.align(target, path)
  np.testing.assert_allclose(
    aligned[:, :3, 3].std(0), target[:, :3, 3].std(0), atol=1e-9
  )


@pytest.mark.parametrize('still', ['target', 'path', 'both'])
def test_alignment_of_cameras_that_only_turn(still):
  target = camera_to_world(np.random.default_rng(0))
  path = target.copy()
  for name, cameras in (('target', target), ('path', path)):
    if still in (name, 'both'):
      cameras[:, :3, 3] = 0
  aligned = evaluation.align(target, path)
  assert np.isfinite(aligned).all()
  np.testing.assert_allclose(aligned[:, :3, :3], target[:, :3, :3], atol=1e-9)
  if still != 'path':
    np.testing.assert_allclose(aligned[:, :3, 3], 0, atol=1e-9)


@pytest.fixture(scope='module')
def chromium():
  with browser.chromium() as opened:
    opened.set_script_timeout(30)
    yield opened


@pytest.fixture
def opened(chromium, tmp_path):
  rng = np.random.default_rng(0)
  path = write(tmp_path, heldout_result(rng), transfer_result(rng))
  chromium.get_log('performance')
  chromium.get(path.as_uri())
  return chromium


def test_a_browser_shows_all_and_fetches_nothing(opened):
  pictures = opened.execute_async_script("""
    const done = arguments[0], all = [...document.images];
    Promise.all(all.map((x) => x.decode())).then(
      () => done(all.map((x) => x.naturalWidth)), (e) => done(`${e}`));
  """)
  assert pictures == [SIZE] * (3 * 5 + 3 * (2 * TARGETS + 1))
  videos = opened.execute_async_script("""
    const done = arguments[0], all = [...document.querySelectorAll('video')];
    const plays = (x) => new Promise((resolve) => {
      x.ontimeupdate = () => x.currentTime > 0 && resolve(
        [x.duration, x.videoWidth, x.videoHeight]);
      x.play();
    });
    Promise.all(all.map(plays)).then(done, (e) => done(`${e}`));
  """)
  assert np.array(videos) == pytest.approx(
    np.array([[2, 516, 256]] * 3), abs=0.3
  )
  addresses = browser.requests(opened)
  assert addresses[0].endswith('/index.html')
  assert len(addresses) > 10
  assert all(x.startswith('data:') for x in addresses[1:])
  assert opened.get_log('browser') == []


def test_the_policy_forbids_to_fetch(opened):
  blocked = opened.execute_async_script("""
    const done = arguments[0];
    addEventListener('securitypolicyviolation', (e) => done(e.blockedURI));
    new Image().src = 'http://localhost:9/x.png';
  """)
  assert blocked == 'http://localhost:9/x.png'
  assert opened.get_log('browser') != []


PIXELS = """
  const canvas = document.querySelector('canvas');
  canvas.scrollIntoView();
  return canvas.toDataURL();
"""


def test_paths_are_drawn_and_turn(opened):
  from selenium.webdriver import ActionChains

  picture = decode(opened.execute_script(PIXELS))
  colours = {tuple(x) for x in picture.reshape(-1, 4).tolist()}
  # Target and model, as in the style sheet.
  assert {(217, 89, 15), (47, 111, 178)} <= {x[:3] for x in colours}
  canvas = opened.find_element('css selector', 'canvas')
  drag = ActionChains(opened).click_and_hold(canvas).move_by_offset(60, 20)
  drag.release().perform()
  assert (decode(opened.execute_script(PIXELS)) != picture).any()


def test_a_phone_scrolls_in_one_direction(opened):
  emulate = 'Emulation.setDeviceMetricsOverride'
  metrics = {'height': 700, 'deviceScaleFactor': 2, 'mobile': True}
  opened.execute_cdp_cmd(emulate, {'width': 360, **metrics})
  try:
    width = opened.execute_script('return document.body.scrollWidth')
    assert width <= 360
  finally:
    opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
