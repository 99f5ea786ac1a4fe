"""How a chat template becomes Python that pays for what it does: the generated code calls `PromptEnvironment`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser

from zoo.chat.limits import LimitExceeded

_LOOKUP = 4  # steps of `a.b`: most of its time goes into checks, or into making an undefined value


class MeteringGenerator(CodeGenerator):
    """Writes the Python of a template so that each block of statements pays for its nodes before it runs."""

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        """Pay for the nodes of a block, then run it."""
        body = list(body)
        self.writeline(f"environment.meter.step({1 + sum(map(_steps, body))})")
        super().blockvisit(body, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """Pay for passes of `for x in y if test` that fail the test: they run no block."""
        if node.test is not None:
            node.test = nodes.Call(nodes.EnvironmentAttribute("passed"), [node.test], [], None, None)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`."""
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """`a == b`, and chains: `a < b < c` evaluates b once."""
        left: nodes.Expr | str = node.expr
        self.write("(")
        for index, operand in enumerate(node.ops):
            self.write(f"{' and ' if index else ''}environment.compare({operand.op!r}, ")
            if isinstance(left, str):
                self.write(left)
            else:
                self.visit(left, frame)
            self.write(", ")
            if index + 1 < len(node.ops):
                left = self.temporary_identifier()
                self.write(f"({left} := ")
                self.visit(operand.expr, frame)
                self.write(")")
            else:
                self.visit(operand.expr, frame)
            self.write(")")
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """`a[b:c]`, which jinja writes as a plain Python slice."""
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(")
        self.visit(node.node, frame)
        for part in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """`{a: b}`: keys are hashed."""
        self.write("environment.mapping({")
        for pair in node.items:
            if isinstance(pair.key, nodes.Const):
                self.visit(pair.key, frame)
            else:
                self.write("environment.key(")
                self.visit(pair.key, frame)
                self.write(")")
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("})")


class TokenLimit(Extension):
    """Ends the parse of a template with too many tokens: compiling takes kilobytes of memory for each."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Count the tokens on their way to the parser."""
        limit = self.environment.meter.limits.tokens  # type: ignore[attr-defined]
        for count, token in enumerate(stream):
            if count >= limit:
                raise LimitExceeded(f"it has more than {limit} tokens")
            yield token


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the answers for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the tag: its body is a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _steps(node: nodes.Node) -> int:
    """Count the steps of a statement: not of the bodies inside it, which pay for themselves."""
    own = _LOOKUP if isinstance(node, (nodes.Getattr, nodes.Getitem)) else 1
    return own + sum(map(_steps, node.iter_child_nodes(exclude=("body", "else_"))))
