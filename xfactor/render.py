r"""Moves a scene's camera, as in another video or along a path, and shows it.

  python -m xfactor.render --workdir=runs/vizdoom --out=moved.mp4 \
      --motion=walk.mp4 --scene=kitchen.jpg
  python -m xfactor.render --workdir=runs/vizdoom --out=moved.mp4 \
      --motion=vizdoom/test/freedoom1_e1m5/0000 --last=15 \
      --scene=vizdoom/test/freedoom2_map13/0001
  python -m xfactor.render --workdir=runs/srt_nmr --out=turn.mp4 \
      --motion=rotate --fade --scene=nmr/test/0:5

For an XFactor run motion and scene are each a video, a picture or several
between commas, a folder of frames, or a clip of a converted data set,
NAME/SPLIT/ID. Writes a video of the motion beside the moved scene and, where
both are the same clip, the truth; a strip and a GIF of the same name lie beside
it.

For a posed run (SRT) the motion is one of rotate, zoom, closeup,
rotate_and_closeup and eyeroll, and the scene a clip with cameras,
NAME/SPLIT/ID, its number, NAME/SPLIT/3, or several, NAME/SPLIT/0:5, whose files
are told apart by their IDs. Writes video, GIF and strip of what is drawn, and
of a volume the depth as a second video and as 16-bit pictures.

Exit codes as those of xfactor.main.
"""

from collections.abc import Sequence

from absl import app, flags
from etils import epath

from xfactor import api, cli
from xfactor.errors import UserError
from xfactor.geometry import motions
from xfactor.inference import (
  camera_path,
  flight,
  latent,
  posed,
  scene_views,
  transfer,
)

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a run, or one checkpoint in it.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; the newest if unset.')
_MOTION = flags.DEFINE_string('motion', None, 'Whose camera moves; see above.')
_SCENE = flags.DEFINE_string('scene', None, 'What is shown; see above.')
_OUT = flags.DEFINE_string('out', None, 'The video, x.mp4.')
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
  'stride', 1, 'Take every so many frames.', lower_bound=1
)
_FRAMES = flags.DEFINE_integer(
  'frames',
  100,
  'Take at most so many, evenly spaced; of a camera motion, draw so many.',
  lower_bound=1,
)
_REFERENCE = flags.DEFINE_integer(
  'reference',
  None,
  "Frame of the motion where the scene's own view stands; the first if unset.",
)
_SCENE_REFERENCE = flags.DEFINE_integer(
  'scene_reference', None, 'Frame of the scene; the most central if unset.'
)
_CHAIN = flags.DEFINE_integer(
  'chain', None, 'Go on from a drawn picture after so many frames taken.'
)
_INTERPOLATE = flags.DEFINE_integer(
  'interpolate', 1, 'Pictures a frame, by interpolated poses.', lower_bound=1
)
_FADE = flags.DEFINE_bool(
  'fade', False, 'Whether a camera motion gains and loses its speed evenly.'
)
_HEIGHT = flags.DEFINE_integer(
  'height', None, "Pixels to draw; the input views' if unset.", lower_bound=1
)
_WIDTH = flags.DEFINE_integer(
  'width', None, "Pixels to draw; the input views' if unset.", lower_bound=1
)
_LOOK_AT = flags.DEFINE_string(
  'look_at',
  None,
  'What a camera motion goes round: X,Y,Z, or a distance ahead of the first '
  'view; if unset the origin where all views show it, else where they meet.',
)
_KEEP_LENS = flags.DEFINE_bool(
  'keep_lens',
  False,
  "Whether a camera motion has the views' focal length, not the public code's.",
)
_FPS = flags.DEFINE_float(
  'fps',
  None,
  "Of the video; if unset the motion's pace, or 30 of a camera motion.",
  lower_bound=0.1,
)
_SIZE = flags.DEFINE_integer(
  'size', 256, 'Pixels of height of a shown picture.', lower_bound=32
)
_OF_FOOTAGE = [_FIRST, _LAST, _STRIDE, _REFERENCE, _SCENE_REFERENCE]
_OF_FOOTAGE += [_CHAIN, _INTERPOLATE]
_OF_PATHS = [_FADE, _HEIGHT, _WIDTH, _LOOK_AT, _KEEP_LENS]
flags.mark_flags_as_required(['workdir', 'motion', 'scene', 'out'])


def main(_) -> int:
  with cli.reporting_user_errors():
    out = epath.Path(_OUT.value).expanduser()
    if out.suffix != '.mp4':
      raise UserError(
        f'--out={out} must end with .mp4; a GIF and a strip come with it'
      )
    cli.avoid_idle_libtpu()
    model = api.load(_WORKDIR.value, _STEP.value, progress=True)
    data_dir = _DATA_DIR.value or model.config.data.dir
    print(f'step {model.step} of {_WORKDIR.value}')
    if isinstance(model, posed.PosedModel):
      _fly(model, data_dir, out)
    else:
      _transfer(model, data_dir, out)
  return 0


def _fly(model: posed.PosedModel, data_dir: str, out: epath.Path) -> None:
  """Draws scenes along a camera motion."""
  _refuse(_OF_FOOTAGE, 'camera motions, which this model follows')
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


def _transfer(model: latent.Model, data_dir: str, out: epath.Path) -> None:
  """Moves a scene as another video moves."""
  _refuse(_OF_PATHS, 'motions of footage, which this model follows')
  motion = _MOTION.value
  if motion in motions.MOTIONS and not epath.Path(motion).exists():
    raise UserError(
      f'--motion={motion} is a camera motion for posed models, and this one '
      'takes its motion from footage; give a video, or a run of another method'
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


def _refuse(holders: Sequence[flags.FlagHolder], what: str) -> None:
  """Raises UserError if a flag is given that means nothing here."""
  given = [x.name for x in holders if flags.FLAGS[x.name].present]
  if given:
    raise UserError(f'--{given[0]} means nothing for {what}; leave it out')


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
