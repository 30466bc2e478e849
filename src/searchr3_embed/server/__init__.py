"""The embedder behind an address: OpenAI's ``/v1/embeddings``, and ``/v1/reason`` for the trace (extra: ``serve``).

``app.create_app`` makes a FastAPI program of settings and, where there is one, an embedder. ``searchr3 serve`` runs it
by uvicorn (``run``); ``app.from_environment`` is the same for other ASGI servers. One worker thread computes, fed by
two queues (``queues``).
"""
