"""Queries and bodies of the conversations endpoints: what is refused, and by which name."""

from __future__ import annotations

import pytest

from headrace.errors import ConversationNotFound, DocumentNotFound, InvalidRequest
from headrace.wire.conversation_requests import page_of
from headrace.wire.place_fields import check_path


@pytest.mark.parametrize(
    "limit",
    ["", "0", "101", "-1", "1.5", "٣", "0000000019999999999999999999", "0" * 4400, "1" * 4400],
)
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        page_of({"limit": limit})
    assert refused.value.param == "limit"


def test_a_page_is_read() -> None:
    page = page_of({"limit": "000000007", "after": "msg_1", "order": "asc"})
    assert (page.limit, page.after, page.newest_first) == (7, "msg_1", False)


def test_no_page_begins_after_a_nul() -> None:
    with pytest.raises(InvalidRequest) as refused:
        page_of({"after": "msg\0"})
    assert refused.value.param == "after"


def test_nothing_is_at_a_path_with_a_nul() -> None:
    check_path({"id": "mill/7", "document": "wheel"})
    with pytest.raises(ConversationNotFound):
        check_path({"id": "mill\0"})
    with pytest.raises(DocumentNotFound):
        check_path({"id": "mill", "document": "wheel\0"})
