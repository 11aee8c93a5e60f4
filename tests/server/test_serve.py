from __future__ import annotations

import subprocess
import sys


def test_a_service_does_not_import_what_libraries_import_for_nothing() -> None:
    script = (
        "import sys; from app.server.serve import spare_imports; spare_imports()\n"
        "import fastapi, openvino\n"
        "unused = 'pydantic.v1', 'openvino.tools'\n"
        "print(*sorted(name for name, module in sys.modules.items() if module and name.startswith(unused)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
    assert run.stderr == ""
