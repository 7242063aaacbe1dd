"""Furnished procedural rooms."""
