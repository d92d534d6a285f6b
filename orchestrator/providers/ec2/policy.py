"""What an AWS account has to allow for provider `ec2`: the least policy, and the quotas by name.

Example: `quota_hint("p4d.24xlarge", "us-east-1", spot=False)` names L-417A185B and where to raise it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from orchestrator.core.fleet.machine_names import RENTAL_TAG

ON_DEMAND: Final = {
    "p": ("L-417A185B", "Running On-Demand P instances"),
    "g": ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    "c": ("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances"),
}
SPOT: Final = {
    "p5": ("L-C4BD4855", "All P5 Spot Instance Requests"),
    "p": ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    "g": ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "c": ("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests"),
}
READS: Final = (
    "ec2:DescribeImages",
    "ec2:DescribeInstanceAttribute",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstances",
    "ec2:DescribeKeyPairs",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeSubnets",
    "pricing:GetProducts",
)
MAKES: Final = ("ec2:CreateSecurityGroup", "ec2:ImportKeyPair")
RUNS: Final = ("ec2:RunInstances",)
BORN_WITH_TAG: Final = ("instance", "volume")
"""What a launch makes and tags (launch_order.py)."""
USED: Final = ("*::image", "*::snapshot", "*:*:key-pair", "*:*:network-interface", "*:*:security-group", "*:*:subnet",
               "*:*:spot-instances-request")  # fmt: skip
"""What a launch refers to, as the regions and accounts of an ARN and its kind: a condition on the tags of a request
does not fit these."""
CHANGES: Final = (
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:DeleteSecurityGroup",
    "ec2:RevokeSecurityGroupIngress",
    "ec2:TerminateInstances",
)
"""Only of what carries our tag."""


def quota_hint(sku: str, region: str, *, spot: bool) -> str:
    """Which quota an instance type counts against, and the step in the console that raises it."""
    table = SPOT if spot else ON_DEMAND
    code, name = table.get(sku[:2]) or table.get(sku[:1]) or ("", "EC2's quotas")
    page = f"https://{region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{code}"
    return f'the quota is "{name}" {code} in {region}, counted in vCPUs: {page}, Request increase at account level'


def least() -> dict[str, object]:
    """An IAM policy document. Tags are the border: a machine or disk without ours can be neither launched nor ended
    nor changed."""
    ours = {"Null": {f"aws:ResourceTag/{RENTAL_TAG}": "false"}}
    tagged = {"Null": {f"aws:RequestTag/{RENTAL_TAG}": "false"}}
    made = {"StringEquals": {"ec2:CreateAction": ["RunInstances", "CreateSecurityGroup"]}}
    spot = {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
    role = "arn:aws:iam::*:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
    return {
        "Version": "2012-10-17",
        "Statement": [
            _allow("Look", READS),
            _allow("Parameters", ("ssm:GetParameter",), "arn:aws:ssm:*::parameter/aws/service/*"),
            _allow("Make", MAKES),
            _allow("RunOurs", RUNS, [f"arn:aws:ec2:*:*:{kind}/*" for kind in BORN_WITH_TAG], tagged),
            _allow("RunWith", RUNS, [f"arn:aws:ec2:{kind}/*" for kind in USED]),
            _allow("TagWhatIsMade", ("ec2:CreateTags",), "arn:aws:ec2:*:*:*/*", made),
            _allow("RenameOurs", ("ec2:CreateTags",), "arn:aws:ec2:*:*:instance/*", ours),
            _allow("ChangeOurs", CHANGES, "*", ours),
            _allow("FirstSpotRequest", ("iam:CreateServiceLinkedRole",), role, spot),
        ],
    }


def _allow(
    name: str,
    actions: tuple[str, ...],
    resource: str | Sequence[str] = "*",
    condition: Mapping[str, object] | None = None,
) -> dict[str, object]:
    allowed = {
        "Sid": name,
        "Effect": "Allow",
        "Action": [*actions],
        "Resource": resource if isinstance(resource, str) else [*resource],
    }
    return {**allowed, **({"Condition": condition} if condition else {})}
