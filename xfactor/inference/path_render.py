"""Renders a scene along a camera path and writes captioned pictures."""

import dataclasses

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8

from xfactor.data import rerender
from xfactor.data.formats import camera_files, camera_paths
from xfactor.data.records import folders
from xfactor.errors import UserError
from xfactor.geometry import cameras, flights
from xfactor.inference import footage, latent, movie, transfer

_COLUMNS = 7  # Columns of the strip.
_FPS = 12.0
# Largest amount that is chosen by the domain: degrees, or typical moves.
_FARTHEST = 60.0
_AHEAD = 10.0  # Typical moves to the point that orbits look at.
_HALVINGS = 20


@dataclasses.dataclass(frozen=True)
class Shown:
  """A scene along a path.

  Attributes:
    name: The path, in words.
    path: World-to-camera poses; the world is the reference's camera.
    focal: Focal length of the central square, divided by its side.
    scene: Reference view of the scene.
    pictures: Rendered pictures.
    distance: Standard deviations from the calibration's motions.
    limit: Distance within which 99 % of the calibration's motions are.
    truth: True pictures, if the scene can be rendered again from all cameras.
  """

  name: str
  path: Float[np.ndarray, 'n 3 4']
  focal: Float[np.ndarray, ' n']
  scene: UInt8[np.ndarray, 'h w 3']
  pictures: UInt8[np.ndarray, 'n h w 3']
  distance: Float[np.ndarray, ' n']
  limit: float
  truth: UInt8[np.ndarray, 'n h w 3'] | None

  @property
  def inside(self) -> Bool[np.ndarray, ' n']:
    """Whether each camera is within the calibration's domain."""
    return self.distance <= self.limit

  def cells(self, at: int, size: int) -> list[np.ndarray]:
    """Returns captioned render and truth of one camera."""
    known = self.inside[at]
    cells = [
      movie.caption(
        movie.enlarge(self.pictures[at], size),
        f'camera {at}' + ': beyond the calibration' * (not known),
        movie.BLACK if known else movie.ORANGE,
      )
    ]
    if self.truth is not None:
      picture = movie.enlarge(self.truth[at], size)
      cells.append(movie.caption(picture, f'truth: camera {at}'))
    return cells

  def video(self, size: int) -> np.ndarray:
    """Returns the video: render | truth."""
    return np.stack(
      [movie.row(self.cells(i, size)) for i in range(len(self.pictures))]
    )

  def strip(self, size: int) -> np.ndarray:
    """Returns the scene and some pictures side by side."""
    first = movie.caption(movie.enlarge(self.scene, size), 'scene as given')
    blank = [np.full_like(first, 255)] * (self.truth is not None)
    columns = [movie.column([first, *blank])]
    for at in footage.spread(len(self.pictures), _COLUMNS).tolist():
      columns.append(movie.column(self.cells(at, size)))
    return movie.row(columns)


def follow(
  model: latent.Model,
  path: str,
  scene: str,
  *,
  data_dir: epath.PathLike,
  frames: int = 100,
  distance: float | None = None,
  scale: float = 1.0,
  reference: int = 0,
  scene_reference: int | None = None,
  chain: int | None = None,
) -> Shown:
  """Renders a scene along a path; see the flags of xfactor.render.

  Raises:
    UserError: If the model has no calibration, the path or the scene is
      unknown, or by `latent.Model`.
  """
  name, found = choose(model, path, frames, distance, scale)

  def fit(picture: np.ndarray) -> np.ndarray:
    return model.fit([picture], f'a frame of {scene}')[0]

  still = footage.read(scene, data_dir, fit)
  if scene_reference is None:
    centre = (len(still) - 1) // 2
  else:
    centre = still.nearest(scene_reference)
  views = transfer.scene_views(model, scene, still, centre)
  at = int(np.flatnonzero(views == centre)[0])
  pictures = model.render_path(
    still.frames[views],
    found,
    reference=reference,
    scene_reference=at,
    chain=chain,
  )
  poses = found.world_to_camera
  relative = cameras.relative_to(poses, poses[reference])
  focal = found.focal
  if focal is None:
    focal = np.full(len(poses), model.calibration.focal)
  number = int(still.numbers[centre])
  return Shown(
    name=name,
    path=relative,
    focal=focal,
    scene=still.frames[centre],
    pictures=pictures,
    distance=model.path_distances(poses, focal, reference, chain),
    limit=model.calibration.motions.limit,
    truth=_truth(model, scene, number, relative, data_dir),
  )


