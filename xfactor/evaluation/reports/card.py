"""The model card of a published run: README.md for the Hugging Face Hub.

All numbers come from files of the run: run.json, eval/STEP.json and the
transfer tests and probes of the same step.
"""

import math
import re
import shutil
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from xfactor.data import files
from xfactor.evaluation import tables
from xfactor.inference import restore
from xfactor.methods import scores as methods_scores
from xfactor.training import held_out

_UNKNOWN = 'unknown'
_SCORES = {'psnr': 'PSNR', 'ssim': 'SSIM', 'lpips': 'LPIPS'}


def write(
  restored: restore.Restored,
  workdir: epath.PathLike,
  folder: epath.PathLike,
  *,
  repo: str,
  license: str = _UNKNOWN,
) -> list[str]:
  """Writes README.md and its pictures; returns the names of the files.

  Args:
    restored: The published model.
    workdir: Its run.
    folder: Existing folder to write into.
    repo: OWNER/NAME on the Hub.
    license: Licence of the weights, by its identifier on the Hub.
  """
  workdir, folder = epath.Path(workdir), epath.Path(folder)
  step = restored.step
  pictures = sorted(held_out.folder(workdir, step).glob('*.png'))
  if pictures:
    (folder / 'pictures').mkdir(exist_ok=True)
  for picture in pictures:
    shutil.copyfile(picture, folder / 'pictures' / picture.name)
  head = yaml.safe_dump(
    {
      'library_name': 'xfactor',
      'license': license,
      'tags': ['novel-view-synthesis', 'jax', restored.config.method],
    },
    sort_keys=False,
  )
  parts = [
    f'---\n{head}---',
    f'# {repo.partition("/")[2]}',
    _summary(restored),
    f"""```python
import xfactor

model = xfactor.load('hf://{repo}')
```""",
    '## Data',
    _data(restored, workdir),
    '## Scores',
    *_scores(workdir, step),
    '## Pictures',
    *(f'![{x.stem}](pictures/{x.name})' for x in pictures),
    *([] if pictures else ['None: this step was not evaluated.']),
    '## Limits',
    _limits(restored),
    '## Licence',
    _licence(license),
  ]
  (folder / 'README.md').write_text('\n\n'.join(parts) + '\n')
  names = [f'pictures/{picture.name}' for picture in pictures]
  return ['README.md', *names]


def _summary(restored: restore.Restored) -> str:
  config, build = restored.config, restored.build
  count = sum(math.prod(x.shape) for x in build.functional.shapes.values())
  text = (
    f'A model of the method `{config.method}`, trained with '
    f'[config.json](config.json): {count:,} parameters, {restored.step:,} '
    f'updates of {config.train.steps:,}, views of {build.image_size} x '
    f'{build.image_width} pixels, {build.views} views in an example.'
  )
  if ema := config.optimizer.ema:
    text += f' The weights are an average over updates (decay {ema}).'
  return text


def _data(restored: restore.Restored, workdir: epath.Path) -> str:
  mix = restored.config.data.mix
  total = sum(part.weight for part in mix.values())
  rows = [
    [name, part.split, f'{part.weight / total:.0%}', f'{part.end} frames']
    for name, part in mix.items()
  ]
  if not rows:
    return 'Not known: the checkpoint was imported.'
  table = tables.markdown(
    ['data set', 'split', 'share', 'longest window'], rows
  )
  facts = workdir / 'run.json'
  if facts.exists() and (clips := files.read_json(facts).get('data')):
    table += f'\n\nClips that were long enough: {clips}.'
  return table


def _scores(workdir: epath.Path, step: int) -> list[str]:
  """Tables of the held-out scores with their null rows, by data set."""
  file = held_out.file(workdir, step)
  if not file.exists():
    return [
      'This step was not evaluated (`python -m xfactor.eval '
      f'--workdir=... --step={step}`).'
    ]
  out = []
  for name, data in files.read_json(file)['data'].items():
    out.append(f'### {name}')
    means = data['mean']
    metrics = [x for x in _SCORES if x in means['model']]
    rows = [
      [label, *(_number(means[who].get(x)) for x in metrics)]
      for who, label in methods_scores.LABELS.items()
      if who in means
    ]
    out.append(
      f'{data["examples"]} held-out examples; all rows but the first are '
      'controls.'
    )
    out.append(tables.markdown(['', *(_SCORES[x] for x in metrics)], rows))
    if 'transfer' in data:
      out.append(_transfer(data['transfer']))
    for test in sorted(held_out.folder(workdir, step).glob(f'{name}_*.json')):
      match = re.fullmatch(rf'{re.escape(name)}_(tps-.+|probe)', test.stem)
      if match:
        out += _test(match[1], files.read_json(test))
  return out


def _transfer(found: Mapping[str, Any]) -> str:
  return (
    f'Transfer of motion to other scenes, against their true pictures '
    f'({found["pairs"]} pairs): PSNR {_number(found["psnr"])}, with the '
    f"scene's own poses {_number(found['own_psnr'])}, with a frozen camera "
    f'{_number(found["frozen_psnr"])}; rank {_number(found["rank"])} % (50 % '
    f'by chance); identified {_number(found["identified"])} % '
    f'({_number(found["chance"])} % by chance).'
  )


def _test(kind: str, found: Mapping[str, Any]) -> list[str]:
  """A transfer test or a pose probe, with its control rows."""
  rows = []
  for who, row in found['rows'].items():
    auc = row.get('mean', {}).get('auc@20', {})
    rows.append(
      [
        who,
        str(row.get('pairs', '')),
        *(
          _number(None if x is None else 100 * x)
          for x in (row.get('acceptance'), auc.get('value'))
        ),
        *(_number(row.get(key)) for key in ('psnr', 'rank', 'identified')),
      ]
    )
  title = 'Pose probe' if kind == 'probe' else f'Transfer test, {kind[4:]}'
  head = ['', 'pairs', 'accepted, %', 'AUC@20, %', 'PSNR', 'rank', 'identified']
  return [f'{title}:', tables.markdown(head, rows)]


def _limits(restored: restore.Restored) -> str:
  build = restored.build
  lines = [
    'Scores are of held-out clips of the data above. Other footage was not '
    'tested.',
    f'Pictures are cropped and resized to {build.image_size} x '
    f'{build.image_width} pixels.',
    'Parts of a scene that no input view shows are made up, and blurred.',
  ]
  if not build.method.posed:
    lines.append(
      'Camera motions are latent poses, which have no unit, do not compose and '
      'have no inverse.'
    )
    if restored.window:
      lines.append(
        f'Motions longer than {restored.window} frames, or that leave the '
        'view of their reference, are outside of the training.'
      )
  return '\n'.join(f'* {line}' for line in lines)


def _licence(license: str) -> str:
  weights = (
    'The licence of the weights is not stated.'
    if license == _UNKNOWN
    else f'Weights: {license}.'
  )
  return f'{weights} The licences of the training data apply as well.'


def _number(value: float | None) -> str:
  if value is None or not math.isfinite(value):
    return ''
  return f'{value:.2f}' if abs(value) >= 1 else f'{value:.3f}'
