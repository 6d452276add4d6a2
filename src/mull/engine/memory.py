"""Key/value memory, and attention over it: the `attend` that the engine passes to the transformer.

Two implementations of one idea: `NativePages` (float32 on CPU, a C++ kernel that reads pages in place) and
`TorchPages` (any device and dtype; gathers a sequence's pages, then torch's attention).
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
import torch.nn.functional as F

from mull.engine import native
from mull.engine.pages import PAGE, Rows
from mull.models.config import ModelConfig
from mull.models.transformer import Attend


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers, keys and values."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * PAGE * dtype.itemsize


def default_bytes(device: torch.device) -> int:
    """Of keys and values, where nobody says: 2 GiB on the CPU, half of what is free on a GPU."""
    if device.type == "cpu":
        return 2 << 30
    # What torch has taken from the driver and nobody uses any more (an engine that is gone) is free as well.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) // 2


class NativePages:
    """Keys [L, pages, K, D, 16] and values [L, pages, K, 16, D] in float32, whatever the model computes in."""

    def __init__(self, config: ModelConfig, num_pages: int, library: ctypes.CDLL):
        if config.head_dim % 16:
            raise ValueError(f"the kernel's vectors are 16 wide and the heads {config.head_dim}: use TorchPages")
        self.config, self.library = config, library
        shape = (config.num_layers, num_pages, config.num_kv_heads * config.head_dim * PAGE)
        # numpy's zeros are mapped on first use: pages that were never touched cost no memory. torch writes its own.
        self.keys, self.values = (torch.from_numpy(np.zeros(shape, np.float32)) for _ in range(2))

    def copy(self, copies: list[tuple[int, int]]) -> None:
        """Copies pages, [(from, to), …], in one go: what is copied is what lay there before."""
        source, target = np.array(copies).T
        for pool in (self.keys.numpy(), self.values.numpy()):  # numpy's is 4 times as fast here as torch's
            pool[:, target] = pool[:, source]

    def attend(self, rows: Rows) -> Attend:
        c, lib = self.config, self.library
        slots = np.ascontiguousarray(rows.slot_N, dtype=np.int32)
        lengths = np.ascontiguousarray(rows.position_N + 1, dtype=np.int32)
        table, stride, n = rows.table, rows.table.shape[1], len(slots)

        def attend(layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.detach().float().contiguous() for x in (q_NHD, k_NKD, v_NKD))
            out = torch.empty_like(q)
            keys, values = self.keys[layer].data_ptr(), self.values[layer].data_ptr()
            where = (table.ctypes.data, stride, slots.ctypes.data, lengths.ctypes.data)
            lib.write_pages(k.data_ptr(), v.data_ptr(), keys, values, *where, n, c.num_kv_heads, c.head_dim)
            window = (c.sliding_window[layer] if c.sliding_window else None) or 0
            shape = (n, c.num_heads, c.num_kv_heads, c.head_dim, window, c.head_dim**-0.5)
            lib.paged_attention(q.data_ptr(), keys, values, *where, out.data_ptr(), *shape)
            return out.to(q_NHD.dtype)

        return attend


class TorchPages:
    """Keys and values [L, pages * 16, K, D] in the model's dtype on its device."""

    def __init__(self, config: ModelConfig, num_pages: int, dtype: torch.dtype, device: torch.device):
        self.config, self.device = config, device
        shape = (config.num_layers, num_pages * PAGE, config.num_kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def copy(self, copies: list[tuple[int, int]]) -> None:
        """See `NativePages.copy`."""
        source, target = torch.tensor(copies, device=self.device).T
        for pool in (self.keys, self.values):
            pages = pool.unflatten(1, (-1, PAGE))
            pages[:, target] = pages[:, source]

    def attend(self, rows: Rows) -> Attend:
        n = np.arange(len(rows.slot_N))
        page = rows.table[rows.slot_N, rows.position_N // PAGE].astype(np.int64)
        write_N = torch.from_numpy(page * PAGE + rows.position_N % PAGE).to(self.device)
        starts = np.flatnonzero(np.r_[True, rows.slot_N[1:] != rows.slot_N[:-1]])
        ends = np.r_[starts[1:], len(n)]
        single = ends - starts == 1
        # All decoding rows together, each prefill by itself: padding one to the other would waste most of the work.
        groups = [starts[single][:, None]] if single.any() else []
        groups += [n[None, s:e] for s, e in zip(starts[~single], ends[~single], strict=True)]
        plans = [self._plan(rows, group_ST) for group_ST in groups]

        def attend(layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[write_N] = k_NKD.to(keys.dtype)
            values[write_N] = v_NKD.to(values.dtype)
            out = torch.empty_like(q_NHD)
            window = self.config.sliding_window[layer] if self.config.sliding_window else None
            for row_ST, read_SU, distance_STU in plans:
                mask = distance_STU >= 0 if window is None else (distance_STU >= 0) & (distance_STU < window)
                q = q_NHD[row_ST].transpose(1, 2)
                k, v = (x[read_SU].transpose(1, 2).to(q.dtype) for x in (keys, values))
                gqa = q.shape[1] != k.shape[1]
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=gqa)
                out[row_ST] = attended.transpose(1, 2)
            return out

        return attend

    def _plan(self, rows: Rows, row_ST: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(rows of the queries [S, T], memory cells of the keys [S, U], query minus key position [S, T, U])."""
        position_ST = rows.position_N[row_ST]
        u = np.arange(position_ST.max() + 1)
        read_SU = rows.table[rows.slot_N[row_ST[:, 0]]][:, u // PAGE].astype(np.int64) * PAGE + u % PAGE
        distance = torch.from_numpy(position_ST).to(self.device)[..., None] - torch.from_numpy(u).to(self.device)
        return torch.from_numpy(row_ST).to(self.device), torch.from_numpy(read_SU.clip(0)).to(self.device), distance


def make_pages(
    config: ModelConfig, num_pages: int, dtype: torch.dtype, device: torch.device
) -> NativePages | TorchPages:
    # The kernel's vectors are 16 wide.
    library = native.load()[0] if device.type == "cpu" and config.head_dim % 16 == 0 else None
    if library is not None:
        return NativePages(config, num_pages, library)
    return TorchPages(config, num_pages, dtype, device)
