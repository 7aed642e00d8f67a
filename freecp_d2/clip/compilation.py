"""torch.compile around a frozen encoder."""

import logging
import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)


def compiled(
    function: Callable[Concatenate[Tensor, P], R],
) -> Callable[Concatenate[Tensor, P], R]:
    """A function of tokens (B, T, W) and of frozen weights, compiled when it meets another T.

    Weights become constants of what is compiled, as they are then. One window is compiled apart
    from batches, which may be of any size.

    Raises:
        ValueError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"MODEL.CLIP.COMPILE needs a C++ compiler, and there is no {compiler}; install one, "
            "name it in CXX, or set the key to False"
        )
    run = torch.compile(function)
    lengths: set[int] = set()

    @wraps(function)
    def frozen(tokens: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        length = tokens.shape[1]
        if length not in lengths:
            lengths.add(length)
            log.info("MODEL.CLIP.COMPILE: compiling the encoder for windows of %d tokens", length)
        torch._dynamo.maybe_mark_dynamic(tokens, 0)
        # The options of torch.compile come too late: parameters would be inputs by then.
        with torch._inductor.config.patch(freezing=True):
            return run(tokens, *args, **kwargs)

    return frozen
