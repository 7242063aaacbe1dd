"""Builds and serves the page, with its upload limits."""

import ipaddress
import os
import socket
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from etils import epath
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from xfactor.demo import explorer, fly, motion, uploads
from xfactor.errors import UserError

_LOOPBACK = ('localhost', '127.0.0.1')
_KEPT = 3600  # Seconds to keep uploads and results, at least.
_WAITING = 20  # Most requests in the queue.
_REFUSED = 'this name or site is not allowed; see --allow_host\n'


class _OwnPages:
  """ASGI middleware that serves only this page, not other sites.

  A site whose name resolves to this machine (DNS rebinding) could read data
  sets, and any site could upload files. Addresses in numbers cannot be faked.
  """

  def __init__(self, app: Callable, names: Sequence[str]):
    self._app = app
    self._names = {name.lower() for name in names}

  async def __call__(
    self, scope: dict[str, Any], receive: Callable, send: Callable
  ) -> None:
    headers = {
      key.decode('latin1').lower(): value.decode('latin1')
      for key, value in scope.get('headers', ())
    }
    if scope['type'] == 'lifespan' or self._is_own(scope, headers):
      await self._app(scope, receive, send)
      return
    if scope['type'] == 'websocket':
      await send({'type': 'websocket.close', 'code': 1008})
      return
    start = {'type': 'http.response.start', 'status': 403, 'headers': []}
    await send(start)
    await send({'type': 'http.response.body', 'body': _REFUSED.encode()})

  def _is_own(self, scope: dict[str, Any], headers: dict[str, str]) -> bool:
    host = headers.get('host', '')
    name = urllib.parse.urlsplit(f'//{host}').hostname or ''
    try:
      ipaddress.ip_address(name)
    except ValueError:
      if name not in self._names:
        return False
    if scope.get('method') in ('GET', 'HEAD', 'OPTIONS'):
      return True
    origin = headers.get('origin')
    return not origin or urllib.parse.urlsplit(origin).netloc == host


def build(
  mover: motion.Mover | None, name: str, data_dir: epath.PathLike
) -> gr.Blocks:
  """Builds the page.

  Args:
    mover: Model of the first tabs; None omits them.
    name: Name of the model on the page.
    data_dir: Folder of converted data sets, for the last tab.
  """
  with gr.Blocks(
    title='xfactor', analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
  ) as page:
    if mover:
      model = mover.model
      with gr.Tab('Move a scene'):
        gr.Markdown(
          'The camera moves through the scene as it does in the video. '
          f'Model: {name}, {model.step:,} updates, {model.image_size} pixels.'
        )
        motion.tab(mover)
      if model.relative:  # Other poses are no camera motions.
        with gr.Tab('Fly'):
          fly.tab(model)
    with gr.Tab('Data sets'):
      explorer.tab(data_dir)
  return page


def launch(
  page: gr.Blocks,
  *,
  host: str,
  port: int,
  limits: uploads.Limits,
  routes: Sequence[BaseRoute] = (),
  names: Sequence[str] = (),
) -> str:
  """Serves the page in background threads; returns its address.

  Args:
    page: Page of `build`.
    host: Address to listen on.
    port: Port to listen on.
    limits: Limits of uploads.
    routes: Further addresses, for the same visitors as the page.
    names: Further names under which browsers may open the page.

  Raises:
    UserError: If the port is in use or the host is not this machine's.
  """
  page.queue(max_size=_WAITING, default_concurrency_limit=4)
  own = ('localhost', socket.gethostname(), socket.getfqdn(), host, *names)
  # Gradio asks its own server whether it runs, through proxies if there are.
  for variable in ('NO_PROXY', 'no_proxy'):
    before = os.environ.get(variable, '')
    os.environ[variable] = ','.join(filter(None, [before, *_LOOPBACK, host]))
  try:
    _, address, _ = page.launch(
      server_name=host,
      server_port=port,
      share=False,
      max_file_size=limits.megabytes * 2**20,
      prevent_thread_lock=True,
      quiet=True,
      show_error=False,
      footer_links=[],
      ssr_mode=False,
      pwa=False,
      mcp_server=False,
      enable_monitoring=False,
      # Gradio's test of the page has a short time limit.
      _frontend=False,
      app_kwargs={
        'middleware': [Middleware(_OwnPages, names=own)],
        'routes': list(routes),
      },
      theme=gr.themes.Default(
        font=['system-ui', 'sans-serif'],
        font_mono=['ui-monospace', 'monospace'],
      ),
    )
  except OSError as e:
    raise UserError(
      f'cannot listen on {host}:{port} ({e}); choose another --port or --host'
    ) from e
  return address
