"""What EC2 asks for its instance types: on demand from the price list, spot from the last hour's history.

Example: `on_demand(api, ["p4d.24xlarge"])["p4d.24xlarge", "us-east-1"]` -> 21.957642
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from orchestrator.core.fleet.odd_rows import OddRows
from orchestrator.providers.ec2.api import Ec2Api, at_once
from orchestrator.providers.ec2.rows import judged, read_listed_prices, read_spot_price

PRICE_REGION = "us-east-1"
"""Where the price list answers, for all regions."""
LISTED: Mapping[str, str] = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
}


def on_demand(api: Ec2Api, skus: Sequence[str], odd: OddRows) -> dict[tuple[str, str], float]:
    """USD per hour by instance type and region; rows that cannot be read go to `odd`. Raises ProviderError when the
    price list is silent or unreadable."""
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in LISTED.items()]

    def ask(sku: str) -> list[str]:
        what = [*filters, {"Type": "TERM_MATCH", "Field": "instanceType", "Value": sku}]
        return api.rows(PRICE_REGION, "get_products", "PriceList", "pricing", ServiceCode="AmazonEC2", Filters=what)

    texts = [text for each in at_once(ask, skus) for text in each]
    listed = judged("price list", texts, read_listed_prices)
    odd.note("ec2", listed.odd)
    return {(price.sku, price.place): price.usd for prices in listed.rows for price in prices}


def spot(api: Ec2Api, region: str, skus: Sequence[str], odd: OddRows) -> dict[tuple[str, str], float]:
    """USD per hour by instance type and zone: the highest of the last hour. Rows that cannot be read go to `odd`."""
    rows = api.rows(
        region, "describe_spot_price_history", "SpotPriceHistory", InstanceTypes=list(skus),
        ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC) - timedelta(hours=1),
    )  # fmt: skip
    most: dict[tuple[str, str], float] = {}
    listed = judged("spot price", rows, read_spot_price)
    odd.note(f"ec2 {region}", listed.odd)
    for price in listed.rows:
        most[price.sku, price.place] = max(most.get((price.sku, price.place), 0.0), price.usd)
    return most
