"""The page of an evaluation's results: eval/STEP/index.html."""

import json
from collections.abc import Mapping
from importlib import resources
from xml.etree import ElementTree

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from xfactor.data import images
from xfactor.evaluation import probe, tables, transfer_test
from xfactor.evaluation.reports import html
from xfactor.inference import movie
from xfactor.methods import scores as methods_scores
from xfactor.metrics import poses

_HELDOUT_ROWS = {
  'model': 'rendered from its own latent pose',
  'halves': 'each half rendered from the pose of the other half',
  'shuffled': "rendered from another example's pose",
  'copy': 'the context view that is nearest in time',
  'mean': 'the mean colour of that view',
}
_NOVEL_VIEW_ROWS = {
  'model': 'rendered from the input views and their cameras',
  'copy': 'the input view whose camera is nearest',
  'mean': 'the mean colour of the input views',
}
_TPS_ROWS = {
  'model': 'B rendered from the poses of A, against A',
  'autoencoded': "B rendered from B's own poses, against B: the best possible",
  'true re-render': "the true scene of B from A's cameras",
  'frozen': 'no motion at all',
  'shuffled': "against another pair's path",
  'other motion': 'the real B against A: chance',
}
_PROBE_ROWS = {
  'probe': 'from the latent pose',
  'shuffled': "from another frame's latent: nothing to learn",
  'mean motion': 'the mean pose of the train split, without latents',
}
_MAIN = 'auc@20'
_COARSE = 128  # Smaller pictures, in pixels, are shown without smoothing.
_VIDEO_SIZE, _VIDEO_SECONDS = 256, 2
_BINS = 20


def write(
  folder: epath.PathLike,
  *,
  config: ConfigDict,
  step: int,
  heldout: Mapping[str, methods_scores.Result],
  transfer: Mapping[str, transfer_test.Result],
  probes: Mapping[str, probe.Result],
) -> epath.Path:
  """Writes index.html into a folder and returns its path.

  Args:
    folder: Folder of the page; created if needed.
    config: The recipe.
    step: Step of the checkpoint.
    heldout: Held-out scores by data set.
    transfer: Transfer tests by data set; may be empty.
    probes: Pose probes by data set; may be empty.
  """
  body = html.node('main', html.node('h1', f'Evaluation at step {step:,}'))
  for name in dict.fromkeys((*heldout, *transfer, *probes)):
    body.append(html.node('h2', name))
    if name in heldout:
      body.extend(_heldout(heldout[name]))
    if name in transfer:
      body.extend(_transfer(transfer[name]))
    if name in probes:
      body.extend(_probe(probes[name]))
  recipe = json.loads(config.to_json_best_effort())
  body.append(html.node('h2', 'Configuration'))
  body.append(
    html.node(
      'details',
      html.node('summary', 'The recipe'),
      html.node('pre', json.dumps(recipe, indent=2)),
    )
  )
  script = resources.files('xfactor.evaluation.reports').joinpath(
    'evaluation.html'
  )
  return html.write(
    epath.Path(folder) / 'index.html',
    f'Evaluation at step {step:,}',
    body,
    script.read_text(),
  )


def _heldout(result: methods_scores.Result) -> list[ElementTree.Element]:
  means = result.means()
  columns = list(means['model'])
  psnr = {who: scores['psnr'] for who, scores in result.scores.items()}
  shown = len(result.images['truth'])
  rows = {
    who: [[f'{values[c]:.{1 if c == "psnr" else 3}f}'] for c in columns]
    for who, values in means.items()
  }
  histogram = _histogram(
    {'model': psnr['model'], 'copy of the nearest view': psnr['copy']},
    'PSNR of the examples in dB',
  )
  explained = _HELDOUT_ROWS if 'halves' in rows else _NOVEL_VIEW_ROWS
  clips = [
    _clip(
      f'{label}: {psnr["model"][i]:.1f} dB (example {i + 1})',
      _strip(
        {
          'reference': result.images['context'][i, 0],
          **{
            f'context {k}': picture
            for k, picture in enumerate(result.images['context'][i, 1:], 2)
          },
          'rendered': result.images['prediction'][i],
          'truth': result.images['truth'][i],
        }
      ),
    )
    for label, i in _extremes(psnr['model'][:shown]).items()
  ]
  return [
    html.node('h3', 'Held-out reconstruction'),
    html.node('p', f'Means of {result.num_examples} fixed examples.'),
    html.table([c.upper() for c in columns], rows, explained),
    histogram,
    html.node('h3', 'Examples'),
    html.node(
      'p', f'Chosen by PSNR from the first {shown}, whose pictures are kept.'
    ),
    *clips,
  ]


