"""Doom levels, camera paths in them, and the ViZDoom engine."""
