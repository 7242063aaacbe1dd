"""The sections of the page, except for the curves."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from xfactor.evaluation.reports import html
from xfactor.evaluation.reports.runs import parts, reading
from xfactor.evaluation.reports.runs.reading import Run
from xfactor.inference import footage
from xfactor.training.telemetry import goodput

_FACTS = {'step': 'per update', 'state': 'started from'}  # Labels.
_BUCKETS = {
  'step': '#2a9156',
  'data_wait': '#d63a6a',
  'compile': '#7a5cc7',
  'init': '#a99adf',
  'checkpoint': '#12a3b4',
  'evaluation': '#2f6fb2',
  'lost': '#b3261e',
  'other': '#98a2ad',
  'downtime': '#5c6670',
}
# Pictures of all runs together, to keep the page small; at least two per run.
_PANELS = 48
_WIDTH, _QUALITY = 640, 75
_PANEL_COLUMNS = {
  'reconstruction': 'Context views, rendered view, truth (and its depth).',
  'transfer': "A motion's reference and target, another scene, and that scene "
  'with the same motion.',
}


def runs_bar(runs: Sequence[Run]) -> ElementTree.Element:
  """Returns the legend of the page, with which runs can be hidden."""
  bar = html.node('nav')
  for k, run in enumerate(runs):
    box = html.node('input', type='checkbox', value=str(k), checked='')
    bar.append(html.node('label', box, parts.tag(k, run.name)))
  return bar


def overview(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Progress and main results of the runs, one row each."""
  head = ['updates', 'loss']
  scores = (key for key in reading.keys(runs) if key.startswith('eval/'))
  names = sorted({key.split('/')[1] for key in scores})
  head += [f'{name} PSNR' for name in names]
  head += ['frames/s', 'data wait %', 'MFU %', 'goodput %', 'wall time']
  rows = []
  for run in runs:
    updates = [f'{run.step:,}']
    if run.steps:
      state = 'done' if run.step >= run.steps else 'not ended'
      updates.append(f'of {run.steps:,}: {state}')
    cells = [
      updates,
      [parts.number(run.last('loss'))],
      *([parts.number(run.last(f'eval/{name}/psnr'), '.2f')] for name in names),
      [parts.number(run.median('frames_per_s'))],
      [parts.number(run.median('data_wait'), '.1%')],
      [parts.number(run.median('mfu'), '.1%')],
    ]
    summary = run.goodput
    cells += [
      [parts.number(summary and summary.goodput, '.1%')],
      [parts.duration(summary.wall) if summary else parts.DASH],
    ]
    rows.append(cells)
  out = [
    html.node('h2', 'Overview'),
    html.node(
      'p',
      'The last logged loss, the newest held-out PSNR in dB, medians of the '
      'logged speed.',
    ),
    parts.by_run(runs, head, rows),
  ]
  missing = {}
  for k, run in enumerate(runs):
    for what in run.missing:
      missing.setdefault(what, []).append(parts.tag(k, run.name))
  if missing:
    remarks = [
      html.node('li', f'{what}:', *tags) for what, tags in missing.items()
    ]
    out += [html.node('h3', 'What is missing'), html.node('ul', *remarks)]
  return out


