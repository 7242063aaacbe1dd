"""Compiles train steps for absent accelerators and reports on the programs."""
