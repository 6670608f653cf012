"""One matrix: which weights stay, which codes they get, and how the others make up for what that spoils.

What is minimised is the squared error of the matrix's output over the calibration's inputs, sum over rows of
(w - v) G (w - v)^T, with the inputs' Gram matrix G = X^T X.

- "sparsegpt": columns are pruned and rounded one after the other, and each passes its error on to those that follow, by
  the Cholesky factor of the inverse Gram matrix (SparseGPT, arXiv 2301.00774, and GPTQ, arXiv 2210.17323, in one pass).
  Scales are then fitted anew, all groups of a row at once.
- "wanda": |w| times the norm of its input says what stays (Sun et al., arXiv 2306.11695); codes are the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from hetrun.compress.encode import GROUP, Array, Codes, integer_scales

Method = Literal["sparsegpt", "wanda"]
METHODS: tuple[Method, ...] = ("sparsegpt", "wanda")

DAMPING = 0.01  # of the mean of G's diagonal, as SparseGPT and GPTQ have it
LOUDEST = 4.0
SHRINKS = np.linspace(0.3, 1.0, 15)  # of the scale that clips nothing
_ROWS = 256  # whose scales are fitted at once


@dataclass(frozen=True)
class Solution:
    """values: float32 [n_out, n_in], what the matrix has become.   codes: where it was quantised.

    error: the loss over that of a matrix of zeros, 0 to about 1.
    """

    values: Array
    codes: Codes | None
    error: float


class Gram:
    """G = X^T X of the inputs of matmuls, and what follows from it, found once for all that read them."""

    @classmethod
    def of(cls, inputs: Array) -> Gram:
        """Of inputs [n_tokens, n_in]. A token counts at most as `LOUDEST` median ones do: the first of a text may be
        a thousand times as large as the others, which norms behind it take back, and would alone decide."""
        squares = np.einsum("ij,ij->i", inputs, inputs)
        most = LOUDEST * float(np.median(squares))
        loud = squares > most
        if most > 0 and loud.any():
            inputs = inputs.copy()
            inputs[loud] *= np.sqrt(most / squares[loud])[:, None]
        return cls(inputs.T @ inputs)

    def __init__(self, values: Array) -> None:
        """values: [n_in, n_in]."""
        self.values = values.astype(np.float32)
        self.diagonal = values.diagonal().astype(np.float64)
        mean = float(self.diagonal.mean())
        self.damping = DAMPING * mean if mean > 0 else 1.0

    @cached_property
    def damped(self) -> Array:
        return self.values + np.eye(len(self.values), dtype=np.float32) * np.float32(self.damping)

    @cached_property
    def factor(self) -> Array:
        """Upper triangular U with (G + damping)^-1 = U^T U.   float32."""
        inverse = np.linalg.inv(self.damped.astype(np.float64))
        return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T).astype(np.float32)

    def loss(self, m: Array) -> float:
        """Sum over the rows of m G m^T.   m: [n, n_in]."""
        return float(((m @ self.values) * m).sum(dtype=np.float64))


def solve(weight: Array, gram: Gram, *, prune: bool, quantise: bool, method: Method) -> Solution:
    """Prunes 2 of each 4 weights of a row, gives groups of 64 codes of 2 bits, or both.

    weight: float32 [n_out, n_in], n_in a multiple of 64.
    """
    if method == "wanda":
        columns = _Columns(weight, np.maximum(gram.diagonal, 1e-12), None)
    else:
        columns = _Columns(weight, 1 / gram.factor.diagonal().astype(np.float64) ** 2, gram.factor)
    columns.run(prune, quantise)
    kept = columns.kept.T if prune else None
    if not quantise:
        values = np.ascontiguousarray(columns.values.T)
        return Solution(values, None, _relative_error(weight, values, gram))
    scales = columns.scales.T.astype(np.float64)
    zero, code = columns.zero.T, columns.code.T
    levels = code.astype(np.float32) - np.repeat(zero, GROUP, axis=1).astype(np.float32)
    if kept is not None:
        levels *= kept
    if method == "sparsegpt":
        scales = _fitted_scales(weight, gram, levels, scales)
    integers, row_scale = integer_scales(scales)
    values = levels * np.repeat(row_scale[:, None] * integers.astype(np.float32), GROUP, axis=1)
    return Solution(values, Codes(code, kept, integers, zero, row_scale), _relative_error(weight, values, gram))


class _Columns:
    """The pass over the columns. All arrays are transposed, [n_in, n_out]: a column of the matrix is contiguous."""

    def __init__(self, weight: Array, importance: Array, factor: Array | None) -> None:
        """importance: of each column.   factor: U, G^-1 = U^T U, where errors are passed on."""
        self.left = np.ascontiguousarray(weight.T)  # what is still to be done, with the errors passed on so far
        self.factor = factor
        self.importance = importance
        n_in, n_out = self.left.shape
        self.values = np.zeros((n_in, n_out), np.float32)
        self.kept = np.ones((n_in, n_out), bool)
        self.code = np.zeros((n_in, n_out), np.uint8)
        self.scales = np.zeros((n_in // GROUP, n_out), np.float32)
        self.zero = np.zeros((n_in // GROUP, n_out), np.uint8)

    def run(self, prune: bool, quantise: bool) -> None:
        n_in = len(self.left)
        for first in range(0, n_in, GROUP):
            cut = slice(first, min(first + GROUP, n_in))
            if prune:
                self.kept[cut] = kept_of_four(self.left[cut], self.importance[cut])
            if quantise:
                group = first // GROUP
                self.scales[group], self.zero[group] = clipped_scale(
                    self.left[cut], self.kept[cut], self.importance[cut]
                )
            self._group(cut, quantise)

    def _group(self, cut: slice, quantise: bool) -> None:
        block, kept = self.left[cut], self.kept[cut]
        scale, zero = (self.scales[cut.start // GROUP], self.zero[cut.start // GROUP]) if quantise else (None, None)
        errors = np.zeros_like(block)
        for j in range(len(block)):
            value = block[j]
            if scale is not None:
                code, value = nearest(value, scale, zero)
                self.code[cut.start + j] = code
            value = np.where(kept[j], value, np.float32(0))
            self.values[cut.start + j] = value
            if self.factor is not None:
                own = self.factor[cut.start + j, cut]
                errors[j] = (block[j] - value) / own[j]
                block[j + 1 :] -= own[j + 1 :, None] * errors[j]
        if self.factor is not None and cut.stop < len(self.left):
            self.left[cut.stop :] -= self.factor[cut, cut.stop :].T @ errors


def kept_of_four(block: Array, importance: Array) -> Array:
    """The two weights of each four with the most to lose.   block: [n, n_out].   importance: [n].   Returns bool."""
    loss = (block.astype(np.float64) ** 2 * importance[:, None]).reshape(-1, 4, block.shape[1])
    order = np.argsort(loss, axis=1, kind="stable")
    kept = np.zeros(loss.shape, bool)
    np.put_along_axis(kept, order[:, 2:], True, axis=1)
    return kept.reshape(block.shape)


def nearest(values: Array, scale: Array, zero: Array) -> tuple[Array, Array]:
    """(codes uint8, their values float32) of values with one scale and zero point a row.   values: [..., n_out]."""
    inverse = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0).astype(np.float32)
    z = zero.astype(np.float32)
    code = np.clip(np.rint(values * inverse) + z, 0, 3)
    return code.astype(np.uint8), (code - z) * scale


def clipped_scale(block: Array, kept: Array, importance: Array) -> tuple[Array, Array]:
    """The scale and the zero point of each row's group that lose least, of those that clip more or less of its range.

    block: [n, n_out].   kept: bool, the same.   importance: [n].   Returns float32 and uint8 [n_out].
    """
    weighted = np.where(kept, importance[:, None], 0).astype(np.float32)
    block = np.where(kept, block, np.float32(0))
    above, below = np.maximum(block.max(axis=0), 0), np.maximum(-block.min(axis=0), 0)
    best = np.full(block.shape[1], np.inf)
    scale, zero = np.zeros(block.shape[1], np.float32), np.ones(block.shape[1], np.uint8)
    for z in range(4):
        widest = np.maximum(above / (3 - z) if z < 3 else 0, below / z if z > 0 else 0)
        for shrink in SHRINKS:
            tried = (widest * shrink).astype(np.float32)
            _, values = nearest(block, tried, np.full_like(zero, z))
            loss = ((values - block) ** 2 * weighted).sum(axis=0, dtype=np.float64)
            better = loss < best
            best[better], scale[better], zero[better] = loss[better], tried[better], z
    return scale, zero


def _fitted_scales(weight: Array, gram: Gram, levels: Array, scales: Array) -> Array:
    """Scales of all groups of a row at once, by least squares, given its levels; those of before where that is worse.

    levels: float32 [n_out, n_in].   scales: [n_out, n_groups].
    """
    n_groups = scales.shape[1]
    damped = gram.damped
    fitted = scales.copy()
    for first in range(0, len(weight), _ROWS):
        rows = slice(first, first + _ROWS)
        c = levels[rows]
        n = len(c)
        matrix = np.empty((n, n_groups, n_groups))
        for g in range(n_groups):
            cut = slice(g * GROUP, (g + 1) * GROUP)
            spread = c[:, cut] @ damped[cut]  # [n, n_in]
            matrix[:, g] = (spread * c).reshape(n, n_groups, GROUP).sum(axis=2, dtype=np.float64)
        pull = (weight[rows] @ damped) * c
        wanted = pull.reshape(n, n_groups, GROUP).sum(axis=2, dtype=np.float64)
        matrix[:, range(n_groups), range(n_groups)] += 1e-9 * (matrix.max(axis=(1, 2)) + 1e-30)[:, None]
        found = np.linalg.solve(matrix, wanted[:, :, None])[:, :, 0]
        before = scales[rows]

        def loss(s: Array, matrix: Array = matrix, wanted: Array = wanted) -> Array:
            return np.einsum("ng,ngh,nh->n", s, matrix, s) - 2 * (s * wanted).sum(axis=1)

        good = np.isfinite(found).all(axis=1) & (found >= 0).all(axis=1) & (loss(found) <= loss(before))
        fitted[rows] = np.where(good[:, None], found, before)
    return fitted


def _relative_error(weight: Array, values: Array, gram: Gram) -> float:
    whole = gram.loss(weight)
    return gram.loss(weight - values) / whole if whole > 0 else 0.0