def _transfer(result: transfer_test.Result) -> list[ElementTree.Element]:
  model, distance = result.summaries['model'], result.distance
  accepted = {
    row: accepted & result.scores[row].finite
    for row, accepted in result.accepted.items()
  }
  auc = {
    row: 100
    * np.where(
      accepted[row] & scores.has_translation, scores.metrics[_MAIN], np.nan
    )
    for row, scores in result.scores.items()
  }
  rows = {
    row: [
      [_percent(summary.acceptance_rate)],
      *_intervals(summary),
      [_percent(summary.means[_MAIN].rejected_as_zero)],
    ]
    for row, summary in result.summaries.items()
  }
  head = ['accepted', *(c.upper() for c in tables.COLUMNS)]
  head += [f'{_MAIN.upper()}, all']
  if distance:
    head.append(distance.upper())
    for row, cells in rows.items():
      cells.append([tables.number(result.distances.get(row, np.nan))])
  if result.truth:
    head += ['PSNR', 'IDENT.']
    for row, cells in rows.items():
      cells.append([tables.number(result.true_mean(row, 'psnr'))])
      cells.append([_percent(result.true_mean(row, 'identified'))])
  histogram = _histogram(
    {row: auc[row] for row in ('model', 'other motion')},
    f'{_MAIN.upper()} of the accepted pairs in %',
    (0, 100),
  )
  text = (
    f'The motion of clip A applied to the scene of clip B, {model.num_pairs} '
    f'pairs; paths by the oracle {result.oracle}. Means of the accepted pairs '
    'in % with 95 % intervals; in the column "all" rejected pairs are 0.'
  )
  if model.num_without_translation:
    text += (
      f' In {model.num_without_translation} of them the camera of A stays in '
      'place: these only count for RRA.'
    )
  if result.truth:
    text += (
      ' Against the true re-render: PSNR in dB, and how often it is nearer to '
      f"the smoothed pictures than B's scene after other motions (of "
      f'{result.candidates.mean():.3g}; {_percent(result.chance)} by chance).'
    )
  shown = len(result.pictures['scene'])
  # Rejected pairs are the worst; pairs without translation have no score.
  kept = np.where(accepted['model'], auc['model'], 0)[:shown]
  clips = []
  for label, i in _extremes(kept).items():
    ok = bool(accepted['model'][i])
    score = f'{_MAIN.upper()} {kept[i]:.1f} %' if ok else 'rejected'
    title = f'{label}: {score} (pair {i + 1})'
    clips.append(_pair(result, i, title, with_paths=ok))
  return [
    html.node('h3', 'Transfer: True Pose Similarity'),
    html.node('p', text),
    html.table(head, rows, _TPS_ROWS),
    histogram,
    html.node('h3', 'Pairs'),
    html.node(
      'p',
      f'Chosen from the first {shown}, with pictures, by {_MAIN.upper()}. '
      "The model's path is aligned to the target's in position, rotation and "
      'scale; drag to rotate both.',
    ),
    *clips,
  ]


def _probe(result: probe.Result) -> list[ElementTree.Element]:
  rows = {row: _intervals(x) for row, x in result.summaries.items()}
  text = (
    f'Poses predicted from latent poses by a perceptron, trained on '
    f'{result.train.frames} frames of {result.train.name} and tested on '
    f'{result.test.windows} windows of {result.test.name}. Means in % with '
    '95 % intervals.'
  )
  return [
    html.node('h3', 'Pose probe'),
    html.node('p', text),
    html.table([c.upper() for c in tables.COLUMNS], rows, _PROBE_ROWS),
  ]


def _pair(
  result: transfer_test.Result, i: int, title: str, *, with_paths: bool
) -> ElementTree.Element:
  motion, drawn = result.pictures['motion'][i], result.pictures['drawn'][i]
  moving = html.node('div', _video(motion, drawn), class_='moving')
  if with_paths:
    moving.append(_plot(result.paths['target'][i], result.paths['model'][i]))
  frames = range(1, len(motion) + 1)
  return _clip(
    title,
    moving,
    _strip({f'A {k}': motion[k - 1] for k in frames}),
    _strip(
      {
        **{f'rendered {k}': drawn[k - 1] for k in frames},
        'B': result.pictures['scene'][i],
      }
    ),
  )


