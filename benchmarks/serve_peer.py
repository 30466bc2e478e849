"""The peer of benchmarks.serve: what one writes in twenty lines around the stock class."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()


class Asked(BaseModel):
    input: list[str]
    model: str


@app.post("/v1/embeddings")
def embeddings(asked: Asked) -> dict:
    vectors = app.state.model.encode_document(asked.input)
    data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
    return {"object": "list", "data": data, "model": asked.model}


@app.get("/ready")
def ready() -> dict:
    return {"status": "ready"}


if __name__ == "__main__":
    app.state.model = SentenceTransformer(sys.argv[1], device="cpu")
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
