"""Maps high dynamic range (HLG and PQ of BT.2100) to SDR of BT.709.

1.  Signals become linear light, in multiples of the reference white (BT.2408:
    203 cd/m^2 of PQ, 75 % of HLG's signal). HLG is scene light, as BT.709 is.
2.  Primaries become those of BT.709; what is outside of them is clipped.
3.  Light up to `KNEE` is kept, so colours are those of an SDR camera. Above,
    the largest of the three channels follows extended Reinhard, which is 1 at
    the peak (1000 cd/m^2 of PQ, 100 % of HLG's signal); the other two keep
    their ratio to it.
4.  BT.709's transfer function gives the signal.
"""

import functools

import numpy as np

WHITE = 203.0  # cd/m^2 of the reference white.
HLG_WHITE = 0.75  # Its HLG signal.
PEAK = 1000.0  # cd/m^2 that become SDR white.
KNEE = 0.8  # Fraction of the reference white up to which light is kept.

ONE = 255 << 8  # White in libswscale's pictures of 16 bits.
_STEPS = 4095  # Intervals in the tables of light.
# Linear light of BT.2020's primaries to those of BT.709 (BT.2087).
_BT2020_TO_BT709 = np.array(
  [
    [1.6605, -0.5876, -0.0728],
    [-0.1246, 1.1329, -0.0083],
    [-0.0182, -0.1006, 1.1187],
  ],
  np.float32,
)


def hlg_light(signal: np.ndarray) -> np.ndarray:
  """Returns the scene light in [0, 1] of HLG signals in [0, 1]."""
  a, b, c = 0.17883277, 0.28466892, 0.55991073
  return np.where(
    signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12
  )


def pq_light(signal: np.ndarray) -> np.ndarray:
  """Returns the light in cd/m^2 of PQ signals in [0, 1]."""
  m1, m2 = 2610 / 16384, 2523 / 4096 * 128
  c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
  root = signal ** (1 / m2)
  return 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def roll_off(light: np.ndarray, peak: float) -> np.ndarray:
  """Compresses light from `KNEE` to `peak` into `KNEE` to 1."""
  u = np.maximum(light - KNEE, 0) / (1 - KNEE)
  top = (peak - KNEE) / (1 - KNEE)
  shoulder = KNEE + (1 - KNEE) * u * (1 + u / top**2) / (1 + u)
  return np.minimum(np.where(light <= KNEE, light, shoulder), 1)


def bt709_signal(light: np.ndarray) -> np.ndarray:
  """Returns the BT.709 signal of scene light; both in [0, 1]."""
  above = 1.099 * np.maximum(light, 0.018) ** 0.45 - 0.099
  return np.where(light < 0.018, 4.5 * light, above)


def to_sdr(rgb: np.ndarray, transfer: str, wide: bool = True) -> np.ndarray:
  """Maps a picture to SDR.

  Args:
    rgb: uint16 [H, W, 3] signals, 1 at `ONE`.
    transfer: Transfer function of the signals, 'hlg' or 'pq'.
    wide: Whether the primaries are those of BT.2020, else those of BT.709.

  Returns:
    uint8 [H, W, 3].
  """
  light_of, gain_of, signal_of, peak = _tables(transfer)
  light = light_of[rgb]
  if wide:
    light = np.maximum(light @ _BT2020_TO_BT709.T, 0)
  largest = light.max(-1, keepdims=True)
  light *= gain_of[_index(largest * (_STEPS / peak))]
  return signal_of[_index(light * _STEPS)]


def _index(x: np.ndarray) -> np.ndarray:
  return np.minimum(x + 0.5, _STEPS).astype(np.uint16)


@functools.cache
def _tables(
  transfer: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
  """Returns tables of light, of gains and of signals, and the peak."""
  signal = np.minimum(np.arange(2**16) / ONE, 1)
  if transfer == 'hlg':
    white = float(hlg_light(np.array(HLG_WHITE)))
    light, peak = hlg_light(signal) / white, 1 / white
  else:
    light, peak = pq_light(signal) / WHITE, PEAK / WHITE
    light = np.minimum(light, peak)
  # Both are smooth in light: steps are below half a level.
  levels = np.linspace(0, peak, _STEPS + 1)[1:]
  gain = np.concatenate([[1], roll_off(levels, peak) / levels])
  sdr = np.round(255 * bt709_signal(np.linspace(0, 1, _STEPS + 1)))
  tables = light.astype(np.float32), gain.astype(np.float32)
  return *tables, sdr.astype(np.uint8), peak
