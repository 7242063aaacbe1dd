"""Reads pairs of frames with known cameras and encodes their latent poses."""

from collections.abc import Sequence

import numpy as np

from xfactor.data import images, sources
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras
from xfactor.inference import calibration, latent

_EACH = 8  # Pairs of a clip, unless there are few clips.
_CHUNK = 512  # Pairs with pictures in memory at the same time.


def has_one_unit(stores: Sequence[store_lib.FrameStore]) -> bool:
  """Returns whether all clips are of rendered worlds with one unit of length.

  Cameras of structure from motion have a scale of their own for each clip.
  """
  made = [store.manifest().get('source') for store in stores]
  return set(made) <= set(sources.RERENDERED) and len(set(made)) == 1


def read(
  model: latent.Model,
  stores: Sequence[store_lib.FrameStore],
  *,
  window: int | None,
  count: int,
  seed: int,
) -> calibration.Pairs:
  """Reads pairs of frames of the splits and encodes them.

  Frames of a pair are up to `window` - 1 frames apart, in either order; all
  distances are equally frequent.

  Args:
    model: Model that encodes.
    stores: Splits with the clips.
    window: Largest number of frames of a pair, both included.
    count: Number of pairs.
    seed: Seed of their choice.

  Raises:
    UserError: If poses are relative to no view, no clip has cameras, or a frame
      cannot be read.
  """
  if not model.relative:
    raise UserError(
      f'poses of config.method={model.config.method!r} are relative to no '
      'view, so they are no camera motions; calibrate a run of xfactor'
    )
  if window is None or window < 2:
    raise UserError(f'window={window} must be at least 2 frames')
  names = ', '.join(f'{store.name}/{store.split}' for store in stores)
  rng = np.random.default_rng(seed)
  rows = [
    (number, row)
    for number, store in enumerate(stores)
    for row, length in enumerate(store.num_frames.tolist())
    if length >= 2
  ]
  rows = [rows[i] for i in rng.permutation(len(rows))]
  each = max(_EACH, -(-count // max(len(rows), 1)))
  pictures, latents, relative, focal, clip = [], [], [], [], []

  def encode() -> None:
    if pictures:
      latents.append(
        model.encode_pairs(*map(np.stack, zip(*pictures, strict=True)))
      )
      pictures.clear()

  for index, (number, row) in enumerate(rows):
    if len(clip) >= count:
      break
    store = stores[number]
    known = store.clip(row)
    if not known.posed:
      continue
    lens = cameras.crop_intrinsics(known.intrinsics, known.height, known.width)
    for _ in range(each):
      apart = int(rng.integers(1, min(window, known.num_frames)))
      first = int(rng.integers(known.num_frames - apart))
      ends = np.array([first, first + apart])[:: rng.choice([-1, 1])]
      data = store.clip_frames(row, ends)
      pictures.append(model.fit([images.decode(x) for x in data], 'a frame'))
      before, after = np.float64(known.world_to_camera[ends])
      relative.append(cameras.compose(after, cameras.invert_pose(before)))
      focal.append(float(lens[ends[1], 0]))
      clip.append(index)
    if len(pictures) >= _CHUNK:
      encode()
  encode()
  if not clip:
    raise UserError(
      f'no clip of {names} has cameras, which a calibration needs; name data '
      'sets that were converted with their cameras'
    )
  return calibration.Pairs(
    np.concatenate(latents),
    np.stack(relative),
    np.array(focal),
    np.array(clip),
    names,
  )
