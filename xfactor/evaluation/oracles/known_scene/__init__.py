"""Oracle: localises pictures in a scene of known views."""

from xfactor.evaluation.oracles.known_scene.oracle import Oracle as Oracle
