"""Two ways to bring a URL to a key in Python, as their documentation writes them.

``python peer_python.py boto3|smart_open URL BUCKET KEY``, in the environment that `make peers` makes: nothing of ours is here.
"""

import sys

import boto3
import requests
import smart_open


def main(how: str, url: str, bucket: str, key: str) -> None:
    """Do it."""
    client = boto3.client("s3")
    if how == "boto3":
        with requests.get(url, stream=True, timeout=60) as response:
            client.upload_fileobj(response.raw, bucket, key)
        return
    there = smart_open.open(f"s3://{bucket}/{key}", "wb", transport_params={"client": client})
    with smart_open.open(url, "rb") as source, there as target:
        while piece := source.read(2**20):
            target.write(piece)


if __name__ == "__main__":
    main(*sys.argv[1:])