def choose(
  model: latent.Model,
  path: str,
  frames: int,
  distance: float | None = None,
  scale: float = 1.0,
) -> tuple[str, camera_files.Cameras]:
  """Returns a path in words, and its cameras.

  Args:
    model: Model with a calibration.
    path: NAME or NAME:AMOUNT with a key of `flights.FLIGHTS`, or a file of
      `camera_paths`. The default amount is half as far as the calibration's
      domain.
    frames: Number of cameras; the largest number for a file.
    distance: Distance ahead of the point that `orbit` and `spiral` look at.
    scale: Factor of the positions in a file.

  Raises:
    UserError: If there is no such path or file, or no calibration.
  """
  calibration = model.calibration
  name, _, text = path.partition(':')
  if name not in flights.FLIGHTS:
    if not epath.Path(path).expanduser().exists() and '.' not in path:
      raise UserError(
        f'--path={path} is neither one of {", ".join(flights.FLIGHTS)} nor a '
        'file of cameras; give one of them, as in --path=orbit or '
        '--path=orbit:10'
      )
    found = camera_paths.read(path)
    some = footage.spread(len(found.world_to_camera), frames)
    poses = found.world_to_camera[some] * np.array([1, 1, 1, scale])
    return (
      f'{path}, with positions in {calibration.unit} (--scale multiplies them)'
    ), camera_files.Cameras(found.intrinsics[some], poses)
  in_degrees = flights.FLIGHTS[name][1]
  typical = calibration.move
  if distance is None:
    distance = _AHEAD * typical if typical else 1.0
  unit = 'degrees' if in_degrees else f'in {calibration.unit}'

  def make(amount: float) -> np.ndarray:
    return flights.fly(name, frames, amount, distance)

  if text:
    try:
      amount = float(text)
    except ValueError:
      raise UserError(
        f'--path={path}: what follows the colon must be a number ({unit})'
      ) from None
  elif not typical and name not in ('pan', 'tilt', 'roll'):
    raise UserError(
      f'the calibration has seen cameras that only turn, so --path={name} has '
      f'no amount that it knows; give one, --path={name}:AMOUNT ({unit}), or '
      'calibrate with clips whose camera moves'
    )
  else:
    low, high = 0.0, _FARTHEST * (1 if in_degrees else typical)
    for _ in range(_HALVINGS):
      middle = (low + high) / 2
      far = calibration.distance(make(middle)).max()
      if far <= calibration.motions.limit / 2:
        low = middle
      else:
        high = middle
    amount = low
  lens = np.full((frames, 4), np.nan)
  return f'{name}:{amount:.3g} ({unit})', camera_files.Cameras(
    lens, make(amount)
  )


def _truth(
  model: latent.Model,
  scene: str,
  number: int,
  path: Float[np.ndarray, 'n 3 4'],
  data_dir: epath.PathLike,
) -> np.ndarray | None:
  """Renders the scene of a clip again from all cameras, where that works."""
  if (
    scene.split('/')[0] not in folders.available(data_dir)
    or not model.calibration.one_unit
  ):
    return None
  store, clip = footage.find(scene, data_dir)
  known = store.clip(clip)
  if not (known.posed and rerender.is_possible(store)):
    return None
  start = np.float64(known.world_to_camera[number])
  poses = np.tile(np.eye(4), (len(path), 1, 1))
  poses[:, :3] = cameras.compose(path, np.broadcast_to(start, path.shape))
  if not rerender.is_free(store, clip, poses).all():
    return None
  return rerender.rerender(store, clip, poses, model.image_size)[0]


def write(
  shown: Shown,
  out: epath.Path,
  *,
  fps: float | None = None,
  size: int = 256,
) -> None:
  """Writes the video OUT, and a GIF and a PNG strip of the same name.

  Raises:
    UserError: If a file cannot be written.
  """
  fps = fps or _FPS
  frames = shown.video(size)
  with movie.naming(out):
    movie.write(out, frames, fps, shown.strip(size))
  print(
    f'{out}, {out.stem}.gif and {out.stem}.png: {len(frames)} pictures along '
    f'{shown.name}, at most {shown.distance.max():.1f} standard deviations '
    f'from the motions of the calibration (99 % are within {shown.limit:.1f}); '
    f'{int((~shown.inside).sum())} of them beyond the calibration'
  )
