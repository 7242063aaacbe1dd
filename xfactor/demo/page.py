"""Builds and serves the page, with its upload limits."""

import gradio as gr
from etils import epath

from xfactor.demo import explorer, motion, uploads
from xfactor.errors import UserError
from xfactor.inference import latent

_KEPT = 3600  # Seconds to keep uploads and results, at least.
_WAITING = 20  # Most requests in the queue.


def build(
  model: latent.Model | None,
  name: str,
  data_dir: epath.PathLike,
  limits: uploads.Limits,
) -> gr.Blocks:
  """Builds the page.

  Args:
    model: Model of the first tab; None omits the tab.
    name: Name of the model on the page.
    data_dir: Folder of converted data sets, for the second tab.
    limits: Limits of uploads.
  """
  with gr.Blocks(
    title='xfactor', analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
  ) as page:
    if model:
      with gr.Tab('Move a scene'):
        gr.Markdown(
          'The camera moves through the scene as it does in the video. '
          f'Model: {name}, {model.step:,} updates, {model.image_size} pixels.'
        )
        motion.tab(motion.Mover(model, data_dir, limits))
    with gr.Tab('Data sets'):
      explorer.tab(data_dir)
  return page


def launch(
  page: gr.Blocks, *, host: str, port: int, limits: uploads.Limits
) -> str:
  """Serves the page in background threads; returns its address.

  Raises:
    UserError: If the port is in use or the host is not this machine's.
  """
  page.queue(max_size=_WAITING, default_concurrency_limit=4)
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
