"""Pose oracle: localises pictures in a scene with cameras and depth."""

from xfactor.evaluation.oracles.known_scene.oracle import Oracle as Oracle
