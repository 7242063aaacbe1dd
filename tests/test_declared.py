"""setup.py declares the packages that the code imports."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Modules whose packages have other names.
PACKAGES = {
  'absl': 'absl-py',
  'cv2': 'opencv-python-headless',
  'google': 'protobuf',
  'gradio_client': 'gradio',
  'jaxlib': 'jax',
  'orbax': 'orbax-checkpoint',
  'PIL': 'pillow',
  'skimage': 'scikit-image',
  'skvideo': 'scikit-video',
  'yaml': 'pyyaml',
}
# Modules that are used only where users have them.
OPTIONAL = {'torch', 'triton', 'clu', 'scenedetect'}


def package_of(module):
  """Name of the package that has a module, in lower case."""
  return PACKAGES.get(module, module.replace('_', '-')).lower()


def declared():
  """Names of the packages in setup.py, in lower case."""
  tree = ast.parse((ROOT / 'setup.py').read_text())
  strings = (
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
  )
  found = (
    re.fullmatch(r'([A-Za-z][\w.-]*)(\[[\w,-]+\])?[=<>~].*', s) for s in strings
  )
  return {match[1].lower() for match in found if match}


def imported(folder):
  """Top-level modules that the files of a folder import, with a file each."""
  names = {}
  for path in sorted((ROOT / folder).rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      modules = []
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom) and node.level == 0:
        modules = [node.module]
      for module in modules:
        names.setdefault(module.split('.')[0], path.relative_to(ROOT))
  return names


@pytest.mark.parametrize('folder', ['xfactor', 'tools', 'configs', 'tests'])
def test_imports_are_declared(folder):
  own = {path.stem for path in (ROOT / 'tools').iterdir()}
  own |= {'xfactor', 'tests', 'configs', 'tools'}
  packages = declared()
  missing = {
    module: str(path)
    for module, path in imported(folder).items()
    if module not in sys.stdlib_module_names
    and module not in own | OPTIONAL
    and package_of(module) not in packages
  }
  assert not missing


def test_declared_packages_are_read_from_setup():
  assert {'jax', 'flax', 'pytest', 'vizdoom', 'orbax-checkpoint'} <= declared()
