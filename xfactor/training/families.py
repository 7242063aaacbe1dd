"""What differs between kinds of models: networks, batches, objective, cost.

All else is shared: the loop and the step, the mesh, checkpoints, the binaries.
A recipe says which by `config.family`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict, config_dict

from xfactor.data.views import SetViews, Shifted, Views
from xfactor.errors import UserError
from xfactor.models import baselines, perceptual, srt, xfactor
from xfactor.models.functional import Params
from xfactor.models.layers import to_float
from xfactor.training import augment, contrast, flops, objectives, rays

Batch = dict[str, jax.Array]


class Family(abc.ABC):
  """A kind of model; stateless.

  Attributes:
    name: As `config.family` gives it.
    model: Dataclass of the networks' sizes; `config.model` has its fields. Like
      all of them it has `dtype`, `attention` and `remat`.
    objective: Dataclass of the loss; `config.objective` has its fields, but for
      those that `make_objective` takes from elsewhere.
    arrays: What of the pipeline's batches the step takes, by name.
    ordered: Whether the views of an example follow each other in time.
    posed: Whether cameras must be known.
    relative: Whether latent poses are relative to a view whose own is zero.
  """

  name: ClassVar[str]
  model: ClassVar[type]
  objective: ClassVar[type]
  arrays: ClassVar[tuple[str, ...]]
  ordered: ClassVar[bool]
  posed: ClassVar[bool]
  relative: ClassVar[bool] = True

  @abc.abstractmethod
  def settings(self) -> dict[str, dict[str, Any]]:
    """Defaults of the recipe's sections where they are the family's own."""

  @abc.abstractmethod
  def check(self, config: ConfigDict) -> None:
    """Raises UserError where parts of a recipe contradict each other."""

  @abc.abstractmethod
  def make_objective(self, config: ConfigDict) -> Any:
    """The objective of a recipe."""

  @abc.abstractmethod
  def network(self, model: Any, rngs: nnx.Rngs, platform: str) -> nnx.Module:
    """New networks for 'cpu', 'gpu' or 'tpu'."""

  @abc.abstractmethod
  def views(self, data: ConfigDict) -> int:
    """Views of an example."""

  def frames(self, data: ConfigDict) -> int:
    """Frames that are read for an example."""
    return self.views(data)

  @abc.abstractmethod
  def chooser(self, data: ConfigDict, part: ConfigDict) -> Callable[..., Any]:
    """Which frames of a clip make an example; see `data.views`."""

  @abc.abstractmethod
  def draw(self, key: PRNGKeyArray, batch: Batch, objective: Any) -> Any:
    """All that a step draws for the global batch; leading axis: examples."""

  @abc.abstractmethod
  def loss(
    self,
    network: nnx.Module,
    batch: Batch,
    draws: Any,
    objective: Any,
    *,
    whole: bool,
    weights: Params | None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of some examples and the metrics, `loss` among them.

    Args:
      network: With its parameters.
      batch: The arrays, of these examples.
      draws: Of `draw`, for these examples.
      objective: Of `make_objective`.
      whole: The kind of step; see `kinds`.
      weights: Of LPIPS, where the objective has it.
    """

  def kinds(self, objective: Any) -> list[bool]:
    """The kinds of steps: programs are compiled for each."""
    del objective
    return [False]

  def kind(self, seed: int, step: int, objective: Any) -> bool:
    """The kind of a step; known to every process unasked."""
    del seed, step, objective
    return False

  def needs_lpips(self, objective: Any) -> bool:
    """Whether the loss takes the weights of LPIPS."""
    del objective
    return False

  @abc.abstractmethod
  def describe(self, build: Any) -> str:
    """What an update works on, for people."""

  @abc.abstractmethod
  def flops(self, build: Any, *, whole: bool = False) -> int:
    """Model FLOPs of one update."""

  @abc.abstractmethod
  def executed_flops(self, build: Any, *, whole: bool) -> float:
    """FLOPs of one update with all that is computed twice or beside."""


