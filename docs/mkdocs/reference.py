"""The API reference: the OpenAPI document as a page in Markdown.

`python docs/mkdocs/reference.py` prints it. It knows what OpenAPI has that this API uses, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]

INTRODUCTION = """# API reference

{description}

Made from the OpenAPI document of version {version}, which a running service has at `/openapi.json`, and this
site as [openapi.json](openapi.json). Examples and explanations are in [API](api.md).
"""


def openapi_document() -> Json:
    """The document of the API as it is in this repository. Asks no queue and reads no model."""
    from app.main import create_app
    from app.settings import Settings

    return create_app(Settings(redis_url="redis://nowhere.invalid")).openapi()


def reference(document: Json) -> str:
    """The page."""
    lines = [INTRODUCTION.format(**document["info"])]
    for tag, operations in by_tag(document).items():
        lines.append(f"\n## {tag.capitalize()}\n")
        for method, path, operation in operations:
            lines += endpoint(method, path, operation, document["components"]["schemas"])
    lines.append("\n## Schemas\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        if not is_form(name):
            lines += described_schema(name, schema)
    return "\n".join(lines) + "\n"


def by_tag(document: Json) -> dict[str, list[tuple[str, str, Json]]]:
    """Operations by their first tag, in the order of the document."""
    found: dict[str, list[tuple[str, str, Json]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    return found


def endpoint(method: str, path: str, operation: Json, schemas: Json) -> Iterator[str]:
    """One endpoint: what it does, takes and answers."""
    short = re.sub(r"\{\w+_id\}", "{id}", path.removeprefix("/v1/"))
    yield f"\n### `{method} {path}` {{#{operation['operationId']} data-toc-label='{method} {short}'}}\n"
    yield operation.get("description", operation["summary"])
    parameters = [
        (f"`{one['name']}`", one["in"], *typed(one["schema"], one), meaning(one))
        for one in operation.get("parameters", [])
    ]
    yield from table(("parameter", "in", "type", "default", "meaning"), parameters)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"\nBody: `{media_type}`{body_words(content['schema'])}"
        name = reference_of(content["schema"]) or ""
        if is_form(name):
            yield from fields(schemas[name])
    yield from table(("status", "answer"), answers(operation["responses"]))


def body_words(schema: Json) -> str:
    """What a body is, after its media type."""
    name = reference_of(schema)
    if name is None:
        return ": the file itself"
    return "" if is_form(name) else f", {link(name)}"


def is_form(name: str) -> bool:
    """Whether a schema is FastAPI's of a form, which belongs to one endpoint and is shown there."""
    return name.startswith("Body_")


def answers(responses: Json) -> list[tuple[str, str]]:
    """Statuses with what comes back; the problems, which all look the same, share a row."""
    good = [(status, answer) for status, answer in sorted(responses.items()) if status[0] in "123"]
    bad = sorted(status for status in responses if status[0] in "45")
    rows = [(f"**{status}** {phrase(status)}", answer_words(answer)) for status, answer in good]
    if bad:
        reasons = ", ".join(phrase(status).lower() for status in bad)
        rows.append((", ".join(bad), f"{link('Problem')}: {reasons}"))
    return rows


def phrase(status: str) -> str:
    """The name of an HTTP status."""
    return HTTPStatus(int(status)).phrase


def answer_words(answer: Json) -> str:
    """What an answer holds: schema or media types, and a word about it where there is one."""
    content = answer.get("content", {})
    names = sorted({link(name) for one in content.values() if (name := reference_of(one.get("schema", {})))})
    kinds = names or [f"`{kind}`" for kind in content]
    said = answer["description"] if answer["description"] != "Successful Response" else ""
    return ". ".join(filter(None, [", ".join(kinds), one_line(said).rstrip(".")]))


def described_schema(name: str, schema: Json) -> Iterator[str]:
    """One schema and its fields."""
    yield f"\n### {name} {{#{anchor(name)}}}\n"
    yield schema.get("description", "")
    yield from fields(schema)


def fields(schema: Json) -> Iterator[str]:
    """A table of what an object holds."""
    required = schema.get("required", [])
    rows = [
        (f"`{name}`", *typed(one, {"required": name in required}), meaning(one))
        for name, one in schema.get("properties", {}).items()
    ]
    yield from table(("field", "type", "default", "meaning"), rows)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A table with a blank line before it; none where there are no rows."""
    if rows:
        yield ""
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        yield from (f"| {' | '.join(row)} |" for row in rows)


def typed(schema: Json, about: Json) -> tuple[str, str]:
    """A schema's type, and its default or that there must be a value."""
    if about.get("required"):
        return kind(schema), "required"
    default = schema.get("default")
    return kind(schema), "" if default is None or default == [] else f"`{str(default).lower()}`"


def kind(schema: Json) -> str:
    """A type in words: its values, its bounds, or the schema that it is of."""
    if name := reference_of(schema):
        return link(name)
    if either := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(kind(one) for one in either if one != {"type": "null"})
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return ", ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if schema.get("contentMediaType") or schema.get("format") == "binary":
        return "file"
    return f"{schema.get('format') or schema.get('type', 'any')}{bounds(schema)}"


def bounds(schema: Json) -> str:
    """The numbers that are allowed, as ` 0 to 8`."""
    low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None or high is None:
        return ""
    below = "below " if "maximum" not in schema else ""
    return f" {low:,.0f} to {below}{high:,.0f}"


def meaning(schema: Json) -> str:
    """The description, fit for the cell of a table."""
    return one_line(schema.get("description", ""))


def one_line(text: str) -> str:
    """Text without line breaks, and with bars that end no cell."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def reference_of(schema: Json) -> str | None:
    """The name of the schema that one refers to."""
    target = schema.get("$ref")
    return target.rsplit("/", 1)[-1] if target else None


def anchor(name: str) -> str:
    """Where a schema stands on the page."""
    return f"schema-{name.lower()}"


def link(name: str) -> str:
    """A link to a schema."""
    return f"[{name}](#{anchor(name)})"


if __name__ == "__main__":
    print(reference(openapi_document()))
