"""One self-contained page that replays how a row was generated, network pass by network pass."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from specmask.errors import UserError
from specmask.samplers import Frame

MASKED = -1  # in place of a token: the position is masked
NO_DRAFT = -1  # in place of a draft: none was rejected here

_PLACEHOLDER = "@@DATA@@"


@dataclass(frozen=True)
class Step:
    """What is known after one step, and what the step changed.

    trunk, verify, nfe, accepted, rejected: totals since step 0. changes: (position, token, draft)
    in the order of revelation; `token` is now at `position` (or MASKED), and `draft` was rejected
    there in this step (or NO_DRAFT).
    """

    trunk: int
    verify: int
    nfe: float
    accepted: int
    rejected: int
    changes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Replay:
    """The history of one row. `dataclasses.asdict` of it is plain JSON.

    title: what made the row. note: a line about it, may be empty. symbols: text of every token
    that occurs, so that a page carries no vocabulary. start: token of each position before the
    first pass, MASKED where it was free. steps: step 0, before any pass, and one per trunk pass.
    """

    title: str
    note: str
    symbols: dict[int, str]
    start: tuple[int, ...]
    steps: tuple[Step, ...]

    def tokens_at(self, step: int) -> list[int]:
        """The row after 0 ≤ `step` < len(steps), MASKED where it is masked."""
        tokens = list(self.start)
        for past in self.steps[: step + 1]:
            for position, token, _ in past.changes:
                tokens[position] = token
        return tokens

    @property
    def text(self) -> str:
        """The row after the last step, `_` where it is masked still."""
        last = self.tokens_at(len(self.steps) - 1)
        return "".join("_" if token == MASKED else self.symbols[token] for token in last)


# ---------------------------------------------------------------------------------------- record


@dataclass(frozen=True)
class _View:
    """One row of one frame in plain numbers, padding cut off, MASKED for the mask."""

    tokens: list[int]
    order: list[int]
    drafts: list[int]
    accepted: int
    rejected: int
    trunk: int
    verify: int
    nfe: float


def record(
    frames: Iterable[Frame],
    decode: Callable[[list[int]], list[str]] | Sequence[str],
    mask_id: int,
    title: str,
    note: str = "",
    row: int | None = None,
) -> Replay:
    """The history of one row, from the frames of `stream` or of `sample(on_frame=…)`.

    Args:
        frames: from step 0 on. Frames that the row is not in are passed over.
        decode: the text of each token on its own: a function of a list of tokens, or the symbols
            of the vocabulary by token.
        mask_id: the network's mask symbol.
        title, note: what the page says about the row.
        row: number of the row; by default the first one of the first frame.

    Raises:
        UserError: no frame holds the row, its frames do not begin at step 0 or skip a step, or
            the symbols lack one of its tokens.
    """
    views: list[_View] = []
    for frame in frames:
        numbers = frame.rows.tolist()
        row = numbers[0] if row is None else row
        if row not in numbers:
            continue
        if frame.step != len(views):
            raise UserError(
                f"row {row}: got the frame of step {frame.step} where step {len(views)} was "
                "expected: pass all frames of one run, in order"
            )
        views.append(_view(frame, numbers.index(row), mask_id))
    if not views:
        raise UserError(f"no frame of row {'any' if row is None else row}: expected those of a run")

    steps, accepted, rejected = [], 0, 0
    for before, now in zip(views[:1] + views, views, strict=False):
        accepted, rejected = accepted + now.accepted, rejected + now.rejected
        steps.append(
            Step(now.trunk, now.verify, now.nfe, accepted, rejected, _changes(before, now))
        )
    start = tuple(views[0].tokens)
    return Replay(title, note, _symbols(decode, start, steps), start, tuple(steps))


def _view(frame: Frame, index: int, mask_id: int) -> _View:
    length, info, passes = int(frame.lengths[index]), frame.info, frame.passes
    return _View(
        tokens=[MASKED if t == mask_id else t for t in frame.tokens[index, :length].tolist()],
        order=frame.order[index, :length].tolist(),
        drafts=info.rejected_drafts[index, :length].tolist(),
        accepted=int(info.accepted[index]),
        rejected=int(info.rejected[index]),
        trunk=int(passes.trunk[index]),
        verify=int(passes.verify[index]),
        nfe=float(passes.nfe[index]),
    )


def _changes(before: _View, now: _View) -> tuple[tuple[int, int, int], ...]:
    return tuple(
        (position, now.tokens[position], now.drafts[position])
        for position in now.order
        if now.tokens[position] != before.tokens[position] or now.drafts[position] != NO_DRAFT
    )


def _symbols(
    decode: Callable[[list[int]], list[str]] | Sequence[str],
    start: Sequence[int],
    steps: Iterable[Step],
) -> dict[int, str]:
    seen = set(start) | {token for step in steps for change in step.changes for token in change[1:]}
    used = sorted(seen - {MASKED, NO_DRAFT})
    if callable(decode):
        texts = decode(used)
        if len(texts) != len(used):
            raise UserError(
                f"decode gave {len(texts)} texts for {len(used)} tokens: expected one each"
            )
        return dict(zip(used, texts, strict=True))
    if used and used[-1] >= len(decode):
        raise UserError(
            f"{len(decode)} symbols, but token {used[-1]} occurs: pass the whole vocabulary"
        )
    return {token: decode[token] for token in used}


# ----------------------------------------------------------------------------------------- write


def write(path: str | Path, replays: Sequence[Replay], *, overwrite: bool = False) -> None:
    """Write one HTML page, whole or not at all, that needs no network and no other file.

    The replays run side by side on one clock, the network passes made (NFE), so that one sees
    which is further along. `#step=12` after the address shows that step and stands still.

    Raises:
        UserError: no replay, no such folder, or the file is there and may not be overwritten.
    """
    path = Path(path)
    if not replays:
        raise UserError("no replay to write: expected at least one")
    if not path.parent.is_dir():
        raise UserError(
            f"no folder {str(path.parent)!r} to write {path.name!r} into: make it first"
        )
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder: expected the name of a page to write")
    if path.exists() and not overwrite:
        raise UserError(f"{str(path)!r} is there already: pass overwrite=True or another name")
    page = files(__package__).joinpath("replay.html").read_text(encoding="utf-8")
    data = _script_json({"replays": [asdict(replay) for replay in replays]})
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(page.replace(_PLACEHOLDER, data), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _script_json(value: object) -> str:
    """JSON that is safe inside <script>: ASCII, and without the characters HTML gives a meaning."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":  # in JSON they occur inside strings only
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
