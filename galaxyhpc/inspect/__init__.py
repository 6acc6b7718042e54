"""Visualize trained networks: `galaxyhpc inspect`.

Holds features, embeddings, Grad-CAM and their page; trained networks are loaded by `evaluation.trained_model`.
"""
