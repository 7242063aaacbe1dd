"""Checkpoints, clean shutdown, and protection against faults and divergence."""
