"""The OpenAPI document is valid and complete, and a client generated from it works."""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.api.application import create_app
from app.api.routes.images import MEDIA_TYPES
from app.reports import fhir
from app.settings import Settings
from tests.fake_classifier import png
from tests.fakes import CUT, GREYS
from tests.running import Running

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(create_app(Settings()).openapi()))
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_it_is_a_valid_document(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_is_named_described_and_sorted(document: dict[str, Any]) -> None:
    identifiers = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch("[a-z][a-z_]*", name) for name in identifiers)
    known = {tag["name"] for tag in document["tags"]}
    for name, operation in operations(document):
        assert operation["summary"], name
        assert set(operation["tags"]) <= known, name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (name, parameter["name"])


def test_every_post_documents_its_errors(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if not name.startswith("POST"):
            continue
        assert {"400", "408", "413", "415", "422", "429", "503"} <= set(operation["responses"]), name
        for status in ("429", "503"):
            assert "Retry-After" in operation["responses"][status]["headers"], (name, status)


def test_every_schema_has_a_name_that_a_generator_can_use(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert re.fullmatch("[A-Z][A-Za-z]+", name), name
        assert schema.get("title", name) == name


def examples(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for name, operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            for kind, media in body.get("content", {}).items():
                if "json" not in kind or "schema" not in media:
                    continue
                values = [media["example"]] if "example" in media else []
                values += [example["value"] for example in media.get("examples", {}).values()]
                for example in values:
                    yield f"{name} {kind}", media["schema"], example


def test_every_example_is_valid_by_its_schema(document: dict[str, Any]) -> None:
    count = 0
    for name, schema, example in examples(document):
        whole = schema | {"components": document["components"]}
        errors = [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(example)]
        assert errors == [], name
        count += 1
    assert count > 40


@pytest.fixture(scope="module")
def generated(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Generate a client with openapi-python-client; yield the name of the package, made importable."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(document))
    kinds = dict.fromkeys(MEDIA_TYPES, "application/octet-stream")
    kinds |= {PROBLEM: "application/json", fhir.MEDIA_TYPE: "application/json"}
    (folder / "config.yml").write_text(json.dumps({"post_hooks": [], "content_type_overrides": kinds}))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json"]
    command += [
        "--config",
        "config.yml",
        "--meta",
        "none",
        "--output-path",
        "leuko_generated",
        "--fail-on-warning",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield "leuko_generated"
    sys.path.remove(str(folder))


def test_a_generated_client_works(generated: str, service: Running) -> None:
    package, types, models = (
        importlib.import_module(f"{generated}{part}") for part in ("", ".types", ".models")
    )
    predict, evaluate = (
        importlib.import_module(f"{generated}.api.{name}")
        for name in ("classify.predict", "evaluate.evaluate_predictions")
    )
    model, ready = (
        importlib.import_module(f"{generated}.api.operate.{name}") for name in ("model", "readyz")
    )
    with package.Client(base_url=service.address) as client:
        assert ready.sync(client=client).status == "ready"
        assert model.sync(client=client).name == "fake"
        files = [
            types.File(io.BytesIO(data), name, "image/png")
            for name, data in (("a.png", png(GREYS[2])), ("b.png", CUT))
        ]
        predictions = predict.sync(client=client, body=models.PredictForm(files=files))
        assert [prediction.label for prediction in predictions.predictions] == ["monocyte"]
        assert [(error.index, error.filename) for error in predictions.errors] == [(1, "b.png")]
        body = models.Outcomes(labels=["monocyte"], predictions=["monocyte"])
        assert evaluate.sync(client=client, body=body).accuracy == 1
        refused = predict.sync(client=client, body=models.PredictForm(files=[files[1]]))
        assert isinstance(refused, models.Problem)
