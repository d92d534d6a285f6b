"""Objects of S3 and of what speaks its language. boto3 lives here (and in providers/ec2), and nowhere else.

    s3://BUCKET/PREFIX-OR-KEY          credentials, region and endpoint by the usual AWS variables and profile

Machines get presigned URLs (signature version 4), so that no credential reaches them; they end with the credentials
that made them. Files above 4 GiB are stored in several PUTs, each presigned, and so is the request that joins them.

Example::

    store = storage()
    store.manifest("s3://bucket/data/")                                     # [StoredFile("train-00000.bin", ...), ...]
    store.upload_plan("s3://bucket/run/step-000617", [StoredFile("model.safetensors", 652_043_264)], 6 * 86_400)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from orchestrator.core.errors import BadCredentials, NoAnswer, StorageError
from orchestrator.core.ports import Part, Storage, StoredFile, Upload
from orchestrator.core.safe_names import WILD, checked, matching, split_uri
from orchestrator.remote.web.aws_login import login_fault

LARGEST_PUT_BYTES = 4 << 30
"""S3 itself takes 5 GB in one PUT; others less than that by a little."""
PART_BYTES = 256 << 20
LONGEST_GRANT_S = 7 * 86_400 - 60
"""A presigned URL of signature version 4 lasts a week at most."""
TRANSFER = TransferConfig(preferred_transfer_client="classic")
"""The CRT client ignores the endpoint and goes to AWS whatever was configured (boto/boto3 issue 4839)."""
MISSING = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
REFUSED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")


class S3Storage:
    """Holds one client, made on first use; its credentials are looked up by boto3 as everywhere."""

    scheme = "s3"

    def __init__(self, session: Any = None) -> None:
        self._session = session or boto3.session.Session()
        self._made: Any = None

    @property
    def client(self) -> Any:
        """The boto3 client, for what the protocol does not say. Raises BadCredentials when there are none."""
        if self._made is None:
            with _translated("s3"):
                if self._session.get_credentials() is None:
                    raise NoCredentialsError()
                self._made = _client(self._session)
        return self._made

    def manifest(self, uri: str) -> Sequence[StoredFile]:
        """The object of that key; else all objects below it as a folder; or those a pattern matches."""
        bucket, key = split_uri(uri, "s3")
        if WILD.search(key):
            folder = WILD.split(key, maxsplit=1)[0].rpartition("/")[0]
            return matching(list(self._below(uri, bucket, folder)), key.removeprefix(folder).lstrip("/"), uri)
        if key and not uri.endswith("/"):
            found = self.head(uri)
            if found is not None:
                return [found]
        files = sorted(self._below(uri, bucket, key), key=lambda each: each.name)
        if not files:
            raise StorageError(f"{uri}: nothing found", "correct the address, or list it: aws s3 ls", missing=True)
        return files

    def head(self, uri: str) -> StoredFile | None:
        """The one object of that key; None when there is none."""
        bucket, key = split_uri(uri, "s3")
        try:
            with _translated(uri):
                found = self.client.head_object(Bucket=bucket, Key=key)
        except StorageError as error:
            if error.missing:
                return None
            raise
        return StoredFile(key.rpartition("/")[2], found["ContentLength"], None, f"s3://{bucket}/{key}", found["ETag"])

    def read(self, uri: str, start: int, size_bytes: int) -> bytes:
        bucket, key = split_uri(uri, "s3")
        try:
            with _translated(uri):
                span = f"bytes={start}-{start + size_bytes - 1}"
                return bytes(self.client.get_object(Bucket=bucket, Key=key, Range=span)["Body"].read())
        except PastTheEnd:
            return b""

    def download_plan(
        self, uri: str, destination: str, start: int = 0, size_bytes: int | None = None, expires_s: float = 21_600
    ) -> Part:
        bucket, key = split_uri(uri, "s3")
        if size_bytes is None:
            size_bytes = self.manifest(uri)[0].size_bytes - start
        url, ends_at = self._presigned("get_object", {"Bucket": bucket, "Key": key}, expires_s)
        return Part(url, start, size_bytes, destination, expires_at=ends_at)

    def upload_plan(self, uri: str, files: Sequence[StoredFile], expires_s: float = 21_600) -> Sequence[Upload]:
        bucket, prefix = split_uri(uri, "s3")
        keys = [f"{prefix}/{checked(each.name, uri)}".lstrip("/") for each in files]
        return [self._upload(bucket, key, each, expires_s) for key, each in zip(keys, files, strict=True)]

    def upload(self, path: Path, uri: str, tell: Callable[[int], None] = lambda sent_bytes: None) -> None:
        """Stores a file of this computer, telling of bytes as they leave, from several threads. Raises StorageError."""
        bucket, key = split_uri(uri, "s3")
        with _translated(uri):
            self.client.upload_file(str(path), bucket, key, Config=TRANSFER, Callback=tell)

    def put(self, uri: str, content: bytes) -> None:
        """Stores a few bytes."""
        bucket, key = split_uri(uri, "s3")
        with _translated(uri):
            self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def grants_end_at(self) -> float | None:
        """When the session's credentials end, for those that do (roles, SSO, AWS_CREDENTIAL_EXPIRATION)."""
        credentials = self._session.get_credentials()
        if credentials is None:
            return None
        credentials.get_frozen_credentials()  # renews those that are due
        ends = getattr(credentials, "_expiry_time", None)  # botocore has no public name for it
        return None if ends is None else float(ends.timestamp())

    def _upload(self, bucket: str, key: str, file: StoredFile, expires_s: float) -> Upload:
        place: dict[str, object] = {"Bucket": bucket, "Key": key}
        remove, _ = self._presigned("delete_object", place, expires_s)
        if file.size_bytes <= LARGEST_PUT_BYTES:
            url, ends_at = self._presigned("put_object", place, expires_s)
            return Upload(file.name, (Part(url, 0, file.size_bytes, "", expires_at=ends_at),), remove_url=remove)
        with _translated(f"s3://{bucket}/{key}"):
            made = self.client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        place = {**place, "UploadId": made}
        puts = []
        for number in range(math.ceil(file.size_bytes / PART_BYTES)):
            url, ends_at = self._presigned("upload_part", {**place, "PartNumber": number + 1}, expires_s)
            start = number * PART_BYTES
            puts.append(Part(url, start, min(PART_BYTES, file.size_bytes - start), "", expires_at=ends_at))
        complete, _ = self._presigned("complete_multipart_upload", place, expires_s)
        abandon, _ = self._presigned("abort_multipart_upload", place, expires_s)
        return Upload(file.name, tuple(puts), complete, abandon, remove)

    def _presigned(self, method: str, place: Mapping[str, object], expires_s: float) -> tuple[str, float]:
        """The URL, and when it ends: as asked, never later than the credentials or the longest that S3 allows."""
        now = time.time()
        ends_at = min(now + min(expires_s, LONGEST_GRANT_S), self.grants_end_at() or math.inf)
        if ends_at <= now:
            raise BadCredentials("s3: the AWS credentials have expired", "get new ones (aws sso login), and repeat")
        with _translated("s3"):
            url = self.client.generate_presigned_url(method, Params=dict(place), ExpiresIn=int(ends_at - now))
        return str(url), ends_at

    def _below(self, uri: str, bucket: str, folder: str) -> Iterator[StoredFile]:
        prefix = f"{folder}/" if folder else ""
        with _translated(uri):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    if found["Key"].endswith("/"):  # what consoles make to show a folder
                        continue
                    name = checked(found["Key"].removeprefix(prefix), uri)
                    place = f"s3://{bucket}/{found['Key']}"
                    yield StoredFile(name, found["Size"], None, place, found["ETag"])


