"""Converts sources of clips into records."""
