"""Variable domains of antibodies whose exact probability is known: germline V, CDR3, germline J.

    python -m specmask.bench.recombination --num 120000 --seed 7 --out heavy.fasta

writes such chains as FASTA. The recombination models are OLGA's (Sethna et al., *OLGA: fast
computation of generation probabilities of B- and T-cell receptor amino acid sequences and motifs*,
2019), a package of its own under GPL-3 that this file only calls: pip install olga.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.progress import track

from specmask.checks import check_seed, optional_package, whole
from specmask.errors import UserError, exit_code, unknown

CHAINS = {
    "human_B_heavy": "VDJ",
    "human_T_beta": "VDJ",
    "human_B_kappa": "VJ",
    "human_B_lambda": "VJ",
    "human_T_alpha": "VJ",
}

PRODUCTIVE = {
    "504cc674d5472ce19ba4e516a95e77989ae13a10eae479c26e7a285c0b3ec0cf": 0.19727266509245645
}
"""SHA-256 of a model's marginals → probability that a recombination is productive, as `log_prob`
computes it where it is not known (OLGA 1.3.0, human_B_heavy)."""


class RecombinationLaw:
    """Productive V(D)J recombination, written out to the whole variable domain.

    A chain is the V germline up to its conserved cysteine, the CDR3, and the J germline behind its
    conserved phenylalanine or tryptophan. Its probability is the sum over the alleles that give
    those ends of OLGA's probability of the CDR3 with them, divided by the probability that a
    recombination is productive and of alleles that can be written out at all.

    Raises:
        UserError: OLGA is not installed, or has no such chain.
    """

    def __init__(self, chain: str = "human_B_heavy") -> None:
        if chain not in CHAINS:
            raise unknown("chain", chain, tuple(CHAINS))
        kind = CHAINS[chain]
        load, olga = _olga("load_model"), _olga()
        folder = Path(olga.__file__).parent / "default_models" / chain
        genes = getattr(load, f"GenomicData{kind}")()
        genes.load_igor_genomic_data(
            str(folder / "model_params.txt"),
            str(folder / "V_gene_CDR3_anchors.csv"),
            str(folder / "J_gene_CDR3_anchors.csv"),
        )
        model = getattr(load, f"GenerativeModel{kind}")()
        model.load_and_process_igor_model(str(folder / "model_marginals.txt"))
        probability = _olga("generation_probability")
        self._probability = getattr(probability, f"GenerationProbability{kind}")(model, genes)
        self._draw = getattr(_olga("sequence_generation"), f"SequenceGeneration{kind}")(
            model, genes
        )
        self._v = [name for name, *_ in genes.genV]
        self._j = [name for name, *_ in genes.genJ]
        self.before = _ends(genes.genV, _before_anchor)
        self.after = _ends(genes.genJ, _after_anchor)
        marginals = (folder / "model_marginals.txt").read_bytes()
        self._productive = PRODUCTIVE.get(hashlib.sha256(marginals).hexdigest())

    def sample(self, num: int, seed: int = 0) -> Iterator[str]:
        """`num` chains, one after the other."""
        with _numpy_seed(check_seed(seed)):
            for _ in range(whole("num", num, 1)):
                yield self._one()

    def _one(self) -> str:
        while True:
            _, cdr3, v, j = self._draw.gen_rnd_prod_CDR3()
            before, after = self.before.get(self._v[v]), self.after.get(self._j[j])
            if before is not None and after is not None:
                return f"{before}{cdr3}{after}"

    def log_prob(self, chain: str) -> float:
        """Natural logarithm of a chain's probability; −∞ if no recombination gives it."""
        pairs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for v, before in self.before.items():
            for j, after in self.after.items():
                fits = len(chain) > len(before) + len(after)
                if fits and chain.startswith(before) and chain.endswith(after):
                    pairs[chain[len(before) : len(chain) - len(after)]][v].append(j)
        if not pairs:
            return -math.inf
        if self._productive is None:  # minutes: every CDR3 of every length
            self._productive = float(
                self._probability.compute_regex_CDR3_template_pgen(
                    "CX{0,}", list(self.before), list(self.after)
                )
            )
        total = sum(
            float(self._probability.compute_aa_CDR3_pgen(cdr3, [v], js))
            for cdr3, alleles in pairs.items()
            for v, js in alleles.items()
        )
        return math.log(total / self._productive) if total > 0 else -math.inf

    def substitutions(self, chain: str) -> int:
        """Fewest residues outside the CDR3 that differ from those of some V and some J germline.

        What a chain is charged that `log_prob` calls impossible. Germlines are laid on from their
        ends, without gaps; a chain shorter than all of them is charged its length.
        """
        costs = [(len(before), _differing(chain, before)) for before in set(self.before.values())]
        tails = [
            (len(after), _differing(chain[::-1], after[::-1])) for after in set(self.after.values())
        ]
        fitting = (a + b for n, a in costs for m, b in tails if n + m < len(chain))
        return min(fitting, default=len(chain))


def _before_anchor(anchor: str, sequence: str) -> str | None:
    at = sequence.rfind(anchor)
    return None if at < 0 else sequence[at % 3 : at]  # the anchor fixes the reading frame


def _after_anchor(anchor: str, sequence: str) -> str | None:
    at = sequence.find(anchor)
    if at < 0:
        return None
    rest = sequence[at + len(anchor) :]
    return rest[: len(rest) // 3 * 3]


def _ends(genes: Any, cut: Any) -> dict[str, str]:
    """allele → its residues outside the CDR3, of those that have an anchor and no stop codon."""
    translate = _olga("utils").nt2aa
    found = {}
    for name, anchor, sequence in genes:
        end = cut(anchor, sequence) if anchor else None
        if end is not None and "*" not in (residues := translate(end)):
            found[name] = residues
    return found


def _differing(chain: str, germline: str) -> int:
    return sum(a != b for a, b in zip(chain, germline, strict=False))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """OLGA draws from NumPy's global generator, which is put back as it was."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


def _olga(module: str = "") -> Any:
    name = f"olga.{module}" if module else "olga"
    return optional_package(name, "the exact recombination law needs", extra=None)


# --------------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Recombination:
    """Write chains of the exact recombination law as FASTA."""

    out: Path
    """FASTA to write."""
    num: int = 1000
    """Chains."""
    seed: int = 0
    """Of the draws, 0 to 2³²−1."""
    chain: str = "human_B_heavy"
    """human_B_heavy, human_T_beta, human_B_kappa, human_B_lambda or human_T_alpha."""


def main(args: Recombination) -> None:
    """`python -m specmask.bench.recombination`."""
    if args.out.exists():
        raise UserError(f"{args.out} is there already: choose another --out, or move it away")
    law = RecombinationLaw(args.chain)
    drawn = enumerate(law.sample(args.num, args.seed))
    with args.out.open("w", encoding="utf-8") as file:
        for number, chain in track(drawn, "drawing", total=args.num):
            file.write(f">{args.chain}|seed={args.seed}|{number}\n{chain}\n")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Recombination))))
