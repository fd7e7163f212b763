"""Spelling accuracy: the share of generated words that occur in the training text."""

from __future__ import annotations

import lzma
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from specmask.errors import UserError, unknown
from specmask.metrics.estimate import Estimate, ratio

_CHUNK = 1 << 22


def vocabulary(text: str) -> frozenset[str]:
    """The words of a text: what stands between spaces."""
    words: set[str] = set()
    start = 0
    while start < len(text):
        # A piece at a time, cut at a space: all words of text8 at once would take a gigabyte.
        end = text.find(" ", start + _CHUNK)
        end = len(text) if end < 0 else end
        words.update(text[start:end].split(" "))
        start = end
    return frozenset(words - {""})


def spelling_accuracy(
    samples: Sequence[str], words: Collection[str], edges: str = "drop"
) -> Estimate:
    """Words of the samples that are in `words`, over all words of the samples.

    The measure of Campbell et al. (arXiv 2510.03929) for text8, after Hoogeboom et al. (*Argmax
    Flows and Multinomial Diffusion*, 2021). A ratio of totals, so that a sample weighs by its
    words; the standard error is over samples.

    Args:
        samples: texts, each a window of running text.
        words: see `vocabulary`; a set, for speed.
        edges: "drop" leaves out a first and a last word that the window may have cut, which is
            each one not set off by a space at that end of the sample; "keep" counts them too.

    Returns:
        mean in 0..1, NaN if there is no word at all.

    Raises:
        UserError: other `edges`; one string in place of many.
    """
    correct, total = word_counts(samples, words, edges)
    return ratio(correct, total)


def word_counts(
    samples: Sequence[str], words: Collection[str], edges: str = "drop"
) -> tuple[list[int], list[int]]:
    """Of each sample, its words that are in `words`, and its words; see `spelling_accuracy`."""
    if edges not in ("drop", "keep"):
        raise unknown("edges", edges, ("drop", "keep"))
    if isinstance(samples, str) or isinstance(words, str):
        raise UserError("samples and words: expected collections of strings, got one string")
    correct, total = [], []
    for sample in samples:
        pieces = sample.split(" ")
        # A space at an end makes the outermost piece empty, so that no word is lost with it.
        kept = [piece for piece in (pieces[1:-1] if edges == "drop" else pieces) if piece]
        correct.append(sum(piece in words for piece in kept))
        total.append(len(kept))
    return correct, total


def save_words(path: str | Path, words: Iterable[str]) -> None:
    """Write a word list as xz text: sorted, a space between two.

    Raises:
        UserError: a word that is empty or holds a space; the file cannot be written.
    """
    ordered = sorted(set(words))
    for word in ordered:
        if not word or " " in word:
            raise UserError(f"word {word!r}: expected words without spaces, none empty")
    try:
        Path(path).write_bytes(lzma.compress(" ".join(ordered).encode()))
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror}; try another folder") from error


def load_words(path: str | Path) -> frozenset[str]:
    """The words that `save_words` wrote.

    Raises:
        UserError: there is no such file, or it is not such a list.
    """
    try:
        text = lzma.decompress(Path(path).read_bytes()).decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no word list ({error}): expected xz text, as save_words writes it"
        ) from None
    except OSError as error:
        raise UserError(f"no word list {path}: {error.strerror}; check the path") from None
    return vocabulary(text)
