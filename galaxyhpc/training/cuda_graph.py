"""A training step as one CUDA graph, launched as a whole: a small network's kernels take less time than their launches.

The first steps run eagerly: kernels are loaded, workspaces and the optimizer's state allocated. Then a step is
captured, which records kernels and runs none: weights, statistics, averages and random numbers stay as they are. A
replay runs the recorded kernels on the tensors of the capture, refilled; its bits are those of an eager step, so that
a resumed run, which begins with eager steps again, loses nothing.

See torch's notes on CUDA semantics ("CUDA Graphs") for what a step has to do without: waiting for the device, values
on the host that change from step to step, the default stream. With several processes steps run eagerly:
DistributedDataParallel would need eleven eager steps, and a capture would have to succeed in all processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from galaxyhpc.runtime.distributed import Process

NUM_EAGER_STEPS = 3
# of a GPU, that a step may take for what it does not keep: a graph takes it once more, for as long as it lives, and a
# step that large keeps a GPU busy without a graph
MAX_MEMORY_FRACTION = 0.25

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]  # step -> replay, output

log = logging.getLogger(__name__)


class CaptureError(RuntimeError):
    """A step that is better run eagerly."""


@dataclass
class StepGraph:
    """Runs a step eagerly at first, then from its graph, if there is a way to capture one."""

    capture: Capture | None = None
    num_eager_steps: int = 0
    inputs: tuple[Tensor, ...] = ()  # of the capture
    output: Tensor | None = None
    replay: Callable[[], object] | None = None

    def run(self, step: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return step(*inputs); the next call may overwrite it. `inputs` have the same shapes in every call."""
        if self.replay is None and self.capture is not None and self.num_eager_steps >= NUM_EAGER_STEPS:
            self._try_capture(self.capture, step, inputs)
        if self.replay is None or self.output is None:
            self.num_eager_steps += 1
            return step(*inputs)
        for buffer, value in zip(self.inputs, inputs, strict=True):
            buffer.copy_(value)
        self.replay()
        return self.output

    def _try_capture(self, capture: Capture, step: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        """Capture a step on copies of the inputs; where that fails, run all steps eagerly and say so once."""
        buffers = tuple(value.clone() for value in inputs)
        try:
            self.replay, self.output = capture(lambda: step(*buffers))
            self.inputs = buffers
        except RuntimeError as error:
            self.capture = None
            level = logging.INFO if isinstance(error, CaptureError) else logging.WARNING
            log.log(level, "training steps run without a CUDA graph, with the same result: %s", _find_cause(error))


def prepare_capture(process: Process) -> Capture | None:
    """Return how to capture a step in this process, if at all; call it before anything is computed on the device.

    All later work of this thread is then on a stream of its own: the default stream cannot be captured.
    """
    if process.device.type != "cuda" or process.world_size > 1:
        return None
    torch.cuda.set_stream(torch.cuda.Stream(process.device))
    torch.cuda.reset_peak_memory_stats(process.device)
    return capture_cuda_graph


def capture_cuda_graph(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Capture a step on the current stream.

    Raises
    ------
    RuntimeError
        The step cannot be captured, or takes much memory.
    """
    _check_memory()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            output = step()
    except RuntimeError:
        _renew_generator()
        torch.cuda.reset_accumulated_memory_stats()  # not an allocation that failed in a step
        raise
    return graph.replay, output


def _check_memory() -> None:
    temporary = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if temporary > MAX_MEMORY_FRACTION * total:
        raise CaptureError(f"a step takes {temporary / 2**30:.1f} GiB, too large to gain from one")


def _renew_generator() -> None:
    """Give torch's generator a new state: a failed capture leaves one that refuses to draw outside of a capture."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


def _find_cause(error: BaseException) -> str:
    """Return the first line of the error that came first: the end of a failed capture fails, too."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0]
