"""Edits in the reference: `@register_edit` makes `swap(layer)` of `def swap(route, layer)`, and the pages show the former."""

from typing import Any

import griffe


class EditSignatures(griffe.Extension):
    """Takes the route off the signature of every function declared as an edit."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Change the function as it is read."""
        if any(decorator.callable_path.endswith("register_edit") for decorator in func.decorators):
            func.parameters = griffe.Parameters(*[*func.parameters][1:])
            func.returns = "Edit"
