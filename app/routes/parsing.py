"""Queries, read straight into models, and described as FastAPI would describe them.

FastAPI reads them field by field, which takes longer than all the rest of a submission (decision 25).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

M = TypeVar("M", bound=BaseModel)


class Direct(APIRoute):
    """The route of an endpoint that reads its request itself, but for what is in the path, and returns a
    Response. FastAPI only describes it.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["method"] not in (self.methods or ()):
            return await super().handle(scope, receive, send)
        endpoint = cast(Callable[..., Awaitable[Response]], self.endpoint)
        response = await endpoint(Request(scope, receive, send), **scope["path_params"])
        return await response(scope, receive, send)


def query_of(request: Request, model: type[M]) -> M:
    """The query as a model; of what comes several times the last counts. Raises RequestValidationError."""
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        items = [{**item, "loc": ("query", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(items) from None


def parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """A query model as the OpenAPI document has it."""
    schema = model.model_json_schema()
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", []),
            "schema": field,
            "description": field["description"],
        }
        for name, field in schema["properties"].items()
    ]


def header(name: str, description: str) -> dict[str, Any]:
    """A header that a request may have, as the OpenAPI document has it."""
    schema = {"type": "string", "maxLength": 255}
    return {
        "name": name,
        "in": "header",
        "required": False,
        "schema": schema,
        "description": description,
    }
