"""Times of single layers: cuDNN's and our kernels, convolutions in irreps in one kernel and in two steps."""

from __future__ import annotations

from functools import partial

import torch
from campaign import Campaign
from networks import make_network, set_backend_flags
from results import JsonDict
from timings import time_step
from torch import nn

from galaxyhpc.benchmark.layer_timing import LayerCase, list_layers, time_layer
from galaxyhpc.steerable.kernels import selection
from galaxyhpc.steerable.layers import SteerableConv

# in an order in which few kernels are compiled at first
FUSED_LAYERS = (
    *(("D16", 48, 48, 65), ("D8", 48, 48, 65), ("D16", 48, 48, 33), ("C16", 48, 48, 65)),
    *(("D16", 24, 48, 65), ("D8", 24, 48, 65), ("D16", 12, 24, 129), ("D16", 96, 96, 17)),
)


def time_layers(campaign: Campaign) -> None:
    """Time single layers: cuDNN and our kernels, batch norm fused and by torch's own layers."""
    set_backend_flags(campaign.precision)
    dtype = torch.bfloat16 if campaign.is_cuda else torch.float32
    for case in _list_layer_cases(campaign):
        if campaign.seconds_left < 4:
            return
        campaign.free_memory()
        try:
            campaign.record(**time_layer(case, campaign.device, dtype, campaign.scale.round_seconds / 6))
        except Exception as error:
            campaign.record_failure(error, layer=case.name)


def _list_layer_cases(campaign: Campaign) -> list[LayerCase]:
    if campaign.is_tiny:
        return [LayerCase("C4", 2, 3, 9, 2)]
    batch_shape = selection.BatchShape(campaign.scale.micro_batch, campaign.scale.image_size)
    cases = {name: list_layers(make_network(campaign, name), batch_shape) for name in ("D16", "C4", "D8", "C16", "D4")}
    return [case for name, layers in cases.items() for case in (layers if name == "D16" else layers[::2])]


def time_fused_convolutions(campaign: Campaign) -> None:
    """Time convolutions in irreps in one kernel and in two steps, and cuDNN's with a ready-made filter."""
    set_backend_flags(campaign.precision)
    for group, in_fields, out_fields, side in [("C2", 2, 3, 5)] if campaign.is_tiny else FUSED_LAYERS:
        if campaign.seconds_left < 4:
            return
        campaign.free_memory()
        name = f"{group} {in_fields}->{out_fields} {side} px"
        try:
            layer = SteerableConv(group, in_fields, out_fields, padding=1).to(campaign.device)
            campaign.record(layer=name, **_time_convolutions(campaign, layer, side))
        except Exception as error:
            campaign.record_failure(error, layer=name)
    if campaign.seconds_left > 30 and not campaign.is_tiny:
        for result in time_step(campaign, "D16", "fused"):
            campaign.record(network="D16", **result)


@torch.no_grad()
def _time_convolutions(campaign: Campaign, layer: SteerableConv, side: int) -> JsonDict:
    """Return the milliseconds of a layer's forward pass by each kernel, and how far each is from the dense one."""
    from galaxyhpc.steerable import fused_blocks, fused_convolution  # Triton is not everywhere
    from galaxyhpc.steerable.kernels import gpu

    shape = (campaign.scale.batch_size, layer.in_fields * layer.basis.shape[2], side, side)
    dtype = torch.bfloat16 if campaign.is_cuda else torch.float32
    x = torch.randn(shape, device=campaign.device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    filters = layer.expand_filter(dtype).contiguous(memory_format=torch.channels_last)
    weight = gpu.reshape_weights(layer.weight, layer.basis_spec, layer.in_fields)
    maps, plan = fused_blocks.to_irrep_maps(x, layer), gpu.get_plan(layer.basis_spec, False, x)
    y = nn.functional.conv2d(x, filters, padding=1)
    result = campaign.measure(lambda: nn.functional.conv2d(x, filters, padding=1))
    times, errors = {"dense_ms": result["ms"]}, {}
    functions = {"two_step": gpu.convolve, "fused": fused_convolution.convolve}
    functions["wide_fused"] = partial(fused_convolution.convolve, step_values=32)
    for name, convolve in functions.items():
        own_y = torch.empty_like(y)
        y_hat = convolve(plan, maps.values, weight, maps.grid)
        maps.grid.irreps_to_field(y_hat, own_y, plan.outputs, 1, 1)
        errors[f"{name}_error"] = float(
            f"{float((own_y - y).norm(dtype=torch.float32) / y.norm(dtype=torch.float32)):.3g}"
        )
        del own_y, y_hat
        run = partial(convolve, plan, maps.values, weight, maps.grid)
        times[f"{name}_ms"] = campaign.measure(run)["ms"]
    return times | errors
