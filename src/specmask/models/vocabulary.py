"""A pretrained model's tokenizer, and which of its symbols are no data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from specmask.errors import UserError, first_line

_BRACKETS = {"[": "]", "<": ">"}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as `tokenizers` knows it, and the ids with a meaning of their own.

    mask, pad: ids. before, after: what the model expects around every row ([CLS] … [SEP]).
    special: ids that are never part of a text.
    """

    tokenizer: Tokenizer
    mask: int
    pad: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    special: tuple[int, ...]


def read_vocabulary(
    source: str, tokenizer: str | Path | None, *, revision: str | None, trust_remote_code: bool
) -> Vocabulary:
    """The vocabulary of a pretrained model.

    Args:
        source: the model's name or folder. tokenizer: another name or folder to take it from, or
            a vocab.txt (one symbol a line) of single characters and special symbols in brackets.

    Raises:
        UserError: there is none, it has no mask symbol, or what it puts around a row is not fixed.
    """
    path = Path(tokenizer) if tokenizer is not None else None
    if path is not None and path.suffix == ".txt":
        return _of_characters(path)
    from transformers import AutoTokenizer

    where = str(tokenizer or source)
    try:
        found = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # each tokenizer fails in its own way
        raise UserError(
            f"{where} has no tokenizer that loads ({first_line(error)}): pass the folder or the "
            "vocab.txt of one as tokenizer"
        ) from None
    if len(found) <= len(set(found.all_special_ids)):  # made up, where no file was found
        raise UserError(
            f"{where} has no tokenizer: pass the folder or the vocab.txt of one as tokenizer"
        )
    if found.mask_token_id is None:
        raise UserError(
            f"the tokenizer of {where} has no mask symbol: expected a masked language model's"
        )
    before, after = _frame(found, where)
    size = len(found)
    names = found.convert_ids_to_tokens(list(range(size)))
    bracketed = (i for i, name in enumerate(names) if _bracketed(name or ""))
    special = {*found.all_special_ids, *bracketed}
    pad = found.mask_token_id if found.pad_token_id is None else found.pad_token_id
    return Vocabulary(
        _backend(found, where), found.mask_token_id, pad, before, after, tuple(sorted(special))
    )


def _frame(tokenizer: Any, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after a row, found by encoding one symbol with and without it."""
    specials = set(tokenizer.all_special_ids)
    plain = (i for i in range(len(tokenizer)) if i not in specials)
    for text in ("A", "a", "the", *(tokenizer.decode([i]) for i in itertools.islice(plain, 50))):
        inner = tokenizer.encode(text, add_special_tokens=False)
        outer = tokenizer.encode(text)
        if not inner or specials & set(inner):
            continue
        for k in range(len(outer) - len(inner) + 1):
            if outer[k : k + len(inner)] == inner:
                return tuple(outer[:k]), tuple(outer[k + len(inner) :])
    raise UserError(f"cannot tell what the tokenizer of {where} puts around a row")


def _backend(tokenizer: Any, where: str) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = {str(k): int(v) for k, v in tokenizer.get_vocab().items()}
    if all(len(name) == 1 or _bracketed(name) for name in vocabulary):
        return character_level(vocabulary, _unknown(tokenizer))
    if isinstance(backend, Tokenizer):
        return backend
    raise UserError(
        f"the tokenizer of {where} is Python code, and not one of single characters: "
        "pass one that the tokenizers library can hold (a fast tokenizer)"
    )


def _unknown(tokenizer: Any) -> str | None:
    name = tokenizer.unk_token
    return None if name is None else str(name)


def _bracketed(name: str) -> bool:
    """<null_1>, [unused7]: symbols that no text holds."""
    return len(name) > 2 and _BRACKETS.get(name[0]) == name[-1]


def character_level(vocabulary: dict[str, int], unknown: str | None = None) -> Tokenizer:
    """One id per character, with the ids that a pretrained model gave them.

    Symbols in brackets keep their ids, are read whole ("[MASK]") and shown whole.
    """
    tokenizer = Tokenizer(
        models.WordLevel(vocabulary, unk_token=unknown)
        if unknown is not None
        else models.WordLevel(vocabulary)
    )
    names = [AddedToken(n, normalized=False) for n in vocabulary if len(n) > 1]
    tokenizer.add_special_tokens(names)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _of_characters(path: Path) -> Vocabulary:
    try:
        names = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"no vocabulary {path}: {error.strerror}; check the path") from None
    names = names[: -1 if names[-1] == "" else None]
    ids = {name: number for number, name in enumerate(names)}
    if len(ids) < len(names) or not all(len(n) == 1 or _bracketed(n) for n in names):
        raise UserError(
            f"{path}: expected distinct single characters and special symbols in brackets, one a "
            "line; for other vocabularies pass the folder of a tokenizer"
        )
    special = tuple(i for i, name in enumerate(names) if len(name) > 1)
    known = {name.strip("[]<>").lower(): ids[name] for name in names if len(name) > 1}
    mask = _named(known, ("mask",), path)
    return Vocabulary(
        character_level(ids, next((n for n in names if n.strip("[]<>").lower() == "unk"), None)),
        mask,
        _named(known, ("pad",), path),
        (_named(known, ("cls", "bos", "s"), path),),
        (_named(known, ("sep", "eos", "/s"), path),),
        special,
    )


def _named(known: dict[str, int], names: Sequence[str], path: Path) -> int:
    for name in names:
        if name in known:
            return known[name]
    raise UserError(f"{path} has no symbol [{names[0].upper()}]: expected a masked model's")
