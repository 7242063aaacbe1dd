"""The page that compares runs: what is in it, and how a browser takes it."""

import dataclasses
import html
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from tests import browser, commands
from tests.evaluation.reports import test_evaluation
from xfactor.evaluation.reports.runs import (
  curves,
  reading,
)
from xfactor.training.telemetry import goodput

ROOT = pathlib.Path(__file__).resolve().parents[3]
LONG = f'begun_{"x" * 60}'
EVIL = '<script>alert(1)</script>&"$body'
STEPS = range(100, 1001, 100)


def metrics(begin, end, loss):
  return [
    {
      'step': step,
      'loss': loss,
      'l1': loss,
      'skipped': 0.0,
      'learning_rate': 1e-3,
      'frames_per_s': 100.0 + step,
      'data_wait': 0.25,
      'mfu': 0.4,
    }
    for step in range(begin, end + 1, 100)
  ]


def scores(psnr, copy=15.0):
  mean = {'model': psnr, 'copy': copy, 'shuffled': psnr - 2}
  return {
    'examples': 12,
    'mean': {who: {'psnr': x, 'lpips': x / 100} for who, x in mean.items()},
  }


def summary(value):
  mean = {'value': value, 'low': 0.1, 'high': 0.9, 'rejected_as_zero': 0.05}
  if value is None:
    mean |= {'low': None, 'high': None}
  columns = ('rra@20', 'rta@20', 'auc@10', 'auc@20', 'auc@30')
  return {'pairs': 64, 'acceptance': 0.5, 'mean': dict.fromkeys(columns, mean)}


