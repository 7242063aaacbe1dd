"""Readers of third-party file formats."""
