"""What moves between the host and a device, and where the host waits: :func:`to_host` alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def is_accelerator(device: torch.device) -> bool:
    """Whether every call on the device is a launch, and every value that is read a wait."""
    return device.type != "cpu"


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The tensors as float32 arrays by one transfer: their device is waited for once."""
    flat = torch.cat([tensor.flatten().float() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    arrays = np.split(flat, ends[:-1])
    return [array.reshape(tensor.shape) for array, tensor in zip(arrays, tensors, strict=True)]


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Tensors of the arrays on `device`, by one upload and without waiting for it."""
    starts = np.cumsum([0] + [array.nbytes + -array.nbytes % 8 for array in arrays]).tolist()
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    places = [
        slice(start, start + array.nbytes) for start, array in zip(starts, arrays, strict=False)
    ]
    for place, array in zip(places, arrays, strict=True):
        packed.numpy()[place] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    packed = upload(packed, device)
    return [
        packed[place].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for place, array in zip(places, arrays, strict=True)
    ]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`, in its own dtype and without waiting for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
