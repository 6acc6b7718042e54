"""Export a trained run for use without this package and e2cnn: `galaxyhpc export runs/SWEEP/RUN_ID OUT`.

Writes model.pt2 (`torch.export`), model.torchscript.pt, model.onnx (needs onnx, onnxscript, onnxruntime) and
model.json, a description of inputs and outputs, to a new directory OUT. Every file takes batches of any size. Each is
loaded again, and its logits are compared with those of the run's own network on galaxies of every class: if they differ
by more than 1e-5, nothing is kept and the exit status is 1. Exit status 2: the export could not be tried.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from galaxyhpc.config.class_names import GALAXY10_CLASSES
from galaxyhpc.data.simulate import render_image
from galaxyhpc.data.sources.conversion import resize
from galaxyhpc.evaluation import trained_model
from galaxyhpc.evaluation.evaluate import NotTrainedError
from galaxyhpc.evaluation.trained_model import Classifier
from galaxyhpc.runtime.console import make_console
from galaxyhpc.steerable.batch_norm import FieldBatchNorm
from galaxyhpc.steerable.layers import SteerableConv
from galaxyhpc.storage.files import OVERWRITE_HELP, check_output, sanitize, sha256, write_text
from galaxyhpc.storage.provenance import collect_provenance

GENERATED_WARNING = "GENERATED galaxies: do not rely on its predictions for real ones"
LOGIT_TOLERANCE = 1e-5  # absolute, or relative to the largest logit where that is above 1
MAX_ONNX_BYTES = 2_000_000_000  # of weights in one ONNX file; larger ones are written beside it, to model.onnx.data

LogitsFunction = Callable[[Tensor], Tensor]  # (N, 3, S, S) -> (N, K)


class ExportInputError(ValueError):
    """An output directory or a format that cannot be written."""


class LogitsMismatchError(RuntimeError):
    """An exported file whose logits differ from those of the run's own network."""


class BatchNorm(nn.BatchNorm2d):
    """Torch's own, for (N, C) as well as for (N, C, H, W)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def convert_to_torch(network: nn.Module) -> nn.Module:
    """Copy a network, in evaluation mode and main memory, into torch's own layers, without e2cnn and this package."""
    copied = copy.deepcopy(network).cpu().eval()
    _replace_layers(copied)
    return copied.eval().requires_grad_(False)


def _replace_layers(module: nn.Module) -> None:
    for name, layer in module.named_children():
        if type(layer) in LAYER_CONVERTERS:
            setattr(module, name, LAYER_CONVERTERS[type(layer)](layer))
        else:
            _replace_layers(layer)


@torch.no_grad()
def _convert_convolution(layer: SteerableConv) -> nn.Conv2d:
    filters = layer.expand_filter()
    outputs, inputs, *kernel_size = filters.shape
    convolution = nn.Conv2d(inputs, outputs, (kernel_size[0], kernel_size[1]), layer.stride, layer.padding, bias=False)
    convolution.weight.copy_(filters)
    return convolution


def _convert_batch_norm(layer: FieldBatchNorm) -> BatchNorm:
    batch_norm = BatchNorm(layer.fields * layer.size, eps=layer.eps)
    per_channel = {name: values.repeat_interleave(layer.size) for name, values in layer.state_dict().items()}
    batch_norm.load_state_dict(per_channel | {"num_batches_tracked": torch.tensor(0)})
    return batch_norm


LAYER_CONVERTERS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    SteerableConv: _convert_convolution,
    FieldBatchNorm: _convert_batch_norm,
}


def export_program(network: nn.Module, images: Tensor) -> ExportedProgram:
    """Export a network of torch's layers for batches of any size, from an example of at least two images."""
    return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


class ExportFormat(NamedTuple):
    """A file format, with functions that write it from a program and an example batch, and read it."""

    filename: str
    write: Callable[[ExportedProgram, Tensor, Path], None]
    read: Callable[[Path], LogitsFunction]
    required_packages: tuple[str, ...] = ()


def _write_export(program: ExportedProgram, images: Tensor, path: Path) -> None:
    torch.export.save(program, path)


def _read_export(path: Path) -> LogitsFunction:
    return torch.export.load(path).module()


def _write_torchscript(program: ExportedProgram, images: Tensor, path: Path) -> None:
    torch.jit.trace(program.module(), images).save(str(path))


def _read_torchscript(path: Path) -> LogitsFunction:
    loaded: LogitsFunction = torch.jit.load(str(path))
    return loaded


def _write_onnx(program: ExportedProgram, images: Tensor, path: Path) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    is_large = sum(values.nbytes for values in program.state_dict.values()) > MAX_ONNX_BYTES
    torch.onnx.export(program, (), path, dynamo=True, external_data=is_large, verbose=False, **names)


def _read_onnx(path: Path) -> LogitsFunction:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


