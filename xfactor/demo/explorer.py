"""Tab of the page that browses converted data sets, clips and bad records.

Opening the page reads only manifests; each click reads a bounded number of
records, except the one that verifies a whole data set.
"""

import functools
import html
import os
from collections.abc import Callable
from typing import Any

import gradio as gr

from xfactor.data import files, findings, verify
from xfactor.data.records import store as store_lib
from xfactor.demo import catalogue, clips
from xfactor.errors import UserError

PAGE = 8  # Clips per page.
# Gradio's galleries have square cells by default.
_STYLE = """<style>
.strips .grid-wrap { max-height: none; overflow: hidden; }
.strips .grid-container { grid-template-rows: none; grid-auto-rows: auto; }
.strips .thumbnail-item { aspect-ratio: auto; padding-bottom: 26px; }
</style>"""
_VERIFYING = gr.Progress(track_tqdm=True)


class Explorer:
  """Event handlers of the page, which return values or updates of components.

  Input of visitors only selects from listed splits; it is never used as a path.
  """

  def __init__(self, data_dir: str | os.PathLike[str]):
    self._data_dir = data_dir
    self._listed: dict[str, catalogue.Split] = {}

  def _chosen(self, label: str | None) -> catalogue.Split:
    if label not in self._listed:
      raise UserError('Choose a split from the list.')
    return self._listed[label]

  def _open(self, label: str | None) -> store_lib.FrameStore:
    return catalogue.open_split(self._data_dir, self._chosen(label))

  def begin(self) -> tuple[Any, ...]:
    """Lists the data sets."""
    splits, problems = catalogue.overview(self._data_dir)
    self._listed = {split.label: split for split in splits}
    rows = [split.row() for split in splits]
    choices = gr.update(choices=list(self._listed), value=None)
    return _say(*problems), rows, choices

  def browse(
    self, label: str | None, text: str, page: int | None = 1
  ) -> tuple[Any, ...]:
    """Shows the given page, or the nearest one, of the clips found."""
    store = self._open(label)
    found = catalogue.search(store, text)
    if not len(found):
      raise UserError(f'No clip of {label} has {text!r} in its id.')
    pages = -(-len(found) // PAGE)
    page = min(max(page or 1, 1), pages)
    shown = found[(page - 1) * PAGE : page * PAGE].tolist()
    said = _say(f'{len(found):,} clips, page {page:,} of {pages:,}')
    strips = []
    for clip in shown:
      picture, problem = clips.strip(store, clip)
      strips.append((picture, clips.caption(store, clip, problem)))
    return said, strips, (label, shown), page

  def previous(
    self, label: str | None, text: str, page: int | None
  ) -> tuple[Any, ...]:
    return self.browse(label, text, (page or 1) - 1)

  def following(
    self, label: str | None, text: str, page: int | None
  ) -> tuple[Any, ...]:
    return self.browse(label, text, (page or 1) + 1)

  def look(
    self, shown: tuple[str, list[int]] | None, at: int = 0
  ) -> tuple[Any, ...]:
    """Shows a clip of the current page."""
    if not shown or not 0 <= at < len(shown[1]):
      raise UserError('Choose a clip from the list.')
    label, numbers = shown
    store, depth = self._open(label), self._chosen(label).depth
    said, strip, figure = clips.details(store, numbers[at], depth)
    plot = gr.update(value=figure, visible=figure is not None)
    return _say(said), strip, plot

  def pick(
    self, shown: tuple[str, list[int]] | None, event: gr.SelectData
  ) -> tuple[Any, ...]:
    return self.look(shown, event.index)

  def count(self, label: str | None) -> tuple[Any, ...]:
    """Shows histograms and bad inputs."""
    store = self._open(label)
    found = clips.baselines(store)
    said, bad = catalogue.bad_inputs(store)
    bars = clips.histograms(store.num_frames, found)
    rows = gr.update(value=bad, visible=bool(bad))
    return _say(clips.describe(store, found), said), bars, rows

  def check(
    self, label: str | None, progress: gr.Progress = _VERIFYING
  ) -> tuple[Any, ...]:
    """Verifies a whole data set."""
    del progress  # Gradio follows the progress bar of `verify`.
    name = self._chosen(label).name  # The split may fail to open.
    root = files.data_folder(self._data_dir) / name
    workers = max((os.cpu_count() or 1) // 2, 1)  # Leave cores for visitors.
    return _say(), findings.table(verify.verify(root, workers))


def tab(data_dir: str | os.PathLike[str]) -> None:
  """Builds the tab inside of an open `gr.Blocks`.

  Args:
    data_dir: Folder of converted data sets, local or gs://.
  """
  explorer = Explorer(data_dir)
  trouble = gr.HTML(visible=False)
  table = gr.Dataframe(
    headers=list(catalogue.HEADERS),
    label='Converted data sets',
    interactive=False,
    max_height=400,
    buttons=[],
  )
  choice = gr.Dropdown([], label='Split to browse')
  with gr.Column(visible=False) as chosen:
    with gr.Row():
      with gr.Column():
        with gr.Row():
          text = gr.Textbox(
            label='Search',
            placeholder='part of an id, then Enter',
            max_length=200,
            scale=2,
          )
          page = gr.Number(1, label='Page', precision=0, min_width=80)
        browsed = gr.HTML()
        strips = gr.Gallery(
          label='Clips: choose one',
          show_label=False,
          columns=1,
          allow_preview=False,
          interactive=False,
          buttons=[],
          elem_classes='strips',
        )
        with gr.Row():
          back, forward = gr.Button('Previous page'), gr.Button('Next page')
      with gr.Column():
        facts = gr.HTML()
        picture = gr.Image(
          label='Chosen clip', show_label=False, interactive=False, buttons=[]
        )
        plot = gr.Plot(label='Cameras in the colours of the bars, and points')
    counted = gr.HTML()
    bars = gr.Plot(label='Clip lengths and baselines', show_label=False)
    bad = gr.Dataframe(
      headers=['input', 'reason'],
      label='Inputs that could not be converted',
      interactive=False,
      wrap=True,
      max_height=260,
      buttons=[],
      visible=False,
    )
    again = gr.Button('Verify: read the whole data set again')
    failed = gr.HTML(visible=False)
    verdict = gr.Code(
      'not verified yet',
      label='Verdict',
      interactive=False,
      lines=3,
      wrap_lines=True,
      show_line_numbers=False,
    )
  shown = gr.State()
  gr.HTML(_STYLE, padding=False)

  def react(trigger, handler, inputs, outputs, limit=4):
    call = _told(handler, len(outputs))
    return trigger(call, inputs, outputs, concurrency_limit=limit)

  def browses(trigger, handler, inputs):
    done = react(trigger, handler, inputs, [browsed, strips, shown, page])
    return react(done.then, explorer.look, [shown], [facts, picture, plot])

  wanted = [choice, text, page]
  gr.on(None, _told(explorer.begin, 3), None, [trouble, table, choice])
  reset = choice.input(
    lambda: ('', 1, gr.Column(visible=True)), None, [text, page, chosen]
  )
  first = browses(reset.then, explorer.browse, wanted)
  react(first.then, explorer.count, [choice], [counted, bars, bad])
  browses(page.submit, explorer.browse, wanted)
  browses(text.submit, explorer.browse, [choice, text])
  browses(back.click, explorer.previous, wanted)
  browses(forward.click, explorer.following, wanted)
  react(strips.select, explorer.pick, [shown], [facts, picture, plot])
  react(again.click, explorer.check, [choice], [failed, verdict], limit=1)


def _say(*sentences: str) -> dict[str, Any]:
  """Shows sentences as paragraphs, with markup escaped."""
  paragraphs = ''.join(f'<p>{html.escape(x)}</p>' for x in sentences)
  return gr.update(value=paragraphs, visible=bool(sentences))


def _told(handler: Callable[..., Any], outputs: int) -> Callable[..., Any]:
  """Shows errors of a handler in the first output and clears the others."""

  @functools.wraps(handler)
  def call(*args):
    try:
      return handler(*args)
    except (UserError, *clips.UNREADABLE) as e:
      return _say(str(e)), *[None] * (outputs - 1)

  return call
