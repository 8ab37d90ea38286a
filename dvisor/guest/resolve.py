"""What an address of kernel code or data is called."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from dvisor.errors import GuestDataError
from dvisor.guest.kernel import Kernel
from dvisor.guest.lists import list_entries
from dvisor.guest.module_symbols import ModuleSymbol, module_symbols
from dvisor.guest.modules import Module, read_modules

MAX_BPF_SYMBOLS = 1 << 16


class Found(NamedTuple):
    """The symbol that an address belongs to."""

    name: str
    """Empty where the module is known, but no symbol of it is before the address."""
    distance: int
    size_bytes: int
    """Up to the next symbol, as the kernel prints it (%pS)."""
    module: str
    """Empty for the kernel itself, ``bpf`` for a BPF program."""


class Resolver:
    """Names addresses, by the modules and BPF programs that were loaded when it was made."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        image = kernel.image
        self._image_size = image.end - image.start
        self._modules: list[Module] | None = None
        self._symbols: dict[int, list[ModuleSymbol]] = {}
        self._bpf: list[tuple[int, int, str]] | None = None

    def name(self, address: int) -> str:
        """``symbol+0x12``, with `` [module]`` after it for one of a module (``[bpf]`` for a BPF
        program); the number itself where nothing is known."""
        found = self.find(address)
        if found is None:
            return f"{address:#x}"
        text = _joined(found.name, found.distance) if found.name else f"{address:#x}"
        return f"{text} [{found.module}]" if found.module else text

    def find(self, address: int) -> Found | None:
        """What ``name`` says, in parts; None where nothing is known."""
        if 0 <= address - self.kernel.image.virtual < self._image_size:
            near = self.kernel.symbols.near(address)
            if near is None:
                return None
            start = address - near[1]
            return Found(*near, self.kernel.symbols.after(start) - start, "")
        module = self.module(address)
        if module is not None:
            return self._in_module(module, address)
        for start, end, label in self._bpf_symbols():
            if start <= address < end:
                return Found(label, address - start, end - start, "bpf")
        return None

    def module(self, address: int) -> Module | None:
        """The module whose memory ``address`` is in."""
        if self._modules is None:
            self._modules = read_modules(self.kernel)
        return next((m for m in self._modules if m.holds(address)), None)

    def _in_module(self, module: Module, address: int) -> Found:
        symbols = self._symbols.get(module.address)
        if symbols is None:
            try:
                symbols = module_symbols(self.kernel, module)
            except GuestDataError:
                symbols = []
            self._symbols[module.address] = symbols
        after = bisect_right(symbols, address, key=_address)
        if not after or not module.holds(symbols[after - 1].address):
            return Found("", 0, 0, module.name)
        start = symbols[after - 1].address
        first = symbols[bisect_left(symbols, start, key=_address)]  # of aliases, as the kernel does
        if after < len(symbols):
            end = symbols[after].address
        else:
            end = max(region.base + region.size_bytes for region in module.regions)
        return Found(first.name, address - start, end - start, module.name)

    def _bpf_symbols(self) -> list[tuple[int, int, str]]:
        """(start, end, name) of compiled BPF programs and trampolines (bpf_kallsyms)."""
        if self._bpf is None:
            self._bpf = []
            kernel = self.kernel
            head = kernel.find_symbol("bpf_kallsyms")
            if head is None or kernel.place("bpf_ksym", "lnode") is None:
                return self._bpf
            link = kernel.offset("bpf_ksym", "lnode")
            record = kernel.record("bpf_ksym", "start", "end", "name[]")
            entries = list_entries(
                kernel.memory, head, link, lambda text: None, "BPF programs", MAX_BPF_SYMBOLS
            )
            try:
                for address in entries:
                    start, end, name = record.read(address)
                    label = name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
                    self._bpf.append((start, end, label))
            except GuestDataError:
                return self._bpf  # names for people: what could be read is better than none
        return self._bpf


def resolve(kernel: Kernel, address: int) -> str:
    """``Resolver.name`` for one address; keep a Resolver for many."""
    return Resolver(kernel).name(address)


def _joined(name: str, distance: int) -> str:
    return f"{name}+{distance:#x}" if distance else name


def _address(symbol: ModuleSymbol) -> int:
    return symbol.address
