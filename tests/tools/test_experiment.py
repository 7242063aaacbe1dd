"""The experiment: what is registered is what runs, and how it is judged."""

import json
import os
import pathlib
import re
import runpy
import types

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from transfer_suite import (
  curves,
  experiment,
  figures,
  members,
  rates,
  running,
  tables,
)

from tests.tools import test_transfer_benchmark as benchmark
from tests.training import small
from xfactor.errors import UserError
from xfactor.training import held_out

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = runpy.run_path(str(ROOT / 'configs/transfer.py'))
SCENES = ['a', 'a', 'b', 'c']


def test_what_runs_is_what_is_registered():
  text = (ROOT / 'docs/experiment.md').read_text()
  rows = re.findall(
    r'^\| \d `(\w+)` \| `(\w+)` \| (.+?) \| (\d) \| (\d+) \|', text, re.M
  )
  assert len(rows) == len(experiment.PARTS)
  for part, (name, suite, names, seeds, budget) in zip(
    experiment.PARTS, rows, strict=True
  ):
    assert (part.name, part.suite) == (name, suite)
    assert part.seeds == tuple(range(int(seeds)))
    assert part.budget == f'{budget}TFLOP'
    named = re.findall(r'`(\w+)`', names)
    if widths := re.findall(r'\d+', names.partition('for N')[2]):
      named = [
        name.replace('N', width)
        for width in widths
        for name in named
        if name.endswith('_N')
      ]
    assert set(part.members) == set(named)
    assert set(part.members) <= set(RECIPES['MEMBERS'])
    assert part.suite in RECIPES['_SUITES']
  rated = [f'{rate:g}' for rate in RECIPES['RATES']]
  assert f'{rated[0]}, {rated[1]} and {rated[2]}' in text
  assert str(rates.SEED) in text


def test_parts_have_the_members_to_compare_with():
  (part,) = experiment.chosen(['members'])
  assert experiment.with_earlier(part).members[:3] == (
    'xfactor',
    'autoencode',
    'rust',
  )
  assert experiment.chosen(['all']) == list(experiment.PARTS)
  assert [x.name for x in experiment.chosen(['moving', 'main'])] == [
    'main',
    'moving',
  ]
  with pytest.raises(UserError, match='--experiment=all: choose from all, '):
    experiment.chosen(['all', 'main'])


def test_the_budget_counts_rates_once_and_measures_the_speed(tmp_path):
  parts = experiment.chosen(['main', 'members'])
  rate_of, grid = RECIPES['RATE_OF'], RECIPES['RATES']
  said = experiment.budget(parts, rate_of, grid, tmp_path, 2)
  cells = [line.split() for line in said.splitlines()]
  assert cells[1][:5] == ['main', 'turning', '10', '6', '195']
  # Of rust, rayzer, se3, rayder, nuisance, simclr and vicreg.
  assert cells[2][:4] == ['members', 'turning', '45', '21']
  assert 'assumed' in said
  path = tmp_path / 'turning/xfactor-seed0/benchmark.json'
  path.parent.mkdir(parents=True)
  state = {'flops': 4e12, 'seconds': {'train': 60, 'none': 40}}
  path.write_text(json.dumps(state))
  said = experiment.budget(parts[:1], rate_of, grid, tmp_path, 1)
  assert said.splitlines()[1].split()[-1] == '1.4'  # 195e12 / 40e9 s.
  assert '40 GFLOP/s each (of 1 finished runs)' in said
  # What another part has trained is only tested.
  said = experiment.budget(
    experiment.chosen(['parallax', 'tps']), rate_of, grid, tmp_path, 1
  )
  assert said.splitlines()[2].split() == [
    'tps',
    'parallax',
    '0',
    '0',
    '0',
    '0.0',
  ]


def found(rank):
  own = {'rank': [1.0] * 4, 'identified': [1.0] * 4, 'psnr': [20.0] * 4}
  return {
    'common': {},
    'rows': {},
    'pairs': {'model': own | {'rank': rank}, 'autoencoded': own},
  }


