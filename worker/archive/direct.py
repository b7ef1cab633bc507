"""A small PUT without the client's machinery: signed here, sent over the client's own connections.

An output of some kilobytes is two PUTs, and the client spends four times as much on each as signing and sending do. What it
would act on (another region, another host), and whatever is not a plain PUT, is the client's.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlsplit

from botocore.awsrequest import AWSPreparedRequest
from botocore.exceptions import ClientError
from botocore.parsers import create_parser

_OK = 200
_FOR_THE_CLIENT = frozenset({301, 302, 303, 307, 308, 400, 401, 403, 501})  # it may know better, also how to sign
_HEADERS = {
    "ContentType": "content-type",
    "IfNoneMatch": "if-none-match",
    "ChecksumCRC32": "x-amz-checksum-crc32",
    "StorageClass": "x-amz-storage-class",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ObjectLockMode": "x-amz-object-lock-mode",
}
_ANSWERED = {"ETag": "ETag", "VersionId": "x-amz-version-id", "ChecksumCRC32": "x-amz-checksum-crc32"}


def headers_of(params: Mapping[str, Any]) -> dict[str, str] | None:
    """Give the headers of `put_object` with these parameters, None where one of them is not known here."""
    headers = {}
    for name, value in params.items():
        if header := _HEADERS.get(name):
            headers[header] = value
        elif name == "Metadata":
            headers |= {f"x-amz-meta-{key}": text for key, text in value.items()}
        elif name == "ObjectLockRetainUntilDate":
            headers["x-amz-object-lock-retain-until-date"] = value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        elif name not in {"Key", "Body"}:
            return None
    return headers


def sign(
    headers: dict[str, str], *, url: str, body: bytes, credentials: Any, region: str, sign_body: bool, now: datetime
) -> None:
    """Add to the headers of a PUT what AWS's signature (version 4) wants: date, hash of the body, token, signature.

    All headers are signed; without `sign_body` the body's hash is left out.
    """
    parts = urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers["x-amz-date"] = stamp
    headers["x-amz-content-sha256"] = sha256(body).hexdigest() if sign_body else "UNSIGNED-PAYLOAD"
    if credentials.token:
        headers["x-amz-security-token"] = credentials.token
    signed = {**headers, "host": parts.netloc}
    names = sorted(signed)
    lines = "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in names)
    request = f"PUT\n{parts.path}\n\n{lines}\n{';'.join(names)}\n{headers['x-amz-content-sha256']}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    signature = _hmac(_signing_key(credentials.secret_key, stamp[:8], region), text).hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )


@functools.lru_cache(maxsize=4)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    return functools.reduce(_hmac, (day, region, "s3", "aws4_request"), f"AWS4{secret}".encode())


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


class DirectPut:
    """`put_object` of one client, for one bucket and bodies of bytes. Thread-safe."""

    def __init__(self, client: Any, bucket: str) -> None:
        """`client`: whose credentials, settings and connections are used. Nothing is sent yet."""
        self._client = client
        self._parser = create_parser("rest-xml")
        self._shape = client.meta.service_model.operation_model("PutObject").output_shape
        # Where the bucket is, as the client's rules say: in the host or in the path.
        there = urlsplit(client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "-"}))
        host = there.netloc.lower().removesuffix(":443" if there.scheme == "https" else ":80")  # as it will be sent
        self._root = f"{there.scheme}://{host}{there.path.removesuffix('-')}"

    def put(self, params: Mapping[str, Any], silence_seconds: float) -> Any:
        """Send it; gives of the client's answer what we read. None: ask the client. Raises what the client raises.

        `silence_seconds`: how long to wait for an answer on a connection that stands.
        """
        headers = headers_of(params)
        credentials = self._client._request_signer._credentials  # noqa: SLF001 - the client's, renewed when they are about to expire
        if headers is None or credentials is None:
            return None
        url = self._root + quote(params["Key"], safe="/~")
        sign(
            headers,
            url=url,
            body=params["Body"],
            credentials=credentials.get_frozen_credentials(),
            region=self._client.meta.region_name,
            sign_body=self._client.meta.config.s3["payload_signing_enabled"],
            now=datetime.now(UTC),
        )
        headers["user-agent"] = "lastcall"
        context = {"read_timeout": silence_seconds}
        request = AWSPreparedRequest("PUT", url, headers, params["Body"], stream_output=False, context=context)
        response = self._client._endpoint.http_session.send(request)  # noqa: SLF001 - proxies, trust and pools are settled there
        if response.status_code in _FOR_THE_CLIENT:
            return None
        if response.status_code == _OK:
            found = {name: response.headers.get(header) for name, header in _ANSWERED.items()}
            return {name: value for name, value in found.items() if value is not None}
        answer = {"headers": response.headers, "status_code": response.status_code, "body": response.content}
        raise ClientError(self._parser.parse(answer, self._shape), "PutObject")


def usable(bucket: str) -> bool:
    """Whether the way past the client is open: only to a bucket by its plain name. Others are signed in ways of their own."""
    return not bucket.startswith("arn:") and not bucket.endswith("--x-s3")
