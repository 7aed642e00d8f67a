"""DenseCLIP by another engine than torch, on CPUs (MODEL.CLIP.ENGINE)."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.export import ExportedProgram

from .blocks import grid_of
from .dense import DenseCLIP, DenseFeatures, Reread
from .loading import BF16_MATMUL, precision_on
from .program import Cls, Everything, Patches, WithoutAffinity, require_no_words, window_program
from .runtimes import as_onnx, as_openvino, openvino_core, required

KEPT_PROGRAMS = 4
"""So many compiled programs stay in memory; one of a ViT-B/16 takes some 900 MB."""

Run: TypeAlias = Callable[[np.ndarray], list[np.ndarray]]
"""A compiled program: pixels (N, 3, H, W) float32 -> its outputs, in order."""

log = logging.getLogger(__name__)


class EngineCLIP(DenseCLIP):
    """A DenseCLIP whose image tower runs on another engine, compiled once for every size of images.

    It computes with the weights that it had when a size was compiled. Threads take turns, on as
    many cores as torch takes.

    Args:
        model: of float32 weights, on the CPU.
        engine: one of :data:`ENGINES`.
        bf16: compute in bfloat16.
        The rest is DenseCLIP's.

    Raises:
        ValueError: as DenseCLIP; a base method that reads the words, a package that is missing, or
            bfloat16 where the engine has none.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        method: str = "clearclip",
        *,
        engine: str,
        bf16: bool = False,
        affinity: str = "attention",
        **method_options: Any,
    ):
        super().__init__(model, method, affinity=affinity, **method_options)
        in_torch = DenseCLIP(model, method, affinity=affinity, **method_options)
        require_no_words(in_torch)
        self.engine = engine
        self.precision = "bf16" if bf16 else "fp32"
        self._program = partial(window_program, in_torch)
        self._compile = ENGINES[engine](bf16)
        self._runs: OrderedDict[tuple[type[Everything], tuple[int, int]], Run] = OrderedDict()
        self._lock = threading.Lock()

    def forward(self, images: Tensor, affinity: Tensor | None = None) -> DenseFeatures:
        """As :meth:`DenseCLIP.forward`.

        Raises:
            ValueError: images smaller than a patch, or not on the CPU; a base method that the
                engine cannot run.
        """
        if affinity is None:
            patches, cls, affinity = self._run_on_engine(Everything, images)
        else:
            patches, cls = self._run_on_engine(WithoutAffinity, images)
        return DenseFeatures(patches, cls, affinity, grid_of(self.model.visual, images))

    def encode_dense(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Reread | None]:
        """As :meth:`DenseCLIP.encode_dense`, and raises as :meth:`forward`."""
        (patches,) = self._run_on_engine(Patches, images)
        return patches, grid_of(self.model.visual, images), None

    def encode_cls(self, images: Tensor) -> Tensor:
        """As :meth:`DenseCLIP.encode_cls`, and raises as :meth:`forward`."""
        (cls,) = self._run_on_engine(Cls, images)
        return cls

    def _run_on_engine(self, reading: type[Everything], images: Tensor) -> list[Tensor]:
        if images.device.type != "cpu":
            raise ValueError(_not_on(self.engine, images.device))
        height, width = images.shape[2:]
        key = reading, (height, width)
        with self._lock:
            if key not in self._runs:
                self._runs[key] = self._compiled(*key)
                if len(self._runs) > KEPT_PROGRAMS:
                    self._runs.popitem(last=False)
                    _say_that_sizes_are_many()
            self._runs.move_to_end(key)
            outputs = self._runs[key](images.detach().float().contiguous().numpy())
        return [torch.from_numpy(output) for output in outputs]

    def _compiled(self, reading: type[Everything], size: tuple[int, int]) -> Run:
        start = time.perf_counter()
        log.info("%s compiles the encoder for images of %dx%d pixels", self.engine, *size)
        program = self._program(size, reading)
        try:
            run = self._compile(program)
        except ValueError as error:
            raise ValueError(
                f"MODEL.CLIP.METHOD {self.method} cannot run on MODEL.CLIP.ENGINE {self.engine} "
                f"({error}); set MODEL.CLIP.ENGINE torch"
            ) from error
        log.info("it took %.1f s, once for this size", time.perf_counter() - start)
        return run


