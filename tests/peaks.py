"""The memory that tensors take at most, counted by the storages that are alive after every operation."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Counts bytes of storages made inside, on any device; what numpy holds is not seen."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.users = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.layout is torch.strided:
                self._hold(t)
        self.most = max(self.most, self.now)
        return out

    def _hold(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.users:
            self.users[key] = [0, storage.nbytes()]
            self.now += storage.nbytes()
        self.users[key][0] += 1
        weakref.finalize(tensor, self._drop, key)

    def _drop(self, key):
        held = self.users.get(key)
        if held is not None:
            held[0] -= 1
            if held[0] == 0:
                self.now -= held[1]
                del self.users[key]


def peak(method):
    """Return the most bytes that tensors made in a call take together."""
    with Peak() as mode:
        method()
    return mode.most
