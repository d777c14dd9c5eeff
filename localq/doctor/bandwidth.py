"""How fast this machine's processors read memory: the limit of every token that they generate."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from localq.engines.availability import available_logical_cores

_BYTES = 512 << 20  # of all cores together, beyond any cache
_ROUNDS = 5


def memory_bandwidth_bytes_per_second() -> float:
    """Bytes read per second by all cores together, the best of a few rounds; takes about half a second.

    Each core takes the maximum over an array of its own, which costs next to no arithmetic.
    """
    import numpy as np

    cores = available_logical_cores()
    arrays = [np.ones(_BYTES // cores // 8, dtype=np.int64) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, _BYTES / (time.perf_counter() - started))
    return best
