"""Layers, attention, poses, optimizer and sharding of all networks."""
