"""The command line: ``tokinterp measure | fit | report | show | ...``.

The modules of this folder are scanned: the functions in ``COMMANDS`` of one are commands of ``tokinterp``, or of
``tokinterp NAME``, with NAME the module's, where it says in ``GROUP`` what they are about. A command's arguments are
types of `tokinterp.cli.options`, its docstring is its help, and it imports what it needs inside of itself, so that
``tokinterp --help`` waits for nothing. Measurements (``measure -m``) and fits (``fit``) are found in the topics: a new
one is a command by being there.
"""
