"""Tab of the page that applies the camera motion of a video to a scene."""

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Collection, Iterator
from typing import Any

import gradio as gr
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from plotly import graph_objects

from xfactor.data.records import folders
from xfactor.data.records import store as store_lib
from xfactor.demo import paths, uploads
from xfactor.errors import UserError
from xfactor.inference import footage, latent, movie, transfer

_CLIPS = 200  # Most clips to choose from.
_SIZE = 256  # Pixels per side of each picture in the video.
_STRIP = 5  # Frames that preview a chosen video or scene.
_FILES = {
  'mp4': 'Video (mp4)',
  'gif': 'GIF',
  'png': 'Strip (png)',
  'npy': 'Latent poses (npy)',
}


def clip_names(data_dir: epath.PathLike, first: Collection[str]) -> list[str]:
  """Lists example clips, NAME/SPLIT/ID, from the test split if there is one.

  Args:
    data_dir: Folder of converted data sets.
    first: Names of the data sets to list first.
  """
  out = []
  names = folders.available(data_dir)
  for name in sorted(names, key=lambda name: name not in first):
    splits = folders.splits(data_dir, name)
    split = 'test' if 'test' in splits else splits[0]
    store = store_lib.open_split(data_dir, name, split)
    for i in footage.spread(len(store), _CLIPS // len(names)).tolist():
      out.append(f'{name}/{split}/{store.clip_id(i)}')
  return out


_OPTIONS = 'first', 'last', 'frames', 'interpolate', 'chain'


@dataclasses.dataclass(frozen=True)
class Moved:
  """Result shown to a visitor.

  Attributes:
    files: Paths by the keys of `_FILES`.
    path: Plot of the camera path.
    notes: Warnings of the model.
  """

  files: dict[str, str]
  path: graph_objects.Figure
  notes: list[str]


@dataclasses.dataclass(frozen=True)
class Mover:
  """A model and its example clips.

  Motions and scenes are given as the path of an upload or one of `clips`.
  """

  model: latent.Model
  data_dir: epath.PathLike
  limits: uploads.Limits

  @functools.cached_property
  def clips(self) -> list[str]:
    return clip_names(self.data_dir, self.model.config.data.mix)

  def defaults(self) -> tuple[str | None, str | None]:
    """Returns two clips of one data set, that of the recipe if present."""
    if not self.clips:
      return None, None
    prefix = self.clips[0].split('/')[0] + '/'
    own = [clip for clip in self.clips if clip.startswith(prefix)]
    return own[0], own[len(own) // 2]

  def length(self, motion: str) -> int:
    """Returns the number of frames of a motion, approximate for videos.

    Raises:
      UserError: If an upload is invalid or exceeds the limits.
    """
    if motion in self.clips:
      store, clip = footage.find(motion, self.data_dir)
      return int(store.num_frames[clip])
    return uploads.video_frames(motion, self.limits)

  def span(self, motion: str | None) -> tuple[int, int]:
    """Returns the last frame, and the last frame of a training window."""
    end = max(self.length(motion) - 1, 1) if motion else 1
    return end, min(end, (self.model.window or end + 1) - 1)

  def motion_strip(
    self, motion: str | None, first: int = 0, last: int | None = None
  ) -> UInt8[np.ndarray, 'h w 3'] | None:
    """Returns some frames of a motion at the model's size."""
    if motion is None:
      return None
    self.length(motion)
    return self._strip(motion, first=first, last=last)

  def scene_strip(self, scene: str | None) -> UInt8[np.ndarray, 'h w 3'] | None:
    """Returns some views of a scene at the model's size."""
    if scene is None:
      return None
    self._check_scene(scene)
    return self._strip(scene)

  def move(
    self,
    motion: str,
    scene: str,
    folder: epath.PathLike,
    *,
    first: int,
    last: int,
    frames: int,
    interpolate: int = 1,
    chain: int = 0,
  ) -> Moved:
    """Moves the scene and writes the files; see the flags of xfactor.render."""
    notes = []
    self.length(motion)
    self._check_scene(scene)
    shown = transfer.transfer(
      self.model.telling(notes.append),
      motion,
      scene,
      data_dir=self.data_dir,
      first=first,
      last=max(first, last),
      frames=min(frames, self.limits.frames),
      chain=chain or None,
      interpolate=interpolate,
    )
    out = epath.Path(folder) / 'transfer.mp4'
    transfer.write(shown, out, size=_SIZE)
    poses = self.model.encode_poses(shown.motion.frames, shown.reference)
    np.save(out.with_suffix('.npy'), poses)
    return Moved(
      {kind: os.fspath(out.with_suffix(f'.{kind}')) for kind in _FILES},
      paths.figure(
        poses, shown.reference, self._cameras(motion, shown.motion.numbers)
      ),
      [_plain(note, motion, scene) for note in notes],
    )

  def _check_scene(self, scene: str) -> None:
    if scene not in self.clips:
      uploads.check_pictures(scene.split(','), self.limits)

  def _strip(self, name: str, **span: int | None) -> np.ndarray:
    taken = footage.read(name, self.data_dir, self._fit, most=_STRIP, **span)
    cells = [
      movie.caption(movie.enlarge(frame, _SIZE // 2), str(number))
      for frame, number in zip(taken.frames, taken.numbers, strict=True)
    ]
    return movie.row(cells)

  def _fit(self, picture: np.ndarray) -> np.ndarray:
    return self.model.telling(lambda _: None).fit([picture])[0]

  def _cameras(
    self, motion: str, numbers: np.ndarray
  ) -> Float[np.ndarray, 'n 3 4'] | None:
    if motion not in self.clips:
      return None
    store, clip = footage.find(motion, self.data_dir)
    known = store.clip(clip).world_to_camera
    if known is None or not np.isfinite(known[numbers]).all():
      return None
    return known[numbers]


def tab(mover: Mover) -> None:
  """Builds the tab inside of an open `gr.Blocks`."""
  limits, several = mover.limits, mover.model.contexts > 1
  moving, still = mover.defaults()
  end, seen = mover.span(moving)
  with gr.Row():
    with gr.Column():
      motion, motion_clip, motion_shown = _choice(
        mover,
        moving,
        mover.motion_strip(moving, 0, seen),
        f'1. Motion: a video of at most {limits.seconds:.0f} s and '
        f'{limits.megabytes} MB',
        file_types=['video'],
        elem_id='motion',
      )
    with gr.Column():
      scene, scene_clip, scene_shown = _choice(
        mover,
        still,
        mover.scene_strip(still),
        '2. Scene: '
        + ('pictures in temporal order' if several else 'a picture'),
        file_types=['image'],
        file_count='multiple' if several else 'single',
        elem_id='scene',
      )
  with gr.Row():
    first = gr.Slider(0, end, 0, step=1, label='From frame')
    last = gr.Slider(0, end, seen, step=1, label='To frame')
    frames = gr.Slider(
      2, limits.frames, min(24, limits.frames), step=1, label='Number of frames'
    )
    interpolate = gr.Slider(1, 4, 1, step=1, label='Pictures per frame')
    chain = gr.Slider(0, 50, 0, step=1, label='Chain (0: never)')
  run = gr.Button('3. Move the scene', variant='primary', elem_id='run')
  with gr.Row():
    with gr.Column(scale=3):
      video = gr.Video(
        show_label=False, autoplay=True, loop=True, elem_id='result'
      )
      notes = gr.Markdown(elem_id='notes')
      with gr.Row():
        files = [
          gr.DownloadButton(text, elem_id=f'get-{kind}', min_width=80)
          for kind, text in _FILES.items()
        ]
    with gr.Column(scale=2):
      path = gr.Plot(show_label=False, elem_id='path')

  def measure(*chosen: Any) -> tuple[gr.Slider, gr.Slider]:
    name = _name(*chosen)
    with _explained(name):
      end, seen = mover.span(name)
    return gr.Slider(maximum=end, value=0), gr.Slider(maximum=end, value=seen)

  def show_motion(*values: Any) -> np.ndarray | None:
    name = _name(*values[:2])
    with _explained(name):
      return mover.motion_strip(name, *map(int, values[2:]))

  def show_scene(*chosen: Any) -> np.ndarray | None:
    name = _name(*chosen)
    with _explained(name):
      return mover.scene_strip(name)

  def move(
    *values: Any,
    progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008
  ) -> Iterator[list[Any]]:
    names = _name(*values[:2]), _name(*values[2:4])
    options = dict(zip(_OPTIONS, map(int, values[4:]), strict=True))
    with _explained(*names), tempfile.TemporaryDirectory() as folder:
      if None in names:
        raise UserError('no motion or no scene is chosen; choose both')
      progress(0, desc='reading')
      moved = mover.move(*names, folder, **options)
      # A generator: Gradio copies the files before the folder is deleted.
      yield [
        moved.files['mp4'],
        '\n'.join(f'* {note}' for note in moved.notes),
        moved.path,
        *(gr.DownloadButton(value=moved.files[x]) for x in _FILES),
      ]

  motions, scenes = [motion, motion_clip], [scene, scene_clip]
  span = [first, last]
  hidden = {'show_progress': 'hidden'}
  gr.on([x.change for x in motions], measure, motions, span, **hidden).then(
    show_motion, [*motions, *span], motion_shown, **hidden
  )
  gr.on(
    [x.release for x in span],
    show_motion,
    [*motions, *span],
    motion_shown,
    **hidden,
  )
  gr.on([x.change for x in scenes], show_scene, scenes, scene_shown, **hidden)
  for file, clip in (motions, scenes):
    clip.input(lambda: None, outputs=file, **hidden)
    file.upload(lambda: None, outputs=clip, **hidden)
  run.click(
    move,
    [*motions, *scenes, *span, frames, interpolate, chain],
    [video, notes, path, *files],
    concurrency_limit=1,
  )


def _choice(
  mover: Mover,
  clip: str | None,
  shown: np.ndarray | None,
  label: str,
  **options: Any,
) -> tuple[gr.File, gr.Dropdown, gr.Image]:
  """Returns an upload field, a list of example clips and a preview."""
  return (
    gr.File(label=label, height=140, **options),
    gr.Dropdown(mover.clips, value=clip, label='or a clip'),
    gr.Image(
      shown, show_label=False, interactive=False, buttons=[], height=130
    ),
  )


def _name(file: str | list[str] | None, clip: str | None) -> str | None:
  """Returns the upload if there is one, else the clip."""
  files = [file] if isinstance(file, str) else file or []
  for path in map(epath.Path, files):
    if ',' in path.name:
      text = f'{path.name} has a comma in its name; rename it'
      raise gr.Error(text, duration=None, print_exception=False)
  return ','.join(files) or clip


def _plain(text: str, *names: str | None) -> str:
  """Replaces paths of uploads in a text by their file names."""
  for name in filter(None, names):
    for path in map(epath.Path, name.split(',')):
      if path.is_absolute():
        text = text.replace(str(path), path.name)
  return text


@contextlib.contextmanager
def _explained(*names: str | None) -> Iterator[None]:
  """Shows the message of a UserError on the page, without a traceback."""
  try:
    yield
  except UserError as e:
    text = _plain(str(e), *names)
    raise gr.Error(text, duration=None, print_exception=False) from e
