"""Fast equivariant layers on top of e2cnn: groups, convolutions, pooling, batch normalization, fused blocks.

A library of its own: of the project it imports only `config.group_names`, `storage.files` and `runtime.native`.
Networks built from these layers live in `models`.
"""
