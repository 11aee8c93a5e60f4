"""Training: fine-tune a ResNet18 on labelled images and write a bundle that the service loads."""

import atexit
import os
import shutil
import tempfile

import app as app  # first: it keeps libraries from reporting their use

# What these libraries cache when they are imported would else stay in the home and the temporary folder.
_CACHES = {"MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"} - {*os.environ}
if _CACHES:
    _folder = tempfile.mkdtemp(prefix="leuko-train-")
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    os.environ.update(dict.fromkeys(_CACHES, _folder))
