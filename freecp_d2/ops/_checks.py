"""Argument checks that the operators share."""

from torch import Tensor


def require_shape(op: str, name: str, tensor: Tensor, *dims: str) -> None:
    """Raise ValueError unless `tensor` is floating, has these dimensions and no empty matrices."""
    if (
        tensor.ndim != len(dims)
        or 0 in tensor.shape[-2:]
        or not tensor.is_floating_point()
        or (dims[-1] == dims[-2] and tensor.shape[-1] != tensor.shape[-2])
    ):
        raise ValueError(
            f"{op}: {name} must be a floating-point tensor ({', '.join(dims)}), "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
