"""Criteria, ArviZ, and what is wrong with a fit."""
