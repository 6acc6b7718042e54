"""Visualize trained networks: `galaxyhpc inspect`.

Holds features, embeddings, Grad-CAM and their page; trained networks are loaded by `evaluation.trained_model`.
"""

import galaxyhpc.report.figures.defaults  # before matplotlib  # noqa: F401
