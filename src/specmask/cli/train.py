"""`specmask train`."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import tyro

import specmask
from specmask.cli.options import given, optional
from specmask.cli.output import console
from specmask.data.batches import Batches, windows
from specmask.data.corpora import load_corpus
from specmask.errors import UserError
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.recipes import recipe
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
    """One of: text8-small, text8, openwebtext, characters."""
    out: Path
    """Folder of the run: log.jsonl, checkpoints/, model/."""
    data: Path | None = None
    """Text file: raw, .gz, .xz or .zip. Recipes for text8 fetch that corpus without it."""
    init: str | None = None
    """Model whose weights to start from (a further stage of training); of the same shape."""
    fresh_head: bool = False
    """With --init: take the trunk alone, and start the head anew."""
    resume: bool = False
    """Continue from the newest sound checkpoint in --out."""
    network: tyro.conf.OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    train: tyro.conf.OmitArgPrefixes[TrainOptions] = field(default_factory=TrainOptions)


def run_train(args: Train) -> None:
    """`specmask train`."""
    plan = recipe(args.recipe)
    settings = given(args.train)
    if "steps" in settings:  # a short run warms up for a short while, unless it says otherwise
        settings.setdefault("warmup", min(plan.train.warmup, max(settings["steps"] // 10, 0)))
    config = replace(plan.train, **settings)
    network_config = replace(plan.network, **given(args.network))
    if args.data is None and plan.corpus != "text8":
        raise UserError(f"recipe {plan.name!r} needs a text: pass --data FILE")
    corpus = load_corpus(args.data, plan.corpus)
    network_config = replace(network_config, vocab_size=corpus.tokenizer.get_vocab_size())
    torch.manual_seed(config.seed)
    network = HybridTransformer(network_config)
    if args.init is not None:
        start = specmask.load(args.init)
        if start.tokenizer is None or start.tokenizer.to_str() != corpus.tokenizer.to_str():
            raise UserError(f"--init {args.init} reads other symbols than the text of this run has")
        _start_from(network, start, args.fresh_head)
    length = network_config.length
    folder = train(
        network,
        Batches(corpus.train, length, config.batch_size, config.seed),
        config,
        args.out,
        tokenizer=corpus.tokenizer,
        validation=windows(corpus.validation, length, config.eval_rows),
        resume=args.resume,
        console=console,
    )
    console.print(
        f"model saved in {folder}: specmask sample {folder}", markup=False, soft_wrap=True
    )


def _start_from(network: HybridTransformer, model: specmask.Model, fresh_head: bool) -> None:
    """Copy a model's weights, or its trunk's, into a network of the same shape.

    The length may differ: no weight depends on it, and short rows are a good first stage.
    """
    other, length = model.network, network.config.length
    if not isinstance(other, HybridTransformer) or (
        replace(other.config, length=length) != network.config
    ):
        raise UserError(
            f"--init {model.name} has another shape ({getattr(other, 'config', type(other))}) than "
            f"this training ({network.config}): pass the same sizes"
        )
    part = "trunk" if fresh_head else ""
    network.get_submodule(part).load_state_dict(other.get_submodule(part).state_dict())
    if fresh_head:  # so that the target begins as the draft
        network.head.norm.load_state_dict(other.trunk.norm.state_dict())
