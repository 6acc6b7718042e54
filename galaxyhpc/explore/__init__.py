"""Write a page about a data file, before anything is trained on it: `galaxyhpc explore`.

Holds the dataset summary, its figures and examples; reading galaxies lives in `data`.
"""

import galaxyhpc.report.figures.defaults  # before matplotlib  # noqa: F401