class _Clips(Family):
  """What learns from clips without cameras: pairs of views, and more."""

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
        'pairs': 64,  # Of clips in the transfer test, at most; 0: no test.
        'targets': 5,  # Views of a clip that it draws.
        # Frames that they are from, about the reference; 0: `window`.
        'transfer_window': 0,
      },
    }

  def check(self, config: ConfigDict) -> None:
    data, patch = config.data, config.model.patch_size
    if not 0 <= data.mirror_prob <= 1:
      raise UserError(
        f'config.data.mirror_prob={data.mirror_prob} must be a share, 0 to 1'
      )
    for name in ('image_size', 'image_width'):
      size = data[name]
      if size is not None and (size % patch or size // patch % 2):
        raise UserError(
          f'config.data.{name}={size} must be an even number of patches of '
          f'config.model.patch_size={patch} pixels'
        )
    if config.objective.lpips_dtype not in ('float32', 'bfloat16'):
      raise UserError(
        f'config.objective.lpips_dtype={config.objective.lpips_dtype!r}: '
        'choose "float32" or "bfloat16"'
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

  def needs_lpips(self, objective: objectives.Distances) -> bool:
    return objective.lpips_weight > 0

  def describe(self, build) -> str:
    return (
      f'{build.batch} examples of {build.views} views at '
      f'{build.image_size} pixels'
    )

  def _perceptual(
    self, weights: Params | None, objective: objectives.Distances
  ) -> objectives.Perceptual:
    return functools.partial(
      perceptual.lpips, weights, dtype=objective.lpips_dtype
    )

  def _lpips_dtype(self, build) -> str | None:
    return build.objective.lpips_dtype if build.needs_lpips else None

  def _sizes(self, build) -> dict[str, int]:
    return {
      'batch': build.batch,
      'views': build.views,
      'height': build.image_size,
      'width': build.image_width,
    }


class XFactor(_Clips):
  """Stereo and multi-view XFactor (arXiv 2510.13063)."""

  name = 'xfactor'
  model = xfactor.Config
  objective = objectives.Config

  def settings(self) -> dict[str, dict[str, Any]]:
    settings = super().settings()
    del settings['objective']['shifted']
    # Share of examples of which the two halves are seen at moments that are up
    # to `offset` frames apart.
    settings['data'].update(offset_prob=0.0, offset=1)
    return settings

  def check(self, config: ConfigDict) -> None:
    super().check(config)
    model = self.model(**config.model)
    data = config.data
    xfactor.check_grid(
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
    for what, value in (
      ('objective.contrast', name),
      ('data.offset_prob', config.data.offset_prob),
    ):
      if value and unmasked:
        raise UserError(
          f'config.{what}={value!r} is about the two halves of examples: set '
          'config.objective.unmasked_prob=0.0'
        )
    if name and config.train.accumulate > 1:
      raise UserError(
        f'config.objective.contrast={name!r} compares all examples of a batch: '
        'set config.train.accumulate=1'
      )

  def make_objective(self, config: ConfigDict) -> objectives.Config:
    values = config.objective.to_dict()
    values['augmentation'] = augment.Config(**values['augmentation'])
    return objectives.Config(**values, shifted=config.data.offset_prob > 0)

  def network(self, model, rngs, platform) -> xfactor.XFactor:
    return xfactor.XFactor(model, rngs=rngs, platform=platform)

  def frames(self, data: ConfigDict) -> int:
    return self.views(data) * (1 + bool(data.offset_prob))

  def chooser(self, data: ConfigDict, part: ConfigDict) -> Callable[..., Any]:
    views = super().chooser(data, part)
    if data.offset_prob:
      return Shifted(views, data.offset, data.offset_prob)
    return views

  def draw(self, key, batch, objective) -> objectives.Draws:
    frames = batch['frames']
    if objective.shifted:
      frames = frames[:, : frames.shape[1] // 2]
    return objectives.draw(key, frames, objective)

  def loss(self, network, batch, draws, objective, *, whole, weights):
    return objectives.loss(
      network,
      to_float(batch['images']),
      draws,
      objective,
      whole=whole,
      perceptual=self._perceptual(weights, objective),
    )

  def kinds(self, objective: objectives.Config) -> list[bool]:
    return objectives.kinds_of_step(objective)

  def kind(self, seed: int, step: int, objective: objectives.Config) -> bool:
    return objectives.is_whole_step(seed, step, objective)

  def needs_lpips(self, objective: objectives.Config) -> bool:
    return super().needs_lpips(objective) and not objective.contrast

  def flops(self, build, *, whole: bool = False) -> int:
    return flops.train_step(
      build.model,
      **self._sizes(build),
      whole=whole,
      render=not build.objective.contrast,
    )

  def executed_flops(self, build, *, whole: bool) -> float:
    return flops.executed_step(
      build.model,
      **self._sizes(build),
      whole=whole,
      render=not build.objective.contrast,
      lpips_dtype=self._lpips_dtype(build),
    )


class _Baseline(_Clips):
  """What RUST and RayZer share: a target drawn from its own pose."""

  objective = objectives.Distances
  network_type: ClassVar[type]

  def make_objective(self, config: ConfigDict) -> objectives.Distances:
    return self.objective(**config.objective)

  def network(self, model, rngs, platform) -> nnx.Module:
    return self.network_type(model, rngs=rngs, platform=platform)

  def draw(self, key, batch, objective) -> objectives.AutoencodingDraws:
    return objectives.draw_autoencoding(key, batch['frames'])

  def loss(self, network, batch, draws, objective, *, whole, weights):
    del whole
    return objectives.autoencoding_loss(
      network,
      to_float(batch['images']),
      draws,
      objective,
      perceptual=self._perceptual(weights, objective),
    )

  def flops(self, build, *, whole: bool = False) -> int:
    return flops.baseline_step(build.model, **self._sizes(build))

  def executed_flops(self, build, *, whole: bool) -> float:
    return flops.baseline_executed_step(
      build.model,
      **self._sizes(build),
      lpips_dtype=self._lpips_dtype(build),
    )


class Rust(_Baseline):
  """RUST (Sajjadi et al., CVPR 2023)."""

  name = 'rust'
  model = baselines.RustConfig
  relative = False  # But to the scene as a whole.
  network_type = baselines.Rust


class RayZer(_Baseline):
  """RayZer (Jiang et al., ICCV 2025)."""

  name = 'rayzer'
  model = baselines.RayZerConfig
  network_type = baselines.RayZer


class SRT(Family):
  """Scene Representation Transformers: posed views to rays of other views.

  SRT (Sajjadi et al., CVPR 2022), improved SRT (OSRT, appendix A.4) and the
  volumetric SRT of stelzner/srt.
  """

  name = 'srt'
  model = srt.Config
  objective = rays.Config
  arrays = ('images', 'intrinsics', 'world_to_camera')
  ordered = False
  posed = True

  def settings(self) -> dict[str, dict[str, Any]]:
    objective = dataclasses.asdict(self.objective())
    del objective['inputs'], objective['volume']
    return {
      # An empty place keeps the type of what may be put there.
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
        'targets': 1,  # Views beside the contexts, of which rays are drawn.
      },
      'train': {'steps': 4_000_000},
      'eval': {
        'rays': 0,  # Pixels of an example that are scored; 0: all.
      },
    }

  def check(self, config: ConfigDict) -> None:
    data, objective = config.data, config.objective
    width = data.image_width or data.image_size
    height, width = (
      rays.strided(n, objective.input_stride) for n in (data.image_size, width)
    )
    srt.check_size(self.model(**config.model), height, width)
    if not (data.targets or objective.include_inputs):
      raise UserError(
        'config.data.targets=0 leaves no view to draw rays from; give some, or '
        'set config.objective.include_inputs'
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

  def make_objective(self, config: ConfigDict) -> rays.Config:
    model = self.model(**config.model)
    return rays.Config(
      **config.objective,
      inputs=config.data.contexts,
      volume=model if model.decoder == 'nerf' else None,
    )

  def network(self, model, rngs, platform) -> srt.SRT:
    return srt.SRT(model, rngs=rngs, platform=platform)

  def views(self, data: ConfigDict) -> int:
    return data.contexts + data.targets

  def chooser(self, data: ConfigDict, part: ConfigDict) -> SetViews:
    return SetViews(
      num_views=self.views(data),
      window=(part.begin, part.end),
      ramp_steps=data.ramp_steps,
    )

  def draw(self, key, batch, objective) -> rays.Draws:
    return rays.draw(key, batch['images'].shape, objective)

  def loss(self, network, batch, draws, objective, *, whole, weights):
    del whole, weights
    return rays.loss(network, batch, draws, objective)

  def describe(self, build) -> str:
    inputs = build.objective.inputs
    return (
      f'{build.batch} scenes of {inputs} + {build.views - inputs} views at '
      f'{build.image_width} x {build.image_size} pixels, '
      f'{build.objective.rays} rays each'
    )

  def flops(self, build, *, whole: bool = False) -> int:
    return flops.srt_train_step(build.model, **self._sizes(build))

  def executed_flops(self, build, *, whole: bool) -> float:
    return flops.srt_executed_step(build.model, **self._sizes(build))

  def _sizes(self, build) -> dict[str, int]:
    stride = build.objective.input_stride
    return {
      'batch': build.batch,
      'views': build.objective.inputs,
      'height': rays.strided(build.image_size, stride),
      'width': rays.strided(build.image_width, stride),
      'rays': build.objective.rays,
    }


FAMILIES: Mapping[str, Family] = {
  family.name: family for family in (XFactor(), SRT(), Rust(), RayZer())
}


def get(name: str) -> Family:
  """The family called `name`.

  Raises:
    UserError: If there is none.
  """
  if name not in FAMILIES:
    raise UserError(
      f'config.family={name!r} is no family of models; choose one of '
      f'{", ".join(FAMILIES)}'
    )
  return FAMILIES[name]
