"""Any-subset speculative decoding on the causal head (ASSD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from specmask.categorical import check_tempering
from specmask.checks import whole
from specmask.masking import ConstantWindow, SpeculativeLaw
from specmask.models.protocol import Meter
from specmask.samplers.base import Canvas, State, StepInfo, Uniforms
from specmask.samplers.speculative import Speculative


@dataclass(frozen=True)
class AnySubset:
    """Any-subset speculative decoding (ASSD, Guo and Ermon, arXiv 2504.20456).

    One pass drafts the next min(k, masked) tokens of a random order in parallel, a second one
    scores them under the σ-causal law, and speculative sampling keeps a run of them and replaces
    the first rejected one. The published oracle is a second pass of one any-subset network; here it
    is the causal head, whose pass is a fraction of one. With that, ASSD is `Speculative` with a
    constant window, one round, and the first draft accepted as it is: draft and oracle agree
    there. Its law is exact, and the joint law of the head within a window.

    Passes: one trunk and one verify pass reveal two tokens at least, a last single token needs
    only a trunk pass; so trunk and verify passes together are at most the tokens. Published: k = 5.
    """

    k: int = 5
    """Tokens drafted in a pass, at least 2."""
    temperature: float = 1.0
    """Divides the logits of draft and target alike; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass, in draft and target alike."""

    verifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("k", self.k, 2, (1 << 31) - 1)
        check_tempering(self.temperature, self.top_p)

    @property
    def _speculative(self) -> Speculative:
        return Speculative(
            ConstantWindow(self.k),
            rounds=1,
            first="accept",
            temperature=self.temperature,
            top_p=self.top_p,
        )

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        return self._speculative.init(canvas, uniforms)

    def law(self) -> SpeculativeLaw:
        return self._speculative.law()

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        return self._speculative.step(model, state, uniforms)
