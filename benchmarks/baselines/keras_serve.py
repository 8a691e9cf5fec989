"""A service as in tutorials: Keras `predict` with the weights of data/model.onnx, in FastAPI."""

import socket

import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from benchmarks.baselines.keras_predict import rebuild


def main() -> None:
    """Serve POST /classify on a free port, and print the address."""
    model, offset, divisor = rebuild()
    app = FastAPI()

    @app.post("/classify")
    def classify(files: list[UploadFile]) -> list[dict[str, object]]:
        images = np.stack([np.asarray(Image.open(upload.file)) for upload in files])
        predicted = model.predict((images - offset) / divisor, verbose=0)
        return [{"class": str(row.argmax()), "probabilities": row.tolist()} for row in predicted]

    config = uvicorn.Config(app, port=0, access_log=False, log_level="error")
    listener = config.bind_socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvicorn itself does
    listener.listen()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
