"""Subword text as commands take it: which tokenizer, tokenised once, cut into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from accelerate import PartialState
from tokenizers import Tokenizer

from specmask.cli.output import progress_bar
from specmask.data.batches import Batches, windows
from specmask.data.corpora import splits
from specmask.data.documents import Documents, documents
from specmask.data.sequences import SequenceBatches, SequenceStore, split
from specmask.data.subwords import END_OF_TEXT, Progress, load_tokenizer, train_bpe
from specmask.data.token_ids import TokenIds, tokenize_corpus
from specmask.errors import UserError
from specmask.training.config import TrainConfig
from specmask.training.loss import Rows


@dataclass(frozen=True)
class SubwordOptions:
    """How the text of a subword recipe becomes rows of tokens."""

    tokenizer: str | None = None
    """Recipes of subwords: a Hugging Face tokenizer: its name, its folder or a tokenizer.json."""
    vocab_size: int | None = None
    """Recipes of subwords: instead, train a byte-level BPE of so many tokens on --data."""
    rows: Literal["packed", "documents"] = "packed"
    """Recipes of subwords: packed: all documents in one stream, the end-of-text token after each,
    cut into rows; documents: each a row, and of one longer than --length a window."""
    end_of_text: str = END_OF_TEXT
    """Recipes of subwords, with --rows packed: what the tokenizer calls its end-of-text token."""
    text_column: str = "text"
    """Recipes of subwords: the column of .parquet or field of .jsonl that holds the text."""


@dataclass(frozen=True)
class Reading:
    """What a training reads.

    tokenizer: of the text. batches: step → rows. validation: rows that no batch holds.
    """

    tokenizer: Tokenizer
    batches: Callable[[int], Rows]
    validation: Rows


def read_subwords(
    paths: tuple[str, ...],
    options: SubwordOptions,
    tokenizer: str | None,
    vocab_size: int,
    length: int,
    config: TrainConfig,
    folder: Path,
) -> Reading:
    """Tokenise documents into `folder`, once, and hold 10 % of them out.

    Packed, the first 90 % of the stream are trained on, and the 5 % after them validate; of
    documents, a hash of their tokens decides. An interrupted call goes on where it was when it is
    made again. Of several processes the main one works, the others wait and then map its files.

    Args:
        paths: as `documents` takes them.
        options: what the user asked for.
        tokenizer, vocab_size: the recipe's, where the user asked for none; a tokenizer goes first.
        length: of rows, in tokens.
        config: batch size, seed and validation rows.
        folder: for the ids.

    Raises:
        UserError: a tokenizer and a vocabulary size, no text, too little of it to hold some out, a
            tokenizer whose ids have gaps, and what is raised by `documents`, `load_tokenizer`,
            `train_bpe` and `tokenize_corpus`.
    """
    if options.tokenizer is not None and options.vocab_size is not None:
        raise UserError(
            "--tokenizer and --vocab-size together: the first brings a tokenizer, the second "
            "trains one; pass one of them"
        )
    source = documents(paths, options.text_column)
    if next(iter(source), None) is None:
        raise UserError(f"{', '.join(paths)}: no text; expected some to train on")
    with PartialState().main_process_first():
        if options.vocab_size is None and (name := options.tokenizer or tokenizer) is not None:
            found = load_tokenizer(name)
        else:
            with _progress("training the tokenizer") as progress:
                found = train_bpe(source, options.vocab_size or vocab_size, progress)
        largest = max(found.get_vocab().values())
        if largest >= found.get_vocab_size():  # else the network would take it for the mask
            raise UserError(
                f"the tokenizer has {found.get_vocab_size()} tokens with ids up to {largest}: "
                "expected ids without gaps; use another tokenizer"
            )
        packed = options.rows == "packed"
        mode = "packed" if packed else "rows"
        corpus = tokenise(source, found, folder, mode, options.end_of_text)
    if packed:
        parts = splits(np.asarray(corpus.ids))
        return Reading(
            corpus.tokenizer,
            Batches(parts["train"], length, config.batch_size, config.seed),
            windows(parts["validation"], length, config.eval_rows),
        )
    assert corpus.offsets is not None
    store = SequenceStore.of_arrays(np.asarray(corpus.ids), np.asarray(corpus.offsets))
    training, validation, _ = split(store, validation=0.05, test=0.05)
    if not len(training) or not len(validation):
        raise UserError(
            f"{', '.join(paths)}: {len(store)} documents, too few to hold out 5 % of them for "
            "validation; add some, or pass --rows packed"
        )
    count = min(config.eval_rows, len(validation))
    return Reading(
        corpus.tokenizer,
        SequenceBatches(training, config.batch_size, config.seed, longest=length, crop=True),
        SequenceBatches(validation, count, 0, longest=length, crop=True)(0),
    )


def tokenise(
    source: Documents,
    tokenizer: Tokenizer,
    folder: Path,
    mode: str,
    end_of_text: str = END_OF_TEXT,
) -> TokenIds:
    """`tokenize_corpus`, and how far it is."""
    with _progress("tokenising") as progress:
        return tokenize_corpus(source, tokenizer, folder, mode, end_of_text, progress)


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    with progress_bar() as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
