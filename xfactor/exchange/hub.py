"""Models on the Hugging Face Hub, and the folders that are published there.

A published folder holds config.json (recipe and step), model.safetensors, the
calibration of the model if there is one, and a model card. The cache, offline
mode, tokens and the address of the Hub are those of huggingface_hub (HF_HOME,
HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT).
"""

import contextlib
import importlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from types import ModuleType

import jax
from etils import epath

from xfactor.data import files
from xfactor.errors import UserError
from xfactor.exchange import safetensors
from xfactor.inference import restore as restore_lib

SCHEME = 'hf://'
_CONFIG, _WEIGHTS = 'config.json', 'model.safetensors'
_CALIBRATION = 'calibration-{}.*'  # And its scores, as JSON.
_NAME = r'[\w.-]+/[\w.-]+'


def is_published(path: epath.PathLike) -> bool:
  """Returns whether a folder is a published one."""
  folder = files.run_folder(path)
  return all((folder / name).exists() for name in (_CONFIG, _WEIGHTS))


def write(
  restored: restore_lib.Restored,
  workdir: epath.PathLike,
  folder: epath.PathLike,
) -> list[str]:
  """Writes recipe, weights and calibration; returns the names of the files.

  Args:
    restored: Model to publish.
    workdir: Run of the model, which may hold a calibration.
    folder: Existing folder to write into.
  """
  workdir, folder = epath.Path(workdir), epath.Path(folder)
  config, step = restored.config, restored.step
  safetensors.write_params(
    folder / _WEIGHTS,
    config.method,
    restored.build.model,
    step,
    jax.device_get(restored.params),
  )
  recipe = json.loads(config.to_json_best_effort())
  files.write_json(folder / _CONFIG, {'config': recipe, 'step': step})
  written = [_CONFIG, _WEIGHTS]
  for file in sorted(workdir.glob(_CALIBRATION.format(step))):
    shutil.copyfile(file, folder / file.name)
    written.append(file.name)
  return written


def restore(
  folder: epath.PathLike,
  step: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> restore_lib.Restored:
  """Restores a model from a published folder.

  Args:
    folder: Folder that `write` has written.
    step: Step that the model must have; any if None.
    devices: Devices to use; all if None.

  Raises:
    UserError: If files are damaged, do not fit each other or are of another
      step.
  """
  folder = epath.Path(folder).expanduser()
  config, found = restore_lib.published_recipe(folder / _CONFIG)
  if step not in (None, found):
    raise UserError(
      f'{folder} holds step {found}, not {step}; give no step, or another '
      'revision'
    )
  params = safetensors.read_params(folder / _WEIGHTS, config.method)
  return restore_lib.place(config, found, params, folder, devices)


def fetch(url: str) -> epath.Path:
  """Downloads a published model into the cache; returns its folder.

  Args:
    url: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION with a branch, a tag or a
      commit.

  Raises:
    UserError: If there is no such model, it is gated, the Hub cannot be reached
      and the model is not in the cache, or it is not a model of xfactor.
  """
  match = re.fullmatch(rf'{SCHEME}({_NAME})(?:@(.+))?', url)
  if not match:
    raise UserError(
      f'{url} must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION'
    )
  with _explaining(url) as hub:
    folder = hub.snapshot_download(
      match[1],
      revision=match[2],
      allow_patterns=[_CONFIG, _WEIGHTS, _CALIBRATION.format('*')],
      library_name='xfactor',
    )
  if not is_published(folder):
    raise UserError(
      f'{url} is no model that tools/publish.py wrote: it lacks {_CONFIG} or '
      f'{_WEIGHTS}'
    )
  return epath.Path(folder)


def check_name(repo: str) -> None:
  """Raises UserError if a name is not OWNER/NAME."""
  if not re.fullmatch(_NAME, repo):
    raise UserError(f'--repo={repo} must be OWNER/NAME')


def upload(
  folder: epath.PathLike, repo: str, *, space: bool = False, private: bool
) -> str:
  """Uploads a folder as one commit; returns its address.

  Args:
    folder: Folder to upload.
    repo: OWNER/NAME; created if it does not exist.
    space: Whether it is a Space, not a model.
    private: Whether a new repository is private.

  Raises:
    UserError: If the Hub cannot be reached or does not allow it.
  """
  kind = {'repo_type': 'space'} if space else {}
  sdk = {'space_sdk': 'gradio'} if space else {}
  with _explaining(SCHEME + repo, writing=True) as hub:
    api = hub.HfApi(library_name='xfactor')
    url = api.create_repo(repo, exist_ok=True, private=private, **kind, **sdk)
    api.upload_folder(
      repo_id=repo,
      folder_path=str(folder),
      commit_message='Publish a run of xfactor',
      **kind,
    )
  return str(url)


@contextlib.contextmanager
def _explaining(url: str, *, writing: bool = False) -> Iterator[ModuleType]:
  """Gives huggingface_hub; turns its errors into one sentence."""
  try:
    hub = importlib.import_module('huggingface_hub')
    errors = importlib.import_module('huggingface_hub.errors')
  except ImportError as e:
    raise UserError(
      f"{url}: {e}; install it with pip install -e '.[hub]'"
    ) from e
  login = 'log in with `hf auth login` or set HF_TOKEN'
  try:
    yield hub
  except errors.HFValidationError as e:
    raise UserError(f'{url} is no name of the Hub: {_line(e)}') from e
  except errors.GatedRepoError as e:
    raise UserError(
      f'{url} is gated: accept its terms on its page, then {login}'
    ) from e
  except errors.RepositoryNotFoundError as e:
    raise UserError(
      f'{url} does not exist or is private: check the name, or {login}'
    ) from e
  except errors.RevisionNotFoundError as e:
    raise UserError(
      f'{url} does not exist, but other revisions do: give a branch, a tag or '
      'a commit of its page'
    ) from e
  except errors.HfHubHTTPError as e:
    status = e.response.status_code
    cause = f'status {status}: {_line(e)}'
    if status in (401, 403):
      right = 'with a token that may write' if writing else 'with access'
      raise UserError(
        f'{url} is not allowed ({cause}); {login}, {right}'
      ) from e
    raise UserError(f'{url}: the Hub fails ({cause}); try again later') from e
  except (errors.LocalEntryNotFoundError, errors.HTTPError, OSError) as e:
    known = (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError)
    if not isinstance(e, known):  # A full disk, for instance.
      raise
    cached = '' if writing else ' and it is not in the cache'
    if hub.constants.HF_HUB_OFFLINE:
      raise UserError(
        f'HF_HUB_OFFLINE is set{cached}: unset it to use {url}'
      ) from e
    raise UserError(
      f'{url}: the Hub cannot be reached{cached}: connect to the network and '
      'try again'
    ) from e


def _line(error: Exception) -> str:
  return str(error).strip().split('\n')[0]
