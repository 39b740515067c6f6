"""PTX, as nvcc writes it for this project, into C++ that runs on the shim.

A function becomes a C++ function, a register a local variable, a CUDA thread one call on a fiber.
Instructions are taken one by one as the PTX ISA gives them; what is not known here is refused.
Registers and local memory start as 0xFF bytes (NaN), so that what is read before it is written
shows. Memory and the instructions of a warp or block are machine.h.
"""

import re

CPP = {
    "pred": "bool",
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    "f16": "uint16_t",
    "f32": "float",
    "f64": "double",
}
BITS = {name: 8 if name == "pred" else int(re.sub(r"\D", "", name)) for name in CPP}
SPECIAL = {
    "%tid.x": "thread_index()", "%ntid.x": "block_size()", "%ctaid.x": "block_index()",
    "%nctaid.x": "grid_size()", "%envreg1": "grid_workspace_high()",
    "%envreg2": "grid_workspace_low()",
    # The kernels launch in one dimension.
    **dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"), "0u"),
    **dict.fromkeys(("%ntid.y", "%ntid.z", "%nctaid.y", "%nctaid.z"), "1u"),
}  # fmt: skip
INFIX = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
           "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}  # fmt: skip
# Of functions in machine.h: opcode and modifiers with _ for the dots. Every operand has the
# instruction's type, but for those named here.
PLAIN = {
    "add_rn", "mul", "mul_rn", "mul_lo", "mul_hi", "mul_wide", "mad_lo", "mad_wide", "fma_rn",
    "div", "div_rn", "rem", "min", "max", "abs", "sqrt_rn", "rcp_rn", "rcp_approx_ftz",
    "rsqrt_approx_ftz", "copysign", "shl", "shr", "brev", "popc", "bfi", "prmt",
}  # fmt: skip
OPERANDS = {
    "shl": ("", "u32"), "shr": ("", "u32"), "bfi": ("", "", "u32", "u32"),
    "mad_wide": ("", "", "wide"),
}  # fmt: skip
RESULT = {"popc": "u32", "mul_wide": "wide", "mad_wide": "wide"}


class Unknown(ValueError):
    """PTX that the translator has no meaning for."""


def wide(kind):
    return f"{kind[0]}{2 * BITS[kind]}"


