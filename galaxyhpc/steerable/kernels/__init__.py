"""The harmonic convolution: its definition, the torch operator, CPU and GPU kernels, and which of them a layer uses.

Layers that call it live one folder up.
"""