@pytest.fixture
def judged():
  """The differences of one member, given the ranks of both by seed."""

  def judge(ours, theirs):
    table = tables.Table('t', [], {}, scenes=SCENES)
    config = small.recipe('data')
    for name, ranks in (('rust', ours), ('xfactor', theirs)):
      member = members.Member(name, config, 1, 1, True, 'squares')
      for seed, rank in enumerate(ranks):
        workdir = pathlib.Path(f'{name}-seed{seed}')
        table.expect(running.Run(member, seed, workdir, [], {}))
        if rank is not None:
          table.found[workdir.name] = found(rank)
    return table.differences('rust'), table.markdown()

  return judge


def test_differences_are_paired_by_seed_and_scene(judged):
  ours = [[0.6, 0.8, 0.5, 0.7], [0.7, 0.9, 0.6, 0.8]]
  theirs = [[0.8, 1.0, 0.8, 0.9], [0.9, 1.0, 0.9, 1.0]]
  found, text = judged([*ours, None], [*theirs, [0.0] * 4])
  rank = found['transfer rank']
  apart = 100 * (np.array(ours) - theirs)
  by_seed = apart.mean(1)
  np.testing.assert_allclose(rank.over_seeds.value, by_seed.mean())
  # Student's 12.706 with two seeds.
  half = 12.7062 * by_seed.std(ddof=1) / np.sqrt(2)
  np.testing.assert_allclose(rank.over_seeds.low, by_seed.mean() - half, 1e-4)
  # Scenes have the same weight, however many pairs they have.
  by_scene = [apart[:, :2].mean(), apart[:, 2].mean(), apart[:, 3].mean()]
  np.testing.assert_allclose(rank.over_scenes.value, np.mean(by_scene))
  half = 4.3027 * np.std(by_scene, ddof=1) / np.sqrt(3)
  np.testing.assert_allclose(
    rank.over_scenes.high, np.mean(by_scene) + half, 1e-4
  )
  assert rank.counts
  assert not rank.within(3)
  # What is lost is what is not transferred of the own.
  lost = found['lost rank']
  np.testing.assert_allclose(lost.over_seeds.value, -by_seed.mean())
  assert f'| rust | {by_seed.mean():+.1f} (' in text
  assert ', counts |' in text


def test_equal_is_both_intervals_within_three_points(judged):
  theirs = [[0.9, 0.8, 0.9, 0.7]] * 3
  close = [[x + 0.001 * (i - 1) for x in theirs[0]] for i in range(3)]
  found, text = judged(close, theirs)
  assert found['transfer rank'].within(3)
  assert not found['transfer rank'].counts
  assert ', equal |' in text
  far = [[x - 0.04 for x in row] for row in close]
  found, text = judged(far, theirs)
  assert not found['transfer rank'].within(3)
  assert 'equal |' not in text
  # One seed, or one scene, has no interval and settles nothing.
  found, _ = judged(far[:1], theirs[:1])
  assert not found['transfer rank'].counts


def test_a_pair_without_a_number_does_not_count(judged):
  ours, theirs = [[0.5, None, 0.5, 0.5]], [[0.6, 0.6, 0.6, 0.0]]
  found, _ = judged(ours, theirs)
  np.testing.assert_allclose(found['transfer rank'].over_seeds.value, 10)
  found, text = judged([[None] * 4], theirs)
  assert 'transfer rank' not in found
  assert '| rust | - |' in text


def rate_runs(folder, draws=True):
  member = members.Member(
    'rust', small.recipe('data', train__steps=40), 1, 1, draws, 'squares'
  )
  return rates.plan(
    [member],
    [1e-3, 1e-2],
    folder,
    stores=[benchmark.store()] * 2,
    recipes='R.py',
    suite='turning',
  )


