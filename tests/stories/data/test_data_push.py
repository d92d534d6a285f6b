"""A prepared dataset goes into a bucket of a real S3 server: verified, resumed, and never over another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.support.clouds.s3_server import S3Server


@pytest.mark.nightly
def test_a_dataset_is_pushed_verified_and_not_sent_twice(gptctl: Gptctl, tmp_path: Path, s3: S3Server) -> None:
    (tmp_path / "text.txt").write_text("ab cd ef gh " * 900_000)
    prepared = gptctl("data", "prepare", "text.txt", "--tokenizer", "bytes", "--shard-tokens", "6000000", "--to", "out")
    assert prepared.returncode == 0, prepared.stderr
    bucket = s3.bucket()
    there = f"s3://{bucket}/corpus"
    client = s3.client()

    def push(*more: str) -> list[bool]:
        done = gptctl("data", "push", "out", there, "--json", *more)
        assert done.returncode == 0, done.stderr
        return [each["sent"] for each in json.loads(done.stdout)["files"]]

    assert push() == [True, True, True]
    for path in (tmp_path / "out").iterdir():
        assert client.get_object(Bucket=bucket, Key=f"corpus/{path.name}")["Body"].read() == path.read_bytes()
    assert push() == [False, False, False]
    client.delete_object(Bucket=bucket, Key="corpus/train-00001.safetensors")
    damaged = bytearray((tmp_path / "out" / "train-00000.safetensors").read_bytes())
    damaged[-1] ^= 1
    client.put_object(Bucket=bucket, Key="corpus/train-00000.safetensors", Body=bytes(damaged))
    assert push() == [True, True, False]

    (tmp_path / "other.txt").write_text("another text " * 1000)
    assert gptctl("data", "prepare", "other.txt", "--tokenizer", "bytes", "--to", "other").returncode == 0
    refused = gptctl("data", "push", "other", there)
    assert refused.returncode == 2
    assert "describes another dataset" in refused.stderr
    wrong = gptctl("data", "push", "out", there, env={"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert wrong.returncode == 3
    assert "refused (" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    broken = tmp_path / "out" / "train-00001.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    assert gptctl("data", "push", "out", there).returncode == 4
    assert gptctl("data", "push", "out", "https://example.invalid/x").returncode == 2
