"""The code's layers: imports lead down, and the picture shows them."""

import graphlib
import pathlib
import sys

import matplotlib.image
import pytest

from tests import commands
from xfactor.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import draw_architecture as architecture  # noqa: E402

# Imports of an upper layer by a lower one that there are today. Shorten this
# list; what is new does not belong here.
AGAINST = {
  ('xfactor.inference', 'xfactor.api'): {
    # What it moves is an `api.Model`.
    ('inference.transfer', 'api'),
  },
  ('xfactor.training', 'xfactor.config'): {
    # A build checks its recipe, and imported runs get one of defaults, which
    # config.py has from training.
    ('training.build', 'config'),
    ('training.interchange', 'config'),
    ('training.resume', 'config'),
    ('training.srt_import', 'config'),
  },
  ('xfactor.training', 'xfactor.evaluation'): {
    # A run evaluates itself, and a pose oracle must pass its gate.
    ('training.loop', 'evaluation.heldout'),
    ('training.loop', 'evaluation.motion'),
    ('training.loop', 'evaluation.reconstruction'),
    ('training.pose_oracle', 'evaluation.oracles'),
    ('training.pose_oracle', 'evaluation.oracles.learned'),
    ('training.pose_oracle', 'evaluation.poses'),
  },
}
JAX = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'ml_collections'}


@pytest.fixture(scope='module')
def found():
  return architecture.imports(ROOT)


def within(found, *packages):
  """The modules of packages, and what each imports."""
  modules = {
    module: names
    for module, names in found.items()
    if architecture.box_of(module) in packages
  }
  assert modules
  return modules


def boxes_below(found, package):
  """The boxes that a package imports, itself or by what it imports."""
  seen, waiting = set(), [package]
  while waiting:
    for source, target in architecture.edges(found):
      if source == waiting[0] and target not in seen:
        seen.add(target)
        waiting.append(target)
    del waiting[0]
  return seen


def test_imports_of_all_kinds_are_found(tmp_path):
  for name, text in {
    'xfactor/__init__.py': '',
    'xfactor/data/__init__.py': '',
    'xfactor/data/records.py': 'import numpy as np\n',
    'xfactor/models/net.py': (
      'import typing\n'
      'import jax.numpy as jnp\n'
      'from xfactor.data import records\n'
      'if typing.TYPE_CHECKING:\n'
      '  from xfactor.geometry.cameras import look_at\n'
      'def late():\n'
      '  import xfactor.training.step\n'
    ),
    'xfactor/geometry/cameras.py': 'def look_at(): ...\n',
    'xfactor/training/step.py': 'from xfactor.models.net import late\n',
    'tools/measure.py': 'from measures import speed\nimport xfactor\n',
    'tools/measures/speed.py': '',
    'configs/tiny.py': 'import measure\n',  # Another one.
  }.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  found = architecture.imports(tmp_path)
  assert found['xfactor.models.net'] == {
    'typing',
    'jax.numpy',
    'xfactor.data.records',
    'xfactor.geometry.cameras',
    'xfactor.training.step',
  }
  assert found['tools.measure'] == {'tools.measures.speed', 'xfactor'}
  assert architecture.edges(found) == {
    ('xfactor.models', 'xfactor.data'): 1,
    ('xfactor.models', 'xfactor.geometry'): 1,
    ('xfactor.models', 'xfactor.training'): 1,
    ('xfactor.training', 'xfactor.models'): 1,
    ('tools', 'xfactor.api'): 1,
  }
  assert architecture.against(found) == {
    ('xfactor.models', 'xfactor.training'): [
      ('xfactor.models.net', 'xfactor.training.step')
    ]
  }
  (tmp_path / 'xfactor/models/net.py').write_text('from . import layers\n')
  with pytest.raises(UserError, match='full names'):
    architecture.imports(tmp_path)


def test_no_module_imports_itself_in_the_end(found):
  ours = {module: names & found.keys() for module, names in found.items()}
  graphlib.TopologicalSorter(ours).prepare()  # Raises CycleError.


def test_imports_lead_down(found):
  against = {
    edge: {
      (module.removeprefix('xfactor.'), name.removeprefix('xfactor.'))
      for module, name in pairs
    }
    for edge, pairs in architecture.against(found).items()
  }
  assert against == AGAINST


def test_data_and_geometry_know_no_jax(found):
  """So that workers start quickly and hold no accelerator."""
  assert boxes_below(found, 'xfactor.data') == {
    'xfactor.errors',
    'xfactor.geometry',
  }
  assert boxes_below(found, 'xfactor.geometry') == set()
  modules = within(found, 'xfactor.data', 'xfactor.geometry', 'xfactor.errors')
  assert len(modules) > 25
  for module, names in modules.items():
    assert not JAX & {name.partition('.')[0] for name in names}, module


def test_models_know_neither_training_nor_the_pipeline(found):
  """The one thing of data's that they take reads files of weights."""
  names = set().union(*within(found, 'xfactor.models').values())
  ours = {name for name in names if architecture.box_of(name)}
  assert {
    name for name in ours if architecture.box_of(name) != 'xfactor.models'
  } == {
    'xfactor.data.torch_file',
    'xfactor.errors',
    'xfactor.geometry.cameras',
  }


def test_nothing_imports_what_people_run(found):
  top = {box.name for box in architecture.ROWS[0]}
  edges = architecture.edges(found)
  assert [edge for edge in edges if edge[1] in top] == []
  # Their flags and exit codes are not drawn.
  assert {edge[0] for edge in edges if edge[1] == 'xfactor.cli'} <= top
  assert [edge for edge in edges if edge[0] == 'xfactor.errors'] == []


def test_the_picture_has_all_boxes_and_lines(found):
  figure = architecture.draw(found)
  (axes,) = figure.axes
  texts = {text.get_text() for text in axes.texts}
  assert {box.title for row in architecture.ROWS for box in row} <= texts
  arrows = [text for text in axes.texts if hasattr(text, 'arrow_patch')]
  drawn = [
    edge
    for edge in architecture.edges(found)
    if not set(edge) & set(architecture.EVERYWHERE)
  ]
  assert len(arrows) == len(drawn)
  red = [x for x in arrows if x.arrowprops['color'] == architecture._AGAINST]
  assert len(red) == len(AGAINST)


def test_lines_in_a_lane_do_not_meet():
  spans = {
    ('main', 'data'): (0, 3),
    ('eval', 'api'): (0, 1),
    ('api', 'data'): (1, 3),
    ('api', 'models'): (1, 2),
    ('models', 'data'): (2, 3),
  }
  lanes = architecture.lanes(spans)
  for edge, (first, last) in spans.items():
    for other, (begin, end) in spans.items():
      if edge != other and lanes[edge] == lanes[other]:
        assert last <= begin or end <= first
  # A title has room, and what it takes is used further down.
  assert lanes['eval', 'api'] == architecture._NARROWEST
  assert lanes['api', 'data'] == 1
  assert lanes['api', 'models'] == 2
  assert lanes['models', 'data'] == 2


def test_a_module_in_no_layer_is_named(found):
  with pytest.raises(UserError, match='xfactor.misc.*ROWS'):
    architecture.draw({**found, 'xfactor.misc': set()})


def test_the_command_draws(tmp_path):
  done = commands.run(
    'tools/draw_architecture.py', f'--out={tmp_path}/layers.png'
  )
  assert done.returncode == 0, done.stderr
  assert matplotlib.image.imread(tmp_path / 'layers.png').shape[1] == 1800
