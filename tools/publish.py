"""Publishes a run on the Hugging Face Hub, with a model card made from it.

  python tools/publish.py --workdir=runs/tiny --repo=OWNER/NAME --dry_run
  python tools/publish.py --workdir=runs/tiny --repo=OWNER/NAME

writes WORKDIR/published/STEP/model: weights (safetensors), recipe, calibration
if there is one, pictures, and README.md with the run's data and scores.
Without --dry_run it uploads them. Anyone with access then loads the model:
xfactor.load('hf://OWNER/NAME').

  python tools/publish.py --workdir=runs/tiny --repo=OWNER/NAME --space

also writes and uploads a Space, the demo page with this model. Evaluate the run
before (python -m xfactor.eval), so that the card has scores. Log in with
`hf auth login`. Exit codes: 0 done, 2 bad input (one line on stderr says what).
"""

import jax
from absl import flags
from etils import epath

from xfactor import cli
from xfactor.errors import UserError
from xfactor.evaluation.reports import card
from xfactor.exchange import hub, space
from xfactor.inference import restore

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a run, or one checkpoint in it.'
)
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint; the newest if unset.')
_REPO = flags.DEFINE_string('repo', None, 'Name on the Hub, OWNER/NAME.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Write files, upload nothing.')
_SPACE = flags.DEFINE_bool('space', False, 'Publish the demo page as well.')
_PRIVATE = flags.DEFINE_bool('private', False, 'Make new repositories private.')
_LICENSE = flags.DEFINE_string(
  'license', 'unknown', "Licence of the weights, the Hub's identifier."
)
flags.mark_flags_as_required(['workdir', 'repo'])


def main(_) -> int:
  with cli.reporting_user_errors():
    jax.config.update('jax_platforms', 'cpu')  # Needs no accelerator.
    hub.check_name(_REPO.value)
    restored = restore.restore(_WORKDIR.value, _STEP.value)
    workdir = restored.workdir
    out = workdir / 'published' / str(restored.step)
    try:
      model = _empty(out / 'model')
      names = hub.write(restored, workdir, model)
      names += card.write(
        restored, workdir, model, repo=_REPO.value, license=_LICENSE.value
      )
      page = (
        space.write(_empty(out / 'space'), _REPO.value) if _SPACE.value else ()
      )
    except OSError as e:
      raise UserError(f'cannot write {out} ({e.strerror})') from e
    for name in names:
      print(model / name)
    for name in page:
      print(out / 'space' / name)
    if _DRY_RUN.value:
      return 0
    print(hub.upload(model, _REPO.value, private=_PRIVATE.value))
    if _SPACE.value:
      print(
        hub.upload(
          out / 'space', _REPO.value, space=True, private=_PRIVATE.value
        )
      )
  return 0


def _empty(folder: epath.Path) -> epath.Path:
  if folder.exists():
    folder.rmtree()  # What an earlier call wrote.
  folder.mkdir(parents=True)
  return folder


if __name__ == '__main__':
  cli.run(main)