FORMATS = {
    "export": ExportFormat("model.pt2", _write_export, _read_export),
    "torchscript": ExportFormat("model.torchscript.pt", _write_torchscript, _read_torchscript),
    "onnx": ExportFormat("model.onnx", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
}

EXPORTED_FILES = {*(file_format.filename for file_format in FORMATS.values()), "model.onnx.data", "model.json"}


def make_examples(image_size: int) -> Tensor:
    """Return a generated galaxy of each of Galaxy10's classes, (10, 3, size, size) in [0, 1]."""
    images = np.stack([render_image(label, [0, label], 128) for label in range(len(GALAXY10_CLASSES))])
    return torch.from_numpy(resize(images, image_size)).float() / 255.0


def export(
    classifier: Classifier, output_dir: Path, formats: Sequence[str], may_overwrite: bool = False
) -> dict[str, float]:
    """Write a new directory atomically; return the largest difference of a logit for each file.

    Raises
    ------
    ExportInputError, LogitsMismatchError, OSError
    """
    check_request(output_dir, formats, may_overwrite)
    images = make_examples(classifier.image_size)
    program = export_program(convert_to_torch(classifier.network), images[:2])
    with torch.inference_mode():
        expected = classifier.network(images).numpy()
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    try:
        differences = {}
        for file_format in (FORMATS[name] for name in formats):
            path = temporary / file_format.filename
            with _suppress_warnings():
                file_format.write(program, images[:2], path)
                differences[file_format.filename] = _compare_logits(
                    file_format.read(path), images, expected, file_format.filename
                )
        write_text(
            temporary / "model.json", json.dumps(describe_export(classifier, temporary, differences), indent=1) + "\n"
        )
        temporary.chmod(0o755)
        if output_dir.exists():
            os.rename(output_dir, replaced := temporary.with_name(f"{temporary.name}.replaced"))
            os.rename(temporary, output_dir)
            shutil.rmtree(replaced)
        else:
            os.rename(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return differences


def check_request(output_dir: Path, formats: Sequence[str], may_overwrite: bool) -> None:
    """Check the output directory and the packages before anything is written.

    Raises
    ------
    ExportInputError
    """
    needed = dict.fromkeys(package for name in formats for package in FORMATS[name].required_packages)
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportInputError(
            f"onnx: got no {', '.join(missing)}; expected pip install {' '.join(missing)}, or no ONNX: "
            "--formats export torchscript"
        )
    check_output(output_dir, may_overwrite)
    if output_dir.is_symlink() or (output_dir.exists() and not output_dir.is_dir()):
        raise ExportInputError(f"{sanitize(str(output_dir))}: already exists; expected a directory")
    if foreign := sorted({path.name for path in output_dir.glob("*")} - EXPORTED_FILES):
        raise ExportInputError(
            f"{sanitize(str(output_dir))}: got {sanitize(foreign[0])}; expected only files of an earlier export"
        )


def _compare_logits(compute_logits: LogitsFunction, images: Tensor, expected: NDArray[np.float32], name: str) -> float:
    """Return the largest difference of the logits of two batches, one image and the rest."""
    with torch.inference_mode():
        logits = torch.cat([compute_logits(batch) for batch in (images[:1], images[1:])]).numpy()
    difference = float(np.abs(logits - expected).max())
    tolerance = LOGIT_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= tolerance:
        raise LogitsMismatchError(
            f"{name}: got logits that differ by {difference:g} from the run's own; expected at most {tolerance:g}"
        )
    return difference


@contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Suppress the deprecation warning of TorchScript and the exporters' messages to their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def describe_export(classifier: Classifier, folder: Path, differences: dict[str, float]) -> dict[str, Any]:
    """Return the contents of model.json."""
    size, model, names = classifier.image_size, classifier.config.model, classifier.config.data.class_names
    provenance, field = collect_provenance(), trained_model.describe_field(classifier.config.data)
    return {
        "run_id": classifier.run.run_id,
        "architecture": model.name,
        "group": model.group_label or None,
        "trained_on": GENERATED_WARNING if classifier.generated else "real galaxies",
        "generated": classifier.generated,
        "input": f"images: (N, 3, {size}, {size}) float32, RGB in [0, 1], any N; {field}",
        "output": f"logits: (N, {len(names)}) float32; probabilities are softmax(logits / temperature)",
        "image_size": size,
        "temperature": classifier.temperature,  # null: the run was not evaluated; probabilities are not calibrated
        "classes": dict(enumerate(names)),
        "weights": classifier.weights,
        "commit": provenance["commit"],
        "versions": provenance["versions"],
        "files": {
            path.name: {"sha256": sha256(path), "largest_difference": differences.get(path.name)}
            for path in sorted(folder.iterdir())
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Export the run named on the command line."""
    parser = argparse.ArgumentParser(prog="galaxyhpc export", description=__doc__)
    parser.add_argument("run", type=Path, help="runs/SWEEP/RUN_ID")
    parser.add_argument("out", type=Path, help="a new directory")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="file formats (all)")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    options, console = parser.parse_args(arguments), make_console()
    try:
        check_request(options.out, options.formats, options.overwrite)
        classifier = trained_model.load(options.run, torch.device("cpu"))
        with console.status("writing and comparing") if console.is_terminal else nullcontext():
            differences = export(classifier, options.out, options.formats, options.overwrite)
    except (ValueError, OSError, NotTrainedError) as error:
        print(error, file=sys.stderr)
        return 2
    except LogitsMismatchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for name, difference in differences.items():
        console.print(f"{options.out / name}: logits agree with the run's own to {difference:.1e}", soft_wrap=True)
    console.print(f"{options.out / 'model.json'}: description of inputs and outputs", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