def test_rates_are_chosen_on_validation_scenes(tmp_path):
  runs = rate_runs(tmp_path)
  assert list(runs['rust']) == [1e-3, 1e-2]
  for rate, rank in ((1e-3, 60.0), (1e-2, 80.0)):
    run = runs['rust'][rate]
    (stage,) = run.stages
    assert stage.name == running.TRAIN
    assert '--config.eval.split=val' in stage.command
    assert f'--config.optimizer.learning_rate={rate}' in stage.command
    final = f'--config.optimizer.final_learning_rate={rate / 10}'
    assert final in stage.command
    assert f'--config.seed={rates.SEED}' in stage.command
    run.begin()
    path = held_out.file(run.workdir, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {'data': {'squares': {'transfer': {'rank': rank}}}}
    path.write_text(json.dumps(scores))
    run.finish(stage, 3.0)
    assert run.seconds() == {'train': 3.0}
  scores = rates.scores(runs)
  assert scores == {'rust': {'0.001': 60.0, '0.01': 80.0}}
  assert rates.best(scores) == {'rust': 1e-2}
  # Better a bad rate than one that diverged; none if all did.
  (tmp_path / '0.01/rust-seed1000/benchmark.json').unlink()
  scores = rates.scores(runs)
  assert scores == {'rust': {'0.001': 60.0, '0.01': None}}
  assert rates.best(scores) == {'rust': 1e-3}
  (tmp_path / '0.001/rust-seed1000/benchmark.json').unlink()
  assert rates.best(rates.scores(runs)) == {}


def test_whole_scores_of_earlier_rates_are_taken(tmp_path):
  path = tmp_path / 'rates/scores.json'
  assert rates.read(path, [1e-3, 1e-2]) == {}
  whole = {'0.001': 60.0, '0.01': 80.0}
  rates.write(path, {'rust': whole})
  rates.write(path, {'deep': {'0.001': 60.0, '0.01': None}})
  assert rates.read(path, [1e-3, 1e-2]) == {'rust': whole}
  assert rates.read(path, [1e-3, 3e-3, 1e-2]) == {}
  published = ROOT / 'docs/experiment/rates.json'
  known = rates.read(published, RECIPES['RATES'])
  assert rates.best(known) == {'xfactor': 3e-3, 'autoencode': 3e-3}


def test_what_has_no_renderer_is_chosen_by_its_probe(tmp_path):
  run = rate_runs(tmp_path, draws=False)['rust'][1e-2]
  assert [x.name for x in run.stages] == [running.TRAIN, running.PROBE]
  folder = held_out.folder(run.workdir, 40)
  folder.mkdir(parents=True)
  # A camera that only turns has no AUC@20.
  none = dict.fromkeys(('value', 'low', 'high'))
  means = {'auc@20': none, 'auc_rotation@5': benchmark.mean(0.7)}
  rows = {'probe': {'mean': means}}
  (folder / 'squares_probe.json').write_text(json.dumps({'rows': rows}))
  np.testing.assert_allclose(rates.score(run), 70)


def test_motions_of_another_world_are_a_test_of_their_own(tmp_path):
  member = members.Member(
    'rust', small.recipe('data', train__steps=40), 1, 1, True, 'squares'
  )

  def plan(motions):
    (run,) = running.plan(
      [member],
      [0],
      tmp_path,
      {'none': benchmark.oracle()},
      options={},
      stores=[benchmark.store()] * 2,
      recipes='R.py',
      suite='levels',
      motions=motions,
    )
    return run

  own, crossing = plan(None), plan('turning')
  assert own.stages[0] == crossing.stages[0]
  assert own.stages[1].file == 'tps-none.json'
  assert crossing.stages[1].file == 'by-turning_tps-none.json'
  assert '--motions=turning' in crossing.stages[1].command
  assert '--probe' not in crossing.stages[1].command
  # One does not undo the other.
  for run in (own, crossing):
    run.begin()
    for stage in run.left():
      run.finish(stage, 1.0)
  assert not own.left()
  assert not crossing.left()


def test_curves_are_small(tmp_path):
  run = rate_runs(tmp_path)['rust'][1e-2]
  run.begin()
  line = {'step': 5, 'loss': 0.123456, 'eval/squares/psnr': 20.0, 'mfu': 1.0}
  (run.workdir / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  curves.write(tmp_path / 'c.json', [run], {run.name: found([None, 0.25])})
  (saved,) = json.loads((tmp_path / 'c.json').read_text()).values()
  assert saved['curve'] == [
    {'step': 5, 'loss': 0.1235, 'eval/squares/psnr': 20.0}
  ]
  assert saved['pairs']['model']['rank'] == [None, 0.25]
  assert saved['learning_rate'] == 1e-2


def results(folder, part, ranks):
  def number(value):
    return {'value': value, 'low': value - 0.1, 'high': value + 0.1}

  path = folder / part / 'results.json'
  path.parent.mkdir()
  mean = {
    name: {'none': {'rank': number(x), 'autoencoded rank': number(1.0)}}
    for name, x in ranks.items()
  }
  path.write_text(
    json.dumps({'members': {name: {'mean': x} for name, x in mean.items()}})
  )


def test_figures_are_of_what_has_been_run(tmp_path, monkeypatch):
  assert figures.write(tmp_path) == []
  plotted = []
  monkeypatch.setattr(
    Axes, 'errorbar', lambda axes, *x, **_: plotted.append(x[:2])
  )
  results(tmp_path, 'main', {'xfactor': 0.9, 'autoencode': 0.8})
  figures.write(tmp_path)
  assert [list(y) for _, y in plotted] == [[90.0], [100.0], [80.0], [100.0]]
  plotted.clear()
  ranks = {'xfactor_2': 0.6, 'xfactor': 0.9, 'autoencode_256': 0.5}
  results(tmp_path, 'widths', ranks)
  figures.write(tmp_path)
  assert plotted[-2:] == [([2, 16], [60.0, 90.0]), ([256], [50.0])]
  monkeypatch.undo()
  line = {'step': 9, 'eval/turning/psnr': 2, 'eval/turning/shuffled_psnr': 1}
  curve = {'xfactor-seed0': {'curve': [{'step': 5}, line]}}
  (tmp_path / 'main/curves.json').write_text(json.dumps(curve))
  written = figures.write(tmp_path)
  assert [x.name for x in written] == ['worlds.png', 'widths.png', 'curves.png']
  for path in written:
    with Image.open(path) as picture:
      assert picture.size == (840, 480)


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='no affinities here'
)
def test_each_job_has_its_cores(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {1, 4, 5})
  assert running.core_shares(1) == []
  assert running.core_shares(2) == [{1, 5}, {4}]
  assert running.core_shares(4) == [{1}, {4}, {5}, {1}]
  monkeypatch.undo()
  mine = os.sched_getaffinity(0)
  seen = {}

  def runner(command, log, stop):
    del log, stop
    seen[command[0]] = os.sched_getaffinity(0)
    return 0

  runs = [
    types.SimpleNamespace(
      left=lambda name=name: [types.SimpleNamespace(command=[name])],
      log=pathlib.Path('none'),
      finish=lambda stage, seconds: None,
    )
    for name in 'ab'
  ]
  assert len(list(running.complete_all(runs, 2, runner))) == 2
  assert all(cores in running.core_shares(2) for cores in seen.values())
  assert os.sched_getaffinity(0) == mine


@pytest.fixture
def recipes(tmp_path):
  path = tmp_path / 'recipes.py'
  path.write_text(benchmark.RECIPES)
  return path


@pytest.mark.soak
def test_the_experiment_from_end_to_end(recipes):
  args = (
    *('--experiment=main', '--members=rust,deep', '--seeds=1'),
    *('--budget=2', '--jobs=2'),
  )
  done = benchmark.run(recipes, *args)
  assert done.returncode == 0, done.stderr + done.stdout
  assert done.stdout.startswith('part ')
  scores = json.loads((recipes.parent / 'out/rates/scores.json').read_text())
  assert list(scores) == ['rust']
  chosen = max(scores['rust'], key=scores['rust'].get)
  assert f'learning rates: rust {chosen}' in done.stdout
  runs = json.loads((recipes.parent / 'out/main/curves.json').read_text())
  assert list(runs) == ['rust-seed1', 'deep-seed1']
  assert {run['learning_rate'] for run in runs.values()} == {float(chosen)}
  for run in runs.values():
    assert [line['step'] for line in run['curve']]
    assert len(run['pairs']['model']['psnr']) == 4
  again = benchmark.run(recipes, *args)
  assert '2 runs in' in again.stdout
  assert '2 of them finished' in again.stdout
