"""Renders the same motions as transferred by every member."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from transfer_suite import running
from xfactor import api
from xfactor.data import files, images, rerender
from xfactor.data.records import store as store_lib
from xfactor.evaluation import pairs
from xfactor.methods import scores as methods_scores

_PAIRS = 3
_MARGIN, _LETTERS = 8, 16  # Pixels.


def write(path: pathlib.Path, runs: Sequence[running.Run]) -> None:
  """Writes a picture of the first transfer-test pairs for every member.

  For each pair, after the reference: the frames of the motion; the true
  re-rendering of the scene, if available; and the transfer of each member.

  Args:
    path: Path of the picture.
    runs: Finished runs of members with a renderer; the first run of each member
      is used.
  """
  config = runs[0].member.config
  store = store_lib.open_split(
    config.data.dir, runs[0].member.data, config.eval.split
  )
  size = config.data.image_size
  blocks = [
    {'motion': _clip(store, motion, size)} | _truth(store, motion, scene, size)
    for motion, scene in pairs.pairs_of(config, store)[:_PAIRS]
  ]
  first = {run.member.name: run for run in reversed(runs)}
  for name in dict.fromkeys(run.member.name for run in runs):
    model = api.load(first[name].workdir)
    own = pairs.pairs_of(first[name].member.config, store)[:_PAIRS]
    for block, (motion, scene) in zip(blocks, own, strict=True):
      contexts = _frames(store, scene.clip, scene.contexts)
      moved = model.transfer(
        _frames(store, motion.clip, _shown(motion)),
        contexts,
        scene_reference=scene.reference,
      )[1:]
      shown = [contexts[scene.reference], *moved]
      block[name] = _fit(shown, size)
  labels = [
    f'{row} {number}' if row == 'motion' else row
    for number, block in enumerate(blocks, 1)
    for row in block
  ]
  rows = np.stack([clip for block in blocks for clip in block.values()])
  picture = methods_scores.panel(
    list(rows.swapaxes(0, 1)), scale=max(1, 128 // size)
  )
  images.write_png(files.data_folder(path), _labelled(picture, labels))


def _frames(
  store: store_lib.FrameStore, clip: int, frames: Sequence[int] | np.ndarray
) -> list[np.ndarray]:
  return [images.decode(x) for x in store.clip_frames(clip, np.array(frames))]


def _fit(pictures: Sequence[np.ndarray], size: int) -> np.ndarray:
  return np.stack([images.centre_crop_resize(x, size) for x in pictures])


def _clip(
  store: store_lib.FrameStore, excerpt: pairs.Excerpt, size: int
) -> np.ndarray:
  """Returns the reference and target frames of an excerpt."""
  return _fit(_frames(store, excerpt.clip, _shown(excerpt)), size)


def _shown(excerpt: pairs.Excerpt) -> np.ndarray:
  return np.array([excerpt.contexts[excerpt.reference], *excerpt.targets])


def _truth(
  store: store_lib.FrameStore,
  motion: pairs.Excerpt,
  scene: pairs.Excerpt,
  size: int,
) -> dict[str, np.ndarray]:
  """Renders the scene from the motion's cameras; black inside walls."""
  if not rerender.is_possible(store):
    return {}
  path = pairs.path_after(motion, scene, _shown(motion))
  pictures, _ = rerender.rerender(store, scene.clip, path, size)
  return {'true re-render': pictures}


def _labelled(
  picture: UInt8[np.ndarray, 'h w 3'], labels: Sequence[str]
) -> UInt8[np.ndarray, 'h w2 3']:
  """Returns a picture with the names of its rows on the left."""
  font = ImageFont.load_default(_LETTERS)
  width = max(math.ceil(font.getlength(label)) for label in labels)
  left = Image.new('RGB', (width + 2 * _MARGIN, len(picture)), 'white')
  draw = ImageDraw.Draw(left)
  for i, label in enumerate(labels):
    middle = (i + 0.5) * len(picture) / len(labels)
    draw.text((_MARGIN, middle), label, 'black', font, anchor='lm')
  return np.concatenate([np.asarray(left), picture], axis=1)
