"""A recipe's value that is chosen from a table by name, or is a function of the user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from allo.recipe.own_code import PATTERN, own_file


@dataclass(frozen=True, eq=False)  # a type is hashed, and a table is none that can be
class OneOf:
    """One of the table's names when the recipe is read; with `or_own` also `file.py:function`.

    Use it as `Annotated[str, OneOf(TABLE)]`.
    """

    table: Mapping[str, Any]
    or_own: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        names = {"enum": [*self.table], "type": "string"}
        return {"anyOf": [names, {"pattern": PATTERN, "type": "string"}]} if self.or_own else names

    def _checked(self, name: Any) -> str:
        if isinstance(name, str) and (name in self.table or (self.or_own and own_file(name) is not None)):
            return name
        *others, last = map(repr, self.table)
        own = ", or your own file.py:function" if self.or_own else ""
        allowed = f"Input should be {', '.join(others)} or {last}{own}"
        raise PydanticCustomError("one_of", "{allowed}", {"allowed": allowed})
