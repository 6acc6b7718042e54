"""Networks built from their settings: steerable and conventional CNNs, residual networks, pretrained baselines.

Built from the layers of `steerable`, at equal fields, parameters or multiply-adds; profiled and checked for
equivariance. Training lives in `training`.
"""
