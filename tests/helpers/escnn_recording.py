"""Networks of escnn as data, so that they can be accelerated where escnn cannot be installed.

A module is recorded as its class, its attributes, parameters and buffers, and those of the modules it holds; replayed
it is one of a class of the same name that cannot compute. The script `record_escnn.py` records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Arrays = dict[str, np.ndarray]
CLASSES = ("group.CyclicGroup", "group.DihedralGroup", "group.SO2", "group.O2", "group.Representation")
EquivariantModule = type("EquivariantModule", (nn.Module,), {"__module__": "escnn.nn.modules.equivariant_module"})


class FieldType(SimpleNamespace):
    """What a type of escnn tells of itself."""


FieldType.__module__ = "escnn.nn.field_type"


def record(module: Any, arrays: Arrays, prefix: str) -> dict[str, Any]:
    """Return a module in JSON, with its tensors in `arrays`."""
    tensors = {**module._parameters, **module._buffers}
    derived = ("filter", "expanded_bias") if hasattr(module, "expand_parameters") else ()
    for name, value in tensors.items():
        if value is not None and name not in derived:
            arrays[f"{prefix}.{name}"] = value.detach().numpy()
    skipped = {"_parameters", "_buffers", "_modules", "basis", "points"}
    attributes = {name: value for name, value in vars(module).items() if name not in skipped}
    return {
        "class": [type(module).__module__, type(module).__name__],
        "attributes": {name: encode(value) for name, value in attributes.items() if is_encoded(value)},
        "parameters": [name for name, value in module._parameters.items() if value is not None],
        "buffers": [name for name in module._buffers if f"{prefix}.{name}" in arrays],
        "modules": {name: record(part, arrays, f"{prefix}.{name}") for name, part in module._modules.items()},
    }


def is_encoded(value: Any) -> bool:
    """Whether an attribute is recorded."""
    kinds = (int, float, bool, str, list, tuple, dict, type(None), type(torch.relu))
    return type(value) in kinds or hasattr(value, "gspace")


def encode(value: Any) -> Any:
    """Return an attribute in JSON."""
    if hasattr(value, "gspace"):
        return {"fields": [encode(representation) for representation in value.representations]}
    if hasattr(value, "change_of_basis"):
        sizes = [value.group.irrep(*irrep).size for irrep in value.irreps]
        keys = {"name": value.name, "size": value.size, "irreps": value.irreps, "sizes": sizes}
        kinds = sorted(value.supported_nonlinearities)
        return {"representation": {**keys, "kinds": kinds, "change": value.change_of_basis.tolist()}}
    if isinstance(value, type(torch.relu)):
        return {"function": value.__name__}
    if isinstance(value, Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(part)] for key, part in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [encode(part) for part in value]}
    if isinstance(value, list):
        return [encode(part) for part in value]
    return value if type(value) in (int, float, bool, str, type(None)) else None


def decode(value: Any) -> Any:
    """Return an attribute that was recorded."""
    if isinstance(value, list):
        return [decode(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "function":
        return getattr(torch, content)
    if kind == "tensor":
        return torch.tensor(content, dtype=torch.int64)  # of indices
    if kind == "dict":
        return {decode(key): decode(part) for key, part in content}
    if kind == "tuple":
        return tuple(decode(part) for part in content)
    if kind == "fields":
        fields = [decode(part) for part in content]
        return FieldType(representations=fields, size=sum(field.size for field in fields))
    irreps = [tuple(irrep) for irrep in content["irreps"]]
    sizes = dict(zip(irreps, content["sizes"], strict=True))
    group = SimpleNamespace(irrep=lambda *key: SimpleNamespace(size=sizes[key]))
    change, kinds = np.array(content["change"]), set(content["kinds"])
    names = {"name": content["name"], "size": content["size"], "irreps": irreps, "group": group}
    return SimpleNamespace(**names, change_of_basis=change, supported_nonlinearities=kinds)


def replay(recorded: dict[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> Any:
    """Return a module with what was recorded of one."""
    library, name = recorded["class"]
    bases = EquivariantModule if library.startswith("escnn") else nn.Module
    expansion = property(lambda module: module._basisexpansion)
    module = type(name, (bases,), {"__module__": library, "basisexpansion": expansion})()
    for key, value in recorded["attributes"].items():
        module.__dict__[key] = decode(value)
    tensors = {key: torch.tensor(arrays[f"{prefix}.{key}"]) for key in recorded["parameters"] + recorded["buffers"]}
    for key, value in tensors.items():
        if key in recorded["buffers"]:
            module.register_buffer(key, value)
        else:
            module.register_parameter(key, nn.Parameter(value, requires_grad=key != "mask"))
    for key, part in recorded["modules"].items():
        module.add_module(key, replay(part, arrays, f"{prefix}.{key}"))
    return module


def save(path: Path, networks: dict[str, tuple[Any, Tensor, dict[str, Tensor]]]) -> None:
    """Write networks, each with an input and what it computes."""
    arrays: Arrays = {}
    recorded = {}
    for name, (network, x, expected) in networks.items():
        recorded[name] = record(network, arrays, name)
        arrays |= {f"{name}/{key}": value.numpy() for key, value in {"x": x, **expected}.items()}
    np.savez_compressed(path, json=np.array(json.dumps(recorded)), **arrays)


def load(path: Path, name: str) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Return a network that cannot compute, an input, and what the network computed."""
    with np.load(path) as file:
        network = replay(json.loads(str(file["json"]))[name], file, name)
        keys = [key for key in file.files if key.startswith(f"{name}/")]
        values = {key.removeprefix(f"{name}/"): torch.tensor(file[key]) for key in keys}
    return network, values.pop("x"), values


@contextmanager
def stand_in_for_escnn() -> Iterator[None]:
    """Let escnn be importable, with nothing in it but the names of classes."""
    modules = {name: ModuleType(name) for name in ("escnn", "escnn.group", "escnn.gspaces", "escnn.nn")}
    for name in (*CLASSES, "gspaces.GSpace2D"):
        folder, class_name = name.split(".")
        setattr(modules[f"escnn.{folder}"], class_name, type(class_name, (), {"__module__": f"escnn.{folder}"}))
    modules["escnn.nn"].FieldType = FieldType  # type: ignore[attr-defined]
    absent = modules.keys() - sys.modules.keys()
    sys.modules.update({name: modules[name] for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
