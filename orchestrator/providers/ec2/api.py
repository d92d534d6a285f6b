"""AWS as far as gptctl uses it: one call to one region, and what its errors mean. The only user of boto3 for machines.

What an answer means for a rental is the provider's affair. Reads and repeatable writes are repeated by botocore; a
launch is one request with its retries off, and only the documented refusals count as "nothing was bought". boto3 is an
extra (`pip install 'gptctl[aws]'`) and loaded with the first call, so that other commands start quickly.

Example: `Ec2Api().rows("us-east-1", "describe_instances", "Reservations", Filters=[...])`
"""

from __future__ import annotations

import importlib
import ipaddress
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar

from orchestrator.core.errors import (
    AmbiguousLaunch,
    BadCredentials,
    NoAnswer,
    NoCapacity,
    ProviderError,
    QuotaUsedUp,
    UserError,
)
from orchestrator.core.ports import Shell
from orchestrator.core.suggest import did_you_mean
from orchestrator.providers.ec2.rows import InstanceRow, read_instance
from orchestrator.remote.web.aws_login import CLOCK_HINT, LOGIN_HINT, clock_skew_s, login_fault
from orchestrator.remote.web.http_client import send_along_redirects

EXTRA_HINT = "pip install 'gptctl[aws]'"
POLICY_HINT = "gptctl check HOST --policy prints the least policy; attach it to this user or role"
CONNECT_S, READ_S, LAUNCH_S = 5, 20, 60
WHO = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read(100).decode())"
MOST_TRIES = 5
MOST_PAGES = 200
"""Of one list. One that does not end counts as silence."""
AT_ONCE = 16

CAPACITY: Final = {
    "InsufficientInstanceCapacity": "another zone or region may have one; --wait keeps asking",
    "InsufficientHostCapacity": "another zone or region may have one; --wait keeps asking",
    "InsufficientCapacity": "another zone or region may have one; --wait keeps asking",
    "UnfulfillableCapacity": "another zone or region may have one; --wait keeps asking",
    "Unsupported": "this zone does not have that instance type; another may",
    "InsufficientFreeAddressesInSubnet": "the zone's default subnet is full; another zone's may not be",
    "SpotMaxPriceTooLow": "raise max_price_per_hour_usd, or wait for the spot price to fall; --wait keeps asking",
    "RequestLimitExceeded": "too many requests of this account; --wait asks again in a minute",
}
"""Refusals after which another zone, or a later moment, may do."""
BUSY: Final = frozenset({"RequestLimitExceeded", "Throttling", "ThrottlingException"})
"""Refused for its rate, by AWS's list of common errors: waited for, and of a launch nothing was bought."""
QUOTA: Final = frozenset({"VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded"})
CREDENTIALS = re.compile(
    "AuthFailure|InvalidClientTokenId|UnrecognizedClientException|ExpiredToken(Exception)?|RequestExpired|"
    "SignatureDoesNotMatch|InvalidSignatureException|IncompleteSignature|InvalidAccessKeyId|"
    "MissingAuthenticationToken(Exception)?"
)
UNAUTHORIZED: Final = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})
OTHERS: Final = {
    "OptInRequired": "enable the region, or the service, for this account in the AWS console",
    "PendingVerification": "AWS is still verifying the account; it writes a mail when it is done",
    "Blocked": "AWS has blocked the account: contact its support",
    "VPCIdNotSpecified": "make a default VPC: aws ec2 create-default-vpc --region REGION",
    "InvalidAMIID.NotFound": "the image is gone: correct `image` in the host entry, or omit it",
    "InvalidAMIID.Unavailable": "the image is gone: correct `image` in the host entry, or omit it",
    "InvalidKeyPair.NotFound": "the login key was deleted meanwhile; run the command again to import it again",
    "VolumeLimitExceeded": "the account's quota of EBS storage is used up: Service Quotas, Amazon EBS",
}
DOCUMENTED = re.compile(r"(Invalid|Missing|Malformed|Unknown|Unsupported)[A-Za-z.]+")
"""With these a request is refused for its own words; none of them has an effect."""
AMBIGUOUS: Final = frozenset({"IdempotentParameterMismatch"})
"""An earlier request with this token may have bought a machine."""
ACTION = re.compile(r"not authorized to perform: ?([a-z0-9-]+:[A-Za-z]+)")

T = TypeVar("T")
R = TypeVar("R")


