"""XFactor as a method."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from xfactor import limits
from xfactor.data.views import Shifted
from xfactor.errors import UserError
from xfactor.methods import clip_scores, clips
from xfactor.methods.base import StepKind
from xfactor.methods.xfactor import augment, contrast, cost
from xfactor.methods.xfactor import network as network_lib
from xfactor.methods.xfactor import objective as objective_lib
from xfactor.nn.functional import Params
from xfactor.nn.layers import to_float


class XFactor(clips.ClipMethod):
  """Stereo and multi-view XFactor (arXiv 2510.13063)."""

  name = 'xfactor'
  model = network_lib.Config
  objective = objective_lib.Config

  def settings(self) -> dict[str, dict[str, Any]]:
    settings = super().settings()
    del settings['objective']['shifted']
    # Share of examples whose two halves are seen up to `offset` frames apart.
    settings['data'].update(offset_prob=0.0, offset=1)
    return settings

  def limits(self) -> dict[str, dict[str, limits.Range]]:
    own = super().limits()
    own['data'] |= {'offset': (1, math.inf), 'offset_prob': (0, 1)}
    return own

  def check(self, config: ConfigDict) -> None:
    super().check(config)
    model = self.model(**config.model)
    data = config.data
    network_lib.check_grid(
      model,
      tuple(
        size // model.patch_size
        for size in (data.image_size, data.image_width or data.image_size)
      ),
    )
    name, unmasked = config.objective.contrast, config.objective.unmasked_prob
    if name and name not in contrast.OBJECTIVES:
      raise UserError(
        f'config.objective.contrast={name!r}: choose one of '
        f'{", ".join(contrast.OBJECTIVES)}, or leave it empty'
      )
    if config.objective.split not in objective_lib.SPLITS:
      raise UserError(
        f'config.objective.split={config.objective.split!r}: choose one of '
        f'{", ".join(objective_lib.SPLITS)}'
      )
    for what, value in (
      ('objective.contrast', name),
      ('data.offset_prob', config.data.offset_prob),
    ):
      if value and unmasked:
        raise UserError(
          f'config.{what}={value!r} needs the two halves of all examples: set '
          'config.objective.unmasked_prob=0.0'
        )
    if name and model.nuisance_dim:
      raise UserError(
        f'config.objective.contrast={name!r} renders nothing that '
        f'config.model.nuisance_dim={model.nuisance_dim} could explain: set it '
        'to 0'
      )
    if name and config.train.accumulate > 1:
      raise UserError(
        f'config.objective.contrast={name!r} compares all examples of a batch: '
        'set config.train.accumulate=1'
      )

  def make_objective(self, config: ConfigDict) -> objective_lib.Config:
    values = config.objective.to_dict()
    values['augmentation'] = augment.Config(**values['augmentation'])
    return objective_lib.Config(**values, shifted=config.data.offset_prob > 0)

  def network(self, model, rngs, platform) -> network_lib.XFactor:
    return network_lib.XFactor(model, rngs=rngs, platform=platform)

  def frames(self, data: ConfigDict) -> int:
    return self.views(data) * (1 + bool(data.offset_prob))

  def chooser(self, data: ConfigDict, part: ConfigDict) -> Callable[..., Any]:
    views = super().chooser(data, part)
    if data.offset_prob:
      return Shifted(views, data.offset, data.offset_prob)
    return views

  def sample(self, key, batch, objective) -> objective_lib.Samples:
    frames = batch['frames']
    if objective.shifted:
      frames = frames[:, : frames.shape[1] // 2]
    return objective_lib.sample(key, frames, objective)

  def loss(self, network, batch, draws, objective, *, kind, weights):
    return objective_lib.loss(
      network,
      to_float(batch['images']),
      draws,
      objective,
      whole=kind is StepKind.WHOLE,
      perceptual=self._perceptual(weights, objective),
    )

  def evaluator(
    self, build: Any, lpips: Mapping[str, Params], settings: ConfigDict
  ) -> clip_scores.Evaluator:
    del settings
    return clip_scores.Evaluator(
      build.functional,
      build.mesh,
      lpips,
      by_halves=objective_lib.render_by_halves,
    )

  def step_kinds(self, objective: objective_lib.Config) -> list[StepKind]:
    return objective_lib.step_kinds(objective)

  def step_kind(
    self, seed: int, step: int, objective: objective_lib.Config
  ) -> StepKind:
    return objective_lib.step_kind(seed, step, objective)

  def needs_lpips(self, objective: objective_lib.Config) -> bool:
    return super().needs_lpips(objective) and not objective.contrast

  def flops(self, build, kind: StepKind = StepKind.SPLIT) -> int:
    return cost.train_step(
      build.model,
      **self._sizes(build),
      whole=kind is StepKind.WHOLE,
      render=not build.objective.contrast,
    )
