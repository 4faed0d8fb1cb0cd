"""What can be proven of the CUDA kernels without a GPU: compiles every unit of tests/cuda/proof for the given architectures and
holds each kernel against its row in budget.txt.

    python3 prove.py --arch 75,90            # what CI checks
    python3 prove.py --arch all --write-table docs/CUDA_OCCUPANCY.md

A unit is a .cu file with `void launches()` that calls the library's launchers as a host would. It is compiled to an object; of
that, per architecture:
  - ptxas' own report: registers, stack frame, spills, static shared memory;
  - the unit linked to launch_recorder.cpp, a stand-in for the CUDA runtime that writes down every launch: which kernel the
    launcher takes on that architecture, with how many threads and how much dynamic shared memory;
  - the machine code, by cuobjdump: instructions that must be there, and local memory, which must not.
From these follows the theoretical occupancy. Needs nvcc, g++ and c++filt; where there is no cuobjdump (NVIDIA's toolkit, PyPI's
nvidia-cuda-cuobjdump with nvidia-cuda-nvdisasm, or triton), it says that instructions were not checked.

Exit status: 0 all holds, 1 findings, 2 could not run.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


class Arch:
    """Limits of one multiprocessor. Sources: "Technical Specifications per Compute Capability" of NVIDIA's CUDA C++ Programming
    Guide, and cuda_occupancy.h of the CUDA Toolkit 13.0 (granularities, blocks)."""

    def __init__(self, warps, blocks, shared_kib, shared_block_kib, reserved, granule):
        self.warps = warps  # resident warps
        self.blocks = blocks  # resident blocks
        self.shared = shared_kib * 1024  # shared memory of a multiprocessor
        self.shared_block = shared_block_kib * 1024  # largest dynamic shared memory of a block
        self.reserved = reserved  # bytes that the system takes of each block's shared memory
        self.granule = granule  # shared memory is given in multiples of this


ARCHS = {
    75: Arch(32, 16, 64, 64, 0, 256),
    80: Arch(64, 32, 164, 163, 1024, 128),
    86: Arch(48, 16, 100, 99, 1024, 128),
    89: Arch(48, 24, 100, 99, 1024, 128),
    90: Arch(64, 32, 228, 227, 1024, 128),
    100: Arch(64, 32, 228, 227, 1024, 128),
    103: Arch(64, 32, 228, 227, 1024, 128),
    120: Arch(48, 24, 100, 99, 1024, 128),
}
REGISTERS = 65536  # of a multiprocessor, on all of them
REGISTER_GRANULE = 256  # a warp's registers are given in multiples of this
PARTITIONS = 4  # a multiprocessor's registers and warps are divided among its four schedulers


def round_up(value, granule):
    return (value + granule - 1) // granule * granule


def occupancy(sm, threads, registers, shared):
    """(resident blocks, occupancy in percent, what bounds it)."""
    arch = ARCHS[sm]
    warps = (threads + 31) // 32
    bounds = {"blocks": arch.blocks, "warps": arch.warps // warps}
    if registers:
        warp_registers = round_up(registers * 32, REGISTER_GRANULE)
        fits = warp_registers * round_up(warps, PARTITIONS) <= REGISTERS  # what a launch is checked for
        bounds["registers"] = REGISTERS // PARTITIONS // warp_registers * PARTITIONS // warps if fits else 0
    taken = round_up(shared + arch.reserved, arch.granule)
    if shared > arch.shared_block:
        bounds["shared"] = 0
    elif taken:
        bounds["shared"] = arch.shared // taken
    limiter = min(bounds, key=bounds.get)
    blocks = bounds[limiter]
    return blocks, 100 * blocks * warps // arch.warps, limiter


def by_arch(text, sm):
    """The values of "64 72@75 80@90+": those without @ stand for every architecture, one with it comes before them."""
    plain, special = [], []
    for word in text.split():
        value, _, where = word.partition("@")
        if not where:
            plain.append(value)
        elif any((sm >= int(w[:-1])) if w.endswith("+") else sm == int(w) for w in where.split(",")):
            special.append(value)
    return plain, special


class Budget:
    """One row of budget.txt."""

    def __init__(self, line, where):
        cells = [cell.strip() for cell in re.split(r"\s\|\s", line)]
        if len(cells) != 6:
            sys.exit(f"{where}: {len(cells)} columns; expected 6: kernel | registers | shared | occupancy | must | must not")
        self.pattern = re.compile(cells[0])
        self.registers, self.shared, self.occupancy, self.must, self.must_not = cells[1:]
        self.where = where
        self.used = False

    def number(self, text, sm):
        plain, special = by_arch(text, sm)
        return int((special or plain)[0])

    @staticmethod
    def words(text, sm):
        plain, special = by_arch(text, sm)
        return [word for word in plain + special if word != "-"]


class Route:
    """A row `route LABEL | architectures | kernel`: what the launches under that label are, there."""

    def __init__(self, line, where):
        cells = [cell.strip() for cell in re.split(r"\s\|\s", line.removeprefix("route "))]
        if len(cells) != 3:
            sys.exit(f"{where}: {len(cells)} columns; expected 3: route label | architectures | kernel")
        self.label, self.archs, self.kernel = re.compile(cells[0]), cells[1], re.compile(cells[2])
        self.where = where
        self.used = False

    def holds_on(self, sm):
        return bool(by_arch(f"x@{self.archs.replace(' ', ',')}", sm)[1])


def read_budget(path):
    budgets, routes = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if line.startswith("route "):
            routes.append(Route(line, f"{path.name}:{number}"))
        elif line and not line.startswith("#"):
            budgets.append(Budget(line, f"{path.name}:{number}"))
    return budgets, routes


def run(command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)


class Kernel:
    """What the compiler made of one kernel on one architecture."""

    def __init__(self):
        self.registers = self.stack = self.spills = self.static_shared = 0
        self.instructions = None  # {opcode: count}; None: not disassembled


def read_ptxas(text):
    """{architecture: {mangled name: Kernel}}"""
    kernels, kernel = {}, None
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
            kernel = kernels.setdefault(int(found[2]), {})[found[1]] = Kernel()
        elif kernel is None:
            continue
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernel.stack = max(kernel.stack, int(found[1]))
            kernel.spills += int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            kernel.registers = int(found[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                kernel.static_shared = int(shared[1])
    return kernels


def read_sass(text, kernels):
    """Counts the instructions of each kernel of read_ptxas' answer."""
    counts, sm = None, 0
    for line in text.splitlines():
        if found := re.search(r"code for sm_(\d+)", line):
            sm, counts = int(found[1]), None
        elif found := re.search(r"Function : (\w+)", line):
            counts = {}
            if found[1] in kernels.get(sm, {}):
                kernels[sm][found[1]].instructions = counts
        elif counts is not None and (found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)):
            counts[found[1]] = counts.get(found[1], 0) + 1


