"""A survey's galaxies in units of work: files, or parts of large ones, whose images are read but not decoded.

`units` finds and reads them, whatever they are; the other modules know a kind of file each. Sources of the training,
which are read as a whole, live in `data.sources`.
"""
