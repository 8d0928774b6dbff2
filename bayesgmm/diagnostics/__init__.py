"""Criteria, ArviZ, and what speaks against a fit."""
