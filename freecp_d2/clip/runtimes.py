"""Programs of torch.export as ONNX and as OpenVINO have them. Their packages are optional."""

import importlib
import re
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram


def required(package: str) -> ModuleType:
    """One of the packages of the extra "export".

    Raises:
        ValueError: it is not installed.
    """
    if package == "openvino":
        # Its telemetry would send usage to Google Analytics without asking. OpenVINO does without.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"{package} is not installed; it comes with: pip install 'freecp_d2[export]'"
        ) from None


def openvino_core() -> Any:
    """The process's openvino.Core, which stays to the end.

    Its CPU plugin gives the thread that first compiles a stack of its own for signals, and takes it
    away in the thread that drops the plugin. Were that another one, the next signal would crash.

    Raises:
        ValueError: OpenVINO is not installed.
    """
    return _core(required("openvino"))


@cache
def _core(openvino: ModuleType) -> Any:
    return openvino.Core()


def names_of(program: ExportedProgram) -> tuple[list[str], list[str]]:
    """Of the tensors that go into a program, and of those of the dict that it returns, in order."""
    outputs = program.call_spec.out_spec
    assert outputs is not None
    return list(program.graph_signature.user_inputs), list(outputs.context)


def as_onnx(program: ExportedProgram) -> "torch.onnx.ONNXProgram":
    """A program that returns a dict, for onnxruntime.

    Raises:
        ValueError: ONNX has no counterpart for it, or a package is missing.
    """
    required("onnxscript")
    inputs, outputs = names_of(program)
    try:
        converted = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs
        )
    except Exception as error:  # of any kind, by what it cannot convert
        raise ValueError(f"ONNX cannot hold it: {reason(error)}") from error
    assert converted is not None
    return converted


def as_openvino(program: ExportedProgram) -> Any:
    """A program that returns a dict, as an openvino.Model.

    Raises:
        ValueError: OpenVINO has no counterpart for it, or it is not installed.
    """
    openvino = required("openvino")
    try:
        model = openvino.convert_model(program)
    except Exception as error:
        summary = re.findall(
            r"^-- (.*operations: .*|Conversion is failed for: .*)", str(error), re.M
        )
        why = "; ".join(summary) or reason(error)
        raise ValueError(f"OpenVINO cannot hold it: {why}") from error
    for ports, names in zip((model.inputs, model.outputs), names_of(program), strict=True):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return model


def reason(error: BaseException) -> str:
    """What an exception was raised from at first, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
