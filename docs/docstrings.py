"""How mkdocstrings shall read the docstrings of this package, which say `Example:` and `Args:` of a record."""

import re
from typing import Any

from griffe import Class, Extension, Object


class Docstrings(Extension):
    """Rename sections before they are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Examples are highlighted, and the arguments of a record are its fields."""
        if obj.docstring is None:
            return
        renamed = {"Example": "Examples"} | ({"Args": "Attributes"} if isinstance(obj, Class) else {})
        for old, new in renamed.items():
            obj.docstring.value = re.sub(rf"^(\s*){old}:$", rf"\1{new}:", obj.docstring.value, flags=re.MULTILINE)
