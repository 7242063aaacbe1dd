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

`calibrate` fits what camera motions the latent poses of a model are. From then
on the model also renders from cameras, and finds those of a video:

  model = xfactor.calibrate(model, [store_lib.open_split('data', 'rooms')])
  moved = model.render_path([kitchen], cameras)  # [n, 3, 4], world to camera.
  found = model.cameras(walk).world_to_camera
"""

import os
from collections.abc import Sequence

import jax
from etils import epath

from xfactor.data.records import store as store_lib
from xfactor.errors import UserError
from xfactor.exchange import hub
from xfactor.inference import calibration as calibrations
from xfactor.inference import posed, posed_pairs, restore
from xfactor.inference.latent import Model, Pictures

__all__ = ['Model', 'Pictures', 'calibrate', 'load']


def load(
  path: epath.PathLike,
  step: int | None = None,
  *,
  batch: int = 8,
  devices: Sequence[jax.Device] | None = None,
  progress: bool = False,
) -> Model | posed.PosedModel:
  """Loads a trained model; raises the errors of `restore.restore`.

  Models of the Hub also raise those of `hub.fetch`.

  Returns a `posed.PosedModel` for posed methods (SRT), else a `Model`.

  Args:
    path: A run's workdir, one checkpoint of it, WORKDIR/checkpoints/STEP, a
      published folder, or a model on the Hugging Face Hub,
      'hf://OWNER/NAME' or 'hf://OWNER/NAME@REVISION'.
    step: Step of the checkpoint in a workdir; the newest if None.
    batch: Pictures per batch of a `Model`, rounded up to a multiple of the
      mesh's data-parallel devices.
    devices: Devices to use; all if None.
    progress: Whether to show progress bars.
  """
  if os.fspath(path).startswith(hub.SCHEME):
    path = hub.fetch(os.fspath(path))
  if hub.is_published(path):
    restored = hub.restore(path, step, devices)
  else:
    restored = restore.restore(path, step, devices)
  if restored.build.method.posed:
    return posed.PosedModel(restored, progress=progress)
  model = Model(restored, batch=batch, progress=progress)
  known = calibrations.load(restored.workdir, restored.step)
  return model.calibrated(known) if known else model


def calibrate(
  model: Model,
  clips: Sequence[store_lib.FrameStore],
  *,
  window: int | None = None,
  pairs: int = 4096,
  one_unit: bool | None = None,
  save: bool = True,
  seed: int = 0,
) -> Model:
  """Fits what camera motions the latent poses of a model are, and back.

  The model is not trained. The calibration is stored next to its checkpoints,
  as calibration-STEP.npz, and `load` reads it.

  Args:
    model: Model whose poses are relative to a view.
    clips: Splits of converted data sets with cameras; clips without are not
      used.
    window: Largest number of frames of a pair, both included; the longest
      window of the training if None.
    pairs: Number of pairs of frames to fit to.
    one_unit: Whether the positions of all clips have one unit; if None, this is
      so for data sets of rendered worlds and not for others.
    save: Whether to store the calibration.
    seed: Seed of the choice of pairs and of the networks.

  Returns:
    The model with the calibration.

  Raises:
    UserError: If poses are relative to no view, there are too few pairs with
      cameras, a frame cannot be read, or the file cannot be written.
  """
  if isinstance(model, posed.PosedModel):
    raise UserError(
      'a model of a posed method takes cameras as they are and has no latent '
      'poses; calibrate a run of xfactor'
    )
  window = window or model.window
  read = posed_pairs.read(model, clips, window=window, count=pairs, seed=seed)
  if one_unit is None:
    one_unit = posed_pairs.has_one_unit(clips)
  made = calibrations.fit(
    read, step=model.step, window=window, one_unit=one_unit, seed=seed
  )
  if save and model.workdir is not None:
    calibrations.save(made, model.workdir)
  return model.calibrated(made)
