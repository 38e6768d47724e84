"""The API on one page: made from its OpenAPI document, complete in itself, without scripts.

In: an OpenAPI 3 document. Out: HTML that loads nothing. Thread: any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, TypeAlias

JSON: TypeAlias = Any
Schema: TypeAlias = Mapping[str, JSON]

CONTENT_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
METHODS = ("get", "post", "put", "patch", "delete")
MAX_DEPTH = 4
"""Of fields within fields; deeper ones are in the document."""


def page(document: Schema) -> str:
    """The whole page."""
    info = document.get("info", {})
    title, version = str(info.get("title", "API")), str(info.get("version", ""))
    operations = list(_operations(document))
    links = "".join(operation.link() for operation in operations)
    sections = "".join(operation.section() for operation in operations)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<nav aria-label="Endpoints"><h1>{escape(title)} <small>{escape(version)}</small></h1>'
        f'<ul>{links}</ul><p><a href="openapi.json">openapi.json</a></p></nav>'
        f"<main>{_text(info.get('description'))}{sections}</main></body></html>\n"
    )


def _operations(document: Schema) -> Iterator[_Operation]:
    """One for all the paths that do the same."""
    found: dict[tuple[str, str], _Operation] = {}
    for path, item in document.get("paths", {}).items():
        for method in METHODS:
            if method not in item:
                continue
            does = {name: part for name, part in item[method].items() if name != "operationId"}
            known = found.get((method, json.dumps(does, sort_keys=True)))
            if known is None:
                made = _Operation(document, path, method, item[method])
                found[method, json.dumps(does, sort_keys=True)] = made
            else:
                known.other_paths.append(path)
    yield from found.values()


class _Operation:
    """One method of one path."""

    def __init__(self, document: Schema, path: str, method: str, operation: Schema) -> None:
        self._document = document
        self._path = path
        self._method = method
        self._operation = operation
        self.other_paths: list[str] = []
        self._id = escape(f"{method}-{path.strip('/').replace('/', '-') or 'root'}", quote=True)

    def link(self) -> str:
        return f'<li><a href="#{self._id}">{self._badge()} {escape(self._path)}</a></li>'

    def section(self) -> str:
        operation = self._operation
        return (
            f'<section id="{self._id}"><h2>{self._badge()} <code>{escape(self._path)}</code></h2>'
            f"{self._others()}{_text(operation.get('summary'), 'lead')}"
            f"{_text(operation.get('description'))}"
            f"{self._parameters()}{self._body()}{self._responses()}</section>"
        )

    def _others(self) -> str:
        paths = ", ".join(f"<code>{escape(path)}</code>" for path in self.other_paths)
        return f"<p><small>also {paths}</small></p>" if paths else ""

    def _badge(self) -> str:
        return f'<b class="{self._method}">{self._method.upper()}</b>'

    def _parameters(self) -> str:
        rows = ""
        for listed in self._operation.get("parameters", ()):
            parameter = self._resolve(listed)
            schema = {**self._resolve(parameter.get("schema", {}))}
            schema.setdefault("description", parameter.get("description"))
            name = f"{parameter.get('name', '')} ({parameter.get('in', '')})"
            rows += self._row(name, schema, bool(parameter.get("required")), 0)
        return _table("Parameters", rows)

    def _body(self) -> str:
        body = self._resolve(self._operation.get("requestBody", {}))
        shown = ""
        for media_type, media in body.get("content", {}).items():
            schema = self._resolve(media.get("schema", {}))
            shown += _table(f"Body · {escape(media_type)}", self._rows(schema, 0))
            if (example := _example(media)) is not None:
                shown += f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
        return shown

    def _responses(self) -> str:
        rows = ""
        for status, listed in self._operation.get("responses", {}).items():
            response = self._resolve(listed)
            kinds = ", ".join(response.get("content", {}))
            rows += (
                f"<tr><td><code>{escape(str(status))}</code></td><td>{escape(kinds)}</td>"
                f"<td>{escape(str(response.get('description', '')))}</td></tr>"
            )
        return _table("Answers", rows)

    def _rows(self, schema: Schema, depth: int) -> str:
        required = schema.get("required", ())
        return "".join(
            self._row(name, field, name in required, depth)
            for name, field in self._properties(schema).items()
        )

    def _properties(self, schema: Schema) -> dict[str, Schema]:
        """Fields of all that a value may be; one that differs among them is any of its kinds."""
        listed = (part for word in _COMBINED for part in schema.get(word, ()))
        kinds: dict[str, list[Schema]] = {}
        for part in (schema, *map(self._resolve, listed)):
            for name, field in part.get("properties", {}).items():
                if field not in kinds.setdefault(name, []):
                    kinds[name].append(field)
        return {
            name: fields[0] if len(fields) == 1 else {"anyOf": fields}
            for name, fields in kinds.items()
        }

    def _row(self, name: str, listed: Schema, is_required: bool, depth: int) -> str:
        schema = self._resolve(listed)
        star = ' <small class="required">required</small>' if is_required else ""
        default = ""
        if "default" in schema:
            default = f"<br><small>default {_code(schema['default'])}</small>"
        row = (
            f'<tr><td class="depth{depth}"><code>{escape(name)}</code>{star}</td>'
            f"<td>{escape(self._type(schema))}{default}</td>"
            f"<td>{escape(str(schema.get('description') or ''))}{_limits(schema)}</td></tr>"
        )
        if depth + 1 < MAX_DEPTH:
            row += self._rows(self._resolve(schema.get("items", schema)), depth + 1)
        return row

    def _type(self, schema: Schema, depth: int = 0) -> str:
        if depth > MAX_DEPTH:
            return "…"
        if "const" in schema:
            return json.dumps(schema["const"])
        if "enum" in schema:
            return " | ".join(map(json.dumps, schema["enum"]))
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                kinds = (self._type(self._resolve(one), depth + 1) for one in schema[choice])
                return " | ".join(dict.fromkeys(kinds))
        if schema.get("type") == "array":
            return f"array of {self._type(self._resolve(schema.get('items', {})), depth + 1)}"
        kind = schema.get("type", "any")
        return " | ".join(kind) if isinstance(kind, list) else str(kind)

    def _resolve(self, schema: JSON) -> Schema:
        """`schema`, or what its `$ref` points to; empty where that is nothing."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, Mapping):
                return {}
            if "$ref" not in schema:
                return schema
            target: JSON = self._document
            for part in str(schema["$ref"]).removeprefix("#/").split("/"):
                target = target.get(part, {}) if isinstance(target, Mapping) else {}
            schema = target
        return {}


