"""Peak FLOPs, memory and bandwidth of accelerators."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peak values of one JAX device.

  Attributes:
    tflops: Dense bfloat16 TFLOP/s.
    hbm_gib: Memory available to a program, GiB; for TPUs as libtpu reports it.
    hbm_gbps: Memory bandwidth, GB/s.
    link_gbps: Bandwidth to other chips over all links, GB/s (ICI, NVLink).
  """

  tflops: float
  hbm_gib: float
  hbm_gbps: float
  link_gbps: float


# Keys are prefixes of jax's device_kind in lower case. A v3 chip is two
# devices; a v4 chip is one, as on Cloud TPUs.
CHIPS = {
  'tpu v3': Chip(61.5, 15.48, 450, 82),
  'tpu v4': Chip(275, 30.75, 1228, 300),
  'tpu v5 lite': Chip(197, 15.75, 819, 200),
  'tpu v5': Chip(459, 95.74, 2765, 600),
  'tpu v6 lite': Chip(918, 31.25, 1640, 400),
  'nvidia a100': Chip(312, 80, 2039, 600),
  'nvidia h100': Chip(989, 80, 3352, 900),
  'nvidia h200': Chip(989, 140, 4800, 900),
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
