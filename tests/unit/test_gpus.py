"""GPUs as schedulers name them."""

from __future__ import annotations

from typing import Dict, List, Tuple

import pytest

from hpcwrap.gpus import Gpus, new_numbers, parse_list, read_gpus

CUDA, ROCR, ZE = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"
FIRST = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("0", ("0",)),
        ("0,1", ("0", "1")),
        ("3, 1 ,3", ("3", "1")),
        (FIRST, (FIRST,)),
        (f"{FIRST},GPU-8932f938", (FIRST, "GPU-8932f938")),
        (MIG, (MIG,)),
        ("GPU:2,gpu:3", ("2", "3")),
        ("MIG:0:1", ("0:1",)),
        ("0:1,1:0", ("0:1", "1:0")),
        ("0.0,0.1,2.0", ("0", "2")),
        ("0,-1,1", ("0",)),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("none", ()),
        ("void", ()),
        (" ", ()),
        ("1,,2", ("1",)),
    ],
)
def test_lists(text: str, names: Tuple[str, ...]) -> None:
    assert parse_list(text) == names


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, Gpus(())),
        ({"PATH": "/bin"}, Gpus(())),
        # Slurm with nvidia_gpu_env, as AutoDetect sets it.
        ({"SLURM_JOB_GPUS": "2,3", CUDA: "2,3"}, Gpus(("2", "3"), ("nvidia.com",))),
        # Slurm with no flags in gres.conf: every vendor's variable.
        (
            {"SLURM_JOB_GPUS": "1", CUDA: "1", ROCR: "1", ZE: "1", "GPU_DEVICE_ORDINAL": "1"},
            Gpus(("1",), ("nvidia.com", "amd.com", "intel.com")),
        ),
        # Slurm with no_gpu_env.
        ({"SLURM_JOB_GPUS": "0"}, Gpus(("0",))),
        # Slurm's number of a MIG device is its position in gres.conf.
        ({"SLURM_JOB_GPUS": "5", CUDA: MIG}, Gpus((MIG,), ("nvidia.com",))),
        ({CUDA: "NoDevFiles"}, Gpus(())),
        ({CUDA: ""}, Gpus(())),
        # PBS with pbs_cgroups, LSF.
        ({CUDA: FIRST}, Gpus((FIRST,), ("nvidia.com",))),
        ({CUDA: "0,1", "LSB_JOBID": "7"}, Gpus(("0", "1"), ("nvidia.com",))),
        ({"HIP_VISIBLE_DEVICES": "1"}, Gpus(("1",), ("amd.com",))),
        ({ROCR: "0,2"}, Gpus(("0", "2"), ("amd.com",))),
        ({ZE: "0.0,0.1"}, Gpus(("0",), ("intel.com",))),
        ({"GPU_DEVICE_ORDINAL": "4"}, Gpus(("4",))),
    ],
)
def test_what_a_prolog_is_told(environ: Dict[str, str], wanted: Gpus) -> None:
    assert read_gpus(environ) == wanted


@pytest.mark.parametrize(
    ("visible", "table"),
    [
        ([], ""),
        ([0], ""),
        ([0, 1, 2], ""),
        ([2], "2=0"),
        ([3, 1], "1=0,3=1"),
        ([0, 10], "0=0,10=1"),
    ],
)
def test_numbers_that_remain(visible: List[int], table: str) -> None:
    assert new_numbers(visible) == table
