"""One edge to S3: the client and its credentials, one exchange at a time, and what each answer means.

Every botocore exception becomes ours here. Three answers are facts rather than faults, and have classes that never leave this
package: `NotThereError`, `StandsError` and `VanishedError`.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import quote

import boto3.session
import structlog
import tenacity
import urllib3.exceptions
from botocore import exceptions as botocore_exceptions
from botocore.config import Config

from worker.archive.direct import DirectPut, usable
from worker.errors import (
    ArchiveRefusedError,
    ArchiveUnavailableError,
    ConfigurationError,
    HeldError,
    LastcallError,
    TooLargeError,
)
from worker.model import JsonObject, Lease
from worker.settings import ArchiveSettings

log = structlog.get_logger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 5  # S3 is near or it is down: a connection that takes longer is tried again
READ_SECONDS = 60  # silence on a socket; a server that joins thousands of parts may well be silent for half a minute
CONNECTIONS = 256  # an upper bound only: more threads than connections would throw connections away, with a warning each

# Small exchanges (receipts, events, lists) without a lease are tried for this long; then the ledger decides when to try again.
PATIENCE_SECONDS = 20
PATIENCE_TRIES = 6
_WAIT = tenacity.wait_random_exponential(multiplier=0.2, max=10)  # full jitter, so that workers don't come back in step
REFUSED_SECONDS = (5, 10)  # a person is needed, so there is no hurry
LOOK_SECONDS = 0.25  # how often a wait asks its lease

_PERMISSIONS = {
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_parts": "s3:ListMultipartUploadParts",
    "list_objects_v2": "s3:ListBucket (without it a missing object is answered with 403 as well)",
    "head_object": "s3:GetObject",
    "get_object": "s3:GetObject",
}
# 4xx that say "not now", or that the bytes were damaged on the way: the same request may well pass the next time.
_PASSING = {
    "RequestTimeout", "SlowDown", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
    "InvalidDigest", "TooManyRequests", "RequestLimitExceeded",
}  # fmt: skip
_ON_UNFINISHED = {"upload_part", "list_parts", "complete_multipart_upload", "abort_multipart_upload"}
_KEY_REFUSED = {"KeyTooLongError", "XMinioInvalidObjectName", "InvalidObjectName", "InvalidURI"}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "TemporaryRedirect"}
_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_NO_CREDENTIALS = (
    botocore_exceptions.NoCredentialsError,
    botocore_exceptions.PartialCredentialsError,
    botocore_exceptions.CredentialRetrievalError,
    botocore_exceptions.ProfileNotFound,
    botocore_exceptions.TokenRetrievalError,
    botocore_exceptions.UnauthorizedSSOTokenError,
)
_TRANSPORT = (
    botocore_exceptions.BotoCoreError,
    urllib3.exceptions.HTTPError,  # a body that breaks while it is read
    OSError,
)


class NotThereError(Exception):
    """404: there is no such object."""


class StandsError(Exception):
    """412: an object stands at this key already. Nothing was written."""


class VanishedError(Exception):
    """404: the unfinished multipart upload, or a part of it, is gone."""


@runtime_checkable
class Holder(Lease, Protocol):
    """A lease with bytes in hand."""

    def goes_on_refused(self, exc: ArchiveRefusedError) -> bool:
        """Say whether to go on asking although S3 refuses us, until somebody puts that right."""


class Bucket:
    """The bucket of one ``[archive]`` table. Thread-safe."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self.settings = settings
        self.name = settings.bucket
        self._lock = threading.Lock()
        self._client: Any = None
        # Under TLS our CRC32 is enough. In the clear the signature covers the body as well, until the service shows that it
        # takes the CRC32: some don't, and to hash a large file twice is a third of its cost.
        self._in_the_clear = (settings.endpoint_url or "https:").startswith("http:")
        self._signs_bodies = self._in_the_clear
        self._may_leave_bodies_out = True
        self._direct: tuple[Any, DirectPut | None] = (None, None)  # the client that it goes with; None: the way is not open

    # --- one exchange ------------------------------------------------------------------------------------------------

    def ask(
        self,
        operation: str,
        *,
        then: Callable[[Any], T] | None = None,
        silence_seconds: float = READ_SECONDS,
        **params: Any,
    ) -> Any:
        """Make one exchange and give its answer, or what `then` makes of it (read a body there: it may break).

        A refusal is asked about once more with a new client, so that a secret that was just changed is picked up. A shorter
        `silence_seconds` holds while `puts_directly`, the client's own is `READ_SECONDS`.
        Raises our errors, `NotThereError`, `StandsError` and `VanishedError`.
        """
        client = self.client()
        try:
            return self._exchange(client, operation, then, silence_seconds, params)
        except ArchiveRefusedError:
            with self._lock:
                if self._client is client:
                    self._client = None
                if self._in_the_clear and not self._signs_bodies:
                    self._signs_bodies, self._may_leave_bodies_out = True, False  # perhaps that is what it refuses
            body: Any = params.get("Body")
            if hasattr(body, "seek"):
                body.seek(0)
            return self._exchange(self.client(), operation, then, silence_seconds, params)

    def call(self, operation: str, lease: Lease | None = None, *, then: Callable[[Any], T] | None = None, **params: Any) -> Any:
        """`ask`, `patiently`."""
        return self.patiently(lease, lambda: self.ask(operation, then=then, **params))

    def patiently(self, lease: Lease | None, work: Callable[[], T]) -> T:
        """Do `work` until S3 is available: as long as `lease` allows, or for `PATIENCE_SECONDS` without one.

        A refusal ends it at once, unless `lease` is a `Holder` that goes on.
        """
        began = time.monotonic()
        failed: list[
            LastcallError
        ] = []  # taken out again at once: a variable would tie an error to its own trace, and the bytes
        try:
            return work()
        except (ArchiveUnavailableError, ArchiveRefusedError) as exc:
            failed.append(exc)

        def attempt() -> T:
            if failed:
                raise failed.pop()
            return work()

        def may_pass(exc: BaseException) -> bool:
            if isinstance(exc, ArchiveRefusedError):
                return isinstance(lease, Holder) and lease.goes_on_refused(exc)
            return isinstance(exc, ArchiveUnavailableError)

        def enough(state: tenacity.RetryCallState) -> bool:
            seconds = time.monotonic() - began + state.upcoming_sleep
            return state.attempt_number >= PATIENCE_TRIES or seconds >= PATIENCE_SECONDS

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_pass),
            wait=_wait,
            stop=tenacity.stop_never if lease else enough,
            sleep=lambda seconds: sleep(seconds, lease),
            before_sleep=_tell_once,
            reraise=True,
        )
        return retrying(attempt)

    def client(self) -> Any:
        """Give the client, made when it is first needed and again after a refusal."""
        with self._lock:
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _new_client(self) -> Any:
        settings = self.settings
        config = Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": 1},  # retries are ours: they ask the lease
            tcp_keepalive=True,
            # Every body carries our CRC32.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if settings.endpoint_url else "auto", "payload_signing_enabled": self._signs_bodies},
        )
        try:
            keys = {
                name: secret.reveal()
                for name, secret in (
                    ("aws_access_key_id", settings.access_key_id),
                    ("aws_secret_access_key", settings.secret_access_key),
                )
                if secret is not None
            }
            # Stand-ins for S3 take any region; AWS's own is the standard chain's business.
            region = settings.region or ("us-east-1" if settings.endpoint_url else None)
            session = boto3.session.Session(region_name=region)
            client = session.client("s3", endpoint_url=settings.endpoint_url, config=config, **keys)
            client.meta.events.register_first("before-endpoint-resolution.s3", _stay_in_region)
            return client
        except ConfigurationError as exc:
            raise ArchiveRefusedError(f"the bucket's credentials cannot be read: {exc}") from exc
        except (botocore_exceptions.BotoCoreError, ValueError) as exc:
            raise ArchiveRefusedError(f"no S3 client can be made ({type(exc).__name__}); see [archive]") from exc

    def _exchange(
        self,
        client: Any,
        operation: str,
        then: Callable[[Any], T] | None,
        silence_seconds: float,
        params: dict[str, Any],
    ) -> Any:
        try:
            answer = self._answer(client, operation, silence_seconds, params)
            return then(answer) if then else answer
        except botocore_exceptions.ClientError as exc:
            raise self._meaning(operation, exc) from exc
        except _NO_CREDENTIALS as exc:
            raise ArchiveRefusedError(
                f"no credentials for bucket {self.name} ({type(exc).__name__}); set archive.access_key_id and "
                "archive.secret_access_key, or the AWS chain"
            ) from exc
        except (botocore_exceptions.ParamValidationError, botocore_exceptions.NoRegionError) as exc:
            raise ArchiveRefusedError(f"{operation}: the settings of [archive] cannot be sent ({type(exc).__name__})") from exc
        except _TRANSPORT as exc:
            unreached = isinstance(exc, botocore_exceptions.EndpointConnectionError | botocore_exceptions.ConnectTimeoutError)
            hint = "; does it run, and are archive.endpoint_url and archive.region right?" if unreached else ""
            raise ArchiveUnavailableError(f"S3 did not answer {operation} ({type(exc).__name__}){hint}") from exc

    def _answer(self, client: Any, operation: str, silence_seconds: float, params: dict[str, Any]) -> Any:
        """Send it directly where that will do, else by the client; where the client alone succeeds, no more directly."""
        direct = self._direct_for(client) if operation == "put_object" and isinstance(params["Body"], bytes) else None
        answer = direct.put(params, silence_seconds) if direct else None
        if answer is None:
            answer = getattr(client, operation)(Bucket=self.name, **params)
            if direct:
                self._direct = (client, None)
        if self._signs_bodies and answer.get("ChecksumCRC32", "") == params.get("ChecksumCRC32"):
            self._leave_bodies_out(client)
        return answer

    def _leave_bodies_out(self, client: Any) -> None:
        """The service took the CRC32 of a body, so the signatures to come need not cover bodies."""
        with self._lock:
            if self._client is client and self._may_leave_bodies_out:
                # Read for each request. A second client would cost 12 MiB.
                client.meta.config.s3["payload_signing_enabled"] = self._signs_bodies = False

    @property
    def puts_directly(self) -> bool:
        """Whether the way past the client is open for a `put_object` of bytes."""
        client, direct = self._direct
        return direct is not None and client is self._client

    def _direct_for(self, client: Any) -> DirectPut | None:
        made_for, direct = self._direct
        if made_for is not client:
            direct = DirectPut(client, self.name) if usable(self.name) else None
            self._direct = (client, direct)
        return direct

    def _meaning(  # noqa: C901, PLR0911, PLR0912 - a table of answers, read from top to bottom
        self, operation: str, exc: botocore_exceptions.ClientError
    ) -> Exception:
        """Say what an error answer means for what we do next."""
        code = str(exc.response.get("Error", {}).get("Code", ""))
        meta = exc.response.get("ResponseMetadata", {})
        status = int(meta.get("HTTPStatusCode", 0))
        what = f"{operation}: S3 answered {status} {code}".rstrip()
        match status:
            case 412:
                return StandsError(what)
            case 404 if code == "NoSuchBucket":
                return ArchiveRefusedError(f"bucket {self.name} does not exist; make it, or correct archive.bucket")
            case 404 if operation in {"get_object", "head_object"}:
                return NotThereError(what)
            case 400 | 404 if code in {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}:
                return VanishedError(what)
            case 404 if operation in _ON_UNFINISHED:
                return VanishedError(what)
            case 501:
                return ArchiveRefusedError(f"{what}: this service lacks what lastcall needs")
            case 0 | 408 | 409 | 429:
                return _unavailable(what, meta)
            case _ if code == "XAmzContentSHA256Mismatch" and not self._signs_bodies:
                return ArchiveRefusedError(f"{what}: this service lacks what lastcall needs")  # it wants bodies signed
            case _ if status >= 500 or (status == 200) or code in _PASSING or "Throttl" in code:
                return _unavailable(what, meta)
            case _ if code in _KEY_REFUSED:
                return HeldError(f"{what}: the key is not one that this service takes")
            case _ if code == "EntityTooLarge":
                return TooLargeError(f"{what}: larger than this service takes")
            case _ if code == "InvalidObjectState":
                return HeldError(f"{what}: the object is in cold storage; restore it first")
            case _ if code == "RequestTimeTooSkewed":
                return ArchiveRefusedError(f"{what}: this host's clock is wrong; set it right")
            case _ if status in {301, 307} or code in _WRONG_REGION:
                return ArchiveRefusedError(f"{what}: bucket {self.name} is in another region; correct archive.region")
            case 401 | 403 if code in _CREDENTIALS:
                return ArchiveRefusedError(f"{what}: the credentials for bucket {self.name} are not valid; renew them")
            case 401 | 403:
                return ArchiveRefusedError(f"{what}: allow {_PERMISSIONS.get(operation, operation)} on bucket {self.name}")
            case _:
                return ArchiveRefusedError(f"{what}: bucket {self.name} does not take this; see [archive] in the configuration")

    # --- reading -----------------------------------------------------------------------------------------------------

    def head(self, key: str, lease: Lease | None = None) -> JsonObject | None:
        """Give the HEAD answer of `key`, or None when it does not exist."""
        return self._read(key, lease, lambda: self.ask("head_object", Key=key))

    def get(self, key: str, lease: Lease | None = None) -> bytes | None:
        """Give a small object whole, or None when it does not exist."""
        return self._read(key, lease, lambda: self.ask("get_object", Key=key, then=_whole))

    def stream(self, key: str, offset: int, etag: str | None, take: Callable[[bytes], None]) -> JsonObject:
        """Feed `key` from `offset` on to `take`, once; gives the answer's headers. `etag`: of the object begun with."""
        params: dict[str, Any] = {"Key": key}
        if offset:
            params |= {"Range": f"bytes={offset}-"}
        if etag:
            params |= {"IfMatch": etag}

        def feed(answer: Any) -> JsonObject:
            with closing(answer["Body"]) as body:
                while piece := body.read(2**20):
                    take(piece)
            return dict(answer)

        try:
            return dict(self.ask("get_object", then=feed, **params))
        except StandsError as exc:
            raise ArchiveUnavailableError("the object changed while it was read") from exc

    def pages(self, operation: str, **params: Any) -> Iterator[JsonObject]:
        """Give every page of a listing."""
        while True:
            page: JsonObject = self.call(operation, **params)
            yield page
            if not page.get("IsTruncated"):
                return
            for sent, received in (
                ("ContinuationToken", "NextContinuationToken"),
                ("KeyMarker", "NextKeyMarker"),
                ("UploadIdMarker", "NextUploadIdMarker"),
            ):
                if page.get(received):
                    params[sent] = page[received]

    def keys(self, prefix: str, after: str | None = None) -> Iterator[JsonObject]:
        """List the objects under `prefix`, in the order of their keys; those behind the key `after`, where one is given."""
        for page in self.pages("list_objects_v2", Prefix=prefix, **({"StartAfter": after} if after else {})):
            yield from page.get("Contents", ())

    def presign(self, key: str, seconds: int) -> str:
        """A URL for GETs of `key` as an attachment under its own name, good for `seconds`."""
        saved_as = f"attachment; filename*=UTF-8''{quote(key.rpartition('/')[2], safe='')}"
        what = {"Bucket": self.name, "Key": key, "ResponseContentDisposition": saved_as}
        return str(self.client().generate_presigned_url("get_object", Params=what, ExpiresIn=seconds))

    def _read(self, key: str, lease: Lease | None, work: Callable[[], T]) -> T | None:
        def attempt() -> T | None:
            try:
                return work()
            except NotThereError:
                return None
            except ArchiveRefusedError:
                # A missing object is 403, not 404, without s3:ListBucket; and a HEAD's refusal names no reason. The listing
                # tells: it is refused with its reason, or the object is there (and may not be read), or it is not there.
                listed = self.ask("list_objects_v2", Prefix=key, MaxKeys=1).get("Contents", ())
                if any(entry["Key"] == key for entry in listed):
                    raise
                return None

        return self.patiently(lease, attempt)


