"""Intervals and tests that several measurements share."""
