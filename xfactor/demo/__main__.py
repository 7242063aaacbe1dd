r"""Serves a web page that moves scenes with a model and browses data sets.

  python -m xfactor.demo --workdir=runs/tiny
  python -m xfactor.demo --data_dir=data
  python -m xfactor.demo --workdir=runs/sm --data_dir=/data --port=7861

With --workdir, a tab applies the camera motion of a video to a scene with a
trained XFactor model, and another moves a camera through a picture by keys if
the model has a calibration (xfactor.calibrate). With data sets, the last tab
browses them. Without --host only this machine can open the page. The page loads
nothing from other hosts.

Needs `pip install -e '.[demo]'`. Exit codes are those of xfactor.main.
"""

import contextlib
import os
import signal
import tempfile

from absl import flags

from xfactor import api, cli
from xfactor.data.convert import run as convert_run
from xfactor.data.records import folders
from xfactor.data.sources import synthetic
from xfactor.errors import UserError
from xfactor.inference import posed

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a run, or one checkpoint in it.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; the newest if unset.')
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, "Folder of converted data sets; the recipe's if unset."
)
_PORT = flags.DEFINE_integer(
  'port', 7860, 'Port of the page.', lower_bound=1, upper_bound=65535
)
_HOST = flags.DEFINE_string(
  'host', '127.0.0.1', 'Address to listen on; 0.0.0.0 allows all machines.'
)
_ALLOW_HOST = flags.DEFINE_multi_string(
  'allow_host', None, 'Name under which a proxy serves the page; repeatable.'
)
_SECONDS = flags.DEFINE_float(
  'max_seconds', 120.0, 'Longest uploaded video in seconds.', lower_bound=0.0
)
_MEGABYTES = flags.DEFINE_integer(
  'max_megabytes', 200, 'Largest uploaded file in MB.', lower_bound=1
)


def main(_) -> int:
  with cli.reporting_user_errors():
    if not _WORKDIR.value and not _DATA_DIR.value:
      raise UserError(
        'give --workdir=RUN to move scenes with its model, --data_dir=FOLDER '
        'to look at data sets, or both'
      )
    # Clean up on SIGTERM as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix='xfactor-demo-') as folder:
      # Folder of uploads and results; Gradio reads it on import.
      os.environ['GRADIO_TEMP_DIR'] = folder
      os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
      try:
        import gradio  # noqa: F401
      except ImportError as e:
        raise UserError(
          f"{e}; install the dependencies of the page: pip install -e '.[demo]'"
        ) from e
      _serve()
  return 0


def _serve() -> None:
  from xfactor.demo import fly, motion
  from xfactor.demo import page as page_lib
  from xfactor.demo import uploads as uploads_lib

  model, data_dir = None, _DATA_DIR.value
  if _WORKDIR.value:
    cli.avoid_idle_libtpu()
    model = api.load(_WORKDIR.value, _STEP.value, progress=True)
    if isinstance(model, posed.PosedModel):
      raise UserError(
        f'{_WORKDIR.value} is a posed model, which takes no motion from '
        'videos; render scenes with python -m xfactor.render'
      )
    data_dir = data_dir or model.config.data.dir
  with tempfile.TemporaryDirectory() as made:
    if model and not folders.available(data_dir):
      print(f'{data_dir} has no data sets; generating some example rooms')
      rooms = synthetic.Source(scenes=8, frames=24, size=model.image_size)
      convert_run.convert(rooms, made, workers=0, quiet=True)
      data_dir = made
    if not model and not folders.available(data_dir):
      raise UserError(
        f'{data_dir} has no data sets; pass the --data_dir of a conversion'
      )
    limits = uploads_lib.Limits(_MEGABYTES.value, _SECONDS.value)
    mover = model and motion.Mover(model, data_dir, limits)
    built = page_lib.build(mover, _WORKDIR.value or '', data_dir)
    address = page_lib.launch(
      built,
      host=_HOST.value,
      port=_PORT.value,
      limits=limits,
      routes=fly.routes(mover) if mover else (),
      names=_ALLOW_HOST.value or (),
    )
    print(f'open {address} in a browser; Ctrl-C stops it', flush=True)
    with contextlib.suppress(KeyboardInterrupt):
      built.block_thread()


def run() -> None:
  """Runs the command `xfactor-demo`."""
  cli.run(main)


if __name__ == '__main__':
  run()
