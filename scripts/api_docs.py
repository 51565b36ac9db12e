#!/usr/bin/env python3
"""Writes docs/api.md from the comments of the .proto files.

    scripts/api_docs.py            writes it
    scripts/api_docs.py --check    fails where it is not up to date

scripts/buf.sh gives the contract as JSON; without npm this is passed over.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "api.md"
# Exit code of scripts/buf.sh where buf cannot be had.
PASSED_OVER = 3

# Field numbers of google.protobuf.FileDescriptorProto and its parts: the paths
# of the source locations are made of them.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, METHODS, VALUES = 2, 2, 2

HEAD = """# The API

Made by `make api-docs` from the comments in `proto/charlstm/v1/`; change them
there. Fields marked *optional* tell "not set" from zero: then the default
holds. How errors look is at the end.
"""

TAIL = """
## Errors

Every error has a canonical gRPC code, a message that says what is wrong, where
and what would be right, and details in the trailer `grpc-status-details-bin`, a
`google.rpc.Status`:

| code | detail | holds |
| --- | --- | --- |
| `INVALID_ARGUMENT` | `google.rpc.BadRequest` | the field, as it is named above, and what is wrong with it |
| all others | `google.rpc.ErrorInfo` | a `reason` in UPPER_SNAKE_CASE; its `domain` is `charlstm.v1` |
| `RESOURCE_EXHAUSTED` | `google.rpc.RetryInfo` too | when to try again |

Beside these services the server answers `grpc.health.v1.Health`, for each
service by name, and reflection (`grpc.reflection.v1` and `v1alpha`).
"""


class File:
    """One .proto file with its comments, by path."""

    def __init__(self, descriptor: dict):
        self.descriptor = descriptor
        self.package = descriptor["package"]
        self.comments = {
            tuple(location.get("path", [])): location.get("leadingComments", "")
            for location in descriptor["sourceCodeInfo"]["location"]
        }

    def paragraphs(self, *path: int) -> list:
        """The comment in paragraphs, each on one line."""
        text = "\n".join(line.strip() for line in self.comments.get(path, "").split("\n"))
        return [" ".join(part.split("\n")) for part in re.split(r"\n{2,}", text.strip()) if part]

    def type_name(self, name: str) -> str:
        """A message or enum with a link, if it is one of this package."""
        short = name.removeprefix(f".{self.package}.")
        return f"[{short}](#{short.lower()})" if short != name else name.lstrip(".")

    def field_type(self, field: dict) -> str:
        if "typeName" in field:
            kind = self.type_name(field["typeName"])
        else:
            kind = field["type"].removeprefix("TYPE_").lower()
        if field["label"] == "LABEL_REPEATED":
            return f"repeated {kind}"
        return f"optional {kind}" if field.get("proto3Optional") else kind


def cell(paragraphs: list) -> str:
    return "<br>".join(paragraphs).replace("|", "\\|")


def service(file: File, index: int) -> list:
    descriptor = file.descriptor["service"][index]
    lines = [f"## {file.package}.{descriptor['name']}", ""]
    for paragraph in file.paragraphs(SERVICES, index):
        lines += [paragraph, ""]
    for number, method in enumerate(descriptor["method"]):
        request, response = (file.type_name(method[side]) for side in ("inputType", "outputType"))
        request = f"stream {request}" if method.get("clientStreaming") else request
        response = f"stream {response}" if method.get("serverStreaming") else response
        lines += [f"### {method['name']}", "", f"{request} → {response}", ""]
        for paragraph in file.paragraphs(SERVICES, index, METHODS, number):
            lines += [paragraph, ""]
    return lines


def message(file: File, index: int) -> list:
    descriptor = file.descriptor["messageType"][index]
    lines = [f"### {descriptor['name']}", ""]
    for paragraph in file.paragraphs(MESSAGES, index):
        lines += [paragraph, ""]
    fields = descriptor.get("field", [])
    if not fields:
        return lines
    choices = descriptor.get("oneofDecl", [])
    lines += ["| field | number | type | |", "| --- | --- | --- | --- |"]
    for number, field in enumerate(fields):
        about = file.paragraphs(MESSAGES, index, FIELDS, number)
        if "oneofIndex" in field and not field.get("proto3Optional"):
            about = [f"One of `{choices[field['oneofIndex']]['name']}`.", *about]
        kind = file.field_type(field)
        lines.append(f"| `{field['name']}` | {field['number']} | {kind} | {cell(about)} |")
    return [*lines, ""]


def enum(file: File, index: int) -> list:
    descriptor = file.descriptor["enumType"][index]
    lines = [f"### {descriptor['name']}", ""]
    for paragraph in file.paragraphs(ENUMS, index):
        lines += [paragraph, ""]
    lines += ["| value | number | |", "| --- | --- | --- |"]
    for number, value in enumerate(descriptor["value"]):
        about = cell(file.paragraphs(ENUMS, index, VALUES, number))
        lines.append(f"| `{value['name']}` | {value.get('number', 0)} | {about} |")
    return [*lines, ""]


def document(image: dict) -> str:
    lines = [HEAD]
    for descriptor in image["file"]:
        if descriptor.get("bufExtension", {}).get("isImport"):
            continue
        file = File(descriptor)
        for index in range(len(descriptor.get("service", []))):
            lines += service(file, index)
        for index in range(len(descriptor.get("messageType", []))):
            lines += message(file, index)
        for index in range(len(descriptor.get("enumType", []))):
            lines += enum(file, index)
    return "\n".join(lines).rstrip() + "\n" + TAIL


def main() -> None:
    made = subprocess.run([ROOT / "scripts" / "buf.sh", "json"], stdout=subprocess.PIPE, check=False)
    if made.returncode == PASSED_OVER:
        return
    if made.returncode != 0:
        sys.exit(made.returncode)
    text = document(json.loads(made.stdout))
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        print(f"wrote {TARGET.relative_to(ROOT)}")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit("docs/api.md is not what the .proto files say; `make api-docs` writes it")
    else:
        print("docs/api.md is up to date")


if __name__ == "__main__":
    main()
