from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from specmask.data import tokenizers
from specmask.data.tokenizers import (
    TEXT8_ALPHABET,
    alphabet_of,
    character_tokenizer,
    decode,
    encode,
    text8_tokenizer,
)
from specmask.errors import UserError

AWKWARD = " \n\r\t\u2028\u00e9e\u0301日😀'\"\\<\0"


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_text8_numbers_the_space_zero_and_the_letters_one_to_26() -> None:
    ids = encode(text8_tokenizer(), " abz")
    assert ids.tolist() == [0, 1, 2, 26]
    assert ids.dtype == np.uint8
    assert text8_tokenizer().get_vocab_size() == 27


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_round_trip_is_exact_and_the_library_agrees(data: st.DataObject) -> None:
    characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(AWKWARD)
    alphabet = "".join(data.draw(st.lists(characters, min_size=1, max_size=300, unique=True)))
    text = data.draw(st.text(st.sampled_from(alphabet)))
    tokenizer = character_tokenizer(alphabet)
    ids = encode(tokenizer, text)
    assert ids.tolist() == tokenizer.encode(text).ids == [alphabet.index(c) for c in text]
    assert decode(tokenizer, ids) == tokenizer.decode(ids.tolist()) == text


def test_round_trip_of_awkward_characters_after_saving() -> None:
    tokenizer = Tokenizer.from_str(character_tokenizer(AWKWARD).to_str(pretty=True))
    text = AWKWARD + AWKWARD[::-1] + "\r\n \n\r"
    assert alphabet_of(tokenizer) == AWKWARD
    assert decode(tokenizer, encode(tokenizer, text)) == text
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_long_text_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_CHUNK", 3)
    text = "the quick brown 😀 fox"
    tokenizer = character_tokenizer("".join(sorted(set(text))))
    ids = encode(tokenizer, text)
    assert ids.tolist() == tokenizer.encode(text).ids
    assert decode(tokenizer, ids) == text
    with pytest.raises(UserError, match="offset 21"):
        encode(tokenizer, text + "!")


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_ids_take_the_smallest_type(size: int, dtype: type) -> None:
    alphabet = "".join(chr(0x100 + k) for k in range(size))
    ids = encode(character_tokenizer(alphabet), alphabet)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(size))


def test_empty_text() -> None:
    assert encode(text8_tokenizer(), "").shape == (0,)
    assert decode(text8_tokenizer(), []) == ""


@pytest.mark.parametrize("ids", [[2, 1, 4], np.array([2, 1, 4]), torch.tensor([2, 1, 4])])
def test_decode_takes_lists_arrays_and_tensors(ids: object) -> None:
    assert decode(text8_tokenizer(), ids) == "bad"  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- not characters


@pytest.mark.parametrize("change", ["none", "normalizer", "pre_tokenizer", "padding", "added"])
def test_only_an_unchanged_character_tokenizer_has_an_alphabet(change: str) -> None:
    tokenizer = text8_tokenizer()
    if change == "normalizer":
        tokenizer.normalizer = normalizers.Lowercase()
    elif change == "pre_tokenizer":
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    elif change == "padding":
        tokenizer.enable_padding(length=8)
    elif change == "added":
        tokenizer.add_special_tokens(["<s>"])
    assert alphabet_of(tokenizer) == (TEXT8_ALPHABET if change == "none" else None)


def test_other_tokenizers_encode_and_decode_by_themselves() -> None:
    tokenizer = word_pieces()
    assert alphabet_of(tokenizer) is None
    assert alphabet_of(Tokenizer(models.WordLevel({"ab": 0, "c": 1}))) is None
    ids = encode(tokenizer, "ab a")
    assert ids.tolist() == [1, 2, 1]
    assert decode(tokenizer, ids) == tokenizer.decode([1, 2, 1])


def test_special_tokens_are_not_lost() -> None:
    tokenizer = text8_tokenizer()
    tokenizer.add_special_tokens(["<s>"])
    assert decode(tokenizer, [1, 27, 2]) == "a<s>b"


def test_a_lower_casing_tokenizer_keeps_its_normaliser() -> None:
    tokenizer = text8_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    assert encode(tokenizer, "aB").tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["word pieces", "unigram", "no unknown symbol"])
def test_what_another_tokenizer_does_not_know_is_refused(kind: str) -> None:
    if kind == "word pieces":
        tokenizer, message = word_pieces(), "symbol 'x' at offset 3 .line 2, column 1."
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("\n", -2.0)], 0, False))
        message = "symbol 'b' at offset 1 .line 1, column 2."
    else:
        tokenizer = Tokenizer(models.WordLevel({"a": 0}))
        message = "cannot encode"
    with pytest.raises(UserError, match=f"my file: .*{message}"):
        encode(tokenizer, "ab\nx", "my file")


# --------------------------------------------------------------------------------------- errors


def test_a_symbol_outside_the_alphabet_is_named_with_its_place() -> None:
    tokenizer = character_tokenizer("ab\n")
    with pytest.raises(UserError) as caught:
        encode(tokenizer, "ab\nbXa", "notes.txt")
    assert str(caught.value) == (
        "notes.txt: symbol 'X' at offset 4 (line 2, column 2) is not among the 3 symbols 'ab\\n'; "
        "replace it, or use a model whose tokenizer knows it"
    )


@pytest.mark.parametrize("symbol", ["A", "!", "\0", "é", "😀", "\udcff"])
def test_symbols_below_above_and_far_from_the_alphabet_are_refused(symbol: str) -> None:
    with pytest.raises(UserError, match=r"offset 0 \(line 1, column 1\)") as caught:
        encode(text8_tokenizer(), symbol)
    assert repr(symbol) in str(caught.value)
    assert TEXT8_ALPHABET in str(caught.value)


def test_a_long_alphabet_is_cut_in_the_message() -> None:
    tokenizer = character_tokenizer("".join(chr(0x4E00 + k) for k in range(400)))
    with pytest.raises(UserError, match=r"the 400 symbols .*…;") as caught:
        encode(tokenizer, "a")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("alphabet", "message"),
    [("", "is empty"), ("abca", "holds 'a' 2 times"), ("a\ud800", "surrogate")],
)
def test_bad_alphabets_are_refused(alphabet: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        character_tokenizer(alphabet)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 27], "id 27 is not a symbol: expected 0 to 26.*mask is 27"),
        ([-1], "id -1"),
        ([0.5], "float64"),
        ([[1, 2]], r"shape \(1, 2\)"),
    ],
)
def test_bad_ids_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode(text8_tokenizer(), ids)
