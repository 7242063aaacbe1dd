"""Tables of evaluation results."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from xfactor.evaluation import tables as tables_lib
from xfactor.evaluation.reports import html
from xfactor.evaluation.reports.runs import parts
from xfactor.evaluation.reports.runs.reading import Run

_LOWER_IS_BETTER = ('lpips', 'lpips_alex')
_OTHERS = {
  'shuffled': "another's pose",
  'halves': "halves' poses",
  'copy': 'nearest view',
  'mean': 'mean colour',
}
# Other columns of transfer tests: title and number format.
_EXTRA = {
  'fid': ('FID', '.4g'),
  'fd_alex': ('FD (AlexNet)', '.4g'),
  'psnr': ('PSNR', '.2f'),
  'rank': ('rank', '.1%'),
  'identified': ('identified', '.1%'),
}


def tables(runs: Sequence[Run]) -> list[ElementTree.Element]:
  """Scores of the newest evaluations."""
  newest = {
    k: (max(run.evaluations), run.evaluations[max(run.evaluations)]['data'])
    for k, run in enumerate(runs)
    if run.evaluations
  }
  out = [html.node('h2', 'Evaluations')]
  if not newest:
    return [*out, html.node('p', 'No run has been evaluated.')]
  for name in sorted({x for _, data in newest.values() for x in data}):
    found = {
      k: (step, data[name])
      for k, (step, data) in newest.items()
      if name in data
    }
    out.append(html.node('h3', f'{name}: held-out pictures'))
    out += _heldout(runs, found)
  tests = sorted({test for run in runs for test in run.tests})
  for name, kind in tests:
    found = {
      k: run.tests[name, kind]
      for k, run in enumerate(runs)
      if (name, kind) in run.tests
    }
    out += _test(runs, name, kind, found)
  return out


def _heldout(
  runs: Sequence[Run], found: Mapping[int, tuple[int, dict[str, Any]]]
) -> list[ElementTree.Element]:
  means = {k: data['mean'] for k, (_, data) in found.items()}
  metrics = list(dict.fromkeys(x for m in means.values() for x in m['model']))
  metrics.sort(key=lambda x: x != 'psnr')
  others = [who for who in _OTHERS if any(who in m for m in means.values())]
  head = ['step', 'examples', *(x.upper() for x in metrics)]
  head += [f'PSNR: {_OTHERS[who]}' for who in others]
  rows = []
  for k, (step, data) in found.items():
    baselines = (means[k].get(who, {}).get('psnr') for who in others)
    rows.append(
      [
        [f'{step:,}'],
        [f'{data["examples"]:,}'],
        *([_score(x, means[k]['model'].get(x))] for x in metrics),
        *([_score('psnr', value)] for value in baselines),
      ]
    )
  shown = [runs[k] for k in found]
  copies = {round(m['copy']['psnr'], 3) for m in means.values() if 'copy' in m}
  if len(copies) > 1:
    text = (
      'These runs have different examples, as copies of the nearest view have '
      'different scores: the rows do not compare.'
    )
    return [html.node('p', text), parts.by_run(shown, head, rows, list(found))]
  best = {
    column: -1 if metric in _LOWER_IS_BETTER else 1
    for column, metric in enumerate(metrics, 2)
    if len(found) > 1
  }
  return [parts.by_run(shown, head, rows, list(found), best)]


def _score(metric: str, value: float | None) -> str:
  return parts.number(value, '.2f' if metric == 'psnr' else '.3f')


def _test(
  runs: Sequence[Run],
  name: str,
  kind: str,
  found: Mapping[int, dict[str, Any]],
) -> list[ElementTree.Element]:
  """Tables of a transfer test or a probe: the models and their baselines."""
  main = 'probe' if kind == 'probe' else 'model'
  tests = list(found.values())
  pairs = sorted({test['rows'][main]['pairs'] for test in tests})
  count = f'{" or ".join(map(str, pairs))} pairs'
  extra = [
    key
    for key in _EXTRA
    if any(key in row for test in tests for row in test['rows'].values())
  ]
  oracle = kind.removeprefix('tps-')
  titles = ['accepted', *(x.upper() for x in tables_lib.COLUMNS), 'AUC@20, all']
  text = f'{count}: means of the accepted pairs in % with 95 % intervals.'
  if kind == 'probe':
    title = f'{name}: pose probe'
    text = f'Poses predicted from latent poses. {text}'
  elif oracle == 'none':
    title, titles = f'{name}: transfer against the true re-render', []
    text = f'Without a pose oracle; {count}.'
  else:
    title = f'{name}: transfer by {oracle}'
    names = ', '.join(sorted({test['oracle'] for test in tests}))
    text = f'True Pose Similarity by the oracle {names}. {text}'
  if chance := tests[0].get('chance'):
    text += (
      ' PSNR in dB against the true re-render. Rank: share of other motions '
      'whose true picture fits worse than the right one, 50 % by chance. '
      f'Identified: the right one fits best, {chance:.1%} by chance.'
    )

  def cells(row: dict[str, Any]) -> list[list[str]]:
    out = []
    if titles:
      mean = row['mean']
      out.append([parts.number(row['acceptance'], '.1%')])
      out += [_interval(mean[column]) for column in tables_lib.COLUMNS]
      out.append([parts.number(mean['auc@20']['rejected_as_zero'], '.1%')])
    return out + [[parts.number(row.get(x), _EXTRA[x][1])] for x in extra]

  def table(rows: Sequence[tuple[int, str]], **more: Any) -> Any:
    return parts.by_run(
      [runs[k] for k, _ in rows],
      [*titles, *(_EXTRA[x][0] for x in extra)],
      [cells(found[k]['rows'][row]) for k, row in rows],
      [k for k, _ in rows],
      **more,
    )

  controls = [
    (k, row) for k, test in found.items() for row in test['rows'] if row != main
  ]
  return [
    html.node('h3', title),
    html.node('p', text),
    table([(k, main) for k in found]),
    parts.details(
      'What these numbers mean: baselines and best cases',
      table(controls, labels=[row for _, row in controls]),
    ),
  ]


def _interval(mean: dict[str, float | None]) -> list[str]:
  if mean['value'] is None:
    return [parts.DASH]
  value, low, high = (
    parts.number(mean[x], '.1%') for x in ('value', 'low', 'high')
  )
  return [value, f'{low} to {high}']
