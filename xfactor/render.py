r"""Renders a scene with the camera motion of a video or along a path.

  python -m xfactor.render --workdir=runs/vizdoom --out=moved.mp4 \
      --motion=walk.mp4 --scene=kitchen.jpg
  python -m xfactor.render --workdir=runs/vizdoom --out=moved.mp4 \
      --motion=vizdoom/test/freedoom1_e1m5/0000 --last=15 \
      --scene=vizdoom/test/freedoom2_map13/0001
  python -m xfactor.render --workdir=runs/vizdoom --out=orbit.mp4 \
      --path=orbit --scene=kitchen.jpg
  python -m xfactor.render --workdir=runs/srt_nmr --out=turn.mp4 \
      --motion=rotate --fade --scene=nmr/test/0:5

For an XFactor run, motion and scene are each a video, one or more pictures
separated by commas, a folder of frames, or a clip of a converted data set,
NAME/SPLIT/ID. Writes a video of the motion next to the moved scene and, if both
are the same clip, the ground truth, and a strip and a GIF of the same name.
With --cameras=FILE, a calibrated model writes the cameras of the motion, too.

A calibrated XFactor run (python -m xfactor.calibrate) also renders from
cameras: --path is orbit, dolly, pan, tilt, roll, slide, rise or spiral, with an
amount in degrees or in the calibration's unit after a colon (orbit:10; by
default half of what the calibration has seen), or a file of cameras:
transforms.json, COLMAP's images.txt, text of TUM, KITTI or RealEstate10K, .npz.

For a posed run (SRT), the motion is one of rotate, zoom, closeup,
rotate_and_closeup and eyeroll, and the scene is a clip with cameras: its ID,
NAME/SPLIT/ID, its number, NAME/SPLIT/3, or a range, NAME/SPLIT/0:5, with the ID
in each file name. Writes a video, a GIF and a strip of the rendered pictures;
models with a volume also write depth, as a video and as 16-bit pictures.

Exit codes are those of xfactor.main.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float

from xfactor import api, cli
from xfactor.data.formats import camera_paths
from xfactor.errors import UserError
from xfactor.geometry import motions
from xfactor.inference import (
  camera_path,
  flight,
  latent,
  path_render,
  posed,
  scene_views,
  transfer,
)

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a run, or one checkpoint in it.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; the newest if unset.')
_MOTION = flags.DEFINE_string(
  'motion', None, 'Source of the camera motion; see above.'
)
_PATH = flags.DEFINE_string(
  'path', None, 'Camera path instead of a motion; see above.'
)
_CAMERAS = flags.DEFINE_string(
  'cameras',
  None,
  'File for the cameras of the path or the motion: transforms.json, '
  'images.txt, x.npz, x.tum, x.kitti or x.txt (RealEstate10K).',
)
_SCALE = flags.DEFINE_float(
  'scale', 1.0, 'Factor of the positions in a file of cameras.', lower_bound=0
)
_SCENE = flags.DEFINE_string('scene', None, 'Scene to render; see above.')
_OUT = flags.DEFINE_string('out', None, 'Video to write, x.mp4.')
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, "Folder of converted data sets; the recipe's if unset."
)
_FIRST = flags.DEFINE_integer(
  'first', 0, 'First frame of the motion to take.', lower_bound=0
)
_LAST = flags.DEFINE_integer(
  'last', None, 'Last frame of the motion to take.', lower_bound=0
)
_STRIDE = flags.DEFINE_integer(
  'stride', 1, 'Take every n-th frame of the motion.', lower_bound=1
)
_FRAMES = flags.DEFINE_integer(
  'frames',
  100,
  'Maximum number of frames, evenly spaced; the length of a camera motion.',
  lower_bound=1,
)
_REFERENCE = flags.DEFINE_integer(
  'reference',
  None,
  "Frame of the motion, or camera of the path, that matches the scene's view; "
  'the first if unset.',
)
_SCENE_REFERENCE = flags.DEFINE_integer(
  'scene_reference',
  None,
  'Reference frame of the scene; the middle one if unset.',
)
_CHAIN = flags.DEFINE_integer(
  'chain', None, 'Continue from a rendered picture after this many frames.'
)
_INTERPOLATE = flags.DEFINE_integer(
  'interpolate',
  1,
  'Pictures per frame, from interpolated poses.',
  lower_bound=1,
)
_FADE = flags.DEFINE_bool(
  'fade', False, 'Accelerate and decelerate a camera motion smoothly.'
)
_HEIGHT = flags.DEFINE_integer(
  'height', None, "Height in pixels; the input views' if unset.", lower_bound=1
)
_WIDTH = flags.DEFINE_integer(
  'width', None, "Width in pixels; the input views' if unset.", lower_bound=1
)
_LOOK_AT = flags.DEFINE_string(
  'look_at',
  None,
  'Centre of a camera motion: X,Y,Z, or a distance ahead of the first view; '
  'if unset, the origin if all views show it, else where their axes meet. '
  'For --path, a distance ahead of the scene.',
)
_KEEP_LENS = flags.DEFINE_bool(
  'keep_lens',
  False,
  "Use the views' focal length for a camera motion, not the public code's.",
)
_FPS = flags.DEFINE_float(
  'fps',
  None,
  "Frame rate of the video; the motion's if unset, 30 for a camera motion.",
  lower_bound=0.1,
)
_SIZE = flags.DEFINE_integer(
  'size', 256, 'Height in pixels of each picture in the video.', lower_bound=32
)
_OF_FOOTAGE = [_FIRST, _LAST, _STRIDE, _REFERENCE, _SCENE_REFERENCE]
_OF_FOOTAGE += [_CHAIN, _INTERPOLATE]
_OF_POSED = [_FADE, _HEIGHT, _WIDTH, _KEEP_LENS]
_OF_VIDEO = [_FIRST, _LAST, _STRIDE, _INTERPOLATE]
flags.mark_flags_as_required(['workdir', 'scene', 'out'])
flags.mark_flags_as_mutual_exclusive(['motion', 'path'], required=True)


def main(_) -> int:
  with cli.reporting_user_errors():
    out = epath.Path(_OUT.value).expanduser()
    if out.suffix != '.mp4':
      raise UserError(
        f'--out={out} must end with .mp4; a GIF and a strip are written as well'
      )
    if _CAMERAS.value:
      camera_paths.check_name(_CAMERAS.value)
    cli.avoid_idle_libtpu()
    model = api.load(_WORKDIR.value, _STEP.value, progress=True)
    data_dir = _DATA_DIR.value or model.config.data.dir
    print(f'step {model.step} of {_WORKDIR.value}')
    if isinstance(model, posed.PosedModel):
      _fly(model, data_dir, out)
    elif _PATH.value:
      _follow(model, data_dir, out)
    else:
      _transfer(model, data_dir, out)
  return 0


def _fly(model: posed.PosedModel, data_dir: str, out: epath.Path) -> None:
  """Renders scenes along a camera motion."""
  _refuse(
    [*_OF_FOOTAGE, _PATH, _CAMERAS, _SCALE],
    'posed models, which follow camera motions (--motion)',
  )
  camera_path.check_motion(_MOTION.value)
  store, clips = scene_views.find(_SCENE.value, data_dir)
  for clip in clips:
    flown = flight.fly(
      model,
      scene_views.read(store, clip, model.config, data_dir),
      _MOTION.value,
      frames=_FRAMES.value,
      faded=_FADE.value,
      height=_HEIGHT.value,
      width=_WIDTH.value,
      look_at=_LOOK_AT.value,
      keep_lens=_KEEP_LENS.value,
    )
    name = store.clip_id(clip).replace('/', '_')
    one = out.with_name(f'{out.stem}_{name}.mp4') if len(clips) > 1 else out
    flight.write(flown, one, fps=_FPS.value, size=_SIZE.value)


def _follow(model: latent.Model, data_dir: str, out: epath.Path) -> None:
  """Renders a scene along a camera path."""
  _refuse([*_OF_POSED, *_OF_VIDEO], '--path')
  try:
    distance = None if _LOOK_AT.value is None else float(_LOOK_AT.value)
  except ValueError:
    distance = 0.0
  if distance is not None and not distance > 0:
    raise UserError(
      f'--look_at={_LOOK_AT.value} must be a distance above 0 for --path'
    )
  shown = path_render.follow(
    model,
    _PATH.value,
    _SCENE.value,
    data_dir=data_dir,
    frames=_FRAMES.value,
    distance=distance,
    scale=_SCALE.value,
    reference=_REFERENCE.value or 0,
    scene_reference=_SCENE_REFERENCE.value,
    chain=_CHAIN.value,
  )
  path_render.write(shown, out, fps=_FPS.value, size=_SIZE.value)
  _write_cameras(shown.path, shown.focal)


def _write_cameras(
  path: Float[np.ndarray, 'n 3 4'], focal: float | Float[np.ndarray, ' n']
) -> None:
  if _CAMERAS.value:
    camera_paths.write(_CAMERAS.value, path, focal)
    print(f'{_CAMERAS.value}: {len(path)} cameras')


def _transfer(model: latent.Model, data_dir: str, out: epath.Path) -> None:
  """Renders a scene with the camera motion of a video."""
  _refuse(
    [*_OF_POSED, _LOOK_AT, _SCALE], 'models that take the motion from a video'
  )
  motion = _MOTION.value
  if _CAMERAS.value:
    # Raises before the work if there is none.
    window = model.calibration.window
  if motion in motions.MOTIONS and not epath.Path(motion).exists():
    raise UserError(
      f'--motion={motion} is a camera motion for posed models, and this one '
      'takes its motion from a video; pass a video or the run of a posed model'
    )
  shown = transfer.transfer(
    model,
    motion,
    _SCENE.value,
    data_dir=data_dir,
    first=_FIRST.value,
    last=_LAST.value,
    stride=_STRIDE.value,
    frames=_FRAMES.value,
    reference=_REFERENCE.value,
    scene_reference=_SCENE_REFERENCE.value,
    chain=_CHAIN.value,
    interpolate=_INTERPOLATE.value,
  )
  transfer.write(shown, out, fps=_FPS.value, size=_SIZE.value)
  if _CAMERAS.value:
    apart = int(np.diff(shown.motion.numbers).max(initial=1))
    chain = max(1, (window - 1) // apart)
    found = model.cameras(shown.motion.frames, shown.reference, chain=chain)
    _write_cameras(found.world_to_camera, model.calibration.focal)
    limit = model.calibration.latents.limit
    print(
      f'  in {model.calibration.unit}; uncertain by up to '
      f'{found.degrees.max():.1f} degrees and {found.move.max():.2g}; latent '
      f'poses at most {found.distance.max():.1f} standard deviations from '
      f'those of the calibration (99 % are within {limit:.1f})'
    )


def _refuse(holders: Sequence[flags.FlagHolder], what: str) -> None:
  """Raises UserError if a flag is given that does not apply here."""
  given = [x.name for x in holders if flags.FLAGS[x.name].present]
  if given:
    raise UserError(f'--{given[0]} does not apply to {what}; remove it')


def run() -> None:
  """Runs the command `xfactor-render`."""
  cli.run(main)


if __name__ == '__main__':
  run()