def has(instructions, wanted):
    """How many instructions have that opcode and all of its modifiers, in any order: LDG.128 is in LDG.E.128.CONSTANT."""
    head, *modifiers = wanted.split(".")
    total = 0
    for opcode, count in instructions.items():
        parts = opcode.split(".")
        if parts[0] == head and all(modifier in parts[1:] for modifier in modifiers):
            total += count
    return total


def short_names(names):
    """Demangled, without return type, parameters and namespaces."""
    names = sorted(names)
    done = run(["c++filt"], input="\n".join(names))
    shorts = {}
    for name, text in zip(names, done.stdout.splitlines()):
        text = text.replace("(anonymous namespace)::", "")
        depth, end = 0, len(text)
        for at, letter in enumerate(text):  # the parameters' parenthesis is the first outside of <>
            if letter == "<":
                depth += 1
            elif letter == ">":
                depth -= 1
            elif letter == "(" and depth == 0:
                end = at
                break
        text = re.sub(r"\((?:\w+::|\w+ )*\w+\)(?=[-\d])", "", text[:end])  # (bool)1 -> 1
        text = re.sub(r"(?:\w+::)+", "", text)
        shorts[name] = text.removeprefix("void ").replace("> >", ">>")
    return shorts


def find_cuobjdump(nvcc, given):
    names = []
    if given:
        names.append(pathlib.Path(given))
    if found := shutil.which("cuobjdump"):
        names.append(pathlib.Path(found))
    names.append(pathlib.Path(nvcc).resolve().parent / "cuobjdump")
    packages = [pathlib.Path(sysconfig.get_path("purelib"))]
    packages += sorted((ROOT / "build/cuobjdump/lib").glob("python3*/site-packages"))
    for folder in packages:
        names += sorted(folder.glob("nvidia/*/bin/cuobjdump")) + [folder / "triton/backends/nvidia/bin/cuobjdump"]
    for name in names:
        if name.is_file():
            folders = os.pathsep.join([str(name.parent), os.environ.get("PATH", "")])  # it starts nvdisasm from there
            return name, {**os.environ, "PATH": folders}
    return None, None


