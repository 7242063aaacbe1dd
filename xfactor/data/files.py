"""Reads, writes and hashes files, local or in a bucket."""

import hashlib
import json
import os
import socket
from typing import Any

from etils import epath

from xfactor.errors import UserError


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Returns whether a path is in a bucket (gs:// etc.)."""
  return '://' in os.fspath(path)


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


def unit_hash(text: str) -> float:
  """Returns a number in [0, 1) from the sha256 of a text."""
  head = hashlib.sha256(text.encode()).digest()[:8]
  # 53 bits, the precision of a double, so that it cannot round up to 1.
  return (int.from_bytes(head, 'big') >> 11) / 2**53
