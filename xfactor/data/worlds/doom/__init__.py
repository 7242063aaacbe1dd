"""Levels of Doom and its engine."""