def write_lines(path, lines):
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def write_panels(workdir, steps, kinds):
  (workdir / 'panels').mkdir()
  for step in steps:
    for kind in kinds:
      Image.new('RGB', (60, 40), (step % 256, 90, 30)).save(
        workdir / 'panels' / f'{step:08d}_{kind}.png'
      )


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A whole run that went on once, one still going, one all but empty."""
  folder = tmp_path_factory.mktemp('runs')
  whole, going, begun = (folder / x for x in ('whole', 'going', LONG))

  (whole / 'eval/00001000').mkdir(parents=True)
  # It was killed at 700, and went on from 500 with other numbers.
  write_lines(whole / 'metrics.jsonl', metrics(100, 700, 4.0))
  with open(whole / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 800, "lo\n')
    f.writelines(json.dumps(x) + '\n' for x in metrics(600, 1000, 0.125))
    for step, psnr in ((500, 18.0), (1000, 20.0)):
      f.write(
        f'{{"step": {step}, "eval/big_box/psnr": {psnr}, '
        '"eval/big_box/copy_psnr": 15.0}\n'
      )
  config = {
    'method': 'xfactor',
    'seed': 7,
    'model': {'features': 64, 'pose_dim': 16},
    'train': {'steps': 1000},
  }
  facts = {'devices': '1 x cpu', 'parameters': '465,680', 'config': config}
  (whole / 'run.json').write_text(json.dumps(facts))
  events = [
    ('a', 0, 'start', {}),
    ('a', 70, 'step', {'seconds': 70.0, 'step': 700, 'steps': 700}),
    ('b', 100, 'start', {}),
    ('b', 150, 'step', {'seconds': 50.0, 'step': 1000, 'steps': 500}),
  ]
  write_lines(
    whole / goodput.FILE,
    [{'incarnation': i, 'time': t, 'kind': k, **m} for i, t, k, m in events],
  )
  write_panels(
    whole, (500, 1000), ('big_box_reconstruction', 'big_box_transfer')
  )
  (whole / 'eval/00001000.json').write_text(
    json.dumps({'step': 1000, 'data': {'big_box': scores(20.0)}})
  )
  test = {
    'oracle': 'known_scene 1',
    'chance': 0.125,
    'rows': {
      'model': {**summary(0.345), 'fid': 123.4, 'identified': 0.25},
      'frozen': summary(None),
    },
  }
  at = whole / 'eval/00001000'
  (at / 'big_box_tps-known_scene.json').write_text(json.dumps(test))
  (at / 'big_box_probe.json').write_text(
    json.dumps({'rows': {'probe': summary(0.567)}})
  )

  (going / 'eval').mkdir(parents=True)
  lines = metrics(100, 400, 8.0)
  lines[1]['loss'] = lines[1]['l1'] = float('nan')
  write_lines(going / 'metrics.jsonl', lines)
  with open(going / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 500, "loss": 0.')
  config = {'method': 'srt', 'model': {'rows': 15}, 'train': {'steps': 4000}}
  config |= {'seed': 7, 'data': {'dir': EVIL}}
  (going / 'run.json').write_text(json.dumps({**facts, 'config': config}))
  write_panels(going, (400,), ('big_box_reconstruction',))
  (going / 'panels/00000300_big_box_reconstruction.png').write_bytes(b'\x89PNG')
  # It was evaluated beside the training, and is being evaluated.
  (going / 'eval/00000300.json').write_text(
    json.dumps({'step': 300, 'data': {'big_box': scores(19.0)}})
  )
  (going / 'eval/00000400.json').write_text('{"step": 4')

  begun.mkdir()
  (begun / 'run.json').write_text('{"devi')
  return folder


@pytest.fixture(scope='module')
def page(runs):
  told = commands.run(
    'tools/report.py',
    *(runs / x for x in ('whole', 'going', LONG, 'whole')),
    f'--out={runs}/pages/report.html',
  )
  assert told.returncode == 0, told.stderr
  assert '3 runs' in told.stdout
  return runs / 'pages/report.html'


@pytest.fixture(scope='module')
def parsed(page):
  return test_evaluation.Page(page)


def plotted(parsed):
  """The series of every plot by its title."""
  titles = [x['aria-label'] for x in parsed.all('svg')]
  series = [
    json.loads(x['data-series'])
    for x in parsed.all('figure')
    if x.get('class') == 'plot'
  ]
  return dict(zip(titles, series, strict=True))


def test_what_went_on_replaces_what_was_there(parsed):
  (loss, other) = plotted(parsed)['loss']
  assert loss['points'] == [[x, 4.0 if x <= 500 else 0.125] for x in STEPS]
  assert (loss['run'], loss['name']) == (0, 'whole')
  assert (other['run'], other['name']) == (1, 'going')


def test_values_that_are_not_finite_are_gaps(parsed):
  loss = plotted(parsed)['loss'][1]['points']
  assert loss == [[100, 8.0], [200, None], [300, 8.0], [400, 8.0]]


def test_plots_of_all_that_matters(parsed):
  assert [*plotted(parsed)] == [
    'loss',
    'learning_rate',
    'big_box: psnr, dB',
    'frames_per_s',
    'data_wait, share of the time',
    'mfu, share of the peak',
  ]
  assert 'Zero throughout: skipped.' in parsed.text
  assert 'Identical to the loss in the runs that log it: l1.' in parsed.text


def test_held_out_curves_have_their_baselines(parsed):
  series = plotted(parsed)['big_box: psnr, dB']
  found = {(x['run'], x['who']): x['points'] for x in series}
  assert found == {
    (0, ''): [[500, 18.0], [1000, 20.0]],
    (1, ''): [[300, 19.0]],  # Of an evaluation beside the training.
    (0, 'shuffled'): [[1000, 18.0]],
    (1, 'shuffled'): [[300, 17.0]],
    (None, 'copy'): [[500, 15.0], [1000, 15.0]],  # The same for both.
  }


def test_copies_that_differ_are_drawn_for_each(runs):
  found = reading.read([str(runs / 'whole'), str(runs / 'going')])
  lines = [{**x, 'eval/big_box/copy_psnr': 11.0} for x in found[1].lines]
  found[1] = dataclasses.replace(found[1], lines=lines)
  _, plots = curves.held_out(found)
  series = json.loads(plots.find('figure').get('data-series'))
  assert [x['run'] for x in series if x['who'] == 'copy'] == [0, 1]


def test_what_differs_comes_first(parsed):
  text = parsed.text.split('What the runs are')[1]
  differ, rest = text.split('keys that not all recipes have')
  some, same = rest.split('keys that are the same')
  assert 'method\nxfactor\nsrt\n' in differ
  assert 'train.steps\n1000\n4000\n' in differ
  assert 'model.pose_dim\n16\n\N{EN DASH}\n' in some
  assert 'model.rows' in some
  assert 'seed\n7\n' in same.split('Training')[0]


def test_overview(parsed):
  text = parsed.text.split('Overview')[1].split('What is missing')[0]
  cells = text.split('\n')
  whole = cells[cells.index('whole') : cells.index('going')]
  # Steps, loss, PSNR, frames/s, data wait, MFU, goodput and wall time.
  assert whole[1:] == [
    *('1,000', 'of 1,000: done', '0.125', '20.00', '650', '25.0', '40.0'),
    *('66.7', '2 min'),
  ]
  assert '400\nof 4,000: not ended\n8\n19.00\n' in text


def test_what_is_missing_is_said(parsed):
  text = parsed.text.split('What is missing')[1].split('What the runs are')[0]
  said, where = {}, None
  for line in text.strip().split('\n'):
    if line in ('whole', 'going', LONG):
      where.append(line)
    else:
      where = said.setdefault(line, [])
  found = {
    what.split(':')[0].split(' cannot')[0]: x for what, x in said.items()
  }
  assert found == {
    'no goodput.jsonl': ['going', LONG],
    '00000400.json': ['going'],
    'metrics.jsonl has no lines': [LONG],
    'run.json': [LONG],
    'no eval/STEP.json': [LONG],
    'no panels': [LONG],
  }


def test_evaluations(parsed):
  text = parsed.text.split('\nEvaluations\n')[1]
  assert 'whole\n1,000\n12\n20.00\n0.200\n18.00\n15.00\n' in text
  assert 'going\n300\n12\n19.00\n0.190\n17.00\n15.00\n' in text
  assert 'by the oracle known_scene 1. 64 pairs' in text
  assert '34.5\n10.0 to 90.0\n' in text
  assert '123.4\n25.0\n' in text
  assert 'frozen' in text
  assert '56.7\n10.0 to 90.0\n' in text


def test_examples_that_differ_do_not_compare(runs, tmp_path):
  for name, copy in (('a', 15.0), ('b', 16.0)):
    (tmp_path / name / 'eval').mkdir(parents=True)
    write_lines(tmp_path / name / 'metrics.jsonl', metrics(100, 200, 1.0))
    (tmp_path / name / 'eval/00000200.json').write_text(
      json.dumps({'step': 200, 'data': {'boxes': scores(20.0, copy)}})
    )
  out = tmp_path / 'report.html'
  told = commands.run(
    'tools/report.py', tmp_path / 'a', tmp_path / 'b', f'--out={out}'
  )
  assert told.returncode == 0, told.stderr
  text = test_evaluation.Page(out).text
  assert 'the rows do not compare' in text
  assert 'No run was evaluated at two steps' in text
  assert 'No run has goodput.jsonl' in text


def test_everything_is_escaped(page, parsed):
  assert len(parsed.all('script')) == 1
  assert EVIL in parsed.text
  assert html.escape(EVIL, quote=False) in page.read_text()


def test_curves_of_long_runs_are_means_and_ranges():
  values = np.random.default_rng(0).normal(size=20_000)
  values[7_777], values[15_001] = 99, np.nan
  points = curves.thin([(k, float(v)) for k, v in enumerate(values)])
  assert len(points) <= 300
  size = points[0][0] + 1
  at = 7_777 // size
  stretch = values[at * size : (at + 1) * size]
  step, *numbers = points[at]
  assert step == (at + 1) * size - 1
  expected = [stretch.mean(), stretch.min(), 99]
  np.testing.assert_allclose(numbers, expected, rtol=1e-4)
  assert points[15_001 // size][1:] == [None, None, None]
  assert points[-1][0] == 19_999
  assert curves.thin([(1, 1.0), (2, 2.0)]) == [[1, 1.0], [2, 2.0]]


def test_long_runs_in_a_browser(chromium, tmp_path):
  lines = metrics(100, 100_000, 1.0)
  lines[500]['loss'] = 2.0
  write_lines(tmp_path / 'metrics.jsonl', lines)
  out = tmp_path / 'report.html'
  told = commands.run('tools/report.py', tmp_path, f'--out={out}')
  assert told.returncode == 0, told.stderr
  chromium.get(out.as_uri())
  bands = chromium.execute_script("""
    const all = document.querySelector('.plot').querySelectorAll('polygon');
    return [...all].map((x) => x.getBBox().height);
  """)
  assert len(bands) == 1
  assert bands[0] > 50
  assert chromium.get_log('browser') == []


def test_runs_of_one_name_keep_their_paths(runs, tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name / 'run').mkdir(parents=True)
    (tmp_path / name / 'run/run.json').write_text('{}')
  paths = [str(tmp_path / name / 'run') for name in ('a', 'b')]
  assert [run.name for run in reading.read(paths)] == paths


@pytest.mark.parametrize('args', [(), ('nowhere',), ('tests',)])
def test_bad_input_is_one_line(args):
  told = commands.run('tools/report.py', *args)
  assert told.returncode == 2
  assert told.stderr.startswith('error: ')
  assert '--workdir of' in told.stderr
  assert len(told.stderr.splitlines()) == 1


def test_a_page_that_cannot_be_written(runs):
  out = runs / 'whole/run.json/report.html'
  told = commands.run('tools/report.py', runs / 'whole', f'--out={out}')
  assert told.returncode == 2
  assert told.stderr.startswith(f'error: cannot write --out={out}')


@pytest.fixture(scope='module')
def chromium():
  with browser.chromium() as opened:
    yield opened


@pytest.fixture
def opened(chromium, page):
  chromium.get_log('performance')
  chromium.get(page.as_uri())
  return chromium


def test_a_browser_shows_all_and_fetches_nothing(opened, parsed):
  paths = opened.execute_script("""
    return [...document.querySelectorAll('.plot')].map((x) =>
      [...x.querySelectorAll('path')].filter((p) => p.getTotalLength()).length);
  """)
  lines = [
    sum(len(x['points']) > 1 for x in series)
    for series in plotted(parsed).values()
  ]
  assert paths == lines
  pictures = opened.execute_async_script("""
    const done = arguments[0], all = [...document.images];
    Promise.all(all.map((x) => x.decode())).then(
      () => done(all.map((x) => x.naturalWidth)), (e) => done(`${e}`));
  """)
  assert pictures == [60] * 5
  assert opened.get_log('browser') == []
  assert all(x.startswith(('data:', 'file:')) for x in browser.requests(opened))


def drawn(opened, title):
  """The paths of a plot that have lines."""
  return opened.execute_script(
    """
    const plot = [...document.querySelectorAll('.plot')].find(
      (x) => x.querySelector('b').textContent === arguments[0]);
    return [...plot.querySelectorAll('path')].map((x) => x.getAttribute('d'));
    """,
    title,
  )


def test_log_and_linear(opened):
  def height():
    """How high 4 is, between 0.125 and 8."""
    whole, going = drawn(opened, 'loss')
    four, *_, eighth = (float(y) for y in re.findall(r' ([\d.]+)', whole))
    eight = float(re.search(r' ([\d.]+)', going)[1])
    return (eighth - four) / (eighth - eight)

  button = opened.find_element('css selector', '.plot button')
  assert button.get_attribute('aria-pressed') == 'true'
  assert height() == pytest.approx(5 / 6, abs=0.01)
  button.click()
  assert height() == pytest.approx((4 - 0.125) / (8 - 0.125), abs=0.01)
  # What is not finite is a gap.
  assert [path.count('M') for path in drawn(opened, 'loss')] == [1, 2]


def test_runs_can_be_hidden(opened):
  assert len(drawn(opened, 'loss')) == 2
  boxes = opened.find_elements('css selector', 'nav input')
  boxes[1].click()
  assert len(drawn(opened, 'loss')) == 1
  shown = [
    x.is_displayed()
    for x in opened.find_elements('css selector', 'tr[data-run="1"]')
  ]
  assert shown
  assert not any(shown)
  boxes[1].click()
  assert len(drawn(opened, 'loss')) == 2


def test_pointing_tells_numbers(opened):
  from selenium.webdriver import ActionChains

  plot = opened.find_element('css selector', '.plot')
  picture = plot.find_element('css selector', 'svg')
  opened.execute_script('arguments[0].scrollIntoView({block: "center"})', plot)
  far = picture.size['width'] // 2 - 12
  ActionChains(opened).move_to_element_with_offset(picture, far, 0).perform()
  told = plot.find_element('css selector', 'output').text
  assert told.split('\n') == ['step 1,000', 'whole', '0.125']


def test_the_slider_goes_through_time(opened):
  group = opened.find_element('css selector', '.panels')
  slider = group.find_element('css selector', 'input')

  def shown():
    return [
      (x.get_attribute('alt'))
      for x in group.find_elements('css selector', 'img')
      if x.is_displayed()
    ]

  def move(value):
    opened.execute_script(
      'arguments[0].value = arguments[1];'
      'arguments[0].dispatchEvent(new Event("input"))',
      slider,
      value,
    )

  name = 'big_box_reconstruction of'
  assert shown() == [f'{name} whole at step 1000', f'{name} going at step 400']
  move(0)
  assert shown() == [f'{name} going at step 400']
  assert 'none yet' in group.text
  move(1)
  assert shown() == [f'{name} whole at step 500', f'{name} going at step 400']
  assert 'step 500' in group.text


@pytest.mark.parametrize('width', [360, 1280])
def test_a_window_scrolls_in_one_direction(opened, width):
  emulate = 'Emulation.setDeviceMetricsOverride'
  metrics = {'height': 700, 'deviceScaleFactor': 2, 'mobile': width < 500}
  opened.execute_cdp_cmd(emulate, {'width': width, **metrics})
  try:
    found = opened.execute_script('return document.documentElement.scrollWidth')
    assert found <= width
  finally:
    opened.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
