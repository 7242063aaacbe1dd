"""Logs, curves, goodput and profiles of a run."""
