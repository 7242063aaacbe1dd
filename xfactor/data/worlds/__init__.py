"""Procedural and game worlds that sources render."""
