"""Metrics of pictures and poses."""
