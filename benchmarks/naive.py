"""A naive service to compare with: FastAPI around torch in float32, one image a request, no batches."""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision.transforms import v2

from app.engine.bundle import load_bundle
from app.registry.fetch import locate
from app.settings import Settings
from training.network import load_network

bundle = load_bundle(locate(Settings.from_environ(os.environ)))
network = load_network(bundle)
resize = v2.Resize((224, 224))
app = FastAPI()


@app.post("/predict")
async def predict(files: UploadFile) -> dict[str, float]:
    image = Image.open(io.BytesIO(await files.read())).convert("RGB")
    pixels = torch.from_numpy(np.array(resize(image)))
    with torch.inference_mode():
        logits, _, _ = network(pixels.unsqueeze(0))
    return dict(zip(bundle.labels, logits.softmax(1)[0].tolist(), strict=True))
