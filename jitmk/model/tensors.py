"""Taking a model's tensor out of a stored one, and the way back: rows, transposition, the order of dimensions."""

from __future__ import annotations

import torch

from jitmk.model.families.base import TensorRef


def take(stored: torch.Tensor, ref: TensorRef) -> torch.Tensor:
    """The logical tensor that `ref` describes, contiguous; a view of `stored` where nothing has to be moved."""
    tensor = _part(stored, ref)
    if ref.row_order is not None:
        heads = _heads(tensor, ref)
        order = torch.tensor(ref.row_order.order(), device=tensor.device)
        tensor = heads.index_select(ref.row_order.axis + 1, order).reshape(tensor.shape)
    return tensor.contiguous()


def put(stored: torch.Tensor, ref: TensorRef, tensor: torch.Tensor) -> None:
    """Writes a logical tensor to where `take` finds it. `stored` is changed in place, and must be contiguous."""
    part = _part(stored, ref)
    if ref.row_order is None:
        part.copy_(tensor)
        return
    order = torch.tensor(ref.row_order.order(), device=stored.device)
    values = _heads(tensor.to(stored), ref)
    _heads(part, ref).index_copy_(ref.row_order.axis + 1, order, values)


def _part(stored: torch.Tensor, ref: TensorRef) -> torch.Tensor:
    """A view of the rows that are meant, as [out, in]."""
    tensor = stored.t() if ref.transpose else stored
    return tensor if ref.rows is None else tensor[slice(*ref.rows)]


def _heads(tensor: torch.Tensor, ref: TensorRef) -> torch.Tensor:
    """A view with an axis for heads and one for the dimensions of a head."""
    assert ref.row_order is not None
    axis = ref.row_order.axis
    return tensor.view(*tensor.shape[:axis], -1, ref.row_order.head_dim, *tensor.shape[axis + 1 :])
