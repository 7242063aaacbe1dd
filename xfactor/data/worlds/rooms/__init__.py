"""Procedural rooms with furniture."""
