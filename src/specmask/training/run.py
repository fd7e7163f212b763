"""The moving parts of one training run."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from specmask.errors import UserError
from specmask.models.hybrid import DraftNetwork
from specmask.training import checkpoints, optimizers
from specmask.training.checkpoints import Checkpoint
from specmask.training.config import TrainConfig, lr_factor
from specmask.training.ema import Ema, copy_into, trained, weights
from specmask.training.feed import Batch, Part
from specmask.training.flops import count_flops, measured_peak
from specmask.training.log import Log, Since, nats_and_bits
from specmask.training.loss import Aim, Rows, draw_masks, loss_terms, tokens_and_lengths

VALIDATION_SEED = 2510_03929  # of the orders and masks of every validation, in every run


class Run:
    """The moving parts of one training, and how they move.

    Attributes:
        step: optimiser steps made.
        ema: the averaged weights.
        log: in the process that writes, None in the others.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: DraftNetwork,
        config: TrainConfig,
        out: Path,
        identity: dict[str, Any],
        checkpoint: Checkpoint | None,
    ) -> None:
        self.network, self.config, self.out, self.identity = network, config, out, identity
        self.accelerator, self.device = accelerator, accelerator.device
        network.to(self.device)
        self.parameters = trained(network)
        self.optimizers = optimizers.build(network, config)
        self.ema = Ema(self.parameters, config.ema)
        self.step, self.tokens, self.seconds, self.since = 0, 0, 0.0, Since()
        if checkpoint is not None:
            self._restore(checkpoint)
        objective: nn.Module = Objective(
            network, Aim(config.weighting, config.target_weight, config.distil)
        )
        if config.compile:
            objective.compile()
        self.objective, *self.steppers = accelerator.prepare(objective, *self.optimizers.values())
        self.flops = count_flops(network)
        self.peak = accelerator.num_processes * measured_peak(self.device, config.precision)
        self.log = self._open_log() if accelerator.is_main_process else None
        self._saved_at = time.perf_counter()

    def update(self, batch: Batch, waited: float, stop: bool) -> bool:
        """One optimiser step; the batch was waited for, for so many seconds.

        `stop` asks to stop after it; the answer says whether any process was asked.
        """
        started = time.perf_counter()
        optimizers.set_lr(self.optimizers, lr_factor(self.step, self.config))
        self._set_mode()
        terms = self._gradients(batch.parts)
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.config.clip)
        flag = torch.tensor([float(stop)], device=self.device)
        told = self.accelerator.reduce(torch.cat((terms, norm.detach()[None], flag)), "mean")
        draft, target, length, stops = told.tolist()
        self._check_finite(draft, target, length)
        for stepper in self.steppers:
            stepper.step()
            stepper.zero_grad()
        self.ema.update(self.step)
        self.step += 1
        tokens, flops = int(batch.lengths.sum()), self.flops.of_batch(batch.lengths, batch.revealed)
        seconds = waited + time.perf_counter() - started
        self.tokens += tokens
        self.seconds += seconds
        self.since.add(draft, target, length)
        self.since.time(tokens, flops, seconds, waited)
        return stops > 0

    def validate(self, validation: Rows) -> dict[str, Any]:
        """Both terms on the first `eval_rows` rows, at masks that are the same in every run."""
        tokens, lengths = tokens_and_lengths(validation)
        tokens = tokens[: self.config.eval_rows]
        lengths = None if lengths is None else lengths[: self.config.eval_rows]
        rows, longest = tokens.shape
        sizes = torch.full((rows,), longest) if lengths is None else lengths
        order, revealed = draw_masks(VALIDATION_SEED, 0, sizes, longest)
        chunk = self.config.batch_size // self.config.accumulation
        total = torch.zeros(2, dtype=torch.float64)
        self.network.eval()
        with torch.no_grad(), self.accelerator.autocast(), self.ema.applied():
            for start in range(0, len(tokens), chunk):
                part = slice(start, start + chunk)
                terms = loss_terms(
                    self.network, *self._take(part, tokens, order, revealed, lengths)
                )
                both = torch.stack((terms.draft_nll, terms.target_nll))
                total += both.double().cpu() * len(tokens[part])
        draft, target = (total / len(tokens)).tolist()
        row = {"step": self.step, "tokens": self.tokens, **nats_and_bits(draft, target)}
        row["seconds"] = self.seconds
        return self._tell("validation", row)

    def log_line(self) -> dict[str, Any]:
        """Write the means since the last line."""
        row = {"step": self.step, "tokens": self.tokens, **self.since.row(self.peak)}
        row["lr"] = self.config.lr * lr_factor(self.step - 1, self.config)
        row["seconds"] = self.seconds
        self.since = Since()
        return self._tell("train", row)

    def save_is_due(self) -> bool:
        """By steps or by the clock."""
        every, seconds = self.config.save_every, self.config.save_every_seconds
        by_clock = seconds > 0 and time.perf_counter() - self._saved_at >= seconds
        return by_clock or (every > 0 and self.step % every == 0)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self._saved_at = time.perf_counter()
        if self.log is None:
            return
        self.log.sync()
        tensors, groups = optimizers.flatten(self.optimizers)
        state = {
            **self.identity,
            "versions": versions(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "since": dataclasses.asdict(self.since),
        }
        files = {
            "model.safetensors": weights(self.network),
            "ema.safetensors": self.ema.averages,
            "optimizer.safetensors": tensors,
        }
        checkpoints.write(self.out, state, files, groups, self.config.keep)

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()

    def _take(self, part: slice, *rows: Tensor | None) -> list[Any]:
        """Some of the rows, on the device; no lengths stay no lengths."""
        return [None if t is None else t[part].to(self.device) for t in rows]

    def _gradients(self, parts: list[Part]) -> Tensor:
        """Gradients of the mean loss over the batch; (2,) draft and target term of this process."""
        # Dropout, where a trunk has it, is a function of (seed, step, process) too.
        torch.manual_seed(
            (self.config.seed << 40) + (self.step << 10) + self.accelerator.process_index
        )
        terms = torch.zeros(2, device=self.device)
        for part in parts:
            here = part.on(self.device)
            if self.config.compile:  # once for all numbers of masked tokens
                torch._dynamo.maybe_mark_dynamic(here.scored, 1)
            with self.accelerator.accumulate(self.objective):
                loss, both = self.objective(*here)
                self.accelerator.backward(loss)
            terms += both / len(parts)
        return terms

    def _check_finite(self, draft: float, target: float, norm: float) -> None:
        if not all(map(math.isfinite, (draft, target, norm))):
            raise UserError(
                f"step {self.step}: draft term {draft}, target term {target}, gradient norm {norm} "
                f"are not all finite; the last checkpoint in {self.out} is as it was. Lower lr "
                f"(now {self.config.lr:g}), lengthen warmup or lower clip, and start again in "
                "another folder"
            )

    def _set_mode(self) -> None:
        self.network.train()
        if self.config.frozen_trunk:
            self.network.get_submodule("trunk").eval()

    def _open_log(self) -> Log:
        count = sum(t.numel() for t in self.network.parameters())
        header = {
            **self.identity,
            "versions": versions(),
            "parameters": count,
            "trained_parameters": sum(t.numel() for t in self.parameters.values()),
            "peak_flops": self.peak,
        }
        return Log(self.out / "log.jsonl", header, self.step)

    def _tell(self, kind: str, row: dict[str, Any]) -> dict[str, Any]:
        if self.log is not None:
            self.log.write(kind, row)
        return row

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        try:
            copy_into(weights(self.network), checkpoint.tensors("model.safetensors"))
            copy_into(self.ema.averages, checkpoint.tensors("ema.safetensors"))
            optimizers.restore(self.optimizers, checkpoint.tensors("optimizer.safetensors"))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{checkpoint.folder} does not fit this network: {error.args[0]}"
            ) from error
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.since = Since(**state["since"])


class Objective(nn.Module):
    """The loss as a module, so that autocast, DDP and compilation wrap all of it."""

    def __init__(self, network: DraftNetwork, aim: Aim | None = None) -> None:
        super().__init__()
        self.network, self.aim = network, aim

    def forward(
        self,
        tokens: Tensor,
        order: Tensor,
        revealed: Tensor,
        lengths: Tensor | None,
        scored: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss, and (2,) its draft and target terms without gradient."""
        terms = loss_terms(self.network, tokens, order, revealed, lengths, scored, self.aim)
        return terms.total, torch.stack((terms.draft_nll, terms.target_nll)).detach()


def versions() -> dict[str, str]:
    """Of specmask, torch and Python."""
    try:
        own = version("specmask")
    except PackageNotFoundError:
        own = "not installed"  # run from the source tree
    return {"specmask": own, "torch": torch.__version__, "python": platform.python_version()}