def differences(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Facts and recipes of the runs, differences first."""
  keys = dict.fromkeys(key for run in runs for key in run.facts)
  facts = {
    _FACTS.get(key, key): [run.facts.get(key) for run in runs] for key in keys
  }
  facts['last written'] = [
    run.changed and f'{run.changed:%Y-%m-%d %H:%M} UTC' for run in runs
  ]
  facts = {key: x for key, x in facts.items() if any(x)}
  common = {
    key: x[:1] for key, x in facts.items() if runs[1:] and len(set(x)) == 1
  }
  absent = object()
  keys = list(dict.fromkeys(key for run in runs for key in run.config))
  recipes = {key: [run.config.get(key, absent) for run in runs] for key in keys}
  same, differ, some = {}, {}, {}
  # Runs without a recipe are not compared.
  told = [k for k, run in enumerate(runs) if run.config]
  for key, values in recipes.items():
    texts = [parts.DASH if x is absent else parts.text(x) for x in values]
    known = [values[k] for k in told]
    if any(x is absent for x in known):
      some[key] = texts
    elif all(x == known[0] for x in known):
      same[key] = texts[told[0] : told[0] + 1]
    else:
      differ[key] = texts
  head = [run.name for run in runs]
  facts = {
    key: [text or parts.DASH for text in texts]
    for key, texts in facts.items()
    if key not in common
  }
  out = [html.node('h2', 'What the runs are')]
  if facts:
    out.append(parts.texts(head, facts))
  if len(told) > 1:
    out.append(html.node('h3', 'Keys of the recipe that differ'))
    out.append(
      parts.texts(head, differ)
      if differ
      else html.node('p', 'None of the keys that all recipes have.')
    )
  if some:
    out.append(
      parts.details(
        f'{len(some)} keys that not all recipes have', parts.texts(head, some)
      )
    )
  if same := common | same:
    title = f'{len(same)} keys that are the same' if runs[1:] else 'Recipe'
    out.append(parts.details(title, parts.texts(['value'], same)))
  return out


def panels(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Pictures over time, with all runs side by side."""
  out = [html.node('h2', 'Pictures over time')]
  kinds = sorted({kind for run in runs for kind in run.panels})
  if not kinds:
    return [*out, html.node('p', 'No run has panels.')]
  gallery = html.node('div', class_='gallery')
  most = max(2, _PANELS // sum(len(run.panels) for run in runs))
  for kind in kinds:
    every = {step for run in runs for step in run.panels.get(kind, ())}
    shown, figures = set(), []
    for k, run in enumerate(runs):
      if kind not in run.panels:
        continue
      figure = html.node('figure', data_run=str(k))
      for step, data in _encoded(run.panels[kind], most):
        shown.add(step)
        figure.append(
          html.node(
            'img',
            src=html.data_url('image/webp', data),
            alt=f'{kind} of {run.name} at step {step}',
            data_step=str(step),
          )
        )
      name = parts.tag(k, run.name)
      figure.append(html.node('figcaption', name, html.node('small')))
      figures.append(figure)
    steps = sorted(shown)
    group = html.node(
      'section',
      class_='clip panels',
      data_steps=json.dumps(steps),
      style=f'--runs: {len(figures)}',
    )
    name, _, what = kind.rpartition('_')
    group.append(html.node('h3', f'{name}: {what}' if name else kind))
    about = _PANEL_COLUMNS.get(what, '')
    if len(steps) < len(every):
      about += f' {len(steps)} of {len(every)} steps are on this page.'
    group.append(html.node('p', about.strip()))
    if len(steps) > 1:
      end = str(len(steps) - 1)
      slider = html.node(
        'input', type='range', min='0', max=end, value=end, aria_label='step'
      )
      group.append(html.node('label', slider, html.node('output')))
    if not steps:
      group.append(html.node('p', 'None of them can be read.'))
    group.append(html.node('div', *figures))
    gallery.append(group)
  return [*out, gallery]


def _encoded(pictures: Mapping[int, Any], most: int) -> list[tuple[int, bytes]]:
  """Encodes evenly spaced pictures, with the first and last, as WebP."""
  steps = sorted(pictures)
  out = []
  for step in (steps[k] for k in footage.spread(len(steps), most)):
    buffer = io.BytesIO()
    try:
      with Image.open(
        io.BytesIO(pictures[step].read_bytes()), formats=('PNG',)
      ) as image:
        image = image.convert('RGB')
    except (OSError, SyntaxError):  # Truncated when the run was killed.
      continue
    if image.width > _WIDTH:
      image = image.resize(
        (_WIDTH, round(image.height * _WIDTH / image.width)),
        Image.Resampling.LANCZOS,
      )
    image.save(buffer, format='WEBP', quality=_QUALITY)
    out.append((step, buffer.getvalue()))
  return out


def time(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Where the wall time went."""
  out = [html.node('h2', 'Where the time went')]
  known = [(k, run) for k, run in enumerate(runs) if run.goodput]
  if not known:
    return [*out, html.node('p', f'No run has {goodput.FILE}.')]
  bars = html.node('div', class_='shares')
  rows = []
  for k, run in known:
    summary = run.goodput
    wall = summary.wall or 1
    bar = html.node('div', class_='bar', data_run=str(k))
    cells = [[parts.duration(summary.wall)]]
    for bucket, colour in _BUCKETS.items():
      share = summary.seconds[bucket] / wall
      cells.append([parts.number(share, '.1%')])
      if share > 0:
        spent = parts.duration(summary.seconds[bucket])
        label = f'{bucket}: {spent}, {share:.1%}'
        style = f'--bucket: {colour}; flex: {share:.4f}'
        bar.append(html.node('div', title=label, class_='bucket', style=style))
    rows.append(
      [*cells, [f'{summary.incarnations - 1}'], [f'{summary.lost_steps:,}']]
    )
    bars.append(html.node('div', parts.tag(k, run.name), data_run=str(k)))
    bars.append(bar)
  legend = html.node('figcaption')
  for bucket, colour in _BUCKETS.items():
    if any(run.goodput.seconds[bucket] for _, run in known):
      key = html.node('span', class_='bucket', style=f'--bucket: {colour}')
      legend.append(html.node('span', key, bucket))
  head = ['wall', *_BUCKETS, 'restarts', 'lost steps']
  return [
    *out,
    html.node(
      'p',
      'Shares of the wall time in %, including interruptions. The share of '
      'steps that were not lost is the goodput.',
    ),
    html.node('figure', bars, legend),
    parts.by_run([run for _, run in known], head, rows, [k for k, _ in known]),
  ]
