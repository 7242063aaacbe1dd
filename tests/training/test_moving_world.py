"""A run in a world that is drawn: what it says of motion at its end."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.training import small
from xfactor.data.convert import run as convert_run
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.evaluation import motion
from xfactor.evaluation import run as evaluation_run
from xfactor.training import build, held_out, loop
from xfactor.training.telemetry import writers

pytestmark = pytest.mark.slow

WINDOW = 4
PAIRS = 4


def recipe(data_dir, name, **changes):
  # Nothing that changes the programs of test_loop's run, which are kept.
  config = small.recipe(data_dir, eval__pairs=PAIRS, **changes)
  with config.unlocked():
    config.data.mix = {name: small.configs.part(begin=2, end=4)}
    config.data.min_length = WINDOW
  return config


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Rooms in which a camera pans, and squares without cameras."""
  folder = small.make_data(tmp_path_factory.mktemp('data'))
  source = synthetic.Source(
    scenes=8,
    frames=6,
    size=32,
    paths='pan',
    turn=6,
    field_of_view=65.0,
    test_fraction=0.6,
    with_depth=False,
  )
  convert_run.convert(source, folder, name='rooms', workers=0, quiet=True)
  return folder


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """A finished run that looked at motion half-way, too, and what it printed."""
  workdir = tmp_path_factory.mktemp('run')
  config = recipe(data_dir, 'rooms', train__eval_every=3)
  with pytest.MonkeyPatch.context() as patch:
    printed = []
    patch.setattr(loop, 'print', lambda *x, **_: printed.append(x[0]), False)
    loop.train(config, str(workdir), motion.make)
  return config, workdir, '\n'.join(printed)


def scores(workdir, step=6):
  return json.loads(held_out.file(workdir, step).read_text())['data']['rooms']


def test_the_scores_have_transfer_and_freedoms(run):
  _, workdir, _ = run
  transfer = scores(workdir)['transfer']
  assert set(transfer) == {
    *('pairs', 'rank', 'identified', 'chance'),
    *('psnr', 'own_psnr', 'frozen_psnr'),
  }
  assert transfer['pairs'] == PAIRS
  assert 0 <= transfer['identified'] <= transfer['rank'] <= 100
  # Among as many motions as there are pairs, but for the scene's own.
  assert 100 / PAIRS <= transfer['chance'] <= 50
  # A still picture of the room is nearer to it than what has learned nothing.
  assert 5 < transfer['psnr'] < transfer['frozen_psnr'] < 50
  explained = scores(workdir)['explained']
  assert list(explained) == ['pan']
  assert explained['pan'] < 1


def test_the_log_has_them_by_step(run):
  _, workdir, _ = run
  lines = writers.read_lines(workdir / 'metrics.jsonl')
  steps = [x['step'] for x in lines if 'eval/rooms/r2_pan' in x]
  assert steps == [3, 6]
  # The transfer test is for the end.
  (last,) = [x for x in lines if 'eval/rooms/transfer_rank' in x]
  assert last['step'] == 6
  found = scores(workdir)
  assert last['eval/rooms/transfer_psnr'] == pytest.approx(
    found['transfer']['psnr']
  )
  assert last['eval/rooms/r2_pan'] == pytest.approx(found['explained']['pan'])


def test_the_table_is_printed(run):
  _, workdir, printed = run
  transfer = scores(workdir)['transfer']
  for said in (
    f'rooms: does motion transfer? ({PAIRS} pairs of held-out clips',
    f'rank        {transfer["rank"]:6.1f} %',
    f'identified  {transfer["identified"]:6.1f} %',
    f'PSNR        {transfer["psnr"]:6.2f} dB',
    f'of the unmoved scene: {transfer["frozen_psnr"]:.2f} dB',
    'motion that a linear map reads off the pose (R2): pan ',
    f'{workdir}/transfer.png, .mp4 and .gif',
  ):
    assert said in printed


def test_films_of_the_transfer(run):
  _, workdir, _ = run
  assert (workdir / 'transfer.mp4').read_bytes()[4:8] == b'ftyp'
  with Image.open(workdir / 'transfer.gif') as film:
    # There and back again.
    assert film.n_frames == 2 * WINDOW - 2
    frames = []
    for i in range(WINDOW):
      film.seek(i)
      frames.append(np.asarray(film.convert('RGB'), float))
  # The true camera turns.
  assert np.abs(frames[0] - frames[-1]).mean() > 1
  with Image.open(workdir / 'transfer.png') as picture:
    width, height = picture.size
  # Five columns, of every other pair a row.
  assert width >= 5 * 128
  assert height >= PAIRS // 2 * 128


def test_the_eval_binary_says_the_same(run, capsys):
  config, workdir, _ = run
  before = scores(workdir)
  evaluation_run.Evaluation(config, str(workdir))()
  assert 'rooms: does motion transfer?' in capsys.readouterr().out
  after = scores(workdir)
  for key in ('transfer', 'explained'):
    assert after[key] == pytest.approx(before[key], rel=1e-5)


@pytest.fixture(scope='module')
def built(data_dir):
  return build.build(recipe(data_dir, 'squares'), jax.devices()[:1])


def test_what_moves_unseen_is_filmed_but_not_judged(data_dir, built):
  """Squares have no cameras, and no scene that can be drawn anew."""
  found = motion.Motion(recipe(data_dir, 'squares'), built)
  params = built.init().params
  assert found.transfer(params, 1) == {}
  assert found.explained(params, 1) == {}
  video, fps, picture = found.films(params, 1)
  assert len(video) == 2 * WINDOW - 2
  assert fps > 0
  assert picture.dtype == np.uint8


def test_a_single_clip_is_no_pair(data_dir, built):
  """As of who films one walk; it is no reason to fail after training."""
  config = recipe(data_dir, 'squares', eval__transfer_window=13)
  found = motion.Motion(config, built)
  assert found.films({}, 1) is None
  assert found.transfer({}, 1) == {}


def test_bad_windows_are_refused_before_training(data_dir, tmp_path):
  config = recipe(data_dir, 'rooms', eval__targets=5)
  with pytest.raises(UserError, match='window of 4 frames cannot hold 5 targ'):
    loop.train(config, str(tmp_path), motion.make)
  assert not (tmp_path / 'checkpoints').exists()
