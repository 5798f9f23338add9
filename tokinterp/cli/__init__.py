"""The command line: ``tokinterp measure | report | show | ...``."""
