"""Loads trained models, which apply the camera motion of a video to a scene.

  >>> import xfactor
  >>> from xfactor.data import images
  >>> from xfactor.data.formats import video
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

A latent pose is the pose of a view relative to a reference view, whose own pose
is zero. Latent poses do not compose: the pose of C relative to A cannot be
computed from B relative to A and C relative to B, and there is no inverse. A
motion that leaves its reference's field of view therefore continues from a
rendered picture (`transfer(chain=...)`).
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
  """Loads a trained model; raises the errors of `restore.restore`.

  Returns a `posed.PosedModel` for posed methods (SRT), else a `Model`.

  Args:
    path: A run's workdir, or one checkpoint of it, WORKDIR/checkpoints/STEP.
    step: Step of the checkpoint in a workdir; the newest if None.
    batch: Pictures per batch of a `Model`, rounded up to a multiple of the
      mesh's data-parallel devices.
    devices: Devices to use; all if None.
    progress: Whether to show progress bars.
  """
  restored = restore.restore(path, step, devices)
  if restored.build.method.posed:
    return posed.PosedModel(restored, progress=progress)
  return Model(restored, batch=batch, progress=progress)
