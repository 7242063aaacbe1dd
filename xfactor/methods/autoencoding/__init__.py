"""RUST and RayZer: a target rendered from its own pose."""
