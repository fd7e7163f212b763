"""Foldability: how confident a structure predictor is in its fold of each generated protein."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from specmask.checks import check_device, optional_package, whole
from specmask.errors import UserError, first_line
from specmask.metrics.estimate import Estimate, ratio
from specmask.metrics.proteins import AMINO_ACIDS

CONFIDENT = 70.0
"""pLDDT above which a predicted backbone is generally right (Tunyasuvunakool et al., *Nature* 596,
2021)."""

_ALPHA_CARBON = 1  # of the 37 atoms: N, Cα, C, …


@dataclass(frozen=True)
class FoldReport:
    """What a structure predictor says of proteins; all pLDDT are on the scale 0 to 100.

    plddt: mean over sequences of each one's mean pLDDT. confident: share of the sequences, 0 to 1,
    whose mean pLDDT is above 70. sequences_plddt: (sequences,) mean pLDDT of each, as passed.
    """

    plddt: Estimate
    confident: Estimate
    sequences_plddt: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Folder:
    """ESMFold of Transformers, as a callable; it needs no tokenizer, its alphabet is built in."""

    model: Any

    def __call__(self, sequences: list[str]) -> list[NDArray[np.float64]]:
        """Fold sequences in one batch.

        Returns:
            (residues,) pLDDT at Cα of each sequence, 0 to 100.

        Raises:
            UserError: a sequence is empty or has other than the twenty standard residues.
        """
        _check_sequences(sequences, AMINO_ACIDS)
        plddt = self.model.infer(sequences).plddt  # (sequences, longest, 37 atoms)
        # A predicted pLDDT is a mean of 50 bins' centres, the lowest of which is 0.01, or 1 where
        # a version of the model counts to 100. So the largest value tells the two scales apart.
        scale = 100.0 if float(plddt.max()) <= 1 else 1.0
        rows = scale * plddt[..., _ALPHA_CARBON].double().cpu().numpy()
        return [row[: len(sequence)] for row, sequence in zip(rows, sequences, strict=True)]


def load_folder(
    name_or_folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Folder:
    """ESMFold of Transformers (Lin et al., *Science* 379, 2023), ready to fold.

    Args:
        name_or_folder: a folder, or a name on the Hugging Face Hub, e.g. "facebook/esmfold_v1".
        device: where it computes.
        dtype: of the language model inside, which has most of the weights: float32, or float16 or
            bfloat16 for half its memory. What follows it computes in float32 in any case, since its
            attention masks are out of float16's range.

    Raises:
        UserError: Transformers is not installed, there is no such model, it is not ESMFold or lacks
            weights; torch does not compute on the device; another dtype.
    """
    types = (torch.float32, torch.float16, torch.bfloat16)
    if dtype not in types:
        raise UserError(f"dtype={dtype}: expected one of {', '.join(map(str, types))}")
    check_device(device)
    transformers = optional_package("transformers", "a folder needs")
    name = str(name_or_folder)
    with _loading(name):
        config = transformers.AutoConfig.from_pretrained(name)
    if not getattr(config, "is_folding_model", False):  # known before gigabytes are read
        raise UserError(
            f"{name!r} is a model of type {config.model_type!r} that does not fold: expected "
            "ESMFold, e.g. facebook/esmfold_v1"
        )
    with _loading(name):
        model, report = transformers.EsmForProteinFolding.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
    # Transformers draws what it does not find; folding uses no contact head, so that one may miss.
    drawn = set(report["missing_keys"]) & {key for key, _ in model.named_parameters()}
    drawn = {key for key in drawn if not key.startswith("esm.contact_head.")}
    if drawn:
        raise UserError(
            f"{name!r} lacks {len(drawn)} weights of ESMFold, e.g. {min(drawn)}: expected all of "
            "them; use a complete checkpoint, e.g. facebook/esmfold_v1"
        )
    # A configuration may ask for float16, whatever dtype is loaded. The buffers stay as they are:
    # bfloat16 would round the rotary frequencies, which moves residues far apart by a radian.
    for weight in model.esm.parameters():
        weight.data = weight.data.to(dtype)
    return Folder(model.to(device).eval())


def fold_confidence(
    sequences: Sequence[str],
    folder: Callable[[list[str]], Sequence[ArrayLike]],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> FoldReport:
    """Predict each sequence's structure and report how confident the predictor is in it.

    The measure is pLDDT, a predicted share of the distances around a residue's Cα that are right,
    from 0 to 100 (Jumper et al., *Nature* 596, 2021); above 70 the backbone is generally good. A
    sequence's value is the mean over its residues, the report's the mean over sequences, with the
    usual standard error, NaN for one sequence. Repeats count each time and are folded once.
    Confidence says nothing of variety: see `unique_fraction` and `novelty` of the same samples.

    Args:
        sequences: proteins in one-letter code, of any lengths; ESMFold takes the twenty standard
            residues, another folder what it likes.
        folder: what `load_folder` gives, or any function from a list of sequences to the pLDDT of
            each, as arrays (residues,) on the scale 0 to 100.
        batch_size: sequences at a time, of about one length; the result does not depend on it
            beyond rounding. ESMFold's memory grows with it, and steeply with the length.
        progress: called with (different sequences folded, different sequences in all).

    Raises:
        UserError: no sequences, an empty one, a residue that ESMFold does not know; a folder that
            cannot be called, gives another number of arrays or residues, or anything but numbers
            from 0 to 100; a batch size below 1.
    """
    if not callable(folder):
        raise UserError(
            f"folder is a {type(folder).__name__}: expected what load_folder gives, or a function "
            "from sequences to pLDDT"
        )
    whole("batch_size", batch_size, 1)
    _check_sequences(sequences, AMINO_ACIDS if isinstance(folder, Folder) else None)
    first: dict[str, int] = {}
    for k, sequence in enumerate(sequences):
        first.setdefault(sequence, k)
    # Neighbours in length need little padding; with the longest first, a batch too large for the
    # memory fails at once.
    rows = sorted(first, key=len, reverse=True)
    found: dict[str, NDArray[np.float64]] = {}
    for at in range(0, len(rows), batch_size):
        batch = rows[at : at + batch_size]
        answer = folder(batch)
        count = len(answer) if isinstance(answer, Sized) else f"a {type(answer).__name__}, no"
        if count != len(batch):
            raise UserError(
                f"the folder gives {count} arrays for {len(batch)} sequences: expected one for each"
            )
        for sequence, values in zip(batch, answer, strict=True):
            found[sequence] = _plddt(first[sequence], sequence, values)
        if progress is not None:
            progress(at + len(batch), len(rows))
    highest = max(float(values.max()) for values in found.values())
    if 0 < highest <= 1:
        raise UserError(
            f"the folder's highest pLDDT is {highest:.3g}: expected the scale 0 to 100; multiply "
            "by 100"
        )
    means = [float(found[sequence].mean()) for sequence in sequences]
    ones = [1.0] * len(means)
    return FoldReport(
        plddt=ratio(means, ones),
        confident=ratio([float(mean > CONFIDENT) for mean in means], ones),
        sequences_plddt=tuple(means),
    )


def _check_sequences(sequences: Sequence[str], alphabet: str | None) -> None:
    if isinstance(sequences, str):
        raise UserError("sequences: expected a list of strings, got one string")
    if not len(sequences):
        raise UserError("no sequences: expected at least one to fold")
    for k, sequence in enumerate(sequences):
        if not isinstance(sequence, str):
            raise UserError(
                f"sequence {k} is a {type(sequence).__name__}: expected a string of residues"
            )
        if not sequence:
            raise UserError(f"sequence {k} is empty: expected residues; leave it out")
        for place, residue in enumerate(sequence):
            if alphabet is not None and residue not in alphabet:
                raise UserError(
                    f"sequence {k} has {residue!r} at index {place}: expected residues of "
                    f"{alphabet}; replace it or leave the sequence out"
                )


def _plddt(k: int, sequence: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"sequence {k}: the folder's pLDDT are no array ({first_line(error)}); expected "
            f"{len(sequence)} numbers from 0 to 100"
        ) from error
    if row.shape != (len(sequence),):
        raise UserError(
            f"sequence {k}: the folder's pLDDT have shape {row.shape}; expected "
            f"({len(sequence)},), one number for each residue"
        )
    wrong = ~((row >= 0) & (row <= 100))  # NaN compares false
    if wrong.any():
        place = int(wrong.argmax())
        raise UserError(
            f"sequence {k}: the folder's pLDDT at index {place} is {row[place]:g}; expected a "
            "number from 0 to 100"
        )
    return row


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library lets through whatever the net and the files raise
        raise UserError(
            f"no ESMFold {name!r} ({first_line(error)}): expected a folder, or a name such as "
            "facebook/esmfold_v1; check the name and the connection"
        ) from error