class Refused(ProviderError):
    """AWS said no; `code` is its word for why."""

    def __init__(self, message: str, hint: str = "", *, code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class Quota(Refused, QuotaUsedUp):
    """The account may not have so many machines of that kind."""


@dataclass
class Ec2Api:
    """The account that the usual chain of AWS credentials leads to. Raises BadCredentials, NoAnswer, NoCapacity (for a
    launch), or Refused."""

    endpoint: str | None = None
    _clients: dict[tuple[str, str, bool], Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def default_region(self) -> str:
        """The one that the AWS configuration names. Raises UserError where it names none."""
        region = self._session.region_name
        if not region:
            raise UserError("ec2: no region is named", 'set regions = ["us-east-1"] in the host entry, or AWS_REGION')
        return str(region)

    def check_region(self, region: str) -> None:
        """Raises UserError for a region that AWS does not have, as far as this boto3 knows."""
        known = self._session.get_available_regions("ec2")
        if known and region not in known:
            raise UserError(f"AWS has no region {region!r}{did_you_mean(region, known)}", "correct `regions`")

    def call(self, region: str, operation: str, service: str = "ec2", **parameters: object) -> Any:
        """One read or repeatable write, repeated while AWS is busy or does not answer."""
        client = self._client(service, region)
        return self._translated(region, operation, lambda: dict(getattr(client, operation)(**parameters)))

    def rows(self, region: str, operation: str, key: str, service: str = "ec2", **parameters: object) -> list[Any]:
        """All pages of a list. Raises NoAnswer for one that does not end."""
        client = self._client(service, region)

        def read() -> list[Any]:
            if not client.can_paginate(operation):
                return list(getattr(client, operation)(**parameters).get(key, []))
            found: list[Any] = []
            for number, page in enumerate(client.get_paginator(operation).paginate(**parameters), start=1):
                if number > MOST_PAGES:
                    raise NoAnswer(f"AWS {region}: the list {operation} does not end", "try again later")
                found += page.get(key, [])
            return found

        return self._translated(region, operation, read)

    def launch(self, region: str, order: Mapping[str, object]) -> InstanceRow:
        """ONE request. The instance; NoCapacity, BadCredentials, Refused: documented, nothing was bought.

        NoAnswer: no connection was made. AmbiguousLaunch: anything else; only the intent's tag in a list can tell.
        """
        client = self._client("ec2", region, once=True)
        try:
            # No retry: a launch whose answer is lost may still have bought a machine.
            answer = self._translated(region, "run_instances", lambda: dict(client.run_instances(**order)))
        except NoAnswer as error:
            if not error.sent:
                raise
            raise _ambiguous(str(order["ClientToken"]), error.message) from error
        except Refused as error:
            if error.code in CAPACITY or error.code in BUSY:
                raise NoCapacity(error.message, error.hint) from error
            if not is_documented(error.code):
                raise _ambiguous(str(order["ClientToken"]), error.message) from error
            raise
        found = answer.get("Instances") or []
        if len(found) != 1 or not re.fullmatch(r"i-[0-9a-f]{8,17}", str(found[0].get("InstanceId"))):
            raise _ambiguous(str(order["ClientToken"]), "not exactly one instance id")
        return read_instance(found[0])

    def _translated(self, region: str, operation: str, act: Callable[[], T]) -> T:
        library = _library("botocore.exceptions")
        try:
            return act()
        except library.ClientError as error:
            raise _refusal(region, operation, error) from error
        except (
            library.BotoCoreError,
            EOFError,
        ) as error:  # EOFError: it asks for an MFA code without a terminal
            raise _no_answer(library, region, error) from error

    @cached_property
    def _session(self) -> Any:
        boto3, library = _library("boto3"), _library("botocore.exceptions")
        try:
            return boto3.Session()
        except library.BotoCoreError as error:  # such as a profile that does not exist
            raise login_fault(error) or BadCredentials(f"AWS: {error}", LOGIN_HINT) from error

    def _client(self, service: str, region: str, once: bool = False) -> Any:
        """Made one at a time, since making them is not safe in threads; using them is."""
        with self._lock:
            if (service, region, once) not in self._clients:
                tries = {"total_max_attempts": 1} if once else {"total_max_attempts": MOST_TRIES, "mode": "standard"}
                config = _library("botocore.config").Config(
                    connect_timeout=CONNECT_S, read_timeout=LAUNCH_S if once else READ_S, retries=tries,
                    max_pool_connections=AT_ONCE, user_agent_extra="gptctl",
                )  # fmt: skip
                where = {"region_name": region, "config": config}
                if self.endpoint:
                    where["endpoint_url"] = self.endpoint
                self._clients[service, region, once] = self._made(region, service, where)
            return self._clients[service, region, once]

    def _made(self, region: str, service: str, where: Mapping[str, Any]) -> Any:
        library = _library("botocore.exceptions")
        try:
            return self._session.client(service, **where)
        except (library.BotoCoreError, ValueError, EOFError) as error:
            raise _no_answer(library, region, error) from error


def caller_address(url: str, via: Shell | None = None) -> str:
    """The public IPv4 address of this computer, or of the one at the other end of `via`, from a service that answers
    with the address alone. Raises NoAnswer."""
    try:
        if via is not None:
            said = via.run(["python3", "-I", "-S", "-c", WHO, url], deadline_s=2 * CONNECT_S).stdout
        else:
            said = send_along_redirects("GET", url, {}, most_bytes=100, deadline_s=CONNECT_S).content
        return str(ipaddress.IPv4Address(said.decode("ascii", "replace").strip()))
    except (NoAnswer, ValueError) as error:
        what = f"{url} does not say which address this computer has: {error}"
        hint = "port 22 is opened for that address alone; set aws.caller_address_url in config.toml"
        raise NoAnswer(what, hint, sent=False) from error


def is_documented(code: str) -> bool:
    """Whether a launch that was answered with this code bought nothing, by AWS's own list of client errors."""
    known = {*CAPACITY, *BUSY, *QUOTA, *UNAUTHORIZED, *OTHERS}
    return code not in AMBIGUOUS and (code in known or DOCUMENTED.fullmatch(code) is not None)


def at_once(act: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`act` of every item, several at a time, in their order. Raises the first failure."""
    if len(items) < 2:
        return [act(item) for item in items]
    with ThreadPoolExecutor(AT_ONCE, "ec2") as pool:
        return list(pool.map(act, items))


def _library(name: str) -> Any:
    """boto3 and what belongs to it. Raises UserError when the extra is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError("provider ec2 needs the library boto3, which is not installed", EXTRA_HINT) from None


def _refusal(region: str, operation: str, error: Any) -> ProviderError:
    """What an error answer means. The code decides: messages may change."""
    told = error.response.get("Error", {})
    code, text = str(told.get("Code", ""))[:100].removeprefix("Client."), str(told.get("Message", ""))[:500]
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    message = f"AWS {region}: {code}: {text}"
    if CREDENTIALS.fullmatch(code):
        if skew_s := clock_skew_s(error.response, time.time()):
            return BadCredentials(f"{message}; this computer's clock is off by {skew_s:+,.0f} s", CLOCK_HINT)
        return BadCredentials(message, LOGIN_HINT)
    if code in UNAUTHORIZED:
        named = ACTION.search(text)
        action = named[1] if named else f"ec2:{operation.title().replace('_', '')}"
        return Refused(f"AWS {region}: these credentials may not do {action}", POLICY_HINT, code=code)
    busy = code in BUSY and operation != "run_instances"  # a launch that is refused for it is refused, and that counts
    if busy or not code or (status >= 500 and code not in CAPACITY and code not in BUSY):
        return NoAnswer(f"AWS {region}: status {status} {code}".rstrip(), "try again later")
    if code in QUOTA:
        return Quota(message, "ask for more: Service Quotas, Amazon EC2", code=code)
    hint = CAPACITY.get(code) or OTHERS.get(code, "")
    return Refused(message, hint.replace("REGION", region), code=code)


def _no_answer(library: Any, region: str, error: Exception) -> ProviderError:
    """What a missing answer means. Texts of botocore name endpoints and profiles, never a secret."""
    if (fault := login_fault(error)) is not None:
        return fault
    if isinstance(error, library.ParamValidationError):
        return Refused(f"AWS {region}: {error}", "check the host entry", code="InvalidParameterValue")
    never_sent = (library.EndpointConnectionError, library.ConnectTimeoutError, library.ProxyConnectionError)
    distrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)  # at the handshake, before any request
    sent = not (isinstance(error, never_sent) or distrusted)
    return NoAnswer(f"AWS {region}: {error}", "is the network up, and the region's name right? Try again", sent=sent)


def _ambiguous(token: str, why: str) -> AmbiguousLaunch:
    return AmbiguousLaunch(
        f"the answer to the launch is unclear ({why}): it may have bought a machine",
        hint=f"it is looked for by the tag of intent {token}, and not asked for again",
    )
