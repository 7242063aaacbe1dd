"""ObSuRF's MultiShapeNet: a few ShapeNet objects, three views per scene.

The layout is the same as CLEVR3D's, see `clevr3d`. For SRT's larger
MultiShapeNet see `msn`.
"""

import dataclasses
from typing import ClassVar

from xfactor.data.sources import clevr3d


@dataclasses.dataclass(frozen=True)
class Source(clevr3d.Source):
  """One clip per scene, named by its number, in the published splits.

  Attributes: those of `clevr3d.Source`.
  """

  name: ClassVar[str] = 'obsurf_msn'
  description: ClassVar[str] = 'ObSuRF MultiShapeNet: three views of objects.'
  splits: ClassVar[dict[str, tuple[int, int]]] = {
    'train': (0, 80_000),
    'val': (80_000, 80_500),
    'test': (90_000, 100_000),
  }
