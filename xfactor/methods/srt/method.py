"""SRT as a method."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from xfactor import limits
from xfactor.data.views import SetViews
from xfactor.errors import UserError
from xfactor.methods import base as methods_base
from xfactor.methods.base import StepKind
from xfactor.methods.srt import cost
from xfactor.methods.srt import network as network_lib
from xfactor.methods.srt import objective as objective_lib
from xfactor.methods.srt import scores as srt_scores
from xfactor.nn.functional import Params


class SRT(methods_base.Method):
  """Scene Representation Transformers: posed views to colours of other rays.

  SRT (Sajjadi et al., CVPR 2022), improved SRT (OSRT, appendix A.4) and the
  volumetric SRT of stelzner/srt.
  """

  name = 'srt'
  model = network_lib.Config
  objective = objective_lib.Config
  arrays = ('images', 'intrinsics', 'world_to_camera')
  ordered = False
  posed = True

  def settings(self) -> dict[str, dict[str, Any]]:
    objective = dataclasses.asdict(self.objective())
    del objective['inputs'], objective['volume']
    return {
      # The placeholder keeps the type of a value set later.
      'model': dataclasses.asdict(self.model())
      | {'min_z': config_dict.placeholder(float)},
      'objective': objective,
      'optimizer': {
        'decay': 'exponential',
        'learning_rate': 1e-4,
        'initial_learning_rate': 0.0,
        'final_learning_rate': 1.6e-5,
        'warmup_steps': 2500,
        'weight_decay': 0.0,
        'b2': 0.999,
        'clip_norm': 0.0,
      },
      'data': {
        'targets': 1,  # Views in addition to the contexts, to sample rays from.
      },
      'train': {'steps': 4_000_000},
      'eval': {
        'rays': 0,  # Scored pixels per example; 0: all.
      },
    }

  def limits(self) -> dict[str, dict[str, limits.Range]]:
    return {'data': {'targets': (0, math.inf)}, 'eval': {'rays': (0, math.inf)}}

  def check(self, config: ConfigDict) -> None:
    data, objective = config.data, config.objective
    width = data.image_width or data.image_size
    height, width = (
      objective_lib.strided(n, objective.input_stride)
      for n in (data.image_size, width)
    )
    network_lib.check_size(self.model(**config.model), height, width)
    if not (data.targets or objective.include_inputs):
      raise UserError(
        'config.data.targets=0 leaves no view to sample rays from; set it to 1 '
        'or more, or set config.objective.include_inputs=True'
      )
    views = data.targets + data.contexts * objective.include_inputs
    pixels = views * data.image_size * (data.image_width or data.image_size)
    for name, number in (
      ('objective.rays', objective.rays),
      ('eval.rays', config.eval.rays),
    ):
      if number > pixels:
        raise UserError(
          f'config.{name}={number} must be at most {pixels}, the pixels of '
          f'{views} views'
        )

  def make_objective(self, config: ConfigDict) -> objective_lib.Config:
    model = self.model(**config.model)
    return objective_lib.Config(
      **config.objective,
      inputs=config.data.contexts,
      volume=model if model.decoder == 'nerf' else None,
    )

  def network(self, model, rngs, platform) -> network_lib.SRT:
    return network_lib.SRT(model, rngs=rngs, platform=platform)

  def views(self, data: ConfigDict) -> int:
    return data.contexts + data.targets

  def chooser(self, data: ConfigDict, part: ConfigDict) -> SetViews:
    return SetViews(
      num_views=self.views(data),
      window=(part.begin, part.end),
      ramp_steps=data.ramp_steps,
    )

  def sample(self, key, batch, objective) -> objective_lib.Samples:
    return objective_lib.sample(key, batch['images'].shape, objective)

  def loss(self, network, batch, draws, objective, *, kind, weights):
    del kind, weights
    return objective_lib.loss(network, batch, draws, objective)

  def evaluator(
    self, build: Any, lpips: Mapping[str, Params], settings: ConfigDict
  ) -> srt_scores.Evaluator:
    return srt_scores.Evaluator(
      build.functional,
      build.mesh,
      lpips,
      objective=build.objective,
      num_rays=settings.rays,
    )

  def describe(self, build) -> str:
    inputs = build.objective.inputs
    return (
      f'{build.batch} scenes of {inputs} + {build.views - inputs} views at '
      f'{build.image_width} x {build.image_size} pixels, '
      f'{build.objective.rays} rays each'
    )

  def flops(self, build, kind: StepKind = StepKind.SPLIT) -> int:
    return cost.srt_train_step(build.model, **self._sizes(build))

  def _sizes(self, build) -> dict[str, int]:
    stride = build.objective.input_stride
    return {
      'batch': build.batch,
      'views': build.objective.inputs,
      'height': objective_lib.strided(build.image_size, stride),
      'width': objective_lib.strided(build.image_width, stride),
      'rays': build.objective.rays,
    }
