"""Converts raw data to records: `xfactor-convert` from a checkout.

xfactor/convert.py has the usage.
"""

import runpy

if __name__ == '__main__':
  runpy.run_module('xfactor.convert', run_name='__main__', alter_sys=True)
