"""Peak FLOPs, memory and bandwidth of accelerators."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peak values of one JAX device.

  Attributes:
    tflops: Dense bfloat16 TFLOP/s.
    hbm_gib: Memory available to a program, GiB; for TPUs as libtpu reports it.
    hbm_gbps: Memory bandwidth, GB/s.
    link_gbps: GB/s that it sends over all links to other chips of the host or
      slice (NVLink, ICI), in one direction.
    network_gbps: GB/s that it sends to other hosts or slices, in one direction.
    tf32_tflops: TFLOP/s of float32 products with TF32; None for TPUs, which
      take one bfloat16 pass.
    float32_tflops: TFLOP/s of full float32 products; None for TPUs, which take
      six bfloat16 passes.
  """

  tflops: float
  hbm_gib: float
  hbm_gbps: float
  link_gbps: float
  network_gbps: float
  tf32_tflops: float | None = None
  float32_tflops: float | None = None

  def rate(self, precision: str) -> float:
    """Returns TFLOP/s of a precision, as 'bfloat16' or 'float32 highest'."""
    name, _, detail = precision.partition(' ')
    if name != 'float32' or detail.startswith('bf16'):
      return self.tflops
    if self.tf32_tflops is None:
      return self.tflops / {'highest': 6, 'high': 3}.get(detail, 1)
    return self.float32_tflops if detail == 'highest' else self.tf32_tflops


# Keys are prefixes of jax's device_kind in lower case. A v3 chip is two
# devices; a v4 chip is one, as on Cloud TPUs.
CHIPS = {
  'tpu v3': Chip(61.5, 15.48, 450, 82, 1.5),
  'tpu v4': Chip(275, 30.75, 1228, 300, 3.1),
  'tpu v5 lite': Chip(197, 15.75, 819, 200, 3.1),
  'tpu v5': Chip(459, 95.74, 2765, 600, 6.2),
  'tpu v6 lite': Chip(918, 31.25, 1640, 400, 12.5),
  'nvidia a100': Chip(312, 79, 2039, 300, 25, 156, 19.5),
  'nvidia h100': Chip(989, 79, 3352, 450, 50, 494, 67),
  'nvidia h200': Chip(989, 140, 4800, 450, 50, 494, 67),
  'nvidia b200': Chip(2250, 178, 8000, 900, 50, 1125, 80),
}


def chip(device_kind: str) -> Chip | None:
  """Returns the peaks of one device, or None if it is not in the table."""
  for prefix, peaks in CHIPS.items():
    if device_kind.lower().startswith(prefix):
      return peaks
  return None


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak bf16 FLOP/s of one device, or None if unknown."""
  peaks = chip(device_kind)
  return peaks and peaks.tflops * 1e12
