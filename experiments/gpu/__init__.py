"""All that needs a GPU, as one command that loses nothing when it is cut off.

``__main__`` starts each step in a process of its own, with a time limit; ``job`` is what such a process sees (times,
floors, a JSON file that is written after each row); ``steps`` names them.  The others do one step each.
"""
