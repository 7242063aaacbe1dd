"""README.md and the pages in docs say what is so, and their blocks run.

In every run of the tests: each command in them parses by the binary that it
names, recipe and overrides included; files, links, options, keys and messages
that they name are there; launch/tpu.sh prints what it would do. With `-m soak`
each block is run, as it stands but for the substitutions in BLOCKS.
"""

import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from unittest import mock

import pytest
from absl import app, flags
from absl.testing import flagsaver
from PIL import Image

from tests import commands
from tests.conftest import CACHE, GOLDEN, QUICK
from tests.data.sources import test_re10k, test_video
from tests.tools import test_import_checkpoint_srt
from xfactor import config as configs
from xfactor.data import sources
from xfactor.data.convert import options
from xfactor.data.sources import vizdoom
from xfactor.errors import UserError
from xfactor.evaluation import oracles
from xfactor.inference import latent
from xfactor.methods import registry
from xfactor.training.resilience import shutdown
from xfactor.training.telemetry import goodput

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
  'README.md',
  *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('docs/**/*.md')),
]
TEXT = {name: (ROOT / name).read_text() for name in PAGES}


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block: its language, and where it is, `PAGE: HEADING (NUMBER)`."""

  name: str
  language: str
  text: str


def blocks():
  """All fenced blocks; those of a heading with a language are counted."""
  found, seen = [], collections.Counter()
  for page, text in TEXT.items():
    heading = ''
    for match in re.finditer(
      r'^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL
    ):
      if match[1]:
        heading = f'{page}: {match[1]}'
        continue
      seen[heading, bool(match[2])] += 1
      number = seen[heading, bool(match[2])]
      name = heading if number == 1 else f'{heading} ({number})'
      found.append(Block(name, match[2], match[3]))
  return found


SHELL = [block for block in blocks() if block.language == 'bash']
PYTHON = [block for block in blocks() if block.language == 'python']
# What is said of other code, in the first column, is not for us to check.
OTHERS = re.compile(r'^\| public code \|.*\n(?:\|.*\n)+', re.MULTILINE)


def prose(text):
  """A page without its blocks and without other code's names."""
  text = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
  return OTHERS.sub(
    lambda table: re.sub(r'^\|.*? \| ', '| ', table[0], flags=re.MULTILINE),
    text,
  )


PROSE = {page: prose(text) for page, text in TEXT.items()}


def spans(text):
  """The inline code in it."""
  return [' '.join(x.split()) for x in re.findall(r'(?<!`)`([^`]+)`', text)]


SPANS = sorted({span for text in PROSE.values() for span in spans(text)})


def table(head):
  """The rows of all tables whose first column has this head, as cells."""
  rows = []
  for text in TEXT.values():
    for body in re.findall(
      rf'^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)', text, re.MULTILINE
    ):
      rows += [
        [cell.strip() for cell in row.strip('|').split(' | ')]
        for row in body.splitlines()
      ]
  assert rows, f'there is no table of {head}'
  return rows


def split(text):
  """The commands of a shell text, as words."""
  found = []
  for line in text.replace('\\\n', ' ').splitlines():
    words = shlex.shlex(line, posix=True, punctuation_chars='&;|<>')
    words.whitespace_split = True
    command = []
    for word in [*words, ';']:
      if set(word) <= set('&;|'):
        found += [command] if command else []
        command = []
      else:
        command.append(word)
  return found


COMMANDS = [command for block in SHELL for command in split(block.text)]
INLINE = [
  command
  for span in SPANS
  if span.startswith(('python ', 'launch/', 'pip '))
  for command in split(span)
]


def python_commands(found):
  """Those that start a file or a module of ours, on whatever machines."""
  for command in found:
    if command[0] == 'launch/tpu.sh' and 'convert' in command:
      after = command[command.index('convert') + 1 :]
      yield ['tools/convert_datasets.py', *after]
    elif 'python' in command:
      # What stands for more is no argument.
      _, first, *rest = (
        word for word in command[command.index('python') :] if word != '...'
      )
      if first == '-m' and rest[0].startswith('xfactor'):
        path = pathlib.Path(*rest[0].split('.'))
        if (ROOT / path).is_dir():
          path /= '__main__'
        yield [f'{path}.py', *rest[1:]]
      elif first != '-m' and first != '-c':
        yield [first, *rest]


def test_there_is_something_to_test():
  assert len(SHELL) > 20
  assert len(PYTHON) > 0
  assert len(SPANS) > 200
  assert ['python', '-m', 'xfactor.main'] in [x[:3] for x in COMMANDS]
  fences = sum(text.count('```') for text in TEXT.values())
  assert fences == 2 * len(blocks()), 'blocks begin and end at a line of ```'
  others = {block.language for block in blocks()} - {'bash', 'python', ''}
  assert not others, (
    f'blocks in {others}: mark what people type as bash or python, and what '
    'they see by no language'
  )


