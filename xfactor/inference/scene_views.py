"""Finds and reads the views of a scene."""

import dataclasses
import difflib
import re

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from xfactor.data import images
from xfactor.data.records import eval_index, folders
from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.geometry import cameras


@dataclasses.dataclass(frozen=True)
class Views:
  """Input views of a scene, and the cameras of the whole clip.

  Attributes:
    name: Clip, NAME/SPLIT/ID.
    numbers: Frame numbers of the views in the clip.
    images: Views at the model's size.
    intrinsics: Normalised intrinsics of the views.
    world_to_camera: Poses of the views.
    all_intrinsics: Normalised intrinsics of all frames of the clip.
    all_poses: Poses of all frames of the clip.
  """

  name: str
  numbers: list[int]
  images: UInt8[np.ndarray, 'k h w 3']
  intrinsics: Float[np.ndarray, 'k 4']
  world_to_camera: Float[np.ndarray, 'k 3 4']
  all_intrinsics: Float[np.ndarray, 'n 4']
  all_poses: Float[np.ndarray, 'n 3 4']


def find(name: str, data_dir: str) -> tuple[store_lib.FrameStore, list[int]]:
  """Returns the split and the clip numbers that NAME/SPLIT/ID refers to.

  Instead of an ID there can be a clip's number, counted from 0 in the order of
  the records, or a range of numbers, BEGIN:END, without its end.

  Raises:
    UserError: If there are no such clips.
  """
  dataset, _, rest = name.partition('/')
  split, _, clip = rest.partition('/')
  if not clip or dataset not in folders.available(data_dir):
    raise UserError(
      f'{name} is not a clip of a data set in {data_dir} '
      f'({", ".join(folders.available(data_dir)) or "which has none"}); give '
      'NAME/SPLIT/ID, NAME/SPLIT/3 or NAME/SPLIT/0:5'
    )
  store = store_lib.open_split(data_dir, dataset, split)
  ids = store.clip_ids()
  if clip in ids:
    return store, [ids.index(clip)]
  if not (numbers := re.fullmatch(r'(\d*)(:?)(\d*)', clip)):
    near = difflib.get_close_matches(clip, ids, cutoff=0)
    raise UserError(
      f'{dataset}/{split} has no clip {clip!r}; similar IDs: {", ".join(near)}'
    )
  begin = int(numbers[1] or 0)
  end = int(numbers[3] or len(ids)) if numbers[2] else begin + 1
  if not begin < end <= len(ids):
    raise UserError(
      f'{dataset}/{split} has clips 0 to {len(ids) - 1} and no clip {clip}; '
      'choose among these'
    )
  return store, list(range(begin, end))


def read(
  store: store_lib.FrameStore, clip: int, config: ConfigDict, data_dir: str
) -> Views:
  """Reads the input views of a clip.

  They are the inputs of the fixed evaluation, or the first frames of a clip
  that the evaluation does not contain.

  Args:
    store: Split with the clip.
    clip: Number of the clip.
    config: Recipe of the model.
    data_dir: Folder of converted data sets.

  Raises:
    UserError: If the clip has no cameras or too few frames, or a frame cannot
      be read.
  """
  known = store.clip(clip)
  name = f'{store.name}/{store.split}/{known.id}'
  if not known.posed:
    raise UserError(
      f'{name} has no cameras, which this model needs; use a scene of a data '
      'set with known cameras'
    )
  data = config.data
  if known.num_frames < data.contexts:
    raise UserError(
      f'{name} has {known.num_frames} frames and the model takes '
      f'{data.contexts} of them; use another scene'
    )
  numbers = list(range(data.contexts))
  num_views = data.contexts + data.targets
  if store.split == config.eval.split and known.num_frames >= num_views:
    index = eval_index.eval_index(
      data_dir,
      store.name,
      store.split,
      num_views=num_views,
      window=config.eval.window,
      ordered=False,
      cameras=True,
    )
    chosen = index.frames[index.clips == clip]
    numbers = chosen[0, : data.contexts].tolist() if len(chosen) else numbers
  shape = data.image_size, data.image_width or data.image_size
  try:
    pictures = [
      images.centre_crop_resize(images.decode(frame), *shape)
      for frame in store.clip_frames(clip, numbers)
    ]
  except (RuntimeError, ValueError, images.ImageError) as e:
    raise UserError(
      f'{name} cannot be read ({e}); copy or convert the data set again'
    ) from e
  lenses = cameras.crop_intrinsics(
    known.intrinsics, known.height, known.width, shape=shape
  ).astype(float)
  poses = known.world_to_camera.astype(float)
  return Views(
    name,
    numbers,
    np.stack(pictures),
    lenses[numbers],
    poses[numbers],
    lenses,
    poses,
  )