_COMBINED = ("allOf", "anyOf", "oneOf")


def _example(media: Schema) -> JSON:
    if "example" in media:
        return media["example"]
    examples = media.get("examples", {})
    return next((one.get("value") for one in examples.values()), None)


def _limits(schema: Schema) -> str:
    shown = [f"{word} {schema[key]}" for key, word in _LIMITS.items() if key in schema]
    return f" <small>{escape(', '.join(shown))}</small>" if shown else ""


_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minItems": "at least this many:",
    "maxItems": "at most this many:",
    "minLength": "length at least",
    "maxLength": "length at most",
}


def _code(value: JSON) -> str:
    return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"


def _text(text: JSON, kind: str = "") -> str:
    """Paragraphs of plain text."""
    if not text:
        return ""
    return "".join(f'<p class="{kind}">{escape(part)}</p>' for part in str(text).split("\n\n"))


def _table(title: str, rows: str) -> str:
    return f"<h3>{title}</h3><table>{rows}</table>" if rows else ""


_STYLE = """
:root{--ink:#1c2430;--soft:#5b6878;--line:#dde3ea;--paper:#fff;--panel:#f5f7fa;--deep:#0b6e99;
--get:#1a7f4b;--post:#0b6e99;--delete:#b3372f}
@media (prefers-color-scheme:dark){:root{--ink:#e4eaf2;--soft:#94a3b5;--line:#2b3645;
--paper:#10161e;--panel:#17202b;--deep:#5bc0eb;--get:#5ad08f;--post:#5bc0eb;--delete:#ff8a80}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem}
body{margin:0;display:grid;grid-template-columns:19rem minmax(0,1fr);color:var(--ink);
background:var(--paper);font:15px/1.55 system-ui,sans-serif}
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1.5rem 1.2rem;
background:var(--panel);border-right:1px solid var(--line)}
nav h1{font-size:1.25rem;margin:0 0 1rem}
nav ul{list-style:none;margin:0 0 1.5rem;padding:0}
nav li a{display:block;padding:.25rem .4rem;border-radius:6px;color:inherit;font-size:.86rem;
overflow-wrap:anywhere}
nav li a:hover{background:var(--line)}
a{color:var(--deep);text-decoration:none}
small{color:var(--soft);font-weight:400}
main{padding:1.5rem clamp(1rem,4vw,3.5rem) 6rem;max-width:70rem}
section{border-top:1px solid var(--line);margin-top:2rem;padding-top:1rem}
h2{font-size:1.15rem;margin:.5rem 0;overflow-wrap:anywhere}
h3{font-size:.8rem;letter-spacing:.06em;text-transform:uppercase;color:var(--soft);
margin:1.4rem 0 .4rem}
.lead{font-size:1.05rem}
b{font-size:.72em;letter-spacing:.04em;color:var(--post)}
b.get{color:var(--get)}
b.delete{color:var(--delete)}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.88em}
pre{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:.9rem 1rem;
overflow:auto}
table{width:100%;border-collapse:collapse;display:block;overflow-x:auto}
td{vertical-align:top;padding:.45rem .9rem .45rem 0;border-top:1px solid var(--line)}
td:first-child{white-space:nowrap}
td:last-child{width:100%;min-width:16rem}
.required{color:var(--delete)}
.depth1{padding-left:1.4rem}
.depth2{padding-left:2.8rem}
.depth3{padding-left:4.2rem}
@media (max-width:52rem){body{display:block}nav{position:static;height:auto;border-right:0;
border-bottom:1px solid var(--line)}}
"""
