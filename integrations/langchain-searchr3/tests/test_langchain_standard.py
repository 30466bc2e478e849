"""LangChain's own suites, unmodified, on the packaged model."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_searchr3 import SearchR3Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests


class OnThePackagedModel:
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SearchR3Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "searchr3", "device": "cpu"}


class TestUnit(OnThePackagedModel, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"SEARCHR3_MODEL": "a/folder"}, {"device": "cpu"}, {"model_name": "a/folder"}


class TestIntegration(OnThePackagedModel, EmbeddingsIntegrationTests):
    pass
