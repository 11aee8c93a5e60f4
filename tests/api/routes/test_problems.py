from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from app.wire.problems import MEANINGS, uri


@pytest.mark.parametrize("code", sorted(MEANINGS))
def test_the_type_of_a_problem_leads_to_its_meaning(client: TestClient, code: str) -> None:
    problem_type = client.get(uri(code)).json()
    assert (problem_type["type"], problem_type["code"], problem_type["meaning"]) == (
        uri(code),
        code,
        MEANINGS[code],
    )
    assert 400 <= problem_type["status"] < 600


def test_there_is_no_page_for_a_problem_that_does_not_exist(client: TestClient) -> None:
    answer = client.get("/problems/nonsense")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
