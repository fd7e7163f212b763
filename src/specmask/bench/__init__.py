"""Grids of settings → results.jsonl → figures."""
