#!/usr/bin/env python3
"""Stands in for `aws s3 sync FROM TO` if Amazon's program is not installed."""

import os
import pathlib
import sys

import boto3


def parts(url):
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/") + "/"


def main():
    if sys.argv[1:3] != ["s3", "sync"] or len(sys.argv) != 5:
        sys.exit("usage: aws s3 sync FROM TO")
    source, target = sys.argv[3:]
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    if source.startswith("s3://"):
        bucket, prefix = parts(source)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for entry in page.get("Contents", []):
                path = pathlib.Path(target) / entry["Key"].removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, entry["Key"], str(path))
    else:
        bucket, prefix = parts(target)
        for path in pathlib.Path(source).rglob("*"):
            if path.is_file():
                client.upload_file(str(path), bucket, prefix + str(path.relative_to(source)))


main()
