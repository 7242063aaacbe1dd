"""Ray caster in NumPy."""
