"""Reads, writes and hashes files, local or in a bucket."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from xfactor.errors import UserError

# One library for buckets, whether or not TensorFlow is installed, without its
# experimental part, which asks another service about each bucket.
os.environ.setdefault('EPATH_USE_TF', 'false')
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
# Other hosts change folders, too: listings are not cached.
fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is in a bucket (gs:// etc.)."""
  return '://' in os.fspath(path)


def is_mounted_bucket(path: str | os.PathLike[str]) -> bool:
  """Returns whether a local path is in a bucket mounted with gcsfuse."""
  path, found = epath.Path(path).resolve(), ('', '')
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/mounts').read_text().splitlines():
      _, place, kind, *_ = line.split(' ')
      place = place.replace('\\040', ' ')
      if path.is_relative_to(place) and len(place) >= len(found[0]):
        found = place, kind
  return found[1] == 'fuse.gcsfuse'


@contextlib.contextmanager
def as_os_errors(path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns whatever the library of a bucket raises into an OSError."""
  try:
    yield
  except Exception as e:
    kept = FileNotFoundError, FileExistsError, UserError
    if not is_remote(path) or isinstance(e, kept):
      raise
    words = ' '.join(str(e).split())[:200] or type(e).__name__
    raise OSError(errno.EIO, words, os.fspath(path)) from e


def is_refusal(error: Exception) -> bool:
  """Returns whether a bucket has refused access, and not failed to respond."""
  words = ('Forbidden', 'PERMISSION_DENIED', 'NOT_FOUND', 'Invalid Credentials')
  kinds = FileNotFoundError, PermissionError
  return isinstance(error, kinds) or any(word in str(error) for word in words)


def partial_suffix() -> str:
  """Returns the suffix of this process's unfinished files."""
  # Hosts that share a folder may write one file at the same time.
  return f'.incomplete-{socket.gethostname()}-{os.getpid()}'


def sha256(path: str | os.PathLike[str]) -> str:
  """Returns the sha256 of a file in hex."""
  with epath.Path(path).open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a JSON file atomically."""
  path = epath.Path(path)
  text = json.dumps(value, indent=1, sort_keys=True) + '\n'
  if is_remote(path):  # Buckets show only complete files.
    path.write_text(text)
    return
  partial = path.with_name(path.name + partial_suffix())
  partial.write_text(text)
  partial.replace(path)


def read_json(path: str | os.PathLike[str]) -> Any:
  """Returns the content of a JSON file."""
  return json.loads(epath.Path(path).read_text())


def digest(*values: Any) -> str:
  """Returns the sha256 of JSON values in hex."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def data_folder(data_dir: str | os.PathLike[str]) -> epath.Path:
  """Returns a folder, local or in a bucket, with `~` expanded.

  Raises:
    UserError: If it is in a bucket that cannot be reached.
  """
  path = epath.Path(data_dir).expanduser()
  if is_remote(path):
    try:
      path.exists()
    except ImportError as e:
      raise UserError(
        f"{path}: {e}; install bucket support: pip install -e '.[gcs]'"
      ) from e
    except Exception as e:  # Raised by an optional library.
      words = ' '.join(str(e).split())
      raise UserError(
        f'{path} cannot be reached ({words}); check its name and your '
        'credentials (gcloud auth application-default login)'
      ) from e
  return path


def run_folder(workdir: str | os.PathLike[str]) -> epath.Path:
  """Returns the folder of a run, local or gs://, with `~` expanded.

  Raises:
    UserError: If it is in a bucket that does not exist, cannot be reached or is
      of another cloud.
  """
  path = epath.Path(workdir).expanduser()
  if not is_remote(path):
    return path
  scheme, _, rest = os.fspath(path).partition('://')
  if scheme != 'gs':
    raise UserError(
      f'{path}: a run can be in a folder or in gs://; mount the bucket and '
      'give the folder'
    )
  _check_bucket(f'gs://{rest.partition("/")[0]}')
  return path


@functools.lru_cache
def _check_bucket(bucket: str) -> None:
  if not data_folder(bucket).exists():
    raise UserError(
      f'the bucket {bucket} does not exist, or you may not list it; make it, '
      'or give another'
    )


def unit_hash(text: str) -> float:
  """Returns a number in [0, 1) from the sha256 of a text."""
  head = hashlib.sha256(text.encode()).digest()[:8]
  # 53 bits, the precision of a double, so that it cannot round up to 1.
  return (int.from_bytes(head, 'big') >> 11) / 2**53
