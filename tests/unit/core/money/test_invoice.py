"""An invoice against our books, whatever the provider calls its columns."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.estimate import Estimate
from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.money.billing import SettledBill
from orchestrator.core.money.invoice import Charge, Entry, compare, read_charges
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from tests.conftest import Gptctl

DAY = 86_400.0
MAY_1 = 1_777_593_600.0  # 2026-05-01T00:00:00Z


@pytest.mark.parametrize(
    "text",
    [
        "Instance ID,Amount,Date\nabc,12.50,2026-05-01\n",
        "\ufeffdate;instance_id;unit price;Amount (USD)\n2026-05-01;abc;15.92;$12.50\n",
        "Resource\tHours\tHourly rate\tTotal cost\tPeriod start\nabc\t0.79\t15.92\t12.50 USD\t2026-05-01T00:00:00Z\n",
        'Name,Instance,Charge,Start time\n"gptctl-r-until-5",abc,"12.50",2026-05-01\n',
        "id,cost,day\nabc,12.5,2026-05-01\n,,\n",
    ],
)
def test_columns_are_known_by_what_they_mean(text: str) -> None:
    (charge,) = read_charges(text)
    assert (charge.instance_id, charge.amount_usd, charge.at) == ("abc", 12.5, MAY_1)


@pytest.mark.parametrize(
    ("written", "usd"),
    [("$1,234.50", 1234.5), ("(0.30)", -0.3), ("-0.30", -0.3), ("0", 0.0), ("1,234,567", 1234567.0), ("7", 7.0)],
)
def test_amounts_as_people_write_them(written: str, usd: float) -> None:
    (charge,) = read_charges(f'id,amount\nabc,"{written}"\n')
    assert charge.amount_usd == usd


@pytest.mark.parametrize("written", ["1,50", "1.234,50", "twelve", "nan", "1e3", "12 EUR", "--1", "1.2.3"])
def test_an_amount_that_may_mean_anything_is_refused(written: str) -> None:
    with pytest.raises(UserError, match="line 2"):
        read_charges(f'id,amount\nabc,"{written}"\n')


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "instance id,hourly rate\nabc,3\n", "amount\n5\n"])
def test_a_file_that_is_no_invoice_names_its_columns(text: str) -> None:
    with pytest.raises(UserError, match="no column for the"):
        read_charges(text)


def test_agreement_is_to_the_cent_and_within_what_we_know() -> None:
    entries = [
        Entry("exact", ("a",), Estimate(10.0)),
        Entry("range", ("b",), Estimate(10.0, 2.0)),
        Entry("both", ("c", "d"), Estimate(10.0)),
    ]
    charges = [Charge("a", "", 10.005), Charge("b", "", 8.0), Charge("c", "", 4.0), Charge("d", "", 7.0)]
    lines = {line.rental: line for line in compare(charges, entries)}
    assert [lines[name].agrees for name in ("exact", "range", "both")] == [True, True, False]
    assert lines["both"].difference_usd == pytest.approx(1.0)
    assert [line.agrees for line in compare([Charge("a", "", 10.02), Charge("b", "", 7.98)], entries[:2])] == [
        False
    ] * 2


def test_a_charge_finds_its_rental_by_id_or_by_name() -> None:
    entries = [Entry("r-one", ("0123456789abcdef",), Estimate(1.0)), Entry("r-two", (), Estimate(2.0))]
    charges = [
        Charge("lrn:lambda:instance:0123456789abcdef", "", 1.0),
        Charge("", "gptctl-r-two-until-1777593600", 1.5),
        Charge("", "r-two", 0.5),
    ]
    assert {line.rental: line.invoice_usd for line in compare(charges, entries)} == {"r-one": 1.0, "r-two": 2.0}


def test_what_only_one_side_has_is_shown() -> None:
    entries = [
        Entry("unbilled", ("a",), Estimate(3.0), began_at=MAY_1, ended_at=MAY_1 + 60),
        Entry("last-year", ("b",), Estimate(3.0), began_at=MAY_1 - 400 * DAY, ended_at=MAY_1 - 399 * DAY),
        Entry("never-billed", ("c",), Estimate(0.0), began_at=MAY_1),
    ]
    charges = [Charge("z", "gptctl-forgotten-until-5", 9.0, MAY_1), Charge("y", "a colleague's", 50.0, MAY_1)]
    lines = compare(charges, entries)
    assert [(line.rental, line.instance_id, line.ours and line.ours.cost_usd, line.invoice_usd) for line in lines] == [
        ("unbilled", "a", 3.0, None),
        (None, "z", None, 9.0),
    ]
    assert not any(line.agrees for line in lines)


def test_from_the_command_line(gptctl: Gptctl, gptctl_home: Path, tmp_path: Path) -> None:
    now = time.time()
    with Ledger.open(gptctl_home, time.time) as ledger:
        facts = RentalFacts(bill=SettledBill(Estimate(31.84, 0.27)))
        ledger.add_rental(Rental("r1", "lambda", "box", "8xA100-40GB", now, "inst1", 15.92, facts=facts))
        ledger.add_rental(Rental("home", "ssh", "home", "1x3090", now, "home", 0.11))
        ledger.add_run(RunRecord("tiny-1", "tiny", "box", "8xA100-40GB", now, rental_id="r1"))
    invoice = tmp_path / "invoice.csv"
    invoice.write_text("instance_id,amount\ninst1,$31.60\nother,100.00\n")
    answer = json.loads(gptctl("cost", "--reconcile", str(invoice), "--json").stdout)
    (line,) = answer["lines"]
    assert (line["rental"], line["runs"], line["agrees"], answer["differing"]) == ("r1", ["tiny-1"], True, 0)
    assert answer["other_usd"] == pytest.approx(100.0)
    invoice.write_text("instance_id,amount\ninst1,35.00\n")
    shown = gptctl("cost", "--reconcile", str(invoice))
    assert shown.returncode == 0 and "differs" in shown.stdout and "$3.16" in shown.stdout
    assert gptctl("cost", "--reconcile", str(tmp_path / "none.csv")).returncode == 2
    invoice.write_bytes(b"\xff\xfe\x00")
    assert gptctl("cost", "--reconcile", str(invoice)).returncode == 2
