from __future__ import annotations

import lzma
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmask.errors import UserError
from specmask.metrics import Estimate, spelling
from specmask.metrics.estimate import ratio
from specmask.metrics.spelling import load_words, save_words, spelling_accuracy, vocabulary

WORDS = frozenset({"the", "cat", "sat"})


@settings(deadline=None)
@given(st.text(" ab\n", max_size=60), st.integers(1, 9))
def test_vocabulary_is_what_stands_between_spaces(text: str, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spelling, "_CHUNK", chunk)
        assert vocabulary(text) == set(text.split(" ")) - {""}


@pytest.mark.parametrize(
    ("sample", "dropped", "kept"),
    [  # (right, all) words
        ("at the cat sa", (2, 2), (2, 4)),
        ("the dog sat", (0, 1), (2, 3)),
        (" the dog sat", (1, 2), (2, 3)),
        ("the dog sat ", (1, 2), (2, 3)),
        (" the dog sat ", (2, 3), (2, 3)),
        ("  the   dog  sat  ", (2, 3), (2, 3)),
        ("the", (0, 0), (1, 1)),
        (" the", (0, 0), (1, 1)),
        ("the ", (0, 0), (1, 1)),
        (" the ", (1, 1), (1, 1)),
        ("the cat", (0, 0), (2, 2)),
        ("   ", (0, 0), (0, 0)),
        ("", (0, 0), (0, 0)),
    ],
)
def test_which_words_count(sample: str, dropped: tuple[int, int], kept: tuple[int, int]) -> None:
    # Beside a sample of 10 right words the totals can be read off, even where there is no word.
    for edges, (right, total) in (("drop", dropped), ("keep", kept)):
        estimate = spelling_accuracy([sample, " the" * 10 + " "], WORDS, edges)
        assert estimate.mean == pytest.approx((right + 10) / (total + 10), abs=1e-15)
        assert estimate.count == 2
    default = spelling_accuracy([sample, " cat "], WORDS)
    assert default == spelling_accuracy([sample, " cat "], WORDS, edges="drop")


def test_ratio_and_standard_error_by_hand() -> None:
    # Right 1 of 1, 1 of 3, 2 of 2, and a sample without a word: r = 4/6 = 2/3.
    # e = 1/3, -1, 2/3, 0; Σe² = 14/9; variance = 4/3 · 14/9 / 36 = 14/243.
    samples = [" the ", " the x y ", " cat sat ", ""]
    estimate = spelling_accuracy(samples, WORDS)
    assert estimate.mean == pytest.approx(2 / 3, abs=1e-15)
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 243), abs=1e-15)
    assert estimate.count == 4


def test_samples_of_equal_length_give_the_usual_standard_error() -> None:
    shares = [0.0, 0.5, 1.0, 1.0]
    estimate = ratio([2 * share for share in shares], [2.0] * 4)
    assert estimate.mean == pytest.approx(statistics.mean(shares))
    assert estimate.standard_error == pytest.approx(statistics.stdev(shares) / 2)


@pytest.mark.parametrize(("samples", "count"), [([], 0), (["", "x"], 2)])
def test_without_a_word_there_is_no_accuracy(samples: list[str], count: int) -> None:
    estimate = spelling_accuracy(samples, WORDS)
    assert math.isnan(estimate.mean)
    assert math.isnan(estimate.standard_error)
    assert estimate.count == count


def test_one_sample_has_no_standard_error() -> None:
    estimate = spelling_accuracy([" the dog "], WORDS)
    assert estimate.mean == 0.5
    assert math.isnan(estimate.standard_error)


def test_all_right_and_all_wrong_are_exact() -> None:
    assert spelling_accuracy([" the cat ", " sat "], WORDS) == Estimate(1.0, 0.0, 2)
    assert spelling_accuracy([" teh cta ", " sta "], WORDS) == Estimate(0.0, 0.0, 2)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown edges 'drpo'.* Did you mean 'drop'"):
        spelling_accuracy([" the "], WORDS, edges="drpo")
    with pytest.raises(UserError, match="got one string"):
        spelling_accuracy(" the ", WORDS)
    with pytest.raises(UserError, match="got one string"):
        spelling_accuracy([" the "], "the cat sat")


# ------------------------------------------------------------------------------------ word lists


@settings(deadline=None)
@given(
    st.frozensets(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" "), min_size=1)
    )
)
def test_word_lists_round_trip(words: frozenset[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stored: list[bytes] = []
        patch.setattr(Path, "write_bytes", lambda self, raw: stored.append(raw))
        patch.setattr(Path, "read_bytes", lambda self: stored[0])
        save_words("words.txt.xz", words)
        assert load_words("words.txt.xz") == words


def test_a_word_list_is_sorted_xz_text(tmp_path: Path) -> None:
    path = tmp_path / "words.txt.xz"
    save_words(path, ["sat", "cat", "sat"])
    assert lzma.decompress(path.read_bytes()).decode() == "cat sat"
    assert load_words(str(path)) == {"cat", "sat"}


def test_bad_word_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.txt.xz"
    with pytest.raises(UserError, match=r"no word list .*words.txt.xz: No such file"):
        load_words(path)
    with pytest.raises(UserError, match=r"no word list .*: Is a directory"):
        load_words(tmp_path)
    for raw in (b"cat sat", lzma.compress(b"cat sat" * 99)[:-9], lzma.compress(b"\xff")):
        path.write_bytes(raw)
        with pytest.raises(UserError, match="is no word list"):
            load_words(path)


@pytest.mark.parametrize("word", ["", "two words"])
def test_words_that_would_not_come_back_are_refused(word: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt.xz"
    with pytest.raises(UserError, match=f"word '{word}'"):
        save_words(path, ["cat", word])
    assert not path.exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not write .*No such file"):
        save_words(tmp_path / "nowhere" / "words.txt.xz", ["cat"])
