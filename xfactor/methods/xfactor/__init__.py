"""Stereo and multi-view XFactor (arXiv 2510.13063)."""