class Prover:
    def __init__(self, options):
        self.options = options
        self.findings = []
        self.build = pathlib.Path(options.build)
        self.build.mkdir(parents=True, exist_ok=True)
        self.cuobjdump, self.environment = find_cuobjdump(options.nvcc, options.cuobjdump)
        if options.no_sass:
            self.cuobjdump = None

    def compile(self, unit, archs):
        """What nvcc makes of one unit, {architecture: {mangled name: Kernel}}, or why not. One call for all architectures: the
        host's half is the same."""
        target = self.build / f"{unit.stem}.o"
        command = [*self.options.launcher, self.options.nvcc, "-std=c++20", "-O3",
                   *[f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in archs],
                   "-Werror=all-warnings", "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra,-Wconversion,-Wshadow,-Werror",
                   *self.options.flag, f"-I{ROOT / 'include'}", f"-I{HERE}", "-c", unit, "-o", target]
        done = run(command)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).splitlines()
            return None, "\n".join([f"{unit.name} does not compile:", *said[:20], f"({len(said)} lines)"])
        kernels = read_ptxas(done.stdout + done.stderr)
        if lacking := [sm for sm in archs if sm not in kernels]:
            return None, f"{unit.name}: ptxas reported nothing for sm_{lacking[0]}"
        if self.cuobjdump:
            sass = run([self.cuobjdump, "-sass", target], env=self.environment)
            if sass.returncode != 0:
                return None, f"cuobjdump -sass {target} ended with {sass.returncode}: {sass.stderr}"
            read_sass(sass.stdout, kernels)
        return kernels, None

    def record(self, unit):
        """[(label, kernel, threads, shared, grid)] of the unit's launches on every architecture of the table."""
        program = self.build / f"{unit.stem}_launches"
        objects = [self.build / f"{unit.stem}.o", self.build / "launch_recorder.o"]
        done = run([self.options.cxx, *objects, "-o", program])
        if done.returncode != 0:
            sys.exit(f"{unit.name}: its launches do not link:\n{done.stderr}")
        launches = {}
        for arch in ARCHS:
            done = run([program, str(arch)])
            if done.returncode != 0:
                said = [line for line in done.stdout.splitlines() if line.startswith("failed ")] or [f"ended with {done.returncode}"]
                self.findings.append(f"sm_{arch} {unit.name}: {said[0]}")
            label = ""
            launches[arch] = []
            for line in done.stdout.splitlines():
                kind, _, rest = line.partition(" ")
                if kind == "route":
                    label = rest
                elif kind == "launch":
                    kernel, grid, threads, shared = rest.split()
                    launches[arch].append((label, kernel, int(threads), int(shared), grid))
        return launches

    def compile_recorder(self):
        include = pathlib.Path(self.options.nvcc).resolve().parent.parent / "include"
        done = run([*self.options.launcher, self.options.cxx, "-std=c++20", "-O1", f"-isystem{include}", "-c", HERE / "launch_recorder.cpp",
                    "-o", self.build / "launch_recorder.o"])
        if done.returncode != 0:
            sys.exit(f"launch_recorder.cpp does not compile:\n{done.stderr}")

    def check_kernel(self, budget, sm, name, kernel, launches):
        def finding(text):
            self.findings.append(f"sm_{sm} {name}: {text}  ({budget.where})")

        if kernel.spills or kernel.stack:
            finding(f"{kernel.spills} bytes of spills, a stack frame of {kernel.stack} bytes; expected none")
        if self.cuobjdump and not kernel.instructions:
            finding("cuobjdump shows no instructions of it")
        if kernel.instructions is not None:
            for wanted in ("LDL", "STL"):
                if count := has(kernel.instructions, wanted):
                    finding(f"{count} {wanted}: local memory; expected none")
        if not launches:
            return None  # compiled for this architecture, but its launcher takes another there
        registers = budget.number(budget.registers, sm)
        if kernel.registers > registers:
            finding(f"{kernel.registers} registers; the budget is {registers}")
        shared = max(launch[3] for launch in launches) + kernel.static_shared
        threads = max(launch[2] for launch in launches)
        if shared > budget.number(budget.shared, sm):
            finding(f"{shared} bytes of shared memory; the budget is {budget.number(budget.shared, sm)}")
        cells = [occupancy(sm, launch[2], kernel.registers, launch[3] + kernel.static_shared) for launch in launches]
        blocks, percent, limiter = min(cells, key=lambda cell: cell[1])
        if blocks == 0:
            finding(f"no block fits: {threads} threads, {kernel.registers} registers, {shared} bytes of shared memory ({limiter})")
        elif percent < budget.number(budget.occupancy, sm):
            finding(f"occupancy {percent} %, bound by {limiter}; the budget is {budget.number(budget.occupancy, sm)} %")
        if kernel.instructions is not None:
            for wanted in budget.words(budget.must, sm):
                if not has(kernel.instructions, wanted):
                    finding(f"no {wanted}")
            for wanted in budget.words(budget.must_not, sm):
                if count := has(kernel.instructions, wanted):
                    finding(f"{count} {wanted}; expected none")
        return (threads, shared, kernel.registers, blocks, percent, limiter)

    def prove(self, units, archs):
        budgets, routes = read_budget(pathlib.Path(self.options.budget))
        self.compile_recorder()
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            results = dict(zip(units, pool.map(lambda unit: self.compile(unit, archs), units)))
        failed = [problem for _, problem in results.values() if problem]
        self.findings += failed
        table = {}
        results = {unit: compiled for unit, (compiled, _) in results.items() if compiled is not None}
        recorded = {unit: self.record(unit) for unit in results}
        everywhere = {launch[1] for launches in recorded.values() for sm in ARCHS for launch in launches[sm]}
        for unit, compiled in results.items():
            launches = recorded[unit]
            shorts = short_names({name for kernels in compiled.values() for name in kernels} | everywhere)
            launched = {launch[1] for sm in ARCHS for launch in launches[sm]}
            for sm in archs:
                for mangled, kernel in sorted(compiled[sm].items(), key=lambda item: shorts[item[0]]):
                    name = shorts[mangled]
                    if mangled not in launched and "<" not in name and (mangled in everywhere or self.options.unit):
                        continue  # no template: compiled wherever its header is included, launched by another unit
                    if mangled not in launched:
                        self.findings.append(f"sm_{sm} {name}: compiled, but no launch of {unit.name} takes it on any architecture")
                        continue
                    budget = next((b for b in budgets if b.pattern.fullmatch(name)), None)
                    if budget is None:
                        self.findings.append(f"sm_{sm} {name}: has no row in {self.options.budget}")
                        continue
                    budget.used = True
                    row = self.check_kernel(budget, sm, name, kernel, [x for x in launches[sm] if x[1] == mangled])
                    table.setdefault((unit.stem, name), {})[sm] = row
            for sm in ARCHS:
                for label, mangled, *_ in launches[sm]:
                    for route in routes:
                        if route.label.fullmatch(label) and route.holds_on(sm):
                            route.used = True
                            if not route.kernel.fullmatch(shorts[mangled]):
                                self.findings.append(f"sm_{sm} {label}: takes {shorts[mangled]}; expected {route.kernel.pattern}  ({route.where})")
        if not self.options.unit and not failed:
            for row in budgets + routes:
                if not row.used:
                    self.findings.append(f"{row.where}: stands for nothing that was compiled")
        return table


