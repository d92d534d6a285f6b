"""`gptctl judge`: answers and scores against a real server on loopback that speaks the API of OpenAI."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.inference.judge import JudgeRequest, Model, _told_apart, judge
from orchestrator.cli.inference.judge_scores import Answered, JudgeScores, question, read_score, verdict_of
from orchestrator.core.errors import BadCredentials, GptctlError, NoAnswer, ProviderError, QuotaUsedUp, UserError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import RunRecord
from orchestrator.ledger.ledger import Ledger
from orchestrator.remote.web.chat_completions import RemoteModel, complete
from orchestrator.remote.web.retries import Patience
from orchestrator.report.judged import scores_of
from tests.support.clouds.chat_server import ChatServer, Said
from tests.support.files.small_runs import TINY, write_run

HASTY = Patience(within_s=30.0, first_pause_s=0.0, longest_pause_s=0.0, most_tries=4, most_asked_s=0.01)
ANSWER = Answered("Name a colour.", "", "Blue.", "Red.")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running


def ask(server: ChatServer, attempt_s: float = 20.0) -> str:
    return complete(RemoteModel(server.endpoint, "j", "sk-1"), "score it", HASTY, attempt_s)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("85", 85), (" 0 ", 0), ("100", 100), ("85/100", 85), ("Score: 85.", 85), ("**70**", 70), ("70 out of 100", 70),
        ("<think>maybe 20, or 30</think>\n40", 40), ("out of 100 I give 70", 70),
        ("", None), ("excellent", None), ("101", None), ("-5", None), ("8.5", None), ("between 60 and 70", None),
        ("gpt-4 says so", None), ("<think>20", None), ("٣", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_a_score_is_the_one_whole_number(said: str, score: int | None) -> None:
    assert read_score(said) == score


def test_the_request_is_the_apis_and_the_key_is_a_header(server: ChatServer) -> None:
    server.will(Said("85"))
    assert ask(server) == "85"
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer sk-1"
    body = json.loads(request.body)
    assert body == {"model": "j", "messages": [{"role": "user", "content": "score it"}], "temperature": 0}


@pytest.mark.parametrize(
    "trouble",
    [
        [Said(status=429, headers={"Retry-After": "0"})], [Said(status=429)] * 3, [Said(status=500), Said(status=503)],
        [Said(drop=True)], [Said("late", delay_s=60.0)],
    ],
)  # fmt: skip
def test_what_waiting_mends_is_asked_again(server: ChatServer, trouble: list[Said]) -> None:
    server.will(*trouble, Said("7"))
    assert ask(server, attempt_s=2.0 if trouble[0].delay_s else 20.0) == "7"
    assert len(server.requests) == len(trouble) + 1


QUOTA = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
UNKNOWN = {"error": {"message": "The model `j` does not exist, sk-1"}}


@pytest.mark.parametrize(
    ("said", "error", "words", "requests"),
    [
        (Said(status=429), ProviderError, "keeps answering HTTP 429", 4),
        (Said(status=500), ProviderError, "keeps answering HTTP 500", 4),
        (Said(status=401), BadCredentials, "refuses the key: HTTP 401", 1),
        (Said(status=429, body=QUOTA), QuotaUsedUp, "no credit left: You exceeded", 1),
        (Said(status=404, body=UNKNOWN), UserError, "HTTP 404: The model `j` does not exist, KEY", 1),
        (Said(status=301), UserError, "HTTP 301", 1),
        (Said(drop=True), NoAnswer, "no answer", 4),
    ],
)
def test_an_endpoint_that_refuses_is_named_once(
    server: ChatServer, said: Said, error: type[GptctlError], words: str, requests: int
) -> None:
    server.will(*[said] * 4)
    with pytest.raises(error) as caught:
        ask(server)
    assert words in caught.value.message
    assert "sk-1" not in caught.value.message + caught.value.hint
    assert len(server.requests) == requests


@pytest.mark.parametrize("body", [[], {"choices": []}, {"choices": [{"message": {"content": None}}]}, "text", None])
def test_an_answer_that_is_not_the_apis_is_no_score(server: ChatServer, body: Any) -> None:
    server.will(Said(body=body))
    assert ask(server) == ""


def test_a_judge_that_takes_no_temperature_is_asked_without(server: ChatServer) -> None:
    server.will(Said(status=400, body={"error": {"message": "Unsupported value: 'temperature'"}}), Said("9"))
    assert ask(server) == "9"
    assert "temperature" not in json.loads(server.requests[1].body)


@pytest.mark.parametrize(
    ("endpoint", "key", "error", "words"),
    [
        ("https://api.example/v1", "", BadCredentials, "needs a key, and KEY is not set"),
        ("https://api.example/v1", "a b", BadCredentials, "KEY has spaces"),
        ("http://api.example/v1", "sk", UserError, "unencrypted"),
        ("api.example/v1", "sk", UserError, "neither https://"),
    ],
)
def test_a_judge_without_a_key_or_without_tls_is_never_asked(
    endpoint: str, key: str, error: type[GptctlError], words: str
) -> None:
    with pytest.raises(error) as caught:
        RemoteModel(endpoint, "j", key).check("KEY")
    assert words in caught.value.message
    assert "sk" not in repr(RemoteModel(endpoint, "j", "sk"))


def test_a_score_is_asked_once_and_nonsense_again_next_time(server: ChatServer, tmp_path: Path) -> None:
    scores = JudgeScores(tmp_path, RemoteModel(server.endpoint, "j"))
    server.will(Said("lovely"), Said("60"))
    assert [scores.score_of(ANSWER), scores.score_of(ANSWER)] == [60, 60]
    assert len(server.requests) == 2
    other = Answered("Name a colour.", "warm", "Blue.", "Red.")
    server.will(*[Said("lovely")] * 3, Said("61"))
    assert [scores.score_of(other), scores.score_of(other)] == [None, 61]
    assert "with `warm`" in question(other)
    assert "`{answer}`" in question(Answered("{answer}", "", "{0}", "x"))


def test_mean_and_spread_are_those_of_the_scores_there_are() -> None:
    found = verdict_of("m", [ANSWER] * 4, [80, None, 90, 70])
    assert (found.mean, found.deviation, found.scored, found.unscored) == (80, 10, 3, 1)
    assert (verdict_of("m", [ANSWER], [None]).mean, verdict_of("m", [ANSWER], [5]).deviation) == (None, None)


def test_models_of_one_name_go_by_their_folders() -> None:
    a, b, c = Path("/a/step-000007"), Path("/b/step-000007"), Path("/c")
    found = _told_apart([Model("step-000007", a), Model("step-000007", b), Model("c", c)])
    assert [each.name for each in found] == [str(a), str(b), "c"]


def test_models_are_answered_scored_and_compared_on_one_table(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, n_layer in (("one", 1), ("two", 2)):
        write_run(tmp_path / name, dataclasses.replace(TINY, n_layer=n_layer))
    test = tmp_path / "test.json"
    test.write_text(json.dumps([{"instruction": f"Say {word}", "output": word} for word in ("a", "bb", "x" * 90)]))
    request = JudgeRequest(
        test, server.endpoint, "j", "OPENAI_API_KEY", "Q: {instruction}\nA: ", None, 4, 2, tmp_path / "saved.jsonl"
    )  # fmt: skip
    models = [str(tmp_path / "one"), str(tmp_path / "two")]
    server.will(Said("10"), Said("20"), Said("30"), Said("90"), Said(status=404))
    with pytest.raises(UserError, match="HTTP 404"):
        judge(models, request, as_json=True)
    server.will(Said("90"), Said("90"))
    assert judge(models, request, as_json=True) == 0
    asked = len(server.requests)
    assert asked == 7
    assert judge(models, request, as_json=True) == 0
    assert len(server.requests) == asked
    table = json.loads(capsys.readouterr().out.partition("\n}\n")[0] + "}")
    assert [(each["model"], each["mean"]) for each in table["models"]] == [("two", 90), ("one", 20)]
    assert [(each["scored"], each["cut"]) for each in table["models"]] == [(3, 1), (3, 1)]
    assert judge(models, request, as_json=False) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown[-2:]] == [
        ["two", "90.0", "0.0", "3", "0"],
        ["one", "20.0", "10.0", "3", "0"],
    ]
    saved = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()]
    assert [each["score"] for each in saved] == [10, 20, 30, 90, 90, 90]


def test_the_scores_of_a_run_are_kept_with_the_checkpoint_that_answered(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("GPTCTL_HOME", str(home))
    with Ledger.open(home, time.time) as ledger:
        ledger.add_run(
            RunRecord("tuned-1", "tuned", "local", "2xCPU", 1.0, state=State.ENDED, outcome=Outcome.FINISHED)
        )
    folder = write_run(home / "runs" / "tuned-1")
    best = folder.parent / "best"
    best.symlink_to(folder.name)
    test = tmp_path / "test.json"
    test.write_text("[]")
    request = JudgeRequest(test, server.endpoint, "j", "OPENAI_API_KEY", None, None, 4, 2)

    def trained_on(_: Ledger, model: Model, __: JudgeRequest) -> list[Answered]:
        """While it answers, `best` becomes another checkpoint."""
        assert model.folder == folder
        best.unlink()
        best.symlink_to(write_run(tmp_path / "later", step=9))
        return [ANSWER, dataclasses.replace(ANSWER, answer="Blue.")]

    monkeypatch.setattr("orchestrator.cli.inference.judge._answers", trained_on)
    server.will(Said("40"), Said("60"))
    assert judge(["tuned-1"], request, as_json=False) == 0
    assert "gptctl compare tuned-1" in capsys.readouterr().err
    with Ledger.open(home, time.time) as ledger:
        (row,) = ledger.evaluations("tuned-1")
    kept = scores_of(row.result)
    assert (row.kind, row.step, kept.mean, kept.scored, kept.test) == ("judge", 7, 50, 2, "test.json")
    assert kept.manifest_sha256 == hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()
