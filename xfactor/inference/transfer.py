"""Transfers a motion to a scene and writes captioned pictures."""

import dataclasses

import numpy as np
from etils import epath
from jaxtyping import UInt8

from xfactor.inference import footage, latent, movie

_COLUMNS = 7  # Columns of the strip.
_FPS_UNKNOWN = 12.0  # Without timestamps and --fps.


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A transfer and its inputs.

  Attributes:
    motion: Frames of the motion.
    reference: Index into the frames.
    scene: Reference view of the scene.
    pictures: Moved scene, k * (n - 1) + 1 pictures.
    has_truth: Whether the motion's frames are the ground truth of `pictures`.
    k: Pictures per frame of the motion; above 1, the others are interpolated.
  """

  motion: footage.Footage
  reference: int
  scene: UInt8[np.ndarray, 'h w 3']
  pictures: UInt8[np.ndarray, 'm h w 3']
  has_truth: bool
  k: int

  def cells(self, at: int, size: int) -> list[np.ndarray]:
    """Returns captioned motion, transfer and truth of one picture."""
    frame, between = divmod(at, self.k)
    number = self.motion.numbers[frame]
    seen = movie.enlarge(self.motion.frames[frame], size)
    drawn = movie.enlarge(self.pictures[at], size)
    how = 'interpolated' if between else f'frame {number}'
    cells = [
      movie.caption(seen, f'motion: frame {number}'),
      movie.caption(
        drawn, f'transfer: {how}', movie.ORANGE if between else movie.BLACK
      ),
    ]
    if self.has_truth:
      cells.append(movie.caption(seen, f'truth: frame {number}'))
    return cells

  def video(self, size: int) -> np.ndarray:
    """Returns the video: motion | transfer | truth."""
    return np.stack(
      [movie.row(self.cells(i, size)) for i in range(len(self.pictures))]
    )

  def strip(self, size: int) -> np.ndarray:
    """Returns the references and some pictures side by side."""
    number = self.motion.numbers[self.reference]
    start = [
      (self.motion.frames[self.reference], f'reference: frame {number}'),
      (self.scene, 'scene as given'),
    ]
    cells = [movie.caption(movie.enlarge(x, size), text) for x, text in start]
    if self.has_truth:
      cells.append(np.full_like(cells[0], 255))
    columns = [movie.column(cells)]
    for at in footage.spread(len(self.pictures), _COLUMNS).tolist():
      columns.append(movie.column(self.cells(at, size)))
    return movie.row(columns)


def transfer(
  model: latent.Model,
  motion: str,
  scene: str,
  *,
  data_dir: epath.PathLike,
  first: int = 0,
  last: int | None = None,
  stride: int = 1,
  frames: int = 100,
  reference: int | None = None,
  scene_reference: int | None = None,
  chain: int | None = None,
  interpolate: int = 1,
) -> Transfer:
  """Reads motion and scene and renders the transfer; see the flags."""

  def read(name: str, **taken) -> footage.Footage:
    def fit(picture: np.ndarray) -> np.ndarray:
      return model.fit([picture], f'a frame of {name}')[0]

    return footage.read(name, data_dir, fit, most=frames, **taken)

  moving = read(motion, first=first, last=last, stride=stride)
  start = 0 if reference is None else moving.nearest(reference)
  same = motion == scene
  still = moving if same else read(scene)
  if same:
    centre = start
  elif scene_reference is None:
    centre = (len(still) - 1) // 2
  else:
    centre = still.nearest(scene_reference)
  if same:
    views = choose_views(still.numbers, centre, model.contexts, model.window)
  else:
    views = scene_views(model, scene, still, centre)
  pictures = model.transfer(
    moving.frames,
    still.frames[views],
    reference=start,
    scene_reference=int(np.flatnonzero(views == centre)[0]),
    chain=chain,
    interpolate=interpolate,
    stride=int(np.diff(moving.numbers).max(initial=1)),
  )
  return Transfer(
    moving, start, still.frames[centre], pictures, same, interpolate
  )


def scene_views(
  model: latent.Model, scene: str, still: footage.Footage, centre: int
) -> np.ndarray:
  """Returns the views of a scene: all that are listed, or `choose_views`."""
  if ',' in scene:
    return np.arange(len(still))
  return choose_views(still.numbers, centre, model.contexts, model.window)


def choose_views(
  numbers: np.ndarray, centre: int, most: int, window: int | None
) -> np.ndarray:
  """Chooses views of a scene: `centre` and others evenly around it.

  Args:
    numbers: Frame numbers to choose from.
    centre: Index of the reference view.
    most: Largest number of views.
    window: Length in frames of the window of the views; all frames if None.

  Returns:
    Indices of the views, ascending.
  """
  if most == 1:
    return np.array([centre])
  window = np.ptp(numbers) + 1 if window is None else window
  low = min(numbers[centre] - window // 2, numbers[-1] - window + 1)
  low = max(low, numbers[0])
  (near,) = np.nonzero((numbers >= low) & (numbers < low + window))
  views = near[footage.spread(len(near), most)]
  views[np.abs(views - centre).argmin()] = centre
  return views


def write(
  shown: Transfer, out: epath.Path, *, fps: float | None = None, size: int = 256
) -> None:
  """Writes the video OUT, and a GIF and a PNG strip of the same name.

  Raises:
    UserError: If a file cannot be written.
  """
  frames = shown.video(size)
  fps = fps or (shown.motion.fps or _FPS_UNKNOWN) * shown.k
  with movie.naming(out):
    movie.write(out, frames, fps, shown.strip(size))
  between = len(frames) - len(shown.motion)
  print(
    f'{out}, {out.stem}.gif and {out.stem}.png: {len(frames)} pictures at '
    f'{fps:.3g} a second'
    + f', of which {between} are from interpolated poses'
    * (between > 0)
  )
