"""The laws of a grid of settings: those of `law_points`, and a file that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import specmask
from oracle import tiny_network
from specmask.bench import settings
from specmask.bench.run import law_points, read_points
from specmask.bench.settings import WINDOWS, Settings, block_settings, main, token_settings
from specmask.data.batches import windows
from specmask.data.tokenizers import character_tokenizer, encode
from specmask.errors import UserError

LENGTH = 8
TEXT = "abba cab a bac cc ab ba ccc a b cab " * 4


@pytest.fixture
def args(tmp_path: Path) -> Settings:
    network = tiny_network(vocab_size=4, length=LENGTH, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer("ab c"))
    (tmp_path / "text").write_text(TEXT)
    return Settings(
        str(tmp_path / "model"),
        data=tmp_path / "text",
        out=tmp_path / "docs" / "settings.jsonl",
        rows=3,
        rounds=2,
        block_rounds=(2, 1),
    )


def test_the_points_are_those_of_law_points(args: Settings) -> None:
    main(args)
    header, *found = read_points(args.out)
    samplers = [*token_settings(2, "random"), *token_settings(2, "left-to-right")]
    samplers += block_settings((1, 2))
    assert len(found) == len(samplers) == 3 * 2 * 2 * len(WINDOWS)
    assert (header["kind"], header["rows"], header["layers"]) == ("run", 3, [2, 1])
    model = specmask.load(args.model)
    assert model.tokenizer is not None
    tokens = windows(encode(model.tokenizer, TEXT), LENGTH, 3)
    some = [0, 7, 30, 55, 80, 100, 120, 143]
    for k, point in zip(some, law_points(model, tokens, [samplers[k] for k in some]), strict=True):
        mine = found[k]
        assert mine.keys() == point.keys()
        assert (mine["sampler"], mine["settings"]) == (point["sampler"], point["settings"])
        for key in ("bits", "bits_se", "nfe", "nfe_se"):
            assert mine[key] == pytest.approx(point[key], rel=1e-6, abs=1e-9)
        assert mine["each"]["bits"] == pytest.approx(point["each"]["bits"], abs=2e-5)


def test_a_file_goes_on_where_it_was_stopped(
    args: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is neither scored nor written again, and one line was cut off."""
    main(replace(args, block_rounds=(1,)))
    lines = args.out.read_text().splitlines(keepends=True)
    args.out.write_text("".join(lines[:-1]) + lines[-1][:50])
    monkeypatch.setattr(settings, "score_settings", None)
    main(args)
    again = args.out.read_text().splitlines(keepends=True)
    assert again[: len(lines)] == lines
    kinds = [str(point["settings"]) for point in read_points(args.out)[1:]]
    assert len(kinds) == len(set(kinds)) == 3 * 2 * 2 * len(WINDOWS)


def test_another_run_is_refused(args: Settings) -> None:
    main(replace(args, rounds=1, block_rounds=()))
    with pytest.raises(UserError, match="seed 0, this run has 1"):
        main(replace(args, seed=1))


def test_what_cannot_be_scored_is_refused(args: Settings, tmp_path: Path) -> None:
    specmask.save(tmp_path / "bare", tiny_network(length=LENGTH, dtype=torch.float32), None)
    with pytest.raises(UserError, match="bare has no tokenizer: expected a self-speculative"):
        main(replace(args, model=str(tmp_path / "bare")))
    with pytest.raises(UserError, match="rows=1: expected a whole number, at least 2"):
        main(replace(args, rows=1))
    assert not args.out.exists()
