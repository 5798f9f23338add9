"""Distances inside clouds: many fast ones from matrix products with a bound on their error, and exact ones."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

TOLERANCE = 1e-9  # largest relative error of a squared distance that is not worth computing again


def candidates(
    points: Tensor, valid: Tensor | None, count: Tensor, wide: int, products: torch.dtype, memory: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``wide`` smallest squared distances from matrix products and their places, ascending, and the norms.

    Coordinates are taken some at a time, centred in float64.  Where the matrix of all products fits, only its upper
    triangle is computed, in strips of rows; elsewhere whole rows, some at a time.
    """
    n_clouds, n, dim = points.shape
    on_cpu = points.device.type == "cpu"
    row_bytes = n_clouds * n * products.itemsize
    whole = n * row_bytes <= memory
    depth = max(256, 2**21 // n) if on_cpu else dim  # 16 MB of coordinates stay near the processor
    if whole:
        step, tall = (128 if n < 1024 else 256, 256) if on_cpu else (4096, n)
    else:
        step = tall = max(1, memory // row_bytes)
    strips = [(i, min(i + step, n)) for i in range(0, n, step)]
    matrix = torch.empty(n_clouds, n if whole else strips[0][1], n, dtype=products, device=points.device)
    norms = torch.zeros(n_clouds, n, dtype=torch.float64, device=points.device)
    squared, order = [], []
    for group in [strips] if whole else [[s] for s in strips]:
        start, stop = group[0][0], group[-1][1]
        for a in range(0, dim, depth):
            x = points[..., a : a + depth].to(torch.float64, copy=True)
            if valid is not None:
                x.masked_fill_(~valid[..., None], 0.0)
            x -= x.sum(1, keepdim=True) / count.clamp(min=1)[:, None, None]
            if start == 0:
                norms += torch.linalg.vector_norm(x, dim=-1).square()
            x = x.to(products)
            for i, j in group:
                left = i if whole else 0
                rows = matrix[:, i - start : j - start, left:]
                torch.baddbmm(rows, x[:, i:j], x[:, left:].mT, beta=float(a > 0), alpha=-2, out=rows)
            del x  # so that the next part takes its place
        for i, j in group if whole else []:
            matrix[:, j:, i:j] = matrix[:, i:j, j:].mT
        other = norms[:, None].to(products)
        for i in range(start, stop, tall):
            rows = matrix[:, i - start : min(i + tall, stop) - start]
            rows += other
            rows.diagonal(offset=i, dim1=1, dim2=2).fill_(torch.inf)  # not "drop column 0": ties may stand there
            if valid is not None:
                rows.masked_fill_(~valid[:, None], torch.inf)
            values, places = smallest(rows, wide)
            squared.append(values.double() + norms[:, i : i + rows.shape[1], None])
            order.append(places)
    if len(squared) == 1:
        return squared[0], order[0], norms
    return torch.cat(squared, 1), torch.cat(order, 1), norms


def smallest(rows: Tensor, wide: int) -> tuple[Tensor, Tensor]:
    """Return the ``wide`` smallest entries of each row (cloud, row, column), ascending, and their columns.

    In float32 on few threads of a CPU numpy's partition finds the largest of them in half the time of topk.
    """
    alone = rows.device.type == "cpu" and torch.get_num_threads() <= 2
    if not alone or rows.dtype is not torch.float32 or wide >= rows.shape[-1]:
        return rows.topk(wide, largest=False)
    table = rows.numpy()
    ordered = table.copy()
    ordered.partition(wide - 1, axis=-1)
    places = (table <= ordered[..., wide - 1 : wide]).reshape(-1).nonzero()[0]
    if len(places) != wide * rows[..., 0].numel():  # others at the same distance as the last, or NaN
        return rows.topk(wide, largest=False)
    order = torch.from_numpy(places).view(*rows.shape[:-1], wide) % rows.shape[-1]
    values, by = rows.gather(-1, order).sort(dim=-1, stable=True)
    return values, order.gather(-1, by)


def measure(
    points: Tensor, valid: Tensor | None, cloud: Tensor, point: Tensor, places: Tensor | None, wide: int, memory: int
) -> tuple[Tensor, Tensor]:
    """Return the ``wide`` smallest squared distances by explicit differences and their places, ties by place.

    ``cloud`` and ``point`` (row,) name the points; ``places`` (row, candidate) ascending, or None for all points.
    """
    n, dim = points.shape[1:]
    if places is None:
        places = torch.arange(n, device=points.device, dtype=torch.int64).expand(len(cloud), n)
    width = places.shape[1]
    budget = min(memory, 2**24) if points.device.type == "cpu" else memory  # small blocks stay in the cache
    columns = min(width, max(1, budget // (32 * dim)))
    step = max(1, budget // (32 * max(dim, width) * columns))
    squared = points.new_empty(len(cloud), wide, dtype=torch.float64)
    order = cloud.new_empty(len(cloud), wide)
    for i in range(0, len(cloud), step):
        c, p, to = cloud[i : i + step, None], point[i : i + step, None], places[i : i + step]
        here = points[c, p].double()
        parts = [torch.linalg.vector_norm(points[c, j].double() - here, dim=-1) for j in to.split(columns, 1)]
        fresh = torch.cat(parts, 1).square().masked_fill(to == p, torch.inf)
        if valid is not None:
            fresh = fresh.masked_fill(~valid[c, to], torch.inf)
        fresh, by = fresh.sort(dim=-1, stable=True)
        squared[i : i + step] = fresh[:, :wide]
        order[i : i + step] = to.gather(1, by)[:, :wide]
    return squared, order


def error(norms: Tensor, dim: int, products: torch.dtype, largest: Tensor | None = None) -> tuple[Tensor, float]:
    """Return ``own`` and ``part``: a squared distance from products errs by at most own + part * squared distance.

    The bound is unit * (|x|^2 + |y|^2), and |y|^2 <= 2 |x|^2 + 2 distance^2 makes it one for each row; what falls below
    the smallest numbers of the dtype comes on top.  It is inf where the ``largest`` squared norm (by default along the
    last axis) may leave the range of the dtype.
    """
    limits = torch.finfo(products)
    unit = 1.01 * limits.eps / 2 * 8 * (dim**0.5 + 1)
    largest = norms.amax(-1, keepdim=True) if largest is None else largest
    own = 3 * unit * norms + 4 * (dim + 1) * limits.tiny
    return own.where(largest < limits.max / 4, torch.inf), 2 * unit


def close(squared: Tensor, own: Tensor, part: float) -> Tensor:
    """Return (cloud, point, rank) whether the order of a neighbour and the next one is left open by the error."""
    gap = torch.sub(squared[..., 1:] * (1 - part), squared[..., :-1], alpha=1 + part)
    return gap <= 2 * own[..., None]  # a missing neighbour is at inf; inf - inf is NaN, which compares false


def refine(points: Tensor, squared: Tensor, order: Tensor, norms: Tensor, ranks: list[int]) -> Tensor:
    """Replace the distances of one cloud that matter at some ranks by those of float64 products, and sort again.

    A rank matters together with all candidates that cannot be told from it.  Returns (cloud, point) whether the
    float64 products decide everything at these ranks; elsewhere explicit differences have to.
    """
    n, dim = points.shape[1:]
    apart = ~close(squared, *error(norms, dim, torch.float32))[0]
    run = torch.zeros_like(order[0])  # candidates that cannot be told apart have one number
    run[:, 1:] = apart.cumsum(1)
    matter = torch.zeros_like(run, dtype=torch.bool)
    matter.scatter_(1, run[:, [r - 1 for r in ranks]], True)
    matter = matter.gather(1, run)
    number = matter.sum(1)
    place = order[0][matter]
    start = torch.cat([number.new_zeros(1), number.cumsum(0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Sparse CSR tensor support is in beta state"
        pairs = torch.sparse_csr_tensor(start, place, torch.zeros_like(place, dtype=torch.float64), (n, n))
    for a in range(0, dim, 128):
        x = points[0, :, a : a + 128].double()
        x -= x.mean(0)
        pairs = torch.sparse.sampled_addmm(pairs, x, x.T)
    row = torch.repeat_interleave(number)
    squared[0][matter] = norms[0, row] + norms[0, place] - 2 * pairs.values()
    squared[0], by = squared[0].sort(-1)
    order[0], matter = order[0].gather(1, by), matter.gather(1, by)
    own, part = error(norms, dim, torch.float64)
    unsure = close(squared, own, part)[0] & matter[:, 1:] & matter[:, :-1]
    smallest = torch.where(matter, squared[0], torch.inf).amin(1)
    squared.clamp_(min=0)
    return (~unsure.any(1) & (smallest * (TOLERANCE - part) >= own[0]))[None]
