"""ObSuRF's MultiShapeNet: a few ShapeNet objects, three views a scene.

The layout is CLEVR3D's, see `clevr3d`. It is not the larger data set of SRT,
for which see `msn`.
"""

import dataclasses
from typing import ClassVar

from xfactor.data.sources import clevr3d


@dataclasses.dataclass(frozen=True)
class Source(clevr3d.Source):
  """One clip a scene, named by its number, in the published splits.

  Attributes: those of CLEVR3D's source.
  """

  name: ClassVar[str] = 'obsurf_msn'
  description: ClassVar[str] = 'ObSuRF MultiShapeNet: three views of objects.'
  splits: ClassVar[dict[str, tuple[int, int]]] = {
    'train': (0, 80_000),
    'val': (80_000, 80_500),
    'test': (90_000, 100_000),
  }
