"""The harmonic convolution: its definition, the torch operator, CPU and GPU kernels, and the choice between them.

Layers that call it live one folder up.
"""