def parse(command):
  """What a binary says against its arguments; '' if nothing, and its flags.

  All is done that it does before its main: the recipe is loaded, overrides are
  applied.
  """
  file, *arguments = command
  if not (ROOT / file).is_file():
    return f'there is no {file}', []
  said, names, unknown = io.StringIO(), [], []

  def run(main, flags_parser=flags.FLAGS):
    try:
      rest = flags_parser([file, *arguments])[1:]
      if file == 'tools/convert_datasets.py' and flags.FLAGS.dataset:
        options.parse(flags.FLAGS.dataset, rest)
      else:
        unknown.extend(x for x in rest if x.startswith('-'))
    except UserError as e:
      said.write(str(e))
    finally:  # A run that is not here ends the parser by exit.
      names.extend(flags.FLAGS)

  with (
    flagsaver.flagsaver(),
    mock.patch.object(app, 'run', run),
    mock.patch.object(sys, 'argv', [file, *arguments]),
    mock.patch.object(sys, 'path', [str((ROOT / file).parent), *sys.path]),
    contextlib.redirect_stderr(said),
    contextlib.suppress(SystemExit),
    contextlib.chdir(ROOT),
  ):
    runpy.run_path(file, run_name='__main__')
  if unknown:
    said.write(f'unknown: {unknown}')
  return said.getvalue(), sorted(names)


def parse_all(found):
  return [parse(command) for command in found]


@pytest.fixture(scope='module')
def parsed():
  """By command, what its binary says against it, and its flags."""
  found = [*python_commands(COMMANDS), *python_commands(INLINE)]
  # Flags are a process's: not this one's, where other tests define them.
  with concurrent.futures.ProcessPoolExecutor(1, commands._SERVER) as pool:
    answers = pool.submit(parse_all, found).result()
  return dict(zip(map(tuple, found), answers, strict=True))


@pytest.mark.parametrize('block', SHELL, ids=lambda block: block.name)
def test_commands_of_a_block_parse(block, parsed):
  for command in python_commands(split(block.text)):
    said, _ = parsed[tuple(command)]
    if '...' in block.text.split() and 'give --' in said:
      continue  # What stands for more would have it.
    if 'there is no checkpoint in' in said:
      continue  # The recipe is that of a run that is not here.
    assert not said, f'{shlex.join(command)}: {said}'


def test_commands_in_the_text_parse(parsed):
  for command in python_commands(INLINE):
    said, _ = parsed[tuple(command)]
    # What is cut short lacks what is required.
    assert not said or 'give --' in said, f'{command}: {said}'


def test_a_wrong_command_is_noticed():
  found = [
    ['xfactor/main.py', '--config=configs/tiny.py', '--wrokdir=x'],
    ['xfactor/main.py', '--config=configs/tiny.py', '--workdir=x'],
    ['xfactor/main.py', '--config=configs/tiny.py', '--config.train.stesp=3'],
    ['xfactor/main.py', '--config=configs/tiny.py', '--config.seed=few'],
    ['tools/convert_datasets.py', '--dataset=vizdoom', '--wakls=3'],
    ['tools/goodput.py', 'runs/sm', '--jsno'],
    ['tools/goodputs.py', 'runs/sm'],
  ]
  with concurrent.futures.ProcessPoolExecutor(1, commands._SERVER) as pool:
    said = [x for x, _ in pool.submit(parse_all, found).result()]
  assert said.pop(1) == ''
  for text, word in zip(
    said, ['wrokdir', 'stesp', 'few', 'wakls', 'jsno', 'no tools'], strict=True
  ):
    assert word in text


@pytest.mark.parametrize('block', PYTHON, ids=lambda block: block.name)
def test_python_names_what_there_is(block, monkeypatch):
  if 'import xfactor_torch' in block.text:  # What an export leaves there.
    pytest.importorskip('torch')
    monkeypatch.syspath_prepend(ROOT / 'xfactor/export')
  tree, known = ast.parse(block.text), {}
  for node in tree.body:
    if isinstance(node, ast.Import | ast.ImportFrom):
      exec(ast.unparse(node), known)
  assert known
  known['model'] = latent.Model
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      owner = known.get(node.value.id)
      assert owner is None or hasattr(owner, node.attr), ast.unparse(node)


def extras():
  # Where it is not installed it is pip's, for the time of building.
  with mock.patch.dict(sys.modules, setuptools=mock.Mock()):
    return runpy.run_path(str(ROOT / 'setup.py'))['EXTRAS'].keys()


def test_what_pip_installs_can_be_installed():
  named = {
    extra
    for text in TEXT.values()
    for found in re.findall(r'pip install -e \'?\.\[([\w,]+)\]', text)
    for extra in found.split(',')
  }
  assert 'test' in named
  assert named <= extras()


