"""Conversion of sources of clips into records."""
