"""python -m galaxyhpc.explore: a page about a data file, before anything is trained on it.

Holds the dataset summary, its figures and examples; reading galaxies lives in `data`.
"""
