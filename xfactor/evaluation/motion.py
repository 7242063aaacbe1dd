"""Measures during training whether the motion of latent poses transfers.

*   `Motion.transfer`: the transfer test without an oracle (`transfer_test.py`),
    for data sets whose scenes can be rendered again.
*   `Motion.explained`: how much of each degree of freedom of the true camera a
    linear map reads off the latent pose, for data sets with cameras. It shows
    progress long before PSNR does: the first half decibel that a pose gains is
    colour, not motion.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from xfactor.data import images, rerender
from xfactor.data.records import store as store_lib
from xfactor.evaluation import oracles, transfer_test
from xfactor.evaluation import pairs as pairs_lib
from xfactor.geometry import wander
from xfactor.inference import latent, movie, restore
from xfactor.nn.functional import Params
from xfactor.training import held_out
from xfactor.training.build import Build

_FITTED = 512  # Pairs of frames to fit the linear map to.
_RIDGE = 1.0
# Rotations and translations below this share of the largest of their kind are
# not tested: a panning camera that looks up rolls a little, too.
_LEAST = 0.2
_ROWS = 4  # Pairs in the video.
_FPS = 8.0
_COLUMNS = (
  'motion: from',
  'motion: to',
  'another scene',
  'moved by model',
  'truth',
)


class Motion(held_out.Probe):
  """Tests the motion of latent poses on a recipe's data sets.

  Opens the data sets and compiles once.

  Args:
    config: Recipe of a method with latent poses.
    build: Result of `build.build` for the recipe.

  Raises:
    UserError: If a data set is missing, or a window cannot hold the views.
  """

  def __init__(self, config: ConfigDict, build: Build):
    self._config, self._build = config, build
    self._stores = {
      name: store_lib.open_split(config.data.dir, name, config.eval.split)
      for name in config.data.mix
    }
    # Reports a bad window before training, not hours later.
    self._tested = {
      name: self._paired(store) for name, store in self._stores.items()
    }
    self._model = None

  def brief(self, params: Params, step: int) -> held_out.Findings:
    """Measures the motion that a linear map reads off the poses."""
    return _findings({}, self.explained(params, step))

  def full(self, params: Params, step: int) -> held_out.Findings:
    """Measures everything, and renders a video of the transfer."""
    film = self.films(params, step)

    def save(workdir: str) -> str:
      movie.write(epath.Path(workdir) / 'transfer.mp4', *film)
      return (
        f'{workdir}/transfer.png, .mp4 and .gif: the motion of one clip moves '
        'the scene of another'
      )

    findings = _findings(
      self.transfer(params, step), self.explained(params, step)
    )
    return dataclasses.replace(findings, save=save if film else None)

  def transfer(
    self, params: Params, step: int
  ) -> dict[str, transfer_test.Result]:
    """Runs the transfer test of each data set that can be rendered again."""
    return {
      name: transfer_test.evaluate(
        self._at(params, step),
        store,
        self._tested[name],
        oracles.make('none'),
        num_pictures=self._config.eval.panel,
      )
      for name, store in self._stores.items()
      if self._tested[name] and rerender.is_possible(store)
    }

  def explained(self, params: Params, step: int) -> dict[str, dict[str, float]]:
    """R2 on held-out pairs of frames, by data set and degree of freedom.

    1 explains all of the variance; 0 or less explains nothing.
    """
    if not self._build.method.relative:
      return {}
    model, out = self._at(params, step), {}
    for name, store in self._stores.items():
      tested = self._pairs(model, store)
      if tested is None:
        continue
      part = self._config.data.mix[name]
      learned = store_lib.open_split(self._config.data.dir, name, part.split)
      fitted = self._pairs(model, learned)
      if fitted is not None:
        out[name] = explained_variance(*fitted, *tested)
    return out

  def films(
    self, params: Params, step: int
  ) -> tuple[np.ndarray, float, np.ndarray] | None:
    """Renders scenes moved by held-out motions, for `movie.write`.

    Returns:
      A video, uint8 [n, h, w, 3], its frames per second, and a picture
      [h, w, 3]; None if no clips can be paired.
    """
    rows = []
    for name, pairs in self._tested.items():
      if pairs:
        model, store = self._at(params, step), self._stores[name]
        # Every other pair: the scene of one is the motion of the next.
        rows += transfer_test.films(model, store, pairs[::2], _ROWS)
    return (_video(rows), _FPS, _picture(rows)) if rows else None

  def _paired(
    self, store: store_lib.FrameStore
  ) -> list[tuple[pairs_lib.Excerpt, pairs_lib.Excerpt]]:
    """Pairs of clips to test on; none with fewer than two clips."""
    config = self._config.eval
    window = config.transfer_window or config.window
    if not config.pairs or np.sum(store.num_frames >= window) < 2:
      return []
    return pairs_lib.pairs_of(self._config, store)

  def _at(self, params: Params, step: int) -> latent.Model:
    if self._model is None:
      restored = restore.Restored(self._config, step, self._build, params)
      model = latent.Model(restored, batch=8, progress=False)
      # Training resizes frames as well: no need to report it.
      self._model = model.telling(lambda text: None)
    return self._model.at(step, params)

  def _pairs(
    self, model: latent.Model, store: store_lib.FrameStore
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """Latent poses [n, z] and motions [n, 6] of fixed pairs of frames.

    None if no clip is long enough, or one of the clips has no cameras.
    """
    window, rng = self._config.eval.window, np.random.default_rng(0)
    rows = rng.permutation(np.flatnonzero(store.num_frames >= window))
    if not rows.size:
      return None
    shown, motions = [], []
    for row in np.resize(rows, _FITTED).tolist():
      clip = store.clip(row)
      if not clip.posed:
        return None
      last = int(rng.integers(1, window))
      first = int(rng.integers(int(store.num_frames[row]) - last))
      frames = np.array([first, first + last])
      data = store.clip_frames(row, frames)
      shown.append(model.fit([images.decode(x) for x in data]))
      motions.append(freedoms(*clip.world_to_camera[frames]))
    shown = np.stack(shown)
    return model.encode_pairs(shown[:, 0], shown[:, 1]), np.stack(motions)


def make(config: ConfigDict, build: Build) -> held_out.Probe:
  """Returns the tests of a recipe; none for methods without latent poses."""
  return held_out.Probe() if build.method.posed else Motion(config, build)


def freedoms(
  reference: Float[np.ndarray, '3 4'], target: Float[np.ndarray, '3 4']
) -> Float[np.ndarray, '6']:
  """Motion from one camera to another, by degree of freedom.

  Args:
    reference: World to camera.
    target: World to camera.

  Returns:
    Values in the order of `wander.FREEDOMS`: pan, tilt and roll in radians,
    then slide, rise and push in the world's unit, about the reference's axes.
  """
  turn = target[:, :3] @ reference[:, :3].T
  # Axes of a camera that looks along x in a world with z up.
  axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
  yaw, pitch, roll = (x.item() for x in wander.angles((turn @ axes)[None]))
  eye = reference[:, :3] @ (-target[:, :3].T @ target[:, 3]) + reference[:, 3]
  return np.array([-yaw, pitch, roll, eye[0], -eye[1], eye[2]])


def explained_variance(
  fitted: Float[np.ndarray, 'n z'],
  fitted_motions: Float[np.ndarray, 'n d'],
  tested: Float[np.ndarray, 'm z'],
  motions: Float[np.ndarray, 'm d'],
) -> dict[str, float]:
  """R2 of a ridge regression from latent poses to motions, on unseen data.

  Args:
    fitted: Latent poses to fit to.
    fitted_motions: Their motions, columns as `wander.FREEDOMS`.
    tested: Latent poses to test on.
    motions: Their motions.

  Returns:
    R2 by degree of freedom, without those that move little compared with
    others of their kind.
  """
  mean, spread = fitted.mean(0), fitted.std(0) + 1e-8

  def design(z):
    return np.append((z - mean) / spread, np.ones((len(z), 1)), 1)

  a = design(np.float64(fitted))
  weights = np.linalg.solve(
    a.T @ a + _RIDGE * np.eye(a.shape[1]), a.T @ fitted_motions
  )
  error = np.square(design(np.float64(tested)) @ weights - motions).mean(0)
  spread = motions.std(0)
  least = np.repeat(_LEAST * spread.reshape(2, 3).max(1), 3)
  return {
    name: float(1 - error[i] / spread[i] ** 2)
    for i, name in enumerate(wander.FREEDOMS)
    if spread[i] > max(least[i], 1e-4)
  }


def summary(result: transfer_test.Result) -> dict[str, float]:
  """Summarizes the transfer test; NaN where nothing could be judged.

  Returns:
    `rank`, `identified` and `chance` in percent, `psnr`, `own_psnr` and
    `frozen_psnr` in dB to the true re-render; see `transfer_test.Result.truth`.
  """
  return {
    'pairs': len(result.candidates),
    'rank': 100 * result.true_mean('model', 'rank'),
    'identified': 100 * result.true_mean('model', 'identified'),
    'chance': 100 * result.chance,
    'psnr': result.true_mean('model', 'psnr'),
    'own_psnr': result.true_mean('autoencoded', 'psnr'),
    'frozen_psnr': result.true_mean('frozen', 'psnr'),
  }


def table(name: str, result: transfer_test.Result) -> str:
  """Formats the transfer test as text."""
  found = summary(result)
  motions = result.candidates.mean()
  return '\n'.join(
    [
      f'{name}: does motion transfer? ({found["pairs"]} pairs of held-out '
      'clips: the motion of one moves the scene of the other)',
      f'  rank        {found["rank"]:6.1f} %   of other motions fit the '
      'pictures worse than the right one (chance 50)',
      f'  identified  {found["identified"]:6.1f} %   of pairs whose motion '
      f'fits best of {motions:.3g} (chance {found["chance"]:.1f})',
      f'  PSNR        {found["psnr"]:6.2f} dB  to the true scene after the '
      f'motion; of the unmoved scene: {found["frozen_psnr"]:.2f} dB',
    ]
  )


def explained_line(name: str, explained: dict[str, float]) -> str:
  """Formats the R2 of the degrees of freedom as a line of text."""
  parts = ', '.join(f'{key} {value:.2f}' for key, value in explained.items())
  return f'{name}: motion that a linear map reads off the pose (R2): {parts}'


def _findings(
  transfer: dict[str, transfer_test.Result],
  explained: dict[str, dict[str, float]],
) -> held_out.Findings:
  """Collects the measurements by data set."""
  values = collections.defaultdict(dict)
  lines = collections.defaultdict(list)
  scalars = {}
  for name, found in explained.items():
    values[name]['explained'] = found
    lines[name].append(explained_line(name, found))
    scalars |= {f'eval/{name}/r2_{key}': x for key, x in found.items()}
  for name, result in transfer.items():
    values[name]['transfer'] = as_json(result)
    lines[name].append(table(name, result))
    scalars |= {
      f'eval/{name}/transfer_{key}': x
      for key, x in summary(result).items()
      if key not in ('pairs', 'chance')
    }
  return held_out.Findings(values, lines, scalars)


def as_json(result: transfer_test.Result) -> dict[str, Any]:
  """Returns a transfer test for eval/STEP.json; None for no value."""
  return {
    key: value if np.isfinite(value) else None
    for key, value in summary(result).items()
  }


def _video(rows: Sequence[dict[str, Any]]) -> np.ndarray:
  """Video of motion, moved scene and truth, forwards and back, by pair."""
  frames = []
  for at in _there_and_back(len(rows[0]['motion'])):
    shown = [
      _row([x[k][at] for k in ('motion', 'drawn', 'truth') if k in x])
      for x in rows
    ]
    frames.append(_below(shown))
  frames = np.stack(frames)
  titles = ('motion', 'moved scene', 'truth')[: 2 + ('truth' in rows[0])]
  return np.stack([_titled(frame, titles) for frame in frames])


def _picture(rows: Sequence[dict[str, Any]]) -> np.ndarray:
  """Picture of the motion's ends, scene, moved scene and truth, by pair."""
  shown = [
    _row(
      [x['motion'][x['reference']], x['motion'][-1]]
      + [x[k][-1] for k in ('scene', 'drawn', 'truth') if k in x]
    )
    for x in rows
  ]
  return _titled(_below(shown), _COLUMNS[: 4 + ('truth' in rows[0])])


def _there_and_back(count: int) -> list[int]:
  return [*range(count), *range(count - 2, 0, -1)]


def _row(pictures: Sequence[UInt8[np.ndarray, 'h w 3']]) -> np.ndarray:
  return movie.row([movie.enlarge(x, 128) for x in pictures])


def _below(rows: Sequence[np.ndarray]) -> np.ndarray:
  width = max(x.shape[1] for x in rows)
  return movie.column(
    [
      np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)), constant_values=255)
      for x in rows
    ]
  )


def _titled(picture: np.ndarray, titles: Sequence[str]) -> np.ndarray:
  """Adds the titles of the columns above the picture."""
  blank = np.full((1, 128, 3), 255, np.uint8)
  heads = [movie.caption(blank, title) for title in titles]
  head = movie.row(heads)
  return np.concatenate([head, picture[:, : head.shape[1]]])
