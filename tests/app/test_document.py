"""The OpenAPI document: whole, with examples that are true, and readable by its own page."""

from __future__ import annotations

import jsonschema_rs
import pytest


@pytest.fixture
def document(api):
    return api.get("/openapi.json").json()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_every_example_is_as_its_schema_says(document):
    schemas = document["components"]["schemas"]
    examples = [(name, example) for name, schema in schemas.items() for example in schema.get("examples", [])]
    assert len(examples) >= 6
    for name, example in examples:
        whole = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema_rs.validator_for(whole).validate(example)
    wrong = {"$ref": "#/components/schemas/Problem", "components": document["components"]}
    assert not jsonschema_rs.validator_for(wrong).is_valid({"status": "x"})


def test_examples_say_nothing_that_the_contract_does_not_know(document):
    schemas = document["components"]["schemas"]
    for name in ("Completion", "Problem", "CompletionList", "Latent"):
        for example in schemas[name]["examples"]:
            assert example.keys() <= schemas[name]["properties"].keys(), name
    (example,) = schemas["Completion"]["examples"]
    assert example["links"].keys() == schemas["Links"]["properties"].keys()


def test_every_json_answer_has_an_example(document):
    """Or is so simple that it needs none."""
    plain = {"get /healthz", "get /readyz"}
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
            if status.startswith("2") and "$ref" in schema and name not in plain:
                assert document["components"]["schemas"][schema["$ref"].split("/")[-1]]["examples"], name


def test_every_operation_and_parameter_says_what_it_is_for(document):
    for name, operation in operations(document):
        assert operation["description"], name
        for parameter in operation.get("parameters", []):
            told = parameter.get("description") or parameter["schema"].get("description")
            assert told or parameter["in"] == "path", (name, parameter["name"])


def test_every_operation_under_v1_tells_of_keys(document):
    for name, operation in operations(document):
        assert (" /v1" in name) == ("401" in operation["responses"] and "metrics" not in name)
        if " /v1" in name:
            assert operation["security"] == [{"HTTPBearer": []}]


def test_errors_are_problems_whatever_they_are(document):
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status[0] in "45":
                content = answer["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, (name, status)