HEAD = """# Occupancy of the CUDA kernels

Generated: `python3 tests/cuda/proof/prove.py --arch all --write-table docs/CUDA_OCCUPANCY.md`, by {version}. Theoretical: from
registers, shared memory and threads against each architecture's limits; no GPU took part. A cell is *registers · resident warps of
the possible ones*, an `r`, `s`, `b` or `w` behind it what bounds them: registers, shared memory, blocks, warps. "–": the
launchers take another kernel on that architecture. Shared memory is the largest of the recorded launches, over architectures.

"""


def merged(table):
    """Rows of kernels that differ in a last template argument which stands for the architecture, put together; none of those that
    no launcher takes on the compiled architectures."""
    rows = {key: {sm: cell for sm, cell in cells.items() if cell} for key, cells in table.items()}
    done = {}
    for (unit, name), cells in rows.items():
        stem = re.sub(r", (true|false)>$", ">", name)
        others = [of for of in rows if of != (unit, name) and of[0] == unit and re.sub(r", (true|false)>$", ">", of[1]) == stem]
        if stem != name and all(cells.keys().isdisjoint(rows[of]) for of in others):
            done.setdefault((unit, stem), {}).update(cells)
        elif cells:
            done[unit, name] = cells
    return {key: cells for key, cells in done.items() if cells}


