"""Subword text, end to end: prose → tokenizer → ids on disk → training → samples → a judge."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import specmask
from refusal import command
from specmask.cli.options import train_config
from specmask.cli.train import TrainOptions
from specmask.data import token_ids
from specmask.data.subwords import END_OF_TEXT, train_bpe
from specmask.data.token_ids import open_ids
from specmask.data.tokenizers import decode
from specmask.metrics.perplexity import generative_perplexity
from specmask.recipes import recipe

LENGTH, STEPS, VOCAB = 16, 4, 300
NETWORK = ("--width", 16, "--heads", 1, "--trunk-layers", 1, "--length", LENGTH)
SHORT = (
    *("--steps", STEPS, "--batch-size", 4, "--save-every", 2, "--log-every", 2),
    *("--precision", "fp32", "--eval-rows", 8, "--dropout", 0.1),
)
NOUNS = ("harbour", "lantern", "orchard", "letter", "winter", "river")
VERBS = ("waited for", "remembered", "crossed", "followed")


def prose(count: int, seed: int) -> list[str]:
    """Documents of one to twelve sentences, no two alike."""
    draw = random.Random(seed)

    def sentence() -> str:
        return f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}."

    made = {" ".join(sentence() for _ in range(draw.randint(1, 12))): None for _ in range(count)}
    return list(made)


DOCUMENTS = prose(300, seed=0)


def train_words(data: Path, out: Path, *options: object) -> tuple[object, ...]:
    return ("train", "prose-small", "--data", data, "--out", out, *NETWORK, *SHORT, *options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text("\n\n".join(DOCUMENTS) + "\n")
    return path


@pytest.fixture(scope="module")
def packed(data: Path) -> Path:
    """A run on a BPE of the text itself, which no test may change."""
    out = data.parent / "packed"
    assert command(*train_words(data, out, "--vocab-size", VOCAB)) == 0
    return out


@pytest.fixture(scope="module")
def supplied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of another text, whose end of text has another name."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "other.txt").write_text("\n\n".join(prose(50, seed=1)))
    text = train_bpe(folder / "other.txt", 270).to_str().replace(END_OF_TEXT, "</s>")
    (folder / "tokenizer.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def samples(packed: Path) -> Path:
    path = packed.parent / "samples.jsonl"
    assert command("sample", packed / "model", "--num", 3, "--seed", 1, "--out", path) == 0
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, supplied: Path) -> Path:
    """A GPT-2 that has learnt nothing, with its tokenizer, in a folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = Tokenizer.from_file(str(supplied / "tokenizer.json"))
    config = transformers.GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=32, n_embd=16, n_layer=1, n_head=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with one line and code 2."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert command(*argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        # Transformers shows a bar of its own while it loads a judge.
        said = [line for line in err.splitlines() if line and "Loading weights" not in line]
        assert len(said) == 1
        assert said[0].startswith("specmask: ")
        return said[0]

    return run


# ---------------------------------------------------------------------------------------- training


def test_packed_documents_are_one_stream(packed: Path) -> None:
    """Every document exactly, the end-of-text token after each; and the model reads it as such."""
    ids, model = open_ids(packed / "data"), specmask.load(packed / "model")
    assert decode(ids.tokenizer, ids.ids) == "".join(text + END_OF_TEXT for text in DOCUMENTS)
    assert model.tokenizer is not None
    assert model.tokenizer.to_str() == ids.tokenizer.to_str()
    assert model.network.vocab_size == model.tokenizer.get_vocab_size() == VOCAB
    header, *rows = lines(packed / "log.jsonl")
    assert header["network"]["dropout"] == 0.1
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [STEPS]


def test_samples_decode_to_text(packed: Path, samples: Path) -> None:
    model = specmask.load(packed / "model")
    assert model.tokenizer is not None
    for row in lines(samples):
        assert len(row["tokens"]) == LENGTH
        assert row["text"] == decode(model.tokenizer, row["tokens"])
        assert len(row["text"]) > 0


