"""Pose oracle: structure from motion by COLMAP."""

from xfactor.evaluation.oracles.colmap.oracle import Oracle as Oracle
