"""A small PUT without the client's machinery: botocore's own serializer, signature and connections, and nothing between them.

An output of some kilobytes is two PUTs, and the client spends twice as much on each as serializing, signing and sending do.
An answer that the client would act on (another region, another host) is the client's to ask again.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from botocore.parsers import create_parser
from botocore.serialize import create_serializer

_OK = 200
_FOR_THE_CLIENT = frozenset({301, 302, 303, 307, 308, 400})
_SAFE = "/~"  # as botocore writes keys; the signature is over the path as it is sent


class DirectPut:
    """`put_object` of one client, for one bucket and bodies of bytes. Thread-safe."""

    def __init__(self, client: Any, bucket: str) -> None:
        """`client`: whose credentials, settings and connections are used. Nothing is sent yet."""
        self._client = client
        self._operation = client.meta.service_model.operation_model("PutObject")
        self._serializer = create_serializer("rest-xml", include_validation=False)
        self._parser = create_parser("rest-xml")
        # Where the bucket is, as the client's rules say: in the host or in the path.
        signed = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "-"})
        self._root = signed.partition("?")[0].removesuffix("-")
        self._bucket = bucket

    def put(self, params: dict[str, Any]) -> Any:
        """Send it; gives the answer as the client does. None: ask the client. Raises what the client raises."""
        serialized = self._serializer.serialize_to_request({"Bucket": self._bucket, **params}, self._operation)
        request = AWSRequest(
            method="PUT",
            url=self._root + quote(params["Key"], safe=_SAFE),
            headers=serialized["headers"],
            data=params["Body"],
        )
        request.headers["User-Agent"] = "lastcall"
        request.context["client_config"] = self._client.meta.config
        self._sign(request)
        response = self._client._endpoint.http_session.send(request.prepare())  # noqa: SLF001 - the client's own connections
        status = response.status_code
        if status in _FOR_THE_CLIENT:
            return None
        answer = self._parser.parse(
            {"headers": response.headers, "status_code": status, "body": response.content}, self._operation.output_shape
        )
        if status != _OK:
            raise ClientError(answer, "PutObject")
        return answer

    def _sign(self, request: AWSRequest) -> None:
        signer = self._client._request_signer  # noqa: SLF001 - the client's credentials, renewed when they are about to expire
        signer.get_auth_instance("s3", self._client.meta.region_name, "s3v4").add_auth(request)


def usable(bucket: str) -> bool:
    """Whether the way past the client is open: only to a bucket by its plain name. Others are signed in ways of their own."""
    return not bucket.startswith("arn:") and not bucket.endswith("--x-s3")
