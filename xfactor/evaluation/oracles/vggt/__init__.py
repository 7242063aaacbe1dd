"""Oracle: VGGT."""

from xfactor.evaluation.oracles.vggt.oracle import Oracle as Oracle
