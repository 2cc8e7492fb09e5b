"""Two ranks: bit for bit what one rank makes of two micro-batches; one disk decides; they stop and fail together."""

import functools
import json
import signal
import subprocess
import sys

import pytest
import torch

from lab import command
from lab.training.run_folder import RunFolder
from tests.corpus import make_corpus
from tests.training import (
    BRIEF,
    ENDLESS,
    ROOT,
    arguments,
    assert_same_run,
    losses,
    run,
    run_ranks,
    small_buckets,
    start_ranks,
)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]


def both(data, out, *more):
    """Words for two ranks that share a disk."""
    return [arguments(data, out, *more)] * 2


def torchrun(words):
    return subprocess.run([*TORCHRUN, *words], capture_output=True, text=True, timeout=110, cwd=ROOT)


# ---- the same numbers


def test_two_ranks_equal_one_rank_with_two_micro_batches(data, tmp_path):
    more = ["--max_steps=8", "--log_interval=1", "--eval_interval=4", "--lengths=16,32", "--objective=tsdae + 0.5*mlm"]
    first, second = run_ranks(both(data, tmp_path / "two", *more), tmp_path)
    assert [first.code, second.code] == [0, 0] and "unigram floor" in first.out and not second.out + second.err
    run(data, tmp_path / "one", *more, "--micro_batch=4")
    assert_same_run(tmp_path / "two", tmp_path / "one", 8)

    # other cuts of the same rows: the same numbers but for rounding, in bfloat16 where that is this machine's format
    run(data, tmp_path / "whole", *more)
    for (_, a), (_, b) in zip(losses(tmp_path / "whole"), losses(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_accumulation_on_two_ranks_equals_one_rank_with_as_many_parts(data, tmp_path):
    """Gradients are reduced once a step, in several buckets; the order of the sums differs, so nearly."""
    more = [*BRIEF, "--max_steps=4", "--dtype=float32", "--micro_batch=2"]
    before = functools.partial(small_buckets, tmp_path / "buckets")
    assert [r.code for r in run_ranks(both(data, tmp_path / "two", *more), tmp_path, before=before)] == [0, 0]
    assert len((tmp_path / "buckets").read_text().split()) > 2
    run(data, tmp_path / "one", *more)
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert [x for _, x in two] == pytest.approx([x for _, x in one], rel=1e-5)


def test_a_sum_with_views_on_two_ranks_equals_one(data, tmp_path):
    """Negatives are all rows of the step, whichever rank they are on."""
    more = [*BRIEF, "--objective=tsdae + 0.3*contrastive", "--dtype=float32", "--max_steps=4"]
    done = run_ranks(both(data, tmp_path / "two", *more), tmp_path)
    assert [r.code for r in done] == [0, 0]
    run(data, tmp_path / "one", *more)
    two, one = (RunFolder(tmp_path / name).metrics() for name in ("two", "one"))
    assert [r["step"] for r in two] == [r["step"] for r in one] == [0, 1, 2, 3, 4, 4]
    for a, b in zip(two, one, strict=True):
        keys = ("loss", "loss_tsdae", "loss_contrastive", "grad_norm", "val_loss", "val_loss_contrastive")
        for key in a.keys() & set(keys):
            assert a[key] == pytest.approx(b[key], rel=1e-4)
    assert not any("Warning" in r.err for r in done)  # of torch's, once a rank


def test_learnt_weights_on_two_ranks_equal_one_rank_with_two_micro_batches(data, tmp_path):
    """kendall_gal's weights are no part of the model that DDP wraps; what is logged is the step's mean."""
    more = [*BRIEF, "--max_steps=4", "--concept_loss=uniformity,tregs", "--concept_balance=kendall_gal", "--lr=0.01"]
    assert [r.code for r in run_ranks(both(data, tmp_path / "two", *more), tmp_path)] == [0, 0]
    run(data, tmp_path / "one", *more, "--micro_batch=4")
    assert_same_run(tmp_path / "two", tmp_path / "one", 4)


# ---- each its own disk: rank 0's decides


def test_ranks_that_share_no_disk_go_on(data, tmp_path):
    """Dropout, spectral tokens: what a rank could get wrong by itself. Rank 1's disk is empty first, and holds another
    run later. (bfloat16, which a CPU emulates, is in tests/test_compile.py.)"""
    more = [*BRIEF, "--dropout=0.1", "--token_init=spectral", "--eval_interval=2"]
    nodes = [tmp_path / "node0", tmp_path / "node1"]

    def words(steps):
        return [arguments(data, node / "out", *more, f"--max_steps={steps}") for node in nodes]

    assert [r.code for r in run_ranks(words(3), tmp_path / "logs")] == [0, 0]
    assert not nodes[1].exists()
    run(data, nodes[1] / "out", "--max_steps=1", "--layers=1")
    other = (nodes[1] / "out/config.json").read_bytes()
    first, second = run_ranks(words(6), tmp_path / "logs")
    assert [first.code, second.code] == [0, 0] and "going on at step 3" in first.err and not second.err
    assert other == (nodes[1] / "out/config.json").read_bytes()

    assert [r.code for r in run_ranks(both(data, tmp_path / "whole", *more, "--max_steps=6"), tmp_path)] == [0, 0]
    # The end of the first run was evaluated, too.
    metrics = (nodes[0] / "out/metrics.jsonl").read_text().splitlines(keepends=True)
    extra = [line for line in metrics if json.loads(line)["step"] == 3 and "val_loss" in line]
    assert len(extra) == 1
    (nodes[0] / "out/metrics.jsonl").write_text("".join(line for line in metrics if line not in extra))
    assert_same_run(nodes[0] / "out", tmp_path / "whole", 6)
    assert [(s["step"], s["ranks"]) for s in RunFolder(nodes[0] / "out").config()["segments"]] == [(0, 2), (3, 2)]


def test_a_warm_start_is_read_from_rank_0s_disk(data, tmp_path):
    run(data, tmp_path / "old", "--max_steps=1")
    flags = [*BRIEF, "--max_steps=1", "--lr=1e-12"]
    words = [
        arguments(data, tmp_path / "out0", *flags, f"--init_from={tmp_path / 'old'}"),
        arguments(data, tmp_path / "out1", *flags, f"--init_from={tmp_path / 'only on the other node'}"),
    ]
    first, second = run_ranks(words, tmp_path, before=impatient)
    assert [first.code, second.code] == [0, 0], second.err


# ---- together to the end


def impatient():
    """Without a launcher no one ends the rank that waits for it."""
    command.time.sleep = functools.partial(lambda sleep, seconds: sleep(min(seconds, 0.5)), command.time.sleep)


def test_a_mistake_found_by_rank_0_ends_both(data, tmp_path):
    out, more = tmp_path / "node0", [*BRIEF, "--max_steps=3"]
    run(data, out, *BRIEF, "--max_steps=1")
    (out / "ckpt_1/optim.pt").write_bytes(b"damaged")
    words = [arguments(data, node, *more) for node in (out, tmp_path / "node1")]
    first, second = run_ranks(words, tmp_path, before=impatient)
    assert [first.code, second.code] == [2, 2]
    assert first.err.count("error: ") == 1 and "optim.pt is damaged" in first.err and "Traceback" not in first.err
    assert not second.err.strip()


def test_nodes_with_other_data_are_told(data, tmp_path):
    make_corpus(tmp_path / "toy", documents=50)
    words = [arguments(folder, tmp_path / "out", *BRIEF, "--max_steps=3") for folder in (data, tmp_path)]
    first, second = run_ranks(words, tmp_path, before=impatient)
    assert [first.code, second.code] == [2, 2]
    assert "1 ranks have another" in first.err and first.err.count("error: ") == 1


@pytest.mark.slow
def test_the_launcher_says_a_mistake_once(data, tmp_path):
    done = torchrun(arguments(data, tmp_path / "run", "--batch_size=7"))
    assert done.returncode == 1 and done.stderr.count("error: batch_size=7 cannot be shared by 2 ranks") == 1
    assert "exitcode  : 2" in done.stderr  # of rank 0, as the launcher reports it


def test_a_signal_to_one_rank_stops_both_at_one_step(data, tmp_path):
    out = tmp_path / "run"
    with start_ranks(both(data, out, *ENDLESS), tmp_path / "logs") as ranks:
        ranks[0].wait_until(lambda: len(losses(out)) > 3)
        ranks[1].signal(signal.SIGUSR1)
        assert [rank.wait().code for rank in ranks] == [138, 138]
    step = RunFolder(out).pointer("latest")
    assert step == losses(out)[-1][0]
    run(data, out, *BRIEF, f"--max_steps={step + 2}", "--micro_batch=4", "--ckpt_interval=0")
    run(data, tmp_path / "whole", *BRIEF, f"--max_steps={step + 2}", "--micro_batch=4", "--ckpt_interval=0")
    assert losses(out) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_the_launcher_trains_and_goes_on(data, tmp_path):
    for steps in (4, 8):
        done = torchrun(arguments(data, tmp_path / "two", *BRIEF, f"--max_steps={steps}"))
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("unigram floor") == 1
    run(data, tmp_path / "one", *BRIEF, "--max_steps=8", "--micro_batch=4")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("number, before", [(signal.SIGTERM, []), (signal.SIGHUP, ["nohup"])])
def test_a_signal_to_the_launcher_saves(number, before, data, tmp_path):
    out = tmp_path / "run"
    words = [*before, *TORCHRUN, *arguments(data, out, *ENDLESS)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    while not losses(out):
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=25)  # it kills after 30 s
    assert process.returncode != 0  # the launcher's own
    assert RunFolder(out).pointer("latest") == losses(out)[-1][0]


# ---- pieces


def test_all_groups_of_ranks_wait_as_long(monkeypatch):
    """Rank 0 may prepare data or evaluate for an hour, in which the others wait for its flag, too."""
    from lab import distributed

    waits = []
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(distributed.dist, name, lambda *_, timeout, **__: waits.append(timeout.total_seconds()))
    monkeypatch.setattr(distributed.World, "on_rank0", lambda world, function: function())
    monkeypatch.setattr(distributed, "on_stop", lambda handler: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.Signals(distributed.start("cpu"))
    assert waits == [3600, 3600]


def test_cudnn_attention_is_off_on_a_gpu(monkeypatch):
    from lab import distributed

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    old = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert distributed.pick_device("cuda") == torch.device("cuda", 0)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(old)


def test_a_mac_computes_in_float32(monkeypatch, capsys):
    """Without one there is a sentence, and so there is where torch lacks an operator."""
    from lab import command, distributed
    from lab.configurator import UserError

    with pytest.raises(UserError, match="sees no GPU of a Mac; write --device=cpu"):
        distributed.pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(command, "on_stop", lambda *_: None)
    monkeypatch.setattr(command.threading, "active_count", lambda: 1)
    device = distributed.pick_device("mps")
    assert device.type == "mps" and distributed.pick_dtype("auto", device) == "float32"
    for error in (
        NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device."),
        TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."),
    ):
        with pytest.raises(SystemExit) as ended:
            command.command(lambda argv, error=error: (_ for _ in ()).throw(error))
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and "device='mps'" in said and "--device=cpu" in said


def test_a_rank_may_ask_rank_0(tmp_path):
    """One rank: what a function returns or raises is its own."""
    from lab.configurator import UserError
    from lab.distributed import World

    world = World(0, 1, torch.device("cpu"), "float32")
    assert world.on_rank0(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(UserError, match="mine"):
        world.on_rank0(lambda: (_ for _ in ()).throw(UserError("mine")))
    with pytest.raises(ZeroDivisionError):
        world.on_rank0(lambda: 1 / 0)