def storage() -> Storage:
    """Settings as the AWS command line has them: AWS_PROFILE, AWS_ENDPOINT_URL_S3, AWS_REGION and the others."""
    return S3Storage()


class PastTheEnd(Exception):
    """A range that begins at or after the end of an object."""


def _client(session: Any) -> Any:
    """Bucket names go into the path for everything that is not AWS itself: elsewhere they rarely are host names."""
    settings = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=10,
        read_timeout=30,
        # Else a presigned PUT demands a checksum that only this library would send.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = session.region_name or "us-east-1"
    made = session.client("s3", region_name=region, config=settings)
    if ".amazonaws.com" in made.meta.endpoint_url:
        return made
    return session.client("s3", region_name=region, config=settings.merge(Config(s3={"addressing_style": "path"})))


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """What boto3 raises, as our own. Its texts name buckets and keys, never a secret."""
    try:
        yield
    except ClientError as error:
        raise _refusal(uri, error) from error
    except NoCredentialsError as error:
        raise BadCredentials(
            f"{uri}: no AWS credentials found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except S3UploadFailedError as error:
        raise StorageError(f"{uri}: {error}", "has the bucket space, and may these credentials write?") from error
    except (BotoCoreError, EOFError) as error:
        if (fault := login_fault(error)) is not None:
            raise BadCredentials(f"{uri}: {fault.message}", fault.hint) from error
        raise NoAnswer(f"{uri}: {error}", "is the endpoint (AWS_ENDPOINT_URL_S3) right, and reachable?") from error


def _refusal(uri: str, error: ClientError) -> Exception:
    found = error.response.get("Error", {})
    code, status = str(found.get("Code", "")), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "InvalidRange":
        return PastTheEnd()
    if code in MISSING:
        return StorageError(f"{uri}: nothing found ({code})", "correct the address", missing=True)
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{uri}: the clock of this computer is wrong, signatures are refused", "set it, by NTP")
    if code in REFUSED:
        hint = "which credentials are used? aws sts get-caller-identity; they need s3:ListBucket, GetObject, PutObject"
        return StorageError(f"{uri}: refused ({code}: {found.get('Message', '')})", hint)
    if status >= 500 or code in ("SlowDown", "Throttling"):
        return NoAnswer(f"{uri}: {code or status} from the store", "it is busy; try again later")
    return StorageError(f"{uri}: {code or status}: {found.get('Message', '')}", "correct the address or the bucket")