def test_documents_by_a_supplied_tokenizer(tmp_path: Path, data: Path, supplied: Path) -> None:
    """Each document is a row; a name of the end of text is then not needed."""
    out, longest = tmp_path / "run", 64
    words = train_words(data, out, "--rows", "documents", "--tokenizer", supplied)
    assert command(*words, "--batch-size", 32, "--length", longest) == 0
    ids, model = open_ids(out / "data"), specmask.load(out / "model")
    assert ids.offsets is not None
    cut = np.split(ids.ids, ids.offsets[1:-1])
    assert [decode(ids.tokenizer, row) for row in cut] == DOCUMENTS
    assert model.network.vocab_size == 270
    assert command("sample", out / "model", "--num", 1, "--out", tmp_path / "a.jsonl") == 0
    # Some documents are shorter than a row of the network, others are cut: tokens of 64 rows.
    assert min(map(len, cut)) < longest < max(map(len, cut))
    mean = np.minimum([len(row) for row in cut], longest).mean()
    assert lines(out / "log.jsonl")[1]["tokens"] == pytest.approx(64 * mean, rel=0.2)


def test_packed_by_a_supplied_tokenizer(
    tmp_path: Path, data: Path, supplied: Path, refused: Callable[..., str]
) -> None:
    """Its end of text has a name of its own."""
    words = train_words(data, tmp_path / "run", "--tokenizer", supplied / "tokenizer.json")
    assert f"no token '{END_OF_TEXT}'" in refused(*words)
    assert command(*words, "--end-of-text", "</s>") == 0
    ids = open_ids(tmp_path / "run" / "data")
    assert decode(ids.tokenizer, ids.ids) == "".join(text + "</s>" for text in DOCUMENTS)


def test_columns_of_several_files(tmp_path: Path) -> None:
    """One stream, in the order of the files."""
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path, part in zip(paths, (DOCUMENTS[:200], DOCUMENTS[200:]), strict=True):
        path.write_text("".join(json.dumps({"body": text}) + "\n" for text in part))
    words = train_words(paths[0], tmp_path / "run", "--vocab-size", VOCAB)
    at = words.index(paths[0])
    words = (*words[:at], *paths, *words[at + 1 :], "--text-column", "body")
    assert command(*words) == 0
    ids = open_ids(tmp_path / "run" / "data")
    assert decode(ids.tokenizer, ids.ids) == "".join(text + END_OF_TEXT for text in DOCUMENTS)


