"""Survey inputs in units.

Stand-in.
"""
