"""galaxyhpc status: the state of every run, read from the run directories and the queue.

Holds the state of a run, alarms, history and the table; changes nothing.
"""
