from __future__ import annotations

import errno
import io
import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from specmask.errors import UserError
from specmask.models.checkpoint import load
from specmask.training import checkpoints, loop, optimizers
from specmask.training.checkpoints import TENSOR_FILES, newest
from specmask.training.checks import identify
from specmask.training.config import lr_factor
from specmask.training.export import export
from specmask.training.log import TIMINGS
from specmask.training.loop import train


def log_of(out: Path) -> list[dict]:
    """The log without what a clock decides."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    a, b = newest(one), newest(other)
    assert a is not None
    assert b is not None
    assert a.step == b.step
    for name in TENSOR_FILES:
        left, right = a.tensors(name), b.tensors(name)
        assert left.keys() == right.keys()
        assert left
        for key in left:
            assert torch.equal(left[key], right[key]), (name, key)
    assert log_of(one) == log_of(other)
    assert (one / "model/model.safetensors").read_bytes() == (
        other / "model/model.safetensors"
    ).read_bytes()


def crash() -> None:
    raise RuntimeError("the lights went out")


SETTINGS = [
    {},
    {"optimizer": "muon"},
    {"frozen_trunk": True},
    {"accumulation": 2},
    {"precision": "bf16"},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, make_network, batches, make_config, crash_at, changes
) -> None:
    config, check = make_config(**changes), batches(10**6)
    train(make_network(), batches, config, tmp_path / "whole", validation=check)
    out = tmp_path / "resumed"
    for step in (3, 25, 39):  # before the first checkpoint, between two, before the last
        nasty = crash_at(batches, step, crash)
        with pytest.raises(RuntimeError, match="lights"):
            train(make_network(), nasty, config, out, validation=check, resume=step > 3)
    network = make_network()
    for parameter in network.parameters():  # what it starts from must not matter
        parameter.data.add_(1.0)
    train(network, batches, config, out, validation=check, resume=True)
    assert_same_run(tmp_path / "whole", out)


def test_the_log(whole_run: Path, make_config) -> None:
    header, *rows = log_of(whole_run)
    assert header["kind"] == "header"
    assert header["config"]["steps"] == 40
    assert header["network"]["width"] == 16
    assert header["parameters"] == header["trained_parameters"] > 0
    assert set(header["versions"]) == {"specmask", "torch", "python"}
    steps = [(row["kind"], row["step"]) for row in rows]
    assert [s for kind, s in steps if kind == "train"] == [7, 14, 21, 28, 35, 40]
    assert [s for kind, s in steps if kind == "validation"] == [10, 20, 30, 40]
    last = [row for row in rows if row["kind"] == "train"][-1]
    assert last["tokens"] == 40 * 8 * 16
    assert last["lr"] == pytest.approx(1e-2 * lr_factor(39, make_config()))
    assert last["draft_bits"] == pytest.approx(last["draft_nll"] / 0.6931471805599453)
    assert last["grad_norm"] > 0


def test_the_loss_falls_and_the_model_can_be_loaded(whole_run: Path, make_network) -> None:
    rows = [row for row in log_of(whole_run) if row["kind"] == "validation"]
    assert max(rows[-1]["target_nll"], rows[-1]["draft_nll"]) < math.log(5) - 0.5
    model = load(whole_run / "model")
    averages = newest(whole_run).tensors("ema.safetensors")
    state = model.network.state_dict()
    assert state.keys() == averages.keys() == make_network().state_dict().keys()
    assert all(torch.equal(state[name], averages[name]) for name in state)


def test_the_means_in_the_log_are_those_of_the_steps(
    tmp_path: Path, make_network, batches, make_config
) -> None:
    train(make_network(), batches, make_config(log_every=1), tmp_path / "fine")
    train(make_network(), batches, make_config(log_every=20), tmp_path / "coarse")
    fine, coarse = log_of(tmp_path / "fine")[1:], log_of(tmp_path / "coarse")[1:]
    for i, row in enumerate(coarse):
        steps = fine[20 * i : 20 * i + 20]
        for key in ("draft_nll", "target_nll", "grad_norm"):
            assert row[key] == pytest.approx(sum(r[key] for r in steps) / 20)


def test_frozen_trunk(tmp_path: Path, make_network, batches, make_config) -> None:
    network, before = make_network(), make_network().state_dict()
    modes = []
    network.trunk.register_forward_hook(lambda *_: modes.append(network.trunk.training))
    train(network, batches, make_config(frozen_trunk=True), tmp_path / "run")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("trunk."), name
    assert all(p.grad is None for p in network.trunk.parameters())
    assert modes
    assert not any(modes)
    assert all(
        name.startswith("head.") for name in newest(tmp_path / "run").tensors("ema.safetensors")
    )
    saved = load(tmp_path / "run/model").network.state_dict()
    assert all(torch.equal(saved[n], before[n]) for n in before if n.startswith("trunk."))


def test_accumulation_gives_the_gradient_of_the_whole_batch(
    tmp_path: Path, make_network, batches, make_config
) -> None:
    moments = []
    for parts in (1, 2, 8):
        out = tmp_path / str(parts)
        config = make_config(steps=1, warmup=0, accumulation=parts, clip=1e9)
        train(make_network(), batches, config, out)
        state = newest(out).tensors("optimizer.safetensors")
        # After one step Adam's first moment is (1 − β₁) times the gradient.
        moments.append({k: v / 0.1 for k, v in state.items() if k.endswith("exp_avg")})
    for other in moments[1:]:
        for name, gradient in moments[0].items():
            assert gradient.abs().max() > 1e-5, f"{name} has no gradient to compare"
            assert torch.allclose(gradient, other[name], rtol=0, atol=1e-6), name


def test_muon_gets_the_matrices_of_the_blocks_and_nothing_else(make_network, make_config) -> None:
    groups = optimizers.build(make_network(), make_config(optimizer="muon"))
    (muon,) = groups["muon"].param_groups
    assert len(muon["names"]) == 3 * 5  # five matrices a block
    assert all(".blocks." in name for name in muon["names"])
    rest = {name for group in groups["adamw"].param_groups for name in group["names"]}
    assert {"trunk.embed.weight", "head.start", "trunk.blocks.0.mlp_norm.weight"} <= rest
    assert len(rest) + len(muon["names"]) == len(list(make_network().parameters()))


def test_only_matrices_decay(make_network, make_config) -> None:
    adamw = optimizers.build(make_network(), make_config(weight_decay=0.3))["adamw"]
    for group in adamw.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_head_may_learn_at_a_rate_of_its_own(make_network, make_config, optimizer: str) -> None:
    config = make_config(optimizer=optimizer, head_lr=3.0)
    built = optimizers.build(make_network(), config)
    names = []
    for kind, peak in (("adamw", config.lr), ("muon", config.muon_lr)):
        for group in built[kind].param_groups if kind in built else ():
            heads = {name.startswith("head.") for name in group["names"]}
            assert heads == {group["peak"] == 3 * peak}, "one rate for head and others"
            names += group["names"]
    assert sorted(names) == sorted(name for name, _ in make_network().named_parameters())


def test_muon_trains(tmp_path: Path, make_network, batches, make_config) -> None:
    train(make_network(), batches, make_config(optimizer="muon", log_every=10), tmp_path)
    rows = [row["target_nll"] for row in log_of(tmp_path) if row["kind"] == "train"]
    assert rows[-1] < rows[0] - 0.1


def test_bf16_keeps_float32_weights(tmp_path: Path, make_network, batches, make_config) -> None:
    network = make_network()
    dtypes = set()
    network.trunk.blocks[0].query.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    train(network, batches, make_config(precision="bf16"), tmp_path)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    rows = [row["target_nll"] for row in log_of(tmp_path) if row["kind"] == "train"]
    assert rows[-1] < rows[0] - 0.1


@pytest.mark.slow
def test_compiled_training_agrees_with_plain(
    tmp_path: Path, make_network, batches, make_config
) -> None:
    for compiled in (False, True):
        config = make_config(compile=compiled, steps=5, log_every=1)
        train(make_network(), batches, config, tmp_path / str(compiled))
    plain, fast = (log_of(tmp_path / name)[1:] for name in ("False", "True"))
    for one, other in zip(plain, fast, strict=True):
        assert one["target_nll"] == pytest.approx(other["target_nll"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"checkpoint_activations": True}], ids=str)
def test_compiled_training_resumes_bit_for_bit_from_one_graph(
    tmp_path: Path, make_network, batches, make_config, crash_at, settings
) -> None:
    """Although the number of masked tokens, which its loss goes over, differs at every step."""
    config, said = make_config(compile=True, steps=12, save_every=3, **settings), io.StringIO()
    torch._dynamo.reset()
    counters.clear()
    train(make_network(), batches, config, tmp_path / "whole", console=Console(file=said))
    assert said.getvalue().startswith("compiling")
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    out = tmp_path / "resumed"
    with pytest.raises(RuntimeError, match="lights"):
        train(make_network(), crash_at(batches, 8, crash), config, out)
    train(make_network(), batches, config, out, resume=True)
    assert_same_run(tmp_path / "whole", out)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, make_network, batches, make_config, crash_at
) -> None:
    network = make_network()
    nasty = crash_at(batches, 25, lambda: network.trunk.norm.weight.data.fill_(float("nan")))
    with pytest.raises(UserError, match=r"step 2[345].*Lower lr"):  # batches are made ahead
        train(network, nasty, make_config(), tmp_path)
    found = newest(tmp_path)
    assert found.step == 20
    assert all(bool(t.isfinite().all()) for t in found.tensors("model.safetensors").values())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves(
    tmp_path: Path, whole_run: Path, make_network, batches, make_config, crash_at, number, code
) -> None:
    out, said, check = tmp_path / "stopped", io.StringIO(), batches(10**6)
    handler = signal.getsignal(number)
    nasty = crash_at(batches, 23, lambda: os.kill(os.getpid(), number))
    console = Console(file=said)
    with pytest.raises(SystemExit) as raised:
        train(make_network(), nasty, make_config(), out, validation=check, console=console)
    assert raised.value.code == code
    assert signal.getsignal(number) == handler
    step = newest(out).step
    assert 21 < step < 26  # batches are made ahead
    assert f"step {step} is saved" in said.getvalue()
    train(make_network(), batches, make_config(), out, validation=check, resume=True)
    assert_same_run(whole_run, out)


def test_trains_outside_the_main_thread(tmp_path: Path, make_network, batches, make_config) -> None:
    done: list[Path] = []
    thread = threading.Thread(
        target=lambda: done.append(train(make_network(), batches, make_config(), tmp_path))
    )
    thread.start()
    thread.join()
    assert done == [tmp_path / "model"]


def test_a_full_disk_during_training_keeps_the_last_checkpoint(
    tmp_path: Path, whole_run: Path, make_network, batches, make_config, monkeypatch
) -> None:
    out, check, real, count = tmp_path / "full", batches(10**6), checkpoints.save_file, []

    def full(tensors: object, path: Path) -> None:
        count.append(path)
        if len(count) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(UserError, match="No space left"):
            train(make_network(), batches, make_config(), out, validation=check)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-0000010"]
    train(make_network(), batches, make_config(), out, validation=check, resume=True)
    assert_same_run(whole_run, out)


def test_a_damaged_newest_costs_only_the_steps_since_the_one_before(
    tmp_path: Path, whole_run: Path, make_network, batches, make_config, crash_at
) -> None:
    out, check, said = tmp_path / "damaged", batches(10**6), io.StringIO()
    with pytest.raises(RuntimeError, match="lights"):
        train(make_network(), crash_at(batches, 35, crash), make_config(), out, validation=check)
    (out / "checkpoints/step-0000030/ema.safetensors").write_bytes(b"torn")
    console = Console(file=said)
    train(
        make_network(), batches, make_config(), out, validation=check, resume=True, console=console
    )
    assert "step-0000030 is damaged" in said.getvalue()
    assert "going on from step 20" in said.getvalue()
    assert_same_run(whole_run, out)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 80}, "config.steps"),
        ({"lr": 1e-3}, "config.lr"),
        ({"seed": 1}, "config.seed"),
        ({"batch_size": 4}, "config.batch_size"),
        ({"eval_rows": 2}, "config.eval_rows"),
        ({"optimizer": "muon", "ema": 0.5}, "config.ema .*config.optimizer"),
    ],
    ids=str,
)
def test_a_changed_run_is_refused_by_name(
    whole_run: Path, make_network, batches, make_config, changes, named
) -> None:
    def fitting(step: int) -> torch.Tensor:
        return batches(step)[: changes.get("batch_size")]

    with pytest.raises(UserError, match=named):
        train(make_network(), fitting, make_config(**changes), whole_run, resume=True)


def test_changed_data_is_refused(whole_run: Path, make_network, batches, make_config) -> None:
    with pytest.raises(UserError, match=r"data\.first_batch"):
        train(make_network(), lambda s: batches(s + 1), make_config(), whole_run, resume=True)


def test_cadence_may_change(whole_run: Path, make_network, batches, make_config) -> None:
    config = make_config(log_every=1, eval_every=3, save_every=1, save_every_seconds=9.0, keep=5)
    assert train(make_network(), batches, config, whole_run, resume=True) == whole_run / "model"


def test_a_run_of_an_earlier_version_goes_on(
    tmp_path: Path, make_network, batches, make_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote down nothing of settings that came later, and did what was then the only way."""

    def earlier(*args: Any) -> dict[str, Any]:
        identity = identify(*args)
        del identity["network"]["dropout"]
        for name in ("revealed", "weighting", "target_weight", "distil", "head_lr"):
            del identity["config"][name]
        return identity

    with monkeypatch.context() as patch:
        patch.setattr(loop, "identify", earlier)
        train(make_network(), batches, make_config(), tmp_path / "run")
    train(make_network(), batches, make_config(), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"config\.revealed \(was uniform, now log\)"):
        train(make_network(), batches, make_config(revealed="log"), tmp_path / "run", resume=True)


