"""RUST and RayZer as methods."""

from typing import ClassVar

from flax import nnx
from ml_collections import ConfigDict

from xfactor.methods import clips, distances
from xfactor.methods.autoencoding import cost, rayzer, rust
from xfactor.methods.autoencoding import objective as objective_lib
from xfactor.methods.base import StepKind
from xfactor.nn.layers import to_float


class _Baseline(clips.ClipMethod):
  """Base of RUST and RayZer: a target rendered from its own pose."""

  objective = distances.Distances
  network_type: ClassVar[type]

  def make_objective(self, config: ConfigDict) -> distances.Distances:
    return self.objective(**config.objective)

  def network(self, model, rngs, platform) -> nnx.Module:
    return self.network_type(model, rngs=rngs, platform=platform)

  def sample(self, key, batch, objective) -> objective_lib.AutoencodingSamples:
    return objective_lib.sample_autoencoding(key, batch['frames'])

  def loss(self, network, batch, draws, objective, *, kind, weights):
    del kind
    return objective_lib.autoencoding_loss(
      network,
      to_float(batch['images']),
      draws,
      objective,
      perceptual=self._perceptual(weights, objective),
    )


class Rust(_Baseline):
  """RUST (Sajjadi et al., CVPR 2023)."""

  name = 'rust'
  model = rust.RustConfig
  relative = False  # Poses are relative to the scene as a whole.
  network_type = rust.Rust

  def flops(self, build, kind: StepKind = StepKind.SPLIT) -> int:
    return cost.rust_step(build.model, **self._sizes(build))


class RayZer(_Baseline):
  """RayZer (Jiang et al., ICCV 2025)."""

  name = 'rayzer'
  model = rayzer.RayZerConfig
  network_type = rayzer.RayZer

  def flops(self, build, kind: StepKind = StepKind.SPLIT) -> int:
    return cost.rayzer_step(build.model, **self._sizes(build))
