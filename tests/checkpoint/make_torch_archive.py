"""Writes `torch_archive.bin` with PyTorch, which the tests do not need; run by hand where torch is installed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("torch_archive.bin")


def values(*shape: int) -> np.ndarray:
    """Numbers that every float dtype holds exactly."""
    count = int(np.prod(shape, dtype=int))
    return ((np.arange(count) * 7 % 23 - 11) / 4).astype(np.float32).reshape(shape)


EXPECTED: dict[str, np.ndarray] = {
    "linear.weight": values(4, 3),
    "linear.bias": values(4),
    "float32": values(6, 4),
    "float16": values(3, 5).astype(np.float16),
    "bfloat16": (values(5, 3).view(np.uint32) >> 16).astype(np.uint16),
    "int64": np.arange(-3, 4) * 10**12,
    "uint16": np.arange(5, dtype=np.uint16),
    "scalar": values(1).reshape(()),
    "parameter": values(2, 7),
    "tied": values(6, 4),
    "rows": values(6, 4)[2:5],
    "transposed": values(6, 4).T,
    "columns": values(6, 4)[:, 1:3],
    "column": values(6, 4)[:, 2],
    "every_second": values(6, 4)[::2, ::2],
    "transposed_bfloat16": (values(5, 3).view(np.uint32) >> 16).astype(np.uint16).T,
    "empty": values(0, 4),
    "cube": values(2, 3, 4),
}
"""What localq must read: bfloat16 as its bits. `tied` to `every_second` are views of the storage of `float32`."""


def state_dict() -> dict[str, Any]:
    """The same tensors in PyTorch, in a state dict as a module gives it."""
    import torch

    module = torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 4)})
    state: OrderedDict[str, Any] = module.state_dict()
    assert hasattr(state, "_metadata")
    state["linear.weight"].copy_(torch.from_numpy(values(4, 3)))
    state["linear.bias"].copy_(torch.from_numpy(values(4)))
    base = torch.from_numpy(values(6, 4))
    bfloat16 = torch.from_numpy(values(5, 3)).to(torch.bfloat16)
    state.update(
        float32=base,
        float16=torch.from_numpy(values(3, 5)).to(torch.float16),
        bfloat16=bfloat16,
        int64=torch.arange(-3, 4) * 10**12,
        uint16=torch.arange(5).to(torch.uint16),
        scalar=torch.from_numpy(values(1))[0].clone(),
        parameter=torch.nn.Parameter(torch.from_numpy(values(2, 7))),
        tied=base,
        rows=base[2:5],
        transposed=base.t(),
        columns=base[:, 1:3],
        column=base[:, 2],
        every_second=base[::2, ::2],
        transposed_bfloat16=bfloat16.t(),
        empty=torch.zeros(0, 4),
        cube=torch.from_numpy(values(2, 3, 4)),
    )
    return state


def main() -> None:
    import torch

    torch.save(state_dict(), FILE)
    loaded = torch.load(FILE, weights_only=True)
    assert list(loaded) == list(EXPECTED)
    for name, tensor in loaded.items():
        seen = tensor.detach()
        bits = seen.view(torch.int16).numpy().view(np.uint16) if seen.dtype == torch.bfloat16 else seen.numpy()
        np.testing.assert_array_equal(bits, EXPECTED[name], strict=True)


if __name__ == "__main__":
    main()
