"""One running kernel: its symbols, types and memory, from one boot to the next reset."""

from __future__ import annotations

from collections.abc import Callable

from dvisor.addresses import MASK64
from dvisor.errors import DvisorError, GuestDataError, NotFoundError, StateError, UnsupportedError
from dvisor.guest import cache, locate, records
from dvisor.guest.btf import Btf
from dvisor.guest.kallsyms import TEXT_START, Image, Kallsyms, find_tables
from dvisor.guest.memory import Linear, Memory
from dvisor.guest.records import Place, Record
from dvisor.machine.engine import Engine

MAX_CPUS = 8192  # the largest CONFIG_NR_CPUS of x86-64 (arch/x86/Kconfig)
SYSTEM_BOOTING = 0  # enum system_states, include/linux/kernel.h
DIRECT_MAP_WITHOUT_KASLR = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}


class Kernel:
    """Valid for one boot. Lookups are remembered, across attaches too (``dvisor.guest.cache``)."""

    def __init__(self, engine: Engine, found: locate.Located) -> None:
        self.engine = engine
        self.epoch = engine.epoch()
        self.image: Image = found.image
        self.evidence = list(found.evidence)
        self.levels = found.levels
        size = found.image.end - found.image.start
        image_map = Linear(found.image.virtual, found.physical, size)
        self.memory = Memory(engine, found.root, found.levels, (image_map,))
        self._decoded: tuple[Kallsyms, Btf] | None = None
        self._records: dict[tuple[str, ...], Record] = {}
        self.task_names: dict[bytes, str] = {}
        """Decoded task_struct.comm, for ``dvisor.guest.tasks``."""
        known = cache.find(self.image)
        if known:
            self.digest, self._memo, self._source = known
        else:
            self._source = self._find_source()
            self.digest, self._memo = self._new_memo()
        self._saved = self._memo_size() if known else 0
        self.from_cache = bool(known)
        # CR3 belongs to whichever process ran, and goes with it; the kernel's own table stays.
        root = self.symbol("init_top_pgt") - image_map.virtual + image_map.physical
        self.memory = Memory(engine, root, found.levels, (image_map,))
        self.memory = Memory(engine, root, found.levels, (self._direct_map(), image_map))
        self._check_running()
        self.banner = self.memory.string(self.symbol("linux_banner"), 512)
        self.vmcoreinfo = self._read_vmcoreinfo()

    # -- symbols -------------------------------------------------------------------------------

    @property
    def symbols(self) -> Kallsyms:
        """The whole symbol table of the image; GuestDataError where the guest changed it."""
        return self._decode()[0]

    def _decode(self) -> tuple[Kallsyms, Btf]:
        """From a copy that has the digest: of a guest that changes its tables after they were
        digested, no answer may be remembered under the digest of an honest kernel."""
        if self._decoded is None:
            copy = self._source.copy()
            if copy.digest() != self.digest:
                raise GuestDataError(
                    "the guest's kernel changed its symbol table or its BTF: attach again"
                )
            self._decoded = _decoded(copy)
        return self._decoded

    def find_symbol(self, *names: str) -> int | None:
        """Address of the first of ``names`` that this kernel has; None if it has none."""
        for name in names:
            address = self._remembered_symbol(name)
            if address is not None:
                return address
        return None

    def symbol(self, *names: str) -> int:
        """Address of the first of ``names`` that this kernel has; NotFoundError."""
        address = self.find_symbol(*names)
        if address is None:
            raise NotFoundError(f"this kernel has no symbol {' or '.join(names)}")
        return address

    def _remembered_symbol(self, name: str) -> int | None:
        memo = self._memo.symbols
        base = self.image.virtual
        if name not in memo:
            address = self.symbols.lookup(name)
            if address is None:
                memo[name] = None
            elif address < TEXT_START:  # an absolute one: per-CPU offset or constant
                memo[name] = ("a", address)
            else:
                memo[name] = ("t", address - base)
        found = memo[name]
        if found is None:
            return None
        return found[1] + (base if found[0] == "t" else 0)

    # -- types ---------------------------------------------------------------------------------

    @property
    def types(self) -> Btf:
        """vmlinux's BTF; GuestDataError where the guest changed it."""
        return self._decode()[1]

    def record(self, structure: str, *fields: str) -> Record:
        """A reader of several members of ``structure`` at once.

        A field is a dotted path; ``a|b`` takes the first that this kernel has (members were
        renamed), a trailing ``?`` gives None where there is none. NotFoundError names the rest.
        Numbers and pointers are ints; an array of bytes is asked for as ``a[]``. UnsupportedError
        where the guest's types tell otherwise.
        """
        key = (structure, *fields)
        record = self._records.get(key)
        if record is None:
            places = [self._field(structure, field) for field in fields]
            record = self._records[key] = Record(self.memory, structure, places)
        return record

    def _field(self, structure: str, field: str) -> Place | None:
        optional, path = field.endswith("?"), field.removesuffix("?")
        wanted = path.endswith("[]")
        found = self.place(structure, path.removesuffix("[]"))
        if found is None and not optional:
            raise records.missing(structure, field)
        # Checked here, since the guest describes its types itself: views rely on what they asked.
        if found is not None and (not found.code or found.is_bytes != wanted):
            kind = "an array of bytes" if wanted else "a number or pointer"
            raise UnsupportedError(f"{structure}.{path} is not {kind} in this kernel")
        return found

    def place(self, structure: str, path: str) -> Place | None:
        """Where a member (``a|b``: the first that exists) stands; None if there is none."""
        for name in path.split("|"):
            key = f"{structure}.{name}"
            if key not in self._memo.places:
                try:
                    found = records.place(self.types, structure, name)
                except NotFoundError:
                    found = None
                self._memo.places[key] = found
            known = self._memo.places[key]
            if known is not None:
                return known
        return None

    def offset(self, structure: str, path: str) -> int:
        """Byte offset of a member; ``a|b`` as in ``record``; NotFoundError if there is none."""
        found = self.place(structure, path)
        if found is None:
            raise records.missing(structure, path)
        return found.offset

    def size_of(self, structure: str) -> int:
        """Size of a struct or union in bytes; NotFoundError."""
        size = self._number(
            f"sizeof {structure}", lambda: self.types.size(self.types.structure(structure))
        )
        assert size is not None
        return size

    def constant(self, name: str) -> int | None:
        """Value of an enumeration constant; None if this kernel has none of that name."""
        return self._number(f"enum {name}", lambda: self.types.constant(name))

    def _number(self, key: str, compute: Callable[[], int | None]) -> int | None:
        if key not in self._memo.numbers:
            self._memo.numbers[key] = compute()
        return self._memo.numbers[key]

    # -- CPUs ----------------------------------------------------------------------------------

    def cpus(self) -> list[int]:
        """Numbers of the CPUs that are online."""
        size = min(-(-self.cpu_limit() // 64) * 8, MAX_CPUS // 8)
        mask = int.from_bytes(self.memory.read(self.symbol("__cpu_online_mask"), size), "little")
        return [cpu for cpu in range(size * 8) if mask >> cpu & 1]

    def cpu_limit(self) -> int:
        """nr_cpu_ids: one more than the highest possible CPU number, at most MAX_CPUS."""
        address = self.find_symbol("nr_cpu_ids")
        return min(max(self.memory.u32(address), 1), MAX_CPUS) if address else 64

    def per_cpu(self, symbol: int, cpu: int) -> int:
        """Address of a per-CPU variable's instance (include/asm-generic/percpu.h)."""
        if not 0 <= cpu < MAX_CPUS:
            raise NotFoundError(f"no CPU {cpu}")
        offset = self.memory.u64(self.symbol("__per_cpu_offset") + 8 * cpu)
        return (symbol + offset) & MASK64

    # -- life ----------------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether this is still the kernel that runs, as far as the engine can tell cheaply."""
        if self.engine.epoch() != self.epoch:
            return False
        try:
            return self.memory.read(self.symbol("linux_banner"), len(self.banner)) == self.banner
        except GuestDataError:
            return False

    def remember(self) -> None:
        """Save what was looked up, for the next attach. Costs nothing when nothing is new."""
        size = self._memo_size()
        if size != self._saved:
            cache.save(self.digest, self._memo)
            self._saved = size

    # -- discovery -----------------------------------------------------------------------------

    def _find_source(self) -> cache.Source:
        tables = find_tables(self.image)
        symbols = Kallsyms(self.image, tables)
        bounds = []
        for name in ("__start_BTF", "__stop_BTF"):
            address = symbols.lookup(name)
            if address is None:
                raise UnsupportedError(
                    f"this kernel has no {name}: dvisor needs one built with "
                    "CONFIG_DEBUG_INFO_BTF and CONFIG_KALLSYMS_ALL, as those of all large "
                    "distributions are"
                )
            bounds.append(self.image.position(address))
        start, end = bounds
        if not self.image.start <= start < end <= self.image.end:
            raise GuestDataError("the kernel's BTF is not inside its image")
        return cache.Source(self.image, tables, (start, end))

    def _new_memo(self) -> tuple[str, cache.Memo]:
        copy = self._source.copy()
        self._decoded = _decoded(copy)
        return copy.digest(), cache.Memo(cache.FORMAT, copy.hint())

    def _memo_size(self) -> int:
        memo = self._memo
        return len(memo.symbols) + len(memo.places) + len(memo.numbers)

    def _direct_map(self) -> Linear:
        """All of RAM, where the kernel maps it; the page tables must agree."""
        symbol = self.find_symbol("page_offset_base")
        base = self.memory.u64(symbol) if symbol else DIRECT_MAP_WITHOUT_KASLR[self.levels]
        here = self.memory.root
        page = self.memory.walk(base + here)
        if page.physical + base + here - page.virtual != here:
            raise GuestDataError(f"the direct map is not at {base:#x}, as page_offset_base says")
        return Linear(base, 0, self.engine.ram()[-1].end)

    def _check_running(self) -> None:
        state = self.find_symbol("system_state")
        if state is not None and self.memory.u32(state) == SYSTEM_BOOTING:
            raise StateError("the guest's kernel is still booting: wait until it has started init")

    def _read_vmcoreinfo(self) -> dict[str, str]:
        """VMCOREINFO through its own symbol; notes whether it and kallsyms tell the same story."""
        agree = self.evidence.append
        try:
            raw = self.memory.read(self.memory.u64(self.symbol("vmcoreinfo_data")), 4096)
            note = locate.parse_vmcoreinfo(raw)
            offset = int(note["KERNELOFFSET"], 16)
            text = int(note["SYMBOL(_stext)"], 16)
        except (DvisorError, KeyError, ValueError) as error:
            agree(locate.Evidence("vmcoreinfo", False, f"not there: {error}"))
            return {}
        same = text == self.find_symbol("_stext")
        same = same and locate.LINKED_AT + offset == self.image.virtual
        agree(locate.Evidence("vmcoreinfo", same, f"KERNELOFFSET {offset:#x}, _stext {text:#x}"))
        inside = self.find_symbol("_text") == self.image.virtual
        agree(locate.Evidence("kallsyms", inside, f"{self._source.tables.count} symbols"))
        return note


def _decoded(copy: cache.Source) -> tuple[Kallsyms, Btf]:
    start, end = copy.btf
    return Kallsyms(copy.image, copy.tables), Btf(bytes(copy.image.buffer[start:end]))


def find(engine: Engine) -> Kernel:
    """The kernel that runs in the guest. Errors as ``locate.locate``."""
    candidates = locate.locate(engine)
    kernels: list[Kernel] = []
    problem: DvisorError | None = None
    for candidate in candidates:
        try:
            kernels.append(Kernel(engine, candidate))
        except DvisorError as error:
            problem = problem or error
    if not kernels:
        assert problem is not None
        raise problem
    # Several only without registers: what was reset away stays in RAM, but its clock stands still.
    return kernels[0] if len(kernels) == 1 else max(kernels, key=_wall_clock)


def timekeeper(kernel: Kernel) -> tuple[int, int]:
    """Addresses of the timekeeper's sequence count and of the struct timekeeper behind it
    (kernel/time/timekeeping.c)."""
    start = kernel.symbol("tk_core", "timekeeper_data")  # the latter is an array, the core's first
    outer = kernel.place("tk_data", "timekeeper")
    if outer:
        return start, start + outer.offset
    # An anonymous {seqcount; timekeeper;}; with PREEMPT_RT the count has a pointer, too.
    return start, start + (kernel.size_of("seqcount_raw_spinlock") + 7 & ~7)


def _wall_clock(kernel: Kernel) -> int:
    """Seconds since 1970, as the guest has it; 0 if that cannot be read."""
    try:
        address = timekeeper(kernel)[1]
        return kernel.memory.u64(address + kernel.offset("timekeeper", "xtime_sec"))
    except DvisorError:
        return 0
