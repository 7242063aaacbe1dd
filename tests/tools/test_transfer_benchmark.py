"""The suite finishes what it can, goes on where it stopped, and says it all."""

import json
import os
import pathlib
import re
import signal
import sys
import threading
import types

import numpy as np
import pytest
from PIL import Image
from transfer_suite import (
  drawing,
  members,
  running,
  suites,
  tables,
)

from tests import commands
from tests.conftest import CACHE, QUICK
from tests.training import small
from xfactor.errors import UserError
from xfactor.methods.base import StepKind
from xfactor.training import build, held_out
from xfactor.training.resilience import shutdown

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = """
from tests.training import small
from xfactor import config as configs

MEMBERS = {'rust': {}, 'deep': {}, 'contrast': {}, 'posed': {}}
PROBE_ONLY = {'contrast'}
RATES, RATE_OF = (1e-3, 2e-3), {'deep': 'rust'}


def get_config(arg):
  name, suite = arg.split(',')
  make = small.posed_recipe if name == 'posed' else small.recipe
  config = make('unknown')
  with config.unlocked():
    config.optimizer.warmup_steps = 1
    config.data.min_length = 6
    if name != 'posed':
      config.objective.unmasked_prob = 0.0  # One program instead of two.
      config.eval.update(pairs=4, targets=3, window=5)
    config.data.mix = {suite: configs.part(begin=3, end=6)}
    if name == 'deep':
      config.model.encoder_layers = 2
      config.objective.unmasked_prob = 1.0
    config.data.make = {
      suite: {
        'source': 'synthetic',
        'scenes': 7,
        'frames': 6,
        'size': 32,
        'test_fraction': 0.5,
        'val_fraction': 0.4,
      }
    }
  return config
"""
SCORE = {'xfactor': 0.5, 'rust': 0.2, 'contrast': 0.1}


@pytest.fixture
def recipes(tmp_path):
  path = tmp_path / 'recipes.py'
  path.write_text(RECIPES)
  return path


def mean(value):
  return {
    'value': value,
    'low': value - 0.05,
    'high': value + 0.05,
    'rejected_as_zero': value / 2,
    'count': 8,
  }


class Player:
  """Writes what the binaries would; notes what it was asked for."""

  def __init__(self, plays=()):
    self.asked = []
    self._plays = dict(plays)

  def __call__(self, command, log, stop):
    options = dict(
      x.removeprefix('--').split('=', 1) for x in command if '=' in x
    )
    workdir = pathlib.Path(options['workdir'])
    what = options.get(
      'oracle', 'train' if 'xfactor.main' in command else 'probe'
    )
    self.asked.append((workdir.name, what))
    if play := self._plays.get(self.asked[-1]):
      code = play(log)
      if code:
        return code
    score = SCORE[workdir.name.split('-')[0]]
    score += 0.1 * (int(options['config.seed']) - 1)
    step = int(options['config.train.steps'])
    folder = held_out.folder(workdir, step)
    folder.mkdir(parents=True, exist_ok=True)
    if what == 'train':
      scores = {who: {'psnr': 20 + score} for who in ('model', 'shuffled')}
      held_out.file(workdir, step).write_text(
        json.dumps({'data': {'squares': {'mean': scores}}})
      )
    if 'oracle' in options:
      rows = {
        row: {
          'pairs': 8,
          'acceptance': 0.75,
          'each': {},
          'mean': dict.fromkeys(('rra@20', 'rta@20', 'auc@20'), mean(value)),
        }
        for row, value in (
          ('model', score),
          ('autoencoded', 0.9),
          ('frozen', 0.0),
          ('shuffled', 0.33),
        )
      }
      rows['model']['each'] = {'psnr': [10.0, None, 12.0], 'rank': [None]}
      (folder / f'squares_tps-{what}.json').write_text(
        json.dumps({'oracle': f'{what} 7', 'rows': rows, 'chance': 0.125})
      )
    if '--probe' in command:
      row = {'mean': dict.fromkeys(('auc@20', 'auc_rotation@5'), mean(score))}
      (folder / 'squares_probe.json').write_text(
        json.dumps({'rows': {'probe': row}})
      )
    return 0


def oracle(version='1'):
  return types.SimpleNamespace(version=version, settings=dict)


def store(cameras=True):
  clip = types.SimpleNamespace(world_to_camera=cameras or None)
  return types.SimpleNamespace(digest='d', clip=lambda _: clip)


