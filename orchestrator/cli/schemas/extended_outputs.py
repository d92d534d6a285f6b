"""An output that is a value of another room with keys beside its own: written there once, named here.

Example: `Planned = Annotated[Plan, Also(digest=str)]`
"""

from __future__ import annotations

from typing import Any

from pydantic import GetJsonSchemaHandler, TypeAdapter
from typing_extensions import TypedDict


class Also:
    """In an annotation of a dataclass: what `to_json` prints beside its fields, or in their place. No key is ever left
    out.

    inlined: a field's name -> its dataclass, whose keys stand beside the others instead of in an object.
    """

    def __init__(self, inlined: dict[str, type] | None = None, **keys: Any) -> None:
        self._inlined = inlined or {}
        self._keys = keys

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        def properties_of(core: Any) -> dict[str, Any]:
            return dict(handler.resolve_ref_schema(handler(core))["properties"])

        own = handler.resolve_ref_schema(handler(core))
        properties = {name: rule for name, rule in own["properties"].items() if name not in self._inlined}
        for each in (*self._inlined.values(), TypedDict("Keys", self._keys)):  # type: ignore[operator]
            properties |= properties_of(TypeAdapter(each).core_schema)
        return {**own, "properties": properties, "required": list(properties)}
