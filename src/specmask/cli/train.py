"""`specmask train`."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import tyro

import specmask
from specmask.cli.options import given, optional, train_config
from specmask.cli.output import console
from specmask.cli.subwords import Reading, SubwordOptions, read_subwords
from specmask.data.batches import Batches, windows
from specmask.data.corpora import load_corpus
from specmask.errors import UserError
from specmask.models.hybrid import DraftNetwork, HybridConfig, HybridNetwork, build
from specmask.recipes import Recipe, recipe
from specmask.training.config import TrainConfig
from specmask.training.loop import train

if TYPE_CHECKING:
    TrainOptions: TypeAlias = Any
    NetworkOptions: TypeAlias = Any
else:
    TrainOptions = make_dataclass("TrainOptions", optional({"": TrainConfig}), frozen=True)
    NetworkOptions = make_dataclass(
        "NetworkOptions", optional({"": HybridConfig}, frozenset({"vocab_size"})), frozen=True
    )


@dataclass(frozen=True)
class Train:
    """Train a model: RECIPE names the network and its training, --data the text."""

    recipe: tyro.conf.Positional[str]
    """One of: text8-small, text8, openwebtext, prose-small, characters."""
    out: Path
    """Folder of the run: log.jsonl, checkpoints/, model/."""
    data: tuple[str, ...] = ()
    """Text. Recipes of characters: one file, raw, .gz, .xz or .zip; those for text8 fetch that
    corpus without it. Recipes of subwords: files .txt (a blank line between two documents), .jsonl
    or .parquet, or hub:NAME, a data set of the Hugging Face Hub."""
    init: str | None = None
    """Model whose weights to start from (a further stage of training); of the same shape."""
    fresh_head: bool = False
    """With --init: take the trunk alone, and start the head anew."""
    resume: bool = False
    """Continue from the newest sound checkpoint in --out."""
    subwords: tyro.conf.OmitArgPrefixes[SubwordOptions] = field(default_factory=SubwordOptions)
    network: tyro.conf.OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    """The network's sizes; what is left out is the recipe's."""
    train: tyro.conf.OmitArgPrefixes[TrainOptions] = field(default_factory=TrainOptions)
    """How it is trained; what is left out is the recipe's."""


def run_train(args: Train) -> None:
    """`specmask train`."""
    plan = recipe(args.recipe)
    config = train_config(plan.train, args.train)
    network_config = replace(plan.network, **given(args.network))
    if not args.data and plan.corpus != "text8":
        raise UserError(f"recipe {plan.name!r} needs a text: pass --data FILE")
    read = _subwords if plan.corpus == "subwords" else _characters
    text = read(args, plan, network_config.length, config)
    network_config = replace(network_config, vocab_size=text.tokenizer.get_vocab_size())
    torch.manual_seed(config.seed)
    network = build(network_config)
    if args.init is not None:
        start = specmask.load(args.init)
        if start.tokenizer is None or start.tokenizer.to_str() != text.tokenizer.to_str():
            raise UserError(
                f"--init {args.init} reads other symbols than the text of this run has: expected "
                "the same alphabet, or for subwords its own tokenizer (pass --tokenizer, with the "
                "model's folder)"
            )
        _start_from(network, start, args.fresh_head)
    folder = train(
        network,
        text.batches,
        config,
        args.out,
        tokenizer=text.tokenizer,
        validation=text.validation,
        resume=args.resume,
        console=console,
    )
    console.print(
        f"model saved in {folder}: specmask sample {folder}", markup=False, soft_wrap=True
    )


def _characters(args: Train, plan: Recipe, length: int, config: TrainConfig) -> Reading:
    if args.subwords != SubwordOptions():
        raise UserError(
            f"recipe {plan.name!r} reads characters: --tokenizer, --vocab-size, --rows, "
            "--end-of-text and --text-column are for recipes of subwords"
        )
    if len(args.data) > 1:
        raise UserError(
            f"--data has {len(args.data)} files: recipe {plan.name!r} reads one; join them"
        )
    corpus = load_corpus(args.data[0] if args.data else None, plan.corpus)
    return Reading(
        corpus.tokenizer,
        Batches(corpus.train, length, config.batch_size, config.seed),
        windows(corpus.validation, length, config.eval_rows),
    )


def _subwords(args: Train, plan: Recipe, length: int, config: TrainConfig) -> Reading:
    return read_subwords(
        *(args.data, args.subwords, plan.tokenizer, plan.network.vocab_size, length, config),
        folder=args.out / "data",
    )


def _start_from(network: DraftNetwork, model: specmask.Model, fresh_head: bool) -> None:
    """Copy a model's weights, or its trunk's, into a network of the same shape.

    Length and dropout may differ: no weight depends on them, and short rows are a good first stage.
    A trunk alone may come from a network with another head, or none.
    """
    other, config = model.network, network.config
    same = {"length": config.length, "dropout": config.dropout}
    if fresh_head:
        same |= {"head_layers": config.head_layers, "residual": config.residual}
    theirs = getattr(other, "config", None)
    if not isinstance(theirs, HybridConfig) or replace(theirs, **same) != config:
        raise UserError(
            f"--init {model.name} has another shape ({theirs or type(other)}) than "
            f"this training ({network.config}): pass the same sizes"
        )
    assert isinstance(other, DraftNetwork)
    part = "trunk" if fresh_head else ""
    network.get_submodule(part).load_state_dict(other.get_submodule(part).state_dict())
    if fresh_head and isinstance(network, HybridNetwork):  # so that the target begins as the draft
        network.head.norm.load_state_dict(other.trunk.norm.state_dict())
