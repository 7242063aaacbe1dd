"""Pose oracle: VGGT."""

from xfactor.evaluation.oracles.vggt.oracle import Oracle as Oracle