def test_a_folder_with_a_run_needs_resume(
    whole_run: Path, make_network, batches, make_config
) -> None:
    with pytest.raises(UserError, match="--resume"):
        train(make_network(), batches, make_config(), whole_run)


def test_resume_without_a_checkpoint_starts_with_a_notice(
    tmp_path: Path, make_network, batches, make_config
) -> None:
    said = io.StringIO()
    console = Console(file=said)
    train(make_network(), batches, make_config(), tmp_path / "new", resume=True, console=console)
    assert "starting from step 0" in said.getvalue()
    assert "step 40/40" in said.getvalue()
    assert "tokens/s" in said.getvalue()


def test_saving_by_the_clock(tmp_path: Path, make_network, batches, make_config) -> None:
    config = make_config(save_every=0, save_every_seconds=1e-9, keep=40)
    train(make_network(), batches, config, tmp_path)
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 40


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:4], "not batch_size 8"),
        (lambda t: t.int(), "int64"),
        (lambda t: t + 1, "symbols are"),
        (lambda t: t - 1, "symbols are"),
        (lambda t: torch.cat((t, t), dim=1), "takes 16"),
    ],
    ids=["rows", "dtype", "above", "below", "length"],
)
def test_bad_batches_are_refused_before_anything_is_written(
    tmp_path: Path, make_network, batches, make_config, spoil, message
) -> None:
    with pytest.raises(UserError, match=message):
        train(make_network(), lambda s: spoil(batches(s)), make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_half_precision_weights_are_refused(
    tmp_path: Path, make_network, batches, make_config
) -> None:
    with pytest.raises(UserError, match=r"network.float\(\)"):
        train(make_network().bfloat16(), batches, make_config(), tmp_path / "run")


def test_validation_masks_do_not_depend_on_the_run(
    tmp_path: Path, make_network, batches, make_config
) -> None:
    """Without learning, the validation rows of two seeds agree."""
    rows = []
    for seed in (0, 1):
        config = make_config(seed=seed, lr=1e-30, weight_decay=0.0, steps=10)
        train(make_network(), batches, config, tmp_path / str(seed), validation=batches(10**6))
        rows.append([row for row in log_of(tmp_path / str(seed)) if row["kind"] == "validation"])
    assert rows[0] == rows[1]
    assert rows[0]


def test_export_in_the_middle_of_a_run(
    tmp_path: Path, make_network, batches, make_config, crash_at
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no checkpoint"):
        export(out, tmp_path / "none")
    with pytest.raises(RuntimeError, match="lights"):
        train(make_network(), crash_at(batches, 15, crash), make_config(), out)
    folder = export(out, tmp_path / "half", torch.bfloat16)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    averages = newest(out).tensors("ema.safetensors")
    exact = load(export(out, tmp_path / "full")).network.state_dict()
    assert all(torch.equal(exact[name], averages[name]) for name in averages)
