"""What EC2 asks for its instance types: on demand from the price list, spot from the last hour's history.

Example: `on_demand(api, ["p4d.24xlarge"])["p4d.24xlarge", "us-east-1"]` -> 21.957642
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.core.errors import NoAnswer
from orchestrator.providers.ec2.api import Ec2Api, at_once

PRICE_REGION = "us-east-1"
"""Where the price list answers, for all regions."""
LISTED: Mapping[str, str] = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}


def on_demand(api: Ec2Api, skus: Sequence[str]) -> dict[tuple[str, str], float]:
    """USD per hour by instance type and region. Raises ProviderError when the price list is silent or odd."""
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in LISTED.items()]

    def ask(sku: str) -> list[str]:
        what = [*filters, {"Type": "TERM_MATCH", "Field": "instanceType", "Value": sku}]
        return api.rows(PRICE_REGION, "get_products", "PriceList", "pricing", ServiceCode="AmazonEC2", Filters=what)

    found: dict[tuple[str, str], float] = {}
    try:
        for row in (json.loads(text) for texts in at_once(ask, skus) for text in texts):
            told = row["product"]["attributes"]
            if told.get("marketoption", "OnDemand") == "OnDemand":  # the other option is a capacity block
                for price in _prices(row):
                    found[told["instanceType"], told["regionCode"]] = price
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoAnswer(f"the price list of AWS does not fit its document: {error!r}", "try again later") from error
    return found


def _prices(row: Mapping[str, Any]) -> Iterable[float]:
    for term in row["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            yield float(dimension["pricePerUnit"]["USD"])


def spot(api: Ec2Api, region: str, skus: Sequence[str]) -> dict[tuple[str, str], float]:
    """USD per hour by instance type and zone: the highest of the last hour."""
    rows = api.rows(
        region, "describe_spot_price_history", "SpotPriceHistory", InstanceTypes=list(skus),
        ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC) - timedelta(hours=1),
    )  # fmt: skip
    most: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (str(row["InstanceType"]), str(row["AvailabilityZone"]))
        most[key] = max(most.get(key, 0.0), float(row["SpotPrice"]))
    return most
