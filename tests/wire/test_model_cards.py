import json

import groq._models
import openai._models
from groq.types import Model, ModelListResponse
from openai.types import Model as OpenAIModel

from headrace.wire.model_cards import ModelCard, model_card, model_list

CARD = ModelCard(
    id="openai/gpt-oss-120b",
    created=1754408224,
    owned_by="OpenAI",
    context_window=131072,
    max_completion_tokens=65536,
)
SEEN = (
    b'{"id":"openai/gpt-oss-120b","object":"model","created":1754408224,"owned_by":"OpenAI",'
    b'"active":true,"context_window":131072,"public_apps":null,"max_completion_tokens":65536}'
)


def test_a_card_as_it_was_seen() -> None:
    assert model_card(CARD) == SEEN + b"\n"


def test_a_list_as_it_was_seen() -> None:
    assert model_list([CARD, CARD]) == b'{"object":"list","data":[' + SEEN + b"," + SEEN + b"]}\n"
    assert model_list([]) == b'{"object":"list","data":[]}\n'


def test_clients_take_them() -> None:
    card = json.loads(model_card(CARD))
    assert groq._models.validate_type(type_=Model, value=card).id == CARD.id
    assert openai._models.validate_type(type_=OpenAIModel, value=card).created == CARD.created
    models = json.loads(model_list([CARD]))
    assert groq._models.validate_type(type_=ModelListResponse, value=models).object == "list"