def render(table, archs, version):
    table = merged(table)
    lines = [HEAD.format(version=version)]
    for unit in dict.fromkeys(unit for unit, _ in table):
        lines.append(f"## {unit}\n")
        lines.append("| kernel | threads | shared, bytes | " + " | ".join(f"sm_{sm}" for sm in archs) + " |")
        lines.append("|---|---|---|" + "---|" * len(archs))
        for (of, name), cells in sorted(table.items()):
            if of != unit:
                continue
            rows = [cell for cell in cells.values() if cell]
            threads = max((row[0] for row in rows), default=0)
            shared = max((row[1] for row in rows), default=0)
            texts = []
            for sm in archs:
                cell = cells.get(sm)
                texts.append(f"{cell[2]} · {cell[4]} % {cell[5][0]}" if cell else "–")
            lines.append(f"| `{name}` | {threads} | {shared} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def compare(committed, table, archs, version):
    """Cells of a committed table that are not what was just compiled. None where another compiler wrote it."""
    text = committed.read_text(encoding="utf-8")
    if version not in " ".join(text.split()):
        return None
    columns, written, unit = [], {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            unit = line[3:].strip()
        elif line.startswith("| kernel"):
            columns = [cell.strip() for cell in line.strip("|").split("|")]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            for column, cell in zip(columns[3:], cells[3:]):
                written[unit, cells[0].strip("`"), column] = cell
    stale = []
    for (unit, name), cells in merged(table).items():
        for sm in archs:
            cell = cells.get(sm)
            text = f"{cell[2]} · {cell[4]} % {cell[5][0]}" if cell else "–"
            if written.get((unit, name, f"sm_{sm}")) != text:
                stale.append(f"{committed.name}: {name} on sm_{sm} is {written.get((unit, name, f'sm_{sm}'))}; compiled: {text}")
    return stale


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", default="75,90", help='compute capabilities, e.g. 75,90, or "all"')
    parser.add_argument("--unit", action="append", default=[], help="only this .cu file (its name without folder and ending)")
    parser.add_argument("--units", default=str(HERE), help="folder of the units")
    parser.add_argument("--budget", default=str(HERE / "budget.txt"))
    parser.add_argument("--build", default=str(ROOT / "build/proof"), help="folder of objects")
    parser.add_argument("--nvcc", default=os.environ.get("NVCC") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    parser.add_argument("--cxx", default=os.environ.get("CXX") or "g++")
    parser.add_argument("--launcher", type=str.split, default=[], help='in front of nvcc, e.g. "ccache"')
    parser.add_argument("--flag", action="append", default=[], help="one more for nvcc")
    parser.add_argument("--cuobjdump", default=os.environ.get("PEFT_CUOBJDUMP"))
    parser.add_argument("--no-sass", action="store_true", help="as if there were no cuobjdump")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write-table", help="Markdown file for the occupancy table")
    parser.add_argument("--check-table", help="a table written before, which must still hold")
    options = parser.parse_args()

    if not pathlib.Path(options.nvcc).is_file():
        print(f"prove.py: there is no {options.nvcc}; pass --nvcc, or put the CUDA Toolkit (13.0) on PATH")
        return 2
    archs = sorted(ARCHS) if options.arch == "all" else [int(sm) for sm in options.arch.split(",")]
    if unknown := [sm for sm in archs if sm not in ARCHS]:
        print(f"prove.py: no limits are known of sm_{unknown[0]}; expected of {sorted(ARCHS)}")
        return 2
    units = sorted(pathlib.Path(options.units).glob("*.cu"))
    if options.unit:
        units = [unit for unit in units if unit.stem in options.unit]
    if not units:
        print(f"prove.py: no unit in {options.units}")
        return 2

    release = re.search(r"release [\d.]+, V([\d.]+)", run([options.nvcc, "--version"]).stdout)
    version = f"nvcc {release[1] if release else 'of an unknown version'}"
    prover = Prover(options)
    table = prover.prove(units, archs)
    if options.write_table and table:
        pathlib.Path(options.write_table).write_text(render(table, archs, version), encoding="utf-8")
    if options.check_table and table and not options.unit:
        stale = compare(pathlib.Path(options.check_table), table, archs, version)
        if stale is None:
            print(f"{options.check_table} was written by another compiler than {version}: not compared")
        else:
            prover.findings += stale
    prover.findings = list(dict.fromkeys(prover.findings))  # a route may be taken by many launches
    for finding in prover.findings:
        print(finding)
    checked = f"{len(table)} kernels of {len(units)} units on {', '.join(f'sm_{sm}' for sm in archs)}, {version}"
    if prover.cuobjdump:
        print(f"{checked}: registers, shared memory, spills, occupancy, routes, instructions ({prover.cuobjdump.name} was there)")
    else:
        print(f"{checked}: registers, shared memory, spills, occupancy, routes. NOT checked: instructions, there is no cuobjdump")
    print(f"{len(prover.findings)} findings")
    return 1 if prover.findings else 0


if __name__ == "__main__":
    sys.exit(main())
