"""Whatever the OpenAPI allows to be sent is answered as the OpenAPI says, and never by a server error."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 6


@pytest.fixture
def schema(http):
    return schemathesis.openapi.from_dict(http.get("/api/v1/openapi.json").json())


def test_every_operation_has_a_place_in_the_description(http):
    described = http.get("/api/v1/openapi.json").json()["paths"]
    for path in ("/health", "/api/v1/session/prompts", "/api/v1/session/objects/{number}/measurements"):
        assert path in described
    assert not any(path.startswith("/claim") for path in described)


def test_no_page_of_the_description_asks_another_site_for_scripts(http):
    assert http.get("/api/v1/docs").status_code == 404


@pytest.mark.slow
def test_what_the_description_allows_is_answered_as_it_says(schema, http, client):
    someone = client(http)
    someone.open()
    tried: dict[int, int] = {}

    def ask(case) -> None:
        if someone("GET", "/session").status_code != 200:
            someone.lease = http.post("/api/v1/lease").json()["lease"]
            someone.open()
        case.headers = {**(case.headers or {}), "X-Lease-Token": someone.lease}
        sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
        known = {"method", "url", "headers", "params", "json"}
        request = {key: value for key, value in sent.items() if key in known and value is not None}
        if sent.get("data") is not None:
            request["content"] = sent["data"]
        response = http.request(**request)
        tried[response.status_code] = tried.get(response.status_code, 0) + 1
        case.validate_response(response, checks=CHECKS)

    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 25
    for operation in operations:
        quiet = settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        quiet(given(case=operation.as_strategy())(ask))()
    assert tried.get(200, 0) > 20
    assert {status for status in tried if status >= 500} == set()
