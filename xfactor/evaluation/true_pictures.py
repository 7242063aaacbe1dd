"""Compares rendered pictures with the scene's true re-render."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from xfactor.data import rerender
from xfactor.data.records import store as store_lib
from xfactor.evaluation import pairs
from xfactor.metrics import images as metrics

TRUTH = 'true re-render'
_CANDIDATES = 8  # Motions to identify the right one among.


class TrueRenders:
  """Re-renders scenes as they look after the motions of a test."""

  def __init__(
    self,
    store: store_lib.FrameStore,
    size: int,
    motions: Sequence[pairs.Excerpt],
  ):
    self._store, self._size = store, size
    self._motions = list(dict.fromkeys(motions))

  def judge(
    self,
    motions: Sequence[pairs.Excerpt],
    scenes: Sequence[pairs.Excerpt],
    pictures: dict[str, list[np.ndarray]],
  ) -> tuple[list[np.ndarray | None], list[dict[str, dict[str, float]]], list]:
    """Returns each pair's truth, the numbers of rows, and candidate counts."""
    truth, candidates = [None] * len(scenes), [0] * len(scenes)
    numbers = [{} for _ in scenes]
    # Scene by scene: preparing the light takes longer than rendering.
    for i in sorted(range(len(scenes)), key=lambda i: scenes[i].clip):
      a, b = motions[i], scenes[i]
      truth[i], own = self.draw(a, b), self.draw(b, b)
      others = [_smooth(x) for x in self._others(a, b)]
      candidates[i] = 1 + len(others)
      for row, clips in (pictures | {TRUTH: truth}).items():
        motion, wanted = (b, own) if row == 'autoencoded' else (a, truth[i])
        numbers[i][row] = _compare(clips[i], wanted, motion, others)
      numbers[i][TRUTH]['psnr'] = np.nan  # Would be infinite.
    return truth, numbers, candidates

  def draw(
    self, motion: pairs.Excerpt, scene: pairs.Excerpt
  ) -> np.ndarray | None:
    """Renders the scene from the motion's cameras; None if one is in a wall."""
    path = pairs.path_after(motion, scene, motion.targets)
    if not rerender.is_free(self._store, scene.clip, path).all():
      return None
    return rerender.rerender(self._store, scene.clip, path, self._size)[0]

  def _others(
    self, motion: pairs.Excerpt, scene: pairs.Excerpt
  ) -> list[np.ndarray]:
    """Renders the scene after the next motions of the test, of other clips."""
    k = self._motions.index(motion)
    after = self._motions[k + 1 :] + self._motions[:k]
    used = {_clip_of(motion), _clip_of(scene)}
    drawn = (self.draw(x, scene) for x in after if _clip_of(x) not in used)
    free = (x for x in drawn if x is not None)
    return list(itertools.islice(free, _CANDIDATES - 1))


def _clip_of(excerpt: pairs.Excerpt) -> tuple[str, int]:
  return excerpt.store.name, excerpt.clip


def _compare(
  drawn: np.ndarray | None,
  truth: np.ndarray | None,
  motion: pairs.Excerpt,
  others: Sequence[np.ndarray],
) -> dict[str, float]:
  """Returns the numbers of `transfer_test.Result.truth` of one clip.

  Args:
    drawn: Pictures of a row, uint8 [t, h, w, 3].
    truth: Pictures that they should be.
    motion: Motion that they should show.
    others: Pictures of the scene after other motions, smoothed.
  """
  out = dict.fromkeys(('psnr', 'identified', 'rank'), np.nan)
  if drawn is None or truth is None:
    return out
  moved = motion.targets != motion.contexts[motion.reference]
  psnr = metrics.psnr(*(jnp.asarray(x[moved] / 255) for x in (drawn, truth)))
  out['psnr'] = float(psnr.mean())
  if others:
    drawn = _smooth(drawn)
    right, *wrong = (
      np.square(drawn - x)[moved].mean() for x in (_smooth(truth), *others)
    )
    out['rank'] = float(np.mean(np.array(wrong) > right))
    out['identified'] = float(out['rank'] == 1)
  return out


def _smooth(clip: UInt8[np.ndarray, 't h w 3']) -> np.ndarray:
  """Blurs pictures so that only coarse structure counts."""
  sigma = clip.shape[1] / 32
  return ndimage.gaussian_filter(np.float32(clip), (0, sigma, sigma, 0))
