"""Trained models in use: camera motion read off one video moves another scene.

  >>> import xfactor
  >>> from xfactor.data import images
  >>> from xfactor.data.sources import video
  >>> model = xfactor.load('runs/vizdoom')
  >>> walk = [picture.rgb for picture in video.read_video('walk.mp4')]
  >>> kitchen = images.read_image('kitchen.jpg')
  >>> moved = model.transfer(motion=walk, scene=[kitchen])
  >>> moved.shape == (len(walk), model.image_size, model.image_size, 3)
  True

The same in two steps, from the latent poses to the pictures:

  >>> poses = model.encode_poses(walk, reference=0)
  >>> pictures = model.render([kitchen], poses[:1], poses)
  >>> bool((pictures == moved).all())
  True

A latent pose says where a view is relative to a reference view, whose own pose
is zero. That is all it says: latent poses do not compose. There is no product
that makes of B relative to A and C relative to B the pose of C relative to A,
and no inverse. Hence a motion that leaves its reference's sight is carried on
from a picture (`transfer(chain=...)`), not by arithmetic.
"""

from collections.abc import Sequence

import jax
from etils import epath

from xfactor.inference import posed, restore
from xfactor.inference.latent import Model, Pictures

__all__ = ['Model', 'Pictures', 'load']


def load(
  path: epath.PathLike,
  step: int | None = None,
  *,
  batch: int = 8,
  devices: Sequence[jax.Device] | None = None,
  progress: bool = False,
) -> Model | posed.PosedModel:
  """Opens a trained model; `path`, `step`, `devices` and errors as `restore`.

  XFactor's is a `Model`, that of a posed method (SRT) a `posed.PosedModel`.

  Args:
    path: A run's workdir, or one checkpoint of it, WORKDIR/checkpoints/STEP.
    step: Of the checkpoint in a workdir; the newest if None.
    batch: Pictures that a `Model` works on at once, rounded up to what the mesh
      divides.
    devices: Default: all.
    progress: Whether to show progress bars.
  """
  restored = restore.restore(path, step, devices)
  if restored.build.method.posed:
    return posed.PosedModel(restored, progress=progress)
  return Model(restored, batch=batch, progress=progress)