def bf16_on(engine: str, precision: str, device: str | torch.device) -> bool:
    """Whether an engine computes in bfloat16, else in float32, by MODEL.CLIP.PRECISION.

    Args:
        engine: MODEL.CLIP.ENGINE, other than torch.
        precision: fp32; bf16 or bf16_matmul, which mean the same to OpenVINO; or auto: with
            onnxruntime fp32, with OpenVINO bf16 on CPUs where it means bf16_matmul to torch.

    Raises:
        ValueError: no such engine, another device than the CPU, or a precision that it has not.
    """
    if engine not in ENGINES:
        raise ValueError(
            f"MODEL.CLIP.ENGINE is {engine!r}; choose one of {', '.join(('torch', *ENGINES))}"
        )
    device = torch.device(device)
    if device.type != "cpu":
        raise ValueError(_not_on(engine, device))
    if engine == "onnxruntime" and precision == "auto":
        return False
    precision = precision_on(precision, device)
    known = PRECISIONS[engine]
    if precision not in known:
        raise ValueError(
            f"MODEL.CLIP.PRECISION is {precision}, which MODEL.CLIP.ENGINE {engine} has not; "
            f"choose {' or '.join(known)}"
        )
    return precision != "fp32"


def _not_on(engine: str, device: torch.device) -> str:
    return (
        f"MODEL.CLIP.ENGINE {engine} runs on CPUs, not on {device.type}; set MODEL.CLIP.ENGINE "
        "torch, or MODEL.DEVICE cpu"
    )


@cache
def _say_that_sizes_are_many() -> None:
    log.warning(
        "images of more than %d sizes: each is compiled anew when it comes again; set "
        "MODEL.FREECP.WINDOW and STRIDE, so that windows have one size, or MODEL.CLIP.ENGINE torch",
        KEPT_PROGRAMS,
    )


def _openvino(bf16: bool) -> Callable[[ExportedProgram], Run]:
    core = openvino_core()
    if bf16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError(
            "MODEL.CLIP.PRECISION is bf16, for which this CPU has no units; choose fp32"
        )

    def compiled(program: ExportedProgram) -> Run:
        model = core.compile_model(
            as_openvino(program),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                # It would bind the threads of every process to the same cores.
                "ENABLE_CPU_PINNING": False,
            },
        )
        return lambda pixels: list(model(pixels).values())

    return compiled


def _onnxruntime(bf16: bool) -> Callable[[ExportedProgram], Run]:
    onnxruntime = required("onnxruntime")
    required("onnxscript")
    if bf16:
        raise ValueError(
            "MODEL.CLIP.PRECISION is bf16, which MODEL.CLIP.ENGINE onnxruntime has not; choose fp32"
        )

    def compiled(program: ExportedProgram) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with TemporaryDirectory() as folder:  # a model of more than 2 GB is files, never bytes
            path = Path(folder) / "encoder.onnx"
            as_onnx(program).save(path)
            session = onnxruntime.InferenceSession(path, options)
        return lambda pixels: session.run(None, {"pixels": pixels})

    return compiled


ENGINES: dict[str, Callable[[bool], Callable[[ExportedProgram], Run]]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}
"""Name -> what compiles programs, in bfloat16 or not."""
PRECISIONS: dict[str, tuple[str, ...]] = {
    "openvino": ("fp32", "bf16", BF16_MATMUL),
    "onnxruntime": ("fp32",),
}
"""Engine -> what MODEL.CLIP.PRECISION may be with it, besides auto."""
