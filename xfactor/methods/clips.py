"""Base of the methods that learn from clips without cameras."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from xfactor import limits
from xfactor.data.views import Views
from xfactor.errors import UserError
from xfactor.methods import base, clip_scores, distances
from xfactor.metrics import lpips
from xfactor.nn.functional import Params


class ClipMethod(base.Method):
  """Method that learns from two or more views of clips without cameras."""

  arrays = ('images', 'frames')
  ordered = True
  posed = False

  def settings(self) -> dict[str, dict[str, Any]]:
    return {
      'model': dataclasses.asdict(self.model()),
      'objective': dataclasses.asdict(self.objective()),
      'data': {
        'bump': False,  # Favour windows of 70 % of the longest.
        'gap_sigma': config_dict.placeholder(float),  # Central references.
        'flip_prob': 0.5,  # Share of examples played backwards.
        'mirror_prob': 0.0,  # Share of examples mirrored, left and right.
      },
      'eval': {
        'pairs': 64,  # Most clip pairs of the transfer test; 0: no test.
        'targets': 5,  # Views per clip that it renders.
        # Frames around the reference that hold them; 0: `window`.
        'transfer_window': 0,
      },
    }

  def limits(self) -> dict[str, dict[str, limits.Range]]:
    shares = ('flip_prob', 'mirror_prob', 'gap_sigma')
    least = {'pairs': 0, 'targets': 2, 'transfer_window': 0}
    return {
      'data': dict.fromkeys(shares, (0, 1)),
      'eval': {key: (value, math.inf) for key, value in least.items()},
    }

  def check(self, config: ConfigDict) -> None:
    data, patch = config.data, config.model.patch_size
    for name in ('image_size', 'image_width'):
      size = data[name]
      if size is not None and (size % patch or size // patch % 2):
        raise UserError(
          f'config.data.{name}={size} must be an even number of patches of '
          f'config.model.patch_size={patch} pixels'
        )
    if config.objective.lpips_dtype not in lpips.DTYPES:
      raise UserError(
        f'config.objective.lpips_dtype={config.objective.lpips_dtype!r}: '
        f'choose one of {", ".join(lpips.DTYPES)}'
      )

  def views(self, data: ConfigDict) -> int:
    return data.contexts + 1

  def chooser(self, data: ConfigDict, part: ConfigDict) -> Callable[..., Any]:
    return Views(
      num_views=self.views(data),
      window=(part.begin, part.end),
      ramp_steps=data.ramp_steps,
      bump=data.bump,
      gap_sigma=data.gap_sigma,
      flip_prob=data.flip_prob,
    )

  def needs_lpips(self, objective: distances.Distances) -> bool:
    return objective.lpips_weight > 0

  def evaluator(
    self, build: Any, lpips: Mapping[str, Params], settings: ConfigDict
  ) -> clip_scores.Evaluator:
    del settings
    return clip_scores.Evaluator(build.functional, build.mesh, lpips)

  def describe(self, build) -> str:
    return (
      f'{build.batch} examples of {build.views} views at '
      f'{build.image_size} pixels'
    )

  def _perceptual(
    self, weights: Params | None, objective: distances.Distances
  ) -> distances.Perceptual:
    return functools.partial(lpips.lpips, weights, dtype=objective.lpips_dtype)

  def _sizes(self, build) -> dict[str, int]:
    return {
      'batch': build.batch,
      'views': build.views,
      'height': build.image_size,
      'width': build.image_width,
    }