def _extremes(values: Float[np.ndarray, ' n']) -> dict[str, int]:
  """Indices of the best, median and worst, without repeats; ignores NaN."""
  order = np.argsort(values)[: np.isfinite(values).sum()].tolist()
  if not order:
    return {}
  at = {'Best': -1, 'Worst': 0, 'Median': len(order) // 2}
  found = {}
  for label, k in at.items():
    if order[k] not in found.values():
      found[label] = order[k]
  return dict(sorted(found.items()))


def align(
  target: Float[np.ndarray, 't 4 4'], path: Float[np.ndarray, 't 4 4']
) -> Float[np.ndarray, 't 4 4']:
  """Aligns a camera path to another by translation, rotation and scale.

  The rotation aligns the cameras' axes, as centres on a line do not determine
  it. The scale is the ratio of the paths' extents (the symmetric one of Horn
  1987): the least-squares scale would shrink a wrong path to a point.

  Args:
    target: Camera-to-world.
    path: Camera-to-world, of any world and scale.
  """
  u, _, vh = np.linalg.svd(
    np.einsum('tij,tkj->ik', target[:, :3, :3], path[:, :3, :3])
  )
  rotation = u @ np.diag([1, 1, np.linalg.det(u @ vh)]) @ vh
  centre, from_centre = target[:, :3, 3].mean(0), path[:, :3, 3].mean(0)
  offsets = (path[:, :3, 3] - from_centre) @ rotation.T
  extent = np.linalg.norm(offsets)
  scale = np.linalg.norm(target[:, :3, 3] - centre) / max(extent, 1e-12)
  out = path.copy()
  out[:, :3, :3] = rotation @ path[:, :3, :3]
  out[:, :3, 3] = centre + scale * offsets
  return out


def _plot(
  target: Float[np.ndarray, 't 4 4'], path: Float[np.ndarray, 't 4 4']
) -> ElementTree.Element:
  """Plots world-to-camera paths; the plot can be rotated."""
  target = np.linalg.inv(target)
  path = align(target, np.linalg.inv(path))
  both = np.concatenate([target, path])[:, :3, 3]
  centre = (both.max(0) + both.min(0)) / 2
  extent = np.linalg.norm(both - centre, axis=-1).max()
  # Room for the pyramids; a camera that only rotates has no extent.
  unit = 1.3 * extent or 1.0

  def drawn(points: np.ndarray) -> list:
    # From OpenCV's axes to those of the page: y up, z to the reader.
    return np.round((points - centre) / unit * [1, -1, -1], 3).tolist()

  corners = np.array([[-4, -3, 5], [4, -3, 5], [4, 3, 5], [-4, 3, 5.0]])
  corners *= 0.03 * unit

  def lines(cameras: np.ndarray) -> list:
    out = [drawn(cameras[:, :3, 3])]
    for camera in cameras:
      eye = camera[:3, 3]
      a, b, c, d = corners @ camera[:3, :3].T + eye
      out.append(drawn(np.stack([a, b, c, d, a, eye, b, c, eye, d])))
    return out

  ends = np.linspace(-0.8, 0.8, 5)
  floor = [[[x, -0.6, -0.8], [x, -0.6, 0.8]] for x in ends.tolist()]
  floor += [[[-0.8, -0.6, z], [0.8, -0.6, z]] for z in ends.tolist()]
  # The target is wider, so that it is visible below an identical path.
  parts = [
    {'colour': '--line', 'width': 1, 'lines': floor},
    {'colour': '--other', 'width': 3, 'lines': lines(target)},
    {'colour': '--model', 'width': 1.5, 'lines': lines(path)},
  ]
  label = 'Camera paths: of A, and recovered from the rendered pictures.'
  return html.node(
    'figure',
    html.node(
      'canvas', data_lines=json.dumps(parts), role='img', aria_label=label
    ),
    _legend('Camera paths', {'model': 'model', 'other': 'target (A)'}),
  )


def _histogram(
  series: Mapping[str, Float[np.ndarray, ' _']],
  title: str,
  limits: tuple[float, float] | None = None,
) -> ElementTree.Element:
  """Plots counts of two series without NaN, one as bars, one as a line."""
  series = {name: x[np.isfinite(x)] for name, x in series.items()}
  if limits is None:
    every = np.concatenate([*series.values()])
    low, high = (every.min(), every.max()) if len(every) else (0, 0)
    limits = np.floor(low), np.floor(high) + 1
  edges = np.linspace(*limits, _BINS + 1)
  bars, steps = (np.histogram(x, edges)[0].tolist() for x in series.values())
  top = max(*bars, *steps, 1)
  width, height, left, right = 460, 120, 30, 450
  step = (right - left) / _BINS

  def y(count: int) -> float:
    return height - 105 * count / top

  picture = html.node(
    'svg',
    html.node(
      'line', x1=f'{left}', x2=f'{right}', y1=f'{height}', y2=f'{height}'
    ),
    html.node('text', f'{top}', x='24', y=f'{y(top) + 4}', text_anchor='end'),
    html.node('text', '0', x='24', y=f'{height}', text_anchor='end'),
    viewBox=f'0 0 {width} {height + 20}',
    role='img',
    aria_label=title,
  )
  line = f'M{left} {height}'
  for k, (bar, count) in enumerate(zip(bars, steps, strict=True)):
    x = left + k * step
    line += f'V{y(count):.1f}H{x + step:.1f}'
    picture.append(
      html.node(
        'rect',
        html.node('title', f'{edges[k]:.3g} to {edges[k + 1]:.3g}: {bar}'),
        x=f'{x + 1:.1f}',
        y=f'{y(bar):.1f}',
        width=f'{step - 2:.1f}',
        height=f'{height - y(bar):.1f}',
        class_='bars',
      )
    )
  picture.append(html.node('path', d=f'{line}V{height}', class_='steps'))
  for k in range(0, _BINS + 1, 5):
    x = f'{left + k * step}'
    picture.append(
      html.node(
        'text', f'{edges[k]:.3g}', x=x, y=f'{height + 14}', text_anchor='middle'
      )
    )
  legend = dict(zip(('model', 'other'), series, strict=True))
  return html.node('figure', picture, _legend(title, legend))


def _legend(title: str, entries: Mapping[str, str]) -> ElementTree.Element:
  """Returns a caption with coloured names."""
  names = [html.node('span', name, class_=key) for key, name in entries.items()]
  return html.node('figcaption', title, *names)


def _clip(title: str, *parts: ElementTree.Element) -> ElementTree.Element:
  return html.node('section', html.node('h4', title), *parts, class_='clip')


def _strip(
  pictures: Mapping[str, UInt8[np.ndarray, 'h w 3']],
) -> ElementTree.Element:
  """Returns pictures side by side, with their names below."""
  out = html.node('div', class_='strip')
  for name, picture in pictures.items():
    image = html.node(
      'img',
      src=html.data_url('image/png', images.encode_png(picture)),
      alt=name,
    )
    if len(picture) < _COARSE:
      image.set('class', 'coarse')
    out.append(html.node('figure', image, html.node('figcaption', name)))
  return out


def _video(
  motion: UInt8[np.ndarray, 't h w 3'], drawn: UInt8[np.ndarray, 't h w 3']
) -> ElementTree.Element:
  """Returns a looping video of both clips side by side."""
  size = motion.shape[1] * max(1, _VIDEO_SIZE // motion.shape[1])
  frames = [
    movie.row([movie.enlarge(a, size), movie.enlarge(b, size)])
    for a, b in zip(motion, drawn, strict=True)
  ]
  data = movie.mp4(np.stack(frames), len(frames) / _VIDEO_SECONDS)
  video = html.node(
    'video',
    src=html.data_url('video/mp4', data),
    **dict.fromkeys(('autoplay', 'loop', 'muted', 'playsinline'), ''),
  )
  caption = html.node(
    'figcaption', "A's targets, and B's scene with the same motion"
  )
  return html.node('figure', video, caption)


def _intervals(summary: poses.Summary) -> list[list[str]]:
  return [_interval(summary.means[name]) for name in tables.COLUMNS]


def _interval(mean: poses.Mean) -> list[str]:
  if not mean.count:
    return [_percent(mean.value)]
  interval = f'{_percent(mean.low)} to {_percent(mean.high)}'
  return [_percent(mean.value), interval]


def _percent(value: float) -> str:
  return f'{100 * value:.1f}' if np.isfinite(value) else '\N{EN DASH}'
