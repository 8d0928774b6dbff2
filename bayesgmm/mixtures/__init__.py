"""What a Gaussian mixture is, and what follows from one alone. Read `mixture.py` first."""
