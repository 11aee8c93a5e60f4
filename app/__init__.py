"""Leuko: white blood cell classification over HTTP."""

import os
import sys

__version__ = "0.1.0"

# Some libraries report their use to their makers as soon as they are imported or used. This module is
# imported before any of them, in every process of ours, also in Ray's workers.
# OpenVINO and NNCF report through this package, and do without if it cannot be imported. That also keeps
# OpenVINO from writing an identifier into the home folder. They have no setting for it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # the import system's own mark
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime, which NNCF runs graphs with
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # it keeps logs in the home folder; https does the same