def test_programs_in_blocks_are_known():
  """Else nothing above has looked at them."""
  known = {'python', 'python3', 'pip', '.', 'export', 'sbatch', 'launch/tpu.sh'}
  # Others', without options of ours.
  known |= {'mkdocs', 'pre-commit', 'mkdir', 'cp'}
  assert {command[0] for command in COMMANDS} <= known, (
    'teach tests/test_readme.py how to check these'
  )


CLOUD = [block for block in SHELL if 'launch/tpu.sh' in block.text]


@pytest.mark.parametrize('block', CLOUD, ids=lambda block: block.name)
def test_tpu_commands_run_dry(block, tmp_path):
  """Each prints its gcloud commands, with the names that the block exports."""
  script = block.text.replace('launch/tpu.sh', 'launch/tpu.sh --dry-run')
  done = subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', script],
    cwd=ROOT,
    env={'PATH': os.environ['PATH'], 'HOME': str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  assert 'gcloud compute tpus' in done.stdout
  if 'XFACTOR_TYPE=v6e-64' in block.text:
    assert '--accelerator-type=v6e-64' in done.stdout
    assert '--zone=us-east5-b' in done.stdout


def slug(heading):
  """GitHub's anchor of a heading."""
  return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  anchors = {
    name: {slug(x) for x in re.findall(r'^#+ (.+)$', text, re.MULTILINE)}
    for name, text in TEXT.items()
  }
  links = re.findall(r'\]\(([^)\s]+)\)', PROSE[page])
  assert links
  for link in links:
    path, _, anchor = link.partition('#')
    if '://' in path:
      continue
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists(), link
    if anchor:
      name = str(target.resolve().relative_to(ROOT))
      assert anchor in anchors.get(name, ()), link


def test_files_in_the_text_are_there():
  named = {
    path
    for span in SPANS
    for path in re.findall(
      r'(?<![\w/.])(?:\w+/)+\w+\.(?:py|sh|sbatch|json|npz|md)\b', span
    )
  }
  named |= {span for span in SPANS if re.fullmatch(r'tests/\w+', span)}
  named = {x for x in named if not re.search('[A-Z]{2}', x)}  # Stand-ins.
  ours = {x for x in named if x.split('/')[0] in os.listdir(ROOT)}
  ours |= {x for x in named if x.split('/')[0] in os.listdir(ROOT / 'xfactor')}
  assert len(ours) > 10
  # Some are named as within the package.
  assert [
    x
    for x in sorted(ours)
    if not (ROOT / x).exists() and not (ROOT / 'xfactor' / x).exists()
  ] == []


def test_the_tree_of_the_design_is_this_one():
  (tree,) = (x for x in blocks() if x.name == 'docs/design.md: Source tree')
  there = {
    path.name for path in ROOT.rglob('*') if not {'.git'} & set(path.parts)
  }
  folders = re.findall(r'([\w]+)/', tree.text)
  files = re.findall(r'\w+\.(?:py|sh|sbatch)\b', tree.text)
  assert len(folders) > 10
  assert set(folders) | set(files) <= there
  (tools,) = re.findall(r'^tools/ +((?:.+\n)(?: {4,}.+\n)+)', tree.text, re.M)
  named = re.sub(r'\([^)]*\)', '', tools).split()
  assert [x for x in named if not (ROOT / f'tools/{x}.py').is_file()] == []


@functools.cache
def keys():
  """All keys of all recipes, sections included."""
  oracle = runpy.run_path(str(ROOT / 'configs/pose_oracle.py'))
  tiny = runpy.run_path(str(ROOT / 'configs/tiny.py'))
  recipes = [oracle['get_config'](), tiny['get_config']()]
  recipes += map(configs.base, registry.NAMES)
  leaves = {path for recipe in recipes for path in configs.leaf_paths(recipe)}
  return leaves | {x.rpartition('.')[0] for x in leaves}


def test_keys_in_the_text_are_the_recipes():
  sections = {key.partition('.')[0] for key in keys() if '.' in key}
  named = set()
  for span in SPANS:
    named |= set(re.findall(r'--config\.([\w.]+)', span))
    named |= {
      key
      for key in re.findall(r'(?<![\w./-])(\w+\.[\w.]*\w)(?![\w(])', span)
      if key.partition('.')[0] in sections
      and not re.search(r'\.(json|py|pt|safetensors)$', key)
    }
  assert len(named) > 30
  assert sorted(named - keys()) == []


# absl's, TensorBoard's, xprof's, Docker's, gcloud's, that of launch/tpu.sh.
FOREIGN = {
  'help',
  'logdir',
  'dry-run',
  'build-arg',
  'node-count',
  'node-prefix',
}


def test_flags_in_the_text_are_a_binarys(parsed):
  known = {name for _, names in parsed.values() for name in names}
  for dataset in sources.NAMES:
    known |= set(options.names(dataset))
  known |= {f'no{name}' for name in known}
  named = {
    flag
    for span in SPANS
    for flag in re.findall(r'(?<![\w-])--([a-z]\w*(?:-\w+)*)(?![\w.])', span)
  }
  assert len(named) > 30
  assert sorted(named - known - FOREIGN) == []


def first_words(head):
  """The code in the first column of a table."""
  return [word for row in table(head) for word in spans(row[0])]


def test_tables_name_what_there_is():
  assert set(first_words('`--dataset`')) == set(sources.NAMES)
  assert set(first_words('`--oracle`')) == set(oracles.NAMES)
  buckets = {word for row in table('bucket') for word in row[0].split(', ')}
  assert buckets == set(goodput.BUCKETS)
  recipes = {path.stem for path in (ROOT / 'configs').glob('*.py')}
  for word in first_words('recipe'):
    assert re.match(r'\w+', word)[0] in recipes


def test_exit_codes_are_the_binaries():
  listed = {int(row[0]) for row in table('exit code')}
  tree = ast.parse((ROOT / 'xfactor/main.py').read_text())
  said = ast.get_docstring(tree).split('Exit codes:')[1].split('Start it')[0]
  assert listed == {int(x) for x in re.findall(r'\b\d+\b', said)}
  assert shutdown.EXIT_CODE in listed


@functools.cache
def messages():
  """All texts in the code, a list a file, blanks for values put in."""
  files = []
  for path in [*ROOT.glob('xfactor/**/*.py'), *ROOT.glob('tools/**/*.py')]:
    found = []
    files.append(found)
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        found.append(
          ''.join(
            part.value if isinstance(part, ast.Constant) else ' '
            for part in node.values
          )
        )
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  for path in (ROOT / 'launch').iterdir():
    files.append(path.read_text().replace('\\\n', '').splitlines())
  return [[' '.join(text.split()) for text in found] for found in files]


# libtpu's, and files and systems that rows are about.
NOT_OURS = {'The TPU is already in use', 'tpu.sh', 'gs://'}
TROUBLES = [x for x in first_words('you see') if x not in NOT_OURS]


@pytest.mark.parametrize('said', TROUBLES)
def test_messages_of_troubleshooting_are_in_the_code(said):
  """All that is between dots, names, numbers and quoted values, in a file."""
  text = said.removeprefix('error: ')
  parts = re.split(r"\.\.\.|'\w+'|\b[A-Z]{4,}\b|\d+", text)
  parts = [part.strip() for part in parts if part.strip()]
  assert parts
  assert any(
    all(any(part in message for message in file) for part in parts)
    for file in messages()
  ), parts


@dataclasses.dataclass(frozen=True)
class Run:
  """How a block is run: as it stands but for `changes`.

  Attributes:
    changes: What is replaced in it, and by what; else it would train for hours,
      or want data that nobody can have here.
    after: Blocks that make what it reads.
    leaves: Files that are there in the end.
    prints: What it says, among other things.
  """

  changes: dict[str, str] = dataclasses.field(default_factory=dict)
  after: tuple[str, ...] = ()
  leaves: tuple[str, ...] = ()
  prints: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Elsewhere:
  """Why a block is not run here."""

  why: str


# Two updates of four examples, and little to evaluate.
SHORT = (
  ' --config.train.steps=2 --config.train.log_every=1'
  ' --config.optimizer.warmup_steps=1'
  ' --config.data.batch=4 --config.train.accumulate=1'
  ' --config.data.threads=2 --config.data.image_size=32'
  ' --config.eval.batch=4 --config.eval.examples=4 --config.eval.panel=2'
)
# A narrow XFactor, whatever the recipe's.
NARROW = (
  f'{SHORT} --config.eval.pairs=2'
  ' --config.model.features=16 --config.model.heads=2'
  ' --config.model.patch_size=8 --config.model.encoder_layers=1'
  ' --config.objective.lpips_weight=0 --config.eval.lpips=false'
)
RENDERER = f'{NARROW} --config.model.renderer_layers=1'
# The one data set of /data below.
RE10K = (
  " --config.data.mix='"
  '{"re10k": {"begin": 6, "end": 8, "weight": 1.0, "split": "train"}}'
  "' --config.eval.window=8"
)
BASELINE = (
  f'--config.data.dir=all{NARROW}{RE10K}'
  ' --config.model.scene_layers=1 --config.model.decoder_layers=1'
)
TINY = (
  f'--workdir=runs/tiny{RENDERER} --config.model.position_grid=4'
  ' --config.data.make.rooms.scenes=24'
  ' --config.data.make.rooms.frames=24 --config.data.make.rooms.walks=1'
)
VENV = 'python3 -m venv .venv && . .venv/bin/activate && pip install -e . &&\n'
INSTALLS = Elsewhere('installs what the tests have')
EXPORTS = Elsewhere('tests/export/test_formats.py runs it')
SERVES = Elsewhere('serves a page until it is stopped; tests/demo opens it')
BLOCKS = {
  'README.md: Two commands': Run(
    {
      VENV: '',
      '--workdir=runs/tiny': TINY,
    },
    leaves=(
      'runs/tiny/eval/00000002/rooms_reconstruction.png',
      *(f'runs/tiny/transfer.{kind}' for kind in ('png', 'mp4', 'gif')),
    ),
    prints=('mean colour', 'does motion transfer?', 'runs/tiny/transfer.png'),
  ),
  'README.md: Two commands (2)': Elsewhere('these tests'),
  'README.md: Train on your own videos': Run(
    {
      'FOLDER': 'footage',
      '--workdir=runs/video': f'--workdir=runs/video{RENDERER}',
    },
    leaves=('data/video/frames', 'runs/video/checkpoints/2'),
  ),
  'docs/data.md: Convert': Run(
    {'/raw/re10k': 'raw/re10k', '=/data': '=all'}, leaves=('all/re10k/clips',)
  ),
  'docs/data.md: Your own captures with cameras': Elsewhere(
    'needs captures; tests/data/sources has small ones'
  ),
  'docs/data.md: Browse': SERVES,
  'docs/data.md: ViZDoom, from start to end': Run(
    {
      "pip install -e '.[vizdoom]'\n": '',
      '--walks=288': '--walks=40 --frames=16',
      '--workdir=runs/vizdoom': f'--workdir=runs/vizdoom{RENDERER}',
    },
    leaves=('runs/vizdoom/checkpoints/2',),
  ),
  'docs/training.md: Schedule and average': Elsewhere(
    'tests/training/test_average.py, with fewer updates'
  ),
  'docs/training.md: Several context views': Run(
    {
      '/data': f'all{RENDERER}{RE10K}',
    },
    after=('docs/gpus.md: GPUs',),
    leaves=('runs/mv/checkpoints/2',),
    prints=('runs/sm',),
  ),
  'docs/methods/srt.md: Train': Run(
    {
      '--workdir=runs/srt_tiny': f'--workdir=runs/srt_tiny{SHORT}'
      ' --config.model.features=16 --config.model.heads=2'
      ' --config.model.encoder_layers=1 --config.model.conv_features=4'
      ' --config.objective.rays=16 --config.data.make.solids.scenes=60',
    },
    leaves=('runs/srt_tiny/checkpoints/2',),
    prints=('copy the nearest view',),
  ),
  'docs/methods/srt.md: Fly through a scene': Run(
    {'--motion=rotate': '--motion=rotate --frames=2'},
    after=('docs/methods/srt.md: Train',),
    leaves=('flight*.mp4',),
  ),
  'docs/methods/srt.md: Continue a run of the public code': Run(
    leaves=('runs/srt_nmr/checkpoints',),
  ),
  'docs/methods/rust.md: Train': Run(
    {'--config.data.dir=/data': BASELINE},
    after=('docs/data.md: Convert',),
    leaves=('runs/rust/checkpoints/2',),
  ),
  'docs/methods/rayzer.md: Train': Run(
    {'--config.data.dir=/data': BASELINE},
    after=('docs/data.md: Convert',),
    leaves=('runs/rayzer/checkpoints/2',),
  ),
  'docs/benchmarks.md: Transfer benchmark': Run(
    {
      '--budget=3000': '--budget=2 --recipes=recipes.py --data_dir=rooms',
      '--seeds=0,1': '--seeds=0',
      'xfactor,autoencode,rust,rayzer,se3': 'xfactor',
    },
    leaves=('runs/transfer/results.md', 'runs/transfer/pictures.png'),
  ),
  'docs/experiment.md: Run it': Run(
    {
      '--experiment=main': '--experiment=main --plan',
      '--experiment=all': '--experiment=main --budget=2 --seeds=0'
      ' --members=xfactor --recipes=recipes.py --data_dir=rooms',
    },
    leaves=(
      'runs/experiment/rates/scores.json',
      'runs/experiment/main/curves.json',
    ),
    prints=('TFLOP', 'learning rates: xfactor'),
  ),
  'docs/inference.md: In Python': Run(
    {
      '# The same as `moved`.': '\n'
      'assert (pictures == moved).all() and moved.shape[0] == len(walk)',
    },
    after=('docs/data.md: ViZDoom, from start to end',),
  ),
  'docs/inference.md: As a command': Run(
    {
      'freedoom1_e4m2/0002': 'freedoom1_e4m2/0000',
      'freedoom2_map07/0001': 'freedoom2_map07/0000',
    },
    after=('docs/data.md: ViZDoom, from start to end',),
    leaves=('transfer.mp4', 'transfer.gif', 'transfer.png'),
  ),
  'docs/inference.md: In a browser': SERVES,
  'docs/cameras.md: Fly': SERVES,
  'docs/cameras.md: Calibrate': Run(
    {'--workdir=runs/tiny': f'--workdir=runs/tiny{RENDERER} --pairs=128'},
    after=('README.md: Two commands',),
    leaves=('runs/tiny/calibration-2.npz', 'runs/tiny/calibration-2.json'),
    prints=('wrong path', 'mean motion'),
  ),
  'docs/cameras.md: Calibrate (2)': Run(
    {"'train')])": "'train')], pairs=128)"},
    after=('README.md: Two commands',),
  ),
  'docs/cameras.md: Render along a path': Run(
    {'--path=pan': '--path=pan:2 --frames=4'},
    after=('docs/cameras.md: Calibrate',),
    leaves=('pan.mp4', 'pan.gif', 'pan.png', 'pan.json'),
  ),
  'docs/cameras.md: Render along a path (2)': Run(
    after=('docs/cameras.md: Render along a path',), leaves=('walk.tum',)
  ),
  'docs/inference.md: The Hugging Face Hub': Elsewhere(
    'tests/exchange/test_hub.py, on a stub of the Hub'
  ),
  'docs/inference.md: The Hugging Face Hub (2)': Elsewhere(
    'tests/exchange/test_hub.py, on a stub of the Hub'
  ),
  'docs/inference.md: Official checkpoints': Run(
    leaves=('runs/official/checkpoints', 'exported', 'model.safetensors'),
  ),
  'docs/export.md: Export': EXPORTS,
  'docs/export.md: StableHLO': EXPORTS,
  'docs/export.md: ONNX': EXPORTS,
  'docs/export.md: Safetensors': EXPORTS,
  'docs/export.md: PyTorch': EXPORTS,
  'docs/export.md: A page without a server': Elsewhere(
    'serves a page until it is stopped; tests/export opens it'
  ),
  'docs/export.md: The public code': Elsewhere(
    'tests/tools/test_import_checkpoint.py runs it'
  ),
  'docs/export.md: The public code (2)': Elsewhere('one of these tests'),
  'docs/gpus.md: GPUs': Run(
    {
      "pip install -e '.[cuda,perceptual]'\n": '',
      '/data': f'all{RENDERER}{RE10K}',
    },
    after=('docs/data.md: Convert',),
    leaves=('runs/sm/checkpoints/2',),
  ),
  'docs/gpus.md: Several hosts': Run(
    {'/shared/runs/sm': f'runs/shared --config.data.dir=all{RENDERER}{RE10K}'},
    after=('docs/data.md: Convert',),
    leaves=('runs/shared/checkpoints/2',),
    prints=('exit code 0',),
  ),
  'docs/accelerators.md: Accelerators': Elsewhere(
    'minutes; tests/tools/test_compile_ahead.py'
  ),
  'docs/tpu-pods.md: One run': Elsewhere('needs TPUs; run dry above'),
  'docs/tpu-pods.md: Spot capacity': Elsewhere('needs TPUs; run dry above'),
  'docs/tpu-pods.md: What fits': Run(
    {
      'python': 'JAX_OPTIMIZATION_LEVEL=O0 python',
      'configs/mv.py': f'configs/mv.py{RENDERER} --config.data.batch=64'
      ' --config.objective.unmasked_prob=0.',
    },
    prints=('64 x TPU v5', 'fits'),
  ),
  'docs/evaluation.md: Evaluation': Run(
    {'--workdir=runs/tiny': f'--workdir=runs/tiny{RENDERER}'},
    after=('README.md: Two commands',),
    leaves=('runs/tiny/eval/00000002/index.html',),
  ),
  'docs/evaluation.md: True Pose Similarity': Run(
    {
      '--workdir=runs/pose_oracle': '--workdir=runs/pose_oracle'
      ' --config.data.make.synthetic.scenes=24'
      ' --config.train.steps=2 --config.train.windows=2'
      ' --config.train.warmup_steps=1'
      ' --config.gate.keep=0.5 --config.gate.min_auc=-1.'
      ' --config.gate.max_loss=2. --config.gate.margin=-2.',
      '--workdir=runs/tiny': f'--workdir=runs/tiny{RENDERER}',
    },
    after=('README.md: Two commands',),
    leaves=('runs/tiny/eval/00000002/rooms_tps-learned.json',),
    prints=('gate passed', 'mean motion'),
  ),
  'docs/evaluation.md: How accurate is an oracle': Run(
    {'--oracle=known_scene': '--oracle=known_scene --clips=2 --frames=3'},
    after=('README.md: Two commands',),
    leaves=('paths.png',),
  ),
  'docs/reading-the-log.md: Compare runs': Run(
    after=(
      'README.md: Two commands',
      'docs/data.md: ViZDoom, from start to end',
    ),
    leaves=('report.html',),
  ),
  'docs/reading-the-log.md: Where the time goes': Run(
    after=('docs/gpus.md: GPUs',), prints=('goodput', 'downtime')
  ),
  'docs/benchmarks.md: Train step': Run(
    {
      '=128': '=32',
      '=256': '=16 --config.model.heads=2 --repeats=1 --compiles=1',
      '_layers=4': '_layers=1',
      '--batch=8': '--batch=2',
    },
    prints=('compile',),
  ),
  'docs/training.md: Training': Run(
    {'--workdir=runs/tiny': TINY}, after=('README.md: Two commands',)
  ),
  'docs/installation.md: Installation': INSTALLS,
  'docs/installation.md: Check the installation': Elsewhere('these tests'),
  'docs/installation.md: This site': Elsewhere('.ci/run builds it'),
  'docs/contributing.md: Set up': INSTALLS,
  'docs/contributing.md: Add a method': Run(
    {'return 0  # Shown as `mfu`.': 'return 0\n\n\nMethod()'}
  ),
  'docs/contributing.md: Add a data set': Run(
    {
      'naming.clip_id(item.id), views)': 'naming.clip_id(item.id), views)\n\n\n'
      "source = Source('panels', min_length=1, size=None)\n"
      '(clip,) = (x for i in source.items() for x in source.clips(i))\n'
      'assert len(clip.frames) == 2\n'
    }
  ),
  'docs/contributing.md: Add a metric': Run(
    {
      'mae(unit, truth_unit)}': 'mae(unit, truth_unit)}\n\n\n'
      'grey = jnp.zeros((2, 16, 16, 3))\n'
      "assert (score(grey, grey, {})['mae'] == 0).all()\n"
    }
  ),
  'docs/contributing.md: Add an oracle': Run(
    {
      'poses, intrinsics)': 'poses, intrinsics)\n\n\n'
      'assert Oracle()(np.zeros((3, 8, 8, 3), np.uint8)).ok\n'
    }
  ),
  'docs/learning.md: How it scales': Elsewhere(
    'trains for hours; tests/tools/test_benchmark_scaling.py has the report'
  ),
  'docs/learning.md: Real video': Elsewhere(
    'trains for an hour; tests/test_recipes.py builds the recipe'
  ),
  'docs/learning.md: When it does not learn': Elsewhere(
    'tests/tools/test_benchmark_learn.py runs it'
  ),
  'docs/learning.md: An oracle for blurred pictures': Elsewhere(
    'trains for an hour first; tests/evaluation/oracles/test_rerender.py has '
    'the oracle'
  ),
  'docs/tutorial.md: 1. Film': INSTALLS,
  'docs/tutorial.md: 1. Film (2)': Run(
    {'range(40)': 'range(10)', 'frames=120': 'frames=24'},
    leaves=('videos/walk_09.mp4',),
  ),
  'docs/tutorial.md: 2. Convert': Run(
    after=('docs/tutorial.md: 1. Film (2)',), leaves=('data/video/frames',)
  ),
  'docs/tutorial.md: 2. Convert (2)': SERVES,
  'docs/tutorial.md: 3. Train': Run(
    {'--workdir=runs/phone': f'--workdir=runs/phone{RENDERER}'},
    after=('docs/tutorial.md: 2. Convert',),
    leaves=('runs/phone/checkpoints/2', 'runs/phone/curves.png'),
    prints=('copy the nearest view',),
  ),
  'docs/tutorial.md: 4. Look': Run(
    {'--workdir=runs/phone': f'--workdir=runs/phone{RENDERER}'},
    after=('docs/tutorial.md: 3. Train',),
    leaves=('runs/phone/eval/00000002/index.html',),
  ),
  'docs/tutorial.md: 5. Move a scene': SERVES,
  'docs/tutorial.md: 5. Move a scene (2)': Run(
    {'CLIP': 'walk_02/000'},
    after=('docs/tutorial.md: 3. Train',),
    leaves=('moved.mp4',),
  ),
}


def test_each_block_is_accounted_for():
  names = [block.name for block in (*SHELL, *PYTHON)]
  assert len(names) == len(set(names)), 'two headings are the same'
  new, gone = set(names) - set(BLOCKS), set(BLOCKS) - set(names)
  assert not new, (
    f'{sorted(new)}: say in BLOCKS of tests/test_readme.py how it is run '
    '(with what small changes, after which other block), or why it is not'
  )
  assert not gone, f'{sorted(gone)}: no such block; take it out of BLOCKS'


@pytest.mark.parametrize('block', [*SHELL, *PYTHON], ids=lambda x: x.name)
def test_what_is_changed_in_a_block_is_there(block):
  how = BLOCKS[block.name]
  if isinstance(how, Elsewhere):
    assert how.why
    return
  for old in how.changes:
    assert old in block.text, f'mend BLOCKS in tests/test_readme.py: {old!r}'
  for name in how.after:
    assert isinstance(BLOCKS[name], Run)


def test_the_clips_that_are_named_are_made():
  named = {
    clip
    for text in TEXT.values()
    for clip in re.findall(r'vizdoom/(test|train)/(\S+)', text)
  }
  made = vizdoom.Source(walks=288).items()
  assert named
  assert named <= {(item.split, item.id) for item in made}


STUBS = {
  # What Slurm does with one task.
  'sbatch': 'shift; exec bash "$@"',
  'srun': 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
  'scontrol': 'exit 1',
}
RECIPES = """
import runpy

THEIRS = runpy.run_path('configs/transfer.py')
MEMBERS, PROBE_ONLY = THEIRS['MEMBERS'], THEIRS['PROBE_ONLY']
RATES, RATE_OF = THEIRS['RATES'], THEIRS['RATE_OF']


def get_config(which):
  config = THEIRS['get_config'](which)
  with config.unlocked():
    config.data.make.turning.scenes = 24
    config.data.batch = config.eval.batch = config.eval.pairs = 4
    config.train.accumulate = 1
    config.model.features = 16
    config.optimizer.warmup_steps = 1
  return config
"""


class World:
  """A folder with the code, and what the blocks read that is nobody's to give.

  Runs each block once, those before it that it needs first.
  """

  def __init__(self, folder):
    self.folder = folder
    self._said = {}
    for name in ('configs', 'launch', 'tools', 'xfactor'):
      (folder / name).symlink_to(ROOT / name)
    for name, text in STUBS.items():
      path = folder / 'bin' / name
      path.parent.mkdir(exist_ok=True)
      path.write_text(f'#!/usr/bin/env bash\n{text}\n')
      path.chmod(0o755)
    for i, name in enumerate(('train/a', 'train/b', 'test/c')):
      clip = test_video.plain_pan(i, 30, 2)
      test_video.write_video(folder / f'footage/{name}.mp4', clip)
    test_video.write_video(folder / 'walk.mp4', clip[:4])
    Image.fromarray(clip[0]).save(folder / 'kitchen.jpg')
    for split in ('train', 'test'):
      path = folder / f'raw/re10k/{split}/000000.torch'
      scenes = [test_re10k.scene(f'{split}{i}') for i in range(2)]
      test_re10k.torch_save(path, scenes)
    (folder / 'runs/nmr').mkdir(parents=True)
    test_import_checkpoint_srt.put(folder / 'runs/nmr/srt')
    shutil.copytree(
      pathlib.Path(GOLDEN, 'clu_ckpt/checkpoints-0'), folder / 'checkpoints-0'
    )
    (folder / 'panels/a').mkdir(parents=True)
    for i in range(2):
      Image.fromarray(clip[i]).save(folder / f'panels/a/{i}.png')
    (folder / 'recipes.py').write_text(RECIPES)

  def run(self, name):
    """What a block says; it must end well."""
    if name in self._said:
      return self._said[name]
    how = BLOCKS[name]
    for other in how.after:
      self.run(other)
    (block,) = (x for x in (*SHELL, *PYTHON) if x.name == name)
    text = block.text
    for old, new in how.changes.items():
      text = text.replace(old, new)
    interpreter = {
      'bash': ['bash', '-euo', 'pipefail', '-c'],
      'python': ['python', '-c'],
    }
    tools = f'{self.folder}/bin:{os.path.dirname(sys.executable)}'
    done = subprocess.run(
      [*interpreter[block.language], text],
      cwd=self.folder,
      env={
        **os.environ,
        'PATH': f'{tools}:{os.environ["PATH"]}',
        'XLA_FLAGS': QUICK,
        'JAX_COMPILATION_CACHE_DIR': CACHE,
      },
      capture_output=True,
      text=True,
      timeout=900,
    )
    assert done.returncode == 0, f'{text}\n{done.stdout}\n{done.stderr}'
    self._said[name] = done.stdout
    return done.stdout


@pytest.fixture(scope='module')
def worlds(tmp_path_factory):
  """One for all pages, but for the tutorial: its videos have the same name."""
  shared = World(tmp_path_factory.mktemp('shared'))
  tutorial = World(tmp_path_factory.mktemp('tutorial'))
  return dict.fromkeys(PAGES, shared) | {'docs/tutorial.md': tutorial}


@pytest.mark.soak
@pytest.mark.parametrize(
  'name', [name for name, how in BLOCKS.items() if isinstance(how, Run)]
)
def test_block_runs(name, worlds):
  world = worlds[name.partition(': ')[0]]
  said = world.run(name)
  for words in BLOCKS[name].prints:
    assert words in said
  for path in BLOCKS[name].leaves:
    assert list(world.folder.glob(path)), path


@pytest.mark.soak
def test_metrics_have_the_keys_of_the_documentation(worlds):
  world = worlds['README.md']
  world.run('README.md: Two commands')
  lines = (world.folder / 'runs/tiny/metrics.jsonl').read_text().splitlines()
  logged = {key for line in lines for key in json.loads(line)}
  said = {
    word.strip().split('/')[-1]
    for row in table('key')
    for word in row[0].split(',')
  }
  # LPIPS is off, the machine's peak is not known, and all examples are good.
  said -= {'lpips', 'mfu', 'NAME'}
  assert said <= {key.split('/')[-1] for key in logged}
