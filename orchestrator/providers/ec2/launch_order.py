"""The order of one machine on EC2. What it needs is asked for and made first, before anything is bought.

Example: `launch_order(api, host, request, port=22, caller_address_url=url)["ClientToken"]` -> the intent's id
"""

from __future__ import annotations

from orchestrator.core.config.gptctl_home import home_folder
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import ProviderError
from orchestrator.core.fleet.machine_names import ENDS_TAG, INTENT_TAG, RENTAL_TAG, machine_name
from orchestrator.core.ports import LaunchRequest
from orchestrator.providers.ec2 import network as ec2_network
from orchestrator.providers.ec2.api import Ec2Api, caller_address
from orchestrator.remote.shell.key_pairs import login_public_key

PRICE_TAG = "gptctl-price"
MOST_USER_DATA_BYTES = 16_384


def launch_order(
    api: Ec2Api, host: HostSpec, request: LaunchRequest, *, port: int, caller_address_url: str
) -> dict[str, object]:
    """The launch. What has to be asked and made for it is asked and made before anything is bought."""
    offer = request.offer
    if not offer.sku or not offer.zone:
        raise ProviderError(f"ec2: the offer of {offer.machine} names no zone", hint="gptctl offers")
    if len(request.user_data.encode()) > MOST_USER_DATA_BYTES:
        raise ProviderError("ec2: the user data is longer than the 16 KiB that EC2 takes")
    image = ec2_network.image(api, offer.region, host.image)
    subnet, network = ec2_network.subnet(api, offer.region, offer.zone)
    key = ec2_network.key_name(api, offer.region, login_public_key(home_folder(), host.ssh_key))
    caller = caller_address(caller_address_url)
    group = ec2_network.group_of(api, offer.region, request.rental_id, network, port=port, caller=caller)
    if request.nodes > 1:
        ec2_network.allow_each_other(api, offer.region, group)
    tags = [{"Key": name, "Value": value} for name, value in _tags(request).items()]
    card = {"DeviceIndex": 0, "SubnetId": subnet, "Groups": [group], "AssociatePublicIpAddress": True}
    size = {"VolumeSize": max(request.disk_gib, image.size_gib), "VolumeType": "gp3"}
    disk = {**size, "Encrypted": True, "DeleteOnTermination": True}
    order: dict[str, object] = {
        "ClientToken": request.intent_id,
        "ImageId": image.id,
        "InstanceType": offer.sku,
        "MinCount": 1,
        "MaxCount": 1,
        "KeyName": key,
        "Placement": {"AvailabilityZone": offer.zone},
        "NetworkInterfaces": [card],
        "BlockDeviceMappings": [{"DeviceName": image.root, "Ebs": disk}],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
    }
    market = {"InstanceMarketOptions": _spot_request(host)} if offer.spot else {}
    return {**order, **market, **({"UserData": request.user_data} if request.user_data else {})}


def _spot_request(host: HostSpec) -> dict[str, object]:
    """One-time, ended when it is interrupted. Without a limit of ours EC2 goes up to the on-demand price."""
    limit = host.max_price_per_hour_usd
    most = {} if limit is None else {"MaxPrice": f"{limit:.6f}"}
    once = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    return {"MarketType": "spot", "SpotOptions": {**once, **most}}


def _tags(request: LaunchRequest) -> dict[str, str]:
    """Of the instance and its volume."""
    ends_at = request.ends_at if request.first_ends_at is None else request.first_ends_at
    return {
        **request.tags,
        "Name": machine_name(request.rental_id, ends_at),
        RENTAL_TAG: request.rental_id,
        INTENT_TAG: request.intent_id,
        PRICE_TAG: f"{request.offer.price_per_hour_usd:.6f}",
        **({} if request.ends_at is None else {ENDS_TAG: str(int(request.ends_at))}),
    }
