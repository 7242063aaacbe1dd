"""Procedural and game worlds, rendered by data sources."""
