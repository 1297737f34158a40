"""Two nodes, each with a torchrun of its own that meets the other at an address: the run is that of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.run import get_args_parser

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from tests.support.consumer.two_processes import environment


def test_two_nodes_train_as_one_process(place, tmp_path):
    """As docs/distributed.md starts them; sharded, so that weights go over the network, too."""
    config = TrainConfig(
        casks=(place / "cask",),
        student="from-teacher:layers=2",
        teacher=place / "teacher",
        output=tmp_path / "alone",
        seq_len=64,
        batch_tokens=256,
        max_steps=6,
        lr=3e-3,
        save_steps=3,
    )
    train(config)
    settings = config.as_dict() | {"output": str(tmp_path / "nodes"), "fsdp": True}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
                *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two-nodes"),
                *("--local-addr=127.0.0.1", "-m", "tests.support.consumer.ddp_worker", json.dumps(settings)),
            ],
            env=environment() | {"TORCHELASTIC_ERROR_FILE": str(tmp_path / f"error-{node}")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    said = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-12000:]
    own, shared = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("alone", "nodes"))
    assert json.loads((tmp_path / "nodes" / "logitcask.json").read_text())["resolved"]["processes"] == 2
    assert [line["loss"] for line in shared] == pytest.approx([line["loss"] for line in own], rel=1e-5)
    assert len(shared) == 6
    names = sorted(path.name for path in (tmp_path / "nodes" / "checkpoints").iterdir())
    assert names == ["checkpoint-3", "checkpoint-6"]


def test_the_slurm_script_starts_a_torchrun_on_each_node(tmp_path):
    for name, text in {
        "scontrol": 'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
        "srun": 'printf "%s\\n" "$@" > "$CALL"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77"}
    slurm["SLURM_CPUS_PER_TASK"] = "32"
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CALL": str(tmp_path / "call")}
    command: list[str | Path] = ["bash", DEPLOY / "slurm" / "train.sbatch", "--cask", "casks/with a space", "--fsdp"]
    subprocess.run(command, env=slurm | path, check=True)
    *own, torchrun = (tmp_path / "call").read_text().splitlines()[:3]
    arguments = (tmp_path / "call").read_text().splitlines()[3:]
    assert (own, torchrun) == (["--kill-on-bad-exit=1", "--cpus-per-task=32"], "torchrun")
    parsed = get_args_parser().parse_args(arguments)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "8", "node1:29500")
    assert parsed.no_python
    assert [parsed.training_script, *parsed.training_script_args] == [
        *("logitcask", "train", "--cask", "casks/with a space", "--fsdp")
    ]


def test_accelerate_reads_its_configuration_which_does_not_shard():
    config = load_config_from_file(str(DEPLOY / "accelerate" / "two-nodes.yaml"))
    assert config.distributed_type == "MULTI_GPU"
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (2, 16, "no")
    assert not config.fsdp_config


DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
