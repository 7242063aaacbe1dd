"""The folder of a Space of the Hugging Face Hub: the demo page of a model.

The Space holds this package itself, so that the page stays the one that the
model was published with.
"""

import pathlib
import re
import shutil
from importlib import metadata

import yaml
from etils import epath

from xfactor.errors import UserError

_APP = '''"""The demo page of hf://{repo}."""

import os
import sys

from xfactor.demo import __main__ as demo

sys.argv = ['app.py', '--workdir=hf://{repo}', '--host=0.0.0.0', '--port=7860']
if name := os.environ.get('SPACE_HOST'):
  sys.argv.append(f'--allow_host={{name}}')
demo.run()
'''


def write(folder: epath.PathLike, repo: str) -> list[str]:
  """Writes the files of a Space that shows a model; returns their names.

  Args:
    folder: Existing empty folder.
    repo: OWNER/NAME of the model.

  Raises:
    UserError: If this package or that of the page is not installed, so that
      what the Space needs is not known.
  """
  folder = epath.Path(folder)
  try:
    needed = metadata.requires('xfactor') or []
    gradio = metadata.version('gradio')
  except metadata.PackageNotFoundError as e:
    raise UserError(
      f"a Space needs {e.name}: install it with pip install -e '.[demo]'"
    ) from e
  head = {
    'title': repo.partition('/')[2],
    'sdk': 'gradio',
    'sdk_version': gradio,
    'app_file': 'app.py',
    'models': [repo],
  }
  (folder / 'README.md').write_text(
    f'---\n{yaml.safe_dump(head, sort_keys=False)}---\n\nThe demo page of '
    f'[{repo}](https://huggingface.co/{repo}).\n'
  )
  (folder / 'app.py').write_text(_APP.format(repo=repo))
  lines = [
    x.partition(';')[0].strip()
    for x in needed
    if 'extra ==' not in x or re.search('extra == .demo.', x)
  ]
  (folder / 'requirements.txt').write_text('\n'.join(lines) + '\n')
  shutil.copytree(
    pathlib.Path(__file__).parents[1],
    folder / 'xfactor',
    ignore=shutil.ignore_patterns('__pycache__'),
  )
  return ['README.md', 'app.py', 'requirements.txt', 'xfactor/']
