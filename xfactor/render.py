r"""Moves one scene's camera as in another video, and shows it.

  python -m xfactor.render --workdir=runs/vizdoom --out=moved.mp4 \
      --motion=walk.mp4 --scene=kitchen.jpg
  python -m xfactor.render --workdir=runs/vizdoom --out=moved.mp4 \
      --motion=vizdoom/test/freedoom1_e1m5/0000 --last=15 \
      --scene=vizdoom/test/freedoom2_map13/0001

Motion and scene are each a video, a picture or several between commas, a folder
of frames, or a clip of a converted data set, NAME/SPLIT/ID. Writes a video of
the motion beside the moved scene and, where both are the same clip, the truth;
a strip and a GIF of the same name lie beside it. Exit codes as those of
xfactor.main.
"""

from absl import app, flags
from etils import epath

from xfactor import api, cli
from xfactor.errors import UserError
from xfactor.inference import transfer

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
  'frames', 100, 'Take at most so many, evenly spaced.', lower_bound=1
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
_FPS = flags.DEFINE_float(
  'fps', None, "Of the video; the motion's pace if unset.", lower_bound=0.1
)
_SIZE = flags.DEFINE_integer(
  'size', 256, 'Pixels along a side of a shown picture.', lower_bound=32
)
flags.mark_flags_as_required(['workdir', 'motion', 'scene', 'out'])


def main(_) -> int:
  with cli.reporting_user_errors():
    out = epath.Path(_OUT.value).expanduser()
    if out.suffix != '.mp4':
      raise UserError(
        f'--out={out} must end with .mp4; a GIF and a strip come with it'
      )
    model = api.load(_WORKDIR.value, _STEP.value, progress=True)
    shown = transfer.transfer(
      model,
      _MOTION.value,
      _SCENE.value,
      data_dir=_DATA_DIR.value or model.config.data.dir,
      first=_FIRST.value,
      last=_LAST.value,
      stride=_STRIDE.value,
      frames=_FRAMES.value,
      reference=_REFERENCE.value,
      scene_reference=_SCENE_REFERENCE.value,
      chain=_CHAIN.value,
      interpolate=_INTERPOLATE.value,
    )
    print(f'step {model.step} of {_WORKDIR.value}')
    transfer.write(shown, out, fps=_FPS.value, size=_SIZE.value)
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=cli.parse_flags)
