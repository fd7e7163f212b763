"""Character tokenizers, as Hugging Face `Tokenizer`s, with a fast path for whole corpora."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from specmask.errors import UserError

TEXT8_ALPHABET = " abcdefghijklmnopqrstuvwxyz"

_CHUNK = 1 << 22
"""Characters turned at a time, so that four bytes a code point never cost more than 16 MB."""


def text8_tokenizer() -> Tokenizer:
    """The 27 symbols of text8: the space is 0, then a to z."""
    return character_tokenizer(TEXT8_ALPHABET)


def character_tokenizer(alphabet: str) -> Tokenizer:
    """One symbol per character (Unicode code point), numbered as in `alphabet`.

    There is no unknown symbol and nothing is normalised: text of these characters survives a round
    trip exactly.

    Raises:
        UserError: no character, one that comes twice, or half of a surrogate pair.
    """
    if not alphabet:
        raise UserError("the alphabet is empty: expected at least one character")
    symbol, times = Counter(alphabet).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"the alphabet holds {symbol!r} {times} times: expected distinct characters; "
            "drop the repeats"
        )
    for symbol in alphabet:
        if "\ud800" <= symbol <= "\udfff":
            raise UserError(
                f"the alphabet holds {symbol!r}, half of a surrogate pair: expected whole "
                "characters; was the text decoded as UTF-8?"
            )
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    # Unlike a dot, this class matches the newline too.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def alphabet_of(tokenizer: Tokenizer) -> str | None:
    """The characters in the order of their ids, or None if the tokenizer is not character-level."""
    if not isinstance(tokenizer.model, models.WordLevel):
        return None
    vocabulary = tokenizer.get_vocab()
    symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    if not symbols or any(len(symbol) != 1 for symbol in symbols):
        return None
    alphabet = "".join(symbols)
    # Only what we would build ourselves may take the fast path: no normaliser, no padding, ….
    same = character_tokenizer(alphabet).to_str() == tokenizer.to_str()
    return alphabet if same else None


def single_characters(tokenizer: Tokenizer, never: Collection[int] = ()) -> dict[str, int] | None:
    """Character → id, if every symbol but those in `never` is one character; else None."""
    vocabulary = tokenizer.get_vocab()
    drawn = {name: number for name, number in vocabulary.items() if number not in set(never)}
    return drawn if drawn and all(len(name) == 1 for name in drawn) else None


def encode(tokenizer: Tokenizer, text: str, where: str = "text") -> NDArray[np.unsignedinteger]:
    """Ids of the text, without special tokens, in the smallest unsigned type that holds them.

    Args:
        tokenizer: any; a character tokenizer takes a lookup table (about 100 MB of text a second).
        text: what to encode. where: names the text in errors, e.g. the file.

    Returns:
        (tokens,) array; as long as the text for a character tokenizer.

    Raises:
        UserError: a symbol that the tokenizer does not know; the message says which and where.
    """
    alphabet = alphabet_of(tokenizer)
    dtype = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
    if alphabet is not None:
        return _encode_characters(alphabet, text, where, dtype)
    try:
        encoding = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(
            f"{where}: the model's tokenizer cannot encode it ({error}); "
            "use a model whose tokenizer knows its symbols"
        ) from error
    unknown = _unknown_id(tokenizer)
    if unknown in encoding.ids:
        start, _ = encoding.offsets[encoding.ids.index(unknown)]
        raise _outside(text, start, where, f"the tokenizer's {tokenizer.get_vocab_size()} tokens")
    return np.array(encoding.ids, dtype=dtype)


def decode(tokenizer: Tokenizer, ids: Sequence[int] | NDArray[np.integer] | Tensor) -> str:
    """The text of (tokens,) ids, special tokens included.

    Raises:
        UserError: an id that is not a symbol, such as the mask's.
    """
    numbers = np.asarray(ids)
    if numbers.size == 0:
        return ""
    size = tokenizer.get_vocab_size()
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise UserError(
            f"ids are {numbers.dtype} of shape {numbers.shape}: expected integers of shape "
            "(tokens,); decode one row at a time"
        )
    if numbers.min() < 0 or numbers.max() >= size:
        wrong = int(numbers[(numbers < 0) | (numbers >= size)][0])
        raise UserError(
            f"id {wrong} is not a symbol: expected 0 to {size - 1}; "
            f"fill in masked positions first (the mask is {size})"
        )
    alphabet = alphabet_of(tokenizer)
    if alphabet is None:
        return str(tokenizer.decode(numbers.tolist(), skip_special_tokens=False))
    table = _code_points(alphabet)
    parts = (numbers[k : k + _CHUNK] for k in range(0, len(numbers), _CHUNK))
    return "".join(table[part].tobytes().decode("utf-32-le") for part in parts)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for whatever the tokenizer does not know."""
    model = json.loads(tokenizer.to_str())["model"]  # the object of a Unigram model hides its id
    name = model.get("unk_token")
    return model.get("unk_id") if name is None else tokenizer.token_to_id(name)


def _encode_characters(
    alphabet: str, text: str, where: str, dtype: np.dtype
) -> NDArray[np.unsignedinteger]:
    points = _code_points(alphabet)
    outside = len(alphabet)
    # One more entry than the largest code point: all larger ones share the last, which is outside.
    table = np.full(int(points.max()) + 2, outside, dtype=np.min_scalar_type(outside))
    table[points] = np.arange(outside)
    ids = np.empty(len(text), dtype=dtype)
    for start in range(0, len(text), _CHUNK):
        codes = np.minimum(_code_points(text[start : start + _CHUNK]), len(table) - 1)
        part = table[codes]
        if bool((part == outside).any()):
            raise _outside(text, start + int((part == outside).argmax()), where, _shown(alphabet))
        ids[start : start + len(part)] = part
    return ids


def _code_points(text: str) -> NDArray[np.uint32]:
    # A lone surrogate passes here and is then refused as outside the alphabet, with its place.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _outside(text: str, offset: int, where: str, known: str) -> UserError:
    line = text.count("\n", 0, offset) + 1
    column = offset - text.rfind("\n", 0, offset)
    return UserError(
        f"{where}: symbol {text[offset]!r} at offset {offset} (line {line}, column {column}) is "
        f"not among {known}; replace it, or use a model whose tokenizer knows it"
    )


def _shown(alphabet: str, most: int = 64) -> str:
    tail = "…" if len(alphabet) > most else ""
    return f"the {len(alphabet)} symbols {alphabet[:most]!r}{tail}"
