"""Names for arrays in signatures.

To the type checker they are Any: what arithmetic returns differs between the stubs of NumPy 1.21 and 2.x, and no
annotation passes `mypy --strict` on all of them. Docstrings give shapes, tests hold the types.
"""

from typing import Any, TypeAlias

F32Array: TypeAlias = Any
I32Array: TypeAlias = Any
U8Array: TypeAlias = Any