@pytest.fixture
def suite(tmp_path, monkeypatch):
  """Plays a suite: which runs, by whom; returns whether nothing failed."""
  monkeypatch.setattr(drawing, 'write', lambda path, runs: path.touch())

  def play(
    player,
    names=('xfactor', 'rust'),
    seeds=(0, 1, 2),
    steps=40,
    oracles=('known_scene',),
    cameras=True,
    failures=(),
    jobs=1,
  ):
    config = small.recipe('data', train__steps=steps)
    runs = running.plan(
      [
        members.Member(
          x, config, 1234, 10, x in SCORE and x != 'contrast', 'squares'
        )
        for x in names
      ],
      seeds,
      tmp_path,
      {name: oracle() for name in oracles},
      options={'learned': 'weights=W'},
      stores=[store(cameras)] * 2,
      recipes='configs/transfer.py',
      suite='turning',
    )
    table = tables.Table('squares', list(oracles), dict(failures))
    return suites.complete(runs, table, tmp_path, jobs=jobs, runner=player)

  return play


def rows(folder, section='known_scene'):
  """Cells by member and by title."""
  text = (folder / 'results.md').read_text().split(f'## {section}\n')[1]
  lines = [
    [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
    for line in text.split('\n## ')[0].splitlines()
    if line.startswith('|')
  ]
  return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_means_over_seeds_and_nothing_twice(tmp_path, suite, capsys):
  player = Player()
  assert suite(player)
  # Seed by seed, so that a part compares all members.
  assert player.asked == [
    (f'{name}-seed{seed}', what)
    for seed in range(3)
    for name in ('xfactor', 'rust')
    for what in ('train', 'known_scene')
  ]
  table = rows(tmp_path)
  assert list(table) == ['xfactor', 'rust', '*frozen*', '*shuffled*']
  # Of 0.4, 0.5, 0.6: Student's 4.303 times 0.1 / sqrt(3).
  assert table['xfactor']['AUC@20 %'] == '50.0 (25.2..74.8)'
  assert table['rust']['probe AUC@20 %'] == '20.0 (-4.8..44.8)'
  assert table['xfactor']['held-out PSNR'] == '20.5 (20.3..20.7)'
  assert table['xfactor']['updates'] == '40'
  assert table['xfactor']['parameters'] == '1,234'
  assert table['xfactor']['autoencoded AUC@20 %'].startswith('90.0')
  assert table['xfactor']['transfer PSNR'].startswith('11.0')
  # Columns without a number are omitted.
  assert 'transfer rank %' not in table['xfactor']
  assert 'autoencoded PSNR' not in table['xfactor']
  # Null rows once, with the evaluation's own interval.
  assert table['*shuffled*']['AUC@20 %'] == '33.0 (28.0..38.0)'
  text = (tmp_path / 'results.md').read_text()
  assert 'known_scene 7, 8 pairs. Null rows: of xfactor-seed0' in text
  assert '12.5 % by chance' in text
  out = capsys.readouterr().out
  assert text in out
  assert re.search(r'\[6/6\] rust-seed2, \d+ s: held-out PSNR 20.3, ', out)
  numbers = json.loads((tmp_path / 'results.json').read_text())
  auc = numbers['members']['xfactor']['mean']['known_scene']['auc@20']
  np.testing.assert_allclose(auc['value'], 0.5)

  (tmp_path / 'results.md').unlink()
  again = Player()
  assert suite(again)
  assert not again.asked
  assert rows(tmp_path) == table
  # Another oracle asks for what is new alone; oracles have their own tables.
  assert suite(again, oracles=('known_scene', 'learned'), seeds=(0,))
  assert [what for _, what in again.asked] == ['learned', 'learned']
  assert rows(tmp_path, 'learned')['rust']['AUC@20 %'] == '10.0 (5.0..15.0)'
  assert 'One seed' in (tmp_path / 'results.md').read_text()


def test_what_has_no_renderer_is_only_probed(tmp_path, suite):
  player = Player()
  assert suite(player, names=('contrast', 'rust'), seeds=(1,))
  assert player.asked[:2] == [
    ('contrast-seed1', 'train'),
    ('contrast-seed1', 'probe'),
  ]
  cells = rows(tmp_path)['contrast']
  assert cells['probe AUC@20 %'] == '10.0 (5.0..15.0)'
  assert cells['AUC@20 %'] == cells['held-out PSNR'] == '-'
  assert cells['remarks'] == 'no renderer'


def test_without_cameras_there_is_no_probe(tmp_path, suite):
  assert suite(Player(), cameras=False, seeds=(0,))
  assert 'probe AUC@20 %' not in rows(tmp_path)['rust']


def test_the_rest_goes_on_where_a_member_fails(tmp_path, suite, capsys):
  def fail(log):
    log.write_text('step 3\nerror: the loss | is not finite\nbye\n')
    return 1

  def crash(log):
    log.write_text('Traceback\nValueError: no\n')
    return -9

  player = Player(
    {('rust-seed0', 'train'): fail, ('rust-seed1', 'known_scene'): crash}
  )
  bad = {'posed': 'needs cameras'}
  assert not suite(player, failures=bad)
  assert ('rust-seed0', 'known_scene') not in player.asked
  assert ('xfactor-seed2', 'known_scene') in player.asked
  table = rows(tmp_path)
  assert table['rust']['remarks'] == (
    r'failed: train: the loss \| is not finite (seed 0); failed: known_scene: '
    'exit code -9 (ValueError: no) (seed 1)'
  )
  assert table['rust']['AUC@20 %'] == '30.0 (25.0..35.0)'
  assert table['posed']['remarks'] == 'failed: needs cameras'
  assert table['xfactor']['remarks'] == ''
  assert 'rust-seed0, 0 s: failed: train: the loss' in capsys.readouterr().out
  # The same command does again what failed, and only that.
  again = Player()
  assert suite(again)
  assert again.asked == [
    ('rust-seed0', 'train'),
    ('rust-seed0', 'known_scene'),
    ('rust-seed1', 'known_scene'),
  ]
  assert rows(tmp_path)['rust']['remarks'] == ''


@pytest.mark.parametrize('told', ['suite', 'member'])
def test_an_interrupted_suite_goes_on(tmp_path, suite, told):
  def stop(log):
    if told == 'suite':
      os.kill(os.getpid(), signal.SIGTERM)
    return shutdown.EXIT_CODE

  player = Player({('rust-seed0', 'train'): stop})
  with pytest.raises(shutdown.Interrupted):
    suite(player)
  assert player.asked[-1] == ('rust-seed0', 'train')
  table = rows(tmp_path)
  assert table['xfactor']['remarks'] == '1 of 3 seeds so far'
  assert table['rust']['remarks'] == '0 of 3 seeds so far'
  again = Player()
  assert suite(again)
  assert again.asked[:2] == [
    ('rust-seed0', 'train'),
    ('rust-seed0', 'known_scene'),
  ]
  assert len(again.asked) == 10


def test_several_at_once(suite):
  meeting = threading.Barrier(2, timeout=20)

  def meet(log):
    del log
    meeting.wait()

  keys = (('xfactor-seed0', 'train'), ('rust-seed0', 'train'))
  assert suite(Player(dict.fromkeys(keys, meet)), seeds=(0,), jobs=2)


def test_other_budgets_do_not_mix(tmp_path, suite):
  assert suite(Player(), seeds=(0,))
  again = Player()
  with pytest.raises(
    UserError, match='xfactor-seed0 was .*train.steps=40, not'
  ):
    suite(again, seeds=(0,), steps=80)
  assert not again.asked


def test_a_process_is_told_to_stop(tmp_path):
  program = (
    'import signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))\n'
    'print("ready", flush=True)\n'
    'time.sleep(60)'
  )
  log, stop = tmp_path / 'log.txt', threading.Event()
  codes = []

  def wait():
    codes.append(running.execute([sys.executable, '-c', program], log, stop))

  thread = threading.Thread(target=wait)
  thread.start()
  while not (log.exists() and 'ready' in log.read_text()):
    thread.join(0.05)
    assert thread.is_alive()
  stop.set()
  thread.join(30)
  assert codes == [shutdown.EXIT_CODE]


@pytest.mark.parametrize(
  'budget', ['0', 'many', '-3', 'TFLOP', '1e', '1.2.3TFLOP']
)
def test_budgets_that_are_none(budget):
  with pytest.raises(UserError, match='--budget'):
    members.updates(budget, 1)


def test_budgets_in_flops():
  assert members.updates('30TFLOP', 4 * 10**9) == 7500
  assert members.updates('0.5PFLOPs', 10**12) == 500
  assert members.updates('1e3GFLOP', 10**15) == 1
  assert members.updates('4000', 10**15) == 4000


def test_equal_flops_are_more_updates_of_the_smaller(recipes, tmp_path):
  chosen, failures = members.make(
    members.load(str(recipes)),
    None,
    suite='turning',
    budget='0.02TFLOP',
    data_dir=str(tmp_path),
  )
  assert list(failures) == ['posed']
  assert 'has no latent poses' in failures['posed']
  rust, deep, contrast = chosen
  for member, kind in (
    (rust, StepKind.SPLIT),
    (deep, StepKind.WHOLE),
  ):
    built = build.build(member.config)
    assert member.flops == built.method.flops(built, kind)
    assert member.updates == round(2e10 / member.flops)
  assert rust.updates > deep.updates > 10
  assert deep.parameters > rust.parameters
  assert rust.draws
  assert not contrast.draws


def test_too_few_updates_for_the_schedule_fail_one_by_one(recipes, tmp_path):
  with pytest.raises(UserError, match='no member can .*warmup_steps=1 must'):
    members.make(
      members.load(str(recipes)),
      ['rust'],
      suite='turning',
      budget='1',
      data_dir=str(tmp_path),
    )


def run(recipes, *args):
  return commands.run(
    'tools/transfer_benchmark.py',
    f'--recipes={recipes}',
    f'--data_dir={recipes.parent / "data"}',
    f'--out={recipes.parent / "out"}',
    *args,
    XLA_FLAGS=QUICK,
    JAX_COMPILATION_CACHE_DIR=CACHE,
  )


@pytest.mark.parametrize(
  ('args', 'said'),
  [
    (('--budget=2',), 'give --suite'),
    (('--suite=turning', '--budget=2', '--members=what'), "no member 'what'"),
    (('--experiment=mian',), '--experiment=mian: choose from all, main, '),
    (('--suite=turning', '--budget=2', '--seeds=a'), '--seeds=a: give'),
    (
      ('--suite=turning', '--budget=2', '--oracle_options=weights=x'),
      'give NAME:KEY=VALUE',
    ),
    (
      ('--suite=turning', '--budget=2', '--oracles=learned'),
      'train it by python tools/train_pose_oracle.py',
    ),
  ],
)
def test_bad_input_is_one_line_before_any_training(recipes, args, said):
  done = run(recipes, *args)
  assert done.returncode == 2
  assert said in done.stderr.splitlines()[-1]
  assert done.stderr.startswith('error: ')
  assert not list(recipes.parent.glob('out/*-seed*'))


@pytest.mark.soak
def test_the_command(recipes):
  pytest.importorskip('cv2')
  args = (
    '--suite=turning',
    '--budget=2',
    '--seeds=3',
    '--members=rust,posed',
    f'--oracle_options=learned:weights={recipes.parent}/none',
  )
  done = run(recipes, *args)
  out = recipes.parent / 'out'
  log = out / 'rust-seed3' / 'log.txt'
  said = log.read_text() if log.exists() else ''
  assert done.returncode == 1, done.stderr + said
  assert 'seed 3' in said
  assert re.search('^skipped: .*train_pose_oracle', done.stdout, re.MULTILINE)
  cells = rows(out)
  assert list(cells) == [
    'rust',
    'posed',
    *('*true re-render*', '*frozen*', '*shuffled*', '*other motion*'),
  ]
  psnr = json.loads(held_out.file(out / 'rust-seed3', 2).read_text())['data'][
    'turning'
  ]['mean']['model']['psnr']
  assert cells['rust']['held-out PSNR'] == f'{psnr:.1f}'
  assert cells['rust']['updates'] == '2'
  assert cells['posed']['remarks'].startswith(
    'failed: a model of config.method'
  )
  assert '0' <= cells['rust']['probe AUC@20 %'][0] <= '9'
  with Image.open(out / 'pictures.png') as picture:
    # Three pairs of three rows: a reference and three targets.
    width, height = picture.size
  assert height == 4 * (9 * (32 + 2) - 2)
  assert width > 4 * 4 * (32 + 2) + 50
  before = {x: x.stat().st_mtime_ns for x in (out / 'rust-seed3').rglob('*')}
  done = run(recipes, *args)
  assert done.returncode == 1, done.stderr
  assert '1 runs in' in done.stdout
  assert '1 of them finished' in done.stdout
  after = {x: x.stat().st_mtime_ns for x in (out / 'rust-seed3').rglob('*')}
  assert {x for x in after if after[x] != before.get(x)} <= {
    out / 'rust-seed3',
    out / 'rust-seed3' / 'benchmark.json',
  }