def answered(exc: ArchiveUnavailableError) -> bool:
    """Whether S3 gave an answer at all, be it a bad one."""
    return isinstance(exc.__cause__, botocore_exceptions.ClientError)


def sleep(seconds: float, lease: Lease | None) -> None:
    """Wait, asking `lease` all the while."""
    end = time.monotonic() + seconds
    while True:
        if lease is not None:
            lease.check()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, LOOK_SECONDS))


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """Presigned URLs are of the bucket's own region, as requests are. botocore makes them for the endpoint of all regions: a
    private network may not reach it, and it redirects what is asked of a new bucket to a host that was not signed.
    """
    context["use_global_endpoint"] = False


def _whole(answer: Any) -> bytes:
    with closing(answer["Body"]) as body:
        return bytes(body.read())


def _unavailable(what: str, meta: JsonObject) -> ArchiveUnavailableError:
    return ArchiveUnavailableError(what, not_before=_retry_after(meta.get("HTTPHeaders", {}).get("retry-after", "")))


def _retry_after(header: str) -> datetime | None:
    """Read ``Retry-After``: seconds or a date."""
    if header.strip().isdecimal():
        return datetime.now(UTC) + timedelta(seconds=min(int(header), 86_400))
    try:
        return email.utils.parsedate_to_datetime(header).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _wait(state: tenacity.RetryCallState) -> float:
    """Back off with jitter, and at least until the time that S3 named."""
    exc = state.outcome.exception() if state.outcome else None
    if isinstance(exc, ArchiveRefusedError):
        return random.uniform(*REFUSED_SECONDS)
    named = exc.not_before if isinstance(exc, ArchiveUnavailableError) else None
    seconds = (named - datetime.now(UTC)).total_seconds() if named else 0.0
    return max(_WAIT(state), seconds)


def _tell_once(state: tenacity.RetryCallState) -> None:
    """Log the change of state, not every try."""
    if state.attempt_number == 1 and state.outcome:
        log.warning("archive-unavailable", error=str(state.outcome.exception()))
