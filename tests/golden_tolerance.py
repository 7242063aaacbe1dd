"""How near ours must be to golden numbers: twice what float32 rounds.

The golden numbers and ours are float32 results of one function. Orders of sums,
fused multiply-adds and the libraries' sines and exponentials differ between
programs and processors. So each has its own rounding, and they may be off each
other by twice the larger one.

A rounding is measured: the largest difference between float32 and float64
results of one function on the same float32 inputs, over the largest entry of
the result. It was measured of ours and of the golden numbers, which are other
programs on other processors, and the larger one stands where it is used. Angles
of encoded rays were rounded to float32 in both, for they are single products of
given numbers, which all processors round alike.

ROUNDING is for all that stays below it: float32's epsilon times the root of
256, which is what a chain of 256 roundings comes to where they are independent.
Measured were 5e-7 or less for functions of few operations, 1.2e-6 or less for
networks that magnify nothing, those of full size among them, and 1.8e-6 or less
for camera metrics after a network.
"""

import numpy as np

ROUNDING = 16 * 2.0**-23  # 1.9e-6.


def assert_close(got, want, rounding=ROUNDING, scale=None, err_msg=''):
  """Within twice the rounding, relative to the largest entry or `scale`."""
  if scale is None:
    scale = np.abs(want).max()
  np.testing.assert_allclose(
    got, want, rtol=0, atol=2 * rounding * scale, err_msg=err_msg
  )


def assert_all_close(got, want, rounding=ROUNDING, least=1e-3):
  """`assert_close` of each array, for gradients.

  Where one is nothing but rounding, its own largest entry is no scale: the
  scale is at least `least` of the largest of all arrays.
  """
  assert got.keys() == want.keys()
  largest = {name: np.abs(array).max() for name, array in want.items()}
  floor = least * max(largest.values())
  for name, array in want.items():
    scale = max(largest[name], floor)
    assert_close(got[name], array, rounding, scale, err_msg=name)
