"""Measures of sets of sequences: how many differ, how many are new, what they are made of."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from specmask.checks import check_seed, whole
from specmask.errors import UserError
from specmask.metrics.estimate import Estimate, ratio

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty standard residues."""


def unique_fraction(sequences: Sequence[str]) -> Estimate:
    """Distinct sequences over all.

    The standard error is the jackknife's, leaving out one sequence at a time: with s the share of
    those that occur once, √(s(1 − s)/(n − 1)). It errs on the large side (Efron and Stein, *The
    Jackknife Estimate of Variance*, 1981), by √2 where repeats are rare. The bootstrap would be
    wrong: it draws sequences again, and so makes the very repeats that are counted.

    The fraction falls with the number of sequences: compare samples of one size only.

    Returns:
        mean in 0..1, NaN without sequences.

    Raises:
        UserError: one string in place of many.
    """
    _check_many("sequences", sequences)
    counts = Counter(sequences)
    total = len(sequences)
    if not total:
        return Estimate(math.nan, math.nan, 0)
    once = sum(count == 1 for count in counts.values()) / total
    error = math.sqrt(once * (1 - once) / (total - 1)) if total > 1 else math.nan
    return Estimate(len(counts) / total, error, total)


def novelty(sequences: Sequence[str], training: Iterable[str] | Iterable[int]) -> Estimate:
    """Share of the sequences that do not occur in the training data.

    Args:
        sequences: samples; a repeated one counts each time.
        training: sequences, or `sequence_hash` of each. Only read through once, so that a stream
            of any size will do; memory is that of the samples.

    Returns:
        mean in 0..1 and its usual standard error, over samples; NaN without sequences.

    Raises:
        UserError: one string in place of many; training data that are empty, as a stream is that
            was read before.
    """
    _check_many("sequences", sequences)
    _check_many("training", training)
    hashes = {sequence: sequence_hash(sequence) for sequence in sequences}
    wanted: set[object] = {*hashes, *hashes.values()}
    stream = iter(training)
    first = next(stream, None)
    if first is None:
        raise UserError(
            "the training data are empty: expected sequences or hashes; a stream can be read once "
            "only, so open it again"
        )
    found = wanted.intersection(chain([first], stream))
    new = [float(sequence not in found and hashes[sequence] not in found) for sequence in sequences]
    return ratio(new, [1.0] * len(new))


def sequence_hash(sequence: str) -> int:
    """A whole number from 0 to 2⁶⁴ − 1, the same on every machine; fits NumPy's uint64.

    Two of n different sequences share one with odds of about n²/2⁶⁵: 7e-5 for 50 million.
    """
    return int.from_bytes(hashlib.blake2b(sequence.encode(), digest_size=8).digest(), "big")


def composition(sequences: Sequence[str], alphabet: str = AMINO_ACIDS) -> NDArray[np.float64]:
    """How often each residue occurs, over all positions of all sequences.

    Returns:
        (residues,) frequencies in the order of `alphabet`, which sum to 1.

    Raises:
        UserError: no sequence, an empty one, a residue outside the alphabet, one string in place of
            many.
    """
    return _frequencies(_counts(sequences, alphabet).sum(axis=0))


def composition_divergence(
    sequences: Sequence[str],
    reference: Mapping[str, float] | Sequence[float] | NDArray[np.floating],
    alphabet: str = AMINO_ACIDS,
    resamples: int = 200,
    seed: int = 0,
) -> Estimate:
    """Jensen-Shannon divergence of the residue frequencies from a reference's, in nats.

    Of frequencies p and q with m = (p + q)/2: (KL(p‖m) + KL(q‖m))/2 (Lin, *Divergence Measures
    Based on the Shannon Entropy*, 1991). The standard error is the bootstrap's over sequences,
    since residues of one sequence depend on each other; the reference is taken as exact. Even
    samples of the reference itself are off by about (residues − 1)/(8 · positions), or more where
    positions depend on each other.

    Args:
        sequences: samples, of any lengths. alphabet: the residues.
        reference: frequencies, by residue or in the order of `alphabet`, which sum to 1; see
            `composition`.
        resamples: of the bootstrap, at least 2. seed: names them.

    Returns:
        mean in 0..log 2; the standard error is NaN for fewer than two sequences.

    Raises:
        UserError: as in `composition`; a reference that is not such a distribution.
    """
    whole("resamples", resamples, 2)
    generator = np.random.default_rng(check_seed(seed))
    counts = _counts(sequences, alphabet)
    q = _reference(reference, alphabet)
    total = len(counts)
    mean = _divergence(_frequencies(counts.sum(axis=0)), q)
    if total < 2:
        return Estimate(mean, math.nan, total)
    values = []
    for _ in range(resamples):
        times = np.bincount(generator.integers(total, size=total), minlength=total)
        values.append(_divergence(_frequencies(times @ counts), q))
    return Estimate(mean, float(np.std(values, ddof=1)), total)


def _counts(sequences: Sequence[str], alphabet: str) -> NDArray[np.int64]:
    """(sequences, residues) occurrences."""
    _check_many("sequences", sequences)
    if not alphabet.isascii() or len(set(alphabet)) < len(alphabet):
        raise UserError(f"alphabet={alphabet!r}: expected distinct ASCII symbols")
    codes = np.frombuffer(alphabet.encode(), dtype=np.uint8)
    counts = np.zeros((len(sequences), len(alphabet)), dtype=np.int64)
    for k, sequence in enumerate(sequences):
        if not sequence:
            raise UserError(f"sequence {k} is empty: expected residues; leave it out")
        raw = np.frombuffer(sequence.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        counts[k] = np.bincount(raw, minlength=256)[codes]
        if counts[k].sum() != len(sequence):
            strange = next(symbol for symbol in sequence if symbol not in alphabet)
            raise UserError(
                f"sequence {k} has {strange!r}: expected residues of {alphabet}; leave it out"
            )
    if not len(counts):
        raise UserError("no sequence: expected at least one")
    return counts


def _frequencies(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return counts / counts.sum()


def _reference(
    reference: Mapping[str, float] | Sequence[float] | NDArray[np.floating], alphabet: str
) -> NDArray[np.float64]:
    if isinstance(reference, Mapping):
        if outside := set(reference) - set(alphabet):
            raise UserError(
                f"the reference has {min(outside)!r}: expected residues of {alphabet}; leave it out"
            )
        reference = [reference.get(residue, 0.0) for residue in alphabet]
    shares = np.asarray(reference, dtype=np.float64)
    size = (len(alphabet),)
    if shares.shape != size or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise UserError(
            f"the reference has shape {shares.shape} and sum {shares.sum():.6g}: expected "
            f"{len(alphabet)} frequencies from 0 that sum to 1"
        )
    return shares


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    middle = (p + q) / 2
    terms = [(side[side > 0] * np.log(side[side > 0] / middle[side > 0])).sum() for side in (p, q)]
    return max(0.0, float(sum(terms)) / 2)


def _check_many(name: str, sequences: object) -> None:
    if isinstance(sequences, str):
        raise UserError(f"{name}: expected many sequences, got one string")
