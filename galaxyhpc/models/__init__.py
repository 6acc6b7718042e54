"""Networks by their settings: steerable and conventional CNNs, residual networks, pretrained baselines.

Built from the layers of `steerable`, at equal fields, parameters or multiply-adds; profiled, checked for equivariance.
Training them lives in `training`.
"""
