"""What a machine on EC2 needs: an image, a subnet, a login key, and a security group of its own.

The first two are found, the key is imported once per region, the group is made for one rental and goes with it: port 22
is open to the caller's address alone. Nothing here buys, and nothing that is not ours is changed.

Example: `group_of(api, "us-east-1", "8xa100-1126-k3f9qa", network, port=22, caller="203.0.113.9")` -> "sg-0a1b..."
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from orchestrator.core.errors import NoAnswer, ProviderError
from orchestrator.core.fleet.machine_names import RENTAL_TAG
from orchestrator.providers.ec2.api import Ec2Api, Refused
from orchestrator.providers.ec2.rows import Group, Image, Opening, judged, read_group, read_image

IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""The public parameter that names the newest of AWS's images with a GPU driver."""
IMAGE_NAME = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"
RULE = "gptctl, whoever drives this rental"
HOME_RULE = "gptctl, the home box that keeps its checkpoints"
"""Descriptions that tell our rules from those you put into the group."""
IN_USE = ("DependencyViolation", "InvalidGroup.InUse")


def image(api: Ec2Api, region: str, wanted: str | None) -> Image:
    """The image of that id, parameter path or name (the newest that fits); None: AWS's own with a GPU driver."""
    name = wanted or IMAGE
    if name.startswith("/"):
        try:
            name = str(api.call(region, "get_parameter", "ssm", Name=name)["Parameter"]["Value"])
        except (Refused, NoAnswer):
            if wanted:
                raise
            name = IMAGE_NAME  # the same image, for those whose credentials may not read parameters
    if name.startswith("ami-"):
        rows = api.rows(region, "describe_images", "Images", ImageIds=[name])
    else:
        by_name = [{"Name": "name", "Values": [name]}]
        rows = api.rows(region, "describe_images", "Images", Owners=["amazon", "self"], Filters=by_name)
    images = judged("image", rows, read_image).rows
    if not images:
        hint = "correct `image` in the host entry: ami-..., the path of a parameter, or a name with *"
        raise ProviderError(f"ec2: no image {name!r} in {region}", hint=hint)
    return max(images, key=lambda each: each.created)


def subnet(api: Ec2Api, region: str, zone: str) -> tuple[str, str]:
    """(subnet, network): the default one of the zone, whose machines can have public addresses."""
    filters = _filters({"default-for-az": "true", "availability-zone": zone})
    rows = api.rows(region, "describe_subnets", "Subnets", Filters=filters)
    if not rows:
        hint = f"make one: aws ec2 create-default-vpc --region {region}, or create-default-subnet for the zone"
        raise ProviderError(f"ec2: no default VPC with a subnet in {zone}", hint=hint)
    return str(rows[0]["SubnetId"]), str(rows[0]["VpcId"])


def key_name(api: Ec2Api, region: str, public: str) -> str:
    """The region's name of this login key, found by its content, else imported under a name made of that."""
    for row in api.rows(region, "describe_key_pairs", "KeyPairs", IncludePublicKey=True):
        if str(row.get("PublicKey", "")).split()[:2] == public.split():
            return str(row["KeyName"])
    name = f"gptctl-{hashlib.sha256(public.encode()).hexdigest()[:16]}"
    try:
        api.call(region, "import_key_pair", KeyName=name, PublicKeyMaterial=f"{public} gptctl".encode())
    except Refused as error:
        if error.code != "InvalidKeyPair.Duplicate":  # one of us was quicker: the same content
            raise
    return name


def group_of(api: Ec2Api, region: str, rental_id: str, network: str, *, port: int, caller: str) -> str:
    """The rental's security group, made if it is not there, open to the caller. Its id."""
    name = f"gptctl-{rental_id}"
    if not (found := groups(api, region, rental_id)):
        tags = [{"Key": RENTAL_TAG, "Value": rental_id}, {"Key": "Name", "Value": name}]
        group = {"GroupName": name, "Description": "One rental of gptctl: SSH from its driver", "VpcId": network}
        spec = [{"ResourceType": "security-group", "Tags": tags}]
        try:
            api.call(region, "create_security_group", TagSpecifications=spec, **group)
        except Refused as error:
            if error.code != "InvalidGroup.Duplicate":  # the answer to an earlier request was lost
                raise
        found = groups(api, region, rental_id)
    if not found:
        raise NoAnswer(f"ec2: the security group {name} was created, but lists do not show it", "try again", sent=False)
    allow(api, region, found[0], port=port, caller=caller)
    return found[0].id


def groups(api: Ec2Api, region: str, rental_id: str) -> Sequence[Group]:
    """The security groups of a rental: one, or none."""
    filters = _filters({f"tag:{RENTAL_TAG}": rental_id})
    rows = api.rows(region, "describe_security_groups", "SecurityGroups", Filters=filters)
    return judged("security group", rows, read_group).rows


def allow(api: Ec2Api, region: str, group: Group, *, port: int, caller: str, rule: str = RULE) -> None:
    """Opens the port to the caller's address, then takes away the rules of that name for other addresses.

    There is one rule per address: a home box that shares its address with the driver gets the rule, so
    that it stays when the driver moves on.
    """
    wanted, drivers = Opening(port, f"{caller}/32", rule), Opening(port, f"{caller}/32", RULE)
    if wanted not in group.openings:
        if drivers in group.openings:
            _change(api, region, "revoke_security_group_ingress", group, drivers, done="InvalidPermission.NotFound")
        _change(api, region, "authorize_security_group_ingress", group, wanted, done="InvalidPermission.Duplicate")
    for old in {each for each in group.openings if each.description == rule} - {wanted}:
        _change(api, region, "revoke_security_group_ingress", group, old, done="InvalidPermission.NotFound")


def allow_each_other(api: Ec2Api, region: str, group_id: str) -> None:
    """Opens all ports among the machines of the group, and to nobody else: nodes of one training meet there."""
    inside = [{"GroupId": group_id, "Description": "gptctl, the nodes of this rental"}]
    what = [{"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65_535, "UserIdGroupPairs": inside}]
    try:
        api.call(region, "authorize_security_group_ingress", GroupId=group_id, IpPermissions=what)
    except Refused as error:
        if error.code != "InvalidPermission.Duplicate":
            raise


def _change(api: Ec2Api, region: str, operation: str, group: Group, opening: Opening, *, done: str) -> None:
    ranges = [{"CidrIp": opening.cidr, "Description": opening.description}]
    what = [{"IpProtocol": "tcp", "FromPort": opening.port, "ToPort": opening.port, "IpRanges": ranges}]
    try:
        api.call(region, operation, GroupId=group.id, IpPermissions=what)
    except Refused as error:
        if error.code != done:
            raise


def remove_groups(api: Ec2Api, region: str, rental_id: str) -> list[str]:
    """Removes the rental's group; what is in use yet, in words."""
    left = []
    for group in groups(api, region, rental_id):
        try:
            api.call(region, "delete_security_group", GroupId=group.id)
        except Refused as error:
            if error.code in IN_USE:
                command = f"aws ec2 delete-security-group --region {region} --group-id {group.id}"
                left.append(f"the security group {group.name} is still in use (it costs nothing): {command}")
            elif error.code not in ("InvalidGroup.NotFound", "InvalidGroupId.NotFound"):
                raise
    return left


def _filters(wanted: Mapping[str, str]) -> list[dict[str, object]]:
    return [{"Name": name, "Values": [value]} for name, value in wanted.items()]
