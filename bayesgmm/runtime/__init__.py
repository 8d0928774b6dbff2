"""How computations are run: devices, lanes, chains of samplers, progress, files."""
