"""python -m galaxyhpc.inspect: inside a trained network.

Holds features, embeddings, Grad-CAM and their page; trained networks are loaded by `evaluation.trained_model`.
"""
