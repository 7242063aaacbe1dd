"""Writes a page that runs a model in the browser, without a server."""

import pathlib
import subprocess
import tarfile
import tempfile
from importlib import resources

from etils import epath

from xfactor.errors import UserError
from xfactor.exchange import snapshot

# The page loads it from its own folder, and nothing from elsewhere.
RUNTIME = 'onnxruntime-web@1.30.0'
_RUNTIME_FILES = (
  'ort.wasm.min.mjs',
  'ort-wasm-simd-threaded.mjs',
  'ort-wasm-simd-threaded.wasm',
  # WebGPU; a browser loads these or those above.
  'ort.webgpu.min.mjs',
  'ort-wasm-simd-threaded.asyncify.mjs',
  'ort-wasm-simd-threaded.asyncify.wasm',
)
_SITE = pathlib.Path(__file__).with_name('site')
_SHARED = resources.files('xfactor.inference') / 'site/fly.js'


def write(folder: epath.Path) -> list[epath.Path]:
  """Writes all but the networks: the page, and the runtime into `ort`.

  Raises:
    UserError: If the runtime cannot be fetched with npm.
  """
  content = {f'ort/{name}': data for name, data in _runtime().items()}
  pages = [*sorted(_SITE.iterdir()), _SHARED]
  content |= {path.name: path.read_bytes() for path in pages}
  for name, data in content.items():
    with snapshot.whole(folder / name) as file:
      file.write(data)
  return [folder / name for name in content]


def _runtime() -> dict[str, bytes]:
  """Fetches the files of the runtime with npm, or from its cache."""
  with tempfile.TemporaryDirectory() as folder:
    try:
      subprocess.run(
        ['npm', 'pack', RUNTIME, '--silent', '--prefer-offline'],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
      )
    except FileNotFoundError as e:
      raise UserError(
        f'npm is not installed, which fetches {RUNTIME} for the page: install '
        'Node.js'
      ) from e
    except subprocess.CalledProcessError as e:
      said = (e.stderr or e.stdout).strip().splitlines()
      raise UserError(
        f'npm cannot fetch {RUNTIME} for the page '
        f'({said[-1] if said else e}): check the network'
      ) from e
    (package,) = pathlib.Path(folder).glob('*.tgz')
    with tarfile.open(package) as tar:
      return {
        name: tar.extractfile(f'package/dist/{name}').read()
        for name in _RUNTIME_FILES
      }
