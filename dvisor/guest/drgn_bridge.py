"""The guest as a drgn program: the same memory, with types and symbols from the guest itself.

drgn is an optional second engine, for depth: its helpers walk slabs, cgroups or block devices. It
does not read BTF; three finders give it types, objects and symbols. What is not in the kernel's own
tables, neither drgn gets: macros, types of most static variables, lines of source.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dvisor.addresses import GuestPhysical
from dvisor.errors import GuestDataError, HostError
from dvisor.guest import btf as bt
from dvisor.guest import variables
from dvisor.guest.kernel import Kernel

if TYPE_CHECKING:
    from drgn import FindObjectFlags, Object, Program, Symbol

    from dvisor.guest.drgn_types import TypeFinder

NAME = "dvisor"
"""Under which the finders are registered."""

Reader = Callable[[int, int, int, bool], bytes]


def program(kernel: Kernel) -> Program:
    """A ``drgn.Program`` over the memory of ``kernel``, good until the guest is reset.

    HostError if drgn is not installed; GuestDataError if the kernel has no VMCOREINFO, from which
    drgn takes the page tables.
    """
    try:
        import drgn
    except ImportError as error:
        raise HostError(
            "drgn is not installed: pip install drgn (or dvisor with the extra [drgn]); all of "
            "dvisor but this works without it"
        ) from error
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    for block in kernel.engine.ram():
        prog.add_memory_segment(block.gpa, block.size, _physical_reader(kernel), physical=True)
    prog.set_linux_kernel_custom(vmcoreinfo(kernel), kernel.engine.live)
    _add_linear(kernel, prog)
    add_finders(kernel, prog)
    return prog


def vmcoreinfo(kernel: Kernel) -> bytes:
    """The kernel's own note about itself, as the ELF note VMCOREINFO holds it."""
    if not kernel.vmcoreinfo:
        raise GuestDataError(
            "this kernel has no VMCOREINFO: it is built without CONFIG_VMCORE_INFO"
        )
    return "".join(f"{key}={value}\n" for key, value in kernel.vmcoreinfo.items()).encode()


def add_finders(kernel: Kernel, prog: Program) -> None:
    """Give an existing program (of a core file, of QMP) this kernel's types and symbols."""
    from dvisor.guest.drgn_types import TypeFinder

    types = TypeFinder(prog, kernel)
    symbols = _Symbols(kernel)
    prog.register_type_finder(NAME, types, enable_index=0)
    prog.register_object_finder(NAME, _Objects(kernel, types, symbols), enable_index=-1)
    prog.register_symbol_finder(NAME, symbols, enable_index=0)


def _physical_reader(kernel: Kernel) -> Reader:
    from drgn import FaultError

    def read(address: int, size: int, _offset: int, _physical: bool) -> bytes:
        try:
            return kernel.engine.read(GuestPhysical(address), size)
        except GuestDataError as error:
            raise FaultError(str(error), address) from error

    return read


def _add_linear(kernel: Kernel, prog: Program) -> None:
    """The direct map and the image without a page walk, which costs drgn a call a level."""
    read = kernel.memory.read
    for run in kernel.memory.linear:
        for block in kernel.engine.ram():
            start = max(run.physical, block.gpa)
            end = min(run.physical + run.size, block.end)
            if start < end:
                virtual = run.virtual + start - run.physical
                prog.add_memory_segment(
                    virtual, end - start, lambda address, size, _o, _p: read(address, size)
                )


class _Symbols:
    """Symbol finder over kallsyms; drgn's own index is filled at the first question."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._index: Callable[..., list[Symbol]] | None = None
        self._ascending: list[int] = []

    def __call__(
        self, prog: Program, name: str | None, address: int | None, one: bool
    ) -> Sequence[Symbol]:
        """As ``drgn.Program.register_symbol_finder`` has it."""
        if self._index is None:
            self._index = self._build()
        return self._index(prog, name, address, one)

    def room(self, address: int) -> int:
        """Bytes from ``address`` to the next symbol."""
        if not self._ascending:
            self._ascending = sorted(set(self._kernel.symbols.addresses))
        after = bisect_right(self._ascending, address)
        return self._ascending[after] - address if after < len(self._ascending) else 0

    def _build(self) -> Callable[..., list[Symbol]]:
        from drgn import Symbol, SymbolBinding, SymbolIndex, SymbolKind

        table = self._kernel.symbols
        index: Callable[..., list[Symbol]] = SymbolIndex(
            Symbol(
                full[1:],
                address,
                self.room(address),
                SymbolBinding.GLOBAL if full[0].isupper() else SymbolBinding.LOCAL,
                SymbolKind.FUNC if full[0] in "tTwW" else SymbolKind.OBJECT,
            )
            for full, address in zip(table.names, table.addresses, strict=True)
        )
        return index


class _Objects:
    """Object finder: enumeration constants, functions, and the variables whose type is known."""

    def __init__(self, kernel: Kernel, types: TypeFinder, symbols: _Symbols) -> None:
        self._kernel = kernel
        self._types = types
        self._symbols = symbols
        self._constants: dict[str, tuple[int, int]] = {}

    def __call__(
        self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None
    ) -> Object | None:
        """As ``drgn.Program.register_object_finder`` has it."""
        from drgn import FindObjectFlags

        if filename:
            return None
        found = None
        if flags & FindObjectFlags.VARIABLE:
            found = self._variable(prog, name)
        if found is None and flags & FindObjectFlags.FUNCTION:
            found = self._function(prog, name)
        if found is None and flags & FindObjectFlags.CONSTANT:
            found = self._constant(prog, name)
        return found

    def _variable(self, prog: Program, name: str) -> Object | None:
        from drgn import Object

        address = self._kernel.find_symbol(name)
        if address is None:
            return None
        found = variables.declared(self._kernel.types, name, self._symbols.room(address))
        if found is None:
            return None
        kind = self._types.type(found.type_id)
        for _ in range(found.pointers):
            kind = prog.pointer_type(kind)
        if found.length is not None:
            kind = prog.array_type(kind, found.length)
        return Object(prog, kind, address=address)

    def _function(self, prog: Program, name: str) -> Object | None:
        from drgn import Object

        type_id = self._kernel.types.find(name, bt.FUNC)
        address = self._kernel.find_symbol(name)
        if type_id is None or address is None:
            return None
        return Object(prog, self._types.type(type_id), address=address)

    def _constant(self, prog: Program, name: str) -> Object | None:
        from drgn import Object

        types = self._kernel.types
        if not self._constants:
            for type_id in range(types.end_id - 1, 0, -1):
                if types.kind(type_id) in {bt.ENUM, bt.ENUM64}:
                    self._constants |= {
                        label: (type_id, value) for label, value in types.enumerators(type_id)
                    }
        if name not in self._constants:
            return None
        type_id, value = self._constants[name]
        return Object(prog, self._types.type(type_id), value)
