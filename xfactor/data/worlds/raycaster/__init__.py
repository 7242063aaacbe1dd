"""A ray caster in NumPy."""
