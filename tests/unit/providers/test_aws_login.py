"""AWS profiles as people have them: botocore's own reading of ~/.aws/config, its own prompt, its own clock check."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from orchestrator.core.errors import BadCredentials
from orchestrator.providers.ec2 import api as ec2
from orchestrator.remote.web.aws_login import clock_skew_s, login_fault
from orchestrator.storage import of

MFA = """
[profile base]
aws_access_key_id = AKIAEXAMPLE
aws_secret_access_key = secret
[profile work]
role_arn = arn:aws:iam::123456789012:role/train
source_profile = base
mfa_serial = arn:aws:iam::123456789012:mfa/me
"""
LOST = "[profile work]\nrole_arn = arn:aws:iam::123456789012:role/train\nsource_profile = gone\n"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`profile(text)`: this ~/.aws/config, whose profile `work` is chosen; no terminal."""

    def choose(text: str) -> None:
        (tmp_path / "config").write_text(text)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_PROFILE", "work")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        monkeypatch.setattr("getpass.getpass", lambda prompt: input())

    return choose


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        (MFA, "profile 'work' asks for an MFA code", "export-credentials"),
        (LOST, "source_profile", "~/.aws/config"),
        ("[profile other]\n", r"profile \(work\) could not be found", "~/.aws/config"),
        ("[profile work]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = work\n", "", "AWS"),
    ],
)
def test_a_profile_that_cannot_log_in(
    profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, text: str, words: str, hint: str
) -> None:
    profile(text)
    with pytest.raises(BadCredentials, match=words) as refused:
        ec2.Ec2Api("http://127.0.0.1:1").call("us-east-1", "describe_instances")
    assert hint in refused.value.hint and refused.value.exit_code == 3


def test_a_bucket_is_told_the_same(profile: Callable[[str], None]) -> None:
    profile(LOST)
    with pytest.raises(BadCredentials, match="source_profile"):
        of("s3://bucket/key").read("s3://bucket/key", 0, 1)


@pytest.mark.parametrize(("off_s", "told"), [(0.0, False), (3600.0, True), (-900.0, True)])
def test_a_wrong_clock_is_named(off_s: float, told: bool) -> None:
    headers = {"date": formatdate(time.time() - off_s, usegmt=True)}
    answer = {"Error": {"Code": "AuthFailure", "Message": "not able to validate the provided access credentials"}}
    error = ClientError({**answer, "ResponseMetadata": {"HTTPHeaders": headers, "HTTPStatusCode": 401}}, "X")  # type: ignore[arg-type]
    refusal = ec2._refusal("us-east-1", "describe_instances", error)
    assert isinstance(refusal, BadCredentials)
    assert ("clock is off by" in refusal.message, "timedatectl" in refusal.hint) == (told, told)


def test_an_answer_without_a_date_says_nothing_of_the_clock() -> None:
    assert clock_skew_s({}, 0.0) == 0.0
    assert login_fault(ValueError("other")) is None
