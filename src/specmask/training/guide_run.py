"""What trainings of guides share: an optimiser, a log, checkpoints, and the folder at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.optim import AdamW

from specmask.errors import UserError
from specmask.models.guides import Guide, save_guide
from specmask.training import checkpoints
from specmask.training.log import Log
from specmask.training.loop import versions
from specmask.training.optimizers import flatten, restore

GUIDE = "guide"
"""Folder of the trained guide inside a training's folder."""
_CADENCE = ("steps", "save_every", "eval_every")


def adamw(guide: Guide, lr: float) -> AdamW:
    """AdamW over all of a guide, without decay; its state has names."""
    names, parameters = zip(*guide.named_parameters(), strict=True)
    return AdamW([{"params": list(parameters), "names": list(names)}], lr=lr, weight_decay=0.0)


class GuideRun:
    """The steps made, in a folder if there is one: log.jsonl, checkpoints/, and at the end guide/.

    Args:
        out: the folder, or None only to count.
        config: of the training, JSON-able, with `steps` and `save_every`; what says how to train
            must be the same when a run is resumed.
        guide, optimizer: put back into the state of the newest checkpoint if `resume`.

    Raises:
        UserError: the folder holds a run and `resume` is False, or one of other settings.
    """

    def __init__(
        self,
        out: Path | None,
        config: Mapping[str, Any],
        guide: Guide,
        optimizer: AdamW,
        resume: bool,
    ) -> None:
        self.step, self._out, self._config = 0, out, config
        self._guide, self._optimizers = guide, {"adamw": optimizer}
        self._log: Log | None = None
        if out is None:
            return
        if checkpoints.exist(out) and not resume:
            raise UserError(f"{out} holds a training: resume it, or choose another folder")
        fixed = {key: value for key, value in config.items() if key not in _CADENCE}
        self._fixed = {**fixed, "sizes": asdict(guide.config)}
        found = checkpoints.newest(out) if resume else None
        if found is not None:
            before = found.state["config"]
            for key, value in self._fixed.items():
                if before.get(key) != value:
                    raise UserError(
                        f"{out} was trained with {key}={before.get(key)!r}, got {value!r}: resume "
                        "it with the same settings, or choose another folder"
                    )
            guide.load_state_dict(found.tensors("model.safetensors"))
            restore(self._optimizers, found.tensors("optimizer.safetensors"))
            self.step = found.step
        out.mkdir(parents=True, exist_ok=True)
        about = {"config": dict(config), "versions": versions()}
        self._log = Log(out / "log.jsonl", about, self.step)

    def advance(self, kind: str, row: Mapping[str, Any]) -> None:
        """One step is made; what it says goes into the log, and now and then all is saved."""
        self.step += 1
        self.tell(kind, row)
        if self.step % self._config["save_every"] == 0 or self.step == self._config["steps"]:
            self._save()

    def tell(self, kind: str, row: Mapping[str, Any]) -> None:
        """A line of the log."""
        if self._log is not None:
            self._log.write(kind, {"step": self.step, **row})

    def finish(self) -> None:
        """Write the trained guide."""
        if self._out is not None and self._log is not None:
            self._log.close()
            save_guide(self._out / GUIDE, self._guide, overwrite=True)
            self._guide.name = self._out.resolve().name

    def _save(self) -> None:
        if self._out is None or self._log is None:
            return
        self._log.sync()
        moments, groups = flatten(self._optimizers)
        tensors = {
            "model.safetensors": dict(self._guide.state_dict()),
            "ema.safetensors": {},
            "optimizer.safetensors": moments,
        }
        state = {"step": self.step, "config": self._fixed}
        checkpoints.write(self._out, state, tensors, groups, keep=2)
