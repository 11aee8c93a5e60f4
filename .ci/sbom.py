"""Write the contents of an environment, and the shipped bundle, as a CycloneDX document.

It has names, versions, licences, dependencies and hashes, but no addresses.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import app
from app.engine.bundle import Bundle, load_bundle

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "models" / "wbc-resnet18"
VERSION = SchemaVersion.V1_6

Document = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path, help="a virtual environment")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    document = without_addresses(inventory(arguments.environment))
    if extra := unpinned(document, (ROOT / "requirements.lock").read_text()):
        sys.exit(
            f"{arguments.environment} has packages that requirements.lock does not pin: {', '.join(extra)}"
        )
    text = json.dumps(add_shipped(document, load_bundle(BUNDLE)), indent=2)
    if faults := JsonStrictValidator(VERSION).validate_str(text):
        sys.exit(f"not a CycloneDX document: {faults}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text + "\n")
    print(f"{arguments.output}: {len(document['components'])} components")


def inventory(environment: Path) -> Document:
    command = [sys.executable, "-m", "cyclonedx_py", "environment", str(environment)]
    options = ["--pyproject", str(ROOT / "pyproject.toml"), "--spec-version", VERSION.to_version()]
    done = subprocess.run(
        [*command, *options, "--output-reproducible"], stdout=subprocess.PIPE, text=True, check=True
    )
    document: Document = json.loads(done.stdout)
    return document


def without_addresses(node: Any) -> Any:
    if isinstance(node, list):
        return [without_addresses(item) for item in node]
    if isinstance(node, dict):
        return {key: without_addresses(value) for key, value in node.items() if key != "externalReferences"}
    return node


def unpinned(document: Document, lock: str) -> list[str]:
    pins = set(re.findall(r"^[\w.-]+==[^ \n]+", lock, re.MULTILINE))
    names = [
        f"{re.sub(r'[-_.]+', '-', component['name']).lower()}=={component['version']}"
        for component in document["components"]
    ]
    return sorted(set(names) - pins)


def add_shipped(document: Document, bundle: Bundle) -> Document:
    """Add the version and the bundle to the root component; a bundle's sha256 is that of its manifest."""
    root = document["metadata"]["component"]
    root["version"] = app.__version__
    reference = f"{bundle.name}=={bundle.version}"
    document["components"].append(
        {
            "bom-ref": reference,
            "type": "machine-learning-model",
            "name": bundle.name,
            "version": bundle.version,
            "hashes": sha256(bundle.sha256),
            "components": [
                {"bom-ref": f"{reference}/{name}", "type": "file", "name": name, "hashes": sha256(digest)}
                for name, digest in bundle.files.items()
            ],
        }
    )
    dependencies = next(entry for entry in document["dependencies"] if entry["ref"] == root["bom-ref"])
    dependencies["dependsOn"] = sorted([*dependencies.get("dependsOn", []), reference])
    document["dependencies"].append({"ref": reference})
    return document


def sha256(digest: str) -> list[Document]:
    return [{"alg": "SHA-256", "content": digest}]


if __name__ == "__main__":
    main()
