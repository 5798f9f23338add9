"""Filler tokens: synthetic tasks and networks trained on them, and fillers put into frozen models."""