def split(text):
    """Operands at commas outside brackets and braces."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,])+", text)]


def identifier(name):
    return re.sub(r"\W", "_", name.replace("%", "r_", 1))


class Function:
    """One .entry or .func: its declaration, and its C++ text."""

    def __init__(self, module, header, body, line):
        self.module = module
        self.line = line
        self.is_entry = ".entry" in header
        head = re.sub(r"\.(visible|weak|entry|func)\b", " ", header)
        returns, self.name, parameters = re.match(
            r"\s*(?:\((.*?)\))?\s*([\w$]+)\s*\((.*?)\)", head, re.DOTALL
        ).groups()
        self.symbols = {}  # name to C++ expression of its address
        names = [re.sub(r"\[\d*\]", "", p).split()[-1] for p in split(returns or "")]
        names += [re.sub(r"\[\d*\]", "", p).split()[-1] for p in split(parameters)]
        self.parameters = [identifier(name) for name in names]
        for name in names:
            self.symbols[name] = f"address({identifier(name)})"
        self.registers = {}
        self.calls = set()
        self.used = set()
        self.declarations, self.text = [], []
        self.body = body

    def translate(self):
        if not self.text:
            self.statements(self.body, self.line)

    # Text

    def signature(self):
        kind = "const void*" if self.is_entry else "unsigned char*"
        arguments = ", ".join(f"{kind} {p}" for p in self.parameters)
        return f"void {identifier(self.name)}({arguments})"

    def cpp(self):
        opening = f"{self.signature()} {{\n  const Shared shared = block_shared();"
        return "\n".join([opening, *self.declarations, *self.text, "}"])

    def emit(self, code):
        self.text.append(f"  {code}")

    def fail(self, statement):
        raise Unknown(f"{self.module.name}:{self.line}: no meaning known for: {statement}")

    # Statements

    def statements(self, body, line):
        token = re.compile(r"\s*(?:([{}])|([\w$]+):(?!:)|([^;{}][^;]*);)", re.DOTALL)
        place = 0
        while match := token.match(body, place):
            start = match.end() - len(match.group(0).lstrip())
            self.line = line = line + body.count("\n", place, start)
            brace, label, statement = match.groups()
            if brace:
                self.emit(brace)
            elif label:
                self.emit(f"{identifier(label)}:;")
            elif statement.startswith("."):
                self.directive(" ".join(statement.split()))
            else:
                self.guarded(" ".join(statement.split()))
            line += body.count("\n", start, match.end())
            place = match.end()
        if body[place:].strip():
            self.fail(body[place : place + 80])

    def directive(self, text):
        if text.startswith(".pragma"):
            return
        match = re.fullmatch(r"\.reg \.(\w+) (.*)", text)
        if match:
            kind = match.group(1)
            for name in split(match.group(2)):
                family = re.fullmatch(r"(.*)<(\d+)>", name)
                names = [name]
                if family:
                    names = [f"{family[1]}{i}" for i in range(1, int(family[2]))]
                for one in names:
                    self.registers[one] = kind
                    code = f"  {CPP[kind]} {identifier(one)} = undefined<{CPP[kind]}>();"
                    # Those of an inner scope stay there; the outer ones come before any label.
                    (self.declarations if family or "%SP" in one else self.text).append(code)
            return
        match = re.fullmatch(
            r"\.(local|param) (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?", text
        )
        if not match:
            self.fail(text)
        space, align, kind, name, count = match.groups()
        size = BITS[kind] // 8 * int(count or 1)
        code = (
            f"  alignas({align or BITS[kind] // 8}) unsigned char {identifier(name)}[{size}];"
            f" undefine({identifier(name)});"
        )
        (self.declarations if space == "local" else self.text).append(code)
        self.symbols[name] = f"address({identifier(name)})"

    def guarded(self, text):
        match = re.match(r"@(!?)(%\w+) (.*)", text)
        if match:
            self.emit(f"if ({match[1]}{identifier(match[2])})")
            text = match[3]
        opcode, _, operands = text.partition(" ")
        parts = opcode.split(".")
        before = len(self.text)
        handler = getattr(self, f"op_{parts[0]}", None)
        if handler:
            handler(parts, split(operands), text)
        else:
            self.plain(parts, split(operands), text)
        if match:
            self.text[before:] = [f"  {{ {' '.join(self.text[before:])} }}"]

    # Operands

    def symbol(self, name):
        if name in self.symbols:
            return self.symbols[name]
        if name in self.module.shared:
            return "kSharedStart"
        if name in self.module.tables:
            self.used.add(name)
            return f"address({identifier(name)})"
        self.fail(name)

    def get(self, kind, operand):
        """The C++ expression of an operand as that type."""
        cpp = CPP[kind]
        if operand.startswith("!"):
            return f"!{self.get(kind, operand[1:])}"
        if operand in SPECIAL:
            return f"{cpp}({SPECIAL[operand]})"
        if operand in self.registers:
            own, name = self.registers[operand], identifier(operand)
            if CPP[own] == cpp:
                return name
            if "f" in (own[0], kind[0]) and BITS[own] == BITS[kind]:
                return f"bits<{cpp}>({name})"
            if own[0] == "f" or kind[0] == "f" or BITS[own] < BITS[kind]:
                self.fail(f"{operand} as .{kind}")
            return f"{cpp}({name})"
        literal = re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand)
        if literal:
            size = 32 if literal[1] else 64
            code = f"uint{size}_t(0x{literal[1] or literal[2]}u)"
            return f"bits<{cpp}>({code})" if kind[0] == "f" else f"{cpp}({code})"
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", operand) and kind[0] != "f":
            value = int(operand, 0)
            # Of registers of bits: as that many bits.
            return f"{cpp}({hex(value % (1 << BITS[kind]))}u)" if kind != "pred" else str(value)
        return f"{cpp}({self.symbol(operand)})"

    def put(self, operand, kind, code):
        """Stores an expression of that type, extended by its sign where the register is wider."""
        if operand == "_":
            return
        if operand not in self.registers:
            self.fail(operand)
        own, name = self.registers[operand], identifier(operand)
        if "f" in (own[0], kind[0]) and CPP[own] != CPP[kind]:
            if BITS[own] != BITS[kind]:
                self.fail(f"{operand} from .{kind}")
            code = f"bits<{CPP[own]}>({code})"
        elif BITS[own] < BITS[kind]:
            self.fail(f"{operand} from .{kind}")
        self.emit(f"{name} = {code};")

    def location(self, operand):
        """Of [register + number] or [symbol + number]."""
        base, _, offset = operand.strip("[] ").partition("+")
        base = base.strip()
        if base in self.registers:
            code = identifier(base)
            # Addresses in shared memory are 32 bits, and wrap as such.
            return f"{code} + {CPP[self.registers[base]]}({int(offset or 0)})"
        return f"{self.symbol(base)} + {int(offset or 0)}"

    def memory(self, space, kind, count, operand):
        where = self.location(operand)
        if space == "shared":
            return f"shared.at<{CPP[kind]}, {count}>({where}, kFile, {self.line})"
        return f"at<{CPP[kind]}, {count}>({where}, kFile, {self.line})"

    # Instructions

    def plain(self, parts, operands, text):
        name, kind = "_".join(parts[:-1]), parts[-1]
        if kind not in CPP:
            self.fail(text)
        inputs = operands[1:]
        if name in INFIX or name in ("neg", "not"):
            # Whole numbers wrap.
            work = f"u{BITS[kind]}" if kind[0] == "s" else kind
            values = [self.get(work, x) for x in inputs]
            if name in INFIX:
                code = f"{CPP[work]}({values[0]} {INFIX[name]} {values[1]})"
            elif kind == "pred":
                code = f"!{values[0]}"
            else:
                code = f"{CPP[work]}({'-' if name == 'neg' else '~'}{values[0]})"
            self.put(operands[0], work, code)
            return
        if name not in PLAIN:
            self.fail(text)
        kinds = OPERANDS.get(name, ("",) * len(inputs))
        kinds = [wide(kind) if k == "wide" else k or kind for k in kinds]
        values = ", ".join(self.get(k, x) for k, x in zip(kinds, inputs, strict=True))
        result = RESULT.get(name, kind)
        result = wide(kind) if result == "wide" else result
        self.put(operands[0], result, f"ptx_{name}<{CPP[kind]}>({values})")

    def op_setp(self, parts, operands, text):
        test, kind = parts[1], parts[-1]
        if len(parts) != 3 or "|" in operands[0]:
            self.fail(text)
        a, b = (self.get(kind, x) for x in operands[1:])
        if test in ("num", "nan"):
            code = f"is_nan({a}) || is_nan({b})"
            code = f"!({code})" if test == "num" else code
        elif kind[0] != "f":
            code = f"{a} {COMPARE[test]} {b}"
        else:
            ordered = test.removesuffix("u")
            code = f"{a} {COMPARE[ordered]} {b}"
            if test.endswith("u"):  # or a NaN
                code = f"{code} || is_nan({a}) || is_nan({b})"
            elif test == "ne":  # and no NaN
                code = f"({code}) && !is_nan({a}) && !is_nan({b})"
        self.put(operands[0], "pred", code)

    def op_selp(self, parts, operands, text):
        kind = parts[1]
        a, b = (self.get(kind, x) for x in operands[1:3])
        self.put(operands[0], kind, f"{self.get('pred', operands[3])} ? {a} : {b}")

    def op_mov(self, parts, operands, text):
        kind, (to, source) = parts[1], operands
        if source.startswith("{"):
            low, high = split(source.strip("{}"))
            half = f"b{BITS[kind] // 2}"
            code = f"joined({self.get(half, low)}, {self.get(half, high)})"
            self.put(to, f"b{BITS[kind]}", code)
        elif to.startswith("{"):
            low, high = split(to.strip("{}"))
            half = BITS[kind] // 2
            value = self.get(f"b{BITS[kind]}", source)
            self.put(low, f"b{half}", f"uint{half}_t({value})")
            self.put(high, f"b{half}", f"uint{half}_t({value} >> {half})")
        else:
            self.put(to, kind, self.get(kind, source))

    def op_cvt(self, parts, operands, text):
        *how, to, source = parts[1:]
        if to == "f16x2":
            upper, lower = (self.get("f32", x) for x in operands[1:])
            code = f"joined(half_of({lower}), half_of({upper}))"
            self.put(operands[0], "b32", code)
            return
        value = self.get(source, operands[1])
        if source == "f16" and to == "f32" and not how:
            code = f"float_of_half({value})"
        elif (
            to[0] != "f" and source[0] != "f" and not how or to[0] == "f" and (how in ([], ["rn"]))
        ):
            code = f"{CPP[to]}({value})"
        elif how in (["rzi"], ["rni"], ["rmi"], ["rpi"]):
            code = f"rounded_{how[0]}({value})"
            if to[0] != "f":
                code = f"to_whole<{CPP[to]}>({code})"
        else:
            self.fail(text)
        self.put(operands[0], to, code)

    def op_cvta(self, parts, operands, text):
        space = parts[-2]
        value = self.get("u64", operands[1])
        if space == "shared":
            way = "offset" if "to" in parts else "generic"
            value = f"shared.{way}({value}, kFile, {self.line})"
        self.put(operands[0], "u64", value)

    def op_ld(self, parts, operands, text):
        kind = parts[-1]
        count = int(next((p[1:] for p in parts if re.fullmatch(r"v[24]", p)), "1"))
        if "acquire" in parts:
            self.emit(f"other_blocks_go_on(kFile, {self.line});")
        space = next((p for p in parts if p in ("shared", "global", "local", "param", "const")), "")
        code = self.memory(space, kind, count, operands[1])
        if count == 1:
            self.put(operands[0], kind, f"*{code}")
            return
        self.emit(f"{{ const auto* p = {code};")
        for i, name in enumerate(split(operands[0].strip("{}"))):
            self.put(name, kind, f"p[{i}]")
        self.emit("}")

    def op_st(self, parts, operands, text):
        kind = parts[-1]
        values = split(operands[1].strip("{}"))
        space = next((p for p in parts if p in ("shared", "global", "local", "param")), "")
        code = self.memory(space, kind, len(values), operands[0])
        stores = " ".join(f"p[{i}] = {self.get(kind, v)};" for i, v in enumerate(values))
        self.emit(f"{{ auto* p = {code}; {stores} }}")

    def op_atom(self, parts, operands, text):
        kind = parts[-1]
        space = "shared" if "shared" in parts else ""
        where = self.memory(space, kind, 1, operands[1])
        action = next((p for p in parts if p in ("add", "or", "and", "min", "max", "exch")), None)
        if action is None or kind[0] != "u" and kind[0] != "b":
            self.fail(text)
        self.put(operands[0], kind, f"atom_{action}({where}, {self.get(kind, operands[2])})")

    def op_bra(self, parts, operands, text):
        self.emit(f"goto {identifier(operands[0])};")

    def op_ret(self, parts, operands, text):
        self.emit("return;")

    op_exit = op_ret

    def op_trap(self, parts, operands, text):
        self.emit(f"trap(kFile, {self.line});")

    def op_call(self, parts, operands, text):
        returns = operands.pop(0) if operands[0].startswith("(") else "()"
        arguments = operands[1] if len(operands) > 1 else "()"
        names = [identifier(n) for n in split(returns.strip("()")) + split(arguments.strip("()"))]
        self.calls.add(operands[0])
        self.emit(f"{identifier(operands[0])}({', '.join(n for n in names if n)});")

    def op_bar(self, parts, operands, text):
        if parts[1] == "warp":
            self.emit(f"warp_barrier({self.get('u32', operands[0])}, kFile, {self.line});")
        elif parts[1] == "sync" and operands == ["0"]:
            self.emit(f"barrier(kFile, {self.line});")
        else:
            self.fail(text)

    op_barrier = op_bar

    def op_membar(self, parts, operands, text):
        self.emit("/* fence */")

    op_fence = op_membar

    def op_shfl(self, parts, operands, text):
        to, _, inside = operands[0].partition("|")
        a, b, c, mask = (self.get("u32", x) for x in operands[1:])
        self.emit(f"{{ const Shuffled s = shuffle(Shuffle::{parts[2]}, {a}, {b}, {c}, {mask},")
        self.emit(f"kFile, {self.line});")
        self.put(to, "b32", "s.value")
        if inside:
            self.put(inside, "pred", "s.inside")
        self.emit("}")

    def op_vote(self, parts, operands, text):
        value, mask = self.get("pred", operands[1]), self.get("u32", operands[2])
        call = f"({value}, {mask}, kFile, {self.line})"
        if parts[2] == "ballot":
            self.put(operands[0], "b32", f"ballot{call}")
        elif parts[2] == "any":
            self.put(operands[0], "pred", f"ballot{call} != 0")
        else:
            self.fail(text)

    def op_mma(self, parts, operands, text):
        shape = {"m16n8k16.row.col.f32.f16.f16.f32": ("f32", "b32"),
                 "m16n8k16.row.col.f32.bf16.bf16.f32": ("f32", "b32"),
                 "m16n8k8.row.col.f64.f64.f64.f64": ("f64", "f64"),
                 "m8n8k4.row.col.f64.f64.f64.f64": ("f64", "f64")}  # fmt: skip
        name = ".".join(parts[3:])
        if name not in shape:
            self.fail(text)
        of_sums, of_factors = shape[name]
        d, a, b, c = (split(x.strip("{}")) for x in operands)
        self.emit("{")
        for letter, kind, values in (("a", of_factors, a), ("b", of_factors, b), ("c", of_sums, c)):
            listed = ", ".join(self.get(kind, v) for v in values)
            self.emit(f"{CPP[kind]} {letter}[] = {{{listed}}};")
        function = f"mma_{parts[3]}" + ("_bf16" if "bf16" in parts else "")
        self.emit(f"{function}(c, a, b, kFile, {self.line});")
        for i, name in enumerate(d):
            self.put(name, of_sums, f"c[{i}]")
        self.emit("}")

    def op_ldmatrix(self, parts, operands, text):
        if ".".join(parts[1:]) != "sync.aligned.m8n8.x4.shared.b16":
            self.fail(text)
        self.emit("{ uint32_t d[4];")
        self.emit(f"ldmatrix_x4(d, shared, {self.location(operands[1])}, kFile, {self.line});")
        for i, name in enumerate(split(operands[0].strip("{}"))):
            self.put(name, "b32", f"d[{i}]")
        self.emit("}")

    def op_cp(self, parts, operands, text):
        if parts[2] == "commit_group":
            self.emit("copy_commit();")
        elif parts[2] == "wait_group":
            self.emit(f"copy_wait({int(operands[0])});")
        elif (".".join(parts[2:]), operands[2]) in (
            ("cg.shared.global", "16"),
            ("ca.shared.global", "8"),
        ):
            size = operands[2]
            there = self.get("u32", operands[3]) if len(operands) > 3 else f"{size}u"
            to, source = (
                f"{space}at<unsigned char, {size}>({self.location(at)}, kFile, {self.line})"
                for space, at in (("shared.", operands[0]), ("", operands[1]))
            )
            self.emit(f"copy_async({to}, {source}, {size}u, {there}, kFile, {self.line});")
        else:
            self.fail(text)


class Module:
    """All of one PTX file."""

    def __init__(self, name, text):
        self.name = name
        text = re.sub(r"//[^\n]*", "", text)
        self.shared, self.tables, self.functions, self.externals = set(), {}, {}, set()
        place, line = 0, 1
        while place < len(text):
            if text[place].isspace():
                line += text[place] == "\n"
                place += 1
                continue
            end, brace = text.find(";", place), text.find("{", place)
            newline = text.find("\n", place)
            header = text[place:newline]
            if re.match(r"\.(version|target|address_size)", header):
                place = newline
                continue
            if re.match(r"\.(visible |weak )*\.?(entry|func)", header) and 0 <= brace < end:
                close = text.index("\n}", brace)
                body_line = line + text.count("\n", place, brace)
                head = text[place:brace]
                function = Function(self, head, text[brace + 1 : close], body_line)
                self.functions[function.name] = function
                end = close + 1
            else:
                self.variable(text[place:end])
            line += text.count("\n", place, end)
            place = end + 1

    def variable(self, text):
        if ".shared" in text and ".extern" in text:
            self.shared.add(re.search(r"([\w$]+)\[\]", text)[1])
            return
        if ".func" in text:
            if ".extern" in text:
                self.externals.add(re.search(r"func\s+([\w$]+)", text)[1])
            return
        match = re.fullmatch(
            r"\.(?:global|const) \.align (\d+) \.b8 ([\w$]+)\[(\d+)\] = \{([\d, ]+)\}", text
        )
        if not match:
            raise Unknown(f"{self.name}: no meaning known for: {text[:80]}")
        align, name, size, values = match.groups()
        self.tables[name] = (
            f"alignas({align}) static unsigned char {identifier(name)}[{size}] = {{{values}}};"
        )

    def source(self, function):
        """A function's C++, a translation unit of its own."""
        function.translate()
        unknown = function.calls - set(self.functions) - self.externals
        if unknown:
            raise Unknown(f"{self.name}: calls what is not there: {', '.join(unknown)}")
        pieces = [
            '#include "machine.h"',
            f"namespace ptx_{identifier(self.name)} {{",
            "using namespace mvnrob::ptx;",
            f'static const char* const kFile = "{self.name}";',
            *(self.functions[n].signature() + ";" for n in function.calls if n in self.functions),
            *(self.tables[name] for name in sorted(function.used)),
            function.cpp(),
        ]
        if function.is_entry:
            name = function.name
            pieces.append(f'static const Kernel entry("{name}", {identifier(name)});')
        return "\n".join([*pieces, "}\n"])