def test_resume_makes_the_same_model_and_tokenises_nothing(
    tmp_path: Path, data: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the run had been killed after its checkpoint of step 2; with dropout."""
    run = shutil.copytree(packed, tmp_path / "run")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / f"checkpoints/step-{STEPS:07d}")
    monkeypatch.setattr(token_ids, "_encode", None)
    assert command(*train_words(data, run, "--vocab-size", VOCAB, "--resume")) == 0
    weights = [folder / "model" / "model.safetensors" for folder in (run, packed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_second_stage_on_other_text(
    tmp_path: Path, data: Path, packed: Path, refused: Callable[..., str]
) -> None:
    """It reads with the first one's tokenizer, at another length and without dropout."""
    (tmp_path / "other.txt").write_text("\n\n".join(prose(300, seed=2)))
    words = train_words(tmp_path / "other.txt", tmp_path / "run", "--init", packed / "model")
    other = ("--length", 8, "--dropout", 0)
    assert command(*words, *other, "--tokenizer", packed / "model") == 0
    words = train_words(data, tmp_path / "again", "--init", packed / "model")
    assert "pass --tokenizer" in refused(*words, "--vocab-size", VOCAB - 10)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (b"", (), "no text"),
        (b" \n\n \n", (), "no text"),
        (b"h\xe9", (), "is not UTF-8"),
        (b"to be", ("--vocab-size", 256), "at least 257"),
        (b"to be", ("--tokenizer", "nothing.json"), "nothing.json"),
        (b"to be", ("--tokenizer", "a.json", "--vocab-size", 300), "pass one of them"),
        (b"to be", ("--dropout", 1), "dropout=1"),
        (b"to be", (), "needs at least 32"),
        (b"to be", ("--rows", "documents"), "too few to hold out"),
    ],
)
def test_train_refuses(
    tmp_path: Path,
    refused: Callable[..., str],
    content: bytes,
    options: tuple[object, ...],
    expected: str,
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    words = train_words(tmp_path / "text.txt", tmp_path / "run")
    assert expected in refused(*words, *options)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_options_of_other_recipes_are_refused(
    tmp_path: Path, data: Path, refused: Callable[..., str]
) -> None:
    words = ("train", "characters", "--out", tmp_path / "run", "--data", data)
    assert "reads characters" in refused(*words, "--vocab-size", 300)
    assert "join them" in refused(*words, data)
    assert "is a folder" in refused(*train_words(tmp_path, tmp_path / "run"))


def test_a_tokenizer_with_gaps_is_refused(
    tmp_path: Path, data: Path, supplied: Path, refused: Callable[..., str]
) -> None:
    """Guards against a token that the network would take for its mask."""
    text = json.loads((supplied / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = 271
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    words = train_words(data, tmp_path / "run", "--tokenizer", tmp_path / "tokenizer.json")
    assert "ids up to 271" in refused(*words)


@pytest.mark.parametrize(
    ("options", "warmup"),
    [({}, 100), ({"steps": 50}, 5), ({"steps": 10**6}, 100), ({"steps": 50, "warmup": 7}, 7)],
)
def test_a_short_run_warms_up_for_a_short_while(options: dict[str, int], warmup: int) -> None:
    assert train_config(recipe("prose-small").train, TrainOptions(**options)).warmup == warmup


# ---------------------------------------------------------------------------------- score, judge


def test_score_tells_tokens_from_characters(
    tmp_path: Path, data: Path, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.jsonl"
    assert command("score", packed / "model", data, "--rows", 2, "--out", out) == 0
    rows = lines(out)
    for row in rows:
        bits = -row["log_prob"] / math.log(2)
        assert row["bits_per_token"] == pytest.approx(bits / LENGTH)
        assert row["bits_per_character"] == pytest.approx(bits / row["characters"])
        assert row["characters"] > LENGTH
    tokens = sum(row["bits_per_token"] for row in rows) / 2
    bits = sum(row["bits_per_token"] for row in rows) * LENGTH
    characters = bits / sum(row["characters"] for row in rows)
    said = capsys.readouterr().out
    assert said.startswith(f"{tokens:.4f} ± ")
    assert f" bits per token, {characters:.4f} ± " in said


def test_judge_is_what_the_library_gives(
    tmp_path: Path, samples: Path, judge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With entropy beside it, of the samples' own tokens."""
    out = tmp_path / "scores.jsonl"
    assert command("judge", judge, samples, "--batch-size", 2, "--out", out) == 0
    rows = lines(samples)
    expected = generative_perplexity(
        [row["text"] for row in rows], [row["tokens"] for row in rows], judge
    )
    said = capsys.readouterr().out
    assert said.startswith(f"perplexity {expected.perplexity.mean:.2f} ± ")
    assert f"unigram entropy {expected.entropy.mean:.3f} ± " in said
    scores = lines(out)
    assert [row["nll"] for row in scores] == pytest.approx(expected.texts_nll, rel=1e-5)
    assert [row["judge_tokens"] for row in scores] == list(expected.texts_tokens)
    assert sum(row["entropy"] for row in scores) / 3 == pytest.approx(expected.entropy.mean)


def test_judge_refuses(
    tmp_path: Path, samples: Path, judge: Path, packed: Path, refused: Callable[..., str]
) -> None:
    mute = shutil.copytree(judge, tmp_path / "mute")
    for path in mute.glob("*token*"):
        path.unlink()
    assert "has no tokenizer" in refused("judge", mute, samples)
    wide = shutil.copytree(judge, tmp_path / "wide")
    tokenizer = specmask.load(packed / "model").tokenizer
    assert tokenizer is not None
    tokenizer.save(str(wide / "tokenizer.json"))
    assert "the judge knows 270 tokens" in refused("judge", wide, samples)
    assert "no causal language model" in refused("judge", packed / "model", samples)
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"text": "a", "tokens": [1]}\n{"text": null, "tokens": [1]}\n')
    assert "bare.jsonl, line 2" in refused("judge", judge, bare)
    bare.write_text("")
    assert "is empty" in refused("judge", judge, bare)
    assert "no file" in refused("judge", judge, tmp_path / "missing.jsonl")
    assert "--out" in refused("judge", judge, samples, "--out", samples)
    assert "context=1" in refused("judge", judge, samples, "--context", 1)


def test_a_model_with_anothers_tokenizer_is_refused(
    tmp_path: Path, packed: Path, refused: Callable[..., str]
) -> None:
    model = shutil.copytree(packed / "model", tmp_path / "model")
    data = tmp_path / "wider.txt"
    data.write_text("\n\n".join(DOCUMENTS))
    train_bpe(data, VOCAB + 10).save(str(model / "tokenizer.json"))
    said = refused("sample", model)
    assert f"has {VOCAB + 10} tokens, the network {VOCAB}" in said
