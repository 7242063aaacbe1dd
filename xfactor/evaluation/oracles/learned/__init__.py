"""Pose oracle: a network trained on posed data."""

from xfactor.evaluation.oracles.learned.oracle import Oracle as Oracle
